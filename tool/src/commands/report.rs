// SPDX-License-Identifier: MIT
//! `exitregs report`: what a recording amounts to.

mod events;
mod input;
mod progress;

use super::record::DEFAULT_FILE;
use crate::analysis::nested::Nested;
use crate::analysis::report::{Answer, By, Question};
use crate::cli::{ExitArguments, misuse};
use crate::output::table::Sort;
use crate::output::{nested, report};
use anstream::AutoStream;
use anyhow::{Context, Result};
use clap::Args;
use input::{Damages, Input};
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// The arguments of `exitregs report`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The recording, - for standard input; with --diff two
    #[arg(value_name = "FILE", default_value = DEFAULT_FILE, num_args = 1..=2)]
    files: Vec<PathBuf>,
    /// What each exit of L2 costs: who handled it, which exits of L1 it caused, and where the time went
    #[arg(long, conflicts_with_all = ["diff", "group_by", "sort"])]
    nested: bool,
    /// What changed from the first file to the second, by the time that was lost each second
    #[arg(long, conflicts_with = "sort")]
    diff: bool,
    /// What rows are told apart by: vm, vcpu, level, l2, reason, detail, cause, rip, or a field of kvm_exit
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    group_by: Vec<By>,
    /// Exits of this time only, from the first exit on: 1s..2.5s, ..500ms, 1m..
    #[arg(long, value_name = "FROM..TO", value_parser = time_range)]
    time_range: Option<Range<u64>>,
    /// What comes first
    #[arg(long, value_enum, default_value = "time")]
    sort: Sort,
    /// Print this many rows at most
    #[arg(short = 'n', long, value_name = "N")]
    rows: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    exits: ExitArguments,
}

/// Nanoseconds from `FROM` until before `TO`, each of which may be missing.
fn time_range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected FROM..TO, such as 1s..2s")?;
    let time = |text: &str, missing: u64| match text {
        "" => Ok(missing),
        "0" => Ok(0),
        text => super::duration(text).map(|time: Duration| time.as_nanos() as u64),
    };
    let range = time(from, 0)?..time(to, u64::MAX)?;
    if range.is_empty() { Err("the time ends before it begins".to_owned()) } else { Ok(range) }
}

/// Runs it; returns 0, or 1 if a file was damaged: what could be read of it is told.
///
/// # Errors
/// A file cannot be read or is none that exitregs reads, or the selection makes no sense.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let wanted = if arguments.diff { 2 } else { 1 };
    if arguments.files.len() != wanted {
        return Err(misuse(
            "FILE",
            if arguments.diff { "--diff takes two" } else { "several only with --diff" },
        ));
    }
    let mut out = AutoStream::auto(io::stdout().lock());
    let mut damages = Damages::default();
    if arguments.nested {
        let mut input = Input::open(&arguments.files[0], !arguments.json)?;
        let nested = nested_of(arguments, &mut input, &mut damages)?;
        let written = match arguments.json {
            true => writeln!(out, "{}", nested::json(&nested)),
            false => {
                heading(&mut out, &input).and_then(|()| nested::write(&mut out, &nested, arguments.rows))
            }
        };
        written.and_then(|()| out.flush()).context("cannot write the report")?;
        return Ok(damages.tell());
    }

    let by = match (arguments.group_by.as_slice(), arguments.diff) {
        // The pids of one recording's VMs are not the other's.
        ([], true) => vec![By::Level, By::Reason, By::Detail],
        ([], false) => By::DEFAULT.to_vec(),
        (by, _) => by.to_vec(),
    };
    let mut answers = Vec::new();
    let mut inputs = Vec::new();
    for file in &arguments.files {
        let mut input = Input::open(file, !arguments.json)?;
        answers.push(answer_of(arguments, &by, &mut input, &mut damages)?);
        inputs.push(input);
    }
    let written = match (answers.as_slice(), arguments.json) {
        ([before, after], true) => {
            writeln!(out, "{}", report::json_diff(before, after, &by, arguments.rows))
        }
        ([before, after], false) => inputs
            .iter()
            .try_for_each(|input| heading(&mut out, input))
            .and_then(|()| report::write_diff(&mut out, before, after, &by, arguments.rows)),
        ([answer, ..], true) => {
            writeln!(out, "{}", report::json(answer, &by, arguments.sort, arguments.rows))
        }
        ([answer, ..], false) => heading(&mut out, &inputs[0])
            .and_then(|()| report::write(&mut out, answer, &by, arguments.sort, arguments.rows)),
        ([], _) => Ok(()),
    };
    written.and_then(|()| out.flush()).context("cannot write the report")?;
    Ok(damages.tell())
}

/// Says what the file is.
fn heading(out: &mut dyn Write, input: &Input) -> io::Result<()> {
    use crate::output::style::{FAINT, Styled};
    writeln!(out, "{}", Styled(FAINT, input.describe()))
}

fn question(arguments: &Arguments, by: &[By], input: &Input) -> Result<Question> {
    let selection = arguments.exits.conditions(input.isa())?;
    if !selection.exits {
        return Err(misuse("--view", "report counts exits; nested page faults are none"));
    }
    let question = Question {
        by: by.to_vec(),
        filter: selection.filter,
        vms: arguments.exits.vm.clone(),
        times: arguments.time_range.clone().unwrap_or(0..u64::MAX),
    };
    question.check().map_err(|error| misuse("--group-by", error))?;
    Ok(question)
}

fn answer_of(arguments: &Arguments, by: &[By], input: &mut Input, damages: &mut Damages) -> Result<Answer> {
    let question = question(arguments, by, input)?;
    input.answer(question, damages)
}

fn nested_of(arguments: &Arguments, input: &mut Input, damages: &mut Damages) -> Result<Nested> {
    let question = question(arguments, &By::DEFAULT, input)?;
    let of_classes = crate::analysis::batch::CLASS_BITS;
    if question.filter.as_ref().is_some_and(|filter| filter.fields() & !of_classes != 0) {
        let names = crate::analysis::batch::CLASS_FIELDS.join(", ");
        return Err(misuse("--where", format!("with --nested a condition can be of these only: {names}")));
    }
    let mut nested = Nested::default();
    (nested.vms, nested.filter) = (question.vms, question.filter);
    let times = arguments.time_range.clone();
    input.each(Nested::COLUMNS, damages, |batch| {
        if let (None, Some(times), Some(first)) = (&nested.times, &times, batch.exit_time.first()) {
            nested.times = Some(first.saturating_add(times.start)..first.saturating_add(times.end));
        }
        nested.add(batch);
    });
    nested.finish();
    Ok(nested)
}

#[cfg(test)]
mod tests {
    use super::time_range;

    #[test]
    fn ranges_may_be_open() {
        assert_eq!(time_range("1s..2.5s"), Ok(1_000_000_000..2_500_000_000));
        assert_eq!(time_range("..500ms"), Ok(0..500_000_000));
        assert_eq!(time_range("1m.."), Ok(60_000_000_000..u64::MAX));
        for wrong in ["", "1s", "2s..1s", "x..y"] {
            assert!(time_range(wrong).is_err(), "{wrong}");
        }
    }
}
