// SPDX-License-Identifier: MIT
//! Writes the answer: a tar archive on the result disk, see [`exitregs_lab::host::job`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use exitregs_lab::host::job::{self, Finished, Job, Report};
use nix::fcntl::OFlag;
use tar::{Builder, Header};

use crate::commands::OUTPUT;

/// Writes output, kernel log, files and, last, the report.
pub fn write(job: &Job, commands: Vec<Finished>) -> Result<()> {
    let device = &job.result_device;
    let failed = || format!("cannot write to {}", device.display());
    let disk = OpenOptions::new().write(true).open(device).with_context(failed)?;
    let mut archive = Builder::new(BufWriter::with_capacity(1 << 20, disk));
    for number in 0..commands.len() {
        for name in [job::stdout_member(number), job::stderr_member(number)] {
            archive.append_path_with_name(Path::new(OUTPUT).join(&name), &name).with_context(failed)?;
        }
    }
    let mut missing = Vec::new();
    for pattern in &job.get {
        append_matches(&mut archive, pattern, &mut missing)?;
    }
    append_bytes(&mut archive, job::KERNEL_LOG, &kernel_log()?).with_context(failed)?;
    let report = serde_json::to_vec(&Report { commands, missing })?;
    append_bytes(&mut archive, job::REPORT, &report).with_context(failed)?;
    let disk = archive.into_inner().and_then(|buffer| Ok(buffer.into_inner()?)).with_context(failed)?;
    disk.sync_all().with_context(failed)
}

fn append_bytes(archive: &mut Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, content)
}

/// Appends what a pattern matches; what cannot be had is noted in `missing`.
fn append_matches(archive: &mut Builder<impl Write>, pattern: &str, missing: &mut Vec<String>) -> Result<()> {
    let matches = match glob::glob(pattern) {
        Ok(matches) => matches,
        Err(error) => {
            missing.push(format!("{pattern}: {error}"));
            return Ok(());
        }
    };
    let mut found = false;
    for path in matches {
        found = true;
        match path {
            Ok(path) => append(archive, &path, missing)?,
            Err(error) => missing.push(error.to_string()),
        }
    }
    if !found {
        missing.push(format!("{pattern}: no such file"));
    }
    Ok(())
}

/// Appends a file, or a folder with all that is in it; links are followed.
fn append(archive: &mut Builder<impl Write>, path: &Path, missing: &mut Vec<String>) -> Result<()> {
    let mut note = |error: io::Error| missing.push(format!("{}: {error}", path.display()));
    let name = Path::new(job::FILES).join(path.strip_prefix("/").unwrap_or(path));
    let (metadata, mut file) = match File::open(path).and_then(|file| Ok((file.metadata()?, file))) {
        Ok(opened) => opened,
        Err(error) => {
            note(error);
            return Ok(());
        }
    };
    if metadata.is_dir() {
        archive.append_dir(&name, path).with_context(|| format!("cannot send {}", path.display()))?;
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            append(archive, &entry?.path(), missing)?;
        }
    } else if metadata.len() > 0 {
        archive.append_file(&name, &mut file).with_context(|| format!("cannot send {}", path.display()))?;
    } else {
        // The files of proc, sysfs and tracefs say that they are empty; their length is known after reading.
        let mut content = Vec::new();
        match file.read_to_end(&mut content) {
            Ok(_) => append_bytes(archive, &name.to_string_lossy(), &content)
                .with_context(|| format!("cannot send {}", path.display()))?,
            Err(error) => note(error),
        }
    }
    Ok(())
}

/// The kernel's log from /dev/kmsg (Documentation/ABI/testing/dev-kmsg), one line per record and continuation.
fn kernel_log() -> Result<Vec<u8>> {
    let mut device = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open("/dev/kmsg")
        .context("cannot open /dev/kmsg")?;
    let mut log = Vec::new();
    let mut record = [0; 8192];
    loop {
        match device.read(&mut record) {
            Ok(length) => append_record(&mut log, &String::from_utf8_lossy(&record[..length])),
            // The end of what there is.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(log),
            // Records were overwritten before they could be read; the next read goes on after the gap.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("cannot read /dev/kmsg"),
        }
    }
}

/// `priority,sequence,microseconds,flags;text`, then lines that begin with a space and hold key=value pairs.
fn append_record(log: &mut Vec<u8>, record: &str) {
    let Some((prefix, text)) = record.split_once(';') else { return };
    let mut fields = prefix.split(',').map(|field| field.parse::<u64>().unwrap_or_default());
    let (priority, _, time) = (fields.next(), fields.next(), fields.next().unwrap_or_default());
    let level = priority.unwrap_or_default() & 7;
    let text = text.lines().next().unwrap_or_default();
    log.extend(format!("<{level}>[{:5}.{:06}] {text}\n", time / 1_000_000, time % 1_000_000).bytes());
}
