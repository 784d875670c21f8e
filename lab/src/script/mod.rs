// SPDX-License-Identifier: MIT
//! The language of the scripted guest: which instructions its L1 and its L2s execute, with which register values, and
//! what L1 does about the exits of its L2s.
//!
//! A script says nothing of SVM or VMX where both have the same thing; an instruction that only one has is named so.
//!
//! ```
//! use exitregs_lab::script::Script;
//!
//! let script: Script = serde_json::from_str(
//!     r#"{
//!         "description": "L1 reads an MSR, then its L2 does and L1 makes up the value",
//!         "guests": [{"intercept_msrs": "all"}],
//!         "steps": [
//!             {"op": {"rdmsr": {"msr": "0x200"}}},
//!             {"op": {"l2": {"guest": 0, "steps": [
//!                 {"op": {"rdmsr": {"msr": "0x200"}}, "l1": {"finish": {"skip": {"rax": "0x1234", "rdx": 0}}}}
//!             ]}}}
//!         ]
//!     }"#,
//! )?;
//! script.check(exitregs_common::isa::Isa::Svm)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builtin;
mod check;
mod number;
mod random;

pub use builtin::{BUILTIN, Builtin, builtins};
pub use check::{CONTROL_PORTS, Invalid, control_port};
pub use number::{Number, Value};
pub use random::random;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What one vCPU does. Every vCPU of a VM runs the same script with register values of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// One line on what it is for.
    pub description: String,
    /// The L2 guests, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<Guest>,
    /// What L1 executes, in order, in each turn.
    pub steps: Vec<Step>,
    /// Turns, unless the command line says otherwise.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repeat: u32,
}

/// What L1 intercepts of an L2 guest. Physical interrupts, VMRUN, hypercalls and shutdown always are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// Instructions.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub intercept: BTreeSet<Intercept>,
    /// RDMSR and WRMSR, by MSR.
    #[serde(skip_serializing_if = "Selection::is_none")]
    pub intercept_msrs: Selection,
    /// IN, OUT, INS and OUTS, by port.
    #[serde(skip_serializing_if = "Selection::is_none")]
    pub intercept_ports: Selection,
}

/// An instruction that L1 may intercept as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the instruction of that name")]
pub enum Intercept {
    Cpuid,
    Hlt,
    Invlpg,
    Invlpga,
    Monitor,
    Mwait,
    Pause,
    Rdpmc,
    Rdtsc,
    ReadCr0,
    ReadCr4,
    ReadCr8,
    Stgi,
    Clgi,
    /// The #UD exception.
    Ud,
    Vmload,
    Vmsave,
    Wbinvd,
    WriteCr0,
    WriteCr4,
    WriteCr8,
}

/// Which MSRs or ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// Not one.
    #[default]
    None,
    /// Every one; of ports, all but the one that the guest signals its VMM by.
    All,
    /// These.
    Only(BTreeSet<Number>),
}

impl Selection {
    /// Whether it selects nothing.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether it selects `number`.
    pub fn contains(&self, number: u32) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Only(set) => set.contains(&Number(number.into())),
        }
    }
}

/// One instruction, or one run of an L2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What is executed.
    pub op: Op,
    /// Values of registers that the operation leaves free. By default each holds a pattern that names the register, the
    /// vCPU, the step and the turn.
    #[serde(default, skip_serializing_if = "Registers::is_empty")]
    pub set: Registers,
    /// Fill the upper halves of registers whose lower halves alone count (an MSR number, a CPUID leaf, EDX:EAX).
    #[serde(default, skip_serializing_if = "is_false")]
    pub dirty: bool,
    /// What L1 does when this exits to it. Only at L2, and only of what L1 intercepts; by default L1 skips it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1: Option<Reaction>,
    /// So many copies of this step, one after the other.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub times: u32,
}

impl Step {
    /// A step of this operation, all else being as by default.
    pub fn new(op: Op) -> Self {
        Self { op, set: Registers::default(), dirty: false, l1: None, times: 1 }
    }
}

/// Chosen values of RAX, RBX, RCX and RDX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the registers of these names")]
pub struct Registers {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rax: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rbx: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rcx: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdx: Option<Value>,
}

impl Registers {
    /// Whether it chooses none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// RAX, RBX, RCX, RDX.
    pub const fn array(&self) -> [Option<Value>; 4] {
        [self.rax, self.rbx, self.rcx, self.rdx]
    }
}

