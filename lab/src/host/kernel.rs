// SPDX-License-Identifier: MIT
//! The kernels that emulated hosts boot: unmodified Debian cloud kernels, fetched through the machine's own apt
//! and kept, unpacked, in a cache that all checkouts share.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, str};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

/// A kernel that the lab can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Debian 12's own cloud kernel, Linux 6.1: KVM as modules, no tprobe events.
    Stock6_1,
    /// Debian 12's backported cloud kernel, Linux 6.12: KVM as modules, with tprobe events.
    Stock6_12,
}

impl Kernel {
    /// Every kernel there is.
    pub const ALL: [Self; 2] = [Self::Stock6_1, Self::Stock6_12];

    /// The package that depends on the newest kernel of the series.
    fn metapackage(self) -> &'static str {
        match self {
            Self::Stock6_1 => "linux-image-cloud-amd64",
            Self::Stock6_12 => "linux-image-6.12-cloud-amd64",
        }
    }

    /// What the name of a kernel package of the series starts with.
    fn package_prefix(self) -> &'static str {
        match self {
            Self::Stock6_1 => "linux-image-6.1.",
            Self::Stock6_12 => "linux-image-6.12.",
        }
    }

    /// The kernel, from the cache if it holds one of this series, else fetched.
    ///
    /// # Errors
    /// If nothing is cached and apt cannot find, download or unpack the package.
    pub fn image(self) -> Result<Image> {
        self.cached()?.map_or_else(|| self.fetch(), Ok)
    }

    /// The newest kernel of this series in the cache, if there is one.
    ///
    /// # Errors
    /// If what the cache holds is damaged.
    pub fn cached(self) -> Result<Option<Image>> {
        self.newest_cached()?.map(|folder| Image::open(&folder)).transpose()
    }

    /// The newest kernel that apt knows of, downloaded unless the cache holds it already. When apt fails (no
    /// network), the newest one of the cache.
    ///
    /// # Errors
    /// If apt cannot find, download or unpack the package and nothing is cached.
    pub fn fetch(self) -> Result<Image> {
        let folder = match self.fetch_package() {
            Ok(folder) => folder,
            Err(error) => self.newest_cached()?.ok_or(error)?,
        };
        Image::open(&folder)
    }

    fn fetch_package(self) -> Result<PathBuf> {
        let attempt = || Package::newest(self.metapackage())?.unpacked();
        attempt()
            .or_else(|_| {
                // No lists yet, or lists that name a version which the mirror has replaced meanwhile.
                apt(Command::new("apt-get").args(["update", "--quiet=2"]))?;
                attempt()
            })
            .with_context(|| format!("cannot fetch Debian's kernel {self}"))
    }

    /// The folder of the highest version in the cache, by dpkg's order of versions.
    fn newest_cached(self) -> Result<Option<PathBuf>> {
        let mut newest: Option<(String, PathBuf)> = None;
        let Ok(folders) = fs::read_dir(cache()?) else { return Ok(None) };
        for folder in folders {
            let folder = folder?;
            let name = folder.file_name().to_string_lossy().into_owned();
            let Some((_, version)) = name.split_once('_').filter(|_| name.starts_with(self.package_prefix()))
            else {
                continue;
            };
            let newer = match &newest {
                None => true,
                Some((best, _)) => {
                    Command::new("dpkg").args(["--compare-versions", version, "gt", best]).status()?.success()
                }
            };
            if newer {
                newest = Some((version.to_owned(), folder.path()));
            }
        }
        Ok(newest.map(|(_, path)| path))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock6_1 => "6.1",
            Self::Stock6_12 => "6.12",
        })
    }
}

impl str::FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kernel| kernel.to_string() == name).with_context(|| {
            let names = Self::ALL.map(|kernel| kernel.to_string()).join(", ");
            format!("no kernel is called {name:?}; there are: {names}")
        })
    }
}

/// Where unpacked kernels are kept: one folder `<package>_<version>` each, complete from the moment it is there.
fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path,
        None => {
            env::home_dir().context("neither XDG_CACHE_HOME nor HOME says where caches go")?.join(".cache")
        }
    };
    Ok(base.join("exitregs/kernels"))
}

/// A kernel package in one version.
struct Package {
    name: String,
    version: String,
}

impl Package {
    /// What the metapackage depends on, according to apt's lists.
    fn newest(metapackage: &str) -> Result<Self> {
        let depends = apt(Command::new("apt-cache").args(["depends", metapackage]))?;
        let name = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .with_context(|| format!("apt knows no kernel that {metapackage} depends on"))?;
        let policy = apt(Command::new("apt-cache").args(["policy", name]))?;
        let version = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .with_context(|| format!("apt can download no version of {name}"))?;
        Ok(Self { name: name.to_owned(), version: version.to_owned() })
    }

    /// The folder with the package's files, downloaded first if need be. Several processes may ask at once.
    fn unpacked(&self) -> Result<PathBuf> {
        let cache = cache()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let folder = cache.join(format!("{}_{}", self.name, self.version));
        let lock_path = cache.join("lock");
        let lock =
            File::create(&lock_path).with_context(|| format!("cannot open {}", lock_path.display()))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", lock_path.display()))?;
        if folder.exists() {
            return Ok(folder);
        }

        eprintln!("lab: fetching {} {}", self.name, self.version);
        let download = tempfile::tempdir_in(&cache)?;
        apt(Command::new("apt-get")
            .args(["download", "--quiet=2", &format!("{}={}", self.name, self.version)])
            .current_dir(download.path()))?;
        let package = fs::read_dir(download.path())?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download left no package of {}", self.name))?;
        let unpacked = download.path().join("root");
        apt(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
        let release = release(&unpacked)?;
        apt(Command::new("depmod").arg("-b").arg(&unpacked).arg(release))?;
        fs::rename(&unpacked, &folder)
            .with_context(|| format!("cannot move the unpacked kernel to {}", folder.display()))?;
        Ok(folder)
    }
}

/// Runs one of the package tools and returns its standard output.
fn apt(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let line = format!("{program} {}", arguments.join(" "));
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    ensure!(output.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The one kernel release under `root`, as `uname -r` prints it.
fn release(root: &Path) -> Result<String> {
    let modules = root.join("lib/modules");
    let mut releases =
        fs::read_dir(&modules).with_context(|| format!("cannot list {}", modules.display()))?;
    match (releases.next(), releases.next()) {
        (Some(only), None) => Ok(only?.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should hold the modules of exactly one kernel", modules.display()),
    }
}

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
                "the cached kernel in {} is incomplete: {} is missing; delete the folder, it will be fetched again",
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
    fn names_round_trip() {
        for kernel in Kernel::ALL {
            assert_eq!(kernel.to_string().parse::<Kernel>().unwrap(), kernel);
        }
    }

    #[test]
    fn an_unknown_name_says_which_there_are() {
        let error = "6.2".parse::<Kernel>().unwrap_err().to_string();
        assert_eq!(error, "no kernel is called \"6.2\"; there are: 6.1, 6.12");
    }

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
