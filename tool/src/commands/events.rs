// SPDX-License-Identifier: MIT
//! `exitregs events`: the patched kernel's events on this one, for trace-cmd, perf, bpftrace and plain tracefs.

use crate::cli::misuse;
use crate::host::Host;
use crate::source::module::{self, load};
use crate::source::tprobe::install::{self, Events};
use crate::source::{native, tprobe};
use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use exitregs_common::event::GROUP;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The arguments of `exitregs events`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make exitregs:kvm_exit, exitregs:kvm_entry and exitregs:kvm_nested_page_fault, which stay until they are removed
    Install {
        /// Who makes them
        #[arg(long, value_enum, default_value_t = Maker::Tprobe)]
        source: Maker,
        /// The module's file; else it is looked for below /lib/modules
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Remove them
    Remove {
        /// Only those that this one makes
        #[arg(long, value_enum)]
        source: Option<Maker>,
        /// Even if somebody uses them: disable them everywhere first
        #[arg(long)]
        force: bool,
    },
    /// List them: dynamic events as the kernel shows them, the module's with its parameters
    List {
        /// Only those that this one makes
        #[arg(long, value_enum)]
        source: Option<Maker>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Who makes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Maker {
    /// The kernel, as dynamic events: since Linux 6.5, without the fields that only a VMCS has
    Tprobe,
    /// The module kvm_exitregs, which is loaded and unloaded
    Module,
}

/// Runs it; returns exit status 0.
///
/// # Errors
/// This kernel takes no such events, or somebody uses those that are to be removed or replaced.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let host = Host::this();
    match &arguments.action {
        Action::Install { source: Maker::Tprobe, file: Some(_) } => {
            Err(misuse("--file", "only the module has one: --source module"))
        }
        Action::Install { source, file } => install(&host, *source, file.as_deref()),
        Action::Remove { source, force } => remove(&host, *source, *force),
        Action::List { source, json } => list(&host, *source, *json),
    }
}

fn install(host: &Host, source: Maker, file: Option<&Path>) -> Result<u8> {
    if let Ok(native) = native::check(host) {
        eprintln!("exitregs: nothing is needed: this kernel's kvm:{native}");
        return Ok(0);
    }
    match source {
        Maker::Tprobe => {
            let tprobe = tprobe::check(host)?;
            load::check_absent(host)?;
            let (used, made) = Events::of(&tprobe.tracefs).install(&tprobe.definitions)?;
            used.keep()?;
            if made.is_empty() {
                eprintln!("exitregs: they are there already");
            } else {
                eprintln!("exitregs: made {} in the group {}", made.join(", "), GROUP);
            }
        }
        Maker::Module => match load::load(host, file)? {
            None => eprintln!("exitregs: they are there already"),
            Some((file, parameters)) => {
                let with = if parameters.is_empty() { String::new() } else { format!(" with {parameters}") };
                eprintln!("exitregs: loaded {}{with}", file.display());
            }
        },
    }
    eprintln!("exitregs: `exitregs events remove` removes them");
    if source == Maker::Tprobe && host.kvm_is_module {
        // docs/sources.md says why.
        eprintln!(
            "exitregs: remove them before kvm.ko is unloaded: Linux 6.12 may crash when it is loaded again"
        );
    }
    Ok(0)
}

fn remove(host: &Host, source: Option<Maker>, force: bool) -> Result<u8> {
    let mut removed = Vec::new();
    if source != Some(Maker::Tprobe) && load::unload(host, force)? {
        removed.push(format!("the module {}", module::NAME));
    }
    if source != Some(Maker::Module) {
        removed.extend(events(host)?.remove(force)?);
    }
    if removed.is_empty() {
        eprintln!("exitregs: there are none to remove");
    } else {
        eprintln!("exitregs: removed {}", removed.join(", "));
    }
    Ok(0)
}

fn events(host: &Host) -> Result<Events> {
    let tracefs = host.tracefs().context(
        "tracefs is not mounted, or not for this user\n  run as root; if it is not mounted: mount -t tracefs nodev /sys/kernel/tracing",
    )?;
    Ok(Events::of(&tracefs))
}

fn list(host: &Host, source: Option<Maker>, json: bool) -> Result<u8> {
    let mut definitions = Vec::new();
    if source != Some(Maker::Module) {
        definitions.extend(events(host)?.list()?);
    }
    let is_loaded = source != Some(Maker::Tprobe) && load::is_loaded(host);
    if is_loaded {
        let made = [vec![module::NAME.to_owned()], load::parameters(host)].concat().join(" ");
        definitions.extend(load::EVENTS.map(|event| format!("{GROUP}/{event} {made}")));
    }
    let mut out = anstream::stdout().lock();
    if json {
        serde_json::to_writer_pretty(
            &mut out,
            &serde_json::json!({ "kept": is_loaded || install::are_kept(), "events": definitions }),
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
