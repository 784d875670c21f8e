// SPDX-License-Identifier: MIT
//! How many exits there were when, in memory that does not grow with the time.

use exitregs_common::isa::Level;

/// Twice as many places as are shown at most: when they are used up, two become one.
const PLACES: u64 = 128;
/// The narrowest place is so many bits of nanoseconds wide: 1 ms.
const FIRST_SHIFT: u32 = 20;

/// Counts of exits by time and level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// A place is `1 << shift` nanoseconds.
    shift: u32,
    /// Of the first place, its time shifted by `shift`.
    first: u64,
    /// At L1 and at L2.
    counts: Vec<[u64; 2]>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { shift: FIRST_SHIFT, first: 0, counts: Vec::new() }
    }
}

impl Timeline {
    /// Counts an exit.
    #[inline]
    pub fn record(&mut self, time: u64, level: Level) {
        let level = usize::from(level == Level::L2);
        // Nearly always its place is there.
        let place = (time >> self.shift).wrapping_sub(self.first);
        match self.counts.get_mut(place as usize) {
            Some(counts) => counts[level] += 1,
            None => self.count(time, level, 1),
        }
    }

    fn count(&mut self, time: u64, level: usize, count: u64) {
        let place = self.place(time);
        self.counts[place][level] += count;
    }

    /// The place of a time, after making room for it.
    fn place(&mut self, time: u64) -> usize {
        if self.counts.is_empty() {
            self.first = time >> self.shift;
        }
        loop {
            let at = time >> self.shift;
            let (first, end) = (self.first.min(at), (self.first + self.counts.len() as u64).max(at + 1));
            if end - first <= PLACES {
                let before = (self.first - first) as usize;
                self.counts.splice(0..0, std::iter::repeat_n([0; 2], before));
                self.counts.resize((end - first) as usize, [0; 2]);
                self.first = first;
                return (at - first) as usize;
            }
            self.coarsen();
        }
    }

    /// Makes places twice as wide.
    fn coarsen(&mut self) {
        let mut counts: Vec<[u64; 2]> = Vec::with_capacity(self.counts.len() / 2 + 1);
        let first = self.first / 2;
        for (at, count) in (self.first..).zip(&self.counts) {
            let place = (at / 2 - first) as usize;
            counts.resize(counts.len().max(place + 1), [0; 2]);
            counts[place][0] += count[0];
            counts[place][1] += count[1];
        }
        (self.shift, self.first, self.counts) = (self.shift + 1, first, counts);
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        while self.shift < other.shift {
            self.coarsen();
        }
        for (at, count) in (other.first..).zip(&other.counts) {
            for (level, count) in count.iter().enumerate().filter(|(_, count)| **count > 0) {
                self.count(at << other.shift, level, *count);
            }
        }
    }

    /// How long a place is, in nanoseconds.
    pub fn width(&self) -> u64 {
        1 << self.shift
    }

    /// When the first place begins, in nanoseconds.
    pub fn begin(&self) -> u64 {
        self.first << self.shift
    }

    /// The counts of each place, at L1 and at L2.
    pub fn counts(&self) -> &[[u64; 2]] {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_the_order(times in prop::collection::vec(0u64..1 << 50, 1..300), split in 0usize..300) {
            let split = split.min(times.len());
            let [mut one, mut other, mut all] = [(); 3].map(|()| Timeline::default());
            times[..split].iter().for_each(|time| one.record(*time, Level::L1));
            times[split..].iter().for_each(|time| other.record(*time, Level::L2));
            times.iter().for_each(|time| all.record(*time, Level::L1));
            one.add(&other);
            prop_assert!(one.counts().len() <= PLACES as usize);
            let sum = |level: usize| one.counts().iter().map(|count| count[level]).sum::<u64>();
            prop_assert_eq!((sum(0), sum(1)), (split as u64, (times.len() - split) as u64));
            prop_assert_eq!((one.width(), one.begin()), (all.width(), all.begin()));
            for (place, count) in all.counts().iter().enumerate() {
                let from = all.begin() + place as u64 * all.width();
                let here = times.iter().filter(|time| (from..from + all.width()).contains(*time)).count();
                prop_assert_eq!(count[0], here as u64);
                prop_assert_eq!(one.counts()[place].iter().sum::<u64>(), here as u64);
            }
        }
    }
}
