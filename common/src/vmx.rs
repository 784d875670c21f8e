// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Intel VMX: exit reasons and what the exit qualification (`info1` of `kvm_exit`) holds for each.

use super::flags::{PortAccess, display_flags};
use super::gpr::Gpr;
use super::prelude::bitflags;
use super::table::{Entry, Table};
use core::fmt;

/// The exit reason of a VM exit, with its flags in the high bits: VMCS field 0x4402 and `exit_reason` of `kvm_exit`.
/// The constants are basic exit reasons; compare them with [`ExitReason::basic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitReason(pub u32);

macro_rules! exit_reasons {
    ($($number:literal $IDENT:ident $text:literal;)*) => {
        impl ExitReason {
            $(#[doc = concat!($text, ".")]
            pub const $IDENT: Self = Self($number);)*
        }

        /// Every basic exit reason by number.
        pub const EXIT_REASONS: Table = Table::new(&[
            $(Entry { number: $number, name: stringify!($IDENT), text: $text },)*
        ]);
    };
}

// Numbers: SDM Vol. 3D Appendix C. Names: VMX_EXIT_REASONS in arch/x86/include/uapi/asm/vmx.h, letter for letter;
// those the kernel does not name are made in its manner from the manual's.
exit_reasons! {
    0 EXCEPTION_NMI "Exception or NMI; intr_info tells which";
    1 EXTERNAL_INTERRUPT "External interrupt";
    2 TRIPLE_FAULT "Triple fault";
    3 INIT_SIGNAL "INIT signal";
    4 SIPI_SIGNAL "Start-up IPI; the qualification is its vector";
    5 IO_SMI "SMI right after an I/O instruction (dual-monitor treatment)";
    6 OTHER_SMI "Any other SMI (dual-monitor treatment)";
    7 INTERRUPT_WINDOW "Interrupts became deliverable";
    8 NMI_WINDOW "NMIs became deliverable";
    9 TASK_SWITCH "Task switch";
    10 CPUID "CPUID";
    11 GETSEC "GETSEC";
    12 HLT "HLT";
    13 INVD "INVD";
    14 INVLPG "INVLPG; the qualification is the linear address";
    15 RDPMC "RDPMC";
    16 RDTSC "RDTSC";
    17 RSM "RSM in SMM";
    18 VMCALL "VMCALL";
    19 VMCLEAR "VMCLEAR";
    20 VMLAUNCH "VMLAUNCH";
    21 VMPTRLD "VMPTRLD";
    22 VMPTRST "VMPTRST";
    23 VMREAD "VMREAD";
    24 VMRESUME "VMRESUME";
    25 VMWRITE "VMWRITE";
    26 VMOFF "VMXOFF";
    27 VMON "VMXON";
    28 CR_ACCESS "Control-register access";
    29 DR_ACCESS "MOV DR";
    30 IO_INSTRUCTION "IN, OUT, INS or OUTS";
    31 MSR_READ "RDMSR";
    32 MSR_WRITE "WRMSR or WRMSRNS";
    33 INVALID_STATE "VM-entry failure: invalid guest state";
    34 MSR_LOAD_FAIL "VM-entry failure: MSR loading; the qualification is the entry's number, from 1";
    36 MWAIT_INSTRUCTION "MWAIT; bit 0 of the qualification: the monitor was armed";
    37 MONITOR_TRAP_FLAG "Monitor trap flag (single step)";
    39 MONITOR_INSTRUCTION "MONITOR";
    40 PAUSE_INSTRUCTION "PAUSE, or the PAUSE-loop limit";
    41 MCE_DURING_VMENTRY "VM-entry failure: machine check";
    43 TPR_BELOW_THRESHOLD "TPR below threshold";
    44 APIC_ACCESS "Access to the APIC-access page";
    45 EOI_INDUCED "Virtualized EOI; the qualification is the vector";
    46 GDTR_IDTR "LGDT, LIDT, SGDT or SIDT";
    47 LDTR_TR "LLDT, LTR, SLDT or STR";
    48 EPT_VIOLATION "EPT violation";
    49 EPT_MISCONFIG "EPT misconfiguration; KVM marks MMIO so";
    50 INVEPT "INVEPT";
    51 RDTSCP "RDTSCP";
    52 PREEMPTION_TIMER "VMX-preemption timer expired";
    53 INVVPID "INVVPID";
    54 WBINVD "WBINVD or WBNOINVD";
    55 XSETBV "XSETBV";
    56 APIC_WRITE "Write to the virtual-APIC page; the qualification is the offset";
    57 RDRAND "RDRAND";
    58 INVPCID "INVPCID";
    59 VMFUNC "VMFUNC";
    60 ENCLS "ENCLS";
    61 RDSEED "RDSEED";
    62 PML_FULL "Page-modification log full";
    63 XSAVES "XSAVES";
    64 XRSTORS "XRSTORS";
    65 PCONFIG "PCONFIG";
    66 SPP_EVENT "Sub-page permission table miss or misconfiguration";
    67 UMWAIT "UMWAIT";
    68 TPAUSE "TPAUSE";
    69 LOADIWKEY "LOADIWKEY";
    70 ENCLV "ENCLV";
    72 ENQCMD_PASID "ENQCMD whose PASID could not be translated";
    73 ENQCMDS_PASID "ENQCMDS whose PASID could not be translated";
    74 BUS_LOCK "Bus lock";
    75 NOTIFY "Notify window ran out without an instruction boundary";
    76 SEAMCALL "SEAMCALL";
    77 TDCALL "TDCALL of a trust domain";
    78 RDMSRLIST "RDMSRLIST";
    79 WRMSRLIST "WRMSRLIST";
    80 URDMSR "URDMSR";
    81 UWRMSR "UWRMSR";
    84 MSR_READ_IMM "RDMSR with an immediate; the qualification is the MSR";
    85 MSR_WRITE_IMM "WRMSRNS with an immediate; the qualification is the MSR";
}

