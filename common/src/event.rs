// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The events: `kvm_exit`, `kvm_entry` and `kvm_nested_page_fault`, each with the COMMON fields.
//!
//! One [`common_events!`](self) use yields, for every event: the `#[repr(C)]` record, its field
//! table, the tracefs `format` lines, the print format and the C declaration that the BPF programs
//! include. A field is added, renamed or retyped here and nowhere else.
//!
//! Source of the events' own fields: `TRACE_EVENT_KVM_EXIT` and `TRACE_EVENT(kvm_entry)` in Linux'
//! `arch/x86/kvm/trace.h`, whose names, types and order stay as they are.

use super::gpr::Gpr;
use super::hypercall::Abi;
use super::isa::Level;
use super::prelude::const_assert_eq;
use core::fmt;

/// One field of an event, as tracefs' `format` file describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name, as filters spell it.
    pub name: &'static str,
    /// C type, as the `format` file spells it.
    pub c_type: &'static str,
    /// Byte offset in the record; the `format` file's is this plus [`HEADER_SIZE`].
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// printf conversion of the print format.
    pub conversion: &'static str,
    /// Whether some kernels' event lacks the field (`requests` is newer than Linux 6.12).
    pub optional: bool,
}

impl Field {
    /// Whether the field is one of COMMON, which no unpatched kernel's own event has.
    pub fn is_common(&self) -> bool {
        COMMON_NAMES.contains(&self.name)
    }

    /// A value of this field as it is shown: addresses, registers and masks in hexadecimal.
    pub fn is_hexadecimal(&self) -> bool {
        self.conversion.contains('x')
    }
}

/// The group, which tracefs calls system, of the events on kernels whose own lack them.
pub const GROUP: &str = "exitregs";

/// Size of `struct trace_entry`, which precedes every record in a trace buffer.
pub const HEADER_SIZE: usize = 8;

/// What every record offers, whatever its event.
pub trait Event: Sized {
    /// Name of the trace event.
    const NAME: &'static str;
    /// The fields, in the order of the record.
    const FIELDS: &'static [Field];
    /// Declaration of `struct NAME` and `enum NAME_field` for the BPF programs.
    const C_DECLARATION: &'static str;

    /// The value of `Self::FIELDS[index]`, zero-extended; `None` past the end.
    fn value(&self, index: usize) -> Option<u64>;

    /// The record whose field `Self::FIELDS[index]` has the value `value(index)`, cut to its size.
    fn from_values(value: impl FnMut(usize) -> u64) -> Self;

    /// The index of the field called `name`.
    fn index(name: &str) -> Option<usize> {
        Self::FIELDS.iter().position(|field| field.name == name)
    }

    /// The `format` file's field lines and print format, without the common header's lines.
    fn format() -> Format {
        Format { fields: Self::FIELDS }
    }
}

/// Displays an event's field lines and print format as a tracefs `format` file has them.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    fields: &'static [Field],
}

impl Format {
    /// The part of the print format between the quotes.
    pub fn print_format(self) -> PrintFormat {
        PrintFormat(self)
    }
}

/// Displays `name CONVERSION name CONVERSION …`.
#[derive(Debug, Clone, Copy)]
pub struct PrintFormat(Format);

impl fmt::Display for PrintFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in self.0.fields.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{} {}", field.name, field.conversion)?;
        }
        Ok(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for field in self.fields {
            writeln!(
                f,
                "\tfield:{} {};\toffset:{};\tsize:{};\tsigned:0;",
                field.c_type,
                field.name,
                field.offset + HEADER_SIZE,
                field.size
            )?;
        }
        write!(f, "\nprint fmt: \"{}\"", self.print_format())?;
        for field in self.fields {
            write!(f, ", REC->{}", field.name)?;
        }
        writeln!(f)
    }
}

/// What a field's type is in Rust, in the `format` file and in the BPF programs' C.
macro_rules! field_type {
    (rust unsigned_int) => {
        u32
    };
    (rust unsigned_long) => {
        u64
    };
    (rust boolean) => {
        u8
    };
    (rust $name:ident) => {
        $name
    };
    (kernel unsigned_int) => {
        "unsigned int"
    };
    (kernel unsigned_long) => {
        "unsigned long"
    };
    (kernel boolean) => {
        "bool"
    };
    (kernel $name:ident) => {
        stringify!($name)
    };
    (bpf unsigned_int) => {
        "__u32"
    };
    (bpf unsigned_long) => {
        "__u64"
    };
    (bpf boolean) => {
        "__u8"
    };
    (bpf $name:ident) => {
        concat!("__", stringify!($name))
    };
}

