// SPDX-License-Identifier: MIT
//! Debian's packages, found and downloaded through the machine's own apt, and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;

/// What apt knows of.
#[derive(Debug)]
pub struct Apt {
    /// Options that make apt look into other lists than the machine's own.
    options: Vec<String>,
}

impl Apt {
    /// The releases that the machine itself is set up for.
    pub fn machine() -> Self {
        Self { options: Vec::new() }
    }

    /// Another suite of Debian, from the mirror that the machine uses; its lists are kept in the cache, beside the
    /// machine's own, which stay as they are.
    ///
    /// # Errors
    /// If the machine uses no mirror of Debian.
    pub fn suite(suite: &str) -> Result<Self> {
        let targets = || {
            let format = ["indextargets", "--format", "$(REPO_URI)"];
            run(Command::new("apt-get").args(format).args(["Origin: Debian", "Label: Debian"]))
        };
        let mut mirrors = targets()?;
        if mirrors.is_empty() {
            Self::machine().update()?;
            mirrors = targets()?;
        }
        let mirror = mirrors.lines().next().context("apt uses no mirror of Debian on this machine")?;

        let folder = cache::folder(&format!("apt/{suite}"))?;
        let list = folder.join("sources.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [signed-by={keys}] {mirror} {suite} main\n");
        fs::write(&list, line).with_context(|| format!("cannot write {}", list.display()))?;
        let lists = folder.join("lists");
        fs::create_dir_all(lists.join("partial"))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", lists.display()),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        Ok(Self { options: options.into_iter().collect() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }

    /// Refreshes the lists.
    ///
    /// # Errors
    /// If apt fails.
    pub fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["update", "--quiet=2"])).map(drop)
    }

    /// The package that a metapackage depends on.
    ///
    /// # Errors
    /// If it depends on none.
    pub fn dependency(&self, metapackage: &str) -> Result<String> {
        let depends = run(self.command("apt-cache").args(["depends", metapackage]))?;
        let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        name.map(str::to_owned).with_context(|| format!("apt knows no package that {metapackage} depends on"))
    }

    /// The newest version of a package.
    ///
    /// # Errors
    /// If there is none.
    pub fn newest(&self, name: &str) -> Result<Package> {
        let policy = run(self.command("apt-cache").args(["policy", name]))?;
        let version = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .with_context(|| format!("apt can download no version of {name}"))?;
        Ok(Package { name: name.to_owned(), version: version.to_owned() })
    }

    /// The package as a file in `folder`.
    ///
    /// # Errors
    /// If it cannot be downloaded.
    pub fn download(&self, package: &Package, folder: &Path) -> Result<PathBuf> {
        let Package { name, version } = package;
        eprintln!("lab: fetching {name} {version}");
        let what = format!("{name}={version}");
        run(self.command("apt-get").args(["download", "--quiet=2", &what]).current_dir(folder))?;
        fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download left no package of {name}"))
    }
}

/// A package in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Package {
    /// The name of the folder that has what was in it: `<package>_<version>`.
    pub fn folder_name(&self) -> String {
        format!("{}_{}", self.name, self.version)
    }
}

/// The newest package of `folder`, by dpkg's order of versions, among those whose name starts with `prefix`.
///
/// # Errors
/// If the folder cannot be read, or dpkg not be run.
pub fn newest_kept(folder: &Path, prefix: &str) -> Result<Option<Package>> {
    let mut newest: Option<Package> = None;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?.file_name().to_string_lossy().into_owned();
        let Some((name, version)) = entry.split_once('_').filter(|(name, _)| name.starts_with(prefix)) else {
            continue;
        };
        let newer = match &newest {
            None => true,
            Some(best) => Command::new("dpkg")
                .args(["--compare-versions", version, "gt", &best.version])
                .status()?
                .success(),
        };
        if newer {
            newest = Some(Package { name: name.to_owned(), version: version.to_owned() });
        }
    }
    Ok(newest)
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// If it cannot be run or fails; its messages are in the error.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let line = format!("{program} {}", arguments.join(" "));
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(output.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