impl ExitReason {
    /// The bits of a basic exit reason, as KVM masks them (`union vmx_exit_reason`).
    pub const BASIC_MASK: u32 = 0xffff;

    /// The exit reason without its flags.
    pub const fn basic(self) -> Self {
        Self(self.0 & Self::BASIC_MASK)
    }

    /// The flags of the exit reason.
    pub const fn flags(self) -> ExitReasonFlags {
        ExitReasonFlags::from_bits_retain(self.0 & !Self::BASIC_MASK)
    }

    /// The name that the kernel prints for the basic exit reason, or one made in its manner; `None` if not defined.
    pub const fn name(self) -> Option<&'static str> {
        EXIT_REASONS.name(self.basic().0)
    }

    /// A few words on what happened.
    pub const fn text(self) -> Option<&'static str> {
        match EXIT_REASONS.get(self.basic().0) {
            Some(entry) => Some(entry.text),
            None => None,
        }
    }

    /// The basic exit reason called `name`, whatever the case of its letters.
    pub fn by_name(name: &str) -> Option<Self> {
        EXIT_REASONS.by_name(name).map(Self)
    }
}

/// The name, or the number as the kernel prints one without a name; flags follow: `INVALID_STATE FAILED_VMENTRY`.
impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.flags();
        match self.name() {
            Some(name) if flags.is_empty() => return f.pad(name),
            Some(name) => f.write_str(name)?,
            None => write!(f, "{:#x}", self.basic().0)?,
        }
        if flags.is_empty() { Ok(()) } else { write!(f, " {flags}") }
    }
}

bitflags! {
    /// Bits 31:16 of an exit reason. SDM Vol. 3C "Format of Exit Reason"; `union vmx_exit_reason` in
    /// arch/x86/kvm/vmx/.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct ExitReasonFlags: u32 {
        /// A shadow stack became prematurely busy.
        const PREMATURELY_BUSY_SHADOW_STACK = 1 << 25;
        /// A bus lock was asserted in VMX non-root operation.
        const BUS_LOCK_DETECTED = 1 << 26;
        /// The exit was from an enclave. `VMX_EXIT_REASONS_SGX_ENCLAVE_MODE`.
        const ENCLAVE_MODE = 1 << 27;
        /// SMM exits only: a monitor-trap-flag exit was pending.
        const SMI_PENDING_MTF = 1 << 28;
        /// SMM exits only: the exit was from VMX root operation.
        const SMI_FROM_VMX_ROOT = 1 << 29;
        /// The VM entry failed. `VMX_EXIT_REASONS_FAILED_VMENTRY`.
        const FAILED_VMENTRY = 1 << 31;
    }
}

