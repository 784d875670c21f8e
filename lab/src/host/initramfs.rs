// SPDX-License-Identifier: MIT
//! Builds the initramfs of an emulated host: a `newc` cpio archive (Documentation/driver-api/early-userspace/
//! buffer-format.rst), uncompressed, because the emulated CPU would need longer to decompress it than to copy it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Cursor, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cpio::newc::{self, ModeFileType};

use super::requirements::{self, Requirement};

/// Removes debug information.
pub(super) const STRIP: Requirement = Requirement::new("strip", "binutils");

/// What goes into an initramfs, by path inside it.
#[derive(Clone, Debug)]
pub struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
    strip: bool,
}

#[derive(Clone, Debug)]
enum Entry {
    Folder,
    Symlink {
        target: PathBuf,
    },
    /// A file of this machine, read when the archive is written.
    File {
        source: PathBuf,
        mode: u32,
    },
    Bytes {
        content: Vec<u8>,
        mode: u32,
    },
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Initramfs {
    /// Just the folders that a system has, with `/bin`, `/sbin`, `/lib` and `/lib64` merged into `/usr`.
    pub fn new() -> Self {
        let mut new = Self { entries: BTreeMap::new(), strip: false };
        for folder in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
            new.entries.insert(folder.into(), Entry::Folder);
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            new.entries.insert(Path::new("usr").join(name), Entry::Folder);
            new.entries.insert(name.into(), Entry::Symlink { target: format!("usr/{name}").into() });
        }
        new
    }

    /// Leaves the debug information of programs out.
    pub fn stripped(self) -> Self {
        Self { strip: true, ..self }
    }

    /// Adds a file or, with everything below it, a folder of this machine. `inside` is an absolute path.
    ///
    /// # Errors
    /// If `source` cannot be read or `inside` is no absolute path.
    pub fn copy(&mut self, source: &Path, inside: &Path) -> Result<()> {
        let metadata = fs::metadata(source)
            .with_context(|| format!("cannot take {} into the emulated host", source.display()))?;
        if metadata.is_dir() {
            self.insert(inside, Entry::Folder)?;
            for entry in fs::read_dir(source).with_context(|| format!("cannot list {}", source.display()))? {
                let entry = entry?;
                self.copy(&entry.path(), &inside.join(entry.file_name()))?;
            }
            Ok(())
        } else {
            let source = source.to_owned();
            self.insert(inside, Entry::File { source, mode: metadata.permissions().mode() & 0o7777 })
        }
    }

    /// Adds a file with the given content and permission bits.
    ///
    /// # Errors
    /// If `inside` is no absolute path.
    pub fn write(&mut self, inside: impl AsRef<Path>, content: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        self.insert(inside.as_ref(), Entry::Bytes { content: content.into(), mode })
    }

