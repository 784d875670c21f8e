// SPDX-License-Identifier: MIT
//! Kernels that are built here, and when that has to be done again.

use std::fmt;
use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::fcntl::Flock;
use sha2::{Digest, Sha256};

use super::config;
use super::image::{self, Image};
use super::rust;
use super::source::{Base, Source};
use super::tree::Tree;
use crate::cache;
use crate::host::requirements::{self, KERNEL_BUILD, KERNEL_CLANG, LLVM, Requirement};
use crate::patches::Series;

/// A kernel that is built here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Built {
    /// The sources.
    pub base: Base,
    /// What is applied to them.
    pub patches: Patches,
    /// Whether it reports wrong accesses to memory (KASAN), wrong locking and leaks; then clang builds it.
    pub kasan: bool,
}

/// How much of the series `patches/<base>` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patches {
    /// Nothing.
    None,
    /// The whole series.
    All,
    /// So many patches from its start.
    First(u32),
}

/// A tree that no other process changes meanwhile.
#[derive(Debug)]
pub struct LockedTree {
    tree: Tree,
    _lock: Flock<File>,
}

impl Deref for LockedTree {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        &self.tree
    }
}

/// The file, in a tree's folder of build results, that has the key of what was built there.
const KEY_FILE: &str = "exitregs.key";

/// What ends the name of a kernel that watches itself.
const KASAN: &str = "+kasan";

impl Built {
    /// The kernel as it is.
    pub const fn plain(base: Base) -> Self {
        Self { base, patches: Patches::None, kasan: false }
    }

    /// The kernel with the whole series.
    pub const fn patched(base: Base) -> Self {
        Self { patches: Patches::All, ..Self::plain(base) }
    }

    /// The kernel as it is, watching itself.
    pub const fn kasan(base: Base) -> Self {
        Self { kasan: true, ..Self::plain(base) }
    }

