// SPDX-License-Identifier: MIT
//! How much a test does: little in `cargo xtask test`, much in `cargo xtask soak`.
//!
//! The tests are the same; the environment variable [`VARIABLE`] decides. It is unset for small counts and `soak`
//! for large ones. A test that repeats something writes `counts().pick(small, large)` and never skips.

use std::env;

/// The environment variable that says which counts to use.
pub const VARIABLE: &str = "EXITREGS_COUNTS";
/// Its value for large counts.
pub const SOAK: &str = "soak";

/// Small or large counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// For `cargo xtask test`.
    Small,
    /// For `cargo xtask soak`.
    Large,
}

impl Counts {
    /// The count that goes with this size.
    pub fn pick<T>(self, small: T, large: T) -> T {
        match self {
            Self::Small => small,
            Self::Large => large,
        }
    }

    fn parse(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("") => Ok(Self::Small),
            Some(SOAK) => Ok(Self::Large),
            Some(other) => Err(format!("{VARIABLE} is {other:?}; it must be {SOAK:?} or unset")),
        }
    }
}

/// The counts that the environment asks for.
///
/// # Panics
/// If [`VARIABLE`] has a value that means nothing: a soak run with small counts would go unnoticed.
pub fn counts() -> Counts {
    let value = env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
    Counts::parse(value.as_deref()).unwrap_or_else(|message| panic!("{message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_value_is_no_small_run() {
        assert_eq!(Counts::parse(None), Ok(Counts::Small));
        assert_eq!(Counts::parse(Some("soak")), Ok(Counts::Large));
        assert!(Counts::parse(Some("Soak")).is_err());
        assert_eq!(Counts::Large.pick(1, 1000), 1000);
    }
}
