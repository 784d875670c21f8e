// SPDX-License-Identifier: MIT
//! Bytes of a file or pipe, block by block.

use super::input::fill;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Bytes that are read ahead at once.
const BLOCK: usize = 256 << 10;
/// Blocks that are.
const AHEAD: usize = 3;
/// Bytes before them, for what of the block before has not been taken.
const ROOM: usize = 4 << 10;

/// Bytes of a file, shared by those whose records are in them.
pub type Block = Arc<Vec<u8>>;

/// Memory for blocks, used again when nobody has the block any more.
#[derive(Debug, Default)]
pub struct Blocks {
    shared: Vec<Block>,
}

impl Blocks {
    /// Bytes to be overwritten, so many or more.
    pub fn unused(&mut self, least: usize) -> Vec<u8> {
        let unused = self.shared.iter().position(|block| Arc::strong_count(block) == 1);
        match unused.map(|place| Arc::try_unwrap(self.shared.swap_remove(place))) {
            Some(Ok(mut bytes)) => {
                bytes.resize(bytes.len().max(least), 0);
                bytes
            }
            // The system's zeros, which are there once the memory is written to.
            _ => vec![0; least],
        }
    }

    /// A block of these bytes.
    pub fn share(&mut self, bytes: Vec<u8>) -> Block {
        let block = Arc::new(bytes);
        self.shared.push(Arc::clone(&block));
        block
    }
}

/// Reads a file or pipe to its end, by another thread.
#[derive(Debug)]
pub struct ReadAhead {
    blocks: Blocks,
    /// Memory to be filled from [`ROOM`] on.
    empty: Sender<Vec<u8>>,
    /// How many bytes each has, and why they are the last.
    filled: Receiver<(Vec<u8>, usize, io::Result<()>)>,
    /// Blocks that are being filled.
    waiting: usize,
    ended: bool,
}

impl ReadAhead {
    /// Of `input`.
    pub fn new(mut input: impl Read + Send + 'static) -> Self {
        let (empty, unfilled) = channel::<Vec<u8>>();
        let (done, filled) = channel();
        thread::spawn(move || {
            while let Ok(mut bytes) = unfilled.recv() {
                let (length, outcome) = fill(&mut input, &mut bytes[ROOM..]);
                let ends = ROOM + length < bytes.len();
                if done.send((bytes, length, outcome)).is_err() || ends {
                    break;
                }
            }
        });
        Self { blocks: Blocks::default(), empty, filled, waiting: 0, ended: false }
    }

    /// Whether there is no more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next bytes behind `rest`, what of the block before has not been taken: a block, and where `rest` begins there.
    ///
    /// # Errors
    /// The third: the file cannot be read behind these bytes. It has ended.
    pub fn next(&mut self, rest: &[u8]) -> (Block, usize, io::Result<()>) {
        while !self.ended && self.waiting < AHEAD {
            // If the thread has ended it has said so.
            let _ = self.empty.send(self.blocks.unused(ROOM + BLOCK));
            self.waiting += 1;
        }
        // After its last block the thread says nothing.
        let (mut bytes, length, outcome) = self.filled.recv().unwrap_or_else(|_| (vec![0; ROOM], 0, Ok(())));
        self.waiting = self.waiting.saturating_sub(1);
        self.ended = ROOM + length < bytes.len() || length == 0;
        bytes.truncate(ROOM + length);
        let start = match ROOM.checked_sub(rest.len()) {
            Some(start) => {
                bytes[start..ROOM].copy_from_slice(rest);
                start
            }
            None => {
                bytes.splice(..ROOM, rest.iter().copied());
                0
            }
        };
        (self.blocks.share(bytes), start, outcome)
    }
}
