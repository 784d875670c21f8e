// SPDX-License-Identifier: MIT
//! Numbers and colours for people to read.

use anstyle::{AnsiColor, Style};
use exitregs_common::isa::Level;
use std::fmt;

/// Headings.
pub const HEADING: Style = Style::new().bold();
/// What matters less.
pub const FAINT: Style = Style::new().dimmed();
/// What went well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What went wrong.
pub const BAD: Style = AnsiColor::Red.on_default();
/// What is not known.
pub const UNSURE: Style = AnsiColor::Yellow.on_default();

/// The colour of a level.
pub const fn level(level: Level) -> Style {
    match level {
        Level::L1 => AnsiColor::Cyan.on_default(),
        Level::L2 => AnsiColor::Magenta.on_default(),
    }
}

/// Displays a value in a style.
#[derive(Debug, Clone, Copy)]
pub struct Styled<T>(pub Style, pub T);

impl<T: fmt::Display> fmt::Display for Styled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.render().fmt(f)?;
        self.1.fmt(f)?;
        self.0.render_reset().fmt(f)
    }
}

/// Displays nanoseconds with three digits: `512ns`, `1.92us`, `24.1ms`, `3.00s`.
#[derive(Debug, Clone, Copy)]
pub struct Duration(pub u64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            0..1_000 => return f.pad(&format!("{}ns", self.0)),
            1_000..1_000_000 => (self.0 as f64 / 1e3, "us"),
            1_000_000..1_000_000_000 => (self.0 as f64 / 1e6, "ms"),
            _ => (self.0 as f64 / 1e9, "s"),
        };
        let decimals = if value < 9.995 {
            2
        } else if value < 99.95 {
            1
        } else {
            0
        };
        f.pad(&format!("{value:.decimals$}{unit}"))
    }
}

/// Displays a count with commas between the thousands.
#[derive(Debug, Clone, Copy)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// Displays a number of bytes: `512 B`, `1.4 MiB`.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if value < 1024.0 {
                let decimals = usize::from(unit != "B");
                return f.pad(&format!("{value:.decimals$} {unit}"));
            }
            value /= 1024.0;
        }
        f.pad(&format!("{value:.1} TiB"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, Duration};

    #[test]
    fn durations_have_three_digits() {
        let shown: Vec<_> =
            [0, 999, 1_000, 1_920, 9_994, 24_100, 999_499, 1_000_000, 3_000_000_000, 75_000_000_000]
                .map(|ns| Duration(ns).to_string())
                .to_vec();
        let expected =
            ["0ns", "999ns", "1.00us", "1.92us", "9.99us", "24.1us", "999us", "1.00ms", "3.00s", "75.0s"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn counts_have_commas() {
        assert_eq!(
            [0, 12, 999, 1_000, 1_234_567].map(|n| Count(n).to_string()),
            ["0", "12", "999", "1,000", "1,234,567"]
        );
    }
}
