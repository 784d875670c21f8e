// SPDX-License-Identifier: MIT
//! Filters over an event's fields, in the language of the kernel's trace event filters.
//!
//! [`parse`](Filter::parse) follows `kernel/trace/trace_events_filter.c`: comparisons `== != < <= > >=` and `&` (any bit in
//! common) of a field with a number, `!`, `&&`, `||` and parentheses; `&&` binds tighter than `||`. As in the kernel a bare
//! field is not a condition, a number is cut to the field's size, and neither it nor the text may be too long. Beyond the
//! kernel's, a number may be an MSR's name, or for `exit_reason` an exit reason's; [`Display`](std::fmt::Display) prints
//! the numbers, for the kernel. Left out is what is not of the guest (`common_pid`, `comm`, `CPU`) or not of numbers (`~`).

mod parse;
mod program;
mod refusal;

pub use parse::ParseError;
pub use program::{MAX_OPERATIONS, Operation, Operator, TooLong};
pub use refusal::refusal;

use exitregs_common::event::{Event, Field};
use std::fmt;
use std::marker::PhantomData;

/// The most bytes of a filter's text that the kernel takes: it is shorter than a page.
pub const MAX_LENGTH: usize = 4095;

/// How a field is compared with a number; all fields are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `&`: any bit in common.
    BitAnd,
}

impl Comparison {
    const ALL: [(&'static str, Self); 7] = [
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        ("<=", Self::LessOrEqual),
        ("<", Self::Less),
        (">=", Self::GreaterOrEqual),
        (">", Self::Greater),
        ("&", Self::BitAnd),
    ];

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(_, comparison)| *comparison == self).map_or("", |(text, _)| text)
    }

    fn holds(self, value: u64, operand: u64) -> bool {
        match self {
            Self::Equal => value == operand,
            Self::NotEqual => value != operand,
            Self::Less => value < operand,
            Self::LessOrEqual => value <= operand,
            Self::Greater => value > operand,
            Self::GreaterOrEqual => value >= operand,
            Self::BitAnd => value & operand != 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    Compare { field: usize, comparison: Comparison, operand: u64 },
    Not(Box<Expression>),
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
}

/// A filter over the fields of the event `E`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter<E> {
    expression: Expression,
    event: PhantomData<E>,
}

impl<E: Event> Filter<E> {
    /// Parses a filter; `isa` gives the names of exit reasons their numbers.
    ///
    /// # Errors
    /// Where and why the text is not a filter over `E`'s fields.
    pub fn parse(text: &str, isa: exitregs_common::isa::Isa) -> Result<Self, ParseError> {
        parse::parse(text, E::FIELDS, isa).map(Self::new)
    }

    fn new(expression: Expression) -> Self {
        Self { expression, event: PhantomData }
    }

    /// Both filters' condition.
    pub fn and(self, other: Self) -> Self {
        Self::new(Expression::And(Box::new(self.expression), Box::new(other.expression)))
    }

    /// Either filter's condition.
    pub fn or(self, other: Self) -> Self {
        Self::new(Expression::Or(Box::new(self.expression), Box::new(other.expression)))
    }

    /// Whether the filter selects `event`, as the kernel's filter does.
    pub fn selects(&self, event: &E) -> bool {
        self.decides(event, 0) == Some(true)
    }

    /// Whether the filter selects `event`, of which not all fields are known: bit n of `unknown` set says that
    /// `E::FIELDS[n]` is not. `None` if that depends on one of these.
    pub fn decides(&self, event: &E, unknown: u32) -> Option<bool> {
        decides(&self.expression, event, unknown)
    }

    /// Bit n set: the filter reads `E::FIELDS[n]`.
    pub fn fields(&self) -> u32 {
        fields(&self.expression)
    }

    /// The postfix program that the BPF programs evaluate.
    ///
    /// # Errors
    /// The program has more than [`MAX_OPERATIONS`] operations.
    pub fn program(&self) -> Result<Vec<Operation>, TooLong> {
        program::compile(&self.expression, E::FIELDS)
    }
}

fn decides<E: Event>(expression: &Expression, event: &E, unknown: u32) -> Option<bool> {
    // One side decides if it has this result, whatever the other has; else both must be known.
    let either = |decisive, left, right| match decides(left, event, unknown) {
        Some(result) if result == decisive => Some(decisive),
        left => match decides(right, event, unknown) {
            Some(result) if result == decisive => Some(decisive),
            right => left.and(right),
        },
    };
    match expression {
        Expression::Compare { field, .. } if unknown & 1 << field != 0 => None,
        Expression::Compare { field, comparison, operand } => {
            event.value(*field).map(|value| comparison.holds(value, *operand))
        }
        Expression::Not(inner) => decides(inner, event, unknown).map(|result| !result),
        Expression::And(left, right) => either(false, left, right),
        Expression::Or(left, right) => either(true, left, right),
    }
}

fn fields(expression: &Expression) -> u32 {
    match expression {
        Expression::Compare { field, .. } => 1 << field,
        Expression::Not(inner) => fields(inner),
        Expression::And(left, right) | Expression::Or(left, right) => fields(left) | fields(right),
    }
}

/// The filter as the kernel takes it.
impl<E: Event> fmt::Display for Filter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_expression(f, &self.expression, E::FIELDS, "")
    }
}

/// Displays a filter with something before each field's name: `args->rcx == 0x6e0` for bpftrace, whose operators are the
/// kernel's.
#[derive(Debug, Clone, Copy)]
pub struct Prefixed<'a, E>(pub &'a Filter<E>, pub &'a str);

impl<E: Event> fmt::Display for Prefixed<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_expression(f, &self.0.expression, E::FIELDS, self.1)
    }
}

fn write_expression(
    f: &mut fmt::Formatter<'_>,
    expression: &Expression,
    fields: &[Field],
    prefix: &str,
) -> fmt::Result {
    let grouped = |f: &mut fmt::Formatter<'_>, inner: &Expression| {
        if matches!(inner, Expression::Or(..)) {
            f.write_str("(")?;
            write_expression(f, inner, fields, prefix)?;
            f.write_str(")")
        } else {
            write_expression(f, inner, fields, prefix)
        }
    };
    match expression {
        Expression::Compare { field, comparison, operand } => {
            let field = &fields[*field];
            write!(f, "{prefix}{} {} ", field.name, comparison.text())?;
            if field.is_hexadecimal() { write!(f, "{operand:#x}") } else { write!(f, "{operand}") }
        }
        Expression::Not(inner) => {
            f.write_str("!(")?;
            write_expression(f, inner, fields, prefix)?;
            f.write_str(")")
        }
        Expression::And(left, right) => {
            grouped(f, left)?;
            f.write_str(" && ")?;
            grouped(f, right)
        }
        Expression::Or(left, right) => {
            write_expression(f, left, fields, prefix)?;
            f.write_str(" || ")?;
            write_expression(f, right, fields, prefix)
        }
    }
}

/// A number cut to a field's size, as the kernel compares it.
fn cut(operand: u64, field: &Field) -> u64 {
    match field.size {
        1 => operand & 0xff,
        4 => operand & 0xffff_ffff,
        _ => operand,
    }
}
