// SPDX-License-Identifier: MIT
//! Where that is kept which takes long to make or to fetch: one folder that all checkouts share.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The folder `name` of the cache, which is `$XDG_CACHE_HOME/exitregs`, or `~/.cache/exitregs`. Made if it is not there.
///
/// # Errors
/// If neither variable says where caches go, or the folder cannot be made.
pub fn folder(name: &str) -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path,
        None => {
            env::home_dir().context("neither XDG_CACHE_HOME nor HOME says where caches go")?.join(".cache")
        }
    };
    let folder = base.join("exitregs").join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Waits until no other process works in `folder`; that lasts until the result is dropped, or this process ends.
///
/// # Errors
/// If the folder cannot be written to.
pub fn lock(folder: &Path) -> Result<Flock<File>> {
    let path = folder.join("lock");
    let open = || File::create(&path).with_context(|| format!("cannot open {}", path.display()));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            eprintln!("lab: waiting for another process, which works in {}", folder.display());
        }
        // The blocking attempt says what is wrong.
        Err(_) => {}
    }
    Flock::lock(open()?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}
