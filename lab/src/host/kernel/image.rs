// SPDX-License-Identifier: MIT
//! A kernel's files, ready to boot, and the order in which its modules are loaded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The one kernel release under `root`, as `uname -r` prints it.
pub(super) fn release(root: &Path) -> Result<String> {
    let modules = root.join("lib/modules");
    let mut releases =
        fs::read_dir(&modules).with_context(|| format!("cannot list {}", modules.display()))?;
    match (releases.next(), releases.next()) {
        (Some(only), None) => Ok(only?.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should hold the modules of exactly one kernel", modules.display()),
    }
}

/// Where kernels ready to boot are kept in the cache: one folder each, laid out as they are installed, complete from the moment
/// it is there.
pub(super) const FOLDER: &str = "kernels";

/// A kernel ready to boot: its bzImage, its configuration and its modules.
#[derive(Clone, Debug)]
pub struct Image {
    /// As `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The configuration it was built with.
    pub config: PathBuf,
    /// `lib/modules/<release>`.
    pub modules: PathBuf,
}

impl Image {
    /// A kernel package's files under `root`, laid out as they are installed.
    ///
    /// # Errors
    /// If one of the files is missing.
    pub fn open(root: &Path) -> Result<Self> {
        let release = release(root)?;
        let image = Self {
            vmlinuz: root.join(format!("boot/vmlinuz-{release}")),
            config: root.join(format!("boot/config-{release}")),
            modules: root.join(format!("lib/modules/{release}")),
            release,
        };
        for path in [&image.vmlinuz, &image.config, &image.modules.join("modules.dep")] {
            ensure!(
                path.exists(),
                "the cached kernel in {} is incomplete: {} is missing; delete the folder, it will be made again",
                root.display(),
                path.display()
            );
        }
        Ok(image)
    }

    /// The modules that must be loaded to have `names`, in the order in which to load them. What the kernel has
    /// built in is left out. Paths are relative to [`Image::modules`].
    ///
    /// # Errors
    /// If the kernel has one of them neither as a module nor built in.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let read = |file: &str| {
            let path = self.modules.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (dependencies, built_in) = (read("modules.dep")?, read("modules.builtin")?);
        let mut order: Vec<PathBuf> = Vec::new();
        for name in names {
            if built_in.lines().any(|path| module_name(Path::new(path)) == *name) {
                continue;
            }
            let (module, needs) = dependencies
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(path, _)| module_name(Path::new(path)) == *name)
                .with_context(|| format!("Linux {} has no module {name}", self.release))?;
            // depmod lists what a module needs with the deepest dependency last.
            for path in needs.split_whitespace().rev().chain([module]).map(PathBuf::from) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

/// A module's name as `lsmod` prints it, from the path of its file.
pub fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_ordered_dependencies_first() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("modules.dep"),
            "a/kvm-amd.ko.xz: a/kvm.ko.xz b/irqbypass.ko.xz\na/kvm.ko.xz: b/irqbypass.ko.xz\nb/irqbypass.ko.xz:\n",
        )
        .unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/virtio_pci.ko\n").unwrap();
        let image = Image {
            release: "0".into(),
            vmlinuz: PathBuf::new(),
            config: PathBuf::new(),
            modules: folder.path().into(),
        };
        let order = image.load_order(&["kvm", "virtio_pci", "kvm_amd"]).unwrap();
        let expected = ["b/irqbypass.ko.xz", "a/kvm.ko.xz", "a/kvm-amd.ko.xz"].map(PathBuf::from);
        assert_eq!(order, expected);
        let error = image.load_order(&["nothing"]).unwrap_err().to_string();
        assert_eq!(error, "Linux 0 has no module nothing");
    }
}
