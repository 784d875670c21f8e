// SPDX-License-Identifier: MIT
//! Where batches go: into files one after the other, or into memory until something asks for them.

use crate::commands::create_private;
use crate::output::style::Bytes;
use crate::recording::Writer;
use anyhow::{Context, Result, anyhow};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Takes batches.
pub(super) trait Sink {
    /// Takes a batch.
    fn write(&mut self, batch: Vec<u8>) -> Result<()>;

    /// Something asks for what is kept in memory.
    fn dump(&mut self, _why: &str) -> Result<()> {
        Ok(())
    }

    /// Whether it takes no more.
    fn is_done(&self) -> bool {
        false
    }

    /// No more batches will come.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    /// What is where, in a few words.
    fn describe(&self) -> String;
}

/// A file that has whole batches only.
struct Whole {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Whole {
    fn create(path: &Path, begin: &[u8]) -> Result<Self> {
        let mut whole = Self { path: path.to_owned(), file: create_private(path)?, length: 0 };
        whole.append(begin)?;
        Ok(whole)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // The part that found room would have to be told from a batch by whoever reads the file.
            let _ = self.file.set_len(self.length);
            let kept = Bytes(self.length);
            return Err(anyhow!(error).context(format!(
                "cannot write {}: the {kept} until here can be read; make room, or limit it by --max-size and --max-files",
                self.path.display()
            )));
        }
        self.length += bytes.len() as u64;
        // Begins to write to the disk, without waiting: what a crash of the host can cost is little.
        // SAFETY: it has no pointers; the descriptor is open.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.append(&Writer::end())
    }
}

/// Files, the newest of which is written.
pub(super) struct Rotation {
    begin: Vec<u8>,
    current: Whole,
    max_size: Option<u64>,
    max_files: Option<u32>,
    /// Older files: FILE.1 and so on.
    older: u32,
}

impl Rotation {
    pub(super) fn new(
        path: &Path,
        begin: Vec<u8>,
        max_size: Option<u64>,
        max_files: Option<u32>,
    ) -> Result<Self> {
        let current = Whole::create(path, &begin)?;
        Ok(Self { begin, current, max_size, max_files, older: 0 })
    }

    /// FILE becomes FILE.1, that becomes FILE.2, and so on; the oldest goes if there are too many.
    fn rotate(&mut self) -> Result<()> {
        self.current.end()?;
        let path = self.current.path.clone();
        let keep = self.max_files.map_or(u32::MAX, |files| files - 1);
        for number in (1..=self.older).rev() {
            let from = numbered(&path, number);
            let result = match number >= keep {
                true => fs::remove_file(&from),
                false => fs::rename(&from, numbered(&path, number + 1)),
            };
            result.with_context(|| format!("cannot rotate {}", from.display()))?;
        }
        if keep > 0 {
            let to = numbered(&path, 1);
            fs::rename(&path, &to).with_context(|| format!("cannot rotate {}", path.display()))?;
        }
        self.older = self.older.saturating_add(1).min(keep);
        self.current = Whole::create(&path, &self.begin)?;
        Ok(())
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl Sink for Rotation {
    fn write(&mut self, batch: Vec<u8>) -> Result<()> {
        let length = self.current.length + batch.len() as u64 + Writer::end().len() as u64;
        let is_begun = self.current.length > self.begin.len() as u64;
        if is_begun && self.max_size.is_some_and(|most| length > most) {
            self.rotate()?;
        }
        self.current.append(&batch)
    }

    fn end(&mut self) -> Result<()> {
        self.current.end()
    }

    fn describe(&self) -> String {
        let older = match self.older {
            0 => String::new(),
            older => format!(" and {older} older"),
        };
        format!("{} in {}{older}", Bytes(self.current.length), self.current.path.display())
    }
}

/// The last batches, in memory, and files of what was asked for.
pub(super) struct Ring {
    path: PathBuf,
    begin: Vec<u8>,
    time: Duration,
    max_files: u32,
    batches: VecDeque<(Instant, Vec<u8>)>,
    bytes: u64,
    written: u32,
}

impl Ring {
    pub(super) fn new(path: &Path, begin: Vec<u8>, time: Duration, max_files: Option<u32>) -> Self {
        let (batches, max_files) = (VecDeque::new(), max_files.unwrap_or(1));
        Self { path: path.to_owned(), begin, time, max_files, batches, bytes: 0, written: 0 }
    }
}

impl Sink for Ring {
    fn write(&mut self, batch: Vec<u8>) -> Result<()> {
        self.bytes += batch.len() as u64;
        self.batches.push_back((Instant::now(), batch));
        while self.batches.front().is_some_and(|(when, _)| when.elapsed() > self.time) {
            let oldest = self.batches.pop_front().map_or(0, |(_, oldest)| oldest.len());
            self.bytes -= oldest as u64;
        }
        Ok(())
    }

    fn dump(&mut self, why: &str) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let path = match self.written {
            0 => self.path.clone(),
            number => numbered(&self.path, number),
        };
        let mut file = Whole::create(&path, &self.begin)?;
        for (_, batch) in self.batches.drain(..) {
            file.append(&batch)?;
        }
        file.end()?;
        (self.bytes, self.written) = (0, self.written + 1);
        eprintln!("exitregs: {why}: wrote {} to {}", Bytes(file.length), path.display());
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.written >= self.max_files
    }

    fn describe(&self) -> String {
        format!("{} in memory, {} files written", Bytes(self.bytes), self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .map(|path| {
                let bytes = fs::read(&path).unwrap();
                let text = bytes.strip_suffix(&Writer::end()).unwrap().to_vec();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, String::from_utf8(text).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn as_text(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn files_rotate() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = Rotation::new(&folder.path().join("r"), b"<".to_vec(), Some(13), Some(3)).unwrap();
        for batch in ["aa", "bb", "cc", "dddddddd", "ee", "ff", "gg"] {
            sink.write(batch.as_bytes().to_vec()).unwrap();
        }
        sink.end().unwrap();
        assert_eq!(files(folder.path()), as_text(&[("r", "<gg"), ("r.1", "<eeff"), ("r.2", "<dddddddd")]));
    }

    #[test]
    fn one_file_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = Rotation::new(&folder.path().join("r"), b"<".to_vec(), Some(11), Some(1)).unwrap();
        for batch in ["aa", "bb", "cc"] {
            sink.write(batch.as_bytes().to_vec()).unwrap();
        }
        sink.end().unwrap();
        assert_eq!(files(folder.path()), as_text(&[("r", "<cc")]));
    }

    #[test]
    fn a_ring_forgets_and_dumps() {
        let folder = tempfile::tempdir().unwrap();
        let time = Duration::from_millis(300);
        let mut sink = Ring::new(&folder.path().join("r"), b"<".to_vec(), time, Some(2));
        sink.write(b"old".to_vec()).unwrap();
        std::thread::sleep(time * 2);
        sink.write(b"new".to_vec()).unwrap();
        sink.dump("a test").unwrap();
        sink.write(b"next".to_vec()).unwrap();
        assert!(!sink.is_done());
        sink.dump("a test").unwrap();
        assert!(sink.is_done());
        sink.dump("a test").unwrap();
        assert_eq!(files(folder.path()), as_text(&[("r", "<new"), ("r.1", "<next")]));
    }
}
