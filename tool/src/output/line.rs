// SPDX-License-Identifier: MIT
//! One line per exit, like strace for guests.

use super::style::{self, Duration, Styled};
use crate::vm::Names;
use exitregs_common::event::Exit;
use exitregs_common::isa::Level;
use exitregs_common::operation::Operation;
use exitregs_common::outcome::{ExitResult, Outcome};
use std::io::{self, Write};

/// Columns that an operation and its result take before the time.
const OPERATION_WIDTH: usize = 58;

/// Writes the line above the first exit.
///
/// # Errors
/// Those of the writer.
pub fn heading(out: &mut dyn Write) -> io::Result<()> {
    let heading = format!(
        "{:>12}  {:<20} {:<4} {:<OPERATION_WIDTH$}  {:>7}",
        "TIME", "VM/VCPU", "", "EXIT = RESULT", "TOOK"
    );
    writeln!(out, "{}", Styled(style::HEADING, heading))
}

/// Writes an exit: seconds since `start`, VM, vCPU, level, operation, result, and the time until
/// its guest went on. An L2 exit during which L1 ran shows L0's part of that time apart.
///
/// # Errors
/// Those of the writer.
pub fn exit(out: &mut dyn Write, exit: &Exit, start: u64, names: &mut Names) -> io::Result<()> {
    let level = Level::from_is_nested(exit.exit.is_nested);
    let vm = format!("{}:{}/{}", names.get(exit.tgid), exit.tgid, exit.exit.vcpu_id);
    let operation = Operation(exit).to_string();
    let result = ExitResult::of(exit).map(|result| format!(" = {result}")).unwrap_or_default();
    let width = operation.chars().count() + result.chars().count();
    let padding = OPERATION_WIDTH.saturating_sub(width);
    let result_style = match Outcome::of(exit) {
        Outcome::Completed => style::GOOD,
        Outcome::Exception(_) => style::BAD,
        Outcome::Unknown | Outcome::NotEnded => style::UNSURE,
    };
    write!(
        out,
        "{:>12.6}  {vm:<20} {:<4} {operation}{}{:padding$}  ",
        exit.exit_time.saturating_sub(start) as f64 / 1e9,
        Styled(style::level(level), level),
        Styled(result_style, result),
        "",
    )?;
    if exit.entry_time == 0 {
        return writeln!(out, "{}", Styled(style::FAINT, "not entered again"));
    }
    write!(out, "{:>7}", Duration(exit.entry_time - exit.exit_time))?;
    if exit.next_entry_time != exit.entry_time && exit.next_entry_time != 0 {
        let l0 = format!(" (L0 {})", Duration(exit.next_entry_time - exit.exit_time));
        write!(out, "{}", Styled(style::FAINT, l0))?;
    }
    writeln!(out)
}
