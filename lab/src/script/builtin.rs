// SPDX-License-Identifier: MIT
//! The scripts in `lab/scripts/`.

use anyhow::{Context, Result};

use super::Script;

/// A script that the program carries.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub json: &'static str,
}

impl Builtin {
    /// The script.
    ///
    /// # Errors
    /// If its text is not a script.
    pub fn script(&self) -> Result<Script> {
        serde_json::from_str(self.json)
            .with_context(|| format!("lab/scripts/{}.json is not a script", self.name))
    }
}

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// All of them.
        pub const BUILTIN: &[Builtin] = &[
            $(Builtin { name: $name, json: include_str!(concat!("../../scripts/", $name, ".json")) },)*
        ];
    };
}

builtin!("basic", "demo");
