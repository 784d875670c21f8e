// SPDX-License-Identifier: MIT
//! The commit that a series applies to, made of the unpacked sources as `patches/README.md` describes, and the series
//! applied to it with `git am`.
//!
//! The repository is complete as far as the commit's id and its trees go. Of the files it stores only those that git has
//! to look at: the ones in folders that the series touches, and in the folders above them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use exitregs_lab::host::Source;
use exitregs_lab::patches::Series;
use tempfile::TempDir;

/// A series as commits.
#[derive(Debug)]
pub struct Applied {
    repository: TempDir,
    /// The commits, in order.
    pub commits: Vec<String>,
    /// The files that any of them touches.
    pub touched: Vec<PathBuf>,
}

impl Applied {
    /// Imports the sources and applies the series.
    ///
    /// # Errors
    /// If the sources' commit is not the one that the cover letter names, or a patch does not apply.
    pub fn new(source: &Source, series: &Series) -> Result<Self> {
        let mut applied = Self { repository: tempfile::tempdir()?, commits: Vec::new(), touched: Vec::new() };
        applied.git(["init", "--quiet"], None)?;
        applied.touched = applied.touched_by(series)?;
        let base = applied.import(source)?;
        let expected = series.base_commit()?;
        ensure!(
            base == expected,
            "the series {} is for the base {expected}, and {} {} is {base}: rebase it, and generate it again",
            series.name,
            source.package,
            source.version
        );
        let mut am = vec![OsStr::new("am"), OsStr::new("--quiet"), OsStr::new("--no-gpg-sign")];
        am.extend(series.patches.iter().map(|path| path.as_os_str()));
        applied.git(am, None).context("the series does not apply")?;
        let commits = applied.git(["rev-list", "--reverse", &format!("{base}..HEAD")], None)?;
        applied.commits = commits.lines().map(str::to_owned).collect();
        ensure!(applied.commits.len() == series.patches.len(), "git am left another number of commits");
        Ok(applied)
    }

    /// A touched file as of a commit; `None` if it does not have it.
    ///
    /// # Errors
    /// If git fails.
    pub fn content(&self, commit: &str, path: &Path) -> Result<Option<Vec<u8>>> {
        let listed =
            self.git([OsStr::new("ls-tree"), OsStr::new(commit), OsStr::new("--"), path.as_os_str()], None)?;
        match listed.split_whitespace().nth(2) {
            None => Ok(None),
            Some(blob) => Ok(Some(self.git_bytes(["cat-file", "blob", blob], None)?)),
        }
    }

    /// The files that a commit changes.
    ///
    /// # Errors
    /// If git fails.
    pub fn changed(&self, commit: &str) -> Result<Vec<PathBuf>> {
        let paths = self.git(["diff-tree", "--no-commit-id", "--name-only", "-r", commit], None)?;
        Ok(paths.lines().map(PathBuf::from).collect())
    }

    fn touched_by(&self, series: &Series) -> Result<Vec<PathBuf>> {
        let mut paths = BTreeSet::new();
        for patch in &series.patches {
            let stat = self.git([OsStr::new("apply"), OsStr::new("--numstat"), patch.as_os_str()], None)?;
            paths.extend(stat.lines().filter_map(|line| line.split('\t').nth(2)).map(PathBuf::from));
        }
        Ok(paths.into_iter().collect())
    }

