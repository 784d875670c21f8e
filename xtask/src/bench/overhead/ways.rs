// SPDX-License-Identifier: MIT
//! The ways of watching exits that are compared.

use anyhow::{Context, Result};
use exitregs_lab::overhead::{Configuration, Measured, Setting, Watcher};

/// Nobody watches.
pub const UNTRACED: &str = "untraced";
/// What a kernel can do by itself at both ends of an exit.
pub const PAIR: &str = "kvm_exit + kvm_entry, ring buffer";

/// A way of watching exits.
pub struct Way {
    /// Its name.
    pub name: &'static str,
    /// Others are compared with it, so it is always measured.
    pub reference: bool,
    /// The program of this machine that watches, if it is none of ours.
    pub program: Option<&'static str>,
    /// What the kernel must have.
    pub needs: Needs,
    /// Which exits it is to see.
    pub sees: Sees,
    /// The dynamic events are installed meanwhile.
    dynamic_events: bool,
    settings: Vec<Setting>,
    watcher: Option<Watcher>,
    evidence: Vec<&'static str>,
    seen: fn(&Measured) -> Result<u64>,
}

/// What a way of watching needs of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing that others have not.
    Nothing,
    /// The patch series.
    Patches,
    /// The module, which takes a kernel that is built here.
    Module,
    /// Probes on tracepoints, which Linux 6.1 has not.
    DynamicEvents,
}

/// Which exits a way of watching is to see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// None: it does not look, or its filter matches none.
    Nothing,
    /// Those that its filter matches.
    Some,
    /// All.
    All,
    /// All, and the entries after them, which it counts too.
    Both,
}

impl Way {
    /// What the driver makes of it.
    pub fn configuration(&self) -> Configuration {
        Configuration {
            name: self.name.to_owned(),
            dynamic_events: self.dynamic_events,
            settings: self.settings.clone(),
            watcher: self.watcher.clone(),
            evidence: self.evidence.iter().map(|&file| file.to_owned()).collect(),
        }
    }

    /// How many events it has seen, by its own account.
    ///
    /// # Errors
    /// If it gave no account.
    pub fn seen(&self, measured: &Measured) -> Result<u64> {
        (self.seen)(measured).with_context(|| format!("{} does not say what it saw", self.name))
    }

    fn referred_to(mut self) -> Self {
        self.reference = true;
        self
    }

    fn on_patched_kernels(mut self) -> Self {
        self.needs = Needs::Patches;
        self
    }

    fn with_module(mut self) -> Self {
        self.needs = Needs::Module;
        self
    }

    /// Of kernels that can be given dynamic events; the tool makes them by itself.
    fn on_dynamic_events(mut self) -> Self {
        self.needs = Needs::DynamicEvents;
        self
    }

    /// The same, of others who use them.
    fn with_dynamic_events(self) -> Self {
        Self { dynamic_events: true, ..self.on_dynamic_events() }
    }

    fn seeing(mut self, sees: Sees) -> Self {
        self.sees = sees;
        self
    }
}

