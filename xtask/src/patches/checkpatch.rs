// SPDX-License-Identifier: MIT
//! What the kernel's own checkpatch.pl says of the patches, but for what `patches/checkpatch.exceptions` allows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use exitregs_lab::binaries;
use exitregs_lab::host::Source;
use exitregs_lab::patches::Series;

/// How often each type of message comes, by patch and type.
type Counts = BTreeMap<(usize, String), usize>;

/// Returns what is wrong with a series, line by line: messages that are not allowed, and allowances that are not needed.
///
/// # Errors
/// If the script does not run, or the exceptions make no sense.
pub fn check(source: &Source, series: &Series) -> Result<Vec<String>> {
    let path = binaries::workspace().join("patches/checkpatch.exceptions");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allowed = exceptions(&text, &series.name).with_context(|| format!("in {}", path.display()))?;
    let mut found = Counts::new();
    let mut findings = Vec::new();
    for (number, patch) in series.patches.iter().enumerate() {
        let number = number + 1;
        let messages = run(source, patch)?;
        for (kind, message) in types(&messages) {
            let count = found.entry((number, kind.clone())).or_default();
            *count += 1;
            if *count > allowed.get(&(number, kind)).copied().unwrap_or_default() {
                findings.push(format!("{}/{number}: {message}", series.name));
            }
        }
    }
    for ((number, kind), count) in allowed {
        let found = found.get(&(number, kind.clone())).copied().unwrap_or_default();
        if found < count {
            findings.push(format!(
                "{}/{number}: {kind} is allowed {count} times, and comes {found} times",
                series.name
            ));
        }
    }
    Ok(findings)
}

/// The script's messages for a patch.
fn run(source: &Source, patch: &Path) -> Result<String> {
    let options = ["--strict", "--no-signoff", "--show-types", "--no-summary", "--color=never"];
    let output = Command::new("perl")
        .arg("scripts/checkpatch.pl")
        .args(options)
        .arg(patch)
        .current_dir(&source.folder)
        .output()
        .context("cannot run perl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // It exits with 1 both when it finds something and when it cannot work.
    ensure!(
        output.status.success() || types(&text).next().is_some(),
        "checkpatch.pl failed on {}: {}{}",
        patch.display(),
        text.trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(text)
}

/// Type and whole line of each message.
fn types(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let rest = ["ERROR:", "WARNING:", "CHECK:"].iter().find_map(|level| line.strip_prefix(level))?;
        let (kind, _) = rest.split_once(':')?;
        Some((kind.to_owned(), line.to_owned()))
    })
}

/// Parses lines `folder/number type count` and returns those of one folder.
fn exceptions(text: &str, folder: &str) -> Result<Counts> {
    let mut allowed = Counts::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let parse = || {
            let mut words = line.split_whitespace();
            let (name, number) = words.next()?.split_once('/')?;
            let (kind, count) = (words.next()?, words.next()?.parse().ok()?);
            words.next().is_none().then_some((name, number.parse().ok()?, kind, count))
        };
        let (name, number, kind, count) =
            parse().with_context(|| format!("{line:?} is no `folder/number type count`"))?;
        if name == folder {
            allowed.insert((number, kind.to_owned()), count);
        }
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_types() {
        let text = "ERROR:COMPLEX_MACRO: Macros with complex values\n#12: FILE: x.h:3:\n\nCHECK:A: b\n";
        let kinds: Vec<_> = types(text).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, ["COMPLEX_MACRO", "A"]);
    }

    #[test]
    fn exceptions_are_of_one_series() {
        let allowed = exceptions("# x\nmainline/1 A 2\nv6.12/1 B 1\n", "mainline").unwrap();
        assert_eq!(allowed, Counts::from([((1, "A".to_owned()), 2)]));
        assert!(exceptions("mainline/1 A\n", "mainline").is_err());
    }
}
