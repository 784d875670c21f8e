// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The one definition of KVM's x86 exit and entry events.
//!
//! `src/` is a module tree that Cargo builds as this crate and Kbuild includes with `#[path]`; this
//! file is Cargo's root of it and holds nothing of its own.
#![no_std]

#[path = "src/mod.rs"]
mod tree;

pub use tree::*;
