// SPDX-License-Identifier: MIT
//! What the guest tells the VMM, by a write to a port for each.

use crate::script::CONTROL_PORTS;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The log is full: read it.
    ReadLog,
    /// The script is done.
    Done,
    /// The VM is to die here.
    Die,
    /// Something went wrong: see [`super::log::Failure`].
    Failed,
}

impl Signal {
    const ALL: [Self; 4] = [Self::ReadLog, Self::Done, Self::Die, Self::Failed];

    /// Its port.
    pub const fn port(self) -> u16 {
        *CONTROL_PORTS.start() + self as u16
    }

    /// The message that a port is for.
    pub fn from_port(port: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.port() == port)
    }
}
