// SPDX-License-Identifier: MIT
//! Counts and times of exits.

use exitregs_common::detail::Detail;
use exitregs_common::event::Exit;
use exitregs_common::isa::{Isa, Level};
use std::collections::HashMap;

/// Buckets of a time's histogram; `STAT_BUCKETS` of tool/bpf/stat.h. They are the kernel's, not hdrhistogram's: what was
/// counted live and what a file amounts to have the same percentiles, and a row takes a kilobyte, not tens.
pub const BUCKETS: usize = 106;
/// The first bucket takes times below `1 << FIRST_SHIFT` nanoseconds; each power of two above has four.
const FIRST_SHIFT: u32 = 6;

/// What is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The VM, by the VMM's pid.
    pub vm: u32,
    /// The vCPU, where it was asked for.
    pub vcpu: Option<u32>,
    /// Who ran.
    pub level: Level,
    /// What `exit_reason` is a number of.
    pub isa: Isa,
    /// The exit reason with its flag bits.
    pub exit_reason: u32,
    /// MSR, hypercall, CPUID leaf or port.
    pub detail: Detail,
}

impl Key {
    /// Under which `exit` is counted; `None` if its instruction set is none that there is.
    pub fn of(exit: &Exit, per_vcpu: bool) -> Option<Self> {
        Some(Self {
            vm: exit.tgid,
            vcpu: per_vcpu.then_some(exit.exit.vcpu_id),
            level: Level::from_is_nested(exit.exit.is_nested),
            isa: Isa::from_field(exit.exit.isa)?,
            exit_reason: exit.exit.exit_reason,
            detail: Detail::of(exit),
        })
    }
}

/// Counts and times by key.
pub type Table = HashMap<Key, Times>;

/// How many exits, and how long until the vCPU was entered again; nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// Exits that ended.
    pub count: u64,
    /// Exits after which the vCPU was not entered.
    pub unended: u64,
    /// The sum.
    pub total: u64,
    /// The shortest; 0 if none ended.
    pub min: u64,
    /// The longest.
    pub max: u64,
    /// How many in each bucket.
    pub buckets: [u64; BUCKETS],
}

impl Default for Times {
    fn default() -> Self {
        Self { count: 0, unended: 0, total: 0, min: 0, max: 0, buckets: [0; BUCKETS] }
    }
}

/// The bounds of a bucket, in nanoseconds: from the first, below the second.
fn bounds(bucket: usize) -> (u64, u64) {
    if bucket == 0 {
        return (0, 1 << FIRST_SHIFT);
    }
    let (exponent, quarter) = ((bucket - 1) / 4, (bucket - 1) % 4);
    let quarter_width = 1 << (FIRST_SHIFT as usize - 2 + exponent);
    let low = (4 + quarter as u64) * quarter_width;
    (low, low + quarter_width)
}

/// The bucket of a time: what is longer than all is in the last.
fn bucket(time: u64) -> usize {
    if time < 1 << FIRST_SHIFT {
        return 0;
    }
    let exponent = time.ilog2();
    let quarter = (time >> (exponent - 2)) as usize & 3;
    (1 + (exponent - FIRST_SHIFT) as usize * 4 + quarter).min(BUCKETS - 1)
}

impl Times {
    /// Every exit, ended or not.
    pub fn exits(&self) -> u64 {
        self.count + self.unended
    }

    /// Adds the exits of `other`.
    pub fn add(&mut self, other: &Self) {
        if other.count > 0 {
            self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
            self.max = self.max.max(other.max);
        }
        self.count += other.count;
        self.unended += other.unended;
        self.total += other.total;
        for (sum, bucket) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += bucket;
        }
    }

    /// Adds one exit that took `time`.
    pub fn record(&mut self, time: u64) {
        self.min = if self.count == 0 { time } else { self.min.min(time) };
        self.max = self.max.max(time);
        self.count += 1;
        self.total += time;
        self.buckets[bucket(time)] += 1;
    }

    /// What came since an `earlier` reading. The shortest and longest are known to their bucket.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = Self {
            count: self.count - earlier.count,
            unended: self.unended - earlier.unended,
            total: self.total - earlier.total,
            ..Self::default()
        };
        for (index, bucket) in difference.buckets.iter_mut().enumerate() {
            *bucket = self.buckets[index] - earlier.buckets[index];
        }
        let mut filled = difference.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        if let Some((first, _)) = filled.next() {
            let last = filled.next_back().map_or(first, |(last, _)| last);
            difference.min = bounds(first).0.max(self.min);
            difference.max = (bounds(last).1 - 1).min(self.max);
        }
        difference
    }

    /// The mean; 0 if none ended.
    pub fn mean(&self) -> u64 {
        self.total.checked_div(self.count).unwrap_or(0)
    }

    /// The time that `percent` of the exits did not exceed, interpolated within its bucket (an eighth
    /// of the time wide at most); 0 if none ended.
    pub fn percentile(&self, percent: f64) -> u64 {
        let wanted = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut below = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            if below + count >= wanted {
                let (low, high) = bounds(index);
                let within = (wanted - below) as f64 / count as f64;
                let time = low + ((high - low) as f64 * within) as u64;
                return time.clamp(self.min, self.max);
            }
            below += count;
        }
        self.max
    }
}

/// What came in `now` since `earlier`, without keys to which nothing came.
pub fn since(now: &Table, earlier: &Table) -> Table {
    let none = Times::default();
    now.iter()
        .map(|(key, times)| (*key, times.since(earlier.get(key).unwrap_or(&none))))
        .filter(|(_, times)| times.exits() > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(of: &[u64]) -> Times {
        let mut times = Times::default();
        of.iter().for_each(|time| times.record(*time));
        times
    }

    #[test]
    fn buckets_follow_each_other() {
        assert_eq!(bounds(0), (0, 64));
        for bucket in 1..BUCKETS {
            assert_eq!(bounds(bucket).0, bounds(bucket - 1).1, "bucket {bucket}");
        }
        for of in 0..BUCKETS {
            let (from, below) = bounds(of);
            assert_eq!((bucket(from), bucket(below - 1)), (of, of));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_has_no_times() {
        let none = Times::default();
        assert_eq!((none.mean(), none.percentile(50.0), none.min, none.max), (0, 0, 0, 0));
    }

    proptest! {
        #[test]
        fn percentiles_are_within_their_bucket(mut of in prop::collection::vec(0u64..5_000_000_000, 1..200), percent in 1u32..=100) {
            let times = times(&of);
            of.sort_unstable();
            let exact = of[(of.len() * percent as usize).div_ceil(100) - 1];
            let shown = times.percentile(f64::from(percent));
            prop_assert!(shown >= times.min && shown <= times.max);
            prop_assert!(shown.abs_diff(exact) <= (exact / 4).max(64), "{} for {}", shown, exact);
        }

        #[test]
        fn what_came_since_adds_up(before in prop::collection::vec(0u64..1_000_000, 0..50), after in prop::collection::vec(0u64..1_000_000, 1..50)) {
            let earlier = times(&before);
            let mut now = earlier.clone();
            now.add(&times(&after));
            let since = now.since(&earlier);
            prop_assert_eq!(since.count, after.len() as u64);
            prop_assert_eq!(since.total, after.iter().sum::<u64>());
            let (min, max) = (*after.iter().min().unwrap(), *after.iter().max().unwrap());
            prop_assert!(since.min <= min && since.max >= max);
            prop_assert!(since.max <= (max + max / 4).max(64));
        }
    }
}
