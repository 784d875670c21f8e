// SPDX-License-Identifier: MIT
//! How kernels are configured: fragments of `lab/kernels/`, put together.

use super::source::Base;

/// How KVM and its two vendors' halves are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvmAs {
    /// `=y`.
    BuiltIn,
    /// `=m`.
    Modules,
}

/// The configuration of the kernels that are booted: small, with KVM built in.
pub(super) fn boot(base: Base, kasan: bool) -> String {
    let own = if kasan {
        include_str!("../../../kernels/kasan.config")
    } else {
        include_str!("../../../kernels/boot.config")
    };
    [&shared(base), &kvm(KvmAs::BuiltIn), own].concat()
}

/// A configuration to compile all of KVM with, warnings being errors. Such kernels are not for booting.
pub fn coverage(base: Base, kvm_as: KvmAs, prove_locking: bool) -> String {
    let own = match base {
        Base::V6_12 => "",
        Base::Mainline => include_str!("../../../kernels/mainline-coverage.config"),
    };
    let locking = if prove_locking { "CONFIG_PROVE_LOCKING=y\n" } else { "" };
    let coverage = include_str!("../../../kernels/coverage.config");
    [&shared(base), coverage, own, &kvm(kvm_as), locking].concat()
}

fn shared(base: Base) -> String {
    let own = match base {
        Base::V6_12 => "",
        Base::Mainline => include_str!("../../../kernels/mainline.config"),
    };
    [include_str!("../../../kernels/base.config"), own].concat()
}

fn kvm(kvm_as: KvmAs) -> String {
    let value = match kvm_as {
        KvmAs::BuiltIn => 'y',
        KvmAs::Modules => 'm',
    };
    format!("CONFIG_KVM={value}\nCONFIG_KVM_INTEL={value}\nCONFIG_KVM_AMD={value}\n")
}
