// SPDX-License-Identifier: MIT
//! Exits of a kernel that has loaded `kvm_exitregs` (src/): the patched kernel's events, by a module.

use super::tracefs::{self, Provider, Tracefs};
use super::{Unusable, check_kvm, unusable};
use crate::host::Host;
use exitregs_common::event::GROUP;

/// The module. It has no `kvm_nested_page_fault`.
pub const PROVIDER: Provider =
    Provider { source: "module", group: GROUP, how: "the events of the module kvm_exitregs", partial: true };

/// Whether the module is loaded: others make events of the same names.
pub fn is_loaded() -> bool {
    std::path::Path::new("/sys/module/kvm_exitregs").exists()
}

/// Whether the module is loaded, and this process may read its events.
///
/// # Errors
/// It is not, or it may not; why, and what to do.
pub fn check(host: &Host) -> Result<Tracefs, Unusable> {
    check_kvm(host)?;
    let root = tracefs::root(host)?;
    if !is_loaded() {
        return Err(unusable(
            "the module kvm_exitregs is not loaded",
            "build it for this kernel, which needs CONFIG_RUST=y, and load it: make && insmod kvm_exitregs.ko",
        ));
    }
    Tracefs::new(root, PROVIDER).map_err(|error| {
        unusable(
            format!("the events of kvm_exitregs are not as this exitregs knows them: {error}"),
            "build the module and exitregs from the same sources",
        )
    })
}
