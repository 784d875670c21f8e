// SPDX-License-Identifier: MIT
//! What the kernel's BTF says of KVM: its tracepoints' prototypes, and its types as one BTF.

use crate::host::BtfFiles;
use anyhow::{Context, Result, ensure};
use libbpf_rs::btf::types::{Array, Composite, Func, FuncProto, Int, MemberAttr, Ptr};
use libbpf_rs::btf::{BtfKind, BtfType, TypeId};
use libbpf_rs::{AsRawLibbpf, Btf, HasSize, ReferencesType, libbpf_sys};
use rustix::fs::{MemfdFlags, memfd_create};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Length of `struct btf_header`, include/uapi/linux/btf.h; it may grow.
const HEADER_LENGTH: usize = 24;
const MAGIC: u16 = 0xeb9f;

/// The arguments of a tracepoint of KVM's, each by the name of the type that it is or points to.
///
/// # Errors
/// The BTF is missing or damaged, or has no such tracepoint.
pub fn tracepoint_arguments(files: &BtfFiles, tracepoint: &str) -> Result<Vec<String>> {
    arguments(&read(files, files.kvm.as_deref())?, tracepoint)
}

/// The kernel's BTF, with a module's.
fn read(files: &BtfFiles, module: Option<&Path>) -> Result<Btf<'static>> {
    let joined = module.map(|module| Joined::new(&files.vmlinux, module)).transpose()?;
    let path = joined.as_ref().map_or_else(|| files.vmlinux.clone(), Joined::path);
    Btf::from_path(path).with_context(|| {
        format!("cannot read the kernel's BTF, {}", module.unwrap_or(&files.vmlinux).display())
    })
}

/// The first type of a kind with a name, of which the kernel's may be a mere declaration of the module's.
fn find(btf: &Btf<'_>, name: &str, kind: BtfKind) -> Option<TypeId> {
    let name = CString::new(name).ok()?;
    // SAFETY: `btf` is a BTF that libbpf made, and alive; the name is a C string.
    let id = unsafe {
        libbpf_sys::btf__find_by_name_kind(btf.as_libbpf_object().as_ptr(), name.as_ptr(), kind as u32)
    };
    u32::try_from(id).ok().map(TypeId::from)
}

fn arguments(btf: &Btf<'_>, tracepoint: &str) -> Result<Vec<String>> {
    let prototype = || {
        let typedef =
            btf.type_by_id::<BtfType>(find(btf, &format!("btf_trace_{tracepoint}"), BtfKind::Typedef)?)?;
        FuncProto::try_from(typedef.next_type()?.next_type()?).ok()
    };
    let prototype = prototype()
        .with_context(|| format!("the kernel's BTF has no prototype of the tracepoint {tracepoint}"))?;
    // The first parameter is the probe's private data.
    Ok(prototype.iter().skip(1).map(|parameter| type_name(btf, parameter.ty)).collect())
}

/// KVM's types and tracepoints on this host.
pub struct Types {
    vendor: Btf<'static>,
    /// kvm.ko's, which has the tracepoints; `None` where KVM is built in.
    kvm: Option<Btf<'static>>,
    /// The structures that were asked for: to find one, libbpf looks at every type of the kernel's.
    structures: RefCell<HashMap<String, Option<TypeId>>>,
}

