// SPDX-License-Identifier: MIT
//! What a recording amounts to: rows by whatever was asked for, a timeline, and what differs between two.

use super::json::{self, StatRow};
use super::style::{self, Count, Duration, Styled};
use super::table::{self, Row, Sort, is_halt_reason, new_table, write_rows, write_table};
use crate::analysis::report::{Answer, By, Key};
use crate::analysis::stat::{Key as StatKey, Table, Times};
use crate::analysis::timeline::Timeline;
use crate::vm::Names;
use comfy_table::{Cell, CellAlignment, Row as TableRow};
use exitregs_common::detail::Detail;
use exitregs_common::event::{Cause, Event, KvmExit};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration as StdDuration;

/// Places of a timeline that are shown at most.
const TIMELINE_WIDTH: usize = 64;

/// The rows as `stat` has them, if they are told apart by what `stat` tells them apart by.
fn stat_table(answer: &Answer, by: &[By]) -> Option<Table> {
    let per_vcpu = by.contains(&By::Vcpu);
    let is_stat = By::DEFAULT.iter().all(|it| by.contains(it)) && by.len() == 4 + usize::from(per_vcpu);
    is_stat.then(|| {
        let key = |key: &Key| {
            let class = &key.class;
            Some(StatKey {
                vm: class.vm,
                vcpu: per_vcpu.then_some(class.vcpu),
                level: class.level(),
                isa: class.isa()?,
                exit_reason: class.exit_reason,
                detail: class.detail(),
            })
        };
        answer.rows.iter().filter_map(|(row, times)| Some((key(row)?, times.clone()))).collect()
    })
}

/// The rows in order; those of halts, where they can be told, come last.
fn sorted<'a>(answer: &'a Answer, by: &[By], sort: Sort) -> Vec<(&'a Key, &'a Times)> {
    let mut rows: Vec<_> = answer.rows.iter().collect();
    rows.sort_by_key(|(key, times)| {
        let weight = match sort {
            Sort::Time => (times.total, times.exits()),
            Sort::Count => (times.exits(), times.total),
        };
        (is_halt(key, by), std::cmp::Reverse(weight), format!("{key:?}"))
    });
    rows
}

fn is_halt(key: &Key, by: &[By]) -> bool {
    let knows_reason = by.contains(&By::Reason) || by.contains(&By::Detail);
    knows_reason && key.class.isa().is_some_and(|isa| is_halt_reason(isa, key.class.exit_reason))
}

fn vm(names: &mut Names, pid: u32) -> String {
    if pid == 0 { "?".to_owned() } else { format!("{}:{pid}", names.get(pid)) }
}

/// What a row is of, by each of `by`.
fn cells(key: &Key, by: &[By], names: &mut Names) -> Vec<String> {
    let class = &key.class;
    let mut fields = 0..;
    let vm_shown = by.contains(&By::Vm);
    let mut cell = |by: &By| match by {
        By::Vm => vm(names, class.vm),
        By::Vcpu if vm_shown => class.vcpu.to_string(),
        By::Vcpu => format!("{}/{}", vm(names, class.vm), class.vcpu),
        By::Level => Styled(style::level(class.level()), class.level()).to_string(),
        By::L2 => {
            if class.l2 == 0 {
                "-".to_owned()
            } else {
                format!("{:#x}", class.l2)
            }
        }
        By::Reason => {
            class.isa().map_or("?".to_owned(), |isa| isa.exit_reason(class.exit_reason).to_string())
        }
        By::Detail => match class.detail() {
            Detail::None if by_reason(class.isa(), key).is_some() => String::new(),
            detail => detail.to_string(),
        },
        By::Cause => match class.cause() {
            Some(Cause::Reflected) => "reflected".to_owned(),
            Some(Cause::Forced) => "forced".to_owned(),
            None => "-".to_owned(),
        },
        By::Field(field) => match (key.value(fields.next().unwrap_or(0)), KvmExit::FIELDS.get(*field)) {
            (Some(value), Some(field)) if field.is_hexadecimal() => format!("{value:#x}"),
            (Some(value), _) => value.to_string(),
            (None, _) => "?".to_owned(),
        },
    };
    by.iter().map(&mut cell).collect()
}

fn by_reason(isa: Option<exitregs_common::isa::Isa>, key: &Key) -> Option<String> {
    isa.map(|isa| isa.exit_reason(key.class.exit_reason).to_string())
}

fn elapsed(answer: &Answer) -> StdDuration {
    StdDuration::from_nanos(answer.elapsed().max(1))
}

