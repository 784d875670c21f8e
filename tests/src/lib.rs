// SPDX-License-Identifier: MIT
//! Tests of the `exitregs` command on emulated hosts, against what their guests say they did.
//!
//! A suite (`tests/*.rs`) boots few hosts and does much on each, for a boot costs more than all that follows it:
//!
//! - A [`scenario`] is what happens on a host: which programs run, when one waits for another, who is sent which signal.
//!   The program `exitregs-test-driver` plays it, on the host.
//! - A [`suite`] collects scenarios by host, each with a check of what came back, and runs them as tests.
//! - [`guest`] and [`exitregs`] describe the two programs that nearly every scenario starts.
//! - [`record`] reads what `exitregs trace` and `exitregs stat` wrote.
//! - [`truth`] compares that with the ground truth.
//! - [`view`] says what a view selects, by the truth.
//! - [`events`] has the tests that all sources have in common which read events of the kernel.
//! - [`leftover`] lists what a tracer can leave behind in a kernel.
//! - [`expression`] makes random filters.

pub mod events;
pub mod exitregs;
pub mod expression;
pub mod guest;
pub mod leftover;
pub mod record;
pub mod scenario;
pub mod suite;
pub mod truth;
pub mod view;
