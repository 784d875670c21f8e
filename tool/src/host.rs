// SPDX-License-Identifier: MIT
//! What this host is: its KVM, its kernel's BTF, and what this process may do.

use caps::{CapSet, Capability};
use exitregs_common::isa::Isa;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

/// Whether KVM can run guests here, and so whether `kvm_exit` can ever fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// The kernel has no KVM, or its modules are not loaded.
    Absent,
    /// Only KVM's common part: no kvm_amd or kvm_intel. Its events exist and never fire.
    NoVendor,
    /// The vendor module is there but the CPU does not offer its extension to it.
    NoExtension(Isa),
    /// KVM runs guests.
    Ready(Isa),
}

/// What is known of the host; read once, from `/proc`, `/sys` and this process's capabilities.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    /// The kernel's release, as uname has it.
    pub release: String,
    /// Whether KVM works.
    pub kvm: Kvm,
    /// KVM is made of loadable modules, whose types and tracepoints are in BTF of their own.
    pub kvm_is_module: bool,
    /// The vendor module's `nested` parameter: guests may run guests.
    pub nested: Option<bool>,
    /// The lockdown mode in force: `none`, `integrity` or `confidentiality`.
    pub lockdown: String,
    /// Capabilities in force.
    pub capabilities: Capabilities,
}

/// The capabilities that matter here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// CAP_BPF
    pub bpf: bool,
    /// CAP_PERFMON
    pub perfmon: bool,
    /// CAP_SYS_ADMIN, which implies the others' permissions.
    pub sys_admin: bool,
}

impl Capabilities {
    /// Whether BPF programs that read the kernel's memory may be loaded.
    pub fn can_trace(self) -> bool {
        self.sys_admin || (self.bpf && self.perfmon)
    }
}

impl Host {
    /// The host that this process runs on.
    pub fn this() -> Self {
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
        Self::read(
            Path::new("/"),
            Capabilities {
                bpf: has(Capability::CAP_BPF),
                perfmon: has(Capability::CAP_PERFMON),
                sys_admin: has(Capability::CAP_SYS_ADMIN),
            },
        )
    }

    /// The host whose `proc`, `sys`, `boot` and `lib` are below `root`.
    pub fn read(root: &Path, capabilities: Capabilities) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let loaded = |module: &str| root.join("sys/module").join(module).exists();
        let flags = text("proc/cpuinfo");
        let has_flag = |flag: &str| {
            let line = flags.lines().find(|line| line.starts_with("flags"));
            line.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
        };
        let vendors = [(Isa::Svm, "kvm_amd", "svm"), (Isa::Vmx, "kvm_intel", "vmx")];
        let vendor = vendors.iter().find(|(_, module, flag)| loaded(module) && has_flag(flag));
        let kvm = match vendor {
            Some((isa, ..)) => Kvm::Ready(*isa),
            None => match vendors.iter().find(|(_, module, _)| loaded(module)) {
                Some((isa, ..)) => Kvm::NoExtension(*isa),
                None if loaded("kvm") => Kvm::NoVendor,
                None => Kvm::Absent,
            },
        };
        let nested = vendor.map(|(_, module, _)| text(&format!("sys/module/{module}/parameters/nested")));
        let lockdown = text("sys/kernel/security/lockdown");
        Self {
            root: root.to_owned(),
            release: text("proc/sys/kernel/osrelease").trim().to_owned(),
            kvm,
            // Only a loadable module has this file.
            kvm_is_module: root.join("sys/module/kvm/initstate").exists(),
            nested: nested.map(|value| matches!(value.trim(), "Y" | "1")),
            lockdown: lockdown
                .split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'))
                .map_or("none", |(mode, _)| mode)
                .to_owned(),
            capabilities,
        }
    }

    /// A file of the host, by its path from `/`, without that.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The instruction set of KVM's guests, if KVM works.
    pub fn isa(&self) -> Option<Isa> {
        match self.kvm {
            Kvm::Ready(isa) => Some(isa),
            _ => None,
        }
    }

    /// Where tracefs is mounted; `None` if it is not, or not for this user.
    pub fn tracefs(&self) -> Option<PathBuf> {
        let places = ["sys/kernel/tracing", "sys/kernel/debug/tracing"];
        places.into_iter().map(|place| self.root.join(place)).find(|place| place.join("events").exists())
    }

    /// The kernel's BTF, and KVM's if it is made of modules.
    pub fn btf_files(&self) -> BtfFiles {
        let directory = self.root.join("sys/kernel/btf");
        let vendor = match self.kvm {
            Kvm::Ready(Isa::Svm) => "kvm_amd",
            _ => "kvm_intel",
        };
        BtfFiles {
            vmlinux: directory.join("vmlinux"),
            kvm: self.kvm_is_module.then(|| directory.join("kvm")),
            vendor: self.kvm_is_module.then(|| directory.join(vendor)),
        }
    }
}

/// Where the kernel shows its type information; world-readable.
#[derive(Debug, Clone)]
pub struct BtfFiles {
    /// The kernel image's.
    pub vmlinux: PathBuf,
    /// kvm.ko's; `None` where KVM is built in.
    pub kvm: Option<PathBuf>,
    /// kvm_amd.ko's or kvm_intel.ko's; `None` where KVM is built in.
    pub vendor: Option<PathBuf>,
}

impl BtfFiles {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.vmlinux), self.kvm.as_ref(), self.vendor.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// How many threads can work at once here: as many as this process has CPUs, but no more than `most`.
pub fn threads(most: usize) -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(most)
}
