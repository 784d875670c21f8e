// SPDX-License-Identifier: MIT
//! Builds the BPF programs, with the header that exitregs-common makes for them.

use libbpf_cargo::SkeletonBuilder;
use std::env;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("events.h"), exitregs_common::bpf::Header.to_string())?;
    for program in ["stat", "trace"] {
        SkeletonBuilder::new()
            .source(format!("bpf/{program}.bpf.c"))
            .clang_args([
                format!("-I{}", out.display()),
                // clang's BPF target does not look where Debian keeps <asm/types.h>.
                "-I/usr/include/x86_64-linux-gnu".to_owned(),
                "-mcpu=v3".to_owned(),
                "-Wall".to_owned(),
                "-Werror".to_owned(),
            ])
            .build_and_generate(out.join(format!("{program}.skel.rs")))?;
    }
    println!("cargo::rerun-if-changed=bpf");
    Ok(())
}