impl Types {
    /// Reads the BTF of KVM and of the vendor's half, which has KVM's common types as well.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn read(files: &BtfFiles) -> Result<Self> {
        let kvm = files.kvm.as_ref().map(|kvm| read(files, Some(kvm))).transpose()?;
        Ok(Self { vendor: read(files, files.vendor.as_deref())?, kvm, structures: RefCell::default() })
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
        let mut here: BtfType<'_> = self.vendor.type_by_id(self.structure(structure)?)?;
        let mut offsets = vec![0];
        for part in path.split('.') {
            let (name, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
                Some((name, index)) => (name, Some(index.parse::<u32>().ok()?)),
                None => (part, None),
            };
            if let Ok(pointer) = Ptr::try_from(here) {
                offsets.push(0);
                here = pointer.referenced_type().skip_mods_and_typedefs();
            }
            let (offset, member) = self.member(Composite::try_from(here).ok()?, name)?;
            let last = offsets.last_mut()?;
            *last += offset;
            here = member;
            if let Some(index) = index {
                here = Array::try_from(here).ok()?.contained_type().skip_mods_and_typedefs();
                *last += index * size(here)?;
            }
        }
        Some(offsets)
    }

    /// The names of a function's parameters; `None` if the kernel has no such function, or does not describe it.
    pub fn parameters(&self, function: &str) -> Option<Vec<String>> {
        let function: Func<'_> = self.vendor.type_by_id(find(&self.vendor, function, BtfKind::Func)?)?;
        let prototype = FuncProto::try_from(function.referenced_type()).ok()?;
        prototype.iter().map(|parameter| Some(parameter.name?.to_str()?.to_owned())).collect()
    }

    fn structure(&self, name: &str) -> Option<TypeId> {
        let mut structures = self.structures.borrow_mut();
        if let Some(known) = structures.get(name) {
            return *known;
        }
        let found = find(&self.vendor, name, BtfKind::Struct);
        structures.insert(name.to_owned(), found);
        found
    }

    /// A member, also one of an anonymous structure or union, with its offset in bytes.
    fn member(&self, aggregate: Composite<'_>, name: &str) -> Option<(u32, BtfType<'_>)> {
        (0..aggregate.len()).filter_map(|index| aggregate.get(index)).find_map(|member| {
            let ty = self.vendor.type_by_id::<BtfType<'_>>(member.ty)?.skip_mods_and_typedefs();
            let MemberAttr::Normal { offset } = member.attr else { return None };
            match member.name {
                Some(is) => (is == name).then_some((offset / 8, ty)),
                None => self
                    .member(Composite::try_from(ty).ok()?, name)
                    .map(|(within, ty)| (offset / 8 + within, ty)),
            }
        })
    }
}

/// The size of a type in bytes.
fn size(ty: BtfType<'_>) -> Option<u32> {
    let size = match ty.kind() {
        BtfKind::Ptr => size_of::<u64>(),
        BtfKind::Int => Int::try_from(ty).ok()?.size(),
        BtfKind::Struct | BtfKind::Union => Composite::try_from(ty).ok()?.size(),
        _ => return None,
    };
    u32::try_from(size).ok()
}

fn type_name(btf: &Btf<'_>, id: TypeId) -> String {
    let mut ty = btf.type_by_id::<BtfType<'_>>(id);
    while let Some(BtfKind::Ptr | BtfKind::Const | BtfKind::Volatile) = ty.map(|ty| ty.kind()) {
        ty = ty.and_then(|ty| ty.next_type());
    }
    ty.and_then(|ty| ty.name()).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The kernel's BTF and a module's as one, in memory. libbpf takes it for CO-RE without the privilege (CAP_SYS_ADMIN) that
/// it needs to ask the kernel for modules' BTF.
///
/// A module's ids and string offsets go on where the kernel's end, so the sections need only be laid end to end.
pub struct Joined(File);

impl Joined {
    /// Reads both.
    ///
    /// # Errors
    /// A file is missing or damaged; there is no memory for this one.
    pub fn new(vmlinux: &Path, module: &Path) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let (base, split) = (read(vmlinux)?, read(module)?);
        let base = Sections::of(&base).with_context(|| format!("{} is damaged", vmlinux.display()))?;
        let split = Sections::of(&split).with_context(|| format!("{} is damaged", module.display()))?;

        let types = base.types.len() + split.types.len();
        let strings = base.strings.len() + split.strings.len();
        let mut header = base.header.to_vec();
        for (at, value) in [(4, HEADER_LENGTH), (8, 0), (12, types), (16, types), (20, strings)] {
            header[at..at + 4].copy_from_slice(&u32::try_from(value)?.to_ne_bytes());
        }
        let file = memfd_create("exitregs-btf", MemfdFlags::CLOEXEC)
            .context("cannot create a file in memory (memfd_create)")?;
        let mut file = File::from(file);
        for section in [&header, base.types, split.types, base.strings, split.strings] {
            file.write_all(section).context("cannot write the kernel's types to a file in memory")?;
        }
        Ok(Self(file))
    }

    /// A path by which this process can open it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
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
        ensure!(word(4) >= HEADER_LENGTH, "its header is {} bytes long, not {HEADER_LENGTH}", word(4));
        let section = |offset: usize, length: usize| {
            let start = word(4) + offset;
            btf.get(start..start + length).context("a section reaches beyond its end")
        };
        Ok(Self { header, types: section(word(8), word(12))?, strings: section(word(16), word(20))? })
    }
}