    /// Adds a program of this machine, with the shared libraries it needs, at the paths they have here. A bare
    /// name is looked up in `PATH`.
    ///
    /// # Errors
    /// If there is no such program or a library of it is missing here.
    pub fn program(&mut self, program: &Path) -> Result<()> {
        let path = find_program(program)?;
        self.copy(&path, &path)?;
        for library in shared_libraries(&path)? {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// Adds busybox (statically linked) and a link for each command it has, where a system has that command.
    ///
    /// # Errors
    /// If busybox is not installed here or needs shared libraries.
    pub fn busybox(&mut self) -> Result<()> {
        let path = find_program(Path::new("busybox"))?;
        ensure!(
            shared_libraries(&path)?.is_empty(),
            "{} is not statically linked: apt-get install busybox-static",
            path.display()
        );
        let inside = Path::new("/usr/bin/busybox");
        self.copy(&path, inside)?;
        let output = Command::new(&path).arg("--list-full").output();
        let output = output.with_context(|| format!("cannot run {}", path.display()))?;
        for command in String::from_utf8_lossy(&output.stdout).lines() {
            let link = resolve_merged(&Path::new("/").join(command))?;
            // A program that was asked for by name goes before the busybox command of that name.
            self.entries.entry(link).or_insert_with(|| Entry::Symlink { target: inside.into() });
        }
        Ok(())
    }

    fn insert(&mut self, inside: &Path, entry: Entry) -> Result<()> {
        let path = resolve_merged(inside)?;
        for folder in path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            match self.entries.get(folder) {
                None => {
                    self.entries.insert(folder.to_owned(), Entry::Folder);
                }
                Some(Entry::Folder) => {}
                Some(_) => bail!("cannot place {}: /{} is not a folder", inside.display(), folder.display()),
            }
        }
        match (self.entries.get(&path), &entry) {
            (Some(Entry::Folder), Entry::Folder) => {}
            (Some(Entry::Folder), _) => bail!("cannot place {}: it is a folder already", inside.display()),
            _ => {
                self.entries.insert(path, entry);
            }
        }
        Ok(())
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// If a source file cannot be read (any more) or is too big for the format (4 GiB), or `output` cannot be written.
    pub fn write_to(&self, output: &mut File) -> Result<()> {
        let mut output = BufWriter::with_capacity(1 << 20, output);
        for (number, (path, entry)) in self.entries.iter().enumerate() {
            // Distinct inode numbers, though nothing here is a hard link: the kernel matches links by them.
            let header = |mode: u32, kind| {
                let name = path.to_string_lossy();
                newc::Builder::new(&name).ino(number as u32 + 1).mode(mode).set_mode_file_type(kind)
            };
            let failed = || format!("cannot write /{} to the initramfs", path.display());
            match entry {
                Entry::Folder => {
                    // As on any system, everyone may write to /tmp.
                    let mode = if path == Path::new("tmp") { 0o1777 } else { 0o755 };
                    header(mode, ModeFileType::Directory)
                        .write(&mut output, 0)
                        .finish()
                        .with_context(failed)?;
                }
                Entry::Symlink { target } => {
                    let target = target.to_string_lossy();
                    let header = header(0o777, ModeFileType::Symlink);
                    append(header, &mut output, target.len() as u64, &mut target.as_bytes())
                        .with_context(failed)?;
                }
                Entry::Bytes { content, mode } => {
                    let header = header(*mode, ModeFileType::Regular);
                    append(header, &mut output, content.len() as u64, &mut Cursor::new(content))
                        .with_context(failed)?;
                }
                Entry::File { source, mode } => {
                    let mut file =
                        File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
                    if self.strip && mode & 0o111 != 0 && is_elf(&file).with_context(failed)? {
                        file = stripped(source)?;
                    }
                    let length = file.metadata()?.len();
                    let header = header(*mode, ModeFileType::Regular);
                    append(header, &mut output, length, &mut file).with_context(failed)?;
                }
            }
        }
        newc::trailer(&mut output).context("cannot write the initramfs")?;
        output.flush().context("cannot write the initramfs")
    }
}

fn is_elf(file: &File) -> Result<bool> {
    let mut magic = [0; 4];
    // A shorter file leaves zeros.
    file.read_at(&mut magic, 0)?;
    Ok(magic == *b"\x7fELF")
}

/// A copy of a program without debug information.
fn stripped(program: &Path) -> Result<File> {
    let copy = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
    let output =
        Command::new(STRIP.evidence).arg("--strip-debug").arg("-o").arg(copy.path()).arg(program).output();
    let output = output.map_err(|_| requirements::not_installed(&STRIP))?;
    ensure!(
        output.status.success(),
        "cannot strip {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // It may have been replaced rather than written to.
    File::open(copy.path()).with_context(|| format!("cannot open the stripped {}", program.display()))
}

/// Appends one member of `length` bytes, read from `content`.
fn append(
    header: newc::Builder,
    output: &mut impl Write,
    length: u64,
    content: &mut impl Read,
) -> Result<()> {
    let size = u32::try_from(length).context("it is 4 GiB or more")?;
    let mut member = header.write(output, size);
    let copied = std::io::copy(&mut content.take(length), &mut member)?;
    ensure!(copied == length, "it shrank while it was read");
    member.finish()?;
    Ok(())
}

/// The path relative to the root, with the merged folders (`/bin` for `/usr/bin` …) replaced by what they point to.
fn resolve_merged(inside: &Path) -> Result<PathBuf> {
    let relative = inside.strip_prefix("/").ok().filter(|path| {
        !path.as_os_str().is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)))
    });
    let relative = relative.with_context(|| {
        format!("{} is no place for a file in the emulated host: it takes an absolute path", inside.display())
    })?;
    let merged = ["bin", "sbin", "lib", "lib64"].iter().any(|name| relative.starts_with(name));
    Ok(if merged { Path::new("usr").join(relative) } else { relative.to_owned() })
}

