// SPDX-License-Identifier: MIT
//! Kernel sources: Debian's linux-source packages, fetched, unpacked and kept as they are.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::{self, Apt, Package};
use crate::cache;
use crate::host::requirements::{self, KERNEL_BUILD};

/// What a kernel is built from. `patches/` has a folder of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// Linux 6.12, as in Debian 12.
    V6_12,
    /// The release that the series for submission is made for; Debian 12 has it not, later suites have.
    Mainline,
}

/// Unpacked sources. Nobody changes them: see [`super::Tree`].
#[derive(Clone, Debug)]
pub struct Source {
    /// The package, as `patches/README.md` names it.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The top folder.
    pub folder: PathBuf,
}

/// Where later releases are looked for, in this order.
const LATER_SUITES: [&str; 2] = ["trixie-backports", "sid"];

impl Base {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V6_12, Self::Mainline];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_12 => "v6.12",
            Self::Mainline => "mainline",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::V6_12 => "linux-source-6.12",
            Self::Mainline => "linux-source-7.3",
        }
    }

    /// The sources, fetched unless the cache has them in some version.
    ///
    /// # Errors
    /// If the cache has none and apt cannot find or download them, or they cannot be unpacked.
    pub fn source(self) -> Result<Source> {
        let failed = || format!("cannot fetch the sources of {}", self.name());
        match self.cached_source()? {
            Some(source) => Ok(source),
            None => self.fetch().with_context(failed),
        }
    }

    /// The newest sources of the cache, if it has any.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn cached_source(self) -> Result<Option<Source>> {
        let cache = cache::folder("sources")?;
        let newest = apt::newest_kept(&cache, self.package())?;
        Ok(newest.map(|package| {
            let folder = cache.join(package.folder_name());
            Source { package: package.name, version: package.version, folder }
        }))
    }

    fn fetch(self) -> Result<Source> {
        requirements::install(&KERNEL_BUILD)?;
        let cache = cache::folder("sources")?;
        let _lock = cache::lock(&cache)?;
        if let Some(source) = self.cached_source()? {
            return Ok(source);
        }
        let (apt, package) = self.find()?;
        let download = tempfile::tempdir_in(&cache)?;
        let file = apt.download(&package, download.path())?;
        eprintln!("lab: unpacking {} {}", package.name, package.version);
        apt::run(Command::new("dpkg").arg("-x").arg(&file).arg(download.path()))?;
        let unpacked = download.path().join("source");
        fs::create_dir(&unpacked)?;
        let archive = download.path().join(format!("usr/src/{}.tar.xz", package.name));
        let tar = ["--extract", "--strip-components=1", "--no-same-owner", "--file"];
        apt::run(Command::new("tar").args(tar).arg(&archive).arg("--directory").arg(&unpacked))?;
        let folder = cache.join(package.folder_name());
        fs::rename(&unpacked, &folder)
            .with_context(|| format!("cannot move the unpacked sources to {}", folder.display()))?;
        Ok(Source { package: package.name, version: package.version, folder })
    }

    /// The package, and the lists that have it.
    fn find(self) -> Result<(Apt, Package)> {
        let name = self.package();
        let machine = Apt::machine();
        let newest = machine.newest(name).or_else(|error| match self {
            // Lists that were never fetched have nothing.
            Self::V6_12 => machine.update().and_then(|()| machine.newest(name)),
            Self::Mainline => Err(error),
        });
        let mut error = match newest {
            Ok(package) => return Ok((machine, package)),
            Err(error) => error,
        };
        for suite in LATER_SUITES {
            let attempt = || {
                let apt = Apt::suite(suite)?;
                apt.update()?;
                let package = apt.newest(name).with_context(|| format!("in Debian's {suite}"))?;
                Ok((apt, package))
            };
            match attempt() {
                Ok(found) => return Ok(found),
                Err(other) => error = other,
            }
        }
        Err(error)
    }
}
