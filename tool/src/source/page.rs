// SPDX-License-Identifier: MIT
//! Pages of ftrace's ring buffer, as `trace_pipe_raw` gives them.
//!
//! Source: `include/linux/ring_buffer.h` and `kernel/trace/ring_buffer.c` in Linux. A page says where its events begin
//! in time, how many bytes they take, and whether events before it were overwritten. An event is a 32-bit header (5 bits
//! of type or length, 27 bits of time since the event before it) and data that is a multiple of 4 bytes long.

use super::format::{FormatError, Place, fields, find};

/// Header values up to this are the data's length in units of 4 bytes; 0: the length is in a word of its own.
const DATA_TYPE_MAX: u32 = 28;
const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;
/// Bits of time in an event's header.
const DELTA_BITS: u32 = 27;
/// Bits of an absolute time stamp; those above are as in the time before.
const ABSOLUTE_BITS: u32 = 59;

/// In the page's `commit`: events before this page were overwritten.
const MISSED_EVENTS: u64 = 1 << 31;
/// In the page's `commit`: how many is stored behind the last event.
const MISSED_STORED: u64 = 1 << 30;

/// Where the parts of a page lie: `events/header_page` in tracefs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFormat {
    timestamp: Place,
    commit: Place,
    data: Place,
}

impl PageFormat {
    /// Parses the text of `header_page`.
    ///
    /// # Errors
    /// A field is missing, or a line makes no sense.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let fields = fields(text)?;
        let place = |name| find(&fields, name).ok_or(FormatError::Missing(name));
        Ok(Self { timestamp: place("timestamp")?, commit: place("commit")?, data: place("data")? })
    }

    /// Where in a page its events begin.
    pub fn header(&self) -> usize {
        self.data.offset
    }

    /// Bytes of a page.
    pub fn size(&self) -> usize {
        self.data.offset.saturating_add(self.data.size)
    }
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It is shorter than its header.
    #[error("it ends within its header")]
    NoHeader,
    /// Its events would reach past its end.
    #[error("its events take {0} bytes, which it does not have")]
    TooLong(u64),
    /// An event would reach past the last one's end.
    #[error("the event at byte {0} does not end where it should")]
    Event(usize),
}

/// A page.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The time from which the first event counts.
    pub time: u64,
    /// How many events before it were overwritten; `Some(0)`: some, and the page does not say how many.
    pub lost: Option<u64>,
    data: &'a [u8],
}

impl<'a> Page<'a> {
    /// Takes the header of a page apart.
    ///
    /// # Errors
    /// The page contradicts itself.
    pub fn parse(bytes: &'a [u8], format: &PageFormat) -> Result<Self, PageError> {
        let header = format.timestamp.read(bytes).zip(format.commit.read(bytes));
        let (time, commit) = header.ok_or(PageError::NoHeader)?;
        // The flags are in the low half, of which the upper half of a signed long may be a copy.
        let length = commit & u64::from(u32::MAX) & !(MISSED_EVENTS | MISSED_STORED);
        let data = bytes.get(format.data.offset..).ok_or(PageError::NoHeader)?;
        let events = data.get(..length as usize).ok_or(PageError::TooLong(length))?;
        let lost = (commit & MISSED_EVENTS != 0).then(|| {
            let stored = Place { offset: length as usize, size: 8 };
            let count = (commit & MISSED_STORED != 0).then(|| stored.read(data)).flatten();
            // The kernel writes -1 where it does not know.
            count.filter(|count| *count != u64::MAX).unwrap_or(0)
        });
        Ok(Self { time, lost, data: events })
    }

    /// Its events, from the first; ends after the first error.
    pub fn events(&self) -> Events<'a> {
        Events { data: self.data, position: 0, time: self.time }
    }
}

/// The events of a page: time and record.
#[derive(Debug, Clone)]
pub struct Events<'a> {
    data: &'a [u8],
    position: usize,
    time: u64,
}

impl<'a> Events<'a> {
    /// Where the last event ended, counted from the page's [header](PageFormat::header).
    pub fn position(&self) -> usize {
        self.position
    }

    #[inline]
    fn word(&self, at: usize) -> Option<u32> {
        self.data.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
    }

