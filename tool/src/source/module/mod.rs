// SPDX-License-Identifier: MIT
//! Exits of a kernel that has loaded `kvm_exitregs` (src/): the patched kernel's events, by a module.

pub mod build;
pub mod load;

use super::tracefs::{self, Provider, Tracefs};
use super::{Unusable, check_kvm, unusable};
use crate::host::Host;
use exitregs_common::event::GROUP;

/// The module, as the kernel spells it.
pub const NAME: &str = "kvm_exitregs";

/// The module.
pub const PROVIDER: Provider =
    Provider { source: "module", group: GROUP, how: "the events of the module kvm_exitregs", partial: false };

/// Whether the module is loaded, and this process may read its events.
///
/// # Errors
/// It is not, or it may not; why, and what to do.
pub fn check(host: &Host) -> Result<Tracefs, Unusable> {
    check_kvm(host)?;
    let root = tracefs::root(host)?;
    if !load::is_loaded(host) {
        return Err(unusable(
            format!("the module {NAME} is not loaded"),
            "build it for this kernel, which needs CONFIG_RUST=y, and load it: make && exitregs events install --source \
             module --file kvm_exitregs.ko",
        ));
    }
    Tracefs::new(root, PROVIDER).map_err(|error| {
        unusable(
            format!("the events of {NAME} are not as this exitregs knows them: {error}"),
            "build the module and exitregs from the same sources",
        )
    })
}
