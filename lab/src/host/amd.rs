// SPDX-License-Identifier: MIT
//! The AMD host: QEMU's TCG, which emulates SVM with nested paging.

use std::arch::x86_64::_rdtsc;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::initramfs::find_program;
use super::machine::{Boot, Console, Emulator};
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
        // On a busy machine timer interrupts come late. The kernel would give up ("IO-APIC + timer doesn't work") or
        // measure a wrong frequency of its TSC, and its seconds would be too long or too short.
        let tsc_khz = if self.icount { 1_000_000 } else { tsc_khz() };
        format!("console=ttyS0 no_timer_check tsc=reliable tsc_early_khz={tsc_khz} kvm_amd.nested=1")
    }

    fn result_device(&self) -> &'static str {
        "/dev/vda"
    }

    fn program(&self) -> Result<PathBuf> {
        find_program(Path::new(QEMU.evidence)).map_err(|_| requirements::not_installed(&QEMU))
    }

    fn console(&self) -> Console {
        Console::Pipes
    }

    fn reads_slowly(&self) -> bool {
        false
    }

    fn command(&self, program: &Path, boot: &Boot) -> Result<Command> {
        let mut command = Command::new(program);
        // With a thread for each CPU, L2 guests on several CPUs at once now and then end in a shutdown that nobody caused.
        command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-machine", "q35"]);
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
        Ok(command)
    }

    fn switched_off(&self, status: ExitStatus, _said: &str) -> bool {
        status.success()
    }
}

/// A path at which the emulator can open a file of this process, even one that has no name (any more).
fn own_file(file: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// The frequency of this machine's time stamp counter, which is that of the emulated one unless it counts instructions.
fn tsc_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let (start_ticks, start) = tsc_and_clock();
        thread::sleep(Duration::from_millis(50));
        let (end_ticks, end) = tsc_and_clock();
        let khz = u128::from(end_ticks - start_ticks) * 1_000_000 / (end - start).as_nanos();
        khz as u64
    })
}

/// Both read at the same time: of several attempts, the one with the shortest time between two readings of the counter.
fn tsc_and_clock() -> (u64, Instant) {
    let attempts = (0..20).map(|_| {
        // SAFETY: RDTSC reads a counter; x86-64 Linux has it and lets programs use it unless they ask otherwise.
        let before = unsafe { _rdtsc() };
        let clock = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (after - before, before, clock)
    });
    let (length, before, clock) = attempts.min_by_key(|attempt| attempt.0).expect("there are attempts");
    (before + length / 2, clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_measured_alike_each_time() {
        let first = tsc_khz();
        let (start_ticks, start) = tsc_and_clock();
        thread::sleep(Duration::from_millis(200));
        let (end_ticks, end) = tsc_and_clock();
        let second = (end_ticks - start_ticks) as f64 / (end - start).as_secs_f64() / 1000.0;
        assert!((first as f64 / second - 1.0).abs() < 1e-3, "{first} kHz, then {second} kHz");
    }
}