    /// Parses what [`fmt::Display`] prints.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (name, kasan) = match name.strip_suffix(KASAN) {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (base, patches) = match name.split_once('+') {
            None => (name, Patches::None),
            Some((base, "patched")) => (base, Patches::All),
            Some((base, other)) => {
                let first = other.strip_prefix("patched@")?.parse().ok().filter(|first| *first > 0)?;
                (base, Patches::First(first))
            }
        };
        let base = Base::ALL.into_iter().find(|candidate| candidate.name() == base)?;
        Some(Self { base, patches, kasan })
    }

    /// The kernel of the cache, if it is still made of what it would be made of now.
    pub(super) fn cached(self) -> Result<Option<Image>> {
        let Some(source) = self.base.cached_source()? else { return Ok(None) };
        if !requirements::missing(&self.compilers()).is_empty() || !rust::is_installed()? {
            // Without the compilers nobody can tell what they would make.
            return Ok(None);
        }
        let folder = self.image_folder(&self.key(&source)?)?;
        folder.exists().then(|| Image::open(&folder)).transpose()
    }

    /// The kernel, built if the cache has it not.
    pub(super) fn image(self) -> Result<Image> {
        self.install_compilers()?;
        let source = self.base.source()?;
        let folder = self.image_folder(&self.key(&source)?)?;
        if !folder.exists() {
            let trees = cache::folder("trees")?;
            let _lock = cache::lock(&trees)?;
            if !folder.exists() {
                let tree =
                    self.build(&source, &trees).with_context(|| format!("cannot build the kernel {self}"))?;
                install(&tree, &folder)?;
            }
        }
        Image::open(&folder)
    }

    /// The tree that the kernel was built in. It is made again when the sources, the patches, the configuration or the
    /// compiler have changed, and nobody else uses any tree until the result is dropped.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn tree(self) -> Result<LockedTree> {
        self.install_compilers()?;
        let source = self.base.source()?;
        let trees = cache::folder("trees")?;
        let lock = cache::lock(&trees)?;
        let tree = self.build(&source, &trees).with_context(|| format!("cannot build the kernel {self}"))?;
        Ok(LockedTree { tree, _lock: lock })
    }

    /// Builds in `trees`, which is locked, unless that has been done.
    fn build(self, source: &Source, trees: &Path) -> Result<Tree> {
        let bindgen = format!("BINDGEN={}", rust::bindgen()?.display());
        let mut tree = Tree::new(trees.join(self.to_string())).variable(bindgen);
        if self.kasan {
            tree = tree.variable(LLVM);
        }
        let key = self.key(source)?;
        let key_file = tree.build_folder().join(KEY_FILE);
        if fs::read_to_string(&key_file).is_ok_and(|built| built == key) {
            return Ok(tree);
        }
        let patches = self.patch_files()?;
        let plain = match self.patches {
            Patches::None => None,
            _ => Some(Self { patches: Patches::None, ..self }.build(source, trees)?),
        };
        let start = Instant::now();
        eprintln!("lab: building {self} from {} {}", source.package, source.version);
        tree.create(source, &patches)?;
        match plain {
            // Only what the patches touch is built again.
            Some(plain) => tree.copy_results(&plain, KEY_FILE)?,
            None => tree.configure(&config::boot(self.base, self.kasan))?,
        }
        tree.make(&self.make_arguments())?;
        tree.remove_intermediate()?;
        fs::write(&key_file, &key).with_context(|| format!("cannot write {}", key_file.display()))?;
        eprintln!("lab: built {self} ({:.0} s)", start.elapsed().as_secs_f32());
        Ok(tree)
    }

    /// The kernel's release says what was applied. `modules` makes the list of symbols that a module is linked with.
    fn make_arguments(self) -> [String; 3] {
        let name = self.to_string();
        let patched = name.strip_prefix(self.base.name()).unwrap_or_default();
        [format!("LOCALVERSION=-lab{patched}"), "bzImage".to_owned(), "modules".to_owned()]
    }

    /// The patches to apply, in order.
    fn patch_files(self) -> Result<Vec<PathBuf>> {
        let mut files = match self.patches {
            Patches::None => return Ok(Vec::new()),
            _ => Series::read(self.base.name())?.patches,
        };
        if let Patches::First(first) = self.patches {
            let first = usize::try_from(first)?;
            ensure!(
                first <= files.len(),
                "patches/{} has {} patches, not {first}",
                self.base.name(),
                files.len()
            );
            files.truncate(first);
        }
        Ok(files)
    }

    /// What the kernel depends on, as a digest.
    fn key(self, source: &Source) -> Result<String> {
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        };
        add(source.package.as_bytes());
        add(source.version.as_bytes());
        add(config::boot(self.base, self.kasan).as_bytes());
        for argument in self.make_arguments() {
            add(argument.as_bytes());
        }
        for path in self.patch_files()? {
            add(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        let mut programs = vec!["gcc".into(), "ld".into(), "pahole".into(), "rustc".into(), rust::bindgen()?];
        programs.extend(self.kasan.then(|| "clang-19".into()));
        for program in programs {
            let output = Command::new(&program).arg("--version").output();
            add(&output.with_context(|| format!("cannot run {}", program.display()))?.stdout);
        }
        Ok(digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    fn image_folder(self, key: &str) -> Result<PathBuf> {
        Ok(cache::folder(image::FOLDER)?.join(format!("{self}_{key}")))
    }

    /// What building it needs beside Rust.
    fn compilers(self) -> Vec<Requirement> {
        let clang = if self.kasan { &KERNEL_CLANG[..] } else { &[] };
        [&KERNEL_BUILD[..], clang].concat()
    }

    fn install_compilers(self) -> Result<()> {
        requirements::install(&self.compilers())?;
        rust::install().map(drop)
    }
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.name())?;
        match self.patches {
            Patches::None => {}
            Patches::All => f.write_str("+patched")?,
            Patches::First(first) => write!(f, "+patched@{first}")?,
        }
        f.write_str(if self.kasan { KASAN } else { "" })
    }
}

/// Copies what boots from a tree to `folder`, laid out as packages have it.
fn install(tree: &Tree, folder: &Path) -> Result<()> {
    let build = tree.build_folder();
    let release = fs::read_to_string(build.join("include/config/kernel.release"))?.trim().to_owned();
    let cache = cache::folder(image::FOLDER)?;
    let root = tempfile::tempdir_in(cache)?;
    let modules = format!("lib/modules/{release}");
    let files = [
        ("arch/x86/boot/bzImage", format!("boot/vmlinuz-{release}")),
        (".config", format!("boot/config-{release}")),
        ("System.map", format!("boot/System.map-{release}")),
        ("modules.builtin", format!("{modules}/modules.builtin")),
    ];
    for folder in ["boot", &modules] {
        fs::create_dir_all(root.path().join(folder))?;
    }
    // It has no modules.
    fs::write(root.path().join(modules).join("modules.dep"), "")?;
    for (from, to) in files {
        let (from, to) = (build.join(from), root.path().join(to));
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    fs::rename(root.keep(), folder).with_context(|| format!("cannot move the kernel to {}", folder.display()))
}
