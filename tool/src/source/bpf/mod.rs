// SPDX-License-Identifier: MIT
//! Exits of an unmodified kernel, read by BPF programs on `kvm_exit` and `kvm_entry`.

pub mod stat;
pub mod trace;

use super::{Unusable, check_kvm, unusable};
use crate::btf::{self, Joined};
use crate::host::Host;
use anyhow::{Context, Error, Result, anyhow, bail};
use exitregs_common::event::{Event, KvmExit};
use exitregs_common::isa::Isa;
use libbpf_rs::{Link, ObjectBuilder, OpenProgramMut, PrintLevel, ProgramMut};
use std::fmt;
use std::sync::Mutex;

/// How the programs get at the vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Through typed pointers (tp_btf): plain loads. Where KVM is made of modules the kernel asks
    /// CAP_SYS_ADMIN for their types.
    Typed,
    /// Through numbers (raw_tp): each load is a checked read, at about one and a half times the cost.
    Untyped,
}

impl Access {
    /// Of an opened object's programs at the exit and the entry, loads only those for this access.
    fn choose<'a>(self, typed: [&mut OpenProgramMut<'a>; 2], untyped: [&mut OpenProgramMut<'a>; 2]) {
        for (access, programs) in [(Self::Typed, typed), (Self::Untyped, untyped)] {
            for program in programs {
                program.set_autoload(access == self);
            }
        }
    }

    /// Attaches the programs at the exit and the entry that [`choose`](Self::choose) had loaded.
    fn attach(self, typed: [&ProgramMut<'_>; 2], untyped: [&ProgramMut<'_>; 2]) -> Result<Vec<Link>> {
        let [exit, entry] = if self == Self::Typed { typed } else { untyped };
        // The entry first: an exit must not find its entry's program missing.
        [entry, exit]
            .into_iter()
            .map(|program| {
                program.attach().map_err(|error| explain(error, "cannot attach to KVM's tracepoints"))
            })
            .collect()
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Typed => "typed pointers (tp_btf)",
            Self::Untyped => "checked reads (raw_tp): slower; CAP_SYS_ADMIN would allow typed pointers",
        })
    }
}

/// Whether the kernel describes its types.
///
/// # Errors
/// A file is missing; which, and what to do.
pub fn check_btf(host: &Host) -> Result<(), Unusable> {
    for file in host.btf_files().iter() {
        if !file.exists() {
            return Err(unusable(
                format!("no BTF: {} is missing", file.display()),
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y and CONFIG_DEBUG_INFO_BTF_MODULES=y, as all large distributions build it",
            ));
        }
    }
    Ok(())
}

/// Whether the kernel lets this process load tracing programs.
///
/// # Errors
/// It does not; why, and what to do.
pub fn check_permission(host: &Host) -> Result<Access, Unusable> {
    if host.lockdown == "confidentiality" {
        return Err(unusable(
            "the kernel is locked down for confidentiality: BPF programs may not read its memory",
            "boot with lockdown=integrity or without lockdown",
        ));
    }
    if !host.capabilities.can_trace() {
        return Err(unusable(
            "no permission to load tracing programs",
            "run as root, or give the command CAP_BPF and CAP_PERFMON: setcap cap_bpf,cap_perfmon+ep FILE",
        ));
    }
    Ok(if host.kvm_is_module && !host.capabilities.sys_admin { Access::Untyped } else { Access::Typed })
}

/// Whether the programs can run here, and how they would get at the vCPU.
///
/// # Errors
/// They cannot; why, and what to do.
pub fn check(host: &Host) -> Result<Access, Unusable> {
    check_kvm(host)?;
    check_btf(host)?;
    check_permission(host)
}

/// Everything that loading a program needs to know of the host.
struct Target {
    isa: Isa,
    access: Access,
    /// Position of the vCPU among kvm_exit's arguments.
    exit_vcpu_argument: u32,
    /// BTF for CO-RE, if libbpf should not look for it itself.
    btf: Option<Joined>,
}

impl Target {
    fn new(host: &Host) -> Result<Self> {
        let isa = check_kvm(host)?;
        let access = check(host)?;
        let files = host.btf_files();
        let arguments = btf::tracepoint_arguments(&files, "kvm_exit")?;
        let exit_vcpu_argument = arguments.iter().position(|ty| ty == "kvm_vcpu").filter(|index| *index < 2);
        let exit_vcpu_argument = exit_vcpu_argument.with_context(|| {
            format!(
                "this kernel's kvm_exit takes ({}): exitregs does not know how to read that",
                arguments.join(", ")
            )
        })?;
        let btf = match &files.vendor {
            // The vendor module's BTF has all that the programs read, whatever of it is kvm.ko's.
            Some(vendor) => Some(Joined::new(&files.vmlinux, vendor)?),
            None => None,
        };
        Ok(Self { isa, access, exit_vcpu_argument: exit_vcpu_argument as u32, btf })
    }

