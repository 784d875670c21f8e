// SPDX-License-Identifier: MIT
//! `exitregs events`: the patched kernel's events on this one, for trace-cmd, perf, bpftrace and plain tracefs.

use crate::host::Host;
use crate::source::tprobe::install::{self, Events};
use crate::source::{native, tprobe};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use exitregs_common::event::GROUP;
use std::io::Write;
use std::path::Path;

/// The arguments of `exitregs events`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make exitregs:kvm_exit, exitregs:kvm_entry and exitregs:kvm_nested_page_fault, which stay until they are removed
    Install,
    /// Remove them
    Remove {
        /// Even if somebody uses them: disable them everywhere first
        #[arg(long)]
        force: bool,
    },
    /// List them, as the kernel shows them
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs it; returns exit status 0.
///
/// # Errors
/// This kernel takes no such events, or somebody uses those that are to be removed or replaced.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let host = Host::this();
    match arguments.action {
        Action::Install => install(&host),
        Action::Remove { force } => {
            let removed = events(&host)?.remove(force)?;
            match removed.as_slice() {
                [] => eprintln!("exitregs: there are none to remove"),
                names => eprintln!("exitregs: removed {}", names.join(", ")),
            }
            Ok(0)
        }
        Action::List { json } => list(&events(&host)?, json),
    }
}

fn install(host: &Host) -> Result<u8> {
    if let Ok(native) = native::check(host) {
        eprintln!("exitregs: nothing is needed: this kernel's kvm:{native}");
        return Ok(0);
    }
    let tprobe = tprobe::check(host)?;
    let (used, made) = Events::of(&tprobe.tracefs).install(&tprobe.definitions)?;
    used.keep()?;
    if made.is_empty() {
        eprintln!("exitregs: they are there already");
    } else {
        eprintln!("exitregs: made {} in the group {}", made.join(", "), GROUP);
    }
    eprintln!("exitregs: `exitregs events remove` removes them");
    if Path::new("/sys/module/kvm/initstate").exists() {
        // docs/sources.md says why.
        eprintln!(
            "exitregs: remove them before kvm.ko is unloaded: Linux 6.12 may crash when it is loaded again"
        );
    }
    Ok(0)
}

fn events(host: &Host) -> Result<Events> {
    let tracefs = host.tracefs().context(
        "tracefs is not mounted, or not for this user\n  run as root; if it is not mounted: mount -t tracefs nodev /sys/kernel/tracing",
    )?;
    Ok(Events::of(&tracefs))
}

fn list(events: &Events, json: bool) -> Result<u8> {
    let definitions = events.list()?;
    let mut out = anstream::stdout().lock();
    if json {
        serde_json::to_writer_pretty(
            &mut out,
            &serde_json::json!({ "kept": install::are_kept(), "events": definitions }),
        )
        .map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        for definition in definitions {
            writeln!(out, "{definition}")?;
        }
    }
    Ok(0)
}