/// What is executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// RDMSR. One that does not exist raises #GP.
    Rdmsr {
        /// Its number.
        msr: Number,
    },
    /// WRMSR.
    Wrmsr {
        /// Its number.
        msr: Number,
        /// EDX:EAX. A step counts in the upper half of EAX's register too, which WRMSR ignores.
        value: Number,
        /// Added to RAX in each turn.
        #[serde(default)]
        step: Number,
    },
    /// CPUID.
    Cpuid {
        /// EAX.
        leaf: Number,
        /// ECX.
        #[serde(default)]
        subleaf: Number,
    },
    /// VMMCALL (VMCALL on VMX) with KVM's convention: RAX the number, RBX, RCX, RDX and RSI the arguments. KVM itself
    /// answers L1; L2's is always L1's.
    Hypercall {
        /// RAX.
        nr: Value,
        /// RBX, RCX, RDX, RSI; those not given are free.
        #[serde(default)]
        args: Vec<Value>,
    },
    /// IN. What user space answers to a port that KVM does not have is a pattern of the port's number.
    In {
        /// The port.
        #[serde(with = "number::port")]
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// The port is an immediate; else it is in DX.
        #[serde(default)]
        immediate: bool,
    },
    /// OUT of AL, AX or EAX.
    Out {
        /// The port.
        #[serde(with = "number::port")]
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// The port is an immediate; else it is in DX.
        #[serde(default)]
        immediate: bool,
    },
    /// REP INS into a buffer of the guest.
    Ins {
        /// The port, in DX.
        #[serde(with = "number::port")]
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// RCX, 1 to 1024.
        count: u16,
    },
    /// REP OUTS from a buffer of the guest.
    Outs {
        /// The port, in DX.
        #[serde(with = "number::port")]
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// RCX, 1 to 1024.
        count: u16,
    },
    /// HLT. Where L1 does not intercept it, an interrupt to L1 ends it, which L1 raises beforehand: an IPI to itself, or
    /// its APIC's timer. (STI, HLT, CLI.)
    Hlt {
        /// How long the timer runs; without it, it is an IPI.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sleep_us: Option<u32>,
    },
    /// MOV from CR0, CR4 or CR8 to RAX.
    ReadCr {
        /// Its number.
        cr: u8,
    },
    /// MOV to CR0, CR4 or CR8 from RAX.
    WriteCr {
        /// Its number.
        cr: u8,
        /// The bits that differ from the register's value at the start. A later write without them restores it.
        #[serde(default)]
        flip: Number,
    },
    /// RDTSC.
    Rdtsc,
    /// RDPMC.
    Rdpmc {
        /// ECX.
        counter: Number,
    },
    /// INVLPG of an address that is mapped.
    Invlpg,
    /// WBINVD.
    Wbinvd,
    /// PAUSE.
    Pause,
    /// MONITOR of an address that is mapped, ECX = EDX = 0.
    Monitor,
    /// MWAIT, EAX = ECX = 0.
    Mwait,
    /// UD2, which raises #UD.
    Ud2,
    /// A load of RAX from, or a store of RAX to, an address without memory, which user space answers (MMIO).
    Mmio {
        /// The guest-physical address.
        address: Number,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
        /// Store; else load.
        #[serde(default)]
        write: bool,
    },
    /// L2 uses a page that L1's nested page table forbids; each step has a page of its own.
    NestedPageFault {
        /// How it is used.
        access: Access,
        /// Why that faults.
        hole: Hole,
    },
    /// L2 loads an empty IDT and executes INT3: a triple fault. It must be the last step of its block.
    TripleFault,
    /// VMLOAD, VMSAVE, STGI, CLGI, INVLPGA or SKINIT. (SVM)
    Svm(SvmOp),
    /// VMRUN of a VMCB that VMRUN refuses. (SVM)
    VmrunInvalid {
        /// What is wrong with it.
        defect: Defect,
    },
    /// VMCLEAR, VMPTRLD, VMPTRST, VMREAD, VMWRITE, VMXON, INVEPT or INVVPID. (VMX)
    Vmx(VmxOp),
    /// VMLAUNCH of a VMCS that it refuses. (VMX)
    VmlaunchInvalid {
        /// What is wrong with it.
        defect: VmcsDefect,
    },
    /// L1 runs an L2 guest until it has done `steps`, which it ends by a hypercall from which L1 does not return to it.
    L2 {
        /// Which of the script's guests.
        guest: usize,
        /// How often L2 does the steps, each time one more turn.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        repeat: u32,
        /// What L2 executes.
        steps: Vec<Step>,
    },
}

/// An instruction of SVM other than VMRUN and VMMCALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the instruction of that name")]
pub enum SvmOp {
    Vmload,
    Vmsave,
    Stgi,
    Clgi,
    Invlpga,
    /// Of L1 only: Linux 7 clears L1's intercept of it, arch/x86/kvm/svm/nested.c.
    Skinit,
}

/// An instruction of VMX other than VMLAUNCH, VMRESUME, VMCALL and VMXOFF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the instruction of that name")]
pub enum VmxOp {
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmwrite,
    Vmxon,
    Invept,
    Invvpid,
}

/// How L2 uses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Loads RAX from it.
    Read,
    /// Stores RAX to it.
    Write,
    /// Jumps to it. The exit's RIP is then in that page.
    Execute,
}

/// What L1's nested page table says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hole {
    /// Not present.
    Absent,
    /// Present, not writable.
    ReadOnly,
    /// Present, not executable.
    NoExecute,
}

/// Why VMRUN fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Defect {
    /// Address space identifier 0, which is the host's.
    AsidZero,
    /// EFER.SVME clear.
    SvmeClear,
    /// The VMRUN intercept is missing.
    NoVmrunIntercept,
    /// RAX is not the address of a page: #GP.
    Unaligned,
}

/// Why VMLAUNCH fails. SDM Vol. 3C "VM Entries".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmcsDefect {
    /// More CR3-target values than there are: VMLAUNCH fails with error 7.
    Control,
    /// The CS selector of the host is 0: VMLAUNCH fails with error 8.
    Host,
    /// Bit 1 of the guest's RFLAGS is clear: the VM entry fails, which is a VM exit for L1.
    Guest,
}

impl VmcsDefect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Control, Self::Host, Self::Guest];
}

/// What L1 does about an exit of L2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reaction {
    /// What L1 executes itself; L2 blocks of other guests included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// How L2 goes on.
    pub finish: Finish,
}

/// How L2 goes on after an exit to L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// After the instruction, with these registers changed.
    Skip(Registers),
    /// At the handler of this exception, which L1 injects.
    Inject(Exception),
    /// At the instruction again, the hole in the nested page table being filled. (`nested_page_fault` only.)
    Map,
}

impl Default for Finish {
    fn default() -> Self {
        Self::Skip(Registers::default())
    }
}

/// An exception that L1 injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exception {
    /// #GP, error code 0.
    Gp,
    /// #UD.
    Ud,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(b: &bool) -> bool {
    !*b
}
