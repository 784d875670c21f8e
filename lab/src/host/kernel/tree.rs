// SPDX-License-Identifier: MIT
//! A copy of kernel sources to patch and build. Files that are not patched are hard links to the unpacked package's;
//! what is built goes to the folder `build` inside, from which kbuild refers to the sources by relative paths: so a copy of it
//! in another tree is still up to date there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use super::source::Source;

/// Sources, and what was built of them.
#[derive(Clone, Debug)]
pub struct Tree {
    folder: PathBuf,
    variables: Vec<String>,
}

impl Tree {
    /// The tree in `folder`, whether it is there yet or not.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, variables: Vec::new() }
    }

    /// Gives every `make` a variable, as `NAME=VALUE`.
    pub fn variable(mut self, setting: impl Into<String>) -> Self {
        self.variables.push(setting.into());
        self
    }

    /// Its top folder: the sources.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of what was built, kbuild's `O=`.
    pub fn build_folder(&self) -> PathBuf {
        self.folder.join("build")
    }

    /// Makes it anew: the sources with `patches` applied, nothing built.
    ///
    /// # Errors
    /// If the file system is full, or a patch does not apply.
    pub fn create(&self, source: &Source, patches: &[PathBuf]) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot remove {}", self.folder.display()))?;
        }
        copy(&["--archive", "--link"], &source.folder, &self.folder)?;
        fs::create_dir(self.build_folder())?;
        for patch in patches {
            // git writes a new file and renames nothing into place of the old: the package's file stays as it is.
            let mut git = Command::new("git");
            git.args(["apply", "--whitespace=nowarn"]).arg(patch).current_dir(&self.folder);
            // In a folder that is part of a repository, git would look for the files at the repository's top.
            git.env("GIT_CEILING_DIRECTORIES", self.folder.parent().unwrap_or(&self.folder));
            git.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE");
            let output = git.output().context("cannot run git")?;
            ensure!(
                output.status.success(),
                "{} does not apply to {} {}: {}",
                patch.display(),
                source.package,
                source.version,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Replaces a file of the sources, or removes it; leaves it alone if that changes nothing. Returns whether it did.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn replace(&self, file: &Path, content: Option<&[u8]>) -> Result<bool> {
        let path = self.folder.join(file);
        let failed = || format!("cannot change {}", path.display());
        let present = fs::read(&path).ok();
        if present.as_deref() == content {
            return Ok(false);
        }
        if present.is_some() {
            // Never written to: it may be a hard link.
            fs::remove_file(&path).with_context(failed)?;
        }
        if let Some(content) = content {
            fs::create_dir_all(path.parent().unwrap_or(&path)).with_context(failed)?;
            fs::write(&path, content).with_context(failed)?;
        }
        Ok(true)
    }

    /// Takes over what was built in a tree of the same sources, but for the file `except`.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn copy_results(&self, from: &Self, except: &str) -> Result<()> {
        fs::remove_dir_all(self.build_folder())?;
        copy(&["--archive", "--reflink=auto"], &from.build_folder(), &self.build_folder())?;
        fs::remove_file(self.build_folder().join(except))
            .with_context(|| format!("cannot remove {except} from a copy of {}", from.folder.display()))?;
        // objtool and its like know where they lie, and so are made again; then all objects would be, for being older.
        let tools = Path::new("build/tools");
        let time = fs::metadata(from.folder.join(tools).join("objtool/objtool"))?.modified()?;
        self.make(&["prepare"])?;
        set_times(&self.folder.join(tools), time)
    }

    /// Removes what linking the kernel leaves: half a gigabyte that is of no use any more.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_intermediate(&self) -> Result<()> {
        for entry in fs::read_dir(self.build_folder())? {
            let entry = entry?;
            let name = entry.file_name();
            if name == "vmlinux.o" || name.to_string_lossy().starts_with(".tmp_vmlinux") {
                fs::remove_file(entry.path())
                    .with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Configures: what `fragment` says, and all that it does not mention is off.
    ///
    /// # Errors
    /// If one of the settings did not come about, for want of another or because it has no such name.
    pub fn configure(&self, fragment: &str) -> Result<()> {
        let file = self.build_folder().join("exitregs.config");
        fs::write(&file, fragment).with_context(|| format!("cannot write {}", file.display()))?;
        self.make(&[&format!("KCONFIG_ALLCONFIG={}", file.display()), "allnoconfig"])?;
        let config = fs::read_to_string(self.build_folder().join(".config"))?;
        let wanted = fragment.lines().filter(|line| line.starts_with("CONFIG_"));
        let missing: Vec<_> = wanted.filter(|line| !config.lines().any(|other| other == *line)).collect();
        ensure!(missing.is_empty(), "the kernel's configuration did not accept {}", missing.join(", "));
        Ok(())
    }

    /// A `make` in a folder of the tree, with as many processes as there are CPUs. Results do not depend on when and where.
    pub fn make_command(&self, folder: &str) -> Command {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut command = Command::new("make");
        command
            .arg("--directory")
            .arg(self.folder.join(folder))
            .args(["--silent", &format!("--jobs={jobs}")]);
        command.args(&self.variables);
        command.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01").env("KBUILD_BUILD_USER", "exitregs");
        command.env("KBUILD_BUILD_HOST", "lab").stdin(Stdio::null());
        // cargo's own, which would become kbuild's.
        command.env_remove("MAKEFLAGS").env_remove("MFLAGS");
        command
    }

    /// Runs kbuild's `make` with these arguments, and returns what it printed.
    ///
    /// # Errors
    /// If it fails; the error shows the end of what it printed.
    pub fn make<S: AsRef<str>>(&self, arguments: &[S]) -> Result<String> {
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let path = PathBuf::from(format!("{}.log", self.folder.display()));
        // A file, for those who wait and wonder.
        let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut command = self.make_command("");
        command.arg("O=build").args(&arguments).stdout(log.try_clone()?).stderr(log);
        let status = command.status().context("cannot run make")?;
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if !status.success() {
            let lines: Vec<_> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n  ");
            bail!(
                "`make {}` failed in {}; all it printed is in {}, its end:\n  {end}",
                arguments.join(" "),
                self.folder.display(),
                path.display()
            );
        }
        Ok(text)
    }
}

/// Sets the time of modification of every file below a folder.
fn set_times(folder: &Path, time: SystemTime) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            set_times(&entry.path(), time)?;
        } else if kind.is_file() {
            File::open(entry.path())
                .and_then(|file| file.set_modified(time))
                .with_context(|| format!("cannot set the time of {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn copy(options: &[&str], from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").args(options).arg("--no-target-directory").arg(from).arg(to).output();
    let output = output.context("cannot run cp")?;
    ensure!(
        output.status.success(),
        "cannot copy {} to {}: {}",
        from.display(),
        to.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-old\n+new\n";

    #[test]
    fn the_sources_stay_as_they_are() {
        let top = tempfile::tempdir().unwrap();
        // As if the cache were in somebody's repository.
        assert!(Command::new("git").args(["init", "--quiet"]).arg(top.path()).status().unwrap().success());
        let source = Source { package: "p".into(), version: "1".into(), folder: top.path().join("source") };
        fs::create_dir(&source.folder).unwrap();
        for name in ["a", "b"] {
            fs::write(source.folder.join(name), "old\n").unwrap();
        }
        let patch = top.path().join("patch");
        fs::write(&patch, PATCH).unwrap();
        let read = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).unwrap();

        let tree = Tree::new(top.path().join("tree"));
        tree.create(&source, std::slice::from_ref(&patch)).unwrap();
        assert_eq!(read(tree.folder(), "a"), "new\n");
        assert!(tree.replace(Path::new("b"), Some(b"other")).unwrap());
        assert!(!tree.replace(Path::new("b"), Some(b"other")).unwrap());
        assert_eq!(read(tree.folder(), "b"), "other");
        for name in ["a", "b"] {
            assert_eq!(read(&source.folder, name), "old\n");
        }

        let error = tree.create(&source, &[patch.clone(), patch.clone()]).unwrap_err().to_string();
        assert!(error.contains(&format!("{} does not apply to p 1: ", patch.display())), "{error}");
    }
}
