// SPDX-License-Identifier: MIT
//! Emulated hosts: whole machines, with virtualization extensions of their own, on any x86 Linux machine.
//!
//! A [`Host`] boots a [`Kernel`] in an emulator with the given files and programs in its initramfs, runs commands
//! and brings back their output, their status and the files they left:
//!
//! ```no_run
//! use exitregs_lab::host::{Command, Host, Kernel};
//!
//! let outcome = Host::amd(Kernel::Stock6_12).get("/etc/hostname").run(Command::shell("ls -l /dev/kvm"))?;
//! outcome.last().check()?;
//! println!("{}", outcome.last().stdout_text());
//! # anyhow::Ok(())
//! ```

mod amd;
mod initramfs;
mod intel;
pub mod job;
pub mod kernel;
mod machine;
mod outcome;
pub mod requirements;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use amd::Amd;
pub use intel::Intel;
pub use job::{Command, Status};
pub use kernel::{Base, Built, Image, Kernel, LockedTree, Patches, Source, Tree, module_name};
pub use machine::{Boot, Console, Emulator};
pub use outcome::{Failure, Files, Finished, Outcome};

use crate::binaries;
use initramfs::Initramfs;
use job::Job;
use machine::Limits;

/// Whether KVM is loaded when the commands run. Its modules can be loaded with modprobe in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kvm {
    /// `kvm` and the vendor's module: `/dev/kvm` is there.
    #[default]
    Loaded,
    /// Neither of them. Only where they are modules.
    NotLoaded,
    /// `kvm` without the vendor's module: tracepoints, but no `/dev/kvm`. Only where they are modules.
    OnlyKvm,
}

/// The kernel's lockdown mode, see kernel_lockdown(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Nobody may change the running kernel.
    Integrity,
    /// Nor read from it.
    Confidentiality,
}

/// The size of the disk that takes the answer; it is sparse, so this is only a limit.
const RESULT_BYTES: u64 = 16 << 30;

/// An emulated host to boot.
#[derive(Clone, Debug)]
#[must_use = "a host does nothing until it runs a command"]
pub struct Host<E> {
    emulator: E,
    kernel: Kernel,
    kvm: Kvm,
    lockdown: Option<Lockdown>,
    kernel_parameters: Vec<String>,
    programs: Vec<PathBuf>,
    files: Vec<(PathBuf, PathBuf)>,
    get: Vec<String>,
    limits: Limits,
    live: bool,
}

impl Host<Amd> {
    /// An AMD host: 1 CPU, 2 GiB of memory, KVM loaded with nesting.
    pub fn amd(kernel: Kernel) -> Self {
        Self::new(Amd::default(), kernel)
    }

    /// Number of CPUs.
    pub fn smp(mut self, cpus: u32) -> Self {
        self.emulator.smp = cpus;
        self
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.emulator.memory_mib = mib;
        self
    }

    /// Make the clock count instructions, see [`Amd::icount`].
    pub fn icount(mut self, icount: bool) -> Self {
        self.emulator.icount = icount;
        self
    }
}

impl Host<Intel> {
    /// An Intel host: 1 CPU, 1 GiB of memory, KVM loaded with nesting. It is several times slower than the AMD host, and
    /// takes half a minute to boot.
    pub fn intel(kernel: Kernel) -> Self {
        // Its readiness is a matter of minutes if others keep the processors busy.
        Self::new(Intel::default(), kernel).boot_limit(Duration::from_secs(900))
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.emulator.memory_mib = mib;
        self
    }
}

impl<E: Emulator> Host<E> {
    fn new(emulator: E, kernel: Kernel) -> Self {
        Self {
            emulator,
            kernel,
            kvm: Kvm::default(),
            lockdown: None,
            kernel_parameters: Vec::new(),
            programs: Vec::new(),
            files: Vec::new(),
            get: Vec::new(),
            limits: Limits { boot: Duration::from_secs(120), commands: Duration::from_secs(120) },
            live: false,
        }
    }

    /// Which of KVM's modules are loaded before the commands run.
    pub fn kvm(mut self, kvm: Kvm) -> Self {
        self.kvm = kvm;
        self
    }

    /// Lock the kernel down from boot on.
    pub fn lockdown(mut self, lockdown: Lockdown) -> Self {
        self.lockdown = Some(lockdown);
        self
    }

    /// Adds a word to the kernel command line (Documentation/admin-guide/kernel-parameters.txt).
    pub fn kernel_parameter(mut self, word: impl Into<String>) -> Self {
        self.kernel_parameters.push(word.into());
        self
    }

