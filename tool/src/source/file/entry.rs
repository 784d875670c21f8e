// SPDX-License-Identifier: MIT
//! What is sorted and merged instead of records: when they were made and where they are.

use super::decode::Found;
use std::num::NonZero;

/// A record, or a gap. There is one for each event of a file: it is as small as it can be.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Nanoseconds.
    pub time: u64,
    /// Of a record where it begins and its process; of a gap the low and the high half of its end.
    words: [u32; 2],
    /// Of a record the place of its block; of a gap how many events were lost.
    block: u32,
    thread: u16,
    /// Of a record.
    decoder: Option<NonZero<u8>>,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A record that is as long as its decoder wants.
    Record {
        /// The number of its decoder, from [`Decoders::find`](super::decode::Decoders::find).
        decoder: NonZero<u8>,
        /// The process; 0 if unknown.
        tgid: u32,
        /// The block's place among those of whoever has the entry.
        block: u32,
        /// Where in the block the record begins.
        start: u32,
    },
    /// A [`Gap`](crate::analysis::pairing::What::Gap).
    Gap {
        /// To this time.
        until: u64,
        /// How many events.
        lost: u32,
    },
}

impl Entry {
    /// A record that was found, of the process `tgid`, from `start` of a block whose place is to be [set](Self::block).
    #[inline]
    pub fn record(time: u64, found: Found, tgid: u32, start: u32) -> Self {
        let Found { decoder, thread } = found;
        Self { time, words: [start, tgid], block: 0, thread, decoder: Some(decoder) }
    }

    /// Between these times so many events were lost.
    pub fn gap(time: u64, until: u64, lost: u64) -> Self {
        let words = [until as u32, (until >> 32) as u32];
        Self { time, words, block: lost.try_into().unwrap_or(u32::MAX), thread: 0, decoder: None }
    }

    /// What it is.
    #[inline]
    pub fn kind(&self) -> Kind {
        let Self { words: [low, high], block, decoder, .. } = *self;
        match decoder {
            Some(decoder) => Kind::Record { decoder, tgid: high, block, start: low },
            None => Kind::Gap { until: u64::from(high) << 32 | u64::from(low), lost: block },
        }
    }

    /// The place of a record's block.
    #[inline]
    pub fn block(&mut self) -> Option<&mut u32> {
        self.decoder.is_some().then_some(&mut self.block)
    }

    /// The same with its block behind so many others.
    #[inline]
    pub fn behind(mut self, blocks: u32) -> Self {
        self.block += if self.decoder.is_some() { blocks } else { 0 };
        self
    }

    /// The low bits of the pid of a record's thread.
    #[inline]
    pub fn thread(&self) -> Option<u16> {
        self.decoder.is_some().then_some(self.thread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_it_was_made_of() {
        let decoder = NonZero::new(7).unwrap();
        let found = Found { decoder, thread: 0xfffe };
        let mut record = Entry::record(5, found, u32::MAX, 99);
        *record.block().unwrap() = 3;
        let (kind, thread) = (record.kind(), record.thread());
        assert_eq!(kind, Kind::Record { decoder, tgid: u32::MAX, block: 3, start: 99 });
        assert_eq!((record.time, thread), (5, Some(0xfffe)));
        let mut gap = Entry::gap(6, 1 << 63 | 8, 1 << 40);
        assert_eq!(gap.kind(), Kind::Gap { until: 1 << 63 | 8, lost: u32::MAX });
        assert_eq!((gap.time, gap.thread(), gap.block()), (6, None, None));
        assert_eq!(size_of::<Entry>(), 24);
    }
}
