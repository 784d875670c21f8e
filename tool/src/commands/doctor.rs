// SPDX-License-Identifier: MIT
//! `exitregs doctor`: what this host can do, and how to get what is missing.

use crate::btf;
use crate::host::{Host, Kvm};
use crate::output::style::{self, Styled};
use crate::source::{Unusable, bpf, check_kvm, module, native, tprobe};
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::io::Write;

/// The arguments of `exitregs doctor`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Finding {
    Ok,
    /// Something works less well without it.
    Note,
    Missing,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    finding: Finding,
    is: String,
    remedy: Option<String>,
}

/// Runs it; returns exit status 0 if a live source works here, else 1.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let host = Host::this();
    let checks = checks(&host);
    let works = checks.iter().any(|check| check.name.starts_with("source ") && check.finding == Finding::Ok);
    let mut out = anstream::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "works": works, "checks": checks }))
            .map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        for check in &checks {
            let (style, word) = match check.finding {
                Finding::Ok => (style::GOOD, "OK"),
                Finding::Note => (style::UNSURE, "note"),
                Finding::Missing => (style::BAD, "missing"),
            };
            writeln!(
                out,
                "{:<8} {:<13} {}",
                Styled(style, format!("{word:<8}")).to_string().trim_end(),
                check.name,
                check.is
            )?;
            if let Some(remedy) = &check.remedy {
                writeln!(out, "{:>22} {}", Styled(style::FAINT, "→"), remedy)?;
            }
        }
        writeln!(
            out,
            "\n{}",
            if works {
                "exitregs works here: try `exitregs stat --duration 5` while a VM runs"
            } else {
                "exitregs does not work here yet: see what is missing above"
            }
        )?;
    }
    Ok(u8::from(!works))
}

fn ok(name: &'static str, is: impl Into<String>) -> Check {
    Check { name, finding: Finding::Ok, is: is.into(), remedy: None }
}

fn note(name: &'static str, is: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, finding: Finding::Note, is: is.into(), remedy: Some(remedy.into()) }
}

fn missing(name: &'static str, unusable: Unusable) -> Check {
    Check { name, finding: Finding::Missing, is: unusable.what, remedy: Some(unusable.remedy) }
}

fn checks(host: &Host) -> Vec<Check> {
    vec![
        kernel(host),
        kvm(host),
        nested(host),
        kvm_btf(host),
        lockdown(host),
        capabilities(host),
        tracefs(host),
        source_bpf(host),
        source_native(host),
        source_module(host),
        source_tprobe(host),
    ]
}

fn kernel(host: &Host) -> Check {
    let tested =
        host.release.split('.').take(2).map(|part| part.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>();
    if tested.as_slice() >= [6, 1].as_slice() {
        ok("kernel", &host.release)
    } else {
        note("kernel", &host.release, "older than Linux 6.1, the oldest that exitregs is tested on")
    }
}

fn kvm(host: &Host) -> Check {
    match check_kvm(host) {
        Ok(isa) => {
            let place = if host.kvm_is_module { "as modules" } else { "built in" };
            ok("KVM", format!("{} ({place})", isa.to_string().to_uppercase()))
        }
        Err(unusable) => missing("KVM", unusable),
    }
}

fn nested(host: &Host) -> Check {
    match (host.kvm, host.nested) {
        (_, Some(true)) => ok("nested", "guests may run guests (nested=Y)"),
        (Kvm::Ready(isa), _) => {
            let module = match isa {
                exitregs_common::isa::Isa::Svm => "kvm_amd",
                exitregs_common::isa::Isa::Vmx => "kvm_intel",
            };
            note(
                "nested",
                "guests may not run guests (nested=N): all exits will be L1's",
                format!("if L2 guests are wanted: modprobe -r {module} && modprobe {module} nested=1"),
            )
        }
        _ => Check {
            name: "nested",
            finding: Finding::Note,
            is: "unknown without KVM".to_owned(),
            remedy: None,
        },
    }
}

fn kvm_btf(host: &Host) -> Check {
    if let Err(unusable) = bpf::check_btf(host) {
        return missing("BTF", unusable);
    }
    let files = host.btf_files();
    if host.isa().is_none() {
        return ok("BTF", format!("{}", files.vmlinux.display()));
    }
    match btf::tracepoint_arguments(&files, "kvm_exit") {
        Ok(arguments) => {
            let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            ok("BTF", format!("{}: kvm_exit({})", names.join(", "), arguments.join(", ")))
        }
        Err(error) => missing(
            "BTF",
            Unusable {
                what: format!("{error:#}"),
                remedy: "use the distribution's kernel, unstripped".to_owned(),
            },
        ),
    }
}

fn lockdown(host: &Host) -> Check {
    match host.lockdown.as_str() {
        "confidentiality" => match bpf::check_permission(host) {
            Err(unusable) => missing("lockdown", unusable),
            Ok(_) => ok("lockdown", "confidentiality"),
        },
        mode => ok("lockdown", mode),
    }
}

fn capabilities(host: &Host) -> Check {
    let held = host.capabilities;
    let names: Vec<_> =
        [("CAP_BPF", held.bpf), ("CAP_PERFMON", held.perfmon), ("CAP_SYS_ADMIN", held.sys_admin)]
            .into_iter()
            .filter_map(|(name, held)| held.then_some(name))
            .collect();
    if held.can_trace() {
        ok("capabilities", names.join(", "))
    } else {
        let is = if names.is_empty() {
            "none of CAP_BPF, CAP_PERFMON".to_owned()
        } else {
            format!("only {}", names.join(", "))
        };
        let remedy = "run as root, or: setcap cap_bpf,cap_perfmon+ep FILE".to_owned();
        missing("capabilities", Unusable { what: is, remedy })
    }
}

fn tracefs(host: &Host) -> Check {
    match host.tracefs() {
        Some(place) => ok("tracefs", place.display().to_string()),
        None => note(
            "tracefs",
            "not mounted, or not for this user",
            "the bpf source does not need it; for the native source, trace-cmd and perf, as root: mount -t tracefs \
             nodev /sys/kernel/tracing",
        ),
    }
}

fn source_bpf(host: &Host) -> Check {
    match bpf::check(host) {
        Ok(access) => ok("source bpf", access.to_string()),
        Err(_) => Check {
            name: "source bpf",
            finding: Finding::Missing,
            is: "needs what is missing above".to_owned(),
            remedy: None,
        },
    }
}

fn source_module(host: &Host) -> Check {
    match module::check(host) {
        Ok(module) => ok("source module", module.to_string()),
        Err(unusable) => {
            let obstacle = module::build::check(host).err().filter(|_| !module::load::is_loaded(host));
            let remedy = obstacle.map_or(unusable.remedy, |obstacle| obstacle.to_string());
            note("source module", unusable.what, remedy)
        }
    }
}

fn source_native(host: &Host) -> Check {
    match native::check(host) {
        Ok(native) => ok("source native", native.to_string()),
        Err(unusable) => note("source native", unusable.what, unusable.remedy),
    }
}

fn source_tprobe(host: &Host) -> Check {
    match tprobe::check(host) {
        Ok(tprobe) => ok("source tprobe", tprobe.to_string()),
        Err(unusable) => note("source tprobe", unusable.what, unusable.remedy),
    }
}
