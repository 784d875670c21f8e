// SPDX-License-Identifier: MIT
//! Exits of a kernel with the patch series (patches/), whose own events have the registers and the level.

use super::format::FormatError;
use super::tracefs::{self, Provider, Tracefs};
use super::{Unusable, check_kvm, unusable};
use crate::host::Host;
use exitregs_common::event::{Event, KvmExit};

/// KVM itself.
pub const PROVIDER: Provider =
    Provider { source: "native", group: "kvm", how: "the kernel's own events", partial: false };

/// Whether the kernel's own events have the registers, and this process may read them.
///
/// # Errors
/// They have not, or it may not; why, and what to do.
pub fn check(host: &Host) -> Result<Tracefs, Unusable> {
    check_kvm(host)?;
    Tracefs::new(tracefs::root(host)?, PROVIDER).map_err(|error| match error {
        FormatError::NoEvent(KvmExit::NAME) => unusable(
            format!("{error}, or not for this user"),
            "run as root, on a kernel with CONFIG_EVENT_TRACING=y",
        ),
        _ => unusable(
            format!("this kernel's events lack what the patches add: {error}"),
            "boot a kernel with exitregs' patch series, or use the bpf source",
        ),
    })
}
