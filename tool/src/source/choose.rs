// SPDX-License-Identifier: MIT
//! Which source exits come from, where several could give them.

use super::tracefs::Tracefs;
use super::{Selection, Stat, Trace, Unusable, bpf, module, native, tprobe, tracefs};
use crate::host::Host;
use anyhow::{Result, anyhow};
use std::fmt;

/// What is said of sources that lack the event.
pub const NO_NESTED_PAGE_FAULTS: &str = "this source has no nested page faults\n  use --source native, module or tprobe, whichever `exitregs doctor` finds";

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
    /// The same events, of the module kvm_exitregs
    Module,
    /// The same as dynamic events, on an unmodified kernel since Linux 6.5
    Tprobe,
}

impl Source {
    /// As it is written on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bpf => "bpf",
            Self::Native => native::PROVIDER.source,
            Self::Module => module::PROVIDER.source,
            Self::Tprobe => tprobe::PROVIDER.source,
        }
    }
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

/// Where exits are taken from.
enum Taken {
    Bpf,
    Tracefs(Tracefs),
}

impl Taken {
    /// What was asked for, or the first of the sources that works, with the reason why it is not the best one.
    ///
    /// # Errors
    /// None works.
    fn choose(
        host: &Host,
        wanted: Source,
        best_first: &[Source],
        best: &str,
    ) -> Result<(Self, Option<String>)> {
        if wanted != Source::Auto {
            return Ok((Self::open(host, wanted)?, None));
        }
        let mut lacking: Vec<(Source, Unusable)> = Vec::new();
        for source in best_first {
            match Self::open(host, *source) {
                Ok(taken) => {
                    let why = lacking.first().map(|(_, unusable)| unusable.what.clone());
                    return Ok((taken, Some(why.unwrap_or_else(|| best.to_owned()))));
                }
                Err(error) => lacking.push((*source, error.downcast::<Unusable>()?)),
            }
        }
        Err(none_works(lacking))
    }

    fn open(host: &Host, source: Source) -> Result<Self> {
        Ok(match source {
            Source::Auto | Source::Bpf => bpf::check(host).map(|_| Self::Bpf)?,
            Source::Native => Self::Tracefs(native::check(host)?),
            Source::Module => Self::Tracefs(module::check(host)?),
            Source::Tprobe => Self::Tracefs(tprobe::check(host)?.start(host)?),
        })
    }
}

/// Nothing works. What several sources lack, such as KVM, is said once; what the bpf source lacks, first, for that is what most
/// hosts can be given.
fn none_works(mut lacking: Vec<(Source, Unusable)>) -> anyhow::Error {
    lacking.sort_by_key(|(source, _)| *source != Source::Bpf);
    let mut text = String::new();
    let mut said: Vec<&Unusable> = Vec::new();
    for (source, unusable) in &lacking {
        if said.contains(&unusable) {
            continue;
        }
        if !said.is_empty() {
            text += &format!("\n  nor does the {} source work: ", source.name());
        }
        text += &unusable.to_string();
        said.push(unusable);
    }
    anyhow!(text)
}

/// Starts to trace. Where the kernel's own events have the registers, these are the best source: they know every
/// field on either vendor. Dynamic events know less than BPF programs and cost more.
///
/// # Errors
/// No source works here, or not the one that was asked for; or the selection makes no sense to it.
pub fn trace(
    host: &Host,
    selection: &Selection,
    buffer_size: u32,
    wanted: Source,
) -> Result<Chosen<dyn Trace>> {
    let order: &[Source] = match selection.exits {
        true => &[Source::Native, Source::Module, Source::Bpf, Source::Tprobe],
        false => &[Source::Native, Source::Module, Source::Tprobe],
    };
    let (taken, why) = Taken::choose(host, wanted, order, "this kernel's events have the registers")?;
    let (name, live): (_, Box<dyn Trace>) = match taken {
        Taken::Tracefs(tracefs) if selection.exits || tracefs.has_nested_page_faults() => {
            let name = tracefs.provider().source;
            (name, Box::new(tracefs::trace::Trace::start(tracefs, selection, buffer_size)?))
        }
        Taken::Bpf if selection.exits => {
            (Source::Bpf.name(), Box::new(bpf::trace::Trace::start(host, selection, buffer_size)?))
        }
        _ => {
            return Err(anyhow!(NO_NESTED_PAGE_FAULTS));
        }
    };
    Ok(Chosen { name, how: live.how(), why, live })
}

/// Starts to count. BPF programs are the best source where they can be had: they count in the kernel.
///
/// # Errors
/// As [`trace`].
pub fn stat(host: &Host, selection: &Selection, per_vcpu: bool, wanted: Source) -> Result<Chosen<dyn Stat>> {
    let order = [Source::Bpf, Source::Native, Source::Module, Source::Tprobe];
    let (taken, why) = Taken::choose(host, wanted, &order, "it counts in the kernel")?;
    let (name, live): (_, Box<dyn Stat>) = match taken {
        Taken::Tracefs(tracefs) => {
            (tracefs.provider().source, Box::new(tracefs::stat::Stat::start(tracefs, selection, per_vcpu)?))
        }
        Taken::Bpf => (Source::Bpf.name(), Box::new(bpf::stat::Stat::start(host, selection, per_vcpu)?)),
    };
    Ok(Chosen { name, how: live.how(), why, live })
}

/// Events with registers and levels for perf to count. `None`: the source that was asked for has no events; or none was asked for
/// and `are_needed` is false, and dynamic ones would cost more than the kernel's own, which then do.
///
/// # Errors
/// The source that was asked for does not work here, or none does.
pub fn countable(host: &Host, wanted: Source, are_needed: bool) -> Result<Option<Tracefs>> {
    let order = [Source::Native, Source::Module, Source::Tprobe];
    if wanted == Source::Auto && !are_needed {
        return Ok(native::check(host).or_else(|_| module::check(host)).ok());
    }
    Ok(match Taken::choose(host, wanted, &order, "")?.0 {
        Taken::Tracefs(tracefs) => Some(tracefs),
        Taken::Bpf => None,
    })
}
