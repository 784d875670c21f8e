// SPDX-License-Identifier: MIT
//! What `cargo xtask dist` makes installs and runs where there is neither Rust nor a compiler nor a library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use exitregs_lab::host::{Command as Inside, Host, Kernel};

/// The tarball and the package, made once.
fn packages() -> &'static [PathBuf; 2] {
    static PACKAGES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let output = run(Command::new(env!("CARGO_BIN_EXE_xtask")).arg("dist"));
        let paths: Vec<_> = output.lines().map(PathBuf::from).collect();
        paths.try_into().expect("dist prints two paths")
    })
}

/// Standard output of a program that must succeed.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What must be true of an installed program, its man pages and its completions.
fn check(binary: &Path, man_page: &str, bash_completion: &Path) {
    let version = format!("exitregs {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(Command::new(binary).arg("--version").env_clear()), version);
    assert!(man_page.contains(".TH exitregs 1"), "{man_page}");
    let script = "source \"$1\" && complete -p exitregs";
    let complete = run(Command::new("bash").args(["--norc", "-c", script, "bash"]).arg(bash_completion));
    assert!(complete.contains("exitregs"), "{complete}");

    let outcome = Host::amd(Kernel::Stock6_1)
        .file(binary, "/usr/bin/exitregs")
        .run_each([Inside::shell("! ls /lib64/ld-*"), Inside::new(["exitregs", "doctor"])])
        .unwrap();
    for command in &outcome.commands {
        command.check().unwrap();
    }
}

#[test]
fn the_tarball_runs_where_it_is_unpacked() {
    let [tarball, _] = packages();
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(folder.path()));
    let top = folder.path().join(format!("exitregs-{}-x86_64", env!("CARGO_PKG_VERSION")));
    let man_page = fs::read_to_string(top.join("man/man1/exitregs.1")).unwrap();
    check(&top.join("exitregs"), &man_page, &top.join("completions/exitregs.bash"));
    for file in
        ["README.md", "LICENSE", "LICENSES/MIT.txt", "completions/_exitregs", "completions/exitregs.fish"]
    {
        assert!(fs::metadata(top.join(file)).unwrap().len() > 0, "{file}");
    }
    let third_party = fs::read_to_string(top.join("THIRD-PARTY.txt")).unwrap();
    for library in ["libbpf-sys ", "libelf ", "zlib", "glibc", "clap "] {
        assert!(third_party.contains(&format!("\n{library}")), "{library}");
    }
}

#[test]
fn the_debian_package_installs_and_leaves_without_a_trace() {
    let [_, package] = packages();
    let fields = run(Command::new("dpkg-deb").arg("--field").arg(package));
    assert!(!fields.contains("\nDepends:") && !fields.contains("\nPre-Depends:"), "{fields}");

    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for part in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(part)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = || {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", root.display())).args(["--force-not-root", "--force-bad-path"]);
        dpkg.arg("--log=/dev/null");
        dpkg
    };
    run(dpkg().arg("--install").arg(package));
    let share = root.join("usr/share");
    let man_page = run(Command::new("gzip").arg("-dc").arg(share.join("man/man1/exitregs.1.gz")));
    check(&root.join("usr/bin/exitregs"), &man_page, &share.join("bash-completion/completions/exitregs"));
    run(dpkg().args(["--purge", "exitregs"]));
    assert!(!root.join("usr").exists(), "files are left");
}

#[test]
fn the_same_checkout_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    run(Command::new(env!("CARGO_BIN_EXE_xtask")).args(["dist", "-o"]).arg(folder.path()));
    for package in packages() {
        let again = folder.path().join(package.file_name().unwrap());
        assert!(fs::read(package).unwrap() == fs::read(again).unwrap(), "{} differs", package.display());
    }
}