/// All of them; the first is [`UNTRACED`].
pub fn all() -> Vec<Way> {
    const EXIT: &str = "events/kvm/kvm_exit/enable";
    const ENTRY: &str = "events/kvm/kvm_entry/enable";
    const OWN_EXIT: &str = "events/exitregs/kvm_exit/enable";
    const OWN_ENTRY: &str = "events/exitregs/kvm_entry/enable";
    const OWN_FILTER: &str = "events/exitregs/kvm_exit/filter";
    const OWN_TRIGGER: &str = "events/exitregs/kvm_exit/trigger";
    const FILTER: &str = "events/kvm/kvm_exit/filter";
    const TRIGGER: &str = "events/kvm/kvm_exit/trigger";
    const PERF_DATA: &str = "/tmp/overhead.data";
    const COUNT: &str = "tracepoint:kvm:kvm_exit { @[args->exit_reason] = count(); }";
    const HISTOGRAM: &str = "tracepoint:kvm:kvm_exit { @start[tid] = nsecs; @reason[tid] = args->exit_reason; } \
        tracepoint:kvm:kvm_entry /@start[tid]/ { @ns[@reason[tid]] = hist(nsecs - @start[tid]); \
        delete(@start[tid]); delete(@reason[tid]); }";
    let perf = |name, arguments: &[&str], seen| watched(name, "perf", arguments, seen);
    let bpftrace = |name, program, seen| watched(name, "bpftrace", &["-q", "-e", program], seen);
    vec![
        tracefs(UNTRACED, &[], &[], |_| Ok(0)).seeing(Sees::Nothing).referred_to(),
        tracefs("kvm_exit, ring buffer", &[(EXIT, "1")], &["per_cpu/cpu0/stats"], ring_buffer),
        tracefs(PAIR, &[(EXIT, "1"), (ENTRY, "1")], &["per_cpu/cpu0/stats"], ring_buffer)
            .seeing(Sees::Both)
            .referred_to(),
        tracefs(
            "kvm_exit, filter, no match",
            &[(FILTER, "exit_reason == 0xffff"), (EXIT, "1")],
            &["per_cpu/cpu0/stats"],
            ring_buffer,
        )
        .seeing(Sees::Nothing),
        tracefs(
            "kvm_exit, filter, match",
            &[(FILTER, "exit_reason != 0xffff"), (EXIT, "1")],
            &["per_cpu/cpu0/stats"],
            ring_buffer,
        ),
        tracefs("module's kvm_exit, ring buffer", &[(OWN_EXIT, "1")], &["per_cpu/cpu0/stats"], ring_buffer)
            .with_module(),
        tracefs(
            "module's kvm_exit + kvm_entry, ring buffer",
            &[(OWN_EXIT, "1"), (OWN_ENTRY, "1")],
            &["per_cpu/cpu0/stats"],
            ring_buffer,
        )
        .seeing(Sees::Both)
        .with_module(),
        tracefs(
            "kvm_exit, hist by exit_reason",
            &[(TRIGGER, "hist:keys=exit_reason")],
            &["events/kvm/kvm_exit/hist"],
            |measured| number_after(&measured.evidence[0], "Hits:"),
        ),
        perf("perf stat", &["stat", "-a", "-x,", "-e", "kvm:kvm_exit"], perf_stat),
        perf(
            "perf stat, filter, match",
            &["stat", "-a", "-x,", "-e", "kvm:kvm_exit", "--filter", "exit_reason != 0xffff"],
            perf_stat,
        ),
        perf(
            "perf kvm stat record",
            &["kvm", "--host", "stat", "record", "-a", "-o", PERF_DATA],
            perf_record,
        )
        // It records the events of MMIO, port I/O and more as well.
        .seeing(Sees::Some),
        perf("perf record kvm_exit", &["record", "-a", "-e", "kvm:kvm_exit", "-o", PERF_DATA], perf_record),
        perf(
            "perf record kvm_exit + kvm_entry",
            &["record", "-a", "-e", "kvm:kvm_exit", "-e", "kvm:kvm_entry", "-o", PERF_DATA],
            perf_record,
        )
        .seeing(Sees::Both),
        bpftrace("bpftrace count by reason", COUNT, |measured| bpftrace_maps(&measured.output[0])),
        bpftrace("bpftrace time by reason", HISTOGRAM, |measured| bpftrace_histograms(&measured.output[0])),
        exitregs("exitregs stat", &["stat", "--json"], stat),
        exitregs(
            "exitregs stat, filter, no match",
            &["stat", "--json", "--view", "msr", "--level", "l2"],
            stat,
        )
        .seeing(Sees::Nothing),
        exitregs(
            "exitregs stat, filter, L1 cpuid",
            &["stat", "--json", "--view", "cpuid", "--level", "l1"],
            stat,
        )
        .seeing(Sees::Some),
        exitregs(
            "exitregs stat, filter, L2 hypercall",
            &["stat", "--json", "--view", "hypercall", "--level", "l2"],
            stat,
        )
        .seeing(Sees::Some),
        exitregs("exitregs trace", &["trace"], trace),
        exitregs("exitregs trace --json", &["trace", "--json"], trace),
        exitregs("exitregs trace, native", &["trace", "--source", "native"], trace).on_patched_kernels(),
        exitregs(
            "exitregs trace, native, filter, no match",
            &["trace", "--source", "native", "--where", "exit_reason == 0xffff"],
            trace,
        )
        .seeing(Sees::Nothing)
        .on_patched_kernels(),
        exitregs("exitregs stat, native", &["stat", "--json", "--source", "native"], stat)
            .on_patched_kernels(),
        // One counter; on a patched kernel one for each level.
        exitregs("exitregs stat --count-only", &["stat", "--json", "--count-only"], counters),
        exitregs(
            "exitregs stat --count-only, filter",
            &["stat", "--json", "--count-only", "--where", "exit_reason != 0xffff"],
            counters,
        ),
        tracefs("tprobe's kvm_exit, installed, unused", &[], &[], |_| Ok(0))
            .seeing(Sees::Nothing)
            .with_dynamic_events(),
        tracefs("tprobe's kvm_exit, ring buffer", &[(OWN_EXIT, "1")], &["per_cpu/cpu0/stats"], ring_buffer)
            .with_dynamic_events(),
        tracefs(
            "tprobe's kvm_exit + kvm_entry, ring buffer",
            &[(OWN_EXIT, "1"), (OWN_ENTRY, "1")],
            &["per_cpu/cpu0/stats"],
            ring_buffer,
        )
        .seeing(Sees::Both)
        .with_dynamic_events(),
        tracefs(
            "tprobe's kvm_exit, filter, no match",
            &[(OWN_FILTER, "exit_reason == 0xffff"), (OWN_EXIT, "1")],
            &["per_cpu/cpu0/stats"],
            ring_buffer,
        )
        .seeing(Sees::Nothing)
        .with_dynamic_events(),
        tracefs(
            "tprobe's kvm_exit, filter, match",
            &[(OWN_FILTER, "exit_reason != 0xffff"), (OWN_EXIT, "1")],
            &["per_cpu/cpu0/stats"],
            ring_buffer,
        )
        .with_dynamic_events(),
        tracefs(
            "tprobe's kvm_exit, hist by exit_reason",
            &[(OWN_TRIGGER, "hist:keys=exit_reason")],
            &["events/exitregs/kvm_exit/hist"],
            |measured| number_after(&measured.evidence[0], "Hits:"),
        )
        .with_dynamic_events(),
        exitregs("exitregs trace, tprobe", &["trace", "--source", "tprobe"], trace).on_dynamic_events(),
        exitregs("exitregs stat, tprobe", &["stat", "--json", "--source", "tprobe"], stat)
            .on_dynamic_events(),
        // Two counters, one for each level.
        exitregs(
            "exitregs stat --count-only, tprobe",
            &["stat", "--json", "--count-only", "--source", "tprobe"],
            counters,
        )
        .on_dynamic_events(),
        unprivileged(exitregs("exitregs stat, raw_tp", &["stat", "--json"], stat)),
        unprivileged(exitregs("exitregs trace, raw_tp", &["trace"], trace)),
    ]
}

