// SPDX-License-Identifier: MIT
//! What makes a ring write: something that took longer than it should, or lost events.

use crate::analysis::batch::Batch;
use crate::analysis::nested::Nested;
use crate::analysis::pairing::Record;
use crate::commands::duration;
use crate::output::style;
use crate::output::table::is_halt_reason;
use std::str::FromStr;
use std::time::Duration;

/// A condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A vCPU was not entered for longer, after an exit that was no halt.
    Exit(Duration),
    /// A nested round trip took longer.
    NestedRoundTrip(Duration),
    /// Events were lost.
    Lost,
}

impl FromStr for Trigger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["lost"] => Ok(Self::Lost),
            ["exit", ">", time] => Ok(Self::Exit(duration(time)?)),
            ["nested", "round", "trip", ">", time] => Ok(Self::NestedRoundTrip(duration(time)?)),
            _ => Err("expected 'exit > TIME', 'nested round trip > TIME' or 'lost'".to_owned()),
        }
    }
}

/// Conditions, any of which triggers.
pub(super) struct Triggers {
    triggers: Vec<Trigger>,
    nested: Nested,
    lost: u64,
}

impl Triggers {
    pub(super) fn new(triggers: Vec<Trigger>) -> Self {
        Self { triggers, nested: Nested::default(), lost: 0 }
    }

    /// Looks at the next exits; `lost` is what has been lost since the start. Returns what triggers, if anything does.
    pub(super) fn take(&mut self, records: &[Record], lost: u64) -> Option<String> {
        let newly_lost = lost - std::mem::replace(&mut self.lost, lost);
        if self.triggers.is_empty() {
            return None;
        }
        let mut longest_trip = 0;
        if self.triggers.iter().any(|trigger| matches!(trigger, Trigger::NestedRoundTrip(_))) {
            for records in records.chunks(Batch::MAX) {
                self.nested.add(&Batch::new(records, Nested::COLUMNS, newly_lost));
            }
            longest_trip = self.nested.longest();
        }
        let longest_exit = records.iter().filter_map(until_next_entry).max().unwrap_or(0);
        let exceeds = |time: u64, most: Duration| Duration::from_nanos(time) > most;
        self.triggers.iter().find_map(|trigger| match *trigger {
            Trigger::Exit(most) => {
                exceeds(longest_exit, most).then(|| format!("an exit took {}", style::Duration(longest_exit)))
            }
            Trigger::NestedRoundTrip(most) => exceeds(longest_trip, most)
                .then(|| format!("a nested round trip took {}", style::Duration(longest_trip))),
            Trigger::Lost => (newly_lost > 0).then(|| format!("{newly_lost} events were lost")),
        })
    }
}

/// How long a vCPU was not entered after an exit that was no halt.
fn until_next_entry(record: &Record) -> Option<u64> {
    let Record::Exit(exit) = record else { return None };
    let isa = exitregs_common::isa::Isa::from_field(exit.exit.isa)?;
    let time = exit.next_entry_time.checked_sub(exit.exit_time)?;
    (!is_halt_reason(isa, exit.exit.exit_reason)).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_words() {
        assert_eq!("exit > 1ms".parse(), Ok(Trigger::Exit(Duration::from_millis(1))));
        assert_eq!("nested round trip > 5ms".parse(), Ok(Trigger::NestedRoundTrip(Duration::from_millis(5))));
        assert_eq!("lost".parse(), Ok(Trigger::Lost));
        for wrong in ["", "exit", "exit > x", "nested > 1ms", "exit < 1ms"] {
            assert!(wrong.parse::<Trigger>().is_err(), "{wrong}");
        }
    }
}