/// Writes the table and a timeline.
///
/// # Errors
/// Those of the writer.
pub fn write(
    out: &mut dyn Write,
    answer: &Answer,
    by: &[By],
    sort: Sort,
    most: Option<usize>,
) -> io::Result<()> {
    let mut names = Names::elsewhere(answer.names.clone());
    if answer.rows.is_empty() {
        return writeln!(out, "no exits");
    }
    if let Some(table) = stat_table(answer, by) {
        table::write(out, &table, elapsed(answer), sort, most, &mut names)?;
    } else {
        let is_number = |by: &By| matches!(by, By::Vcpu | By::Field(_) | By::L2);
        let headings: Vec<(String, bool)> =
            by.iter().map(|by| (by.name().to_uppercase(), is_number(by))).collect();
        let headings: Vec<_> =
            headings.iter().map(|(heading, is_number)| (heading.as_str(), *is_number)).collect();
        let rows: Vec<_> = sorted(answer, by, sort)
            .into_iter()
            .map(|(key, times)| Row { of: cells(key, by, &mut names), is_halt: is_halt(key, by), times })
            .collect();
        write_rows(out, &headings, &rows, elapsed(answer), most)?;
        let exits: u64 = answer.rows.values().map(Times::exits).sum();
        writeln!(out, "\n{} exits in {:.3} s", Count(exits), elapsed(answer).as_secs_f64())?;
    }
    timeline(out, &answer.timeline)?;
    remarks(out, answer)
}

fn remarks(out: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    for (count, what) in [
        (answer.lost, "events were lost when this was recorded"),
        (answer.uncounted, "exits are in no row: there were too many different ones"),
        (answer.undecided, "exits were left out: the filter reads a field that was unknown"),
    ] {
        if count > 0 {
            writeln!(out, "{} {what}", Count(count))?;
        }
    }
    Ok(())
}

/// Writes how many exits a second there were, at each level, as bars.
fn timeline(out: &mut dyn Write, timeline: &Timeline) -> io::Result<()> {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let counts = timeline.counts();
    let together = counts.len().div_ceil(TIMELINE_WIDTH).max(1);
    if counts.len() < 2 {
        return Ok(());
    }
    let width = timeline.width() * together as u64;
    writeln!(out)?;
    for (level, name) in [exitregs_common::isa::Level::L1, exitregs_common::isa::Level::L2].iter().enumerate()
    {
        let places: Vec<u64> =
            counts.chunks(together).map(|counts| counts.iter().map(|count| count[level]).sum()).collect();
        let most = places.iter().copied().max().unwrap_or(0);
        if most == 0 {
            continue;
        }
        let bar = |count: &u64| match *count {
            0 => ' ',
            count => BARS[(count * 8).div_ceil(most) as usize - 1],
        };
        let bars: String = places.iter().map(bar).collect();
        let rate = (most as f64 * 1e9 / width as f64).round() as u64;
        let bars = Styled(style::level(*name), bars);
        writeln!(out, "{name} {bars} {}/s at most; {} each", Count(rate), Duration(width))?;
    }
    Ok(())
}

/// The table as an object.
pub fn json(answer: &Answer, by: &[By], sort: Sort, most: Option<usize>) -> Value {
    let mut names = Names::elsewhere(answer.names.clone());
    let rows: Vec<Value> = match stat_table(answer, by) {
        Some(table) => table::sorted(&table, sort)
            .into_iter()
            .take(most.unwrap_or(usize::MAX))
            .map(|(key, times)| json!(StatRow::new(key, times, names.get(key.vm))))
            .collect(),
        None => sorted(answer, by, sort)
            .into_iter()
            .take(most.unwrap_or(usize::MAX))
            .map(|(key, times)| row(key, times, by))
            .collect(),
    };
    let timeline = &answer.timeline;
    json!({
        "elapsed_s": elapsed(answer).as_secs_f64(),
        "rows": rows,
        "timeline": {
            "begin_ns": timeline.begin(),
            "width_ns": timeline.width(),
            "l1": timeline.counts().iter().map(|count| count[0]).collect::<Vec<_>>(),
            "l2": timeline.counts().iter().map(|count| count[1]).collect::<Vec<_>>(),
        },
        "lost": answer.lost,
        "uncounted": answer.uncounted,
        "undecided": answer.undecided,
    })
}

fn row(key: &Key, times: &Times, by: &[By]) -> Value {
    let class = &key.class;
    let mut object = Map::new();
    let mut fields = 0..;
    for by in by {
        let value: Value = match by {
            By::Vm => (class.vm != 0).then_some(class.vm).into(),
            By::Vcpu => class.vcpu.into(),
            By::Level => json::level(class.level()),
            By::L2 => json::l2(class.l2),
            By::Reason => class.isa().map(|isa| isa.exit_reason(class.exit_reason).to_string()).into(),
            By::Detail => json::detail(class.detail()),
            By::Cause => class.cause().map(|cause| format!("{cause:?}").to_lowercase()).into(),
            By::Field(field) => {
                let is_hexadecimal = KvmExit::FIELDS.get(*field).is_some_and(|it| it.is_hexadecimal());
                key.value(fields.next().unwrap_or(0)).map_or(Value::Null, |value| {
                    if is_hexadecimal { json::hexadecimal(value) } else { value.into() }
                })
            }
        };
        object.insert(by.name().to_owned(), value);
    }
    for (name, value) in [
        ("exits", times.exits()),
        ("not_ended", times.unended),
        ("total_ns", times.total),
        ("min_ns", times.min),
        ("mean_ns", times.mean()),
        ("p50_ns", times.percentile(50.0)),
        ("p99_ns", times.percentile(99.0)),
        ("max_ns", times.max),
    ] {
        object.insert(name.to_owned(), value.into());
    }
    Value::Object(object)
}

