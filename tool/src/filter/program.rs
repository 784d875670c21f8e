// SPDX-License-Identifier: MIT
//! Filters as the postfix programs of tool/bpf/filter.h.

use super::{Comparison, Expression};
use exitregs_common::event::Field;
use std::fmt;

/// The most operations a program may have; `FILTER_MAX_OPERATIONS` of tool/bpf/filter.h.
pub const MAX_OPERATIONS: usize = 64;

/// What an operation does; numbered as `enum filter_operator` of tool/bpf/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "named after what they do")]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    BitAnd,
    And,
    Or,
    Not,
}

/// One operation: pushes the result of a comparison, or combines the topmost results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub operator: Operator,
    /// Byte offset of the compared field in the event's record.
    pub offset: u16,
    /// Bytes of the compared field.
    pub size: u8,
    /// What the field is compared with.
    pub operand: u64,
}

/// A filter whose program is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong(pub usize);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the filter takes {} operations, but the BPF programs evaluate {MAX_OPERATIONS} at most",
            self.0
        )
    }
}

impl std::error::Error for TooLong {}

pub(super) fn compile(expression: &Expression, fields: &[Field]) -> Result<Vec<Operation>, TooLong> {
    let mut program = Vec::new();
    append(expression, fields, &mut program);
    if program.len() > MAX_OPERATIONS { Err(TooLong(program.len())) } else { Ok(program) }
}

fn append(expression: &Expression, fields: &[Field], program: &mut Vec<Operation>) {
    let combine = |operator| Operation { operator, offset: 0, size: 0, operand: 0 };
    match expression {
        Expression::Compare { field, comparison, operand } => {
            let Field { offset, size, .. } = fields[*field];
            program.push(Operation {
                operator: match comparison {
                    Comparison::Equal => Operator::Equal,
                    Comparison::NotEqual => Operator::NotEqual,
                    Comparison::Less => Operator::Less,
                    Comparison::LessOrEqual => Operator::LessOrEqual,
                    Comparison::Greater => Operator::Greater,
                    Comparison::GreaterOrEqual => Operator::GreaterOrEqual,
                    Comparison::BitAnd => Operator::BitAnd,
                },
                offset: offset as u16,
                size: size as u8,
                operand: *operand,
            });
        }
        Expression::Not(inner) => {
            append(inner, fields, program);
            program.push(combine(Operator::Not));
        }
        Expression::And(left, right) => {
            append(left, fields, program);
            append(right, fields, program);
            program.push(combine(Operator::And));
        }
        Expression::Or(left, right) => {
            append(left, fields, program);
            append(right, fields, program);
            program.push(combine(Operator::Or));
        }
    }
}
