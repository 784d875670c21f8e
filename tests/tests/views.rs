// SPDX-License-Identifier: MIT
//! Every line that `exitregs views` prints is pasted into a shell of the host while a guest runs, and selects exactly the
//! exits that it should: as many as the view selects of those that `exitregs trace` has, which are those of the ground truth.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::event::{Event, KvmExit};
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::{VIEWS, View};
use exitregs_lab::counts::{Counts, counts};
use exitregs_lab::host::{Base, Built, Kernel};
use exitregs_lab::module;
use exitregs_tests::exitregs::{exitregs, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Exit, NestedPageFault};
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::{Extent, compare, compare_without_rip};

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    let patched: Kernel = "v6.12+patched".parse()?;
    let built = Built::plain(Base::V6_12);
    let module = module::build(built)?;
    let is_large = counts() == Counts::Large;
    for (source, kernel) in
        [("native", patched), ("tprobe", Kernel::Stock6_12), ("module", Kernel::Built(built))]
    {
        let amd = suite::host(kernel)?.smp(2).file(&module, MODULE);
        let amd = ["perf", "trace-cmd", "bpftrace"].into_iter().fold(amd, |host, tool| host.program(tool));
        let amd = suite.boot(format!("{source}, {kernel}"), amd);
        let lines = Lines { source, isa: Isa::Svm };
        at_once(amd, lines);
        // The module's are trace events as the kernel's own are.
        if source != "module" || is_large {
            one_by_one(amd, lines, &Tool::RECORDERS);
        }
        // The kernel attaches no BPF programs to dynamic events.
        let bpftrace: &[_] = if source == "tprobe" { &[] } else { &[&Tool::BPFTRACE] };
        one_by_one(amd, lines, bpftrace);

        let intel = suite::intel(kernel)?.program("perf").program("trace-cmd").file(&module, MODULE);
        // Its emulator is slow: bpftrace is much to read, and a guest runs for each line.
        let intel = if is_large && !bpftrace.is_empty() { intel.program("bpftrace") } else { intel };
        let intel = suite.boot(format!("{source}, {kernel} on Intel"), intel);
        let lines = Lines { source, isa: Isa::Vmx };
        at_once(intel, lines);
        if is_large {
            one_by_one(intel, lines, &Tool::RECORDERS);
            one_by_one(intel, lines, bpftrace);
        }
    }
    Ok(())
}

/// Where the module lies on the hosts.
const MODULE: &str = "/kvm_exitregs.ko";

/// Whose events the lines are for, and guests by which instruction set.
#[derive(Clone, Copy)]
struct Lines {
    source: &'static str,
    isa: Isa,
}

impl Lines {
    fn group(self) -> &'static str {
        if self.source == "native" { "kvm" } else { "exitregs" }
    }

    /// What makes the events.
    fn make(self) -> String {
        match self.source {
            "tprobe" => "exitregs events install".to_owned(),
            "module" => format!("[ -e /sys/module/kvm_exitregs ] || insmod {MODULE}"),
            _ => "true".to_owned(),
        }
    }

    /// What unmakes them; the module may stay.
    fn unmake(self) -> &'static str {
        if self.source == "tprobe" { "exitregs events remove" } else { "true" }
    }
}

/// A view at a level, or at both.
type Selected = (&'static View, Option<Level>);

/// Every view at every level.
fn printed() -> Vec<Selected> {
    let levels = |view: &'static View| match view.event == KvmExit::NAME {
        true => vec![(view, None), (view, Some(Level::L1)), (view, Some(Level::L2))],
        false => vec![(view, Some(Level::L2))],
    };
    VIEWS.iter().flat_map(levels).collect()
}

/// Each view at one level, the levels in turn: numbers of [`printed`].
fn diagonal() -> Vec<usize> {
    let all: Vec<_> = (0..printed().len()).collect();
    counts().pick(all.iter().copied().filter(|number| (number + number / 3) % 3 == 0).collect(), all.clone())
}

/// How the lines for a tool are pasted.
struct Tool {
    /// As `--tool` takes it.
    name: &'static str,
    /// What is done with each `$line`, the number of which is `$i`.
    each: &'static str,
    /// What is done afterwards.
    then: &'static str,
    /// The guest runs once for all lines, else once for each.
    at_once: bool,
    /// How many exits a line has selected.
    count: fn(&Played, usize, Selected, &Reference) -> Result<u64>,
}

