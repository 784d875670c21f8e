// SPDX-License-Identifier: MIT
//! `cargo xtask module`: builds the kernel module.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use exitregs_lab::host::Kernel;
use exitregs_lab::module;

/// Build the kernel module, kvm_exitregs.ko, and print its path
#[derive(Args)]
pub struct Arguments {
    /// For a kernel of the lab that is built here: v6.12 or mainline, or one of these +patched
    #[arg(long, default_value = "v6.12", conflicts_with = "kdir")]
    kernel: Kernel,
    /// For the kernel whose headers are here, such as /lib/modules/RELEASE/build
    #[arg(long, value_name = "DIR")]
    kdir: Option<PathBuf>,
}

/// Builds it.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let path = match (&arguments.kdir, arguments.kernel) {
        (Some(kdir), _) => module::build_for(kdir)?,
        (None, Kernel::Built(kernel)) => module::build(kernel)?,
        (None, stock) => {
            bail!("Debian builds {stock} without Rust, which the module needs: use v6.12 or mainline")
        }
    };
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}