/// The absolute path of a program: itself if it has a `/`, else the first of that name in `PATH`.
///
/// # Errors
/// If there is no such file.
pub(crate) fn find_program(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return std::path::absolute(program)
            .ok()
            .filter(|path| path.is_file())
            .with_context(|| format!("there is no program {}", program.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A system's administration programs, also for users whose PATH leaves them out.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let executable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    folders
        .map(|folder| folder.join(program))
        .find(executable)
        .with_context(|| format!("no program {} in PATH", program.display()))
}

/// What the dynamic loader would map for `program`, the loader included; nothing for a static program or a script.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let text = [&text, &*String::from_utf8_lossy(&output.stderr)].concat();
        ensure!(text.contains("not a dynamic executable"), "ldd {}: {}", program.display(), text.trim());
        return Ok(Vec::new());
    }
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        ensure!(
            !line.contains("not found"),
            "{} needs a library that is not here: {line}",
            program.display()
        );
        // `name => /path (address)`, or `/path (address)` for the loader; the vDSO has no path.
        let path =
            line.split_once("=> ").map_or(line, |(_, path)| path).split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(path.into());
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(initramfs: &Initramfs) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut file = tempfile::tempfile().unwrap();
        initramfs.write_to(&mut file).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut members = BTreeMap::new();
        loop {
            let mut reader = newc::Reader::new(file).unwrap();
            if reader.entry().is_trailer() {
                return members;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            members.insert(reader.entry().name().to_owned(), (reader.entry().mode(), content));
            file = reader.finish().unwrap();
        }
    }

    #[test]
    fn files_land_in_merged_folders_after_their_parents() {
        let mut initramfs = Initramfs::new();
        initramfs.write("/lib/a/b", "text", 0o644).unwrap();
        let members = members(&initramfs);
        assert_eq!(members["usr/lib/a/b"], (0o100_644, b"text".to_vec()));
        assert_eq!(members["usr/lib/a"].0, 0o040_755);
        assert_eq!(members["lib"], (0o120_777, b"usr/lib".to_vec()));
        assert!(!members.contains_key("lib/a/b"));
    }

    #[test]
    fn a_dynamic_program_brings_its_loader() {
        let mut initramfs = Initramfs::new();
        initramfs.program(Path::new("/bin/sh")).unwrap();
        let members = members(&initramfs);
        assert!(members.keys().any(|path| path.contains("ld-linux")), "{:?}", members.keys());
        assert_eq!(members["usr/bin/sh"].1, fs::read("/bin/sh").unwrap());
    }

    #[test]
    fn misplaced_files_are_refused() {
        let mut initramfs = Initramfs::new();
        for path in ["relative", "/", "/a/../b"] {
            assert!(initramfs.write(path, "", 0o644).is_err(), "{path}");
        }
        initramfs.write("/file", "", 0o644).unwrap();
        let error = initramfs.write("/file/below", "", 0o644).unwrap_err().to_string();
        assert_eq!(error, "cannot place /file/below: /file is not a folder");
        let error = initramfs.write("/usr", "", 0o644).unwrap_err().to_string();
        assert_eq!(error, "cannot place /usr: it is a folder already");
    }
}