    fn configure(&self, builder: &mut ObjectBuilder) -> Result<()> {
        capture_libbpf_messages();
        if let Some(btf) = &self.btf {
            builder.btf_custom_path(btf.path())?;
        }
        Ok(())
    }

    /// The fields that VMX reads lazily, and so the programs see only at the next entry.
    fn lazy_fields(&self) -> u32 {
        match self.isa {
            Isa::Svm => 0,
            Isa::Vmx => field_bits(&["info1", "intr_info"]),
        }
    }

    /// The fields that the programs never know.
    fn unknown_fields(&self) -> u32 {
        match self.isa {
            Isa::Svm => 0,
            Isa::Vmx => field_bits(&["guest_rip", "error_code"]),
        }
    }
}

fn field_bits(names: &[&str]) -> u32 {
    names.iter().filter_map(|name| KvmExit::index(name)).map(|index| 1 << index).sum()
}

/// What libbpf said since the last error; it prints much that is harmless.
static MESSAGES: Mutex<String> = Mutex::new(String::new());

fn capture_libbpf_messages() {
    libbpf_rs::set_print(Some((PrintLevel::Warn, |_, message| {
        if let Ok(mut messages) = MESSAGES.lock() {
            messages.push_str(&message);
        }
    })));
}

/// An error of libbpf with the end of what it said, and what the errno usually means here.
fn explain(error: libbpf_rs::Error, what: &str) -> Error {
    let said = MESSAGES.lock().map(|mut messages| std::mem::take(&mut *messages)).unwrap_or_default();
    let lines: Vec<&str> = said.lines().collect();
    let end = lines[lines.len().saturating_sub(12)..].join("\n  ");
    let hint = match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            "\n  the kernel refused it: see `exitregs doctor` for the permissions that are needed"
        }
        _ => "",
    };
    if end.is_empty() { anyhow!("{what}: {error}{hint}") } else { anyhow!("{what}: {error}{hint}\n  {end}") }
}

/// A record of a BPF map or ring buffer.
///
/// # Safety
/// Every pattern of bytes must be a valid `T`.
unsafe fn record<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the slice is long enough, any bytes are a valid T by the caller's word, and the read
    // asks for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Writes a [`Selection`](super::Selection) and a [`Target`] into the constants of an opened object.
macro_rules! set_constants {
    ($constants:expr, $types:path, $target:expr, $selection:expr) => {{
        use $types as types;
        let (constants, target, selection): (&mut types::rodata, &super::Target, &crate::source::Selection) =
            ($constants, $target, $selection);
        constants.isa = target.isa as u32;
        constants.exit_vcpu_argument = target.exit_vcpu_argument;
        constants.hypercall_abi_l2 = selection.hypercall_abi_l2.map_or(0, exitregs_common::event::abi_field);
        for (exit_reason, kind) in constants.detail_kinds.iter_mut().enumerate() {
            *kind = exitregs_common::detail::DetailKind::of(target.isa, exit_reason as u32) as u8;
        }

        let places: &mut [u32; crate::source::MAX_VMS] = &mut constants.filter_vms;
        let chosen = places.get_mut(..selection.vms.len()).context("too many VMs are selected")?;
        chosen.copy_from_slice(&selection.vms);
        constants.filter_vm_count = selection.vms.len() as u32;

        if let Some(filter) = &selection.filter {
            super::check_filter(filter, target)?;
            let program = filter.program()?;
            constants.filter_operations = program.len() as u32;
            constants.filter_at_entry = filter.fields() & target.lazy_fields();
            for (place, operation) in constants.filter.iter_mut().zip(program) {
                *place = types::filter_operation {
                    operand: operation.operand,
                    offset: operation.offset,
                    size: operation.size,
                    operator: operation.operator as u8,
                    reserved: 0,
                };
            }
        }
    }};
}
use set_constants;

fn check_filter(filter: &crate::filter::Filter<KvmExit>, target: &Target) -> Result<()> {
    let unknown = filter.fields() & target.unknown_fields();
    let names: Vec<_> = KvmExit::FIELDS
        .iter()
        .enumerate()
        .filter(|(index, _)| unknown & 1 << index != 0)
        .map(|(_, field)| field.name)
        .collect();
    if !names.is_empty() {
        bail!(
            "the filter reads {}, which the bpf source does not know on {}",
            names.join(" and "),
            target.isa
        );
    }
    Ok(())
}
