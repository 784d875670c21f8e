// SPDX-License-Identifier: MIT
//! The patch series of this repository apply, please checkpatch.pl and compile: each commit once in `cargo xtask test`, in
//! every configuration in `cargo xtask soak`.

use std::process::{Command, Stdio};

use exitregs_lab::counts;

fn check(series: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["patches", "check", series]).args(counts().pick(&["--quick"][..], &[]));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (found, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{found}\n{said}");
    assert_eq!(found, format!("{series}: ok\n"));
}

#[test]
fn mainline() {
    check("mainline");
}

#[test]
fn v6_12() {
    check("v6.12");
}

#[test]
fn perf() {
    check("perf");
}

#[test]
fn an_unknown_series_is_misuse() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(["patches", "check", "v6.13"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
