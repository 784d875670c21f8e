// SPDX-License-Identifier: MIT
//! What is concluded from a host's /proc and /sys, on hosts that no lab has.

use std::fs;
use std::path::Path;

use exitregs::host::{Capabilities, Host, Kvm};
use exitregs::source::bpf::{Access, check_btf, check_permission};
use exitregs::source::check_kvm;
use exitregs_common::isa::Isa;
use tempfile::TempDir;

const ALL: Capabilities = Capabilities { bpf: true, perfmon: true, sys_admin: true };
const TWO: Capabilities = Capabilities { bpf: true, perfmon: true, sys_admin: false };

/// A host with these files below its root.
fn host(files: &[(&str, &str)], capabilities: Capabilities) -> (Host, TempDir) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (Host::read(root.path(), capabilities), root)
}

const CPU_VMX: (&str, &str) = ("proc/cpuinfo", "processor : 0\nflags : fpu vmx lm\n");
const CPU_SVM: (&str, &str) = ("proc/cpuinfo", "processor : 0\nflags : fpu svm lm\n");
const CPU: (&str, &str) = ("proc/cpuinfo", "processor : 0\nflags : fpu lm\n");

#[test]
fn built_in_kvm_needs_two_capabilities_for_typed_pointers() {
    let files = [
        CPU_VMX,
        ("sys/module/kvm/parameters/x", ""),
        ("sys/module/kvm_intel/parameters/nested", "Y\n"),
        ("sys/kernel/btf/vmlinux", ""),
    ];
    let (host, _root) = host(&files, TWO);
    assert_eq!(host.kvm, Kvm::Ready(Isa::Vmx));
    assert_eq!(host.nested, Some(true));
    assert!(!host.kvm_is_module);
    assert_eq!(check_btf(&host), Ok(()));
    assert_eq!(check_permission(&host), Ok(Access::Typed));
}

#[test]
fn kvm_as_modules_needs_their_btf_and_sys_admin_for_typed_pointers() {
    let mut files = vec![
        CPU_SVM,
        ("sys/module/kvm/initstate", "live\n"),
        ("sys/module/kvm_amd/parameters/nested", "1\n"),
        ("sys/kernel/btf/vmlinux", ""),
        ("sys/kernel/btf/kvm", ""),
    ];
    let (without, _root) = host(&files, TWO);
    assert_eq!(without.kvm, Kvm::Ready(Isa::Svm));
    assert_eq!(without.nested, Some(true));
    let missing = check_btf(&without).unwrap_err();
    assert!(missing.what.ends_with("sys/kernel/btf/kvm_amd is missing"), "{missing}");
    files.push(("sys/kernel/btf/kvm_amd", ""));
    for (capabilities, access) in [(TWO, Access::Untyped), (ALL, Access::Typed)] {
        let (host, _root) = host(&files, capabilities);
        assert_eq!(check_btf(&host), Ok(()));
        assert_eq!(check_permission(&host), Ok(access));
    }
}

#[test]
fn a_paravirtual_kvm_never_exits() {
    let (host, _root) = host(&[CPU, ("sys/module/kvm/initstate", "live\n")], ALL);
    assert_eq!(host.kvm, Kvm::NoVendor);
    let error = check_kvm(&host).unwrap_err();
    assert!(error.what.contains("kvm_exit can never fire here"), "{error}");
}

#[test]
fn a_vendor_module_without_its_extension_is_told_from_none() {
    // Built in, the module's folder is there whatever the CPU has.
    let both = [CPU, ("sys/module/kvm_intel/x", ""), ("sys/module/kvm/x", "")];
    let (idle, _root) = host(&both, ALL);
    assert_eq!(idle.kvm, Kvm::NoExtension(Isa::Vmx));
    let error = check_kvm(&idle).unwrap_err();
    assert!(error.what.contains("does not offer VMX") && error.remedy.contains("firmware"), "{error}");

    let both =
        [CPU_SVM, ("sys/module/kvm_intel/x", ""), ("sys/module/kvm_amd/x", ""), ("sys/module/kvm/x", "")];
    let (both, _root) = host(&both, ALL);
    assert_eq!(both.kvm, Kvm::Ready(Isa::Svm));

    let (none, _root) = host(&[CPU_SVM], ALL);
    assert_eq!(none.kvm, Kvm::Absent);
}

#[test]
fn an_empty_root_is_a_host_without_anything() {
    let host = Host::read(Path::new("/no/such/root"), ALL);
    assert_eq!((host.kvm, host.nested, host.release.as_str()), (Kvm::Absent, None, ""));
    assert_eq!(host.lockdown, "none");
    assert!(check_btf(&host).is_err());
}

#[test]
fn one_capability_is_not_enough() {
    for (bpf, perfmon) in [(true, false), (false, true), (false, false)] {
        let (host, _root) = host(&[], Capabilities { bpf, perfmon, sys_admin: false });
        let error = check_permission(&host).unwrap_err();
        assert!(error.remedy.contains("setcap cap_bpf,cap_perfmon+ep"), "{error}");
    }
}

#[test]
fn confidentiality_forbids_what_integrity_allows() {
    for (modes, allowed) in [
        ("[none] integrity confidentiality\n", true),
        ("none [integrity] confidentiality\n", true),
        ("none integrity [confidentiality]\n", false),
    ] {
        let (host, _root) = host(&[("sys/kernel/security/lockdown", modes)], ALL);
        assert_eq!(check_permission(&host).is_ok(), allowed, "{modes}");
    }
}
