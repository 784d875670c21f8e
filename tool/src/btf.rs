// SPDX-License-Identifier: MIT
//! What the kernel's BTF says of KVM: its tracepoints' prototypes, and its types as one BTF.

use crate::host::BtfFiles;
use anyhow::{Context, Result, bail, ensure};
use btf_rs::{Btf, BtfType, Type};
use std::fs;
use std::path::Path;

/// Length of `struct btf_header`, include/uapi/linux/btf.h.
const HEADER_LENGTH: usize = 24;
const MAGIC: u16 = 0xeb9f;

/// The arguments of a tracepoint, each by the name of the type that it is or points to.
///
/// # Errors
/// The BTF is missing or damaged, or has no such tracepoint.
pub fn tracepoint_arguments(files: &BtfFiles, tracepoint: &str) -> Result<Vec<String>> {
    let vmlinux = vmlinux(files)?;
    let kvm = files.kvm.as_ref().map(|path| split(&vmlinux, path)).transpose()?;
    arguments(&kvm.unwrap_or(vmlinux), tracepoint)
}

fn vmlinux(files: &BtfFiles) -> Result<Btf> {
    Btf::from_file(&files.vmlinux)
        .with_context(|| format!("cannot read the kernel's BTF, {}", files.vmlinux.display()))
}

/// The BTF of a module, which includes the kernel's.
fn split(vmlinux: &Btf, module: &Path) -> Result<Btf> {
    Btf::from_split_file(module, vmlinux)
        .with_context(|| format!("cannot read a module's BTF, {}", module.display()))
}

fn arguments(btf: &Btf, tracepoint: &str) -> Result<Vec<String>> {
    let name = format!("btf_trace_{tracepoint}");
    for ty in btf.resolve_types_by_name(&name).with_context(|| format!("the kernel has no {tracepoint}"))? {
        let Type::Typedef(typedef) = ty else { continue };
        let Type::Ptr(pointer) = btf.resolve_chained_type(&typedef)? else { continue };
        let Type::FuncProto(prototype) = btf.resolve_chained_type(&pointer)? else { continue };
        // The first parameter is the probe's private data.
        return prototype.parameters.iter().skip(1).map(|parameter| type_name(btf, parameter)).collect();
    }
    bail!("the kernel's BTF has no prototype of the tracepoint {tracepoint}")
}

/// KVM's types and tracepoints on this host. It takes some tenths of a second to read the kernel's BTF: this does it once.
pub struct Types {
    vendor: Btf,
    /// kvm.ko's, which has the tracepoints; `None` where KVM is built in.
    kvm: Option<Btf>,
}

impl Types {
    /// Reads the BTF of KVM and of the vendor's half, which has KVM's common types as well.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn read(files: &BtfFiles) -> Result<Self> {
        let vmlinux = vmlinux(files)?;
        let kvm = files.kvm.as_ref().map(|path| split(&vmlinux, path)).transpose()?;
        let vendor = files.vendor.as_ref().map(|path| split(&vmlinux, path)).transpose()?;
        Ok(Self { vendor: vendor.unwrap_or(vmlinux), kvm })
    }

    /// The arguments of a tracepoint of KVM's, as [`tracepoint_arguments`] has them.
    ///
    /// # Errors
    /// There is no such tracepoint.
    pub fn tracepoint(&self, name: &str) -> Result<Vec<String>> {
        arguments(self.kvm.as_ref().unwrap_or(&self.vendor), name)
    }

    /// How to get from a structure to a member of it, such as `vmcb.control.exit_code` or `arch.regs[3]`: the offsets in
    /// bytes, a pointer being followed between two of them. `None` if there is no such member, or it is a bit field.
    pub fn place(&self, structure: &str, path: &str) -> Option<Vec<u32>> {
        let mut here = self.vendor.resolve_types_by_name(structure).ok()?.into_iter().find(is_aggregate)?;
        let mut offsets = vec![0];
        for part in path.split('.') {
            let (name, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
                Some((name, index)) => (name, Some(index.parse::<u32>().ok()?)),
                None => (part, None),
            };
            if let Type::Ptr(pointer) = here {
                offsets.push(0);
                here = self.plain(&pointer)?;
            }
            let (Type::Struct(aggregate) | Type::Union(aggregate)) = &here else { return None };
            let (offset, member) = self.member(aggregate, name)?;
            let last = offsets.last_mut()?;
            *last += offset;
            here = member;
            if let Some(index) = index {
                let Type::Array(array) = &here else { return None };
                let element = self.plain(array)?;
                *last += index * self.size(&element)?;
                here = element;
            }
        }
        Some(offsets)
    }

    /// The names of a function's parameters; `None` if the kernel has no such function, or does not describe it.
    pub fn parameters(&self, function: &str) -> Option<Vec<String>> {
        let types = self.vendor.resolve_types_by_name(function).ok()?;
        let prototypes = types.iter().filter_map(|ty| match ty {
            Type::Func(function) => self.vendor.resolve_chained_type(function).ok(),
            _ => None,
        });
        prototypes
            .filter_map(|ty| match ty {
                Type::FuncProto(prototype) => Some(prototype),
                _ => None,
            })
            .find_map(|prototype| {
                prototype.parameters.iter().map(|p| self.vendor.resolve_name(p).ok()).collect()
            })
    }

    /// A member, also one of an anonymous structure or union, with its offset in bytes.
    fn member(&self, aggregate: &btf_rs::Struct, name: &str) -> Option<(u32, Type)> {
        aggregate.members.iter().find_map(|member| {
            let offset = member.bit_offset() / 8;
            let is = self.vendor.resolve_name(member).unwrap_or_default();
            if is == name {
                let bits = member.bitfield_size().unwrap_or(0);
                return (bits == 0).then(|| Some((offset, self.plain(member)?))).flatten();
            }
            match self.plain(member)? {
                Type::Struct(inner) | Type::Union(inner) if is.is_empty() => {
                    self.member(&inner, name).map(|(within, ty)| (offset + within, ty))
                }
                _ => None,
            }
        })
    }

    /// The type that something has, without names and qualifiers.
    fn plain<T: BtfType + ?Sized>(&self, of: &T) -> Option<Type> {
        let mut ty = self.vendor.resolve_chained_type(of).ok()?;
        while let Type::Typedef(_) | Type::Const(_) | Type::Volatile(_) | Type::TypeTag(_) = ty {
            ty = self.vendor.resolve_chained_type(ty.as_btf_type()?).ok()?;
        }
        Some(ty)
    }

    fn size(&self, ty: &Type) -> Option<u32> {
        let size = match ty {
            Type::Int(int) => int.size(),
            Type::Ptr(_) => size_of::<u64>(),
            Type::Struct(aggregate) | Type::Union(aggregate) => aggregate.size(),
            _ => return None,
        };
        u32::try_from(size).ok()
    }
}

