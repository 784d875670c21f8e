// SPDX-License-Identifier: MIT
//! Files of trace-cmd and perf: what exitregs reads in them is, event by event, what their own reports print of the same
//! files, and tells both levels of a scripted guest's exits apart as the guest does.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use exitregs::analysis::pairing::{Occurrence, Pairing, Record, What};
use exitregs::source::file::{self, Occurrences};
use exitregs_common::event::{Event, KvmExit, field_bit};
use exitregs_common::isa::Level;
use exitregs_common::svm::ExitCode as Svm;
use exitregs_lab::counts;
use exitregs_lab::events::EVENTS;
use exitregs_lab::host::Kernel;
use exitregs_tests::guest::Guest;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Played, Suite};
use exitregs_tests::truth::covers_both_levels;
use tempfile::NamedTempFile;

/// How a file is recorded, and how the tool that did prints it. `FILE` and `EVENTS` stand for these.
struct Recorded {
    name: &'static str,
    record: &'static str,
    print: &'static str,
}

const TRACE_CMD: &str = "trace-cmd report -R -t FILE";
const PERF: &str = "perf script --ns -F comm,pid,tid,cpu,time,event,trace -i FILE";

const RECORDED: [Recorded; 7] = [
    Recorded {
        name: "trace.dat 6",
        record: "trace-cmd record -q EVENTS --file-version 6 -o FILE",
        print: TRACE_CMD,
    },
    Recorded {
        name: "trace.dat 7",
        record: "trace-cmd record -q EVENTS --compression none -o FILE",
        print: TRACE_CMD,
    },
    Recorded {
        name: "trace.dat 7 zstd",
        record: "trace-cmd record -q EVENTS --compression zstd -o FILE",
        print: TRACE_CMD,
    },
    Recorded { name: "perf.data", record: "perf record -q -a -m 1024 EVENTS -o FILE", print: PERF },
    Recorded { name: "perf.data -z", record: "perf record -q -a -z -m 1024 EVENTS -o FILE", print: PERF },
    Recorded { name: "perf.data pipe", record: "perf record -q -a -m 1024 EVENTS -o - >FILE", print: PERF },
    Recorded { name: "perf kvm stat", record: "perf kvm --host stat record -a -o FILE", print: PERF },
];

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    for kernel in Kernel::STOCK {
        let host = suite::host(kernel)?.smp(2).program("perf").program("trace-cmd");
        let boot = suite.boot(kernel.to_string(), host);
        for recorded in &RECORDED {
            read_as_printed(boot, recorded);
        }
    }
    Ok(())
}

/// A recording of a guest, read and printed.
fn read_as_printed(boot: &mut Boot, recorded: &'static Recorded) {
    let guest = Guest::new("guest", "mix").vcpus(2).repeat(counts().pick(3, 500));
    let system = if recorded.print == PERF { "kvm:" } else { "" };
    let events: String = EVENTS.map(|event| format!(" -e {system}{event}")).concat();
    // A shell's redirection stands behind the command.
    let (record, redirection) = recorded.record.split_once('>').unwrap_or((recorded.record, ""));
    let redirection = if redirection.is_empty() { String::new() } else { " >recorded".to_owned() };
    let record = record.replace("EVENTS", &events).replace("FILE", "recorded");
    let record = format!("{record} {}{redirection}", guest.argv().join(" "));
    let print = recorded.print.replace("FILE", "recorded");
    let scenario = Scenario::new(recorded.name)
        .run(Process::shell("record", record))
        .run(Process::shell("print", print));
    boot.test(scenario, move |played| {
        played.succeeded(&["record", "print"])?;
        covers_both_levels(&guest.truth(played)?)?;
        same(played)?;
        if recorded.name.starts_with("trace.dat 7") {
            without_its_end(&played.path("recorded"))?;
        }
        levels(played, &guest, recorded.name != "perf kvm stat")
    });
}

/// All that a file says.
fn read(path: &Path) -> Result<(Vec<Occurrence>, bool)> {
    let mut reader = file::open(path)?;
    let (mut all, mut batch) = (Vec::new(), Occurrences::default());
    while reader.read(&mut batch)? {
        all.extend(batch.iter());
    }
    Ok((all, reader.description().nested_exits))
}

