// SPDX-License-Identifier: MIT
//! What a view selects, by the truth.

use anyhow::{Context, Result};
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::View;
use exitregs_lab::truth::{Exits, Line};

use crate::truth;

/// A view's filter at a level, in the kernel's language.
///
/// # Errors
/// If there is no such view.
pub fn filter(view: &str, isa: Isa, level: Level) -> Result<String> {
    let view = View::by_name(view).with_context(|| format!("there is no view {view}"))?;
    Ok(view.filter(isa, Some(level)).to_string())
}

/// Whether a view selects the exits of a line.
pub fn selects(view: &str, isa: Isa, line: &Line) -> bool {
    let reason = line.exit_reason.as_deref().and_then(|name| isa.exit_reason_by_name(name));
    let predicate = View::by_name(view).map(|view| view.predicate(isa));
    predicate.zip(reason).is_some_and(|(predicate, reason)| {
        predicate.reasons.iter().any(|(first, last)| (*first..=*last).contains(&reason))
    })
}

/// The exits of L2 that a view selects and a script has, in their order.
pub fn scripted(view: &str, isa: Isa, lines: &[Line]) -> Vec<(Option<u64>, u64, u64)> {
    let lines = lines.iter().filter(|line| line.level == 2 && line.exits == Exits::Once);
    let lines = lines.filter(|line| selects(view, isa, line));
    lines.map(|line| (Some(line.rip), line.before.rcx, line.before.rax)).collect()
}

/// How many exits a view selects at a level, by the truth.
pub fn bounds(truth: &[Line], view: &str, isa: Isa, level: Level) -> (u64, u64) {
    let lines = truth
        .iter()
        .filter(|line| Level::from_is_nested(line.level - 1) == level && selects(view, isa, line));
    let counts = truth::counts(&lines.cloned().collect::<Vec<_>>(), false);
    counts
        .values()
        .fold((0, 0), |(least, most), bounds| (least + bounds.least, most.saturating_add(bounds.most)))
}
