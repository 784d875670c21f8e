// SPDX-License-Identifier: MIT
//! What a system has before the first command runs: file systems, modules, the loopback interface.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use exitregs_lab::host::module_name;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, umask};

/// A file system without which nothing works, or one that a kernel may lack.
enum Need {
    Must,
    May,
}

/// Type, mount point, options.
const MOUNTS: [(Need, &str, &str, &str); 13] = [
    (Need::Must, "devtmpfs", "/dev", ""),
    (Need::Must, "proc", "/proc", ""),
    (Need::Must, "sysfs", "/sys", ""),
    (Need::Must, "tmpfs", "/run", "mode=0755"),
    (Need::Must, "tmpfs", "/tmp", "mode=1777,size=90%"),
    (Need::Must, "tmpfs", "/dev/shm", "mode=1777"),
    (Need::Must, "devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
    (Need::May, "cgroup2", "/sys/fs/cgroup", ""),
    (Need::May, "securityfs", "/sys/kernel/security", ""),
    (Need::May, "tracefs", "/sys/kernel/tracing", ""),
    (Need::May, "debugfs", "/sys/kernel/debug", ""),
    (Need::May, "bpf", "/sys/fs/bpf", "mode=0700"),
    (Need::May, "configfs", "/sys/kernel/config", ""),
];

/// Mounts [`MOUNTS`] and makes the links in /dev that programs expect.
pub fn mount_all() -> Result<()> {
    umask(Mode::from_bits_truncate(0o022));
    for (need, kind, target, options) in MOUNTS {
        // The kernel makes the mount points below /sys itself, where it has the file system.
        let _ = fs::create_dir_all(target);
        let flags = match target {
            "/dev" => MsFlags::MS_NOSUID,
            "/run" | "/tmp" | "/dev/shm" => MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            _ => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        };
        let mounted = mount(Some(kind), target, Some(kind), flags, Some(options));
        match (mounted, need) {
            (Ok(()), _) | (Err(_), Need::May) => {}
            (Err(error), Need::Must) => {
                return Err(error).with_context(|| format!("cannot mount {kind} on {target}"));
            }
        }
    }
    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), Path::new("/dev").join(link))
            .with_context(|| format!("cannot make /dev/{link}"))?;
    }
    let name = fs::read_to_string("/etc/hostname").context("cannot read /etc/hostname")?;
    fs::write("/proc/sys/kernel/hostname", name).context("cannot set the host name")
}

/// Loads modules in the given order, each with its parameters from the kernel command line.
pub fn load_modules(paths: &[PathBuf]) -> Result<()> {
    let line = fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?;
    for path in paths {
        let failed = || format!("cannot load {}", path.display());
        let name = module_name(path);
        let parameters: Vec<_> = line
            .split_whitespace()
            .filter_map(|word| word.split_once('.'))
            .filter(|(module, _)| module.replace('-', "_") == name)
            .map(|(_, parameter)| parameter)
            .collect();
        let parameters = CString::new(parameters.join(" ")).with_context(failed)?;
        let file = File::open(path).with_context(failed)?;
        match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(failed),
        }
    }
    Ok(())
}

/// Brings up `lo`.
pub fn raise_loopback() -> Result<()> {
    let status = Command::new("/usr/bin/busybox").args(["ip", "link", "set", "lo", "up"]).status();
    ensure!(status.context("cannot run busybox")?.success(), "cannot bring up the loopback interface");
    Ok(())
}