fn tracefs(
    name: &'static str,
    settings: &[(&str, &str)],
    evidence: &[&'static str],
    seen: fn(&Measured) -> Result<u64>,
) -> Way {
    let settings = settings
        .iter()
        .map(|&(file, value)| Setting { file: file.to_owned(), value: value.to_owned() })
        .collect();
    Way {
        name,
        reference: false,
        needs: Needs::Nothing,
        program: None,
        sees: Sees::All,
        dynamic_events: false,
        settings,
        watcher: None,
        evidence: evidence.to_vec(),
        seen,
    }
}

fn watched(
    name: &'static str,
    program: &'static str,
    arguments: &[&str],
    seen: fn(&Measured) -> Result<u64>,
) -> Way {
    let argv = [program].iter().chain(arguments).map(|&word| word.to_owned()).collect();
    Way {
        program: Some(program),
        watcher: Some(Watcher { argv, stdout: None, capabilities: None }),
        ..tracefs(name, &[], &[], seen)
    }
}

fn exitregs(name: &'static str, arguments: &[&str], seen: fn(&Measured) -> Result<u64>) -> Way {
    let mut way = Way { program: None, ..watched(name, "exitregs", arguments, seen) };
    if let Some(watcher) = way.watcher.as_mut().filter(|_| arguments[0] == "trace") {
        watcher.stdout = Some("/dev/null".to_owned());
    }
    way
}

/// With the two capabilities that are enough, but do not give typed pointers where KVM is made of modules.
fn unprivileged(mut way: Way) -> Way {
    if let Some(watcher) = &mut way.watcher {
        watcher.capabilities = Some(["CAP_BPF", "CAP_PERFMON"].map(str::to_owned).to_vec());
    }
    way
}

// --- What they say they saw ----------------------------------------------------------------------------------------------

/// The first number after `mark`.
fn number_after(text: &str, mark: &str) -> Result<u64> {
    let (_, rest) = text.split_once(mark).with_context(|| format!("no {mark:?} in {text:?}"))?;
    let rest = rest.trim_start();
    let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
    digits.parse().with_context(|| format!("no number after {mark:?} in {text:?}"))
}

/// tracefs, per_cpu/cpu0/stats (Documentation/trace/ftrace.rst): what is in the buffer, and what was overwritten there.
fn ring_buffer(measured: &Measured) -> Result<u64> {
    let stats = &measured.evidence[0];
    Ok(number_after(stats, "entries:")? + number_after(stats, "overrun:")?)
}

/// `perf stat -x,`: the count comes first.
fn perf_stat(measured: &Measured) -> Result<u64> {
    let text = measured.output.concat();
    let line = text.lines().find(|line| line.contains("kvm:kvm_exit")).with_context(|| text.clone())?;
    number_after(line, "")
}

/// `[ perf record: Captured and wrote 1.234 MB FILE (5678 samples) ]`
fn perf_record(measured: &Measured) -> Result<u64> {
    number_after(&measured.output[1].replace('\n', " "), ".data (")
}

/// `@[114]: 40000`
fn bpftrace_maps(text: &str) -> Result<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix("@[")?.split_once("]:"))
        .map(|(_, n)| number_after(n, ""))
        .sum()
}