bitflags! {
    /// Exit qualification of [`ExitReason::EPT_VIOLATION`]. SDM Vol. 3C "Exit Qualification for EPT Violations";
    /// `EPT_VIOLATION_*` in arch/x86/include/asm/vmx.h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct EptViolation: u64 {
        /// The access was a data read.
        const ACC_READ = 1 << 0;
        /// The access was a data write.
        const ACC_WRITE = 1 << 1;
        /// The access was an instruction fetch.
        const ACC_INSTR = 1 << 2;
        /// The EPT entries allow reads.
        const PROT_READ = 1 << 3;
        /// The EPT entries allow writes.
        const PROT_WRITE = 1 << 4;
        /// The EPT entries allow fetches (supervisor-mode ones, with mode-based execute control).
        const PROT_EXEC = 1 << 5;
        /// The EPT entries allow user-mode fetches; defined with mode-based execute control only.
        const PROT_USER_EXEC = 1 << 6;
        /// The guest linear address is valid.
        const GVA_IS_VALID = 1 << 7;
        /// The access was to the translation of the linear address, not to a paging-structure entry.
        const GVA_TRANSLATED = 1 << 8;
        /// The linear address is a user-mode one. Bits 9 to 11 need advanced exit information for EPT violations.
        const GVA_USER = 1 << 9;
        /// The linear address is writable.
        const GVA_WRITABLE = 1 << 10;
        /// The linear address is execute-disabled.
        const GVA_NX = 1 << 11;
        /// The IRET that faulted had unblocked NMIs.
        const NMI_UNBLOCKED = 1 << 12;
        /// The access was to a shadow stack.
        const SHADOW_STACK = 1 << 13;
        /// The EPT entry allows supervisor shadow stacks.
        const SUPERVISOR_SHADOW_STACK = 1 << 14;
        /// Guest-paging verification caused it.
        const GUEST_PAGING_VERIFICATION = 1 << 15;
        /// The access was not part of an instruction (trace output, user-interrupt delivery).
        const ASYNCHRONOUS = 1 << 16;
    }
}

bitflags! {
    /// Exit qualification of a debug exception (#DB under [`ExitReason::EXCEPTION_NMI`]), as in DR6. SDM Vol. 3C "Exit
    /// Qualification for Debug Exceptions".
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DebugException: u64 {
        /// Breakpoint condition 0 was met.
        const B0 = 1 << 0;
        /// Breakpoint condition 1 was met.
        const B1 = 1 << 1;
        /// Breakpoint condition 2 was met.
        const B2 = 1 << 2;
        /// Breakpoint condition 3 was met.
        const B3 = 1 << 3;
        /// A bus lock was asserted.
        const BLD = 1 << 11;
        /// An access to a debug register was detected.
        const BD = 1 << 13;
        /// A single step.
        const BS = 1 << 14;
        /// In a transactional region with advanced debugging.
        const RTM = 1 << 16;
    }
}

bitflags! {
    /// Exit qualification of [`ExitReason::NOTIFY`]. SDM Vol. 3C "Exit Qualification for Notify VM Exits";
    /// `NOTIFY_VM_CONTEXT_INVALID` in arch/x86/include/asm/vmx.h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Notify: u64 {
        /// The guest's state in the VMCS is invalid.
        const VM_CONTEXT_INVALID = 1 << 0;
        /// The IRET that was cut short had unblocked NMIs.
        const NMI_UNBLOCKED = 1 << 12;
    }
}

display_flags!(ExitReasonFlags, EptViolation, DebugException, Notify);

/// Exit qualification of [`ExitReason::IO_INSTRUCTION`]. SDM Vol. 3C "Exit Qualification for I/O Instructions".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoQualification(pub u64);

impl IoQualification {
    /// The port, bits 31:16.
    pub const fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Bytes moved at once, bits 2:0 plus 1; 0 for encodings that are not used.
    pub const fn size(self) -> u8 {
        match self.0 & 7 {
            0 => 1,
            1 => 2,
            3 => 4,
            _ => 0,
        }
    }

    /// Bit 3: IN or INS; else OUT or OUTS.
    pub const fn is_in(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// Bit 4: INS or OUTS.
    pub const fn is_string(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// Bit 5: the string instruction has a REP prefix.
    pub const fn is_rep(self) -> bool {
        self.0 & (1 << 5) != 0
    }

    /// Bit 6: the port was an immediate operand; else it was in DX.
    pub const fn is_immediate(self) -> bool {
        self.0 & (1 << 6) != 0
    }

    /// The access without what only VMX reports.
    pub const fn access(self) -> PortAccess {
        PortAccess {
            port: self.port(),
            size: self.size(),
            is_in: self.is_in(),
            is_string: self.is_string(),
            is_rep: self.is_rep(),
        }
    }
}

/// As [`PortAccess`].
impl fmt::Display for IoQualification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.access().fmt(f)
    }
}

/// How an instruction accessed a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrAccessType {
    /// MOV to the control register.
    MovTo,
    /// MOV from the control register.
    MovFrom,
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw,
}

/// Exit qualification of [`ExitReason::CR_ACCESS`]. SDM Vol. 3C "Exit Qualification for Control-Register Accesses".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CrQualification(pub u64);

