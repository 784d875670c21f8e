// SPDX-License-Identifier: MIT
//! What exits amount to.

pub mod pairing;
pub mod stat;
