// SPDX-License-Identifier: GPL-2.0-only
//! The part of `common/` that defines the events: the same files as cargo compiles.

#![allow(dead_code, unreachable_pub, clippy::all)]

#[path = "../common/src/event.rs"]
pub(crate) mod event;
#[path = "../common/src/flags.rs"]
pub(crate) mod flags;
#[path = "../common/src/gpr.rs"]
pub(crate) mod gpr;
#[path = "../common/src/hypercall.rs"]
pub(crate) mod hypercall;
#[path = "../common/src/isa.rs"]
pub(crate) mod isa;
#[path = "../common/src/prelude.rs"]
pub(crate) mod prelude;
#[path = "../common/src/svm.rs"]
pub(crate) mod svm;
#[path = "../common/src/table.rs"]
pub(crate) mod table;
#[path = "../common/src/vmx.rs"]
pub(crate) mod vmx;