impl Tool {
    /// Those that record events.
    const RECORDERS: [&Self; 3] = [&Self::PERF_RECORD, &Self::TRACE_CMD, &Self::TRACEFS];
    /// Each counts for the next one, the last for the guest.
    const PERF_STAT: Self = Self {
        name: "perf-stat",
        each: "command=\"$line -x , -o perf-stat.$i -- $command\"",
        then: "eval \"$command\" || echo \"failed: $command\" >&2",
        at_once: true,
        count: |played, number, _, _| {
            let text = played.read(&format!("perf-stat.{number}"))?;
            let count = text.lines().find_map(|line| line.split(',').next()?.parse().ok());
            count.with_context(|| format!("perf stat says\n{text}"))
        },
    };
    const PERF_RECORD: Self = Self {
        name: "perf-record",
        each: "all=\"$all $i\"; command=\"$line -B -N -q -o perf-record.$i -- $command\"",
        then: "eval \"$command\" > /dev/null || echo \"failed: $command\" >&2\n\
               for i in $all; do perf script -i perf-record.$i 2> perf-script.$i | grep -c \": $group:kvm_\" > perf-record.$i.count; done",
        at_once: true,
        count: counted,
    };
    const TRACE_CMD: Self = Self {
        name: "trace-cmd",
        each: "eval \"$line -o trace-cmd.$i.dat -- sh run.sh trace-cmd.$i\" < /dev/null > trace-cmd.$i.out 2>&1 || \
                   echo \"failed: $line $(cat trace-cmd.$i.out)\" >&2\n\
               trace-cmd report -N trace-cmd.$i.dat 2> /dev/null | grep -c ': *kvm_[a-z_]*:' > trace-cmd.$i.count",
        then: "",
        at_once: false,
        count: counted,
    };
    const TRACEFS: Self = Self {
        name: "tracefs",
        each: "cd /sys/kernel/tracing; echo > trace; cd - > /dev/null\n\
               eval \"$line\" || echo \"failed: $line\" >&2\n\
               sh run.sh tracefs.$i < /dev/null; cd /sys/kernel/tracing/events/$group\n\
               for event in kvm_exit kvm_nested_page_fault; do echo 0 > $event/enable; echo 0 > $event/filter; done\n\
               cd - > /dev/null; grep -c ': kvm_[a-z_]*:' /sys/kernel/tracing/trace > tracefs.$i.count",
        then: "echo > /sys/kernel/tracing/trace",
        at_once: false,
        count: counted,
    };
    const HIST: Self = Self {
        name: "hist",
        each: "eval \"$line\" || echo \"failed: $line\" >&2; echo \"$line\" | sed s/hist:/!hist:/ >> undo.sh",
        then: "eval \"$command\"\n\
               for event in kvm_exit kvm_nested_page_fault; do cat /sys/kernel/tracing/events/$group/$event/hist > hist.$event; done\n\
               sh undo.sh",
        at_once: true,
        count: hits,
    };
    const BPFTRACE: Self = Self {
        name: "bpftrace",
        each: "eval \"$line -c '/bin/sh run.sh bpftrace.$i'\" < /dev/null > bpftrace.$i.out 2>&1 || \
                   echo \"failed: $line $(cat bpftrace.$i.out)\" >&2",
        then: "",
        at_once: false,
        count: |played, number, _, _| {
            let text = played.read(&format!("bpftrace.{number}.out"))?;
            let counts = text.lines().filter(|line| line.starts_with("@["));
            counts.map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?)).sum()
        },
    };
}

/// The number that is in the file `TOOL.NUMBER.count`.
fn counted(played: &Played, number: usize, _: Selected, reference: &Reference) -> Result<u64> {
    let text = played.read(&format!("{}.{number}.count", reference.tool))?;
    text.trim().parse().with_context(|| format!("a count of {text:?}"))
}

/// The hits of the hist trigger with a view's filter, which must have as many entries as there are different keys.
fn hits(played: &Played, _: usize, (view, level): Selected, reference: &Reference) -> Result<u64> {
    let text = played.read(&format!("hist.{}", view.event))?;
    let wanted = match view.event == KvmExit::NAME {
        true => format!(" if {} [active]", view.filter(reference.lines.isa, level)),
        false => " [active]".to_owned(),
    };
    let mut histograms = text.split("# event histogram");
    let histogram = histograms.find(|histogram| histogram.contains(&wanted));
    let histogram = histogram.with_context(|| format!("no histogram{wanted} in\n{text}"))?;
    let total = |name: &str| {
        let value = histogram.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse().ok());
        value.with_context(|| format!("no {name} in\n{histogram}"))
    };
    ensure!(total("Dropped:")? == 0, "{histogram}");
    if view.event == KvmExit::NAME {
        // Without those that the event lacks.
        let names = histogram.split_once("hist:keys=").and_then(|(_, rest)| Some(rest.split_once(':')?.0));
        let names: Vec<_> =
            names.context("no keys")?.split(',').map(|name| name.trim_end_matches(".hex")).collect();
        ensure!(names.iter().all(|name| view.keys.contains(name)) && !names.is_empty(), "{names:?}");
        let keys: BTreeSet<Vec<_>> = reference
            .exits(view, level)
            .map(|exit| {
                let record = exit.exit.record();
                names.iter().map(|name| record.value(KvmExit::index(name)?)).collect()
            })
            .collect();
        ensure!(total("Entries:")? == keys.len() as u64, "{} keys, but\n{histogram}", keys.len());
    }
    total("Hits:")
}

