// SPDX-License-Identifier: MIT
//! The `exitregs` library: where KVM's exits come from, what they mean, how they are shown.
//!
//! - [`host`] and [`btf`]: what this host offers.
//! - [`source`]: where exits come from.
//! - [`filter`]: which of them are wanted.
//! - [`recording`]: exits in a file.
//! - [`analysis`]: what they amount to.
//! - [`output`]: how they are shown.

pub mod analysis;
pub mod btf;
pub mod cli;
pub mod commands;
pub mod filter;
pub mod host;
pub mod output;
pub mod recording;
pub mod source;
pub mod vm;
