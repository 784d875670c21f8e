// SPDX-License-Identifier: MIT
//! The dynamic events of an unpatched kernel, on AMD and on Intel: as a source, against the ground truth; what filters, perf and
//! hist triggers make of them; how they are installed, kept, shared and removed.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs_common::isa::{Isa, Level};
use exitregs_lab::counts;
use exitregs_lab::host::{Base, Built, Kernel, Status};
use exitregs_lab::script::builtins;
use exitregs_tests::events::{counters, expected_faults, nested_page_faults, perf_counters};
use exitregs_tests::exitregs::{exitregs, stat, trace, while_running};
use exitregs_tests::guest::Guest;
use exitregs_tests::record::{self, Exit};
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::{Extent, compare, compare_counts, compare_without_rip};
use exitregs_tests::view::{bounds, filter, scripted};
use nix::sys::signal::Signal;

const DYNAMIC_EVENTS: &str = "/sys/kernel/tracing/dynamic_events";

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    let built = |base| Kernel::Built(Built::plain(base));
    for kernel in [Kernel::Stock6_12, built(Base::V6_12), built(Base::Mainline)] {
        let host = suite::host(kernel)?.smp(2).memory_mib(4096).program("perf").program("trace-cmd");
        let amd = suite.boot(kernel.to_string(), host);
        every_script(amd, Isa::Svm);
        counted(amd);
        counted_by_need(amd);
        what_views_select(amd, Isa::Svm);
        counters(amd, Isa::Svm, "tprobe");
        perf_counters(amd, Isa::Svm, "tprobe");
        nested_page_faults(amd, Isa::Svm, "tprobe");
        installed(amd, Isa::Svm);
        others_print(amd, Isa::Svm);
        somebody_elses_probe(amd);
        two_runs_at_once(amd);
        if kernel != Kernel::Stock6_12 {
            // Each run reads the kernel's types, of which that has many more.
            many_at_once(amd);
        }
        killed(amd);
        under_load(amd);
        if kernel == Kernel::Stock6_12 {
            reloaded(amd);
        }
    }
    for kernel in [Kernel::Stock6_12, built(Base::V6_12), built(Base::Mainline)] {
        let intel = suite
            .boot(format!("{kernel} on Intel"), suite::intel(kernel)?.program("perf").program("trace-cmd"));
        every_script(intel, Isa::Vmx);
        what_views_select(intel, Isa::Vmx);
        counters(intel, Isa::Vmx, "tprobe");
        perf_counters(intel, Isa::Vmx, "tprobe");
        nested_page_faults(intel, Isa::Vmx, "tprobe");
        installed(intel, Isa::Vmx);
        others_print(intel, Isa::Vmx);
    }
    Ok(())
}

fn tprobe(name: &str, arguments: &[&str]) -> Process {
    trace(name, &[&["--source", "tprobe"], arguments].concat())
}

fn found_in(isa: Isa, exits: &[Exit], guest: &Guest, played: &Played) -> Result<usize> {
    played.succeeded(&[guest.name()])?;
    let (truth, pid) = (guest.truth(played)?, played.pid(guest.name())?);
    match isa {
        Isa::Svm => compare(&truth, exits, pid, Extent::Whole),
        Isa::Vmx => compare_without_rip(&truth, exits, pid),
    }
    .with_context(|| format!("guest {}", guest.name()))
}

/// Every field that docs/sources.md says it has, L1 and L2, at exit and entry; nothing is left of it afterwards.
fn every_script(boot: &mut Boot, isa: Isa) {
    let guests: Vec<_> = builtins(isa).map(|script| Guest::new(script.name, script.name).repeat(2)).collect();
    let all = guests.clone();
    let run = |scenario| all.iter().fold(scenario, |scenario: Scenario, guest| scenario.run(guest.process()));
    let scenario = Scenario::new("every script").then(while_running(vec![tprobe("trace", &[])], run));
    boot.test(scenario, move |played| {
        played.failed("trace", 0, &["tracing by the tprobe source", "dynamic events", " 0 lost"])?;
        let exits = record::exits(played, "trace")?;
        let mut found = 0;
        for guest in &guests {
            found += found_in(isa, &exits, guest, played)?;
        }
        ensure!(found >= 10 * guests.len(), "only {found} exits were compared");
        for exit in &exits {
            ensure!(exit.exit.guest_rip.is_some() == (isa == Isa::Svm), "guest_rip: {exit:?}");
            ensure!(exit.exit.info1.is_some() == (isa == Isa::Svm), "info1: {exit:?}");
            ensure!(exit.exit.requests.is_some(), "requests: {exit:?}");
        }
        Ok(())
    });
}

