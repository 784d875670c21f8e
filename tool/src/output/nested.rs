// SPDX-License-Identifier: MIT
//! The table of nested round trips.

use super::json;
use super::style::{self, Count, Duration, Styled};
use super::table::{new_table, write_table};
use crate::analysis::nested::{Nested, Trips, What};
use comfy_table::{Cell, CellAlignment, Row};
use exitregs_common::detail::Detail;
use serde_json::{Value, json};
use std::io::{self, Write};

/// The kinds of L2's exits, those that took the most time first.
fn sorted(nested: &Nested) -> Vec<(&What, &Trips)> {
    let mut rows: Vec<_> = nested.rows.iter().collect();
    rows.sort_by_key(|(what, trips)| {
        let weight = (trips.times.total, trips.exits());
        (std::cmp::Reverse(weight), format!("{what:?}"))
    });
    rows
}

/// The exits of L1 in round trips of one kind, the most frequent first.
fn which(trips: &Trips) -> Vec<(&What, u64)> {
    let mut which: Vec<_> = trips.which.iter().map(|(what, count)| (what, *count)).collect();
    which.sort_by_key(|(what, count)| (std::cmp::Reverse(*count), format!("{what:?}")));
    which
}

fn detail(what: &What) -> String {
    match what.detail {
        Detail::None => String::new(),
        detail => detail.to_string(),
    }
}

fn text(what: &What) -> String {
    let reason = what.isa.exit_reason(what.exit_reason);
    match what.detail {
        Detail::None => reason.to_string(),
        detail => format!("{reason} {detail}"),
    }
}

/// Writes the table, `most` rows of it, and how the time divides.
///
/// # Errors
/// Those of the writer.
pub fn write(out: &mut dyn Write, nested: &Nested, most: Option<usize>) -> io::Result<()> {
    let rows = sorted(nested);
    if rows.is_empty() {
        return writeln!(out, "no exits of L2");
    }
    let mut sum = Trips::default();
    rows.iter().for_each(|(_, trips)| sum.add(trips));
    let knows_causes = sum.reflected_or_forced == 0;
    let causes: &[&str] = if knows_causes { &["REFLECTED", "FORCED"] } else { &["REFL./FORCED"] };
    let headings = ["L2 EXIT", "DETAIL", "EXITS", "L0 ALONE"]
        .iter()
        .chain(causes)
        .chain(&["L1 EXITS", "P99", "TIME", "MEAN", "P99", "L0", "L1", "RE-ENTRY"]);
    let align = |cells: Vec<String>| {
        Row::from(cells.into_iter().enumerate().map(|(column, cell)| {
            let alignment = if column < 2 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(cell).set_alignment(alignment)
        }))
    };
    let mut table = new_table();
    table.set_header(align(headings.map(|name| Styled(style::HEADING, name).to_string()).collect()));
    let cells = |first: [String; 2], trips: &Trips| {
        let share = |count: u64| match trips.exits() {
            0 => "-".to_owned(),
            all => format!("{:.0}%", count as f64 * 100.0 / all as f64),
        };
        let part = |time: u64| match trips.times.total {
            0 => "-".to_owned(),
            all => format!("{:.0}%", time as f64 * 100.0 / all as f64),
        };
        let took = |time: u64| {
            if trips.times.count == 0 { "-".to_owned() } else { Duration(time).to_string() }
        };
        let mut cells = Vec::from(first);
        cells.extend([Count(trips.exits()).to_string(), share(trips.l0_alone)]);
        match knows_causes {
            true => cells.extend([share(trips.reflected), share(trips.forced)]),
            false => cells.push(share(trips.reflected + trips.forced + trips.reflected_or_forced)),
        }
        cells.extend([
            format!("{:.2}", trips.multiplication()),
            trips.percentile(99.0).to_string(),
            took(trips.times.total),
            took(trips.times.mean()),
            took(trips.times.percentile(99.0)),
            part(trips.l0_time),
            part(trips.l1_time),
            part(trips.reentry_time),
        ]);
        cells
    };
    let shown = most.unwrap_or(rows.len());
    for (what, trips) in rows.iter().take(shown) {
        let reason = what.isa.exit_reason(what.exit_reason).to_string();
        table.add_row(align(cells([reason, detail(what)], trips)));
    }
    table.add_row(align(cells(["all".to_owned(), String::new()], &sum)));
    write_table(out, &mut table)?;
    if rows.len() > shown {
        writeln!(out, "… and {} more rows", rows.len() - shown)?;
    }

    writeln!(out, "\n{}", Styled(style::HEADING, "L1's exits per exit of L2"))?;
    for (what, trips) in rows.iter().take(shown).filter(|(_, trips)| !trips.which.is_empty()) {
        let per_exit = |(l1, count): &(&What, u64)| {
            format!("{} {:.2}", text(l1), *count as f64 / trips.times.count.max(1) as f64)
        };
        let which = which(trips);
        let mut list: Vec<_> = which.iter().take(6).map(per_exit).collect();
        if which.len() > list.len() {
            list.push(format!("… {} more", which.len() - list.len()));
        }
        writeln!(out, "{}: {}", text(what), list.join(", "))?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{} exits of L2, {} of L1 because of them; {}: L0 {}, L1 {}, re-entry {}",
        Count(sum.exits()),
        Count(sum.all_l1_exits()),
        Duration(sum.times.total),
        Duration(sum.l0_time),
        Duration(sum.l1_time),
        Duration(sum.reentry_time)
    )?;
    if !knows_causes {
        writeln!(
            out,
            "whether L0 reflected an exit or forced L1 to run is not in this source: it is one class"
        )?;
    }
    if sum.not_entered > 0 {
        writeln!(out, "{} after which that L2 was not entered again", Count(sum.not_entered))?;
    }
    if sum.broken > 0 {
        writeln!(out, "{} of which something is missing; they are in no other column", Count(sum.broken))?;
    }
    if nested.uncounted > 0 {
        writeln!(out, "{} were not counted: there were too many different ones", Count(nested.uncounted))?;
    }
    Ok(())
}

