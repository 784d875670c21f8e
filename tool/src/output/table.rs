// SPDX-License-Identifier: MIT
//! The table of `stat`.

use super::style::{self, Count, Duration, Styled};
use crate::analysis::stat::{Key, Table, Times};
use crate::vm::Names;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Row};
use exitregs_common::detail::Detail;
use exitregs_common::isa::Level;
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
    View::by_name("hlt").is_some_and(|view| {
        let reasons = view.predicate(key.isa).reasons;
        reasons.iter().any(|&(first, last)| (first..=last).contains(&key.exit_reason))
    })
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
    let total = busy(None);
    let per_vcpu = rows.iter().any(|(key, _)| key.vcpu.is_some());

    let mut shown = comfy_table::Table::new();
    shown.load_style(NOTHING);
    let headings =
        ["VM", "vCPU", "", "REASON", "DETAIL", "EXITS", "/s", "TIME", "TIME%", "AVG", "P50", "P99", "MAX"];
    let is_number = |column: usize| column == 1 || column >= 5;
    let row = |cells: Vec<String>| {
        let cells = cells.into_iter().enumerate().filter(|(column, _)| *column != 1 || per_vcpu);
        Row::from(cells.map(|(column, cell)| {
            Cell::new(cell).set_alignment(if is_number(column) {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            })
        }))
    };
    shown.set_header(row(headings.map(|heading| Styled(style::HEADING, heading).to_string()).to_vec()));

    let wanted = most.unwrap_or(rows.len());
    let mut halts_begun = false;
    for (index, (key, times)) in rows.iter().enumerate() {
        let halt = is_halt(key);
        if index >= wanted && !halt {
            continue;
        }
        if halt && !halts_begun {
            halts_begun = true;
            shown.add_row(row(vec![String::new(); headings.len()]));
        }
        let share = if halt || total.total == 0 {
            "idle".to_owned()
        } else {
            format!("{:.1}%", times.total as f64 * 100.0 / total.total as f64)
        };
        let took = |time: u64| if times.count == 0 { "-".to_owned() } else { Duration(time).to_string() };
        shown.add_row(row(vec![
            format!("{}:{}", names.get(key.vm), key.vm),
            key.vcpu.map(|vcpu| vcpu.to_string()).unwrap_or_default(),
            Styled(style::level(key.level), key.level).to_string(),
            key.isa.exit_reason(key.exit_reason).to_string(),
            match key.detail {
                Detail::None => String::new(),
                detail => detail.to_string(),
            },
            Count(times.exits()).to_string(),
            Count((times.exits() as f64 / elapsed.as_secs_f64()).round() as u64).to_string(),
            took(times.total),
            share,
            took(times.mean()),
            took(times.percentile(50.0)),
            took(times.percentile(99.0)),
            took(times.max),
        ]));
    }
    for column in shown.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in shown.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    let hidden = rows.iter().skip(wanted).filter(|(key, _)| !is_halt(key)).count();
    if hidden > 0 {
        writeln!(out, "… and {hidden} more rows")?;
    }

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
