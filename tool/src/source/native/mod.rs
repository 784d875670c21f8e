// SPDX-License-Identifier: MIT
//! Exits of a kernel with the patch series (patches/), whose own events have the registers and the level: read from
//! ftrace's ring buffers, in a tracefs instance of our own.

mod events;
pub mod format;
pub mod instance;
pub mod page;
mod reader;
mod session;
pub mod stat;
mod threads;
pub mod trace;
pub(super) mod tracefs;

use super::{Unusable, check_kvm, unusable};
use crate::host::Host;
use events::Events;
use exitregs_common::event::{Event, KvmExit};
use format::FormatError;
use std::fmt;
use std::path::PathBuf;

/// The running kernel's events.
#[derive(Debug, Clone)]
pub struct Native {
    tracefs: PathBuf,
    events: Events,
}

/// What the kernel's events tell.
impl fmt::Display for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks = self.events.lacks();
        f.write_str("kvm_exit and kvm_entry have the registers")?;
        if lacks.is_empty() {
            Ok(())
        } else {
            write!(f, "; they lack {}, as older kernels' do", lacks.join(", "))
        }
    }
}

/// Whether the kernel's own events have the registers, and this process may read them.
///
/// # Errors
/// They have not, or it may not; why, and what to do.
pub fn check(host: &Host) -> Result<Native, Unusable> {
    check_kvm(host)?;
    if host.lockdown == "confidentiality" {
        return Err(unusable(
            "the kernel is locked down for confidentiality: it does not let its events be read",
            "boot with lockdown=integrity or without lockdown",
        ));
    }
    let tracefs = host.tracefs().ok_or_else(|| {
        unusable(
            "tracefs is not mounted, or not for this user",
            "run as root; if it is not mounted: mount -t tracefs nodev /sys/kernel/tracing",
        )
    })?;
    let format = |event: &str| {
        let path = tracefs.join("events").join(events::system(event)).join(event).join("format");
        std::fs::read_to_string(path).ok()
    };
    match Events::new(format) {
        Ok(events) => Ok(Native { tracefs, events }),
        Err(error @ FormatError::Missing(KvmExit::NAME)) => Err(unusable(
            format!("the kernel has no such event, or not for this user: {error}"),
            "run as root, on a kernel with CONFIG_EVENT_TRACING=y",
        )),
        Err(error) => Err(unusable(
            format!("this kernel's events lack what the patches add: {error}"),
            "boot a kernel with exitregs' patch series, or use the bpf source",
        )),
    }
}
