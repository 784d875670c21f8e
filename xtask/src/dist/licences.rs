// SPDX-License-Identifier: MIT
//! The licences of what is linked into the binary: the crates, and the libraries of the system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Static libraries of the system in the binary, and Debian's account of their licences.
const LIBRARIES: [(&str, &str); 3] = [
    ("glibc", "/usr/share/doc/libc6-dev/copyright"),
    ("libelf (elfutils)", "/usr/share/doc/libelf-dev/copyright"),
    ("zlib", "/usr/share/doc/zlib1g-dev/copyright"),
];

/// The part of `cargo metadata` that says what the tool consists of.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: String,
    /// Absent for the packages of the workspace.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// Absent for what is linked, `build` or `dev` otherwise.
    kind: Option<String>,
}

/// One text: each dependency with its licence, then each licence text once with the names of those it came with.
pub fn of_dependencies() -> Result<String> {
    let arguments = ["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let output = crate::cargo().args(arguments).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot read cargo's metadata")?;

    let mut list = String::from("The exitregs binary contains:\n\n");
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in linked(&metadata, "exitregs")? {
        if package.source.is_none() {
            continue;
        }
        let title = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("see its text below");
        list += &format!("{title}: {licence}\n");
        let folder = Path::new(&package.manifest_path).parent().context("a manifest has no folder")?;
        for text in licence_texts(folder)? {
            texts.entry(text).or_default().insert(title.clone());
        }
    }
    for (library, path) in LIBRARIES {
        list += &format!("{library}: see its text below\n");
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        texts.entry(text).or_default().insert(library.to_owned());
    }
    for (text, titles) in texts {
        let titles: Vec<_> = titles.into_iter().collect();
        list += &format!("\n{}\n{}\n\n{}\n", "=".repeat(80), titles.join(", "), text.trim());
    }
    Ok(list)
}

/// The packages that are linked into the package `root`, by name.
fn linked<'a>(metadata: &'a Metadata, root: &str) -> Result<Vec<&'a Package>> {
    let package = |id: &str| metadata.packages.iter().find(|package| package.id == id);
    let root = metadata.packages.iter().find(|package| package.name == root && package.source.is_none());
    let mut open = vec![root.context("the workspace has no such package")?.id.as_str()];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            let node = metadata.resolve.nodes.iter().find(|node| node.id == id);
            let dependencies = node.into_iter().flat_map(|node| &node.deps);
            let linked = dependencies.filter(|it| it.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            open.extend(linked.map(|dependency| dependency.pkg.as_str()));
        }
    }
    let mut packages: Vec<_> = seen.into_iter().filter_map(package).collect();
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(packages)
}

/// The licence texts in a crate's folder, and in the C sources it brings along.
fn licence_texts(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_dir() {
            if path.join("LICENSE").exists() {
                texts.extend(licence_texts(&path)?);
            }
        } else if ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"]
            .iter()
            .any(|it| name.starts_with(it))
        {
            // Checkouts differ in their line ends, the licences do not.
            texts.push(String::from_utf8_lossy(&fs::read(&path)?).replace("\r\n", "\n"));
        }
    }
    Ok(texts)
}