impl CrQualification {
    /// Number of the control register, bits 3:0; 0 for CLTS and LMSW.
    pub const fn cr(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// The instruction, bits 5:4.
    pub const fn access_type(self) -> CrAccessType {
        match (self.0 >> 4) & 3 {
            0 => CrAccessType::MovTo,
            1 => CrAccessType::MovFrom,
            2 => CrAccessType::Clts,
            _ => CrAccessType::Lmsw,
        }
    }

    /// Bit 6, LMSW only: the operand was in memory.
    pub const fn is_lmsw_memory(self) -> bool {
        self.0 & (1 << 6) != 0
    }

    /// The general-purpose register of the MOV, bits 11:8.
    pub const fn gpr(self) -> Gpr {
        Gpr::from_number(self.0 >> 8)
    }

    /// The operand of LMSW, bits 31:16.
    pub const fn lmsw_source(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// `cr3 <- rax`, `cr8 -> rbx`, `clts`, `lmsw 0x1`.
impl fmt::Display for CrQualification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.access_type() {
            CrAccessType::MovTo => write!(f, "cr{} <- {}", self.cr(), self.gpr()),
            CrAccessType::MovFrom => write!(f, "cr{} -> {}", self.cr(), self.gpr()),
            CrAccessType::Clts => f.write_str("clts"),
            CrAccessType::Lmsw => write!(f, "lmsw {:#x}", self.lmsw_source()),
        }
    }
}

/// Exit qualification of [`ExitReason::DR_ACCESS`]. SDM Vol. 3C "Exit Qualification for MOV DR".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DrQualification(pub u64);

impl DrQualification {
    /// Number of the debug register, bits 2:0.
    pub const fn dr(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Bit 4: MOV from the debug register; else to it.
    pub const fn is_read(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// The general-purpose register, bits 11:8.
    pub const fn gpr(self) -> Gpr {
        Gpr::from_number(self.0 >> 8)
    }
}

/// `dr7 <- rax`, `dr6 -> rbx`.
impl fmt::Display for DrQualification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.is_read() { "->" } else { "<-" };
        write!(f, "dr{} {arrow} {}", self.dr(), self.gpr())
    }
}

/// Exit qualification of [`ExitReason::TASK_SWITCH`]. SDM Vol. 3C "Exit Qualification for Task Switches".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskSwitch(pub u64);

impl TaskSwitch {
    /// The selector of the TSS that the guest switches to, bits 15:0.
    pub const fn selector(self) -> u16 {
        self.0 as u16
    }

    /// What caused it, bits 31:30.
    pub const fn source(self) -> &'static str {
        match (self.0 >> 30) & 3 {
            0 => "call",
            1 => "iret",
            2 => "jmp",
            _ => "gate",
        }
    }
}

/// `to 0x28 by iret`.
impl fmt::Display for TaskSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {:#x} by {}", self.selector(), self.source())
    }
}

/// Exit qualification of [`ExitReason::APIC_ACCESS`]. SDM Vol. 3C "Exit Qualification for APIC-Access VM Exits from
/// Linear Accesses and Guest-Physical Accesses".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApicAccess(pub u64);

impl ApicAccess {
    /// Offset in the APIC-access page, bits 11:0; not defined for guest-physical accesses.
    pub const fn offset(self) -> u16 {
        (self.0 & 0xfff) as u16
    }

    /// The kind of access, bits 15:12; `None` for encodings that are not defined.
    pub const fn access_type(self) -> Option<&'static str> {
        Some(match (self.0 >> 12) & 0xf {
            0 => "read",
            1 => "write",
            2 => "fetch",
            3 => "access during event delivery",
            4 => "monitoring",
            10 => "guest-physical access during event delivery",
            11 => "guest-physical access for monitoring or trace",
            15 => "guest-physical access",
            _ => return None,
        })
    }

    /// Bit 16: the access was not part of an instruction.
    pub const fn is_asynchronous(self) -> bool {
        self.0 & (1 << 16) != 0
    }
}

/// `write 0x0b0`.
impl fmt::Display for ApicAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.access_type() {
            Some(access) => write!(f, "{access} {:#05x}", self.offset()),
            None => write!(f, "access type {:#x} {:#05x}", (self.0 >> 12) & 0xf, self.offset()),
        }
    }
}

/// What the exit qualification of [`ExitReason::INVALID_STATE`] names as the reason of the failed VM entry; `None` for
/// codes that are not defined. `enum vm_entry_failure_code` in arch/x86/include/asm/vmx.h.
pub const fn entry_failure(qualification: u64) -> Option<&'static str> {
    Some(match qualification {
        0 => "guest state",
        2 => "PDPTEs",
        3 => "NMI injection while blocked by STI",
        4 => "VMCS link pointer",
        _ => return None,
    })
}
