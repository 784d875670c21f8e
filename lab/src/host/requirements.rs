// SPDX-License-Identifier: MIT
//! The programs of the developer's machine that the lab needs, and the Debian packages that have them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::initramfs::find_program;

/// Program and the Debian package it is in.
const PROGRAMS: [(&str, &str); 7] = [
    ("apt-get", "apt"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("dpkg", "dpkg"),
    ("ldd", "libc-bin"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

/// The Debian packages that are missing on this machine.
pub fn missing_packages() -> Vec<&'static str> {
    PROGRAMS
        .into_iter()
        .filter(|(program, _)| find_program(Path::new(program)).is_err())
        .map(|(_, package)| package)
        .collect()
}

/// The command that installs packages.
pub fn install_line(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// The error for a program that is not there.
pub(super) fn missing(program: &str, package: &str) -> anyhow::Error {
    anyhow::anyhow!("{program} is not installed: {}", install_line(&[package]))
}

/// Installs what is missing; does nothing, quickly, when nothing is.
///
/// # Errors
/// If apt fails, or this process is not root: the message has the command to run.
pub fn install() -> Result<()> {
    install_packages(&missing_packages())
}

/// Installs Debian packages.
///
/// # Errors
/// As [`install`].
pub fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let line = install_line(packages);
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing; install them as root: {line}");
    }
    eprintln!("lab: {line}");
    let apt = |arguments: &[&str]| -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        // apt's progress is a message, and standard output belongs to the command that needs the packages.
        command.stdout(std::io::stderr());
        Ok(command
            .status()
            .context("cannot run apt-get: the lab needs Debian or a relative of it")?
            .success())
    };
    let install = [&["install", "--yes", "--quiet", "--no-install-recommends"], packages].concat();
    // Lists that are absent or old make the first attempt fail.
    ensure!(apt(&install)? || (apt(&["update", "--quiet"])? && apt(&install)?), "`{line}` failed");
    Ok(())
}