/// What there was to select.
struct Reference {
    tool: &'static str,
    lines: Lines,
    exits: Vec<Exit>,
    faults: Vec<NestedPageFault>,
}

impl Reference {
    /// What the guest of a run did, by `exitregs trace`, which agrees with the ground truth.
    fn new(played: &Played, tool: &'static str, lines: Lines, run: &str) -> Result<Self> {
        let pid = played.read(&format!("{run}.pid"))?.trim().parse()?;
        let (mut exits, mut faults) =
            (record::exits(played, "trace")?, record::nested_page_faults(played, "trace")?);
        exits.retain(|exit| exit.vm == pid);
        faults.retain(|fault| fault.vm == pid);
        let truth = guest(run, lines.isa).truth(played)?;
        match (lines.source, lines.isa) {
            ("tprobe", Isa::Vmx) => compare_without_rip(&truth, &exits, pid)?,
            _ => compare(&truth, &exits, pid, Extent::Whole)?,
        };
        Ok(Self { tool, lines, exits, faults })
    }

    fn exits(&self, view: &View, level: Option<Level>) -> impl Iterator<Item = &Exit> {
        let predicate = *view.predicate(self.lines.isa);
        self.exits.iter().filter(move |exit| {
            predicate.selects(&exit.exit.record())
                && level.is_none_or(|level| level.is_nested() == exit.exit.is_nested)
        })
    }

    fn count(&self, (view, level): Selected) -> u64 {
        match view.event == KvmExit::NAME {
            true => self.exits(view, level).count() as u64,
            false => self.faults.len() as u64,
        }
    }
}

/// All lines for a tool while a guest runs once.
fn at_once(boot: &mut Boot, lines: Lines) {
    let all: Vec<_> = (0..printed().len()).collect();
    pasted(boot, lines, &Tool::PERF_STAT, &all);
    pasted(boot, lines, &Tool::HIST, &all);
}

/// Some lines for a tool in one test, so that none takes too long.
fn one_by_one(boot: &mut Boot, lines: Lines, tools: &[&'static Tool]) {
    let part = if lines.isa == Isa::Svm { 20 } else { 3 };
    for tool in tools {
        for numbers in diagonal().chunks(part) {
            pasted(boot, lines, tool, numbers);
        }
    }
}

/// What runs while something is pasted: everything that the script language has, mixed.
fn guest(name: &str, isa: Isa) -> Guest {
    Guest::random(name, 40_001, if isa == Isa::Svm { 250 } else { 150 })
}

/// Pastes lines for a tool, those of these numbers.
fn pasted(boot: &mut Boot, lines: Lines, tool: &'static Tool, numbers: &[usize]) {
    let Lines { source, isa } = lines;
    let printed = printed();
    let numbers = numbers.to_vec();
    let Tool { name, each, then, at_once, count } = *tool;
    let group = lines.group();
    let run = guest("$1", isa).argv().join(" ");
    let wanted: String = numbers.iter().map(|number| format!("{number} ")).collect();
    let paste = format!(
        "echo 'echo $$ > $1.pid; exec {run}' > run.sh\n\
         group={group}; i=-1; command='sh run.sh {name}'\n\
         while read -r line; do case $line in ''|'#'*) continue;; esac\n\
         i=$((i+1)); case ' {wanted}' in *\" $i \"*) ;; *) continue;; esac\n\
         {each}\n\
         done < lines.stdout\n\
         {then}\n\
         true"
    );
    let paste = Process::shell("paste", paste);
    let scenario = Scenario::new(format!("lines for {name}, {} of them from {}", numbers.len(), numbers[0]))
        .run(Process::shell("make", lines.make()))
        .run(exitregs("lines", ["views", "--tool", name]))
        .then(while_running(vec![trace("trace", &["--source", source])], |scenario| scenario.run(paste)))
        .run(Process::shell("unmake", lines.unmake()));
    boot.test(scenario, move |played| {
        played.succeeded(&["make", "lines", "paste", "trace", "unmake"])?;
        ensure!(!played.stderr("paste")?.contains("failed: "), "a line does not work");
        let text = played.stdout("lines")?;
        let commands = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        ensure!(commands == printed.len(), "{commands} lines, not {}", printed.len());
        let mut telling = 0;
        let together = if at_once { Some(Reference::new(played, name, lines, name)?) } else { None };
        for &number in &numbers {
            let alone = match at_once {
                true => None,
                false => Some(Reference::new(played, name, lines, &format!("{name}.{number}"))?),
            };
            let reference = together.as_ref().or(alone.as_ref()).context("it is either")?;
            let (expected, found) =
                (reference.count(printed[number]), count(played, number, printed[number], reference)?);
            let (view, level) = printed[number];
            ensure!(found == expected, "{} at {level:?}: {found} instead of {expected}", view.name);
            telling += usize::from(expected > 0);
        }
        ensure!(telling * 3 >= numbers.len() * 2, "only {telling} of {} select anything", numbers.len());
        Ok(())
    });
}