fn counted(boot: &mut Boot) {
    let guest = Guest::new("basic", "basic").vcpus(2).repeat(3);
    let run = guest.process();
    let counts = vec![stat("stat", &["--source", "tprobe"])];
    boot.test(
        Scenario::new("counts").then(while_running(counts, |scenario| scenario.run(run))),
        move |played| {
            played.succeeded(&["stat", "basic"])?;
            compare_counts(
                &guest.truth(played)?,
                &record::table(played, "stat")?.rows,
                played.pid("basic")?,
            )?;
            Ok(())
        },
    );
}

/// Counters are of the kernel's own event, as long as that tells what is asked for.
fn counted_by_need(boot: &mut Boot) {
    let guests = ["own", "dynamic"].map(|name| Guest::new(name, "msr").repeat(3));
    let count = |guest: &Guest, arguments: &[&str]| {
        let stat = stat(guest.name(), &[&["--count-only", "--view", "msr"], arguments, &["--"]].concat());
        Process { argv: [stat.argv, guest.argv()].concat(), ..stat }
    };
    let scenario = Scenario::new("counters by need")
        .run(count(&guests[0], &[]))
        .run(count(&guests[1], &["--level", "l2"]))
        .run(exitregs("bpf", ["stat", "--count-only", "--source", "bpf"]));
    boot.test(scenario, move |played| {
        played.failed("bpf", 2, &["--source: this one has no events that perf could count"])?;
        let truths = [guests[0].truth(played)?, guests[1].truth(played)?];
        let both = [Level::L1, Level::L2].map(|level| bounds(&truths[0], "msr", Isa::Svm, level));
        let l2 = bounds(&truths[1], "msr", Isa::Svm, Level::L2);
        let expected = [
            ("own", "kvm:kvm_exit", None, (both[0].0 + both[1].0, both[0].1.saturating_add(both[1].1))),
            ("dynamic", "exitregs:kvm_exit", Some(2), l2),
        ];
        for (name, event, level, (least, most)) in expected {
            played.succeeded(&[name])?;
            let text = played.read(&format!("{name}.json"))?;
            let counts: serde_json::Value = serde_json::from_str(&text).context("stat's JSON")?;
            let counters = counts["counters"].as_array().context("no counters")?;
            ensure!(counters.len() == 1 && counters[0]["event"] == event, "{name}: {text}");
            ensure!(counters[0]["level"].as_u64() == level, "{name}: {text}");
            let count = counters[0]["count"].as_u64().context("no count")?;
            ensure!(least > 0 && (least..=most).contains(&count), "{name}: {count}, not {least} to {most}");
        }
        Ok(())
    });
}

/// The kernel applies the same filters as to the patched kernel's events.
fn what_views_select(boot: &mut Boot, isa: Isa) {
    const VIEWS: [(&str, &str, usize); 2] = [("msr", "msr", 10), ("hypercall", "hypercall", 5)];
    for (script, view, least) in VIEWS {
        let guest = Guest::new("guest", script).repeat(3);
        let run = guest.process();
        let text = filter(view, isa, Level::L2).expect("the views are there");
        let traces = vec![
            tprobe("where", &["--where", &text]),
            tprobe("view", &["--view", view, "--level", "l2"]),
            tprobe("none", &["--where", &format!("{text} && is_protected == 1")]),
        ];
        let scenario =
            Scenario::new(format!("{view} of L2")).then(while_running(traces, |scenario| scenario.run(run)));
        boot.test(scenario, move |played| {
            played.succeeded(&["guest", "where", "view", "none"])?;
            let expected: Vec<_> =
                scripted(view, isa, &guest.truth(played)?).iter().map(|(_, rcx, rax)| (*rcx, *rax)).collect();
            ensure!(expected.len() >= least, "the script has only {} of them", expected.len());
            for name in ["where", "view"] {
                let exits = record::exits(played, name)?;
                let found: Vec<_> = exits.iter().map(|exit| (exit.exit.rcx, exit.exit.rax)).collect();
                ensure!(found == expected, "{name}: found {found:x?}\nexpected {expected:x?}");
            }
            ensure!(
                record::exits(played, "none")?.is_empty(),
                "a filter that selects nothing selected something"
            );
            Ok(())
        });
    }
}

