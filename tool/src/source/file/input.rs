// SPDX-License-Identifier: MIT
//! Bytes of a file, read where they are wanted: a header's length that is damaged allocates nothing that the file does
//! not have.

use super::Damage;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A header, table or compressed block is shorter than this.
pub const LONGEST: u64 = 256 << 20;

/// A file, or a part of one that was unpacked, that can be read at any place.
#[derive(Debug, Clone)]
pub struct Input {
    storage: Storage,
    /// Bytes.
    pub length: u64,
}

#[derive(Debug, Clone)]
enum Storage {
    File(Arc<File>),
    Memory(Arc<[u8]>),
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Self {
        Self { length: bytes.len() as u64, storage: Storage::Memory(bytes.into()) }
    }
}

impl Storage {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(bytes, offset),
            Self::Memory(memory) => {
                let start = usize::try_from(offset).ok().and_then(|offset| memory.get(offset..));
                let mut rest = start.unwrap_or_default();
                rest.read(bytes)
            }
        }
    }
}

impl Input {
    /// That file.
    ///
    /// # Errors
    /// Its length cannot be had.
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { storage: Storage::File(Arc::new(file)), length })
    }

    /// Reads what there is at `offset`, as many bytes as fit into `bytes`; returns how many there were.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, Damage> {
        let mut done = 0;
        while done < bytes.len() {
            match self.storage.read_at(&mut bytes[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(length) => done += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Damage::new(offset + done as u64, format!("cannot read: {error}"))),
            }
        }
        Ok(done)
    }

    /// The `length` bytes at `offset`.
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    pub fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, Damage> {
        let end = offset.checked_add(length).filter(|end| *end <= self.length && length <= LONGEST);
        if end.is_none() {
            let what = format!("{length} bytes should be here, but the file ends at {}", self.length);
            return Err(Damage::new(offset, what));
        }
        let mut bytes = vec![0; length as usize];
        let read = self.read_at(offset, &mut bytes)?;
        if read < bytes.len() {
            return Err(Damage::new(offset + read as u64, "the file ends here"));
        }
        Ok(bytes)
    }
}

/// Reads until `bytes` is full or there is no more; returns how many bytes there were, also of those before an error.
pub fn fill(input: &mut impl Read, bytes: &mut [u8]) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < bytes.len() {
        match input.read(&mut bytes[done..]) {
            Ok(0) => break,
            Ok(length) => done += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// Takes bytes apart from the first to the last; `None` past the end. Numbers are little-endian, as x86's.
#[derive(Debug, Clone)]
pub struct Bytes<'a> {
    /// What is left.
    pub rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// So many bytes.
    pub fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N as u64)?.first_chunk().copied()
    }

    /// 2 bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// 4 bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// 8 bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Text up to a NUL, which is skipped.
    pub fn text(&mut self) -> Option<String> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        let text = self.take(end as u64)?;
        self.take(1)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}
