// SPDX-License-Identifier: MIT
//! What each exit of L2 costs: nested round trips, by the definitions of docs/nested.md.

use super::batch::{Batch, Class, Columns, NEVER};
use super::stat::Times;
use crate::filter::Filter;
use exitregs_common::detail::Detail;
use exitregs_common::event::{Cause, KvmExit};
use exitregs_common::isa::{Isa, Level};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

/// Exits of L1 that are remembered of each vCPU: a round trip with more is not counted but as broken.
const MAX_L1_EXITS: usize = 1 << 16;
/// Exits of L2 that can wait on each vCPU for the exit of L1 that ends their round trip.
const MAX_WAITING: usize = 1 << 10;
/// Of so many times at which events were lost the bounds are remembered.
const MAX_GAPS: usize = 1 << 10;
/// The most different exits that are counted apart.
const MAX_ROWS: usize = 1 << 14;

/// What exits of L2 are told apart by, and those of L1 within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct What {
    /// What `exit_reason` is a number of.
    pub isa: Isa,
    /// The exit reason with its flag bits.
    pub exit_reason: u32,
    /// MSR, hypercall, CPUID leaf or port.
    pub detail: Detail,
}

impl What {
    fn of(class: &Class) -> Option<Self> {
        Some(Self { isa: class.isa()?, exit_reason: class.exit_reason, detail: class.detail() })
    }
}

/// Exits of L2 of one kind, and their round trips.
#[derive(Debug, Clone, Default)]
pub struct Trips {
    /// L0 handled the exit, and L2 went on.
    pub l0_alone: u64,
    /// L0 gave the exit to L1.
    pub reflected: u64,
    /// L0 handled the exit, and then something else took the vCPU to L1.
    pub forced: u64,
    /// One of both: the source does not tell which.
    pub reflected_or_forced: u64,
    /// The L2 was not entered again.
    pub not_entered: u64,
    /// Events were lost during the round trip, or it had too many exits of L1: nothing else is counted of it.
    pub broken: u64,
    /// Times from L2's exit to its entry, of those that have one and are not broken.
    pub times: Times,
    /// The part of these times in which L0 worked: for L2's exit, and for all exits of L1 but the last.
    pub l0_time: u64,
    /// The part in which L1 ran.
    pub l1_time: u64,
    /// The part from L1's last exit, its VMRUN or VMRESUME, to L2's entry.
    pub reentry_time: u64,
    /// How many round trips had so many exits of L1.
    pub l1_exits: BTreeMap<u32, u64>,
    /// Which exits of L1, the last one included, and how many.
    pub which: HashMap<What, u64>,
}

impl Trips {
    /// Every exit.
    pub fn exits(&self) -> u64 {
        self.times.count + self.not_entered + self.broken
    }

    /// Exits of L1 in all round trips.
    pub fn all_l1_exits(&self) -> u64 {
        self.l1_exits.iter().map(|(exits, trips)| u64::from(*exits) * trips).sum()
    }

    /// Exits of L1 per exit of L2: the exit multiplication.
    pub fn multiplication(&self) -> f64 {
        self.all_l1_exits() as f64 / self.times.count.max(1) as f64
    }

