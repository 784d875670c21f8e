// SPDX-License-Identifier: MIT
//! One line per exit, like strace for guests.

use super::style::{self, Duration, Styled};
use crate::analysis::pairing::Record;
use anstyle::Style;
use exitregs_common::event::Exit;
use exitregs_common::isa::{Isa, Level};
use exitregs_common::operation::{NestedPageFault, Operation};
use exitregs_common::outcome::{ExitResult, Outcome};
use std::fmt::{self, Write as _};
use std::io::{self, Write};

/// Columns that an operation and its result take before the time.
const OPERATION_WIDTH: usize = 58;

/// A vCPU. Displays as `NAME:PID/VCPU`; a pid that is not known as `?`.
struct Vm<'a> {
    name: &'a str,
    pid: u32,
    vcpu: u32,
}

impl fmt::Display for Vm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => write!(f, "?:?/{}", self.vcpu),
            pid => write!(f, "{}:{pid}/{}", self.name, self.vcpu),
        }
    }
}

/// Writes lines, in colour or not.
#[derive(Debug, Default)]
pub struct Lines {
    colour: bool,
    /// Time of the first exit, from which the lines count.
    start: Option<u64>,
    operation: String,
    result: String,
}

impl Lines {
    /// No lines yet.
    pub fn new(colour: bool) -> Self {
        Self { colour, ..Self::default() }
    }

    fn styled<T>(&self, style: Style, value: T) -> Styled<T> {
        Styled(if self.colour { style } else { Style::new() }, value)
    }

    /// Writes the line above the first exit.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn heading(&self, out: &mut dyn Write) -> io::Result<()> {
        let heading = format!(
            "{:>12}  {:<20} {:<4} {:<OPERATION_WIDTH$}  {:>7}",
            "TIME", "VM/VCPU", "", "EXIT = RESULT", "TOOK"
        );
        writeln!(out, "{}", self.styled(style::HEADING, heading))
    }

    /// Writes an exit or nested page fault of a VM called `name`; `isa` is the host's.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn record(&mut self, out: &mut dyn Write, record: &Record, isa: Isa, name: &str) -> io::Result<()> {
        match record {
            Record::Exit(exit) => self.exit(out, exit, name),
            Record::NestedPageFault(fault) => {
                let level = Level::from_is_nested(fault.event.is_nested);
                self.place(out, fault.time, Vm { name, pid: fault.tgid, vcpu: fault.event.vcpu_id }, level)?;
                writeln!(out, "{}", NestedPageFault(&fault.event, isa, fault.unknown))
            }
        }
    }

    /// Writes when and where something happened.
    fn place(&mut self, out: &mut dyn Write, time: u64, vm: Vm<'_>, level: Level) -> io::Result<()> {
        let start = *self.start.get_or_insert(time);
        let vm = vm.to_string();
        let seconds = time.saturating_sub(start) as f64 / 1e9;
        write!(out, "{seconds:>12.6}  {vm:<20} {}   ", self.styled(style::level(level), level))
    }

    /// Writes an exit: seconds since the first one, VM, vCPU, level, operation, result, and the time until its guest
    /// went on. An L2 exit during which L1 ran shows L0's part of that time apart.
    ///
    /// # Errors
    /// Those of the writer.
    fn exit(&mut self, out: &mut dyn Write, exit: &Exit, name: &str) -> io::Result<()> {
        self.operation.clear();
        self.result.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.operation, "{}", Operation(exit));
        if let Some(result) = ExitResult::of(exit) {
            let _ = write!(self.result, " = {result}");
        }
        let width = self.operation.chars().count() + self.result.chars().count();
        let padding = OPERATION_WIDTH.saturating_sub(width);
        let result_style = match Outcome::of(exit) {
            Outcome::Completed => style::GOOD,
            Outcome::Exception(_) => style::BAD,
            Outcome::Unknown | Outcome::NotEnded => style::UNSURE,
        };
        let vm = Vm { name, pid: exit.tgid, vcpu: exit.exit.vcpu_id };
        self.place(out, exit.exit_time, vm, Level::from_is_nested(exit.exit.is_nested))?;
        write!(out, "{}{}{:padding$}  ", self.operation, self.styled(result_style, &self.result), "")?;
        if exit.entry_time == 0 {
            return writeln!(out, "{}", self.styled(style::FAINT, "not entered again"));
        }
        write!(out, "{:>7}", Duration(exit.entry_time - exit.exit_time))?;
        if exit.next_entry_time != exit.entry_time && exit.next_entry_time != 0 {
            let l0 = Duration(exit.next_entry_time - exit.exit_time);
            write!(out, "{}", self.styled(style::FAINT, format_args!(" (L0 {l0})")))?;
        }
        writeln!(out)
    }
}