    /// Adds a program of this machine with its shared libraries, at the path it has here. A bare name is looked up in
    /// `PATH`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.programs.push(program.into());
        self
    }

    /// Adds a file or a folder of this machine as the absolute path `inside`.
    pub fn file(mut self, local: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        self.files.push((local.into(), inside.into()));
        self
    }

    /// Brings a file or a folder back afterwards; `pattern` is an absolute path or a glob pattern.
    pub fn get(mut self, pattern: impl Into<String>) -> Self {
        self.get.push(pattern.into());
        self
    }

    /// How long the commands may take together, by the clock of this machine; 2 minutes unless set. When it passes, the
    /// command that runs then is ended ([`Status::TimedOut`]) and everything so far comes back; a host that cannot do
    /// even that is a [`Failure::Hang`].
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limits.commands = limit;
        self
    }

    /// How long the host may take to boot, by the clock of this machine; 2 minutes for AMD and 15 for Intel unless
    /// set, which leaves a busy machine time. Then it is a [`Failure::Hang`].
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.limits.boot = limit;
        self
    }

    /// Also copy the commands' output to this process's standard output and error while they run.
    pub fn live(mut self, live: bool) -> Self {
        self.live = live;
        self
    }

    /// Boots, runs one command, powers off.
    ///
    /// # Errors
    /// As [`Host::run_each`].
    pub fn run(&self, command: Command) -> Result<Outcome> {
        self.run_each([command])
    }

    /// Boots, runs the commands one after the other, whatever their status, and powers off.
    ///
    /// # Errors
    /// If something that the lab needs is missing here, an input cannot be read, or the emulated host gives no
    /// answer (a [`Failure`]). A command that fails is no error.
    pub fn run_each(&self, commands: impl IntoIterator<Item = Command>) -> Result<Outcome> {
        let commands: Vec<_> = commands.into_iter().collect();
        ensure!(!commands.is_empty(), "an emulated host needs a command to run");
        ensure!(
            self.kvm == Kvm::Loaded || !self.kernel.has_kvm_built_in(),
            "the kernel {} has KVM built in: it cannot be left out",
            self.kernel
        );
        // First what fails fastest: fetching a kernel for an emulator that is not there helps nobody.
        self.emulator.program()?;
        let image = self.kernel.image()?;
        let mut archive = tempfile::tempfile().context("cannot create a temporary file")?;
        self.initramfs(&image, commands)?.write_to(&mut archive)?;
        let mut result = tempfile::tempfile().context("cannot create a temporary file")?;
        result.set_len(RESULT_BYTES).context("cannot create the result disk")?;
        let kernel_line = self.kernel_line();
        let boot = Boot {
            vmlinuz: &image.vmlinuz,
            kernel_line: &kernel_line,
            initramfs: &archive,
            result: &result,
            live: &[],
        };
        let life = machine::run(&self.emulator, boot, self.live, self.limits)?;
        Outcome::read(&mut result, life, self.limits)
    }

    fn kernel_line(&self) -> String {
        let mut words = vec![
            self.emulator.kernel_parameters(),
            // Warnings (level 4) reach the console, so that a machine that dies of one says so; the rest is in the log.
            "loglevel=5 log_buf_len=4M panic=-1".to_owned(),
        ];
        words.extend(self.lockdown.map(|mode| match mode {
            Lockdown::Integrity => "lockdown=integrity".to_owned(),
            Lockdown::Confidentiality => "lockdown=confidentiality".to_owned(),
        }));
        words.extend_from_slice(&self.kernel_parameters);
        words.join(" ")
    }

    fn initramfs(&self, image: &Image, commands: Vec<Command>) -> Result<Initramfs> {
        let mut initramfs = Initramfs::new();
        if self.emulator.reads_slowly() {
            initramfs = initramfs.stripped();
        }
        for program in &self.programs {
            initramfs.program(program)?;
        }
        initramfs.busybox()?;
        initramfs.copy(&binaries::lab()?.init, Path::new("/init"))?;
        initramfs.write(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
            0o644,
        )?;
        initramfs.write("/etc/group", "root:x:0:\nuser:x:1000:\n", 0o644)?;
        initramfs.write("/etc/hostname", "exitregs-lab\n", 0o644)?;
        initramfs.copy(&image.config, &Path::new("/boot").join(format!("config-{}", image.release)))?;

        let kvm = ["kvm", self.emulator.kvm_module()];
        let devices = self.emulator.device_modules();
        let inside = Path::new("/lib/modules").join(&image.release);
        for path in image.load_order(&[devices, &kvm[..]].concat())? {
            initramfs.write(
                inside.join(uncompressed(&path)),
                read_module(&image.modules.join(&path))?,
                0o644,
            )?;
        }
        initramfs.write(inside.join("modules.dep"), module_dependencies(image, &kvm)?, 0o644)?;
        // There modprobe sees that it has nothing to do.
        initramfs.copy(&image.modules.join("modules.builtin"), &inside.join("modules.builtin"))?;
        let loaded = match self.kvm {
            Kvm::Loaded => &kvm[..],
            Kvm::OnlyKvm => &kvm[..1],
            Kvm::NotLoaded => &[],
        };
        let modules = image.load_order(&[devices, loaded].concat())?;

        for (local, path) in &self.files {
            initramfs.copy(local, path)?;
        }
        let job = Job {
            modules: modules.iter().map(|path| inside.join(uncompressed(path))).collect(),
            commands,
            get: self.get.clone(),
            result_device: self.emulator.result_device().into(),
            live: self.live,
        };
        initramfs.write(job::JOB_PATH, serde_json::to_vec(&job)?, 0o600)?;
        Ok(initramfs)
    }
}

/// A modules.dep for those of `names` that are modules, which stand in the initramfs uncompressed.
fn module_dependencies(image: &Image, names: &[&str]) -> Result<String> {
    let mut text = String::new();
    for name in names {
        let mut order = image.load_order(&[name])?;
        if let Some(module) = order.pop() {
            let needs: Vec<_> =
                order.iter().rev().map(|path| uncompressed(path).to_string_lossy().into_owned()).collect();
            text += &format!("{}: {}\n", uncompressed(&module).display(), needs.join(" "));
        }
    }
    Ok(text)
}

/// The path of a module without the suffix of its compression.
fn uncompressed(path: &Path) -> PathBuf {
    match path.extension() {
        Some(extension) if extension == "ko" => path.to_owned(),
        _ => path.with_extension(""),
    }
}

/// A module's content, uncompressed.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let failed = || format!("cannot read the module {}", path.display());
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => {
            let output = Process::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
            let output = output.with_context(failed)?;
            ensure!(
                output.status.success(),
                "{}: {}",
                failed(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
            Ok(output.stdout)
        }
        _ => fs::read(path).with_context(failed),
    }
}