    /// The number of L1's exits that `percent` of the round trips did not exceed.
    pub fn percentile(&self, percent: f64) -> u32 {
        let wanted = (self.times.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (exits, trips) in &self.l1_exits {
            seen += trips;
            if seen >= wanted {
                return *exits;
            }
        }
        0
    }

    /// Adds the round trips of another kind.
    pub fn add(&mut self, other: &Self) {
        self.l0_alone += other.l0_alone;
        self.reflected += other.reflected;
        self.forced += other.forced;
        self.reflected_or_forced += other.reflected_or_forced;
        self.not_entered += other.not_entered;
        self.broken += other.broken;
        self.times.add(&other.times);
        self.l0_time += other.l0_time;
        self.l1_time += other.l1_time;
        self.reentry_time += other.reentry_time;
        for (exits, trips) in &other.l1_exits {
            *self.l1_exits.entry(*exits).or_default() += trips;
        }
        for (what, exits) in &other.which {
            *self.which.entry(*what).or_default() += exits;
        }
    }
}

/// Puts round trips together from exits in about the order in which they ended.
#[derive(Debug, Default)]
pub struct Nested {
    /// The answer: what exits of L2 of each kind cost.
    pub rows: HashMap<What, Trips>,
    /// Exits of L2 that found too many different ones.
    pub uncounted: u64,
    /// Events that were lost.
    pub lost: u64,
    /// Which VMs are looked at, by pid or name; all if empty.
    pub vms: Vec<String>,
    /// Times of L2's exits that are counted, in nanoseconds on the source's clock; all if `None`.
    pub times: Option<Range<u64>>,
    /// Which exits of L2 are counted, by fields that a class has.
    pub filter: Option<Filter<KvmExit>>,
    vcpus: HashMap<(u32, u32), Vcpu>,
    gaps: VecDeque<(u64, u64)>,
    /// What began before is broken: nothing is remembered of the gaps there.
    forgotten: u64,
    /// The end of the last batch.
    now: u64,
    longest: u64,
}

#[derive(Debug, Default)]
struct Vcpu {
    /// By time.
    l1_exits: VecDeque<L1Exit>,
    /// An exit of L1's before this time may have been forgotten.
    forgotten: u64,
    waiting: VecDeque<L2Exit>,
}

#[derive(Debug, Clone, Copy)]
struct L1Exit {
    time: u64,
    /// When the vCPU was entered next; 0 if it was not.
    next_entry: u64,
    what: Option<What>,
}

#[derive(Debug, Clone, Copy)]
struct L2Exit {
    time: u64,
    next_entry: u64,
    entry: u64,
    what: What,
    cause: Option<Cause>,
}

impl Nested {
    /// The columns that it takes.
    pub const COLUMNS: Columns =
        Columns { exit_time: true, next_entry: true, entry: true, exit_fields: 0, entry_fields: 0 };

    /// Takes the next exits.
    pub fn add(&mut self, batch: &Batch) {
        let whats: Vec<Option<What>> = batch.classes.iter().map(What::of).collect();
        let is_counted: Vec<bool> = batch.classes.iter().map(|class| self.selects(class)).collect();
        let of_vms: Vec<bool> = batch.classes.iter().map(|class| batch.is_of(class.vm, &self.vms)).collect();
        let at = |row: usize, after: u64| {
            if after == NEVER { 0 } else { batch.exit_time[row].saturating_add(after) }
        };
        let mut end = self.now;
        for (row, class) in batch.class.iter().enumerate() {
            let place = usize::from(*class);
            let class = &batch.classes[place];
            if !of_vms[place] {
                continue;
            }
            let (time, next_entry) = (batch.exit_time[row], at(row, batch.next_entry[row]));
            let entry = at(row, batch.entry[row]);
            end = end.max(time).max(entry);
            let is_counted = is_counted[place] && self.is_in_time(time);
            let vcpu = self.vcpus.entry((class.vm, class.vcpu)).or_default();
            match (class.level(), whats[place]) {
                (Level::L1, what) => vcpu.l1_exits.push_back(L1Exit { time, next_entry, what }),
                (Level::L2, Some(what)) if is_counted => {
                    vcpu.waiting.push_back(L2Exit { time, next_entry, entry, what, cause: class.cause() });
                }
                (Level::L2, _) => {}
            }
        }
        if batch.lost > 0 {
            self.lost += batch.lost;
            if self.gaps.len() == MAX_GAPS {
                self.forgotten = self.gaps.pop_front().map_or(0, |gap| gap.1.max(self.forgotten));
            }
            self.gaps.push_back((self.now, end));
        }
        self.now = end;
        self.settle(false);
    }

