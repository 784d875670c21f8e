// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What KVM's events are made of, and what their values mean.

pub mod bpf;
pub mod cpuid;
pub mod detail;
pub mod event;
pub mod flags;
pub mod gpr;
pub mod hypercall;
pub mod isa;
pub mod msr;
pub mod operation;
pub mod outcome;
mod prelude;
pub mod svm;
pub mod table;
pub mod view;
pub mod vmx;
