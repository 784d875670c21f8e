// SPDX-License-Identifier: MIT
//! The AMD host: QEMU's TCG, which emulates SVM with nested paging.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::initramfs::find_program;
use super::machine::{Boot, Emulator};
use super::requirements::{self, Requirement};

/// The emulator.
pub(super) const QEMU: Requirement = Requirement::new("qemu-system-x86_64", "qemu-system-x86");

/// An emulated AMD host.
#[derive(Clone, Debug)]
pub struct Amd {
    /// Number of CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Make the host's clock count executed instructions, one per nanosecond: slower, but costs become repeatable.
    pub icount: bool,
}

impl Default for Amd {
    fn default() -> Self {
        Self { smp: 1, memory_mib: 2048, icount: false }
    }
}

impl Emulator for Amd {
    fn kvm_module(&self) -> &'static str {
        "kvm_amd"
    }

    fn device_modules(&self) -> &'static [&'static str] {
        &["virtio_pci", "virtio_blk"]
    }

    fn kernel_parameters(&self) -> String {
        // On a busy machine timer interrupts come late, and the kernel would give up ("IO-APIC + timer doesn't work").
        "console=ttyS0 no_timer_check kvm_amd.nested=1".to_owned()
    }

    fn result_device(&self) -> &'static str {
        "/dev/vda"
    }

    fn program(&self) -> Result<PathBuf> {
        find_program(Path::new(QEMU.evidence)).map_err(|_| requirements::not_installed(&QEMU))
    }

    fn command(&self, program: &Path, boot: &Boot) -> Command {
        let mut command = Command::new(program);
        command.args(["-accel", "tcg", "-cpu", "max", "-machine", "q35"]);
        command.args(["-smp", &self.smp.to_string(), "-m", &format!("{}M", self.memory_mib)]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        command.arg("-kernel").arg(boot.vmlinuz).args(["-initrd", &own_file(boot.initramfs)]);
        command.args(["-append", boot.kernel_line]);
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        for (number, pipe) in boot.live.iter().enumerate() {
            let path = own_file(pipe);
            command.args(["-chardev", &format!("file,id=live{number},path={path}")]);
            command.args(["-serial", &format!("chardev:live{number}")]);
        }
        // The image is this process's and nobody else's, and worthless after a crash: no locks, no flushes.
        let image = own_file(boot.result);
        command.args([
            "-drive",
            &format!("if=none,id=result,format=raw,cache=unsafe,file.locking=off,file={image}"),
            "-device",
            "virtio-blk-pci,drive=result",
        ]);
        command
    }
}

/// A path at which the emulator can open a file of this process, even one that has no name (any more).
fn own_file(file: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}
