// SPDX-License-Identifier: MIT
//! The kernels that emulated hosts boot: Debian's own, unmodified, and such as are built here from Debian's sources.
//! All are kept, ready to boot, in a cache that all checkouts share.

mod apt;
mod built;
pub mod config;
mod image;
pub mod rust;
mod source;
mod stock;
mod tree;

use std::{fmt, str};

use anyhow::{Context, Result};

pub use built::{Built, LockedTree, Patches};
pub use image::{Image, module_name};
pub use source::{Base, Source};
pub use tree::Tree;

/// A kernel that the lab can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Debian 12's own cloud kernel, Linux 6.1: KVM as modules, no tprobe events.
    Stock6_1,
    /// Debian 12's backported cloud kernel, Linux 6.12: KVM as modules, with tprobe events.
    Stock6_12,
    /// Built here: KVM built in, with tprobe events; with or without the patches of this repository; with type information, or
    /// watching itself.
    Built(Built),
}

impl Kernel {
    /// The kernels that are not built here.
    pub const STOCK: [Self; 2] = [Self::Stock6_1, Self::Stock6_12];

    /// The kernel, from the cache if that holds one of this name, else fetched or built.
    ///
    /// # Errors
    /// If nothing is cached and apt cannot find, download or unpack the package, or it cannot be built.
    pub fn image(self) -> Result<Image> {
        self.cached()?.map_or_else(|| self.fetch(), Ok)
    }

    /// The newest kernel of this name in the cache, if there is one.
    ///
    /// # Errors
    /// If what the cache holds is damaged.
    pub fn cached(self) -> Result<Option<Image>> {
        match self {
            Self::Stock6_1 => stock::DEBIAN_6_1.cached(),
            Self::Stock6_12 => stock::DEBIAN_6_12.cached(),
            Self::Built(built) => built.cached(),
        }
    }

    /// The newest kernel that apt knows of, downloaded unless the cache holds it already. When apt fails (no network),
    /// the newest one of the cache. What is built here is built of the sources that the cache has, if it has any.
    ///
    /// # Errors
    /// If apt cannot find, download or unpack the package and nothing is cached, or it cannot be built.
    pub fn fetch(self) -> Result<Image> {
        match self {
            Self::Stock6_1 => stock::DEBIAN_6_1.fetch(),
            Self::Stock6_12 => stock::DEBIAN_6_12.fetch(),
            Self::Built(built) => built.image(),
        }
    }

    /// Whether KVM is part of the kernel: then it cannot be left out, nor be loaded later.
    pub fn has_kvm_built_in(self) -> bool {
        matches!(self, Self::Built(_))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stock6_1 => f.write_str("6.1"),
            Self::Stock6_12 => f.write_str("6.12"),
            Self::Built(built) => built.fmt(f),
        }
    }
}

impl str::FromStr for Kernel {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let stock = Self::STOCK.into_iter().find(|kernel| kernel.to_string() == name);
        stock.or_else(|| Built::parse(name).map(Self::Built)).with_context(|| {
            let stock = Self::STOCK.map(|kernel| kernel.to_string()).join(", ");
            let built = Base::ALL.map(Base::name).join(", ");
            format!(
                "no kernel is called {name:?}; there are: {stock}, {built}, and with the patches of this repository \
                 NAME+patched (all) or NAME+patched@N (the first N); those with +kasan at the end watch themselves"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in [
            "6.1",
            "6.12",
            "v6.12",
            "v6.12+patched",
            "v6.12+patched@3",
            "v6.12+patched@3+kasan",
            "v6.12+kasan",
            "mainline",
            "mainline+patched",
        ] {
            assert_eq!(name.parse::<Kernel>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn an_unknown_name_says_which_there_are() {
        for name in [
            "6.2",
            "6.12+patched",
            "v6.12+",
            "v6.12+patched@",
            "v6.12+patched@x",
            "v6.12+patched@0",
            "6.12+kasan",
        ] {
            let error = name.parse::<Kernel>().unwrap_err().to_string();
            let start = format!("no kernel is called {name:?}; there are: 6.1, 6.12, v6.12, mainline, and");
            assert!(error.starts_with(&start), "{error}");
        }
    }
}