/// For others' use: plain tracefs, a hist trigger, perf. Installed twice; not removed while they are used.
fn installed(boot: &mut Boot, isa: Isa) {
    const INSTANCE: &str = "/sys/kernel/tracing/instances/others";
    const EVENT: &str = "/sys/kernel/tracing/instances/others/events/exitregs/kvm_exit";
    let guest = Guest::new("guest", "msr").repeat(3);
    let text = filter("msr", isa, Level::L2).expect("the views are there");
    let use_it = format!(
        "mkdir {INSTANCE} && echo '{text}' > {EVENT}/filter && echo 1 > {EVENT}/enable \
         && echo 'hist:keys=exit_reason,rcx if {text}' > {EVENT}/trigger"
    );
    let perf = [
        "perf",
        "stat",
        "-a",
        "-x",
        ",",
        "-o",
        "perf.csv",
        "-e",
        "exitregs:kvm_exit",
        "--filter",
        &text,
        "--",
    ];
    let argv = [perf.map(str::to_owned).to_vec(), guest.argv()].concat();
    let unused = format!(
        "cat {INSTANCE}/trace > trace.txt; cat {EVENT}/hist > hist.txt; echo '!hist:keys=exit_reason,rcx' > {EVENT}/trigger; \
         echo 0 > {EVENT}/enable && rmdir {INSTANCE}"
    );
    let scenario = Scenario::new("installed")
        .run(exitregs("before", ["events", "list"]))
        .run(exitregs("install", ["events", "install"]))
        .run(exitregs("again", ["events", "install"]))
        .run(tprobe("trace", &["--duration", "50ms"]))
        .run(exitregs("list", ["events", "list"]))
        .run(exitregs("list-json", ["events", "list", "--json"]))
        .run(Process::shell("use", use_it))
        .run(Process { argv, ..guest.process() })
        .run(exitregs("busy", ["events", "remove"]))
        .run(Process::shell("unused", unused))
        .run(exitregs("remove", ["events", "remove"]))
        .run(exitregs("none", ["events", "remove"]))
        .run(exitregs("list-none", ["events", "list"]));
    boot.test(scenario, move |played| {
        played.succeeded(&["before", "list", "list-json", "use", "guest", "unused", "list-none"])?;
        ensure!(played.stdout("before")?.is_empty(), "the runs before have left some");
        played.failed("install", 0, &["made kvm_exit, kvm_entry", "in the group exitregs"])?;
        played.failed("again", 0, &["they are there already"])?;
        played.failed("trace", 0, &["tracing by the tprobe source"])?;
        let list = played.stdout("list")?;
        ensure!(
            list.lines().next().is_some_and(|line| line.starts_with("t:exitregs/kvm_exit kvm_exit ")),
            "{list}"
        );
        ensure!(played.stdout("list-json")?.contains("\"kept\": true"), "they are to stay");
        played.failed("busy", 1, &["exitregs:kvm_exit is in use", "it is enabled in", "others"])?;
        played.failed("remove", 0, &["removed "])?;
        played.failed("none", 0, &["there are none to remove"])?;
        ensure!(played.stdout("list-none")?.is_empty(), "some are left");

        let truth = guest.truth(played)?;
        let (least, most) = bounds(&truth, "msr", isa, Level::L2);
        let expected = scripted("msr", isa, &truth);
        ensure!(
            least > 0 && least == most && least == expected.len() as u64,
            "{least} to {most}: {expected:x?}"
        );
        let counted = played.read("perf.csv")?;
        let count = counted.lines().find_map(|line| line.split(',').next()?.parse::<u64>().ok());
        ensure!(count == Some(least), "perf stat: {counted}, not {least}");
        printed(&played.read("trace.txt")?, &expected)?;
        let hist = played.read("hist.txt")?;
        ensure!(hist.contains(&format!("Hits: {least}\n")), "hist: {hist}, not {least}");
        Ok(())
    });
}

