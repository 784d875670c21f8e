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
    decoders: Vec<(Decoder, u32)>,
    /// By `common_type`: the place of its decoder, counted from 1.
    places: Vec<u8>,
    kind: Option<Place>,
    thread: Option<Place>,
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
            decoders.kind = decoders.kind.or(format.place("common_type"));
            decoders.thread = decoders.thread.or(format.place("common_pid"));
            let unknown = decoder.absent();
            match &decoder {
                Decoder::Exit(_) => description.unknown.exit = unknown,
                Decoder::Entry(_) => description.unknown.entry = unknown,
                Decoder::NestedExit { .. } => description.nested_exits = true,
                Decoder::NestedExitInject { .. } => description.nested_exit_causes = true,
                _ => {}
            }
            description.events.push(format!("{}:{}", SYSTEMS[rank], format.name));
            decoders.decoders.push((decoder, unknown));
            let id = usize::from(format.id);
            if decoders.places.len() <= id {
                decoders.places.resize(id + 1, 0);
            }
            decoders.places[id] = decoders.decoders.len() as u8;
        }
        decoders
    }

    /// Whether a record is of an event that is read.
    #[inline]
    pub fn reads(&self, record: &[u8]) -> bool {
        self.decoder(record).is_some()
    }

    #[inline]
    fn decoder(&self, record: &[u8]) -> Option<&(Decoder, u32)> {
        let kind = self.kind?.read(record)? as usize;
        let place = usize::from(self.places.get(kind).copied().unwrap_or(0));
        self.decoders.get(place.checked_sub(1)?)
    }

    /// What a record of this time says; the process `tgid` is 0 if it is unknown. `Some(None)`: an event that is not read.
    /// `None`: it is too short for what it is.
    #[inline]
    pub fn decode(&self, record: &[u8], time: u64, tgid: u32) -> Option<Option<Occurrence>> {
        let (Some((decoder, unknown)), Some(thread)) = (self.decoder(record), self.thread) else {
            return Some(None);
        };
        let (thread, unknown) = (thread.read(record)? as u32, *unknown);
        Some(Some(Occurrence { time, thread, tgid, unknown, what: decoder.decode(record)? }))
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.decoders.is_empty()
    }
}
