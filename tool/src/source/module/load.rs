// SPDX-License-Identifier: MIT
//! The module in the kernel: loaded, with what BTF tells, and unloaded.

use super::NAME;
use crate::btf::Types;
use crate::host::Host;
use crate::source::check_kvm;
use crate::source::tprobe::definition::{FROM_HARDWARE, injector};
use crate::source::tprobe::install::{Events, InUse};
use crate::source::tracefs::instance;
use anyhow::{Context, Result, anyhow, bail};
use exitregs_common::event::{Event, GROUP, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::isa::Isa;
use rustix::io::Errno;
use std::ffi::{CString, c_int};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Its events.
pub const EVENTS: [&str; 3] = [KvmExit::NAME, KvmEntry::NAME, KvmNestedPageFault::NAME];

/// Where it is looked for below `/lib/modules/RELEASE`: where DKMS and `make modules_install` put it.
const FOLDERS: [&str; 3] = ["updates/dkms", "updates", "extra"];
/// How its file ends if it is compressed: the kernel unpacks it.
const COMPRESSED: [&str; 3] = ["xz", "zst", "gz"];

/// `MODULE_INIT_COMPRESSED_FILE` of finit_module(2).
const COMPRESSED_FILE: c_int = 4;
/// `O_NONBLOCK` of delete_module(2): it fails rather than waits for users.
const NONBLOCK: c_int = libc::O_NONBLOCK;

/// Whether it is loaded: others make events of the same names.
pub fn is_loaded(host: &Host) -> bool {
    host.path(&format!("sys/module/{NAME}")).exists()
}

/// The parameters that it has been loaded with, as `name=value`; those that are 0 are left out.
pub fn parameters(host: &Host) -> Vec<String> {
    let folder = host.path(&format!("sys/module/{NAME}/parameters"));
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut parameters: Vec<_> = files
        .filter_map(|file| {
            let value = fs::read_to_string(file.path()).ok()?;
            (value.trim() != "0").then(|| format!("{}={}", file.file_name().to_string_lossy(), value.trim()))
        })
        .collect();
    parameters.sort();
    parameters
}

/// Loads it from a file, or from where it is installed, unless it is loaded. Returns the file and the parameters.
///
/// # Errors
/// Dynamic events have the names of its events; there is no such file; the kernel refuses it.
pub fn load(host: &Host, file: Option<&Path>) -> Result<Option<(PathBuf, String)>> {
    let isa = check_kvm(host)?;
    if is_loaded(host) {
        return Ok(None);
    }
    if let Some(tracefs) = host.tracefs()
        && let [first, ..] = Events::of(&tracefs).list()?.as_slice()
    {
        bail!(
            "dynamic events have the names of the module's: {first}\n  remove them first: exitregs events remove"
        );
    }
    let path = match file {
        Some(file) => file.to_owned(),
        None => installed(host)?,
    };
    let parameters = offsets(host, isa).join(" ");
    let failed = || format!("cannot load {}", path.display());
    let file = File::open(&path).with_context(failed)?;
    let is_compressed = COMPRESSED.iter().any(|ending| path.extension().is_some_and(|it| it == *ending));
    let flags = if is_compressed { COMPRESSED_FILE } else { 0 };
    let arguments = CString::new(parameters.clone())?;
    if let Err(error) = rustix::system::finit_module(&file, &arguments, flags) {
        return Err(anyhow!(refusal(error, &parameters))
            .context(std::io::Error::from(error))
            .context(failed()));
    }
    Ok(Some((path, parameters)))
}

/// What the kernel's refusal means, and what to do.
fn refusal(error: Errno, parameters: &str) -> String {
    let log = format!("the kernel's log says more: dmesg | grep {NAME}");
    match error {
        Errno::PERM => "run as root; a kernel that is locked down takes only signed modules".to_owned(),
        Errno::OPNOTSUPP => "this kernel does not unpack modules: do it before".to_owned(),
        Errno::NOEXEC => format!("it was not built for this kernel; {log}"),
        Errno::NOENT => format!("it needs something that this kernel has not; {log}"),
        Errno::INVAL if !parameters.is_empty() => {
            format!("it was not built for this kernel, or refuses {parameters}; {log}")
        }
        _ => log,
    }
}

fn installed(host: &Host) -> Result<PathBuf> {
    let folder = host.path(&format!("lib/modules/{}", host.release));
    let plain = format!("{NAME}.ko");
    let names = [vec![plain.clone()], COMPRESSED.map(|ending| format!("{plain}.{ending}")).to_vec()].concat();
    let candidates =
        FOLDERS.iter().flat_map(|place| names.iter().map(move |name| Path::new(place).join(name)));
    candidates.map(|name| folder.join(name)).find(|path| path.exists()).with_context(|| {
        format!(
            "{NAME}.ko is not below {}\n  build it (make, in exitregs' sources) and install it by `make modules_install` or \
             DKMS, or say where it is: --file",
            folder.display()
        )
    })
}

/// The offsets that the module takes, as BTF has them; those that it has not are left out, and the module says so if it needs
/// one.
fn offsets(host: &Host, isa: Isa) -> Vec<String> {
    let Ok(types) = Types::read(&host.btf_files()) else { return Vec::new() };
    let offset = |name: &str, structure, member| {
        let place = types.place(structure, member)?;
        Some(format!("{name}={}", place.first()?))
    };
    let vmcb = || offset("vmcb_offset", "vcpu_svm", "vmcb");
    // Without that argument the module would not know the exception's neighbour for what it is.
    let tells =
        types.parameters(injector(isa)).is_some_and(|names| names.iter().any(|name| name == FROM_HARDWARE));
    let fault = || offset("fault_address_offset", "x86_exception", "address");
    let found = [(isa == Isa::Svm).then(vmcb), tells.then(fault)];
    found.into_iter().flatten().flatten().collect()
}

/// Unloads it. Returns whether it was loaded.
///
/// # Errors
/// [`InUse`]: an event is enabled somewhere, and `force` is not given, which disables them; or perf, a trigger or a BPF program
/// uses one.
pub fn unload(host: &Host, force: bool) -> Result<bool> {
    if !is_loaded(host) {
        return Ok(false);
    }
    if let Some(tracefs) = host.tracefs() {
        instance::remove_abandoned(&tracefs);
        let events = Events::of(&tracefs);
        for event in EVENTS {
            match events.use_of(event) {
                // Unloading would clear the buffers that it is recorded in.
                Some(used) if !force => return Err(used.into()),
                Some(_) => events.disable(event)?,
                None => {}
            }
        }
    }
    let name = CString::new(NAME)?;
    match rustix::system::delete_module(&name, NONBLOCK) {
        Ok(()) => Ok(true),
        // Another was faster.
        Err(Errno::NOENT) => Ok(false),
        Err(Errno::AGAIN | Errno::BUSY) => Err(InUse {
            what: format!("the module {NAME}"),
            by: vec!["perf, a trigger or a BPF program uses one of its events".to_owned()],
        }
        .into()),
        Err(error) => Err(anyhow!(std::io::Error::from(error)).context(format!("cannot unload {NAME}"))),
    }
}

/// Refuses to make dynamic events of the module's names.
///
/// # Errors
/// The module is loaded.
pub fn check_absent(host: &Host) -> Result<()> {
    if is_loaded(host) {
        bail!(
            "the module {NAME} is loaded, whose events in the group {GROUP} have the same names\n  use them, or unload it \
             first: exitregs events remove"
        );
    }
    Ok(())
}
