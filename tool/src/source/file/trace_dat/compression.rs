// SPDX-License-Identifier: MIT
//! How the parts of a `trace.dat` of version 7 may be compressed.

use std::io::{self, Read};

/// A compression that trace-cmd writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Nothing is compressed.
    #[default]
    None,
    /// zlib's.
    Zlib,
    /// zstd's.
    Zstd,
}

impl Compression {
    /// As the header names it.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "zlib" => Some(Self::Zlib),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What `data` is when it is decompressed; not more than `length` bytes, which are what it should be.
    ///
    /// # Errors
    /// It is no such data, or of another length.
    pub fn decompress(self, data: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // A byte more than there may be.
        let limit = length as u64 + 1;
        match self {
            Self::None => Err(io::Error::other("the file says that nothing is compressed")),
            Self::Zlib => flate2::read::ZlibDecoder::new(data).take(limit).read_to_end(&mut bytes),
            Self::Zstd => zstd::stream::read::Decoder::new(data)?.take(limit).read_to_end(&mut bytes),
        }?;
        if bytes.len() == length {
            Ok(bytes)
        } else {
            Err(io::Error::other(format!("it has {} bytes, not {length}", bytes.len())))
        }
    }
}