    /// Steps over one header and its data, which is returned if it is a record's.
    fn step(&mut self) -> Option<Option<&'a [u8]>> {
        let header = self.word(self.position)?;
        let (kind, delta) = (header & 0x1f, u64::from(header >> 5));
        let body = self.position + 4;
        let (skip, length, is_record) = match kind {
            // The rest of the page is empty.
            PADDING if delta == 0 => (0, self.data.len() - body, false),
            PADDING => (0, self.word(body)? as usize, false),
            TIME_EXTEND | TIME_STAMP => (4, 0, false),
            // The length counts its own word.
            0 => (4, (self.word(body)? as usize).checked_sub(4)?.checked_next_multiple_of(4)?, true),
            1..=DATA_TYPE_MAX => (0, 4 * kind as usize, true),
            _ => return None,
        };
        match kind {
            TIME_EXTEND => {
                let extension = u64::from(self.word(body)?) << DELTA_BITS;
                self.time = self.time.wrapping_add(extension | delta);
            }
            TIME_STAMP => self.time = absolute(u64::from(self.word(body)?) << DELTA_BITS | delta, self.time),
            // A discarded event whose time was its predecessor's has 1 instead, so as not to end the page.
            PADDING if delta == 1 => {}
            _ => self.time = self.time.wrapping_add(delta),
        }
        let start = body + skip;
        let end = start.checked_add(length)?;
        let data = self.data.get(start..end)?;
        self.position = end;
        Some(is_record.then_some(data))
    }
}

