// SPDX-License-Identifier: MIT
//! `cargo xtask lab` as it is typed: output and status come through, misuse is told from failure.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The command, without this checkout's programs inside.
fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["lab", "amd", "--bare"]).args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn output_status_and_files_come_through() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("in"), "from here").unwrap();
    let file = format!("{}:/opt/in", folder.join("in").display());
    let line = "cat /opt/in; echo oops >&2; echo result > /tmp/out; exit 42";
    let Output { status, stdout, stderr } =
        lab(&["--kernel", "6.1", "--file", &file, "--get", "/tmp/out", "-o"])
            .arg(folder.join("results"))
            .args(["--", "sh", "-c", line])
            .output()
            .unwrap();
    assert_eq!(status.code(), Some(42), "{}", text(&stderr));
    assert_eq!(text(&stdout), "from here");
    assert_eq!(text(&stderr), "oops\n");
    assert_eq!(std::fs::read_to_string(folder.join("results/tmp/out")).unwrap(), "result\n");
}

#[test]
fn a_missing_file_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let output = lab(&["--get", "/nothing", "-o"]).arg(folder.path()).args(["--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "lab: not brought back: /nothing: no such file\n");
}

#[test]
fn live_output_comes_while_the_command_runs() {
    let line = "printf '1\\r\\n2\\n'; echo oops >&2; sleep 5; echo 3";
    let start = Instant::now();
    let mut child = lab(&["--live", "--", "sh", "-c", line])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n').map(Result::unwrap);
    assert_eq!(text(&lines.next().unwrap()), "1\r");
    assert_eq!(text(&lines.next().unwrap()), "2");
    let second = start.elapsed();
    assert_eq!(text(&lines.next().unwrap()), "3");
    assert!(start.elapsed() - second > Duration::from_secs(3), "the output came all at once");
    assert!(lines.next().is_none(), "the output came twice");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "oops\n");
}

#[test]
fn signals_and_time_limits_end_as_in_a_shell() {
    let output = lab(&["--", "sh", "-c", "kill -15 $$"]).output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15));
    assert_eq!(text(&output.stderr), "lab: killed by signal 15\n");
    let output = lab(&["--timeout", "5", "--", "sh", "-c", "echo so far; sleep 1000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "so far\n");
}

#[test]
fn misuse_is_told_from_failure() {
    let output = lab(&["--kernel", "6.2", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("no kernel is called \"6.2\"; there are: 6.1, 6.12"), "{output:?}");
    let output = lab(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = lab(&["--file", "x", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = lab(&["--file", "/no/such/file:/x", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/no/such/file"), "{output:?}");
}

#[test]
fn what_is_not_installed_is_named() {
    // Everything but QEMU, and an apt-get that cannot help.
    let path = tempfile::tempdir().unwrap();
    for program in ["busybox", "clang", "depmod", "dpkg", "gcc", "ldd", "make", "pkg-config", "xz"] {
        symlink(format!("/usr/bin/{program}"), path.path().join(program)).unwrap();
    }
    symlink("/bin/false", path.path().join("apt-get")).unwrap();
    let output = lab(&["--", "true"]).env("PATH", path.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = "apt-get install --no-install-recommends qemu-system-x86";
    assert!(text(&output.stderr).contains(line), "{output:?}");
}

#[test]
fn an_intel_host_is_as_good() {
    let folder = tempfile::tempdir().unwrap();
    let line = "echo out; echo oops >&2; uname -r > /tmp/out; cat /sys/module/kvm_intel/parameters/nested; ls /dev/kvm; \
                while :; do sleep 1; done";
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["lab", "intel", "--bare", "--live", "--timeout", "20", "--get", "/tmp/out", "-o"]);
    let output =
        command.arg(folder.path()).args(["--", "sh", "-c", line]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "out\nY\n/dev/kvm\n");
    assert_eq!(text(&output.stderr), "oops\nlab: ended by the time limit\n");
    let release = std::fs::read_to_string(folder.path().join("tmp/out")).unwrap();
    assert!(release.starts_with("6.12."), "{release}");
}
