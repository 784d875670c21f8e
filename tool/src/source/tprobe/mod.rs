// SPDX-License-Identifier: MIT
//! The patched kernel's events on an unpatched one: dynamic events on KVM's tracepoints and functions, under `exitregs:`.

pub mod definition;
pub mod install;

use super::tracefs::{self, Provider, Tracefs};
use super::{Unusable, check_kvm, module, unusable};
use crate::btf::Types;
use crate::host::Host;
use anyhow::Result;
use definition::{Definition, definitions};
use exitregs_common::event::{Event, GROUP, KvmEntry, KvmExit};
use install::Events;
use std::fmt;
use std::path::PathBuf;

/// Dynamic events.
pub const PROVIDER: Provider =
    Provider { source: "tprobe", group: GROUP, how: "dynamic events on KVM's tracepoints", partial: true };

/// What this host's kernel can be given.
#[derive(Debug, Clone)]
pub struct Tprobe {
    /// Where tracefs is mounted.
    pub tracefs: PathBuf,
    /// The events.
    pub definitions: Vec<Definition>,
}

/// Whether the kernel takes probes on tracepoints, and describes what they are to read.
///
/// # Errors
/// It does not, or this process may not make them; why, and what to do.
pub fn check(host: &Host) -> Result<Tprobe, Unusable> {
    let isa = check_kvm(host)?;
    let tracefs = tracefs::root(host)?;
    let readme = std::fs::read_to_string(tracefs.join("README")).unwrap_or_default();
    if !readme.contains("t[:[<group>/][<event>]] <tracepoint>") {
        return Err(unusable(
            "the kernel takes no probes on tracepoints",
            "they need Linux 6.5 with CONFIG_FPROBE_EVENTS=y; the bpf source needs neither",
        ));
    }
    let no_types =
        |error: anyhow::Error| unusable(format!("{error:#}"), "use a kernel with CONFIG_DEBUG_INFO_BTF=y");
    let types = Types::read(&host.btf_files()).map_err(no_types)?;
    let entry = types.tracepoint("kvm_entry").map_err(no_types)?;
    let exit = types.tracepoint("kvm_exit").map_err(no_types)?;
    if exit.first().is_none_or(|name| name != "kvm_vcpu") {
        return Err(unusable(
            format!("kvm_exit's first argument is not the vCPU: kvm_exit({})", exit.join(", ")),
            "use Linux 5.17 or newer",
        ));
    }
    let definitions = definitions(&types, isa, entry.len() > 1).map_err(|member| {
        unusable(
            format!("BTF does not tell where KVM has {member}"),
            "report this kernel's version; use the bpf source",
        )
    })?;
    Ok(Tprobe { tracefs, definitions })
}

impl Tprobe {
    /// Makes the events, which are there while they are used.
    ///
    /// # Errors
    /// As [`Events::install`]; or the module is loaded, which makes events of the same names.
    pub fn start(self, host: &Host) -> Result<Tracefs> {
        module::load::check_absent(host)?;
        let (used, _) = Events::of(&self.tracefs).install(&self.definitions)?;
        Ok(Tracefs::new(self.tracefs, PROVIDER)?.guarded_by(used))
    }
}

/// What the events tell.
impl fmt::Display for Tprobe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [exit, entry] = [KvmExit::FIELDS, KvmEntry::FIELDS];
        f.write_str("dynamic events have the registers")?;
        let lacks: Vec<_> = self
            .definitions
            .iter()
            .zip([exit, entry])
            .flat_map(|(definition, fields)| {
                fields
                    .iter()
                    .filter(|field| !definition.has(field.name))
                    .map(move |field| format!("{}.{}", definition.name, field.name))
            })
            .collect();
        if lacks.is_empty() { Ok(()) } else { write!(f, "; they lack {}", lacks.join(", ")) }
    }
}
