// SPDX-License-Identifier: MIT
//! The table of `stat`.

use super::style::{self, Count, Duration, Styled};
use crate::analysis::stat::{Key, Table, Times};
use crate::vm::Names;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Row as TableRow};
use exitregs_common::detail::Detail;
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::View;
use std::io::{self, Write};
use std::time::Duration as StdDuration;

/// What rows are sorted by, the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Time outside the guest.
    Time,
    /// Number of exits.
    Count,
}

/// The rows of a table in order; those of halted vCPUs come last.
pub fn sorted(table: &Table, sort: Sort) -> Vec<(&Key, &Times)> {
    let mut rows: Vec<_> = table.iter().collect();
    rows.sort_by_key(|(key, times)| {
        let weight = match sort {
            Sort::Time => (times.total, times.exits()),
            Sort::Count => (times.exits(), times.total),
        };
        // What is equal keeps one order from run to run.
        let name = format!("{key:?}");
        (is_halt(key), std::cmp::Reverse(weight), name)
    });
    rows
}

/// Whether the time of a key's exits is time in which the guest had nothing to do.
pub fn is_halt(key: &Key) -> bool {
    is_halt_reason(key.isa, key.exit_reason)
}

/// Whether exits with this reason are the guest's having nothing to do.
pub fn is_halt_reason(isa: Isa, exit_reason: u32) -> bool {
    View::by_name("hlt").is_some_and(|view| {
        let reasons = view.predicate(isa).reasons;
        reasons.iter().any(|&(first, last)| (first..=last).contains(&exit_reason))
    })
}

/// A row of a table of times.
#[derive(Debug)]
pub struct Row<'a> {
    /// What it is of: a text for each of the table's headings.
    pub of: Vec<String>,
    /// The guest had nothing to do.
    pub is_halt: bool,
    /// How many exits, and how long.
    pub times: &'a Times,
}

/// Writes a table of rows in their order, the first `most` of them, and those of halts. `headings` are those of what the
/// rows are of, and whether they are numbers.
///
/// # Errors
/// Those of the writer.
pub fn write_rows(
    out: &mut dyn Write,
    headings: &[(&str, bool)],
    rows: &[Row<'_>],
    elapsed: StdDuration,
    most: Option<usize>,
) -> io::Result<()> {
    const TIMES: [&str; 8] = ["EXITS", "/s", "TIME", "TIME%", "AVG", "P50", "P99", "MAX"];
    let busy = rows.iter().filter(|row| !row.is_halt);
    let total: u64 = busy.clone().map(|row| row.times.total).sum();
    let align = |cells: Vec<String>| {
        let numbers = headings.iter().map(|(_, number)| *number).chain(TIMES.map(|_| true));
        TableRow::from(numbers.zip(cells).map(|(number, cell)| {
            let alignment = if number { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(cell).set_alignment(alignment)
        }))
    };
    let mut shown = new_table();
    let names = headings.iter().map(|(heading, _)| *heading).chain(TIMES);
    shown.set_header(align(names.map(|name| Styled(style::HEADING, name).to_string()).collect()));

    let wanted = most.unwrap_or(rows.len());
    let mut halts_begun = false;
    for (index, Row { of, is_halt, times }) in rows.iter().enumerate() {
        if index >= wanted && !is_halt {
            continue;
        }
        if *is_halt && !halts_begun {
            halts_begun = true;
            shown.add_row(align(vec![String::new(); headings.len() + TIMES.len()]));
        }
        let share = if *is_halt || total == 0 {
            "idle".to_owned()
        } else {
            format!("{:.1}%", times.total as f64 * 100.0 / total as f64)
        };
        let took = |time: u64| if times.count == 0 { "-".to_owned() } else { Duration(time).to_string() };
        let mut cells = of.clone();
        cells.extend([
            Count(times.exits()).to_string(),
            Count((times.exits() as f64 / elapsed.as_secs_f64()).round() as u64).to_string(),
            took(times.total),
            share,
            took(times.mean()),
            took(times.percentile(50.0)),
            took(times.percentile(99.0)),
            took(times.max),
        ]);
        shown.add_row(align(cells));
    }
    write_table(out, &mut shown)?;
    let hidden = busy.count().saturating_sub(wanted);
    if hidden > 0 {
        writeln!(out, "… and {hidden} more rows")?;
    }
    Ok(())
}

/// A table without lines.
pub(super) fn new_table() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING);
    table
}

/// Writes a table, two spaces between its columns.
pub(super) fn write_table(out: &mut dyn Write, table: &mut comfy_table::Table) -> io::Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

/// Writes the table of what was counted in `elapsed`, and a summary.
///
/// # Errors
/// Those of the writer.
pub fn write(
    out: &mut dyn Write,
    table: &Table,
    elapsed: StdDuration,
    sort: Sort,
    most: Option<usize>,
    names: &mut Names,
) -> io::Result<()> {
    if table.is_empty() {
        return writeln!(out, "no exits in {:.3} s", elapsed.as_secs_f64());
    }
    let rows = sorted(table, sort);
    let busy = |level: Option<Level>| -> Times {
        let mut sum = Times::default();
        for (key, times) in table {
            if !is_halt(key) && level.is_none_or(|level| level == key.level) {
                sum.add(times);
            }
        }
        sum
    };
    let per_vcpu = rows.iter().any(|(key, _)| key.vcpu.is_some());
    let headings = [("VM", false), ("vCPU", true), ("", false), ("REASON", false), ("DETAIL", false)];
    let is_shown = |column: &usize| *column != 1 || per_vcpu;
    let headings: Vec<_> = (0..headings.len()).filter(is_shown).map(|column| headings[column]).collect();
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(key, times)| {
            let of = [
                format!("{}:{}", names.get(key.vm), key.vm),
                key.vcpu.map(|vcpu| vcpu.to_string()).unwrap_or_default(),
                Styled(style::level(key.level), key.level).to_string(),
                key.isa.exit_reason(key.exit_reason).to_string(),
                match key.detail {
                    Detail::None => String::new(),
                    detail => detail.to_string(),
                },
            ];
            let of = of.into_iter().enumerate().filter(|(column, _)| is_shown(column));
            Row { of: of.map(|(_, cell)| cell).collect(), is_halt: is_halt(key), times }
        })
        .collect();
    write_rows(out, &headings, &rows, elapsed, most)?;

    let (l1, l2) = (busy(Some(Level::L1)), busy(Some(Level::L2)));
    let all: u64 = table.values().map(Times::exits).sum();
    writeln!(
        out,
        "\n{} exits in {:.3} s: L1 {} ({} outside the guest), L2 {} ({}), halts {}",
        Count(all),
        elapsed.as_secs_f64(),
        Count(l1.exits()),
        Duration(l1.total),
        Count(l2.exits()),
        Duration(l2.total),
        Count(all - l1.exits() - l2.exits()),
    )?;
    let unended: u64 = table.values().map(|times| times.unended).sum();
    if unended > 0 {
        writeln!(out, "{} never followed by an entry and without a time", Count(unended))?;
    }
    Ok(())
}
