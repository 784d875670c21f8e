// SPDX-License-Identifier: MIT
//! The suite `spdx`: every source file says on its first lines under which licence it is, and that licence's text is
//! in LICENSES/.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use exitregs_lab::binaries;

/// Names, or ends of names, of the files that are source code.
const SOURCES: [&str; 9] = [".rs", ".c", ".h", ".S", ".sh", ".py", "Kbuild", "Makefile", ".ci/run"];
/// The line may come after a `#!` or, in C, a comment's opening.
const FIRST_LINES: usize = 3;

/// The files that git knows of or would add, and that say nothing or something unknown.
pub fn check() -> Result<Vec<String>> {
    let top = binaries::workspace();
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(top).output().context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let mut findings = Vec::new();
    for name in String::from_utf8_lossy(&output.stdout).lines() {
        let path = top.join(name);
        // A file deleted but not yet committed is still listed.
        if !SOURCES.iter().any(|end| name.ends_with(end)) || !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        match licences(&text) {
            None => {
                findings.push(format!("{name}: no SPDX-License-Identifier in its first {FIRST_LINES} lines"))
            }
            Some(ids) => {
                let unknown =
                    ids.into_iter().filter(|id| !top.join("LICENSES").join(format!("{id}.txt")).exists());
                findings.extend(unknown.map(|id| format!("{name}: LICENSES/ has no {id}.txt")));
            }
        }
    }
    Ok(findings)
}

/// The licences that a file's SPDX line combines.
fn licences(text: &str) -> Option<Vec<&str>> {
    let (_, expression) =
        text.lines().take(FIRST_LINES).find_map(|line| line.split_once("SPDX-License-Identifier:"))?;
    let words = expression.trim_end_matches("*/").split_whitespace();
    Some(
        words
            .map(|word| word.trim_matches(['(', ')']))
            .filter(|word| !["OR", "AND"].contains(word))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_in_every_kind_of_comment() {
        assert_eq!(licences("// SPDX-License-Identifier: MIT\n"), Some(vec!["MIT"]));
        assert_eq!(licences("#!/bin/sh\n# SPDX-License-Identifier: MIT\n"), Some(vec!["MIT"]));
        assert_eq!(
            licences("/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */"),
            Some(vec!["GPL-2.0-only", "MIT"])
        );
        assert_eq!(licences("fn main() {}\n\n\n// SPDX-License-Identifier: MIT\n"), None);
    }
}