macro_rules! optional {
    () => {
        false
    };
    (optional) => {
        true
    };
}

/// Defines events from their own fields; the COMMON fields are appended to each.
macro_rules! common_events {
    (
        common $common:tt
        $( $(#[$doc:meta])* event $record:ident = $name:literal $own:tt )*
    ) => {
        $( common_events! { @record $(#[$doc])* $record = $name $own $common } )*
        common_events! { @names $common }
    };
    (@names { $( $(#[$doc:meta])* $field:ident: $type:ident $conversion:literal; )* }) => {
        /// Names of the COMMON fields, in order.
        pub const COMMON_NAMES: &[&str] = &[$(stringify!($field)),*];
    };
    (@record $(#[$doc:meta])* $record:ident = $name:literal { $($own:tt)* } { $($common:tt)* }) => {
        common_events! { @fields $(#[$doc])* $record = $name { $($own)* $($common)* } }
    };
    (
        @fields $(#[$doc:meta])* $record:ident = $name:literal {
            $( $(#[$field_doc:meta])* $([$optional:ident])? $field:ident: $type:ident $conversion:literal; )*
        }
    ) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $record {
            $( $(#[$field_doc])* pub $field: field_type!(rust $type), )*
        }

        impl Event for $record {
            const NAME: &'static str = $name;
            const FIELDS: &'static [Field] = &[$( Field {
                name: stringify!($field),
                c_type: field_type!(kernel $type),
                offset: core::mem::offset_of!($record, $field),
                size: core::mem::size_of::<field_type!(rust $type)>(),
                conversion: $conversion,
                optional: optional!($($optional)?),
            } ),*];
            const C_DECLARATION: &'static str = concat!(
                "struct ", $name, " {\n",
                $( "\t", field_type!(bpf $type), " ", stringify!($field), ";\n", )*
                "};\n",
                "enum ", $name, "_field {\n",
                $( "\t", $name, "_", stringify!($field), ",\n", )*
                "};\n",
            );

            #[inline]
            fn value(&self, index: usize) -> Option<u64> {
                [$( u64::from(self.$field) ),*].get(index).copied()
            }

            // A closure for each field: worth it only where the compiler sees what they do.
            #[inline(always)]
            fn from_values(mut value: impl FnMut(usize) -> u64) -> Self {
                let mut indices = 0..Self::FIELDS.len();
                // The members are evaluated in the order in which they are written.
                Self { $( $field: indices.next().map_or(0, &mut value) as field_type!(rust $type), )* }
            }
        }
    };
}

common_events! {
    common {
        /// KVM ran the vCPU with vmcs02/vmcb02: the registers are L2's (or deeper).
        is_nested: boolean "%d";
        /// SEV-ES, SEV-SNP or TDX: the registers are unknown to KVM and 0 here.
        is_protected: boolean "%d";
        /// Guest RAX, all 64 bits.
        rax: unsigned_long "0x%lx";
        /// Guest RBX, all 64 bits.
        rbx: unsigned_long "0x%lx";
        /// Guest RCX, all 64 bits.
        rcx: unsigned_long "0x%lx";
        /// Guest RDX, all 64 bits.
        rdx: unsigned_long "0x%lx";
    }

    /// The vCPU left the guest.
    event KvmExit = "kvm_exit" {
        /// VMX basic exit reason with its flag bits, or SVM exit code.
        exit_reason: unsigned_int "0x%x";
        /// Guest RIP at the exit.
        guest_rip: unsigned_long "0x%lx";
        /// Instruction set: [`Isa`](super::isa::Isa).
        isa: u32 "%u";
        /// VMX: exit qualification. SVM: EXITINFO1.
        info1: u64 "0x%llx";
        /// VMX: IDT-vectoring information. SVM: EXITINFO2.
        info2: u64 "0x%llx";
        /// VMX: VM-exit interruption information. SVM: EXITINTINFO, low half.
        intr_info: u32 "0x%08x";
        /// VMX: VM-exit interruption error code. SVM: EXITINTINFO, high half.
        error_code: u32 "0x%08x";
        /// vCPU id, as KVM_CREATE_VCPU was given it.
        vcpu_id: unsigned_int "%u";
        /// Requests pending for the vCPU (`KVM_REQ_*` bits).
        [optional] requests: u64 "0x%llx";
    }

    /// The vCPU is about to enter the guest.
    event KvmEntry = "kvm_entry" {
        /// vCPU id, as KVM_CREATE_VCPU was given it.
        vcpu_id: unsigned_int "%u";
        /// Guest RIP the vCPU goes on at.
        rip: unsigned_long "0x%lx";
        /// KVM asked for an exit right after this entry.
        [optional] immediate_exit: boolean "%d";
        /// VMX: VM-entry interruption information. SVM: EVENTINJ, low half.
        [optional] intr_info: u32 "0x%08x";
        /// VMX: VM-entry exception error code. SVM: EVENTINJ, high half.
        [optional] error_code: u32 "0x%08x";
    }

    /// L0 gives L1 a nested page fault (SVM) or EPT violation or misconfiguration (VMX) of L2's.
    event KvmNestedPageFault = "kvm_nested_page_fault" {
        /// vCPU id, as KVM_CREATE_VCPU was given it.
        vcpu_id: unsigned_int "%u";
        /// L2's RIP.
        guest_rip: unsigned_long "0x%lx";
        /// Address in L1's guest-physical space that L1's nested page tables do not allow.
        gpa: u64 "0x%llx";
        /// What the hardware said of the access, or 0 if L0 found it by walking L1's tables.
        host_error_code: u64 "0x%llx";
        /// What L1 is told.
        guest_error_code: u64 "0x%llx";
    }
}

/// One exit and the entry that ended it: what the live sources deliver and analyses take.
///
/// An L1 exit ends at the vCPU's next entry. An L2 exit ends when *its* L2 (the same vmcb12 or
/// vmcs12) is entered again, which is the next entry only if L0 handled the exit alone.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exit {
    /// CLOCK_MONOTONIC at the exit, in nanoseconds.
    pub exit_time: u64,
    /// Time of the vCPU's next entry, to whichever level; 0 if there was none.
    pub next_entry_time: u64,
    /// Time of the entry that ended the exit; 0 if it never ended.
    pub entry_time: u64,
    /// L2 exits: GPA of vmcb12 or vmcs12 (which L2 it is); 0 at L1.
    pub nested_state: u64,
    /// Thread group of the VMM: the pid by which users know the VM.
    pub tgid: u32,
    /// Bit n set: `KvmExit::FIELDS[n]` is unknown to the source.
    pub exit_unknown: u32,
    /// Bit n set: `KvmEntry::FIELDS[n]` is unknown to the source.
    pub entry_unknown: u32,
    /// Whose hypercall it is: see [`abi_field`]; 0 if only L1 knows, or if it is none.
    pub hypercall_abi: u8,
    /// KVM wrote the guest's RIP between exit and entry (VMX only: SVM's RIP is always known).
    pub rip_written: u8,
    /// Bit n set: of RAX, RBX, RCX, RDX (n from 0 to 3) at the exit the bits are known that the instruction uses, though
    /// the register is not; another event of KVM's tells them.
    pub operands: u8,
    /// The same of the registers at the entry, which the instruction gave.
    pub results: u8,
    /// Why L1 ran after an exit of L2's: a [`Cause`], or 0 if L1 did not run or the source does not know why.
    pub cause: u8,
    /// Padding.
    pub reserved: [u8; 7],
    /// The exit.
    pub exit: KvmExit,
    /// The entry that ended it; all zero if `entry_time` is 0.
    pub entry: KvmEntry,
}

/// Why L0 left L2 for L1 after an exit of L2's, as `kvm_nested_vmexit_inject` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cause {
    /// L1 got this exit to handle: the reason that it is told is the exit's.
    Reflected = 1,
    /// L0 handled the exit, and then L1 got something else: an interrupt, an NMI, a triple fault.
    Forced = 2,
}

impl Cause {
    /// Every cause, by number.
    pub const ALL: [Self; 2] = [Self::Reflected, Self::Forced];

    /// What it is if L2 exited with one reason, and L1 is told another.
    pub const fn of(exit_reason: u32, told: u32) -> Self {
        if exit_reason == told { Self::Reflected } else { Self::Forced }
    }
}

/// The value of [`Exit::hypercall_abi`] for a convention.
pub const fn abi_field(abi: Abi) -> u8 {
    abi as u8 + 1
}

impl Exit {
    /// Whose hypercall it is; `None` if only L1 knows.
    pub fn hypercall_abi(&self) -> Option<Abi> {
        abi_from_field(self.hypercall_abi)
    }

    /// Why L1 ran after the exit; `None` if it did not, or if the source does not know.
    pub fn cause(&self) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| *cause as u8 == self.cause)
    }

    /// Whether the source knows a field of the exit.
    pub fn knows_exit(&self, field: &str) -> bool {
        KvmExit::index(field).is_some_and(|index| self.exit_unknown & 1 << index == 0)
    }

    /// What the instruction found in a register: the bits that it uses. `None` if that is unknown.
    pub fn operand(&self, gpr: Gpr) -> Option<u64> {
        const RAX: u32 = field_bit(KvmExit::FIELDS, "rax");
        let KvmExit { rax, rbx, rcx, rdx, .. } = self.exit;
        let index = register_index(gpr)?;
        let known = self.exit_unknown & RAX << index == 0 || self.operands & 1 << index != 0;
        (known && self.exit.is_protected == 0).then(|| [rax, rbx, rcx, rdx][index as usize])
    }

    /// What the instruction left in a register: the bits that it sets. `None` if that is unknown.
    pub fn result(&self, gpr: Gpr) -> Option<u64> {
        const RAX: u32 = field_bit(KvmEntry::FIELDS, "rax");
        let KvmEntry { rax, rbx, rcx, rdx, .. } = self.entry;
        let index = register_index(gpr)?;
        let known = self.entry_unknown & RAX << index == 0 || self.results & 1 << index != 0;
        let known = known && self.entry_time != 0 && self.entry.is_protected == 0;
        known.then(|| [rax, rbx, rcx, rdx][index as usize])
    }

    /// Who ran; `None` if the source does not tell.
    pub fn level(&self) -> Option<Level> {
        const IS_NESTED: u32 = field_bit(KvmExit::FIELDS, "is_nested");
        (self.exit_unknown & IS_NESTED == 0).then(|| Level::from_is_nested(self.exit.is_nested))
    }

    /// Whether the exit was ended by an entry, and the source knows this field of that.
    pub fn knows_entry(&self, field: &str) -> bool {
        self.entry_time != 0
            && KvmEntry::index(field).is_some_and(|index| self.entry_unknown & 1 << index == 0)
    }
}

/// The place of a register among the COMMON fields' registers.
const fn register_index(gpr: Gpr) -> Option<u32> {
    match gpr {
        Gpr::Rax => Some(0),
        Gpr::Rbx => Some(1),
        Gpr::Rcx => Some(2),
        Gpr::Rdx => Some(3),
        _ => None,
    }
}

/// The bit of the field called `name` in masks such as [`Exit::exit_unknown`]; 0 if there is none.
pub const fn field_bit(fields: &[Field], name: &str) -> u32 {
    let mut index = 0;
    while index < fields.len() {
        let (field, wanted) = (fields[index].name.as_bytes(), name.as_bytes());
        let mut same = 0;
        while same < field.len() && same < wanted.len() && field[same] == wanted[same] {
            same += 1;
        }
        if same == field.len() && same == wanted.len() {
            return 1 << index;
        }
        index += 1;
    }
    0
}

/// The convention that a value of [`Exit::hypercall_abi`] stands for.
pub fn abi_from_field(field: u8) -> Option<Abi> {
    Abi::ALL.into_iter().find(|abi| abi_field(*abi) == field)
}

/// The BPF programs' declaration of [`Exit`].
pub const EXIT_C_DECLARATION: &str = "enum exit_cause {
\tCAUSE_REFLECTED = 1,
\tCAUSE_FORCED = 2,
};
struct exit_record {
\t__u64 exit_time;
\t__u64 next_entry_time;
\t__u64 entry_time;
\t__u64 nested_state;
\t__u32 tgid;
\t__u32 exit_unknown;
\t__u32 entry_unknown;
\t__u8 hypercall_abi;
\t__u8 rip_written;
\t__u8 operands;
\t__u8 results;
\t__u8 cause;
\t__u8 reserved[7];
\tstruct kvm_exit exit;
\tstruct kvm_entry entry;
};
";

// As EXIT_C_DECLARATION has them.
const_assert_eq!(Cause::Reflected as u8, 1);
const_assert_eq!(Cause::Forced as u8, 2);
const_assert_eq!(core::mem::offset_of!(KvmExit, guest_rip), 8);
const_assert_eq!(core::mem::offset_of!(KvmExit, is_nested), 64);
const_assert_eq!(core::mem::offset_of!(KvmExit, rax), 72);
const_assert_eq!(core::mem::size_of::<KvmExit>(), 104);
const_assert_eq!(core::mem::offset_of!(KvmEntry, is_nested), 28);
const_assert_eq!(core::mem::size_of::<KvmEntry>(), 64);
const_assert_eq!(core::mem::size_of::<KvmNestedPageFault>(), 80);
const_assert_eq!(core::mem::size_of::<Exit>(), 56 + 104 + 64);