/// The lines that tracefs and its users print of these exits: RIP, RCX and RAX of each.
fn printed(text: &str, expected: &[(Option<u64>, u64, u64)]) -> Result<()> {
    let lines: Vec<_> = text.lines().filter(|line| line.contains("kvm_exit: ")).collect();
    ensure!(lines.len() == expected.len(), "{} lines, not {}:\n{text}", lines.len(), expected.len());
    for (line, (_, rcx, rax)) in lines.iter().zip(expected) {
        let registers = [format!(" rax={rax:#x} "), format!(" rcx={rcx:#x} "), " is_nested=1 ".to_owned()];
        ensure!(registers.iter().all(|register| line.contains(register)), "{line}: not {registers:?}");
    }
    Ok(())
}

/// trace-cmd, with its plugins and without, and perf print what the events say.
fn others_print(boot: &mut Boot, isa: Isa) {
    let guests = ["trace-cmd", "perf"].map(|name| Guest::new(name, "msr").repeat(3));
    let text = filter("msr", isa, Level::L2).expect("the views are there");
    let record = |guest: &Guest, words: &[&str]| {
        let argv = words.iter().map(|word| (*word).to_owned()).chain(guest.argv()).collect();
        Process { argv, ..guest.process() }
    };
    let event = "exitregs:kvm_exit";
    let scenario = Scenario::new("others print the fields")
        .run(exitregs("install", ["events", "install"]))
        .run(record(&guests[0], &["trace-cmd", "record", "-e", event, "-f", &text, "-o", "trace.dat"]))
        .run(record(&guests[1], &["perf", "record", "-a", "-e", event, "--filter", &text, "-o", "perf.data"]))
        .run(Process::new("report", ["trace-cmd", "report", "trace.dat"]))
        .run(Process::new("report-plain", ["trace-cmd", "report", "-N", "trace.dat"]))
        .run(Process::new("script", ["perf", "script", "-i", "perf.data"]))
        .run(exitregs("remove", ["events", "remove"]));
    boot.test(scenario, move |played| {
        played.succeeded(&["install", "trace-cmd", "perf", "report", "report-plain", "script", "remove"])?;
        for (name, guest) in [("report", 0), ("report-plain", 0), ("script", 1)] {
            let expected = scripted("msr", isa, &guests[guest].truth(played)?);
            ensure!(expected.len() >= 10, "the script has only {} of them", expected.len());
            printed(&played.stdout(name)?, &expected).context(name)?;
        }
        Ok(())
    });
}

/// Somebody else's probe on the tracepoint: Linux 6.12 takes no second one. It stays as it is.
fn somebody_elses_probe(boot: &mut Boot) {
    let scenario = Scenario::new("somebody else's probe")
        .run(Process::shell("others", format!("echo 't:others/exits kvm_exit' >> {DYNAMIC_EVENTS}")))
        .run(exitregs("install", ["events", "install"]))
        .run(Process::shell("during", format!("cat {DYNAMIC_EVENTS}")))
        .run(exitregs("remove", ["events", "remove"]))
        .run(Process::shell(
            "after",
            format!("cat {DYNAMIC_EVENTS}; echo '-:others/exits' >> {DYNAMIC_EVENTS}"),
        ));
    boot.test(scenario, |played| {
        played.succeeded(&["others", "during", "remove", "after"])?;
        let (during, after) = (played.stdout("during")?, played.stdout("after")?);
        ensure!(after.trim() == "t:others/exits kvm_exit", "{after}");
        match played.status("install")? {
            Status::Code(0) => ensure!(during.contains("t:exitregs/kvm_exit "), "{during}"),
            _ => {
                played.failed("install", 1, &["there is one already", "t:others/exits kvm_exit"])?;
                ensure!(!during.contains("exitregs/"), "some were made: {during}");
            }
        }
        Ok(())
    });
}

