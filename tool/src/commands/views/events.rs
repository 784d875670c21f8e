// SPDX-License-Identifier: MIT
//! Whose events a view's lines are for, and which fields these have.

use crate::host::Host;
use crate::source::format::Format;
use crate::source::{module, native, tprobe, tracefs};
use anyhow::{Context, Result};
use exitregs_common::event::{Event, Field, GROUP, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::Isa;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Who made the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// kvm: of a kernel with the patch series
    Native,
    /// exitregs: of the kernel module
    Module,
    /// exitregs: of `exitregs events install`
    Tprobe,
    /// kvm: of any other kernel, without registers and levels
    Stock,
}

impl Source {
    /// The events' group in tracefs.
    pub fn group(self) -> &'static str {
        match self {
            Self::Native | Self::Stock => native::PROVIDER.group,
            Self::Module | Self::Tprobe => GROUP,
        }
    }

    /// Whether its event `E` has a field, on every kernel.
    fn has<E: Event>(self, isa: Isa, field: &Field) -> bool {
        match self {
            Self::Native | Self::Module => !field.optional,
            Self::Tprobe => tprobe::definition::has::<E>(isa, field.name),
            Self::Stock => E::NAME == KvmExit::NAME && !field.optional && !field.is_common(),
        }
    }
}

/// The events to select from.
#[derive(Debug, Clone)]
pub struct Events {
    /// Who made them.
    pub source: Source,
    /// The instruction set of the guests.
    pub isa: Isa,
    /// Where tracefs is mounted.
    pub tracefs: PathBuf,
    /// They are this host's, and here.
    pub are_here: bool,
    fields: Vec<(&'static str, Vec<&'static str>)>,
}

impl Events {
    /// Those of a source, or the best that this host has, for guests of an instruction set, or for this host's.
    ///
    /// # Errors
    /// This host does not tell what was not asked for.
    pub fn of(host: &Host, source: Option<Source>, isa: Option<Isa>) -> Result<Self> {
        let isa = isa
            .or(host.isa())
            .context("KVM does not tell the vendor here: use --vendor svm or --vendor vmx")?;
        let Some(source) = source else {
            let tracefs = tracefs::root(host)
                .context("cannot see which events this host has\n  for another host's: use --source")?;
            let ours = if module::load::is_loaded(host) { Source::Module } else { Source::Tprobe };
            let all = [Source::Native, ours].map(|source| Self::here(&tracefs, source, isa));
            let best = all.into_iter().flatten().find(|events| events.has(KvmExit::NAME, "is_nested"));
            return Ok(best
                .or_else(|| Self::here(&tracefs, Source::Stock, isa))
                .unwrap_or_else(|| Self::elsewhere(Source::Stock, isa)));
        };
        let here = host.tracefs().filter(|_| host.isa() == Some(isa));
        let here = here.and_then(|tracefs| Self::here(&tracefs, source, isa));
        let is_it = |events: &Self| source == Source::Stock || events.has(KvmExit::NAME, "is_nested");
        Ok(here.filter(is_it).unwrap_or_else(|| Self::elsewhere(source, isa)))
    }

    /// Those of a source on some other host.
    pub fn elsewhere(source: Source, isa: Isa) -> Self {
        fn fields<E: Event>(source: Source, isa: Isa) -> (&'static str, Vec<&'static str>) {
            let has = E::FIELDS.iter().filter(|field| source.has::<E>(isa, field));
            (E::NAME, has.map(|field| field.name).collect())
        }
        let fields = [fields::<KvmExit>(source, isa), fields::<KvmNestedPageFault>(source, isa)];
        let fields = fields.into_iter().filter(|(_, fields)| !fields.is_empty()).collect();
        Self { source, isa, tracefs: "/sys/kernel/tracing".into(), are_here: false, fields }
    }

    /// Those of a source here, if it has its `kvm_exit`.
    fn here(tracefs: &Path, source: Source, isa: Isa) -> Option<Self> {
        let fields = |event: &'static str, fields: &[Field]| {
            let path = tracefs.join("events").join(source.group()).join(event).join("format");
            let format = Format::parse(&std::fs::read_to_string(path).ok()?).ok()?;
            let has = fields.iter().map(|field| field.name).filter(|field| format.place(field).is_some());
            Some((event, has.collect()))
        };
        let exit = fields(KvmExit::NAME, KvmExit::FIELDS)?;
        let fault = fields(KvmNestedPageFault::NAME, KvmNestedPageFault::FIELDS);
        let fields = [exit].into_iter().chain(fault).collect();
        Some(Self { source, isa, tracefs: tracefs.to_owned(), are_here: true, fields })
    }

    /// Whether there is such an event.
    pub fn has_event(&self, event: &str) -> bool {
        self.fields.iter().any(|(name, _)| *name == event)
    }

    /// Whether an event has a field.
    pub fn has(&self, event: &str, field: &str) -> bool {
        self.fields.iter().any(|(name, fields)| *name == event && fields.contains(&field))
    }
}
