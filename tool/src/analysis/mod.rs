// SPDX-License-Identifier: MIT
//! What exits amount to.

pub mod batch;
pub mod nested;
pub mod pairing;
pub mod report;
pub mod stat;
pub mod timeline;
