// SPDX-License-Identifier: MIT
//! How exits and what they amount to are shown.

pub mod json;
pub mod line;
pub mod style;
pub mod table;