fn is_aggregate(ty: &Type) -> bool {
    matches!(ty, Type::Struct(_) | Type::Union(_))
}

fn type_name(btf: &Btf, parameter: &btf_rs::Parameter) -> Result<String> {
    let mut ty = btf.resolve_chained_type(parameter)?;
    loop {
        ty = match ty {
            Type::Ptr(pointer) => btf.resolve_chained_type(&pointer)?,
            Type::Const(modifier) | Type::Volatile(modifier) => btf.resolve_chained_type(&modifier)?,
            Type::Struct(structure) => return Ok(btf.resolve_name(&structure)?),
            Type::Int(int) => return Ok(btf.resolve_name(&int)?),
            Type::Typedef(typedef) => return Ok(btf.resolve_name(&typedef)?),
            _ => return Ok(String::new()),
        };
    }
}

/// The kernel's BTF and a module's as one, which libbpf takes for CO-RE without the privilege
/// (CAP_SYS_ADMIN) that it needs to ask the kernel for modules' BTF.
///
/// A module's ids and string offsets go on where the kernel's end, so the sections need only be
/// laid end to end.
///
/// # Errors
/// A file is missing or damaged.
pub fn joined(vmlinux: &Path, module: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (base, split) = (read(vmlinux)?, read(module)?);
    let base = Sections::of(&base).with_context(|| format!("{} is damaged", vmlinux.display()))?;
    let split = Sections::of(&split).with_context(|| format!("{} is damaged", module.display()))?;

    let types = base.types.len() + split.types.len();
    let strings = base.strings.len() + split.strings.len();
    let mut joined = base.header.to_vec();
    for (at, value) in [(8, 0), (12, types), (16, types), (20, strings)] {
        joined[at..at + 4].copy_from_slice(&u32::try_from(value)?.to_ne_bytes());
    }
    for section in [base.types, split.types, base.strings, split.strings] {
        joined.extend_from_slice(section);
    }
    Ok(joined)
}

struct Sections<'a> {
    header: &'a [u8],
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Sections<'a> {
    fn of(btf: &'a [u8]) -> Result<Self> {
        let header = btf.get(..HEADER_LENGTH).context("it is shorter than its header")?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
        };
        ensure!(u16::from_ne_bytes([header[0], header[1]]) == MAGIC, "it does not begin as BTF does");
        ensure!(word(4) == HEADER_LENGTH, "its header is {} bytes long, not {HEADER_LENGTH}", word(4));
        let section = |offset: usize, length: usize| {
            let start = HEADER_LENGTH + offset;
            btf.get(start..start + length).context("a section reaches beyond its end")
        };
        Ok(Self { header, types: section(word(8), word(12))?, strings: section(word(16), word(20))? })
    }
}