/// `[2K, 4K)          40000 |@@@@@@@@|`
fn bpftrace_histograms(text: &str) -> Result<u64> {
    text.lines()
        .filter(|line| line.starts_with('[') && line.ends_with('|'))
        .filter_map(|line| line.split_once([')', ']']))
        .map(|(_, rest)| number_after(rest, ""))
        .sum()
}

/// `exitregs stat --json`
fn stat(measured: &Measured) -> Result<u64> {
    let text = &measured.output[0];
    let object: serde_json::Value = serde_json::from_str(text).with_context(|| text.clone())?;
    let rows = object["rows"].as_array().with_context(|| text.clone())?;
    rows.iter().map(|row| row["exits"].as_u64().with_context(|| row.to_string())).sum()
}

/// `exitregs stat --count-only --json`
fn counters(measured: &Measured) -> Result<u64> {
    let text = &measured.output[0];
    let object: serde_json::Value = serde_json::from_str(text).with_context(|| text.clone())?;
    let counters = object["counters"].as_array().with_context(|| text.clone())?;
    counters.iter().map(|counter| counter["count"].as_u64().with_context(|| counter.to_string())).sum()
}

/// `exitregs: 81114 exits printed, 0 lost`
fn trace(measured: &Measured) -> Result<u64> {
    let text = &measured.output[1];
    let line = text.lines().find(|line| line.contains("exits printed")).with_context(|| text.clone())?;
    number_after(line, "exitregs:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stdout: &str, stderr: &str) -> Measured {
        Measured {
            name: String::new(),
            workloads: Vec::new(),
            output: [stdout.to_owned(), stderr.to_owned()],
            evidence: Vec::new(),
            all_exits: 0,
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().iter().map(|way| way.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn accounts_are_understood() {
        assert_eq!(perf_stat(&said("", "81085,,kvm:kvm_exit,1,100.00,,\n")).unwrap(), 81085);
        let record = "[ perf record: Woken up 9 times to write data ]\n\
                      [ perf record: Captured and wrote 5.623 MB /tmp/overhead.data (49152 samples) ]\n";
        assert_eq!(perf_record(&said("", record)).unwrap(), 49152);
        assert_eq!(bpftrace_maps("\n\n@[123]: 8\n@[114]: 40000\n").unwrap(), 40008);
        let histogram =
            "@ns[114]: \n[2K, 4K)            39990 |@@@@@@@@@|\n[4K, 8K)               10 |         |\n\n";
        assert_eq!(bpftrace_histograms(histogram).unwrap(), 40000);
        assert_eq!(trace(&said("", "exitregs: tracing\nexitregs: 42 exits printed, 0 lost\n")).unwrap(), 42);
        assert_eq!(stat(&said(r#"{"rows":[{"exits":3,"not_ended":1},{"exits":5}]}"#, "")).unwrap(), 8);
        assert_eq!(counters(&said(r#"{"counters":[{"count":4},{"count":5}]}"#, "")).unwrap(), 9);
    }

    #[test]
    fn silence_is_no_account() {
        for seen in [perf_stat, perf_record, trace, stat, counters] {
            assert!(seen(&said("", "")).is_err());
        }
    }
}
