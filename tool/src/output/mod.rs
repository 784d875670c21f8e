// SPDX-License-Identifier: MIT
//! How exits and what they amount to are shown.

pub mod json;
pub mod line;
pub mod nested;
pub mod report;
pub mod style;
pub mod table;
