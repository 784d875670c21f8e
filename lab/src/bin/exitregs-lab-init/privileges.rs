// SPDX-License-Identifier: MIT
//! Runs a command as another user. Init starts itself again for that: what must happen between fork and exec is
//! more than a forked copy of a threaded process may do.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use exitregs_lab::host::job::Privileges;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// The program and arguments that start `argv` with these privileges.
pub fn wrap(privileges: &Privileges, argv: &[String]) -> Vec<String> {
    let words = ["/init".to_owned(), privileges.uid.to_string(), privileges.capabilities.join(",")];
    words.into_iter().chain(argv.iter().cloned()).collect()
}

/// The other half of [`wrap`]: takes on the privileges and becomes the command. Returns only with an error.
pub fn exec(arguments: &mut impl Iterator<Item = String>) -> Result<Infallible> {
    let mut next =
        || arguments.next().context("usage: exitregs-lab-init UID CAPABILITY,... PROGRAM [ARGUMENT]...");
    let uid: u32 = next()?.parse().context("the user is no number")?;
    let names = next()?;
    let program = next()?;
    let capabilities: CapsHashSet = names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| Capability::from_str(name).with_context(|| format!("there is no capability {name}")))
        .collect::<Result<_>>()?;

    prctl::set_keepcaps(true).context("cannot keep capabilities")?;
    setgroups(&[]).context("cannot leave all groups")?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(group, group, group).context("cannot change the group")?;
    setresuid(user, user, user).context("cannot change the user")?;
    // Ambient capabilities are those that survive an exec by a user who is not root; see capabilities(7).
    for set in [CapSet::Permitted, CapSet::Inheritable, CapSet::Effective] {
        // The effective set was emptied by the change of user; it must not exceed the permitted one at any time.
        caps::set(None, set, &capabilities)
            .with_context(|| format!("cannot set the {set:?} capabilities"))?;
    }
    caps::set(None, CapSet::Ambient, &capabilities).context("cannot set the Ambient capabilities")?;
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
