// SPDX-License-Identifier: MIT
//! The scripts in `lab/scripts/`.

use anyhow::{Context, Result};

use exitregs_common::isa::Isa;

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

    /// Whether it can run on an instruction set.
    pub fn is_for(&self, isa: Isa) -> bool {
        self.script().is_ok_and(|script| script.check(isa).is_ok())
    }
}

/// Those that can run on an instruction set.
pub fn builtins(isa: Isa) -> impl Iterator<Item = &'static Builtin> {
    BUILTIN.iter().filter(move |builtin| builtin.is_for(isa))
}

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// All of them.
        pub const BUILTIN: &[Builtin] = &[
            $(Builtin { name: $name, json: include_str!(concat!("../../scripts/", $name, ".json")) },)*
        ];
    };
}

builtin!(
    "basic",
    "cpuid",
    "cr",
    "demo",
    "hlt",
    "hypercall",
    "mix",
    "msr",
    "multiplication",
    "other",
    "page-fault",
    "pio",
    "svm",
    "two-guests",
    "vmx",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_is_possible() {
        for builtin in BUILTIN {
            let script = builtin.script().unwrap();
            // All run on both, but those with the name of one.
            for isa in [Isa::Svm, Isa::Vmx] {
                let other =
                    [Isa::Svm, Isa::Vmx].into_iter().find(|other| *other != isa).map(|isa| isa.to_string());
                assert_eq!(
                    script.check(isa).is_ok(),
                    Some(builtin.name) != other.as_deref(),
                    "{}",
                    builtin.name
                );
            }
            assert!(!script.description.is_empty() && !script.description.contains('\n'), "{}", builtin.name);
        }
    }

    #[test]
    fn every_file_is_one() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let names: Vec<String> = BUILTIN.iter().map(|builtin| format!("{}.json", builtin.name)).collect();
        assert_eq!(names, files);
    }
}
