// SPDX-License-Identifier: MIT
//! Parsing filters, with the position of whatever is wrong.

use super::{Comparison, Expression, cut};
use exitregs_common::event::Field;
use exitregs_common::isa::Isa;
use exitregs_common::msr;
use std::fmt;
use std::ops::Range;

/// Parentheses and `!` nested deeper are refused, as the kernel refuses deep parentheses.
const MAX_DEPTH: usize = 64;

/// What is wrong with a filter's text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The text.
    pub text: String,
    /// The bytes of the text that are wrong; empty at the end of an unfinished text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do about it, if there is more to say.
    pub help: Option<String>,
}

/// The message, the text, and carets below what is wrong.
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One column for each character, whatever it is: control characters would move the carets.
        let shown: String =
            self.text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
        let before = self.text[..self.span.start].chars().count();
        let wrong = self.text[self.span.clone()].chars().count().max(1);
        writeln!(f, "{}", self.message)?;
        writeln!(f, "  | {shown}")?;
        write!(f, "  | {}{}", " ".repeat(before), "^".repeat(wrong))?;
        if let Some(help) = &self.help {
            write!(f, "\n  = {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseError {}

pub(super) fn parse(text: &str, fields: &[Field], isa: Isa) -> Result<Expression, ParseError> {
    let mut parser = Parser { text, position: 0, depth: 0, fields, isa };
    let expression = parser.any()?;
    parser.skip_space();
    if parser.position < text.len() {
        let rest = parser.position..text.len();
        return Err(if text[rest.clone()].starts_with(')') {
            parser.error(rest.start..rest.start + 1, "this parenthesis was never opened")
        } else {
            parser.error(rest, "expected `&&`, `||` or the end of the filter")
        });
    }
    Ok(expression)
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
    fields: &'a [Field],
    isa: Isa,
}

impl<'a> Parser<'a> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> ParseError {
        ParseError { text: self.text.to_owned(), span, message: message.into(), help: None }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn skip_space(&mut self) {
        self.position += self.rest().len() - self.rest().trim_start().len();
    }

    /// Takes `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    /// Takes the letters, digits, `_`, `.` and `-` that come next.
    fn word(&mut self) -> Range<usize> {
        self.skip_space();
        let start = self.position;
        let length = self
            .rest()
            .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-')))
            .unwrap_or(self.rest().len());
        self.position += length;
        start..self.position
    }

    /// The next character, or nothing at the end: where an error is when a word was expected.
    fn here(&self) -> Range<usize> {
        self.position..self.position + self.rest().chars().next().map_or(0, char::len_utf8)
    }

    fn any(&mut self) -> Result<Expression, ParseError> {
        let mut left = self.all()?;
        while self.take("||") {
            left = Expression::Or(Box::new(left), Box::new(self.all()?));
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<Expression, ParseError> {
        let mut left = self.term()?;
        while self.take("&&") {
            left = Expression::And(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<Expression, ParseError> {
        self.skip_space();
        let start = self.position;
        if self.depth >= MAX_DEPTH {
            return Err(self.error(self.here(), format!("nested more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let term = if self.take("!") {
            Expression::Not(Box::new(self.term()?))
        } else if self.take("(") {
            let inner = self.any()?;
            if !self.take(")") {
                return Err(if self.position == self.text.len() {
                    self.error(start..start + 1, "this parenthesis is never closed")
                } else {
                    self.error(self.here(), "expected `&&`, `||` or `)`")
                });
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(term)
    }

    fn comparison(&mut self) -> Result<Expression, ParseError> {
        let name = self.word();
        if name.is_empty() {
            return Err(self.error(self.here(), "expected a field's name"));
        }
        let Some(field) = self.fields.iter().position(|field| field.name == &self.text[name.clone()]) else {
            let names: Vec<_> = self.fields.iter().map(|field| field.name).collect();
            let mut error = self.error(name.clone(), format!("there is no field `{}`", &self.text[name]));
            error.help = Some(format!("the fields are {}", names.join(", ")));
            return Err(error);
        };
        self.skip_space();
        let operator = self.position;
        let bare =
            self.rest().is_empty() || ["&&", "||", ")"].iter().any(|next| self.rest().starts_with(next));
        if bare {
            let mut error = self.error(name.clone(), "a field alone is not a condition");
            error.help = Some(format!("write `{} == 1` or `{0} != 0`", &self.text[name]));
            return Err(error);
        }
        let Some((_, comparison)) = Comparison::ALL.into_iter().find(|(token, _)| self.take(token)) else {
            let mut error = self.error(self.here(), "expected a comparison");
            error.help = Some(if self.rest().starts_with('~') {
                "`~` is for strings, and this field is a number".to_owned()
            } else {
                "the comparisons are == != < <= > >= &".to_owned()
            });
            return Err(error);
        };
        let value = self.word();
        if value.is_empty() {
            let mut error = self.error(self.here(), "expected a number");
            if matches!(self.rest().chars().next(), Some('"' | '\'')) {
                error.help = Some(format!("`{}` is a number, not a string", self.fields[field].name));
            } else if self.rest().starts_with('=') {
                error.span = operator..self.position + 1;
                error.message = "there is no such comparison".to_owned();
            }
            return Err(error);
        }
        let operand = self.number(&self.fields[field], value)?;
        Ok(Expression::Compare { field, comparison, operand: cut(operand, &self.fields[field]) })
    }

    fn number(&self, field: &Field, span: Range<usize>) -> Result<u64, ParseError> {
        let word = &self.text[span.clone()];
        if !word.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            let named = msr::by_name(word).map(u64::from).or_else(|| {
                let reason = (field.name == "exit_reason").then(|| self.isa.exit_reason_by_name(word));
                reason.flatten().map(u64::from)
            });
            return named
                .ok_or_else(|| self.error(span, format!("`{word}` is neither a number nor a known name")));
        }
        // As kstrtoull() with base 0.
        let number = match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16),
            None if word.len() > 1 && word.starts_with('0') => u64::from_str_radix(word, 8),
            None => word.parse(),
        };
        number.map_err(|error| {
            let mut error = match error.kind() {
                std::num::IntErrorKind::PosOverflow => {
                    self.error(span, "the number does not fit into 64 bits")
                }
                _ => self.error(span, "not a number"),
            };
            if word.starts_with('-') {
                error.help = Some(format!("`{}` is unsigned", field.name));
            }
            error
        })
    }
}
