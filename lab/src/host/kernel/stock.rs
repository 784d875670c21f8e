// SPDX-License-Identifier: MIT
//! Unmodified Debian cloud kernels: fetched, unpacked and kept.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::{self, Apt, Package};
use super::image::{self, Image};
use crate::cache;

/// A series of kernel packages, of which the newest counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Series {
    /// The package that depends on the newest one.
    metapackage: &'static str,
    /// What the names of the series' packages start with.
    prefix: &'static str,
}

/// Debian 12's own.
pub(super) const DEBIAN_6_1: Series =
    Series { metapackage: "linux-image-cloud-amd64", prefix: "linux-image-6.1." };
/// Debian 12's backport.
pub(super) const DEBIAN_6_12: Series =
    Series { metapackage: "linux-image-6.12-cloud-amd64", prefix: "linux-image-6.12." };

impl Series {
    /// The newest kernel of this series in the cache, if there is one.
    pub(super) fn cached(self) -> Result<Option<Image>> {
        self.newest_cached()?.map(|folder| Image::open(&folder)).transpose()
    }

    /// The newest kernel that apt knows of, downloaded unless the cache holds it already. When apt fails (no network),
    /// the newest one of the cache.
    pub(super) fn fetch(self) -> Result<Image> {
        let folder = match self.fetch_package() {
            Ok(folder) => folder,
            Err(error) => self.newest_cached()?.ok_or(error)?,
        };
        Image::open(&folder)
    }

    fn newest_cached(self) -> Result<Option<PathBuf>> {
        let cache = cache::folder(image::FOLDER)?;
        let newest = apt::newest_kept(&cache, self.prefix)?;
        Ok(newest.map(|package| cache.join(package.folder_name())))
    }

    fn fetch_package(self) -> Result<PathBuf> {
        let apt = Apt::machine();
        let attempt = || unpacked(&apt, &apt.newest(&apt.dependency(self.metapackage)?)?);
        // No lists yet, or lists that name a version which the mirror has replaced meanwhile.
        let attempt = attempt().or_else(|_| apt.update().and_then(|()| attempt()));
        attempt.with_context(|| {
            let metapackage = self.metapackage;
            format!(
                "cannot fetch Debian's kernel {metapackage} (apt needs Debian 12's main and security suites)"
            )
        })
    }
}

/// The folder with a package's files, downloaded first if need be. Several processes may ask at once.
fn unpacked(apt: &Apt, package: &Package) -> Result<PathBuf> {
    let cache = cache::folder(image::FOLDER)?;
    let folder = cache.join(package.folder_name());
    let _lock = cache::lock(&cache)?;
    if folder.exists() {
        return Ok(folder);
    }
    let download = tempfile::tempdir_in(&cache)?;
    let file = apt.download(package, download.path())?;
    let unpacked = download.path().join("root");
    apt::run(Command::new("dpkg").arg("-x").arg(&file).arg(&unpacked))?;
    let release = image::release(&unpacked)?;
    apt::run(Command::new("depmod").arg("-b").arg(&unpacked).arg(release))?;
    fs::rename(&unpacked, &folder)
        .with_context(|| format!("cannot move the unpacked kernel to {}", folder.display()))?;
    Ok(folder)
}
