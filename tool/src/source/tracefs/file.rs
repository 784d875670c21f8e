// SPDX-License-Identifier: MIT
//! Files of tracefs: errors say which, and what was written.

use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

/// Reads a file. Some, such as `header_page`, give the rest of what did not fit into the first read(2) to nobody.
///
/// # Errors
/// It cannot be read.
pub(in crate::source) fn read(path: &Path) -> Result<String> {
    let read = || {
        let mut file = File::open(path)?;
        let (mut text, mut part) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            match file.read(&mut part)? {
                0 => return Ok(text),
                length => text.extend(&part[..length]),
            }
        }
    };
    let text: std::io::Result<_> = read();
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Writes `text` in one write(2), as tracefs wants it, behind what a file such as `set_event_pid` has already.
///
/// # Errors
/// The kernel refuses it.
pub(in crate::source) fn write(path: &Path, text: &str) -> Result<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| {
        let length = file.write(text.as_bytes())?;
        if length == text.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    });
    written.with_context(|| format!("cannot write {text:?} to {}", path.display()))
}

/// Writes a setting and checks that the kernel took it.
///
/// # Errors
/// The kernel refuses it, or shows another value than was written.
pub(in crate::source) fn set(path: &Path, value: &str) -> Result<()> {
    write(path, value)?;
    let is = read(path)?;
    // Where there is a choice the chosen word is in brackets.
    let chosen = is.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
    let is = chosen.unwrap_or(&is).trim();
    ensure!(is == value, "wrote {value:?} to {}, but it is {is:?}", path.display());
    Ok(())
}