/// The events stay until the last of two runs ends, whichever began first; and nobody removes them in between.
fn two_runs_at_once(boot: &mut Boot) {
    let guests = ["both", "second"].map(|name| Guest::new(name, "basic"));
    let [both, second] = guests.clone().map(|guest| guest.process());
    let scenario = Scenario::new("two runs at once")
        .start(tprobe("first", &[]))
        .wait_for("first", " source with ")
        .start(tprobe("last", &["--view", "msr,cpuid,hypercall"]))
        .wait_for("last", " source with ")
        .run(both)
        .run(exitregs("remove", ["events", "remove"]))
        .kill("first", Signal::SIGINT)
        .end("first")
        .run(second)
        .kill("last", Signal::SIGTERM)
        .end("last");
    boot.test(scenario, move |played| {
        played.succeeded(&["first", "last"])?;
        played.failed("remove", 1, &["is in use", "a run of exitregs"])?;
        found_in(Isa::Svm, &record::exits(played, "first")?, &guests[0], played)?;
        let pid = played.pid("second")?;
        let of_second = record::exits(played, "last")?.iter().filter(|exit| exit.vm == pid).count();
        ensure!(of_second > 0, "the events went with the first run");
        Ok(())
    });
}

/// Runs that begin at once all have the events, and those that end at once leave none.
fn many_at_once(boot: &mut Boot) {
    let rounds = counts().pick(1, 20);
    let text = format!(
        "for round in $(seq {rounds}); do\n\
         for run in 1 2 3 4; do\n\
         (said=$(exitregs trace --source tprobe --duration 50ms -o /dev/null 2>&1) || echo failed; echo \"$said\") & done\n\
         wait; exitregs events list; done"
    );
    let scenario = Scenario::new("many runs at once").run(Process::shell("runs", text));
    boot.test(scenario, move |played| {
        played.succeeded(&["runs"])?;
        let text = played.stdout("runs")?;
        let (begun, other): (Vec<_>, Vec<_>) =
            text.lines().partition(|line| line.contains("tracing by the tprobe source"));
        ensure!(begun.len() == 4 * rounds, "{} of {} runs began: {text}", begun.len(), 4 * rounds);
        let unexpected = other.iter().find(|line| !line.contains(" 0 lost"));
        ensure!(unexpected.is_none(), "{unexpected:?} in {text}");
        Ok(())
    });
}

/// What a killed run leaves is used by the next one, and goes with it; or it is removed by who asks for that.
fn killed(boot: &mut Boot) {
    let list = |name: &str| exitregs(name, ["events", "list"]);
    let kill = |scenario: Scenario, name: &str| {
        let scenario = scenario.start(tprobe(name, &[])).wait_for(name, " source with ");
        scenario.kill(name, Signal::SIGKILL).end(name)
    };
    let scenario = kill(Scenario::new("SIGKILL"), "killed")
        .run(list("left"))
        .run(tprobe("next", &["--duration", "50ms"]))
        .run(list("after"));
    let scenario = kill(scenario, "killed-too").run(exitregs("remove", ["events", "remove"]));
    boot.test(scenario, |played| {
        ensure!(played.status("killed")? == Status::Signal(Signal::SIGKILL as i32), "it was not killed");
        played.succeeded(&["next", "left", "after"])?;
        ensure!(played.stdout("left")?.contains("t:exitregs/kvm_exit"), "there was nothing to remove");
        ensure!(played.stdout("after")?.is_empty(), "something is left");
        played.failed("remove", 0, &["removed kvm_"])
    });
}