    fn selects(&self, class: &Class) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.selects(&class.event()))
    }

    fn is_in_time(&self, time: u64) -> bool {
        self.times.as_ref().is_none_or(|times| times.contains(&time))
    }

    /// No exits will come any more.
    pub fn finish(&mut self) {
        self.settle(true);
    }

    /// The longest round trip since the last call, in nanoseconds; 0 if there was none.
    pub fn longest(&mut self) -> u64 {
        std::mem::take(&mut self.longest)
    }

    /// Counts the round trips whose exits of L1 are all there.
    fn settle(&mut self, all: bool) {
        let mut vcpus = std::mem::take(&mut self.vcpus);
        for vcpu in vcpus.values_mut() {
            for _ in 0..vcpu.waiting.len() {
                let Some(exit) = vcpu.waiting.pop_front() else { break };
                // The exit of L1 that ends it, by which L2 was entered, may come with the next batch.
                let is_there = vcpu.l1_exits.back().is_some_and(|last| last.next_entry >= exit.entry);
                let is_simple = exit.entry == 0 || exit.entry == exit.next_entry;
                if is_there || is_simple || all || vcpu.waiting.len() >= MAX_WAITING {
                    self.count(vcpu, &exit);
                } else {
                    vcpu.waiting.push_back(exit);
                }
            }
            let forget = vcpu.l1_exits.len().saturating_sub(MAX_L1_EXITS);
            if let Some(last) = vcpu.l1_exits.drain(..forget).next_back() {
                vcpu.forgotten = last.time;
            }
        }
        self.vcpus = vcpus;
    }

    fn count(&mut self, vcpu: &Vcpu, exit: &L2Exit) {
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&exit.what) {
            self.uncounted += 1;
            return;
        }
        let no_gap = |from: u64, to: u64| {
            from >= self.forgotten && self.gaps.iter().all(|gap| gap.1 < from || gap.0 > to)
        };
        let trips = self.rows.entry(exit.what).or_default();
        if exit.entry == 0 {
            trips.not_entered += 1;
            return;
        }
        let took = exit.entry.saturating_sub(exit.time);
        if exit.entry == exit.next_entry {
            trips.l0_alone += 1;
            trips.times.record(took);
            trips.l0_time += took;
            *trips.l1_exits.entry(0).or_default() += 1;
            self.longest = self.longest.max(took);
            return;
        }
        let from = vcpu.l1_exits.partition_point(|l1| l1.time <= exit.time);
        let to = vcpu.l1_exits.partition_point(|l1| l1.time < exit.entry);
        let l1_exits = vcpu.l1_exits.range(from..to);
        // L2 was entered by L1's last exit, and nothing of what came before is missing.
        let is_whole = l1_exits.len() > 0
            && l1_exits.clone().all(|l1| l1.next_entry != 0)
            && l1_exits.clone().next_back().is_some_and(|last| last.next_entry == exit.entry)
            && exit.time >= vcpu.forgotten
            && no_gap(exit.time, exit.entry);
        if !is_whole {
            trips.broken += 1;
            return;
        }
        match exit.cause {
            Some(Cause::Reflected) => trips.reflected += 1,
            Some(Cause::Forced) => trips.forced += 1,
            None => trips.reflected_or_forced += 1,
        }
        trips.times.record(took);
        self.longest = self.longest.max(took);
        *trips.l1_exits.entry(l1_exits.len() as u32).or_default() += 1;
        // From L2's exit, and from each of L1's, L0 works until the next entry; then L1 runs until its next exit.
        let mut l0 = exit.next_entry.saturating_sub(exit.time);
        let (mut l1_time, mut entered, mut last) = (0, exit.next_entry, 0);
        for l1 in l1_exits {
            l1_time += l1.time.saturating_sub(entered);
            l0 += last;
            last = l1.next_entry.saturating_sub(l1.time);
            entered = l1.next_entry;
            if let Some(what) = l1.what {
                *trips.which.entry(what).or_default() += 1;
            }
        }
        trips.l0_time += l0;
        trips.l1_time += l1_time;
        trips.reentry_time += last;
    }
}

#[cfg(test)]
mod tests;
