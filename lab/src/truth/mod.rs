// SPDX-License-Identifier: MIT
//! The ground truth: what a scripted guest did, one JSON object per line.
//!
//! Every instruction that a script names has a line for each time it was executed, and so has every instruction of the
//! guest's own that can exit: VMRUN, the APIC accesses that wake a HLT, the port writes that tell the VMM something. So:
//! an exit whose RIP is that of a line and whose reason is that line's `exit_reason` is in the truth, and an instruction
//! that has a line with `exits` `once` did exit then. Other exits (physical interrupts, page faults while L0 builds its page
//! tables, interrupt windows) have other reasons, also when they happen to hit one of these RIPs.
//!
//! A line:
//! ```
//! # let text = r#"
//! {"seq":7,"vcpu":0,"level":2,"l2":0,"vmcb12":"0x109000","instruction":"rdmsr","exit_reason":"msr","exits":"once",
//!  "handled":"reflected","l1_exits":["cpuid","vmrun"],"rip":"0x401a2c","length":2,
//!  "before":{"rax":"0xa000000c00000003","rbx":"0xb000000c00000003","rcx":"0x200","rdx":"0xd000000c00000003"},
//!  "after":{"rax":"0x1234","rbx":"0xb000000c00000003","rcx":"0x200","rdx":"0x0"},
//!  "outcome":"completed","turn":3,"step":12,"operands":{"msr":"0x200"}}
//! # "#;
//! let line: exitregs_lab::truth::Line = serde_json::from_str(text)?;
//! assert_eq!(line.before.rcx, 0x200);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod compare;

pub use compare::{Difference, Seen, compare};

use std::fmt;

use serde::{Deserialize, Serialize};

/// One execution of one instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Position in the order of execution on this vCPU, from 0. Lines of one vCPU are in this order; lines of several
    /// are mixed.
    pub seq: u64,
    /// Index of the vCPU.
    pub vcpu: u32,
    /// 1 or 2.
    pub level: u8,
    /// At level 2: which of the script's guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<usize>,
    /// At level 2: the address of its VMCB in L1 (a guest-physical address of L0's).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub vmcb12: Option<u64>,
    /// The mnemonic: `rdmsr`, `vmmcall`, `rep outs`, `mov to cr4`, `load`, `store`, `fetch`, ….
    pub instruction: String,
    /// The reason of its exit, with the kernel's name (`SVM_EXIT_REASONS`, letter for letter); none if it cannot exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_reason: Option<String>,
    /// How many exits for that reason it has.
    pub exits: Exits,
    /// Who handled the exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled: Option<Handled>,
    /// Of an exit of L2 that ended in L1: the instructions of L1 that may exit, until this L2 ran again, that VMRUN
    /// included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub l1_exits: Vec<String>,
    /// Where the exit is: the address of the instruction; for `fetch`, the address that it could not fetch from.
    #[serde(with = "hex")]
    pub rip: u64,
    /// Bytes of the instruction.
    pub length: u8,
    /// The registers that the exit shows, as the guest stored them right before the instruction.
    pub before: Registers,
    /// The registers as the guest stored them right after the instruction (or in the handler of the exception); absent
    /// if it did not come to that: L1 did not return to this L2, or the VM ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Registers>,
    /// What became of it.
    pub outcome: Outcome,
    /// Of an exception: who raised it, L1 by injecting it, or L0 or the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injected_by: Option<InjectedBy>,
    /// The number of loop turns, of any loop, that this vCPU had finished before. It enters into `before`.
    pub turn: u64,
    /// Which instruction of the guest's code this is. The same number is the same RIP.
    pub step: u32,
    /// What the instruction was about.
    #[serde(default, skip_serializing_if = "Operands::is_empty")]
    pub operands: Operands,
}

/// RAX, RBX, RCX, RDX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the registers of these names")]
pub struct Registers {
    #[serde(with = "hex")]
    pub rax: u64,
    #[serde(with = "hex")]
    pub rbx: u64,
    #[serde(with = "hex")]
    pub rcx: u64,
    #[serde(with = "hex")]
    pub rdx: u64,
}

impl From<[u64; 4]> for Registers {
    fn from([rax, rbx, rcx, rdx]: [u64; 4]) -> Self {
        Self { rax, rbx, rcx, rdx }
    }
}

/// How many exits for its reason an instruction has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exits {
    /// None.
    Never,
    /// One.
    Once,
    /// One or more, until the next instruction at this level: a page fault that L0 needs several attempts for, or that
    /// comes back once L1 has filled the hole; a string instruction, of which L0 does a part at a time (RCX then counts
    /// down).
    AtLeastOnce,
    /// That is for the host to decide: its KVM or its processor may or may not intercept it.
    HostDecides,
}

/// Who handled an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handled {
    /// L0 alone.
    L0,
    /// L1, which intercepts it: L0 passed it on with the same reason.
    Reflected,
    /// L0; but an interrupt then took the vCPU to L1, for another reason than the exit's.
    Forced,
}

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest went on after it.
    #[serde(rename = "completed")]
    Completed,
    /// VMRUN came back with VMEXIT_INVALID.
    #[serde(rename = "vmrun_failed")]
    VmrunFailed,
    /// #UD.
    #[serde(rename = "#UD")]
    InvalidOpcode,
    /// #GP.
    #[serde(rename = "#GP")]
    GeneralProtection,
    /// The guest did not go on after it.
    #[serde(rename = "left")]
    Left,
    /// A triple fault.
    #[serde(rename = "shutdown")]
    Shutdown,
}

/// Who raised an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectedBy {
    /// L0, or the processor itself.
    L0,
    /// L1.
    L1,
}

/// What an instruction was about; only what applies to it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Operands {
    /// MSR number (RDMSR, WRMSR).
    #[serde(skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub msr: Option<u64>,
    /// EAX of CPUID.
    #[serde(skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub leaf: Option<u64>,
    /// ECX of CPUID.
    #[serde(skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub subleaf: Option<u64>,
    /// Hypercall number.
    #[serde(skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub nr: Option<u64>,
    /// Port number.
    #[serde(skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub port: Option<u64>,
    /// Bytes of a port or memory access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u8>,
    /// Of a port access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Elements of a string port access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u16>,
    /// Number of a control register.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cr: Option<u8>,
    /// Guest-physical address of a memory access, at its own level.
    #[serde(skip_serializing_if = "Option::is_none", with = "hex::option")]
    pub gpa: Option<u64>,
    /// VMRUN: which of the script's guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2: Option<usize>,
    /// VMRUN: EXITCODE of the VMCB afterwards, with the kernel's name; at the end of the exit that it caused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<String>,
}

impl Operands {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Of a port access, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the instructions of these names")]
pub enum Direction {
    In,
    Out,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Completed => "completed",
            Self::VmrunFailed => "vmrun_failed",
            Self::InvalidOpcode => "#UD",
            Self::GeneralProtection => "#GP",
            Self::Left => "left",
            Self::Shutdown => "shutdown",
        })
    }
}

/// 64-bit values as `"0x…"`: a JSON number loses the lower bits of a large one in many readers.
mod hex {
    use crate::script::Number;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Number(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        Number::deserialize(deserializer).map(|number| number.0)
    }

    pub mod option {
        use super::{Deserialize, Deserializer, Number, Serializer};

        #[expect(clippy::ref_option, reason = "serde's signature")]
        pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::serialize(value, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
            Ok(Option::<Number>::deserialize(deserializer)?.map(|number| number.0))
        }
    }
}