/// Installed and removed while a VM exits all the time, by two at once, and killed in between: nothing of ours is left, and
/// others' events are untouched.
fn under_load(boot: &mut Boot) {
    let guest = Guest::new("guest", "cpuid").endless();
    // In each, eight installations, two of which are killed at some point, and as many removals.
    let rounds = counts().pick(3, 125);
    let other = "while [ ! -e stop ]; do exitregs events install && exitregs events list && exitregs events remove; done \
                 >/dev/null 2>messages; true";
    // Not killed while it makes its tracefs instance: of that the kernel warns (docs/sources.md).
    let own = "for i in 1 2; do\n\
         exitregs trace --source tprobe -o /dev/null 2>trace-messages & trace=$!\n\
         until grep -q exitregs: trace-messages; do sleep 0.1; done\n\
         exitregs events install 2>>own-messages; kill -9 $trace; cat trace-messages >>own-messages\n\
         exitregs events remove 2>>own-messages; exitregs events install 2>>own-messages & install=$!\n\
         sleep 0.$i; kill -9 $install; exitregs events remove 2>>own-messages; done; true";
    let mut scenario = Scenario::new("under load")
        .run(Process::shell("others", format!("echo 'p:others/fork kernel_clone' >> {DYNAMIC_EVENTS}")))
        .start(guest.process())
        .start(Process::shell("one", other));
    for round in 0..rounds {
        scenario = scenario.run(Process::shell(format!("two-{round}"), own));
    }
    let scenario = scenario
        .run(Process::new("stop", ["touch", "stop"]))
        .end("one")
        .run(exitregs("end", ["events", "remove", "--force"]))
        .kill("guest", Signal::SIGKILL)
        .end("guest")
        .run(Process::shell(
            "after",
            format!("cat {DYNAMIC_EVENTS}; echo '-:others/fork' >> {DYNAMIC_EVENTS}"),
        ))
        .run(tprobe("next", &["--duration", "50ms"]));
    boot.test(scenario, move |played| {
        played.succeeded(&["others", "one", "stop", "end", "after", "next"])?;
        (0..rounds).try_for_each(|round| played.succeeded(&[&format!("two-{round}")]))?;
        let after = played.stdout("after")?;
        ensure!(after.trim() == "p:others/fork kernel_clone", "{after}");
        for name in ["messages", "own-messages"] {
            let text = played.read(name)?;
            ensure!(!text.contains("panicked"), "{text}");
            // Of two at once, one may find that the other uses them.
            let unexpected = text.lines().find(|line| {
                line.starts_with("exitregs: ")
                    && ![
                        "tracing by the tprobe source",
                        "they are there already",
                        "remove them before",
                        "made ",
                        "removed ",
                        "there are none",
                        "`exitregs events remove`",
                        "is in use",
                    ]
                    .iter()
                    .any(|expected| line.contains(expected))
            });
            ensure!(unexpected.is_none(), "{unexpected:?}");
        }
        Ok(())
    });
}

/// kvm_amd.ko is loaded anew while the events are installed: those on tracepoints go on, that on a function is made anew, and all
/// say what is true. Of kvm.ko docs/sources.md says why it must not be.
fn reloaded(boot: &mut Boot) {
    let guest = Guest::new("guest", "page-fault").repeat(2);
    let run = guest.process();
    let scenario = Scenario::new("kvm_amd reloaded")
        .run(exitregs("install", ["events", "install"]))
        .run(Process::shell("reload", "rmmod kvm_amd && modprobe kvm_amd"))
        .run(exitregs("list", ["events", "list"]))
        .run(exitregs("again", ["events", "install"]))
        .then(while_running(vec![tprobe("trace", &[])], |scenario| scenario.run(run)))
        .run(exitregs("remove", ["events", "remove"]));
    boot.test(scenario, move |played| {
        // Where the module comes to lie where it was, there is nothing to make anew.
        played.succeeded(&["install", "reload", "list", "again", "trace", "remove"])?;
        played.failed("install", 0, &["remove them before kvm.ko is unloaded"])?;
        let list = played.stdout("list")?;
        ensure!(list.lines().count() == 3, "{list}");
        let found = found_in(Isa::Svm, &record::exits(played, "trace")?, &guest, played)?;
        ensure!(found > 5, "only {found} exits were compared");
        expected_faults(Isa::Svm, &guest.truth(played)?, &record::nested_page_faults(played, "trace")?)
    });
}
