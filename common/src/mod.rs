// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What KVM's events are made of, and what their values mean.

pub mod cpuid;
pub mod flags;
pub mod gpr;
pub mod hypercall;
mod prelude;
pub mod svm;
pub mod table;
pub mod vmx;
