// SPDX-License-Identifier: MIT
//! Emulated hosts, and guests that know which VM exits they caused.

pub mod binaries;
pub mod counts;
pub mod host;

pub use counts::counts;
