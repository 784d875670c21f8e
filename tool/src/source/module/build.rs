// SPDX-License-Identifier: MIT
//! What it takes to build the module for this kernel: Rust in the kernel, and the rustc that built it.

use crate::host::Host;
use flate2::read::GzDecoder;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

/// What is in the way of building the module for this kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Nothing tells how the kernel was configured.
    #[error("nothing tells how this kernel was configured: there is none of {}", .0.join(", "))]
    NoConfiguration(Vec<String>),
    /// The kernel has no Rust.
    #[error("this kernel was built without Rust (CONFIG_RUST, by {}): build one with it, or use another source", .0.display())]
    NoRust(PathBuf),
    /// There is no rustc, or another.
    #[error("only the rustc that built this kernel can: {kernel:?} (CONFIG_RUSTC_VERSION_TEXT); here is {}", .here.as_deref().unwrap_or("none"))]
    Compiler {
        /// The kernel's.
        kernel: String,
        /// That of the `PATH`.
        here: Option<String>,
    },
}

/// Whether the module can be built for this kernel with the rustc of the `PATH`.
///
/// # Errors
/// It cannot.
pub fn check(host: &Host) -> Result<(), Obstacle> {
    let output = Command::new("rustc").arg("--version").output().ok();
    let here = output.filter(|output| output.status.success());
    let here = here.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    check_with(host, here)
}

fn check_with(host: &Host, here: Option<String>) -> Result<(), Obstacle> {
    let files = [
        "proc/config.gz".to_owned(),
        format!("boot/config-{}", host.release),
        format!("lib/modules/{}/build/.config", host.release),
    ];
    let read = |file: &String| Some((host.path(file), text(host.path(file))?));
    let (path, config) = files
        .iter()
        .find_map(read)
        .ok_or_else(|| Obstacle::NoConfiguration(files.iter().map(|file| format!("/{file}")).collect()))?;
    let value = |name: &str| config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    if value("CONFIG_RUST") != Some("y") {
        return Err(Obstacle::NoRust(path));
    }
    let kernel = value("CONFIG_RUSTC_VERSION_TEXT").unwrap_or_default().trim_matches('"').to_owned();
    if here.as_ref() == Some(&kernel) { Ok(()) } else { Err(Obstacle::Compiler { kernel, here }) }
}

fn text(path: PathBuf) -> Option<String> {
    if path.extension().is_none_or(|extension| extension != "gz") {
        return fs::read_to_string(path).ok();
    }
    let mut text = String::new();
    GzDecoder::new(File::open(path).ok()?).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Capabilities;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    const RUST: &str = "CONFIG_RUST_IS_AVAILABLE=y\nCONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT=\"rustc 1.95.0 (59807616e 2026-04-14)\"\n";

    fn host(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (file, content) in [("proc/sys/kernel/osrelease", &b"6.12.1\n"[..])].iter().chain(files) {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let host = Host::read(root.path(), Capabilities::default());
        (root, host)
    }

    fn refusal(files: &[(&str, &[u8])], here: Option<&str>) -> String {
        let (_root, host) = host(files);
        check_with(&host, here.map(str::to_owned)).unwrap_err().to_string()
    }

    #[test]
    fn the_kernels_own_compiler_is_the_one() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(RUST.as_bytes()).unwrap();
        let compressed = encoder.finish().unwrap();
        for files in [("boot/config-6.12.1", RUST.as_bytes()), ("proc/config.gz", &compressed)] {
            let (_root, host) = host(&[files]);
            assert_eq!(check_with(&host, Some("rustc 1.95.0 (59807616e 2026-04-14)".to_owned())), Ok(()));
        }
    }

    #[test]
    fn another_compiler_is_named_beside_the_kernels() {
        let file = [("lib/modules/6.12.1/build/.config", RUST.as_bytes())];
        let error = refusal(&file, Some("rustc 1.90.0 (1159e78c4 2025-09-14)"));
        assert!(error.contains("rustc 1.95.0") && error.contains("here is rustc 1.90.0"), "{error}");
        let error = refusal(&file, None);
        assert!(error.ends_with("here is none"), "{error}");
    }

    #[test]
    fn a_kernel_without_rust_or_configuration_is_said_to_be_one() {
        let error = refusal(
            &[("boot/config-6.12.1", b"CONFIG_RUST_IS_AVAILABLE=y\n# CONFIG_RUST is not set\n")],
            None,
        );
        assert!(error.contains("without Rust") && error.contains("boot/config-6.12.1"), "{error}");
        let error = refusal(&[], None);
        assert!(error.contains("/proc/config.gz, /boot/config-6.12.1"), "{error}");
    }
}
