// SPDX-License-Identifier: MIT
//! KVM's own selftests (tools/testing/selftests/kvm), built static, to be run on emulated hosts.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::Tree;

/// The selftests of a tree.
#[derive(Debug)]
pub struct Selftests<'a> {
    tree: &'a Tree,
}

impl<'a> Selftests<'a> {
    /// Installs the kernel's headers in the tree, for the tests to be compiled with.
    ///
    /// # Errors
    /// If that fails.
    pub fn new(tree: &'a Tree) -> Result<Self> {
        tree.make(&["headers"])?;
        Ok(Self { tree })
    }

    /// The folder of the x86 tests below the selftests' own: it was renamed after 6.12.
    pub fn x86_folder(&self) -> &'static str {
        if self.tree.folder().join(SELFTESTS).join("x86").exists() { "x86" } else { "x86_64" }
    }

    /// Builds x86 tests by name and returns the programs, in the same order.
    ///
    /// # Errors
    /// If one does not compile.
    pub fn build(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let build = self.tree.build_folder();
        let output = build.join("selftests/kvm");
        let folder = output.join(self.x86_folder());
        let programs: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
        let mut make: Command = self.tree.make_command(SELFTESTS);
        make.arg(format!("OUTPUT={}", output.display()))
            .arg(format!("KHDR_INCLUDES=-isystem {}", build.join("usr/include").display()))
            .arg("LDFLAGS=-static -pthread")
            .args(&programs);
        let made = make.output().context("cannot run make")?;
        ensure!(
            made.status.success(),
            "the selftests {} of {} do not build:\n{}",
            names.join(", "),
            self.tree.folder().display(),
            String::from_utf8_lossy(&made.stderr).trim()
        );
        Ok(programs)
    }
}

const SELFTESTS: &str = "tools/testing/selftests/kvm";
