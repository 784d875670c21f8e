// SPDX-License-Identifier: MIT
//! The patch series of this repository, as files.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::binaries;

/// A series: a folder of `patches/`, as `git format-patch` writes it.
#[derive(Clone, Debug)]
pub struct Series {
    /// The folder's name.
    pub name: String,
    /// `0000-cover-letter.patch`.
    pub cover_letter: PathBuf,
    /// The patches, in order.
    pub patches: Vec<PathBuf>,
}

impl Series {
    /// The series of this name.
    ///
    /// # Errors
    /// If there is none, or it is not numbered from 0 on.
    pub fn read(name: &str) -> Result<Self> {
        let folder = binaries::workspace().join("patches").join(name);
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        for (number, path) in files.iter().enumerate() {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            ensure!(
                file.starts_with(&format!("{number:04}-")) && file.ends_with(".patch"),
                "{} is not patch {number} of its series",
                path.display()
            );
        }
        ensure!(files.len() > 1, "{} holds no series", folder.display());
        let cover_letter = files.remove(0);
        Ok(Self { name: name.to_owned(), cover_letter, patches: files })
    }

    /// The commit that the series applies to, see `patches/README.md`.
    ///
    /// # Errors
    /// If the cover letter does not say.
    pub fn base_commit(&self) -> Result<String> {
        let path = self.cover_letter.display();
        let text = fs::read_to_string(&self.cover_letter).with_context(|| format!("cannot read {path}"))?;
        let base = text.lines().find_map(|line| line.strip_prefix("base-commit: "));
        base.map(str::to_owned).with_context(|| format!("{path} names no base-commit"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_read() {
        for (name, patches) in [("mainline", 9), ("v6.12", 9), ("perf", 3)] {
            let series = Series::read(name).unwrap();
            assert_eq!(series.patches.len(), patches);
            assert_eq!(series.base_commit().unwrap().len(), 40);
        }
        assert!(Series::read("nothing").is_err());
    }
}
