// SPDX-License-Identifier: MIT
//! What the records of a file say, by the `format` descriptions that the file has.

use super::Description;
use crate::analysis::pairing::Occurrence;
use crate::source::decode::Decoder;
use crate::source::format::{Format, Place};
use exitregs_common::event::GROUP;

/// The systems whose events are read: where a file has the same event of both, only that of the first, which has
/// registers.
pub const SYSTEMS: [&str; 2] = [GROUP, "kvm"];

/// How the records of a file's events are read, by what stands in their headers.
#[derive(Debug, Default)]
pub struct Decoders {
    decoders: Vec<Known>,
    /// By `common_type`: the number of its decoder, from 1.
    numbers: Vec<u8>,
    kind: Option<Place>,
    thread: Option<Place>,
}

#[derive(Debug)]
struct Known {
    decoder: Decoder,
    /// What the event does not tell.
    unknown: u32,
    /// Bytes of its records.
    length: usize,
}

impl Decoders {
    /// Those of the events that a file describes: each with its system and the text of its `format`. What is known of
    /// them goes into `description`. A description that makes no sense, or is of no event that is read, is left out.
    pub fn new<'a>(formats: impl Iterator<Item = (&'a str, &'a str)>, description: &mut Description) -> Self {
        let mut found: Vec<(usize, Format, Decoder)> = Vec::new();
        for (system, text) in formats {
            let Some(rank) = SYSTEMS.iter().position(|known| *known == system) else { continue };
            let Ok(format) = Format::parse(text) else { continue };
            let Ok(Some(decoder)) = Decoder::of(&format) else { continue };
            match found.iter_mut().find(|(_, same, _)| same.name == format.name) {
                Some(same) if same.0 <= rank => {}
                Some(same) => *same = (rank, format, decoder),
                None => found.push((rank, format, decoder)),
            }
        }
        let mut decoders = Self::default();
        for (rank, format, decoder) in found {
            let number = |name| format.number(name).ok().flatten();
            decoders.kind = decoders.kind.or(number("common_type"));
            decoders.thread = decoders.thread.or(number("common_pid"));
            let unknown = decoder.absent();
            match &decoder {
                Decoder::Exit(_) => description.unknown.exit = unknown,
                Decoder::Entry(_) => description.unknown.entry = unknown,
                Decoder::NestedExit { .. } => description.nested_exits = true,
                Decoder::NestedExitInject { .. } => description.nested_exit_causes = true,
                _ => {}
            }
            description.events.push(format!("{}:{}", SYSTEMS[rank], format.name));
            decoders.decoders.push(Known { decoder, unknown, length: format.length() });
            let id = usize::from(format.id);
            if decoders.numbers.len() <= id {
                decoders.numbers.resize(id + 1, 0);
            }
            decoders.numbers[id] = decoders.decoders.len() as u8;
        }
        decoders
    }

    /// The number of a record's decoder. `Some(None)`: the event is not read. `None`: the record is too short for what it is.
    #[inline]
    pub fn find(&self, record: &[u8]) -> Option<Option<u8>> {
        let kind = self.kind.and_then(|kind| kind.read(record));
        let number = kind.and_then(|kind| self.numbers.get(kind as usize)).copied();
        match number.and_then(|number| self.known(number)) {
            Some(known) => (record.len() >= known.length).then_some(number),
            None => Some(None),
        }
    }

    /// The low bits of the pid of a record's thread.
    #[inline]
    pub fn thread(&self, record: &[u8]) -> u16 {
        self.thread.and_then(|thread| thread.read(record)).unwrap_or(0) as u16
    }

    #[inline]
    fn known(&self, number: u8) -> Option<&Known> {
        self.decoders.get(usize::from(number).checked_sub(1)?)
    }

    /// What a record says, by the decoder of that number; the process `tgid` is 0 if it is unknown. `None` if the decoder
    /// was not [found](Self::find) for it.
    #[inline]
    pub fn decode(&self, number: u8, record: &[u8], time: u64, tgid: u32) -> Option<Occurrence> {
        let Known { decoder, unknown, .. } = self.known(number)?;
        let thread = self.thread?.read(record)? as u32;
        Some(Occurrence { time, thread, tgid, unknown: *unknown, what: decoder.decode(record)? })
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.decoders.is_empty()
    }
}
