// SPDX-License-Identifier: MIT
//! Counts and times of exits by whatever is asked for.

use super::batch::{Batch, Class, Columns, NEVER};
use super::stat::Times;
use super::timeline::Timeline;
use crate::filter::Filter;
use ahash::RandomState;
use exitregs_common::event::{Event, KvmExit, field_bit};
use exitregs_common::isa::Level;
use std::collections::HashMap;
use std::ops::Range;
use std::str::FromStr;

/// The most different rows that are counted apart; each takes a kilobyte.
const MAX_ROWS: usize = 1 << 16;
/// The most fields of exits, not of classes, by which rows may be told apart.
const MAX_FIELDS: usize = 4;

/// What rows are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The VM.
    Vm,
    /// The vCPU of its VM.
    Vcpu,
    /// L1 or L2.
    Level,
    /// Which L2: its vmcb12 or vmcs12.
    L2,
    /// The exit reason.
    Reason,
    /// MSR, hypercall, CPUID leaf or port.
    Detail,
    /// Why L1 ran after an exit of L2's.
    Cause,
    /// `KvmExit::FIELDS[n]`.
    Field(usize),
}

impl By {
    const NAMES: [(&'static str, Self); 7] = [
        ("vm", Self::Vm),
        ("vcpu", Self::Vcpu),
        ("level", Self::Level),
        ("l2", Self::L2),
        ("reason", Self::Reason),
        ("detail", Self::Detail),
        ("cause", Self::Cause),
    ];
    /// What rows are told apart by if nothing else is asked for.
    pub const DEFAULT: [Self; 4] = [Self::Vm, Self::Level, Self::Reason, Self::Detail];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Field(field) => KvmExit::FIELDS.get(field).map_or("?", |field| field.name),
            by => Self::NAMES.iter().find(|(_, other)| *other == by).map_or("?", |(name, _)| name),
        }
    }
}

/// A name of [`By`]'s, or a field of `kvm_exit`; `rip` is `guest_rip`.
impl FromStr for By {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, by)| *by);
        let field = || KvmExit::index(if name == "rip" { "guest_rip" } else { name }).map(Self::Field);
        known.or_else(field).ok_or_else(|| {
            let names = Self::NAMES.iter().map(|(name, _)| *name).chain(["rip"]);
            let names: Vec<_> = names.chain(KvmExit::FIELDS.iter().map(|field| field.name)).collect();
            format!("there is no `{name}` to tell rows apart by; there are {}", names.join(", "))
        })
    }
}

/// What a row is of: the class without what rows are not told apart by, and the fields' values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// What exits have in common.
    pub class: Class,
    /// Values of the [`By::Field`]s, in their order.
    values: [u64; MAX_FIELDS],
    /// Bit n set: the nth of them is unknown.
    unknown: u8,
}

impl Key {
    /// The value of the nth [`By::Field`]; `None` if it is unknown.
    pub fn value(&self, nth: usize) -> Option<u64> {
        (self.unknown & 1 << nth == 0).then(|| self.values.get(nth).copied()).flatten()
    }
}

/// Which exits are counted, and by what they are told apart.
#[derive(Debug, Clone)]
pub struct Question {
    /// What rows are told apart by.
    pub by: Vec<By>,
    /// Which exits.
    pub filter: Option<Filter<KvmExit>>,
    /// The VMs, by pid or name; all if empty.
    pub vms: Vec<String>,
    /// Times of exits, in nanoseconds on the source's clock.
    pub times: Range<u64>,
}

impl Question {
    /// Checks that it can be answered.
    ///
    /// # Errors
    /// Too many fields.
    pub fn check(&self) -> Result<(), String> {
        match self.fields().count() {
            0..=MAX_FIELDS => Ok(()),
            count => Err(format!("rows can be told apart by {MAX_FIELDS} fields at most, not by {count}")),
        }
    }

