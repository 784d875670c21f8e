// SPDX-License-Identifier: MIT
//! What must be installed on the developer's machine, and the Debian packages that have it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::amd::QEMU;
use super::initramfs::{STRIP, find_program};
use super::intel::{BOCHS, GRUB_MKRESCUE};

/// A Debian package, and what shows that it (or something as good) is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// A program in `PATH`, or, with a leading `/`, a file.
    pub evidence: &'static str,
    /// The package that has it.
    pub package: &'static str,
}

impl Requirement {
    /// Pairs evidence with a package.
    pub const fn new(evidence: &'static str, package: &'static str) -> Self {
        Self { evidence, package }
    }

    /// Whether this machine has it.
    pub fn is_met(&self) -> bool {
        let path = Path::new(self.evidence);
        if path.is_absolute() { path.exists() } else { find_program(path).is_ok() }
    }
}

/// What emulated AMD hosts need.
pub const AMD: [Requirement; 6] = [
    Requirement::new("busybox", "busybox-static"),
    Requirement::new("depmod", "kmod"),
    Requirement::new("dpkg", "dpkg"),
    Requirement::new("ldd", "libc-bin"),
    QEMU,
    Requirement::new("xz", "xz-utils"),
];

/// What emulated Intel hosts need.
pub const INTEL: [Requirement; 14] = [
    BOCHS,
    Requirement::new("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    Requirement::new("/usr/share/vgabios/vgabios.bin", "vgabios"),
    // The package bochs wants one of several packages with displays; this is the smallest. None of them is used.
    Requirement::new("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"),
    Requirement::new("busybox", "busybox-static"),
    Requirement::new("depmod", "kmod"),
    Requirement::new("dpkg", "dpkg"),
    GRUB_MKRESCUE,
    Requirement::new("/usr/lib/grub/i386-pc/modinfo.sh", "grub-pc-bin"),
    Requirement::new("ldd", "libc-bin"),
    Requirement::new("mformat", "mtools"),
    STRIP,
    Requirement::new("xorriso", "xorriso"),
    Requirement::new("xz", "xz-utils"),
];

/// What building kernels needs.
pub const KERNEL_BUILD: [Requirement; 17] = [
    Requirement::new("bc", "bc"),
    Requirement::new("bison", "bison"),
    // It comes with libclang and the compiler's own headers, which bindgen needs; Linux 7.3 wants them newer than those of
    // Debian's default.
    Requirement::new("clang-19", "clang-19"),
    Requirement::new("dpkg", "dpkg"),
    Requirement::new("flex", "flex"),
    Requirement::new("gcc", "gcc"),
    Requirement::new("git", "git"),
    Requirement::new("ld", "binutils"),
    Requirement::new("lz4", "lz4"),
    Requirement::new("make", "make"),
    Requirement::new("pahole", "dwarves"),
    Requirement::new("perl", "perl"),
    Requirement::new("python3", "python3"),
    Requirement::new("tar", "tar"),
    Requirement::new("xz", "xz-utils"),
    Requirement::new("/usr/include/libelf.h", "libelf-dev"),
    Requirement::new("/usr/include/stdlib.h", "libc6-dev"),
];

/// What building kernels with clang needs beside [`KERNEL_BUILD`].
pub const KERNEL_CLANG: [Requirement; 2] =
    [Requirement::new("ld.lld-19", "lld-19"), Requirement::new("llvm-ar-19", "llvm-19")];

/// What makes kbuild use the compiler and the tools of [`KERNEL_CLANG`].
pub const LLVM: &str = "LLVM=-19";

/// What building perf needs beside [`KERNEL_BUILD`].
pub const PERF_BUILD: [Requirement; 2] = [
    Requirement::new("/usr/include/traceevent/event-parse.h", "libtraceevent-dev"),
    Requirement::new("pkg-config", "pkg-config"),
];

/// The packages that this machine lacks, each once.
pub fn missing(requirements: &[Requirement]) -> Vec<&'static str> {
    let mut packages: Vec<_> = requirements.iter().filter(|it| !it.is_met()).map(|it| it.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The command that installs packages.
pub fn install_line(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Installs what this machine lacks and returns the packages' names; quick when there is nothing to do.
///
/// # Errors
/// If apt fails, or this process is not root: the message has the command to run.
pub fn install(requirements: &[Requirement]) -> Result<Vec<&'static str>> {
    let packages = missing(requirements);
    if packages.is_empty() {
        return Ok(packages);
    }
    let line = install_line(&packages);
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing; install them as root: {line}");
    }
    eprintln!("{line}");
    // Another process may be installing just now.
    let options = ["-o", "DPkg::Lock::Timeout=600", "install", "--yes", "--no-install-recommends"];
    let arguments = [&options[..], &packages].concat();
    // Lists that are absent or old make the first attempt fail.
    apt(&arguments).or_else(|_| apt(&["update"]).and_then(|()| apt(&arguments)))?;
    let unmet = missing(requirements);
    ensure!(unmet.is_empty(), "apt installed {} and yet something of it is missing", unmet.join(", "));
    Ok(packages)
}

/// Runs apt-get. What it says is shown only if it fails: it writes a line for every step of every package.
fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let output = command.output().context("cannot run apt-get; this needs Debian or a relative of it")?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "apt-get {} failed\n{}", arguments.join(" "), said.trim());
    Ok(())
}

/// The error for a program that a package has and this machine lacks.
pub(super) fn not_installed(requirement: &Requirement) -> anyhow::Error {
    anyhow::anyhow!("{} is not installed: {}", requirement.evidence, install_line(&[requirement.package]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_a_program_or_a_file() {
        let present = [Requirement::new("sh", "dash"), Requirement::new("/bin/sh", "dash")];
        let absent = [
            Requirement::new("no-such-program", "b"),
            Requirement::new("/no/such/file", "a"),
            Requirement::new("no-such-either", "b"),
        ];
        assert_eq!(missing(&present), [""; 0]);
        assert_eq!(missing(&absent), ["a", "b"]);
        assert_eq!(
            not_installed(&absent[0]).to_string(),
            "no-such-program is not installed: apt-get install --no-install-recommends b"
        );
    }
}