/// A time stamp with the bits that it lacks, from a `before` that is not after it: `rb_fix_abs_ts()`.
fn absolute(stamp: u64, before: u64) -> u64 {
    let above = before >> ABSOLUTE_BITS << ABSOLUTE_BITS;
    let time = stamp & !(u64::MAX << ABSOLUTE_BITS) | above;
    if above != 0 && time < before { time.wrapping_add(1 << ABSOLUTE_BITS) } else { time }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<(u64, &'a [u8]), PageError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.position < self.data.len() {
            let at = self.position;
            match self.step() {
                Some(Some(record)) => return Some(Ok((self.time, record))),
                Some(None) => {}
                None => {
                    self.position = self.data.len();
                    return Some(Err(PageError::Event(at)));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER_PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\
        \tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n\
        \tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n\
        \tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n";

    fn format() -> PageFormat {
        PageFormat::parse(HEADER_PAGE).unwrap()
    }

    /// What a writer puts on a page.
    #[derive(Debug, Clone)]
    enum Item {
        Record { after: u64, words: Vec<u32> },
        Discarded { after: u64, words: usize },
        Absolute { time: u64 },
    }

    fn header(kind: u32, delta: u64) -> [u8; 4] {
        (kind | (delta as u32) << 5).to_ne_bytes()
    }

    /// A page of these items, written as the kernel does, and the records that a reader must find.
    fn write(start: u64, items: &[Item], flags: u64, count: Option<u64>) -> (Vec<u8>, Vec<(u64, Vec<u8>)>) {
        let (mut data, mut time, mut records) = (Vec::new(), start, Vec::new());
        for item in items {
            match item {
                Item::Record { after, words } => {
                    time += after;
                    let mut delta = *after;
                    if delta >> DELTA_BITS != 0 {
                        data.extend(header(TIME_EXTEND, delta & ((1 << DELTA_BITS) - 1)));
                        data.extend(((delta >> DELTA_BITS) as u32).to_ne_bytes());
                        delta = 0;
                    }
                    if (1..=DATA_TYPE_MAX as usize).contains(&words.len()) {
                        data.extend(header(words.len() as u32, delta));
                    } else {
                        data.extend(header(0, delta));
                        data.extend((4 * words.len() as u32 + 4).to_ne_bytes());
                    }
                    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                    data.extend(&bytes);
                    records.push((time, bytes));
                }
                Item::Discarded { after, words } => {
                    data.extend(header(PADDING, (*after).max(1)));
                    data.extend((4 * (*words as u32 + 1)).to_ne_bytes());
                    data.extend(vec![0xaa; 4 * words]);
                    time += if *after == 1 { 0 } else { *after };
                }
                Item::Absolute { time: now } => {
                    time = *now;
                    data.extend(header(TIME_STAMP, now & ((1 << DELTA_BITS) - 1)));
                    data.extend((((now & ((1 << ABSOLUTE_BITS) - 1)) >> DELTA_BITS) as u32).to_ne_bytes());
                }
            }
        }
        let mut page = start.to_ne_bytes().to_vec();
        page.extend((data.len() as u64 | flags).to_ne_bytes());
        page.extend(&data);
        page.extend(count.iter().flat_map(|count| count.to_ne_bytes()));
        page.resize(page.len().max(4096), 0);
        (page, records)
    }

    fn read(page: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let page = Page::parse(page, &format()).unwrap();
        page.events().map(|event| event.map(|(time, record)| (time, record.to_vec())).unwrap()).collect()
    }

    fn item() -> impl Strategy<Value = Item> {
        let after = || prop_oneof![0u64..1000, 0u64..1 << 40];
        prop_oneof![
            6 => (after(), prop::collection::vec(any::<u32>(), 0..40))
                .prop_map(|(after, words)| Item::Record { after, words }),
            1 => (0u64..1 << DELTA_BITS, 0usize..10).prop_map(|(after, words)| Item::Discarded { after, words }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(start in 0u64..1 << 50, items in prop::collection::vec(item(), 0..20)) {
            let (page, records) = write(start, &items, 0, None);
            prop_assert_eq!(read(&page), records);
            prop_assert_eq!(Page::parse(&page, &format()).unwrap().lost, None);
        }

        #[test]
        fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0u64..300) {
            let mut page = bytes;
            if let Some(commit) = page.get_mut(8..16) {
                commit.copy_from_slice(&length.to_ne_bytes());
            }
            if let Ok(page) = Page::parse(&page, &format()) {
                let mut end = 0;
                for event in page.events() {
                    end += event.map_or(1, |(_, record)| record.len() + 4);
                }
                prop_assert!(end <= length as usize + 4, "more events than bytes");
            }
        }

        #[test]
        fn a_page_that_was_changed_is_read_or_refused(
            items in prop::collection::vec(item(), 1..20), at in 0usize..600, with in any::<u8>(), cut in 0usize..4096,
        ) {
            let (mut page, _) = write(1, &items, 0, None);
            let at = at % page.len();
            page[at] = with;
            for bytes in [&page[..], &page[..cut]] {
                if let Ok(page) = Page::parse(bytes, &format()) {
                    let errors = page.events().filter(Result::is_err).count();
                    prop_assert!(errors <= 1);
                }
            }
        }
    }

    #[test]
    fn overwritten_events_are_told() {
        let lost = |flags, count| Page::parse(&write(5, &[], flags, count).0, &format()).unwrap().lost;
        assert_eq!(lost(0, Some(7)), None);
        assert_eq!(lost(MISSED_EVENTS, None), Some(0));
        assert_eq!(lost(MISSED_EVENTS | MISSED_STORED, Some(7)), Some(7));
        assert_eq!(lost(MISSED_EVENTS | MISSED_STORED, Some(u64::MAX)), Some(0));
        // The kernel's flag is an int that was made a long.
        assert_eq!(lost(MISSED_EVENTS | 0xffff_ffff_0000_0000, None), Some(0));
    }

    #[test]
    fn the_rest_of_a_page_may_be_padding() {
        let items = [Item::Record { after: 3, words: vec![1, 2] }];
        let (mut page, records) = write(100, &items, 0, None);
        let end = 16 + 12;
        page[end..end + 4].copy_from_slice(&header(PADDING, 0));
        page[8..16].copy_from_slice(&200u64.to_ne_bytes());
        assert_eq!(read(&page), records);
    }

    #[test]
    fn absolute_times_keep_the_bits_above() {
        let items = |time| [Item::Absolute { time }, Item::Record { after: 1, words: vec![9] }];
        for (start, time) in
            [(0, 12345), (1 << 60 | 5, 1 << 60 | 77), ((1 << 60) - 1, 1 << 60 | 1), (1 << 40, 1 << 45)]
        {
            let (page, records) = write(start, &items(time), 0, None);
            assert_eq!(records[0].0, time + 1);
            assert_eq!(read(&page), records, "{start:#x} to {time:#x}");
        }
    }

    #[test]
    fn pages_that_contradict_themselves_are_refused() {
        assert_eq!(Page::parse(&[0; 15], &format()).unwrap_err(), PageError::NoHeader);
        let (mut page, _) = write(0, &[], 0, None);
        page[8..16].copy_from_slice(&4081u64.to_ne_bytes());
        assert_eq!(Page::parse(&page, &format()).unwrap_err(), PageError::TooLong(4081));
        let (mut page, _) = write(0, &[Item::Record { after: 0, words: vec![1] }], 0, None);
        page[16..20].copy_from_slice(&header(2, 0));
        let events: Vec<_> = Page::parse(&page, &format()).unwrap().events().collect();
        assert_eq!(events, [Err(PageError::Event(0))]);
    }

    #[test]
    fn a_page_is_as_long_as_header_page_says() {
        assert_eq!(format().size(), 4096);
        assert!(matches!(
            PageFormat::parse("\tfield: u64 timestamp;\toffset:0;\tsize:8;"),
            Err(FormatError::Missing("commit"))
        ));
    }
}
