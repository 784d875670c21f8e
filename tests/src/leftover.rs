// SPDX-License-Identifier: MIT
//! What a tracer can leave behind in a kernel.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

/// One of libbpf's functions that find the next object: after the id, where the next id goes; 0 or `-errno`.
type NextId = unsafe extern "C" fn(u32, *mut u32) -> i32;

const BPF_OBJECTS: [(&str, NextId); 3] = [
    ("program", libbpf_sys::bpf_prog_get_next_id),
    ("map", libbpf_sys::bpf_map_get_next_id),
    ("link", libbpf_sys::bpf_link_get_next_id),
];
const FOLDERS: [&str; 2] = ["/sys/kernel/tracing/instances", "/sys/fs/bpf"];
const FILES: [&str; 2] = ["/sys/kernel/tracing/dynamic_events", "/sys/kernel/tracing/set_event"];

/// Each BPF program, map and link, tracefs instance, dynamic event, enabled event and file in the BPF file system, as a
/// line of text.
///
/// # Errors
/// If something cannot be listed, for instance because this process is not root.
pub fn list() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for (kind, next_id) in BPF_OBJECTS {
        let mut id = 0;
        loop {
            // SAFETY: the function writes one u32 to its second argument, which is a valid place for one.
            let result = unsafe { next_id(id, &mut id) };
            if result == -(Errno::ENOENT as i32) {
                break;
            }
            ensure!(result == 0, "cannot list BPF {kind}s: {}", Errno::from_raw(-result));
            found.insert(format!("BPF {kind} {id}"));
        }
    }
    for folder in FOLDERS {
        let entries = if_there(fs::read_dir(folder)).with_context(|| format!("cannot list {folder}"))?;
        for entry in entries.into_iter().flatten() {
            found.insert(entry?.path().display().to_string());
        }
    }
    for file in FILES {
        let text = if_there(fs::read_to_string(file)).with_context(|| format!("cannot read {file}"))?;
        found.extend(text.unwrap_or_default().lines().map(|line| format!("{file}: {line}")));
    }
    Ok(found)
}

/// Nothing can be left behind in what a kernel that is locked down does not have.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
