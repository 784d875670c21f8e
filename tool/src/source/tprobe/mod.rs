// SPDX-License-Identifier: MIT
//! The patched kernel's events on an unpatched one: dynamic events on KVM's tracepoints and functions, under `exitregs:`.

pub mod definition;
pub mod install;

use super::{Unusable, check_kvm, unusable};
use crate::btf::{Types, tracepoint_arguments};
use crate::host::Host;
use definition::{Definition, definitions};
use std::path::PathBuf;

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
    if host.lockdown == "confidentiality" {
        return Err(unusable(
            "the kernel is locked down for confidentiality: it does not let probes read its memory",
            "boot with lockdown=integrity or without lockdown",
        ));
    }
    let tracefs = host.tracefs().ok_or_else(|| {
        unusable(
            "tracefs is not mounted, or not for this user",
            "run as root; if it is not mounted: mount -t tracefs nodev /sys/kernel/tracing",
        )
    })?;
    let readme = std::fs::read_to_string(tracefs.join("README")).unwrap_or_default();
    if !readme.contains("t[:[<group>/][<event>]] <tracepoint>") {
        return Err(unusable(
            "the kernel takes no probes on tracepoints",
            "they need Linux 6.5 with CONFIG_FPROBE_EVENTS=y; the bpf source needs neither",
        ));
    }
    let files = host.btf_files();
    let no_types =
        |error: anyhow::Error| unusable(format!("{error:#}"), "use a kernel with CONFIG_DEBUG_INFO_BTF=y");
    let types = Types::read(&files).map_err(no_types)?;
    let entry = tracepoint_arguments(&files, "kvm_entry").map_err(no_types)?;
    let exit = tracepoint_arguments(&files, "kvm_exit").map_err(no_types)?;
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