/// A `trace.dat` of version 7 without what comes last, the table of its CPUs, still tells every event.
fn without_its_end(path: &Path) -> Result<()> {
    let (whole, _) = read(path)?;
    let bytes = fs::read(path)?;
    let mut cut = NamedTempFile::new()?;
    cut.write_all(&bytes[..bytes.len() - 150])?;
    let mut reader = file::open(cut.path())?;
    let (mut all, mut damages, mut batch) = (Vec::new(), Vec::new(), Occurrences::default());
    loop {
        let outcome = reader.read(&mut batch);
        all.extend(batch.iter());
        match outcome {
            Ok(true) => {}
            Ok(false) => break,
            Err(damage) => damages.push(damage.to_string()),
        }
    }
    ensure!(damages.iter().any(|damage| damage.contains("what tells the CPUs")), "{damages:?}");
    ensure!(all == whole, "{} events are left of {}: {damages:?}", all.len(), whole.len());
    Ok(())
}

/// Every event of the file is the one that is printed.
fn same(played: &Played) -> Result<()> {
    let (recorded, _) = read(&played.path("recorded"))?;
    let (printed, _) = read(&played.path("print.stdout"))?;
    for (number, (recorded, printed)) in recorded.iter().zip(&printed).enumerate() {
        // perf leaves out the fields that are 0 in a text of their own.
        let unknown = recorded.unknown | printed.unknown;
        let what = |what: &What| match what {
            What::Exit(exit) => What::Exit(without(exit, unknown)),
            What::Entry(entry) => What::Entry(without(entry, unknown)),
            other => *other,
        };
        let is_same = (recorded.time, recorded.thread, what(&recorded.what))
            == (printed.time, printed.thread, what(&printed.what));
        ensure!(is_same, "event {number} is {recorded:x?}, but printed is {printed:x?}");
        let of_stock =
            (field_bit(KvmExit::FIELDS, "is_nested") - 1) & !field_bit(KvmExit::FIELDS, "requests");
        if let What::Exit(_) = recorded.what {
            ensure!(unknown & of_stock == 0, "event {number}: fields are missing: {unknown:#x}");
        }
    }
    ensure!(recorded.len() == printed.len(), "{} events, but {} printed", recorded.len(), printed.len());
    ensure!(recorded.len() > 200, "only {} events", recorded.len());
    Ok(())
}

/// The event with these fields 0.
fn without<E: Event>(event: &E, unknown: u32) -> E {
    E::from_values(|index| match unknown & 1 << index {
        0 => event.value(index).unwrap_or(0),
        _ => 0,
    })
}

/// As many CPUID exits of each level as the guest made, if the file can tell levels apart.
fn levels(played: &Played, guest: &Guest, told: bool) -> Result<()> {
    let (occurrences, nested_exits) = read(&played.path("recorded"))?;
    ensure!(nested_exits == told, "the file says that it tells levels: {nested_exits}");
    let mut pairing = Pairing::new(None).nested_exits(nested_exits);
    occurrences.iter().for_each(|occurrence| pairing.take(occurrence));
    let mut found = [0; 3];
    for record in pairing.finish() {
        let Record::Exit(exit) = record else { bail!("a stock kernel has no such event: {record:?}") };
        if exit.exit.exit_reason == Svm::CPUID.0 {
            found[match exit.level() {
                Some(Level::L1) => 1,
                Some(Level::L2) => 2,
                None => 0,
            }] += 1;
        }
    }
    let truth = guest.truth(played)?;
    let made =
        |level: u8| truth.iter().filter(|line| line.level == level && line.instruction == "cpuid").count();
    let (l1, l2) = (made(1), made(2));
    let expected = if told { [0, l1, l2] } else { [l1 + l2, 0, 0] };
    ensure!(
        found == expected,
        "CPUID exits of unknown level, L1, L2: {found:?}, but the guest made {expected:?}"
    );
    Ok(())
}
