// SPDX-License-Identifier: MIT
//! Emulated hosts, and guests that know which VM exits they caused.

pub mod binaries;
pub mod cache;
pub mod counts;
pub mod events;
pub mod guest;
pub mod host;
pub mod module;
pub mod overhead;
pub mod patches;
pub mod script;
pub mod selftests;
pub mod truth;

pub use counts::counts;