    fn fields(&self) -> impl Iterator<Item = usize> {
        self.by.iter().filter_map(|by| match by {
            By::Field(field) => Some(*field),
            _ => None,
        })
    }

    /// The columns that it takes.
    pub fn columns(&self) -> Columns {
        let of_exits = self.filter.as_ref().map_or(0, Filter::fields);
        let fields = self.fields().fold(of_exits, |mask, field| mask | 1 << field);
        let exit_fields = if fields & !super::batch::CLASS_BITS == 0 && self.fields().next().is_none() {
            0
        } else {
            fields
        };
        Columns { exit_time: true, next_entry: true, exit_fields, ..Columns::default() }
    }

    /// A class without what rows are not told apart by.
    fn canonical(&self, class: &Class) -> Class {
        let mut key = Class {
            vm: 0,
            vcpu: 0,
            isa: class.isa,
            exit_reason: 0,
            is_nested: 0,
            is_protected: 0,
            hypercall_abi: 0,
            cause: 0,
            unknown: 0,
            l2: 0,
            detail: 0,
        };
        for by in &self.by {
            match by {
                By::Vm => key.vm = class.vm,
                // vCPU 0 of one VM is not that of another.
                By::Vcpu => (key.vm, key.vcpu) = (class.vm, class.vcpu),
                By::Level => {
                    key.is_nested = class.is_nested;
                    key.unknown |= class.unknown & field_bit(KvmExit::FIELDS, "is_nested");
                }
                By::L2 => key.l2 = class.l2,
                By::Reason => key.exit_reason = class.exit_reason,
                By::Detail => {
                    key.exit_reason = class.exit_reason;
                    (key.hypercall_abi, key.detail) = (class.hypercall_abi, class.detail);
                }
                By::Cause => key.cause = class.cause,
                By::Field(_) => {}
            }
        }
        key
    }
}

/// Counts and times by what they are of.
pub type Rows = HashMap<Key, Times, RandomState>;

/// What exits amount to.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The rows.
    pub rows: Rows,
    /// When there were how many.
    pub timeline: Timeline,
    /// The time of the first exit and that of the last end, on the source's clock.
    pub span: Option<(u64, u64)>,
    /// Exits that found too many different rows.
    pub uncounted: u64,
    /// Exits whose filter read a field that was unknown.
    pub undecided: u64,
    /// Events that were lost.
    pub lost: u64,
    /// Names of VMs.
    pub names: HashMap<u32, String>,
}

/// Whether exits of a class are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    All,
    None,
    Undecided,
    /// Each has to be looked at.
    Some,
}

impl Answer {
    /// Adds the exits of a batch, which has the [columns](Question::columns) that the question takes.
    pub fn add(&mut self, question: &Question, batch: &Batch) {
        self.lost += batch.lost;
        self.names.extend(batch.names.iter().cloned());
        let choices: Vec<Choice> = batch.classes.iter().map(|class| choose(question, batch, class)).collect();
        let whole = question.times.start == 0 && question.times.end == u64::MAX;
        let by_class = question.fields().next().is_none() && !choices.contains(&Choice::Some);
        // The times of each class first: a table this small stays in the cache.
        let mut of_class = vec![Times::default(); if by_class { batch.classes.len() } else { 0 }];
        let keys: Vec<Class> = batch.classes.iter().map(|class| question.canonical(class)).collect();
        let (mut first, mut last) = self.span.unwrap_or((u64::MAX, 0));
        for (row, (class, time)) in batch.class.iter().zip(&batch.exit_time).enumerate() {
            let class = usize::from(*class);
            if !whole && !question.times.contains(time) {
                continue;
            }
            match choices[class] {
                Choice::None => continue,
                Choice::Undecided => {
                    self.undecided += 1;
                    continue;
                }
                Choice::Some => match decide(question, batch, row) {
                    Some(true) => {}
                    Some(false) => continue,
                    None => {
                        self.undecided += 1;
                        continue;
                    }
                },
                Choice::All => {}
            }
            let took = batch.next_entry[row];
            first = first.min(*time);
            last = last.max(if took == NEVER { *time } else { time.saturating_add(took) });
            self.timeline.record(*time, batch.classes[class].level());
            if by_class {
                count(&mut of_class[class], took);
            } else {
                let key = key(question, keys[class], batch, row);
                match row_of(&mut self.rows, key) {
                    Some(times) => count(times, took),
                    None => self.uncounted += 1,
                }
            }
        }
        if last > 0 || first < u64::MAX {
            self.span = Some((first, last));
        }
        for (times, class) in of_class.iter().zip(keys).filter(|(times, _)| times.exits() > 0) {
            match row_of(&mut self.rows, Key { class, values: [0; MAX_FIELDS], unknown: 0 }) {
                Some(sum) => sum.add(times),
                None => self.uncounted += times.exits(),
            }
        }
    }

