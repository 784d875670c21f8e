// SPDX-License-Identifier: MIT
//! `cargo xtask dist`: what is released, a tarball and a Debian package around one static binary.
//!
//! The same checkout gives the same bytes: times are those of the last commit, owners are root, order is by name.

mod licences;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use exitregs_lab::binaries;
use exitregs_lab::host::requirements::{self, Requirement};

use crate::setup;

/// Make the tarball and the Debian package in target/dist/
///
/// Both hold the static `exitregs` (it needs no library and no compiler where it runs), its man pages, its
/// completions and the licences. Prints the paths of the two files.
#[derive(Args)]
pub struct Arguments {
    /// Where they go instead
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// What packing needs besides what building needs; dpkg-deb comes with dpkg.
const PACKING: [Requirement; 3] = [
    Requirement::new("dpkg-deb", "dpkg"),
    Requirement::new("strip", "binutils"),
    Requirement::new("/usr/share/doc/libc6-dev/copyright", "libc6-dev"),
];

/// What is packed.
struct Parts {
    version: String,
    /// Seconds since the epoch that every file gets as its time.
    time: String,
    /// The stripped binary.
    binary: PathBuf,
    /// Folder with `man/` and `completions/`.
    generated: PathBuf,
    /// The licences of everything that is linked into the binary.
    third_party: String,
}

/// Builds, packs and prints the paths.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    requirements::install(&[&setup::BUILD[..], &PACKING].concat())?;
    let output = arguments.output.clone().unwrap_or_else(|| binaries::target_folder().join("dist"));
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let scratch = tempfile::tempdir().context("cannot create a temporary folder")?;
    let parts = Parts::make(scratch.path())?;
    println!("{}", tarball(&parts, scratch.path(), &output)?.display());
    println!("{}", debian_package(&parts, scratch.path(), &output)?.display());
    Ok(ExitCode::SUCCESS)
}

impl Parts {
    fn make(scratch: &Path) -> Result<Self> {
        let binary = scratch.join("exitregs");
        fs::copy(binaries::tool()?, &binary).context("cannot copy the binary")?;
        succeed(Command::new("strip").arg(&binary))?;
        let generated = scratch.join("generated");
        succeed(Command::new(&binary).arg("generate").arg(&generated))?;
        let version = succeed(Command::new(&binary).arg("--version"))?;
        let version = version.split_whitespace().next_back().context("`exitregs --version` says nothing")?;
        let mut git = Command::new("git");
        git.args(["log", "-1", "--format=%ct"]).current_dir(binaries::workspace());
        Ok(Self {
            version: version.to_owned(),
            time: succeed(&mut git)?.trim().to_owned(),
            binary,
            generated,
            third_party: licences::of_dependencies()?,
        })
    }

    /// README, licences: what both packages have beside the program, into `folder`.
    fn write_documents(&self, folder: &Path) -> Result<()> {
        let top = binaries::workspace();
        copy(&top.join("README.md"), &folder.join("README.md"), 0o644)?;
        copy(&top.join("LICENSE"), &folder.join("LICENSE"), 0o644)?;
        for text in files(&top.join("LICENSES"))? {
            copy(&text, &folder.join("LICENSES").join(name(&text)?), 0o644)?;
        }
        write(&folder.join("THIRD-PARTY.txt"), &self.third_party)
    }
}

/// `exitregs-VERSION-x86_64.tar.gz`, to be unpacked anywhere.
fn tarball(parts: &Parts, scratch: &Path, output: &Path) -> Result<PathBuf> {
    let stem = format!("exitregs-{}-x86_64", parts.version);
    let folder = scratch.join(&stem);
    copy(&parts.binary, &folder.join("exitregs"), 0o755)?;
    for (from, to) in [("man", "man/man1"), ("completions", "completions")] {
        for file in files(&parts.generated.join(from))? {
            copy(&file, &folder.join(to).join(name(&file)?), 0o644)?;
        }
    }
    parts.write_documents(&folder)?;
    let archive = output.join(format!("{stem}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    tar.arg(format!("--mtime=@{}", parts.time));
    succeed(tar.args(["--gzip", "--create", "--file"]).arg(&archive).arg("-C").arg(scratch).arg(&stem))?;
    Ok(archive)
}

/// `exitregs_VERSION_amd64.deb`, which depends on nothing.
fn debian_package(parts: &Parts, scratch: &Path, output: &Path) -> Result<PathBuf> {
    let root = scratch.join("debian");
    copy(&parts.binary, &root.join("usr/bin/exitregs"), 0o755)?;
    for page in files(&parts.generated.join("man"))? {
        let target = root.join("usr/share/man/man1").join(name(&page)?);
        copy(&page, &target, 0o644)?;
        succeed(Command::new("gzip").args(["--best", "--no-name"]).arg(&target))?;
    }
    for (file, target) in [
        ("exitregs.bash", "usr/share/bash-completion/completions/exitregs"),
        ("_exitregs", "usr/share/zsh/vendor-completions/_exitregs"),
        ("exitregs.fish", "usr/share/fish/vendor_completions.d/exitregs.fish"),
    ] {
        copy(&parts.generated.join("completions").join(file), &root.join(target), 0o644)?;
    }
    let documents = root.join("usr/share/doc/exitregs");
    parts.write_documents(&documents)?;
    // Where Debian looks for it.
    fs::rename(documents.join("LICENSE"), documents.join("copyright")).context("cannot name the licence")?;
    let kib = size(&root)?.div_ceil(1024);
    let control = format!(
        "Package: exitregs\n\
         Version: {}\n\
         Architecture: amd64\n\
         Maintainer: The exitregs developers <exitregs@developers.invalid>\n\
         Installed-Size: {kib}\n\
         Section: utils\n\
         Priority: optional\n\
         Description: KVM's VM exits with guest registers and nesting level\n \
         Traces, counts and times the exits of x86 KVM guests with RAX, RBX, RCX and\n \
         RDX and with the level, L1 or L2, that was running, on unmodified kernels.\n",
        parts.version
    );
    write(&root.join("DEBIAN/control"), &control)?;
    let package = output.join(format!("exitregs_{}_amd64.deb", parts.version));
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", "--build"])
        .arg(&root)
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", &parts.time);
    succeed(&mut build)?;
    Ok(package)
}

/// Runs a program and returns its standard output.
fn succeed(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The files in a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot list {}", folder.display());
    let entries = fs::read_dir(folder).with_context(failed)?;
    let mut files =
        entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>().with_context(failed)?;
    if files.is_empty() {
        bail!("{} is empty", folder.display());
    }
    files.sort();
    Ok(files)
}

fn name(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().with_context(|| format!("{} has no name", path.display()))
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().with_context(|| format!("{} has no folder", path.display()))?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    create_parent(to)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", to.display()))
}

fn write(to: &Path, text: &str) -> Result<()> {
    create_parent(to)?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

/// The bytes in all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for path in files(folder)? {
        sum += if path.is_dir() { size(&path)? } else { fs::metadata(&path)?.len() };
    }
    Ok(sum)
}
