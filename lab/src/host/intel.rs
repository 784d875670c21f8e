// SPDX-License-Identifier: MIT
//! The Intel host: Bochs, which emulates VMX with EPT and VMCS shadowing. It boots from a CD that GRUB is on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::initramfs::find_program;
use super::machine::{Boot, Console, Emulator};
use super::requirements::{self, Requirement};

/// The emulator. (The package's `bochs` is a script that starts it.)
pub(super) const BOCHS: Requirement = Requirement::new("bochs-bin", "bochs");
/// Makes the CD.
pub(super) const GRUB_MKRESCUE: Requirement = Requirement::new("grub-mkrescue", "grub-common");

/// Instructions that make up a second of the emulated host's time; its time stamp counter counts them.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;
/// Seconds since 1970 at power-on.
const POWER_ON: u32 = 1_700_000_000;

/// An emulated Intel host. It has one CPU.
#[derive(Clone, Debug)]
pub struct Intel {
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl Default for Intel {
    fn default() -> Self {
        Self { memory_mib: 1024 }
    }
}

impl Emulator for Intel {
    fn kvm_module(&self) -> &'static str {
        "kvm_intel"
    }

    fn device_modules(&self) -> &'static [&'static str] {
        &["ata_piix", "sd_mod"]
    }

    fn kernel_parameters(&self) -> String {
        // XSAVES: Bochs 2.7's CPUID leaf 0xd contradicts itself, newer kernels then disable XSAVE, and 7.3 panics of that.
        // HT: nor do its leaves 1 and 4 agree, of which the kernel warns.
        // Mitigations of what an emulator does not have cost as much as elsewhere.
        format!(
            "console=ttyS0,115200 no_timer_check tsc=reliable tsc_early_khz={} nokaslr mitigations=off \
             clearcpuid=ht,xsaves,xsavec kvm_intel.nested=1 kvm_intel.enable_apicv=0",
            INSTRUCTIONS_PER_SECOND / 1000
        )
    }

    fn result_device(&self) -> &'static str {
        "/dev/sda"
    }

    fn program(&self) -> Result<PathBuf> {
        find_program(Path::new(BOCHS.evidence)).map_err(|_| requirements::not_installed(&BOCHS))
    }

    fn console(&self) -> Console {
        Console::Terminal
    }

    fn reads_slowly(&self) -> bool {
        true
    }

    fn command(&self, program: &Path, boot: &Boot) -> Result<Command> {
        let mut files = Inherited::default();
        let cd = files.path(&boot_cd(boot)?)?;
        let disk = files.path(boot.result)?;
        let mut machine = format!(
            "cpu: model=corei7_skylake_x, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={0}, host={0}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={disk}, mode=flat
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path={cd}, status=inserted
boot: cdrom
# Time is what instructions make it; that of a halted CPU passes at once.
clock: sync=none, time0={POWER_ON}
# There has to be a display; this one waits for nobody to look at it.
display_library: rfb, options=\"timeout=0\"
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
plugin_ctrl: speaker=0, gameport=0, parallel=0
panic: action=fatal
log: /dev/null
com1: enabled=1, mode=term, dev=/dev/stdin
",
            self.memory_mib
        );
        for (number, pipe) in (2..).zip(boot.live) {
            machine += &format!("com{number}: enabled=1, mode=file, dev={}\n", files.path(pipe)?);
        }
        let mut command = Command::new(program);
        command.args(["-q", "-f", &files.text(&machine)?]);
        // Debian's Bochs has the debugger in it, which waits for this command.
        command.args(["-rc", &files.text("continue\n")?]);
        // The display listens on all addresses of a fixed port: in a network namespace of its own it does so for nobody, and
        // does not meet another one's.
        let namespaces = match geteuid().is_root() {
            true => CloneFlags::CLONE_NEWNET,
            false => CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUSER,
        };
        let prepare = move || {
            unshare(namespaces)?;
            files.keep_open()
        };
        // SAFETY: the closure makes system calls (unshare, fcntl) and nothing else; it neither allocates nor takes locks.
        unsafe { command.pre_exec(prepare) };
        Ok(command)
    }

    fn switched_off(&self, _status: ExitStatus, said: &str) -> bool {
        // For Bochs this is an error like others, exit status 1.
        said.contains("ACPI control: soft power off")
    }
}

/// Files that the emulator shall have open.
#[derive(Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// The path by which the emulator reaches a file.
    fn path(&mut self, file: &impl AsFd) -> Result<String> {
        let copy = file.as_fd().try_clone_to_owned().context("cannot pass a file to the emulator")?;
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        self.0.push(copy);
        Ok(path)
    }

    /// The path of a new file with this text.
    fn text(&mut self, text: &str) -> Result<String> {
        let mut file = tempfile::tempfile().context("cannot create a temporary file")?;
        file.write_all(text.as_bytes()).context("cannot write a temporary file")?;
        self.path(&file)
    }

    /// To be called in the process that becomes the emulator.
    fn keep_open(&self) -> io::Result<()> {
        for file in &self.0 {
            fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    }
}

/// An image of a CD that boots the kernel; a file without a name.
fn boot_cd(boot: &Boot) -> Result<File> {
    let program = find_program(Path::new(GRUB_MKRESCUE.evidence));
    let program = program.map_err(|_| requirements::not_installed(&GRUB_MKRESCUE))?;
    let folder = tempfile::Builder::new().prefix("exitregs-lab-").tempdir()?;
    let (image, root) = (folder.path().join("cd.iso"), folder.path().join("root"));
    let failed = || format!("cannot make a CD in {}", folder.path().display());
    fs::create_dir_all(root.join("boot/grub")).with_context(failed)?;
    fs::copy(boot.vmlinuz, root.join("vmlinuz")).with_context(failed)?;
    // By its descriptor's path, because it has no other.
    let initramfs = format!("/proc/self/fd/{}", boot.initramfs.as_raw_fd());
    fs::copy(initramfs, root.join("initramfs")).with_context(failed)?;
    let menu = format!(
        "set timeout=0\nmenuentry exitregs {{\nlinux /vmlinuz {}\ninitrd /initramfs\n}}\n",
        boot.kernel_line
    );
    fs::write(root.join("boot/grub/grub.cfg"), menu).with_context(failed)?;
    let output = Command::new(program).arg("-o").arg(&image).arg(&root).output().with_context(failed)?;
    ensure!(
        output.status.success() && image.exists(),
        "{}: grub-mkrescue: {}",
        failed(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    File::open(&image).with_context(failed)
}
