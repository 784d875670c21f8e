// SPDX-License-Identifier: MIT
//! What the records of a file say, by the `format` descriptions that the file has.

use super::Description;
use crate::analysis::pairing::Occurrence;
use crate::source::decode::Decoder;
use crate::source::format::{Column, Format};
use exitregs_common::event::{GROUP, HEADER_SIZE};
use std::num::NonZero;

/// The systems whose events are read: where a file has the same event of both, only that of the first, which has
/// registers.
pub const SYSTEMS: [&str; 2] = [GROUP, "kvm"];

/// How the records of a file's events are read, by what stands in their headers.
#[derive(Debug, Default)]
pub struct Decoders {
    decoders: Vec<Known>,
    /// By `common_type`.
    kinds: Vec<Kind>,
    /// Where in a header, if there is a decoder.
    kind: Column,
    thread: Column,
}

#[derive(Debug)]
struct Known {
    decoder: Decoder,
    /// What the event does not tell.
    unknown: u32,
}

/// How records of a type are read.
#[derive(Debug, Clone, Copy, Default)]
struct Kind {
    /// The number of the decoder, if they are.
    decoder: Option<NonZero<u8>>,
    /// Bytes that a record has at least.
    length: usize,
}

/// A record that can be read.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// The number of its decoder, from 1.
    pub decoder: NonZero<u8>,
    /// The low bits of the pid of its thread.
    pub thread: u16,
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
            let header = |name| Column::new(format.place(name)?, HEADER_SIZE);
            let Some((kind, thread)) = header("common_type").zip(header("common_pid")) else { continue };
            (decoders.kind, decoders.thread) = (kind, thread);
            let unknown = decoder.absent();
            match &decoder {
                Decoder::Exit(_) => description.unknown.exit = unknown,
                Decoder::Entry(_) => description.unknown.entry = unknown,
                Decoder::NestedExit { .. } => description.nested_exits = true,
                Decoder::NestedExitInject { .. } => description.nested_exit_causes = true,
                _ => {}
            }
            description.events.push(format!("{}:{}", SYSTEMS[rank], format.name));
            decoders.decoders.push(Known { decoder, unknown });
            let id = usize::from(format.id);
            if decoders.kinds.len() <= id {
                decoders.kinds.resize(id + 1, Kind::default());
            }
            let length = format.length().max(HEADER_SIZE);
            decoders.kinds[id] = Kind { decoder: NonZero::new(decoders.decoders.len() as u8), length };
        }
        decoders
    }

    /// How a record is read. `Some(None)`: the event is not read. `None`: the record is too short for what it is.
    #[inline]
    pub fn find(&self, record: &[u8]) -> Option<Option<Found>> {
        let header = record.get(..HEADER_SIZE)?;
        match self.kinds.get(self.kind.read(header) as usize) {
            Some(Kind { decoder: Some(decoder), length }) => {
                let thread = self.thread.read(header) as u16;
                (record.len() >= *length).then_some(Some(Found { decoder: *decoder, thread }))
            }
            _ => Some(None),
        }
    }

    #[inline]
    fn known(&self, number: NonZero<u8>) -> Option<&Known> {
        self.decoders.get(usize::from(number.get()) - 1)
    }

    /// What a record says, by the decoder of that number; the process `tgid` is 0 if it is unknown. `None` if the decoder
    /// was not [found](Self::find) for it.
    #[inline(always)]
    pub fn decode(&self, number: NonZero<u8>, record: &[u8], time: u64, tgid: u32) -> Option<Occurrence> {
        let Known { decoder, unknown } = self.known(number)?;
        let thread = self.thread.read(record.get(..HEADER_SIZE)?) as u32;
        Some(Occurrence { time, thread, tgid, unknown: *unknown, what: decoder.decode(record)? })
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.decoders.is_empty()
    }
}