/// The table as an object.
pub fn json(nested: &Nested) -> Value {
    let of = |what: &What| {
        json!({
            "isa": what.isa.to_string(),
            "exit_reason": format!("{:#x}", what.exit_reason),
            "reason": what.isa.exit_reason(what.exit_reason).to_string(),
            "detail": json::detail(what.detail),
            "detail_text": what.detail.to_string(),
        })
    };
    let row = |(what, trips): (&What, &Trips)| {
        let which = which(trips);
        let which: Vec<_> =
            which.into_iter().map(|(what, count)| json!({ "exit": of(what), "exits": count })).collect();
        json!({
            "exit": of(what),
            "exits": trips.exits(),
            "l0_alone": trips.l0_alone,
            "reflected": trips.reflected,
            "forced": trips.forced,
            "reflected_or_forced": trips.reflected_or_forced,
            "not_entered": trips.not_entered,
            "broken": trips.broken,
            "l1_exits": trips.all_l1_exits(),
            "l1_exits_mean": trips.multiplication(),
            "l1_exits_p99": trips.percentile(99.0),
            "which": which,
            "total_ns": trips.times.total,
            "mean_ns": trips.times.mean(),
            "p50_ns": trips.times.percentile(50.0),
            "p99_ns": trips.times.percentile(99.0),
            "max_ns": trips.times.max,
            "l0_ns": trips.l0_time,
            "l1_ns": trips.l1_time,
            "reentry_ns": trips.reentry_time,
        })
    };
    json!({
        "nested": sorted(nested).into_iter().map(row).collect::<Vec<_>>(),
        "lost": nested.lost,
        "uncounted": nested.uncounted,
    })
}