    /// Adds what another part of the exits amounts to.
    pub fn merge(&mut self, other: Self) {
        for (key, times) in other.rows {
            match row_of(&mut self.rows, key) {
                Some(sum) => sum.add(&times),
                None => self.uncounted += times.exits(),
            }
        }
        self.timeline.add(&other.timeline);
        self.span = match (self.span, other.span) {
            (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
            (one, other) => one.or(other),
        };
        self.uncounted += other.uncounted;
        self.undecided += other.undecided;
        self.lost += other.lost;
        self.names.extend(other.names);
    }

    /// Nanoseconds from the first exit to the last end.
    pub fn elapsed(&self) -> u64 {
        self.span.map_or(0, |(first, last)| last - first)
    }

    /// Exits by level, halts apart: what a summary has.
    pub fn exits(&self, level: Level) -> u64 {
        self.timeline.counts().iter().map(|count| count[usize::from(level == Level::L2)]).sum()
    }
}

fn count(times: &mut Times, took: u64) {
    if took == NEVER { times.unended += 1 } else { times.record(took) }
}

fn row_of(rows: &mut Rows, key: Key) -> Option<&mut Times> {
    if rows.len() >= MAX_ROWS && !rows.contains_key(&key) {
        return None;
    }
    Some(rows.entry(key).or_default())
}

fn key(question: &Question, class: Class, batch: &Batch, row: usize) -> Key {
    let mut key = Key { class, values: [0; MAX_FIELDS], unknown: 0 };
    for (nth, field) in question.fields().take(MAX_FIELDS).enumerate() {
        match batch.exit_fields.get(field).and_then(|column| column.get(row)) {
            Some(value) => key.values[nth] = value,
            None => key.unknown |= 1 << nth,
        }
    }
    key
}

fn choose(question: &Question, batch: &Batch, class: &Class) -> Choice {
    if !batch.is_of(class.vm, &question.vms) {
        return Choice::None;
    }
    match &question.filter {
        None => Choice::All,
        Some(filter) if filter.fields() & !super::batch::CLASS_BITS != 0 => Choice::Some,
        Some(filter) if filter.fields() & class.unknown != 0 => Choice::Undecided,
        Some(filter) if filter.selects(&class.event()) => Choice::All,
        Some(_) => Choice::None,
    }
}

/// Whether a filter selects an exit; `None` if it reads what is unknown.
fn decide(question: &Question, batch: &Batch, row: usize) -> Option<bool> {
    let Some(filter) = &question.filter else { return Some(true) };
    let fields = filter.fields();
    let mut unknown = false;
    let event = KvmExit::from_values(|field| {
        if fields & 1 << field == 0 {
            return 0;
        }
        let value = batch.exit_fields.get(field).and_then(|column| column.get(row));
        unknown |= value.is_none();
        value.unwrap_or(0)
    });
    (!unknown).then(|| filter.selects(&event))
}

#[cfg(test)]
mod tests;
