// SPDX-License-Identifier: MIT
//! Which source exits come from, where several could give them.

use super::{Selection, Stat, Trace, Unusable, bpf, native, tracefs};
use crate::host::Host;
use anyhow::{Result, anyhow};
use std::fmt;

/// A live source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Source {
    /// The best one that works here
    #[default]
    Auto,
    /// BPF programs on the events of an unmodified kernel
    Bpf,
    /// The events of a kernel with the patch series
    Native,
}

/// What was chosen. Displays as `the native source with HOW: WHY`.
pub struct Chosen<T: ?Sized> {
    name: &'static str,
    how: String,
    why: Option<String>,
    /// The running source.
    pub live: Box<T>,
}

impl<T: ?Sized> fmt::Display for Chosen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} source with {}", self.name, self.how)?;
        self.why.iter().try_for_each(|why| write!(f, ": {why}"))
    }
}

/// Starts to trace. Where the kernel's own events have the registers, these are the best source: they know every
/// field on either vendor.
///
/// # Errors
/// No source works here, or not the one that was asked for; or the selection makes no sense to it.
pub fn trace(
    host: &Host,
    selection: &Selection,
    buffer_size: u32,
    wanted: Source,
) -> Result<Chosen<dyn Trace>> {
    let (native, why) = match wanted {
        Source::Bpf => (None, None),
        Source::Native => (Some(native::check(host)?), None),
        Source::Auto => match (native::check(host), bpf::check(host)) {
            (Ok(native), _) => (Some(native), Some("this kernel's events have the registers".to_owned())),
            (Err(unusable), Ok(_)) => (None, Some(unusable.what)),
            (Err(native), Err(bpf)) => return Err(none_works(&native, &bpf)),
        },
    };
    let (name, live): (_, Box<dyn Trace>) = match native {
        Some(native) => ("native", Box::new(tracefs::trace::Trace::start(native, selection, buffer_size)?)),
        None if !selection.exits => {
            let why = why.or_else(|| native::check(host).err().map(|unusable| unusable.what));
            let why = why.unwrap_or_else(|| "use that, or --source auto".to_owned());
            return Err(anyhow!("only the native source has nested page faults: {why}"));
        }
        None => ("bpf", Box::new(bpf::trace::Trace::start(host, selection, buffer_size)?)),
    };
    Ok(Chosen { name, how: live.how(), why, live })
}

/// Starts to count. BPF programs are the best source where they can be had: they count in the kernel.
///
/// # Errors
/// As [`trace`].
pub fn stat(host: &Host, selection: &Selection, per_vcpu: bool, wanted: Source) -> Result<Chosen<dyn Stat>> {
    let (native, why) = match wanted {
        Source::Bpf => (None, None),
        Source::Native => (Some(native::check(host)?), None),
        Source::Auto => match (bpf::check(host), native::check(host)) {
            (Ok(_), _) => (None, Some("it counts in the kernel".to_owned())),
            (Err(unusable), Ok(native)) => (Some(native), Some(unusable.what)),
            (Err(bpf), Err(native)) => return Err(none_works(&native, &bpf)),
        },
    };
    let (name, live): (_, Box<dyn Stat>) = match native {
        Some(native) => ("native", Box::new(tracefs::stat::Stat::start(native, selection, per_vcpu)?)),
        None => ("bpf", Box::new(bpf::stat::Stat::start(host, selection, per_vcpu)?)),
    };
    Ok(Chosen { name, how: live.how(), why, live })
}

/// Nothing works. What both sources lack, such as KVM, is said once.
fn none_works(native: &Unusable, bpf: &Unusable) -> anyhow::Error {
    if native == bpf {
        anyhow!("{bpf}")
    } else {
        anyhow!("{bpf}\n  nor does the native source work: {native}")
    }
}
