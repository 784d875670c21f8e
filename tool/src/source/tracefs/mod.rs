// SPDX-License-Identifier: MIT
//! What all sources share whose events the kernel writes to ftrace's ring buffers: an instance of tracefs that is ours, its
//! pages as one stream, and the exits that come out of it. Sources differ in who made the events.

mod events;
pub mod file;
pub mod instance;
mod reader;
mod session;
pub mod stat;
mod threads;
pub mod trace;

use super::format::FormatError;
use super::{Unusable, unusable};
use crate::host::Host;
use events::Events;
use exitregs_common::event::{Event, KvmNestedPageFault};
use std::any::Any;
use std::fmt;
use std::path::PathBuf;

/// Who made the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provider {
    /// The source's name.
    pub source: &'static str,
    /// The system of `kvm_exit`, `kvm_entry` and `kvm_nested_page_fault` in tracefs.
    pub group: &'static str,
    /// How the source gets at exits, in a few words.
    pub how: &'static str,
    /// The events may lack fields of those that exitregs-common describes.
    pub partial: bool,
}

/// Events that can be traced.
pub struct Tracefs {
    root: PathBuf,
    events: Events,
    /// What must live as long as they are used.
    guard: Option<Box<dyn Any>>,
}

impl Tracefs {
    /// A provider's events, in a mounted tracefs.
    ///
    /// # Errors
    /// An event is missing, or not as it should be.
    pub fn new(root: PathBuf, provider: Provider) -> Result<Self, FormatError> {
        let format = |system: &str, event: &str| {
            let path = root.join("events").join(system).join(event).join("format");
            std::fs::read_to_string(path).ok()
        };
        let events = Events::new(provider, format)?;
        Ok(Self { root, events, guard: None })
    }

    /// The same; `guard` is dropped when they are not used any more.
    pub fn guarded_by(self, guard: impl Any) -> Self {
        Self { guard: Some(Box::new(guard)), ..self }
    }

    /// Whether page faults of L2's that L0 gives to L1 are among them.
    pub fn has_nested_page_faults(&self) -> bool {
        self.events.names().any(|name| name == KvmNestedPageFault::NAME)
    }

    /// Who made them.
    pub fn provider(&self) -> Provider {
        self.events.provider
    }
}

/// What the events tell.
impl fmt::Display for Tracefs {
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

/// Where tracefs is mounted, if its events may be read.
///
/// # Errors
/// It is not, or they may not; why, and what to do.
pub fn root(host: &Host) -> Result<PathBuf, Unusable> {
    if host.lockdown == "confidentiality" {
        return Err(unusable(
            "the kernel is locked down for confidentiality: it does not let its events be read",
            "boot with lockdown=integrity or without lockdown",
        ));
    }
    host.tracefs().ok_or_else(|| {
        unusable(
            "tracefs is not mounted, or not for this user",
            "run as root; if it is not mounted: mount -t tracefs nodev /sys/kernel/tracing",
        )
    })
}
