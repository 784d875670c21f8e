// SPDX-License-Identifier: MIT
//! Reads a file: prints what it is, what its exits are with `--exits`, and how long reading took.

use exitregs::analysis::pairing::{Pairing, Record, What};
use exitregs::source::file;
use exitregs_common::operation::Operation;
use exitregs_common::outcome::ExitResult;
use std::path::Path;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().expect("a file");
    let (show, raw) = (arguments.iter().any(|a| a == "--exits"), arguments.iter().any(|a| a == "--raw"));
    let start = Instant::now();
    let mut reader = file::open(Path::new(path))?;
    let mut pairing = Pairing::new(None).nested_exits(reader.description().nested_exits);
    let (mut events, mut exits, mut ended, mut gaps) = (0u64, 0u64, 0u64, 0u64);
    let mut batch = Vec::new();
    let mut print = |record: &Record| {
        if let Record::Exit(exit) = record {
            exits += 1;
            ended += u64::from(exit.entry_time != 0);
            if show {
                let level = exit.level().map_or("?".to_owned(), |level| level.to_string());
                let result = ExitResult::of(exit).map_or(String::new(), |result| format!(" = {result}"));
                println!(
                    "{} {}/{} {level} {}{result} {}",
                    exit.exit_time,
                    exit.tgid,
                    exit.exit.vcpu_id,
                    Operation(exit),
                    exit.entry_time.saturating_sub(exit.exit_time)
                );
            }
        }
    };
    loop {
        let more = match reader.read(&mut batch) {
            Ok(more) => more,
            Err(damage) => {
                eprintln!("{path}: {damage}");
                true
            }
        };
        for occurrence in &batch {
            events += 1;
            gaps += u64::from(matches!(occurrence.what, What::Gap { .. }));
            if raw {
                println!("{occurrence:x?}");
            }
            pairing.take(occurrence);
        }
        pairing.ended().for_each(|record| print(&record));
        if !more {
            break;
        }
    }
    pairing.finish().iter().for_each(&mut print);
    let seconds = start.elapsed().as_secs_f64();
    let description = reader.description();
    eprintln!(
        "{} {:?} {:?} {:?} unknown {:?} nested {} {}",
        description.format,
        description.kernel,
        description.isa,
        description.clock,
        description.unknown,
        description.nested_exits,
        description.nested_exit_causes
    );
    eprintln!(
        "{events} events, {exits} exits, {ended} ended, {gaps} gaps, {:.1} M/s",
        events as f64 / seconds / 1e6
    );
    Ok(())
}