    /// Makes the base commit, and checks out what the series touches.
    fn import(&self, source: &Source) -> Result<String> {
        let mut stored = BTreeSet::new();
        for path in &self.touched {
            stored.extend(path.ancestors().skip(1).map(Path::to_owned));
        }
        let files = files(&source.folder)?;
        let (kept, counted): (Vec<_>, Vec<_>) = files.iter().partition::<Vec<&File>, _>(|file| {
            file.path.parent().is_some_and(|folder| stored.contains(folder))
        });
        let mut index = String::new();
        for (files, options) in [(kept, &["-w"][..]), (counted, &[])] {
            for file in self.hash(&source.folder, &files, options)? {
                writeln!(index, "{file}")?;
            }
        }
        self.git(["update-index", "--add", "--index-info"], Some(index.as_bytes()))?;
        let tree = self.git(["write-tree", "--missing-ok"], None)?;
        let message = format!("{} {}\n", source.package, source.version);
        let mut commit = self.command(["commit-tree", tree.trim()]);
        for role in ["AUTHOR", "COMMITTER"] {
            commit.env(format!("GIT_{role}_NAME"), "Debian");
            commit.env(format!("GIT_{role}_EMAIL"), "debian-kernel@lists.debian.org");
            commit.env(format!("GIT_{role}_DATE"), "2000-01-01T00:00:00Z");
        }
        let base = String::from_utf8(output(&mut commit, Some(message.as_bytes()))?)?.trim().to_owned();
        self.git(["update-ref", "HEAD", &base], None)?;
        // This also notes which trees are unchanged, so that nobody asks for the files in them.
        self.git(["read-tree", "HEAD"], None)?;
        let present: Vec<_> = self
            .touched
            .iter()
            .filter(|path| source.folder.join(path).exists())
            .map(|path| path.as_os_str())
            .collect();
        let checkout = ["checkout-index", "--force", "--"].map(OsStr::new);
        self.git(checkout.into_iter().chain(present), None)?;
        Ok(base)
    }

    /// Lines for `git update-index --index-info`.
    fn hash(&self, folder: &Path, files: &[&File], options: &[&str]) -> Result<Vec<String>> {
        let (links, regular): (Vec<&&File>, Vec<&&File>) = files.iter().partition(|file| file.mode == LINK);
        let mut lines = Vec::new();
        let hash = ["hash-object"].iter().chain(options).copied();
        let mut paths = Vec::new();
        for file in &regular {
            paths.extend_from_slice(folder.join(&file.path).as_os_str().as_bytes());
            paths.push(b'\n');
        }
        let ids = self.git(hash.clone().chain(["--no-filters", "--stdin-paths"]), Some(&paths))?;
        lines.extend(ids.lines().zip(&regular).map(|(id, file)| file.index_line(id)));
        ensure!(lines.len() == regular.len(), "git hash-object left files out");
        for file in links {
            let target = fs::read_link(folder.join(&file.path))?;
            let id = self.git(hash.clone().chain(["--stdin"]), Some(target.as_os_str().as_bytes()))?;
            lines.push(file.index_line(id.trim()));
        }
        Ok(lines)
    }

    fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(self.repository.path());
        // Nothing of this person's settings, and of a git that this may be called from.
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY"] {
            command.env_remove(name);
        }
        command.env("GIT_COMMITTER_NAME", "exitregs").env("GIT_COMMITTER_EMAIL", "<>");
        command
    }

    fn git_bytes(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        input: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        output(&mut self.command(arguments), input)
    }

    fn git(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        input: Option<&[u8]>,
    ) -> Result<String> {
        String::from_utf8(self.git_bytes(arguments, input)?).context("git's output is not UTF-8")
    }
}

/// git's mode of a symbolic link.
const LINK: u32 = 0o120_000;

/// A file of the sources.
#[derive(Debug)]
struct File {
    /// Below the top folder.
    path: PathBuf,
    /// As git has it.
    mode: u32,
}

impl File {
    fn index_line(&self, id: &str) -> String {
        format!("{:o} {id}\t{}", self.mode, self.path.display())
    }
}

/// All files below a folder.
fn files(top: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = top.join(&folder);
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(path);
            } else {
                let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
                let mode = match (kind.is_symlink(), executable) {
                    (true, _) => LINK,
                    (_, true) => 0o100_755,
                    (_, false) => 0o100_644,
                };
                files.push(File { path, mode });
            }
        }
    }
    Ok(files)
}

/// Runs a command with this on its standard input, and returns its standard output.
fn output(command: &mut Command, input: Option<&[u8]>) -> Result<Vec<u8>> {
    let line = format!("git {}", command.get_args().next().unwrap_or_default().to_string_lossy());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {line}"))?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    let output = thread::scope(|scope| {
        let writer = scope.spawn(move || match stdin.write_all(input.unwrap_or_default()) {
            // It says itself why it did not read on.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        });
        let output = child.wait_with_output();
        writer.join().expect("writing does not panic")?;
        output
    });
    let output = output.with_context(|| format!("cannot run {line}"))?;
    ensure!(output.status.success(), "{line} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}
