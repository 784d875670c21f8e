// SPDX-License-Identifier: MIT
//! The kernel module of this checkout (`Kbuild`, `src/`), built for a kernel.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binaries;
use crate::host::kernel::rust;
use crate::host::{Built, Tree};

/// The module, as `lsmod` prints it.
pub const NAME: &str = "kvm_exitregs";

/// What is compiled.
const SOURCES: [&str; 3] = ["Kbuild", "src", "common"];

/// Builds the module for a kernel that is built here; returns the path of the `.ko`.
///
/// # Errors
/// If the kernel cannot be built, or the module does not compile.
pub fn build(kernel: Built) -> Result<PathBuf> {
    let tree = kernel.tree()?;
    compile(&kernel.to_string(), |folder| command(&tree, folder))
}

/// The same, as on a host that has the kernel's public headers alone: the module does not know KVM's private structures.
///
/// # Errors
/// As [`build`].
pub fn build_by_public_headers(kernel: Built) -> Result<PathBuf> {
    let tree = kernel.tree()?;
    compile(&format!("{kernel}-public"), |folder| {
        let mut make = command(&tree, folder);
        make.arg("exitregs_private=");
        make
    })
}

/// Builds the module for the kernel whose folder of build results (or installed headers) is `kdir`.
///
/// # Errors
/// If the module does not compile.
pub fn build_for(kdir: &Path) -> Result<PathBuf> {
    let kdir = kdir.canonicalize().with_context(|| format!("there is no {}", kdir.display()))?;
    let name = kdir.to_string_lossy().replace('/', "_");
    compile(&name, |folder| {
        let mut make = Command::new("make");
        make.arg("--directory").arg(&kdir).args(["--silent", "modules"]).arg(external(folder));
        make.env_remove("MAKEFLAGS").env_remove("MFLAGS");
        make
    })
}

/// The same, built by DKMS as on a host that has the sources where DKMS looks for them. Everything lies in `folder`.
///
/// # Errors
/// As [`build`]; or DKMS fails, which must be installed.
pub fn build_by_dkms(kernel: Built, folder: &Path) -> Result<PathBuf> {
    const VERSION: &str = "0.1.0";

    let tree = kernel.tree()?;
    let build = tree.build_folder();
    let release = build.join("include/config/kernel.release");
    let release =
        fs::read_to_string(&release).with_context(|| format!("cannot read {}", release.display()))?;
    let sources = folder.join(format!("{NAME}-{VERSION}"));
    copy(&SOURCES, &sources)?;
    copy(&["Makefile", "dkms.conf"], &sources)?;
    let bindgen = rust::bindgen()?;
    let programs = env::var_os("PATH").unwrap_or_default();
    let programs = bindgen.parent().map(Path::to_owned).into_iter().chain(env::split_paths(&programs));
    let programs = env::join_paths(programs)?;
    let trees = folder.join("dkms");
    fs::create_dir_all(&trees).with_context(|| format!("cannot create {}", trees.display()))?;
    let dkms = |action: &str| {
        let mut command = Command::new("dkms");
        command.args([action, &format!("{NAME}/{VERSION}"), "--sourcetree"]).arg(folder);
        command.arg("--dkmstree").arg(&trees).env("PATH", &programs);
        command.env_remove("MAKEFLAGS").env_remove("MFLAGS");
        command
    };
    run(&mut dkms("add"), &sources.display().to_string())?;
    let mut command = dkms("build");
    command.args(["-k", release.trim(), "--kernelsourcedir"]).arg(build);
    run(&mut command, &format!("the module for {kernel}"))?;
    Ok(trees.join(NAME).join(VERSION).join(release.trim()).join(format!("x86_64/module/{NAME}.ko")))
}

fn command(tree: &Tree, folder: &Path) -> Command {
    let mut make = tree.make_command("build");
    make.arg("modules").arg(external(folder));
    make
}

/// `M=`, which tells kbuild where an external module is.
fn external(folder: &Path) -> OsString {
    let mut argument = OsString::from("M=");
    argument.push(folder);
    argument
}

/// Compiles a copy of the sources, so that kernels do not get into each other's way, nor anything into the checkout.
fn compile(name: &str, make: impl FnOnce(&Path) -> Command) -> Result<PathBuf> {
    let folder = binaries::workspace().join("target/module").join(name);
    copy(&SOURCES, &folder)?;
    run(&mut make(&folder), &format!("the module for {name}"))?;
    Ok(folder.join(format!("{NAME}.ko")))
}

/// Copies parts of the checkout, with the times that the files have, so that only what has changed is compiled again.
fn copy(sources: &[&str], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for source in sources {
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--preserve=timestamps"]).arg(binaries::workspace().join(source));
        run(copy.arg(folder), source)?;
    }
    Ok(())
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{program} failed for {what}:\n{}", text.trim());
    Ok(())
}