/// A row of two recordings: how many exits and how much time a second.
struct Change<'a> {
    key: &'a Key,
    before: Times,
    after: Times,
    /// Nanoseconds outside the guest, each second, that the second recording has more than the first.
    lost: f64,
}

fn changes<'a>(before: &'a Answer, after: &'a Answer, by: &[By]) -> Vec<Change<'a>> {
    let rate = |times: &Times, answer: &Answer| times.total as f64 * 1e9 / answer.elapsed().max(1) as f64;
    let keys: HashMap<&Key, ()> = before.rows.keys().chain(after.rows.keys()).map(|key| (key, ())).collect();
    let of = |answer: &Answer, key: &Key| answer.rows.get(key).cloned().unwrap_or_default();
    let mut changes: Vec<_> = keys
        .into_keys()
        .map(|key| {
            let (one, other) = (of(before, key), of(after, key));
            let lost = rate(&other, after) - rate(&one, before);
            Change { key, before: one, after: other, lost }
        })
        .collect();
    // What the guest lost most time by first; halts are no loss.
    changes.sort_by(|one, other| {
        let halts = is_halt(one.key, by).cmp(&is_halt(other.key, by));
        halts
            .then(other.lost.total_cmp(&one.lost))
            .then_with(|| format!("{:?}", one.key).cmp(&format!("{:?}", other.key)))
    });
    changes
}

/// Writes what changed from one recording to another: exits and time outside the guest, each second.
///
/// # Errors
/// Those of the writer.
pub fn write_diff(
    out: &mut dyn Write,
    before: &Answer,
    after: &Answer,
    by: &[By],
    most: Option<usize>,
) -> io::Result<()> {
    let mut names =
        Names::elsewhere(before.names.iter().chain(&after.names).map(|(k, v)| (*k, v.clone())).collect());
    let align = |cells: Vec<String>| {
        TableRow::from(cells.into_iter().enumerate().map(|(column, cell)| {
            let alignment = if column < by.len() { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(cell).set_alignment(alignment)
        }))
    };
    let headings =
        by.iter().map(|by| if *by == By::Level { String::new() } else { by.name().to_uppercase() });
    let headings =
        headings.chain(["EXITS/s A", "B", "TIME/s A", "B", "CHANGE/s", "AVG A", "B"].map(str::to_owned));
    let mut table = new_table();
    table.set_header(align(headings.map(|name| Styled(style::HEADING, name).to_string()).collect()));
    let changes = changes(before, after, by);
    let shown = most.unwrap_or(changes.len());
    let per_second =
        |value: u64, answer: &Answer| (value as f64 * 1e9 / answer.elapsed().max(1) as f64) as u64;
    let (mut total, mut halts) = (0.0, 0.0);
    for (index, change) in changes.iter().enumerate() {
        if is_halt(change.key, by) {
            halts += change.lost
        } else {
            total += change.lost
        }
        if index >= shown {
            continue;
        }
        let average = |times: &Times| {
            if times.count == 0 { "-".to_owned() } else { Duration(times.mean()).to_string() }
        };
        let style = if change.lost > 0.0 { style::BAD } else { style::GOOD };
        let mut cells = cells(change.key, by, &mut names);
        cells.extend([
            Count(per_second(change.before.exits(), before)).to_string(),
            Count(per_second(change.after.exits(), after)).to_string(),
            Duration(per_second(change.before.total, before)).to_string(),
            Duration(per_second(change.after.total, after)).to_string(),
            Styled(style, signed(change.lost)).to_string(),
            average(&change.before),
            average(&change.after),
        ]);
        table.add_row(align(cells));
    }
    write_table(out, &mut table)?;
    if changes.len() > shown {
        writeln!(out, "… and {} more rows", changes.len() - shown)?;
    }
    writeln!(
        out,
        "\nA: {:.3} s, B: {:.3} s; time outside the guest each second: {} (halts {})",
        elapsed(before).as_secs_f64(),
        elapsed(after).as_secs_f64(),
        signed(total),
        signed(halts)
    )?;
    remarks(out, before)?;
    remarks(out, after)
}

fn signed(nanoseconds: f64) -> String {
    let sign = if nanoseconds < 0.0 { '-' } else { '+' };
    format!("{sign}{}", Duration(nanoseconds.abs() as u64))
}

/// What changed, as an object.
pub fn json_diff(before: &Answer, after: &Answer, by: &[By], most: Option<usize>) -> Value {
    let side = |times: &Times, key: &Key| row(key, times, by);
    let rows: Vec<_> = changes(before, after, by)
        .iter()
        .take(most.unwrap_or(usize::MAX))
        .map(|change| {
            json!({
                "before": side(&change.before, change.key),
                "after": side(&change.after, change.key),
                "time_lost_ns_per_s": change.lost,
            })
        })
        .collect();
    let elapsed = [before, after].map(|answer| elapsed(answer).as_secs_f64());
    json!({ "elapsed_s": elapsed, "rows": rows })
}
