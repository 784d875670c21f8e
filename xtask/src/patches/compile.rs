// SPDX-License-Identifier: MIT
//! Compiles what a series touches, commit after commit, in a tree where only what a commit changed is compiled again.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use exitregs_lab::host::kernel::config::{self, KvmAs};
use exitregs_lab::host::requirements::LLVM;
use exitregs_lab::host::{Base, Source, Tree};
use exitregs_lab::selftests::Selftests;

use super::base::Applied;

/// A compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's default.
    Gcc,
    /// LLVM 19, with its own linker.
    Clang,
}

/// What is compiled, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `arch/x86/kvm/`, with `W=1` and warnings as errors.
    Kvm {
        /// The compiler.
        compiler: Compiler,
        /// How KVM is built.
        kvm_as: KvmAs,
        /// With `CONFIG_PROVE_LOCKING`.
        prove_locking: bool,
    },
    /// The KVM selftests that the series adds or changes.
    Selftests,
    /// The files of perf that the series changes.
    PerfFiles,
    /// All of perf.
    Perf,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm { compiler, kvm_as, prove_locking } => {
                f.write_str(match compiler {
                    Compiler::Gcc => "gcc",
                    Compiler::Clang => "clang",
                })?;
                f.write_str(match kvm_as {
                    KvmAs::BuiltIn => "-y",
                    KvmAs::Modules => "-m",
                })?;
                f.write_str(if *prove_locking { "-prove-locking" } else { "" })
            }
            Self::Selftests => f.write_str("selftests"),
            Self::PerfFiles => f.write_str("perf-files"),
            Self::Perf => f.write_str("perf"),
        }
    }
}

const SELFTESTS: &str = "tools/testing/selftests/kvm";
const PERF: &str = "tools/perf";
/// perf without the libraries that have nothing to do with `perf kvm`.
const PERF_WITHOUT: [&str; 21] = [
    "BUILD_BPF_SKEL=0",
    "NO_AUXTRACE=1",
    "NO_CAPSTONE=1",
    "NO_GTK2=1",
    "NO_JEVENTS=1",
    "NO_JVMTI=1",
    "NO_LIBBABELTRACE=1",
    "NO_LIBBPF=1",
    "NO_LIBCRYPTO=1",
    "NO_LIBDEBUGINFOD=1",
    "NO_LIBDW=1",
    "NO_LIBLLVM=1",
    "NO_LIBNUMA=1",
    "NO_LIBPERL=1",
    "NO_LIBPFM4=1",
    "NO_LIBPYTHON=1",
    "NO_LIBUNWIND=1",
    "NO_LIBZSTD=1",
    "NO_LZMA=1",
    "NO_RUST=1",
    "NO_SLANG=1",
];

impl Target {
    /// Whether a file has to do with it. Each file that a series touches has to do with some target, or is text.
    pub fn concerns(self, path: &Path) -> bool {
        match self {
            Self::Kvm { .. } => ["arch/x86", "include", "virt"].iter().any(|folder| path.starts_with(folder)),
            Self::Selftests => path.starts_with(SELFTESTS),
            Self::PerfFiles | Self::Perf => path.starts_with(PERF) && !is_text(path),
        }
    }
}

/// Whether nothing is compiled of a file.
pub fn is_text(path: &Path) -> bool {
    path.starts_with("Documentation") || path.starts_with("tools/perf/Documentation")
}

/// A tree to compile commits in.
#[derive(Debug)]
pub struct Compilation {
    target: Target,
    tree: Tree,
}

impl Compilation {
    /// The tree for a target, made below `folder` unless it is there from the last time.
    ///
    /// # Errors
    /// If the sources cannot be copied, configured or prepared.
    pub fn prepare(folder: &Path, base: Base, source: &Source, target: Target) -> Result<Self> {
        let mut tree = Tree::new(folder.join(target.to_string()));
        let mut made_of = format!("{} {}\n", source.package, source.version);
        let mut compiler_name = "gcc";
        let mut fragment = None;
        if let Target::Kvm { compiler, kvm_as, prove_locking } = target {
            if compiler == Compiler::Clang {
                tree = tree.variable(LLVM);
                compiler_name = "clang-19";
            }
            fragment = Some(config::coverage(base, kvm_as, prove_locking));
        }
        let version = Command::new(compiler_name).arg("--version").output();
        let version = version.with_context(|| format!("cannot run {compiler_name}"))?.stdout;
        made_of += &String::from_utf8_lossy(&version);
        made_of += fragment.as_deref().unwrap_or_default();

        let key_file = tree.build_folder().join("exitregs.key");
        if !fs::read_to_string(&key_file).is_ok_and(|text| text == made_of) {
            tree.create(source, &[])?;
            if let Some(fragment) = fragment {
                tree.configure(&fragment)?;
                tree.make(&["prepare", "modules_prepare"])?;
            }
            fs::write(&key_file, made_of).with_context(|| format!("cannot write {}", key_file.display()))?;
        }
        Ok(Self { target, tree })
    }

    /// Brings the tree to a commit, or to the base, and compiles.
    ///
    /// # Errors
    /// If it does not compile, or not without warnings.
    pub fn compile(&self, applied: &Applied, commit: &str) -> Result<()> {
        for path in &applied.touched {
            self.tree.replace(path, applied.content(commit, path)?.as_deref())?;
        }
        let concerned = || applied.touched.iter().filter(|path| self.target.concerns(path));
        let printed = match self.target {
            Target::Kvm { .. } => self.tree.make(&["W=1", "arch/x86/kvm/"])?,
            Target::Selftests => {
                let names: Vec<_> = concerned()
                    .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
                    .filter(|path| self.tree.folder().join(path).exists())
                    .filter_map(|path| path.file_stem()?.to_str())
                    .collect();
                Selftests::new(&self.tree)?.build(&names)?;
                String::new()
            }
            Target::PerfFiles => {
                // One by one: perf's Makefile starts another make for each, and they would work in the same folders.
                for path in
                    concerned().filter(|path| path.extension().is_some_and(|extension| extension == "c"))
                {
                    self.perf(&[path.strip_prefix(PERF)?.with_extension("o").display().to_string()])?;
                }
                String::new()
            }
            Target::Perf => {
                self.perf(&[])?;
                String::new()
            }
        };
        let warnings: Vec<_> = printed.lines().filter(|line| line.contains("warning:")).collect();
        ensure!(warnings.is_empty(), "warnings:\n  {}", warnings.join("\n  "));
        Ok(())
    }

    /// Makes something of perf, or all of it; warnings are errors there anyway.
    fn perf(&self, targets: &[String]) -> Result<()> {
        let output = self.tree.build_folder().join("perf");
        fs::create_dir_all(&output)?;
        let mut make = self.tree.make_command(PERF);
        make.arg(format!("O={}", output.display())).args(PERF_WITHOUT).args(targets);
        let made = make.output().context("cannot run make")?;
        let said = String::from_utf8_lossy(&made.stderr);
        let lines: Vec<_> = said.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n  ");
        ensure!(made.status.success(), "perf does not compile:\n  {end}");
        Ok(())
    }
}
