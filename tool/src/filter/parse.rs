// SPDX-License-Identifier: MIT
//! Parsing filters, with the position of whatever is wrong.

use super::{Comparison, Expression, MAX_LENGTH, cut};
use exitregs_common::event::Field;
use exitregs_common::isa::Isa;
use exitregs_common::msr;
use std::fmt;
use std::ops::Range;

/// Parentheses and `!` nested deeper are refused.
const MAX_DEPTH: usize = 64;
/// The kernel takes numbers of so many characters: all that fit into 64 bits, without needless zeros.
const MAX_DIGITS: usize = 23;
/// What the kernel's filters can ask of every event beside its own fields: about the thread and the CPU that KVM ran on.
const OF_THE_HOST: [&str; 9] = [
    "common_type",
    "common_flags",
    "common_preempt_count",
    "common_pid",
    "common_cpu",
    "CPU",
    "cpu",
    "COMM",
    "comm",
];

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
            write!(f, "\n  = help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseError {}

pub(super) fn parse(text: &str, fields: &[Field], isa: Isa) -> Result<Expression, ParseError> {
    let mut parser = Parser { text, position: 0, depth: 0, fields, isa };
    if text.len() > MAX_LENGTH {
        let start = (0..=MAX_LENGTH).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let message = format!("{} bytes, but the kernel takes {MAX_LENGTH} at most", text.len());
        return Err(parser.error(start..text.len(), message));
    }
    let expression = parser.any()?;
    parser.skip_space();
    if parser.position < text.len() {
        return Err(match parser.rest().starts_with(')') {
            true => parser.error(parser.here(), "this parenthesis was never opened"),
            false => parser.no_junction("the end of the filter"),
        });
    }
    Ok(expression)
}

/// Whether the kernel skips it between words.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// Help with a name that there is not: what looks like it.
fn did_you_mean<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    let likeness = |candidate: &str| strsim::jaro_winkler(&name, &candidate.to_lowercase());
    let best = candidates.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then(|| format!("did you mean `{best}`?"))
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
        self.position += self.rest().len() - self.rest().trim_start_matches(is_space).len();
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

    /// An error: after a comparison comes neither `&&` nor `||` nor what else may.
    fn no_junction(&mut self, or: &str) -> ParseError {
        let here = self.here();
        let word = self.word();
        let help = match self.text[word.clone()].to_ascii_lowercase().as_str() {
            "and" => Some("write `&&`".to_owned()),
            "or" => Some("write `||`".to_owned()),
            _ => None,
        };
        let span = if word.is_empty() { here } else { word };
        ParseError { help, ..self.error(span, format!("expected `&&`, `||` or {or}")) }
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
                    self.no_junction("`)`")
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
            return Err(self.no_field(name));
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
                format!("`~` is for strings, and `{}` is a number", self.fields[field].name)
            } else {
                "the comparisons are == != < <= > >= &".to_owned()
            });
            return Err(error);
        };
        let value = self.word();
        if value.is_empty() {
            return Err(self.no_number(&self.fields[field], operator));
        }
        let operand = self.number(&self.fields[field], value)?;
        Ok(Expression::Compare { field, comparison, operand: cut(operand, &self.fields[field]) })
    }

    /// An error: the event has no such field.
    fn no_field(&self, name: Range<usize>) -> ParseError {
        let names = || self.fields.iter().map(|field| field.name);
        let wanted = &self.text[name.clone()];
        let help = if OF_THE_HOST.contains(&wanted) {
            "that is of the host's thread, not of the guest: select VMs by --vm".to_owned()
        } else if wanted.starts_with(|c: char| c.is_ascii_digit()) {
            format!("the field comes first, such as in `{} == {wanted}`", self.fields[0].name)
        } else {
            let all = format!("the fields are {}", names().collect::<Vec<_>>().join(", "));
            did_you_mean(wanted, names()).map_or(all.clone(), |meant| format!("{meant} {all}"))
        };
        let message = format!("there is no field `{wanted}`");
        ParseError { help: Some(help), ..self.error(name, message) }
    }

    /// An error: after the comparison that begins at `operator` comes no number.
    fn no_number(&self, field: &Field, operator: usize) -> ParseError {
        let here = self.here();
        match self.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let string = &self.rest()[1..];
                let end = string.find(quote).map_or(self.text.len(), |length| here.end + length + 1);
                self.error(here.start..end, format!("`{}` is a number, and this is a string", field.name))
            }
            Some('=') => self.error(operator..here.end, "there is no such comparison"),
            _ => self.error(here, "expected a number"),
        }
    }

    /// An error: there is no such name of a number.
    fn no_name(&self, field: &Field, name: Range<usize>) -> ParseError {
        let wanted = &self.text[name.clone()];
        let is_reason = field.name == "exit_reason";
        let other = [Isa::Vmx, Isa::Svm].into_iter().find(|isa| *isa != self.isa);
        let other = other.filter(|isa| is_reason && isa.exit_reason_by_name(wanted).is_some());
        let help = if let Some(other) = other {
            Some(format!("it is an exit reason of {other}'s, and these are {}'s", self.isa))
        } else if self.fields.iter().any(|field| field.name == wanted) {
            Some("a field is compared with a number, not with another field".to_owned())
        } else {
            None
        };
        ParseError { help, ..self.error(name, format!("`{wanted}` is neither a number nor a known name")) }
    }

    fn number(&self, field: &Field, span: Range<usize>) -> Result<u64, ParseError> {
        let word = &self.text[span.clone()];
        if !word.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            let named = msr::by_name(word).map(u64::from).or_else(|| {
                let reason = (field.name == "exit_reason").then(|| self.isa.exit_reason_by_name(word));
                reason.flatten().map(u64::from)
            });
            return named.ok_or_else(|| self.no_name(field, span));
        }
        if span.len() > MAX_DIGITS {
            let message =
                format!("a number of {} characters; the kernel takes {MAX_DIGITS} at most", span.len());
            return Err(self.error(span, message));
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
