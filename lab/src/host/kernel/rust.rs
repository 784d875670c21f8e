// SPDX-License-Identifier: MIT
//! The Rust that kernels are built with: the compiler that builds this too, the sources of its library, and bindgen.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::apt;
use crate::cache;

/// The release of bindgen. Debian 12's is too old for kernels.
const BINDGEN: &str = "0.73.2";

/// The component of rustup with the library's sources, which kbuild compiles for the kernel.
const SOURCES: &str = "rust-src";

/// bindgen: installed for the lab alone, not among the user's own programs.
///
/// # Errors
/// If there can be no cache.
pub(crate) fn bindgen() -> Result<PathBuf> {
    Ok(bindgen_folder()?.join("bin/bindgen"))
}

fn bindgen_folder() -> Result<PathBuf> {
    cache::folder(&format!("bindgen-{BINDGEN}"))
}

/// Whether all is there.
///
/// # Errors
/// If rustc cannot be run.
pub(super) fn is_installed() -> Result<bool> {
    Ok(bindgen()?.exists() && has_sources()?)
}

/// Installs what this machine lacks and returns its names; quick when there is nothing to do.
///
/// # Errors
/// If rustup or cargo fails.
pub fn install() -> Result<Vec<String>> {
    let mut done = Vec::new();
    if !has_sources()? {
        let mut rustup = Command::new("rustup");
        run(rustup.args(["component", "add", SOURCES])).with_context(|| {
            format!("kernels need the sources of Rust's library: install {SOURCES} as you did rustc")
        })?;
        ensure!(has_sources()?, "rustup added {SOURCES} to another toolchain than that of rustc");
        done.push(SOURCES.to_owned());
    }
    let folder = bindgen_folder()?;
    let _lock = cache::lock(&folder)?;
    if !bindgen()?.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", "--quiet", "--locked", "bindgen-cli", "--version", BINDGEN, "--root"]);
        run(cargo.arg(&folder))?;
        done.push(format!("bindgen {BINDGEN}"));
    }
    Ok(done)
}

/// Whether rustc comes with the sources of its library.
fn has_sources() -> Result<bool> {
    let root = apt::run(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(root.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists())
}

/// Runs an installer, whose messages are the user's.
fn run(command: &mut Command) -> Result<()> {
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let line = format!("{} {}", command.get_program().to_string_lossy(), arguments.join(" "));
    eprintln!("{line}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(status.success(), "`{line}` failed");
    Ok(())
}
