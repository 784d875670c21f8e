// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! AMD SVM: exit codes and what EXITINFO1 and EXITINFO2 (`info1` and `info2` of `kvm_exit`) hold for each.

use super::flags::PortAccess;
use super::gpr::Gpr;
use super::table::{Entry, Table};
use core::fmt;

/// The exit code of a #VMEXIT: bits 31:0 of EXITCODE, as `exit_reason` of `kvm_exit` has it (-1 is `0xffff_ffff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitCode(pub u32);

macro_rules! exit_codes {
    ($($code:literal $IDENT:ident $name:literal $section:literal $text:literal;)*) => {
        impl ExitCode {
            $(#[doc = concat!($text, ". APM Vol. 2, ", $section, "; `", $name, "`.")]
            pub const $IDENT: Self = Self($code);)*
        }

        /// Every exit code by number.
        pub const EXIT_CODES: Table = Table::new(&[
            $(Entry { number: $code, name: $name, text: $text },)*
        ]);

        /// Every exit code by the name of its constant in the kernel's source, without `SVM_EXIT_`, as trace-cmd prints it.
        const IDENTIFIERS: Table = Table::new(&[
            $(Entry { number: $code, name: stringify!($IDENT), text: $text },)*
        ]);
    };
}

// Codes and sections: APM Vol. 2 Appendix C and chapter 15, GHCB for the exits of "SEV-ES Guest-Hypervisor Communication
// Block Standardization". Names: SVM_EXIT_REASONS in arch/x86/include/uapi/asm/svm.h, letter for letter; those the
// kernel does not name are made in its manner from the manual's.
exit_codes! {
    0x000 READ_CR0 "read_cr0" "15.9" "Read of CR0";
    0x001 READ_CR1 "read_cr1" "15.9" "Read of CR1";
    0x002 READ_CR2 "read_cr2" "15.9" "Read of CR2";
    0x003 READ_CR3 "read_cr3" "15.9" "Read of CR3";
    0x004 READ_CR4 "read_cr4" "15.9" "Read of CR4";
    0x005 READ_CR5 "read_cr5" "15.9" "Read of CR5";
    0x006 READ_CR6 "read_cr6" "15.9" "Read of CR6";
    0x007 READ_CR7 "read_cr7" "15.9" "Read of CR7";
    0x008 READ_CR8 "read_cr8" "15.9" "Read of CR8";
    0x009 READ_CR9 "read_cr9" "15.9" "Read of CR9";
    0x00a READ_CR10 "read_cr10" "15.9" "Read of CR10";
    0x00b READ_CR11 "read_cr11" "15.9" "Read of CR11";
    0x00c READ_CR12 "read_cr12" "15.9" "Read of CR12";
    0x00d READ_CR13 "read_cr13" "15.9" "Read of CR13";
    0x00e READ_CR14 "read_cr14" "15.9" "Read of CR14";
    0x00f READ_CR15 "read_cr15" "15.9" "Read of CR15";
    0x010 WRITE_CR0 "write_cr0" "15.9" "Write of CR0";
    0x011 WRITE_CR1 "write_cr1" "15.9" "Write of CR1";
    0x012 WRITE_CR2 "write_cr2" "15.9" "Write of CR2";
    0x013 WRITE_CR3 "write_cr3" "15.9" "Write of CR3";
    0x014 WRITE_CR4 "write_cr4" "15.9" "Write of CR4";
    0x015 WRITE_CR5 "write_cr5" "15.9" "Write of CR5";
    0x016 WRITE_CR6 "write_cr6" "15.9" "Write of CR6";
    0x017 WRITE_CR7 "write_cr7" "15.9" "Write of CR7";
    0x018 WRITE_CR8 "write_cr8" "15.9" "Write of CR8";
    0x019 WRITE_CR9 "write_cr9" "15.9" "Write of CR9";
    0x01a WRITE_CR10 "write_cr10" "15.9" "Write of CR10";
    0x01b WRITE_CR11 "write_cr11" "15.9" "Write of CR11";
    0x01c WRITE_CR12 "write_cr12" "15.9" "Write of CR12";
    0x01d WRITE_CR13 "write_cr13" "15.9" "Write of CR13";
    0x01e WRITE_CR14 "write_cr14" "15.9" "Write of CR14";
    0x01f WRITE_CR15 "write_cr15" "15.9" "Write of CR15";
    0x020 READ_DR0 "read_dr0" "15.9" "Read of DR0";
    0x021 READ_DR1 "read_dr1" "15.9" "Read of DR1";
    0x022 READ_DR2 "read_dr2" "15.9" "Read of DR2";
    0x023 READ_DR3 "read_dr3" "15.9" "Read of DR3";
    0x024 READ_DR4 "read_dr4" "15.9" "Read of DR4";
    0x025 READ_DR5 "read_dr5" "15.9" "Read of DR5";
    0x026 READ_DR6 "read_dr6" "15.9" "Read of DR6";
    0x027 READ_DR7 "read_dr7" "15.9" "Read of DR7";
    0x028 READ_DR8 "read_dr8" "15.9" "Read of DR8";
    0x029 READ_DR9 "read_dr9" "15.9" "Read of DR9";
    0x02a READ_DR10 "read_dr10" "15.9" "Read of DR10";
    0x02b READ_DR11 "read_dr11" "15.9" "Read of DR11";
    0x02c READ_DR12 "read_dr12" "15.9" "Read of DR12";
    0x02d READ_DR13 "read_dr13" "15.9" "Read of DR13";
    0x02e READ_DR14 "read_dr14" "15.9" "Read of DR14";
    0x02f READ_DR15 "read_dr15" "15.9" "Read of DR15";
    0x030 WRITE_DR0 "write_dr0" "15.9" "Write of DR0";
    0x031 WRITE_DR1 "write_dr1" "15.9" "Write of DR1";
    0x032 WRITE_DR2 "write_dr2" "15.9" "Write of DR2";
    0x033 WRITE_DR3 "write_dr3" "15.9" "Write of DR3";
    0x034 WRITE_DR4 "write_dr4" "15.9" "Write of DR4";
    0x035 WRITE_DR5 "write_dr5" "15.9" "Write of DR5";
    0x036 WRITE_DR6 "write_dr6" "15.9" "Write of DR6";
    0x037 WRITE_DR7 "write_dr7" "15.9" "Write of DR7";
    0x038 WRITE_DR8 "write_dr8" "15.9" "Write of DR8";
    0x039 WRITE_DR9 "write_dr9" "15.9" "Write of DR9";
    0x03a WRITE_DR10 "write_dr10" "15.9" "Write of DR10";
    0x03b WRITE_DR11 "write_dr11" "15.9" "Write of DR11";
    0x03c WRITE_DR12 "write_dr12" "15.9" "Write of DR12";
    0x03d WRITE_DR13 "write_dr13" "15.9" "Write of DR13";
    0x03e WRITE_DR14 "write_dr14" "15.9" "Write of DR14";
    0x03f WRITE_DR15 "write_dr15" "15.9" "Write of DR15";
    0x040 EXCP_DE "DE excp" "15.12" "Divide error";
    0x041 EXCP_DB "DB excp" "15.12" "Debug exception";
    0x042 EXCP_2 "2 excp" "15.12" "Vector 2 (an NMI is `nmi`)";
    0x043 EXCP_BP "BP excp" "15.12" "Breakpoint";
    0x044 EXCP_OF "OF excp" "15.12" "Overflow";
    0x045 EXCP_BR "BR excp" "15.12" "Bound range exceeded";
    0x046 EXCP_UD "UD excp" "15.12" "Invalid opcode";
    0x047 EXCP_NM "NM excp" "15.12" "Device not available";
    0x048 EXCP_DF "DF excp" "15.12" "Double fault";
    0x049 EXCP_9 "9 excp" "15.12" "Coprocessor segment overrun";
    0x04a EXCP_TS "TS excp" "15.12" "Invalid TSS";
    0x04b EXCP_NP "NP excp" "15.12" "Segment not present";
    0x04c EXCP_SS "SS excp" "15.12" "Stack fault";
    0x04d EXCP_GP "GP excp" "15.12" "General protection";
    0x04e EXCP_PF "PF excp" "15.12" "Page fault; info1 is the error code, info2 the address";
    0x04f EXCP_15 "15 excp" "15.12" "Vector 15";
    0x050 EXCP_MF "MF excp" "15.12" "x87 floating-point exception";
    0x051 EXCP_AC "AC excp" "15.12" "Alignment check";
    0x052 EXCP_MC "MC excp" "15.12" "Machine check";
    0x053 EXCP_XM "XF excp" "15.12" "SIMD floating-point exception";
    0x054 EXCP_20 "20 excp" "15.12" "Vector 20";
    0x055 EXCP_CP "CP excp" "15.12" "Control protection";
    0x056 EXCP_22 "22 excp" "15.12" "Vector 22";
    0x057 EXCP_23 "23 excp" "15.12" "Vector 23";
    0x058 EXCP_24 "24 excp" "15.12" "Vector 24";
    0x059 EXCP_25 "25 excp" "15.12" "Vector 25";
    0x05a EXCP_26 "26 excp" "15.12" "Vector 26";
    0x05b EXCP_27 "27 excp" "15.12" "Vector 27";
    0x05c EXCP_HV "HV excp" "15.12" "Hypervisor injection";
    0x05d EXCP_VC "VC excp" "15.12" "VMM communication";
    0x05e EXCP_SX "SX excp" "15.12" "Security exception";
    0x05f EXCP_31 "31 excp" "15.12" "Vector 31";
    0x060 INTR "interrupt" "15.13.1" "Physical interrupt";
    0x061 NMI "nmi" "15.13.2" "Physical NMI";
    0x062 SMI "smi" "15.13.3" "Physical SMI";
    0x063 INIT "init" "15.13.4" "Physical INIT";
    0x064 VINTR "vintr" "15.13.5" "Virtual interrupt about to be taken (interrupt window)";
    0x065 CR0_SEL_WRITE "cr0_sel_write" "15.9" "CR0 write that changed bits other than TS and MP";
    0x066 IDTR_READ "read_idtr" "15.9" "SIDT";
    0x067 GDTR_READ "read_gdtr" "15.9" "SGDT";
    0x068 LDTR_READ "read_ldtr" "15.9" "SLDT";
    0x069 TR_READ "read_rt" "15.9" "STR";
    0x06a IDTR_WRITE "write_idtr" "15.9" "LIDT";
    0x06b GDTR_WRITE "write_gdtr" "15.9" "LGDT";
    0x06c LDTR_WRITE "write_ldtr" "15.9" "LLDT";
    0x06d TR_WRITE "write_rt" "15.9" "LTR";
    0x06e RDTSC "rdtsc" "15.9" "RDTSC";
    0x06f RDPMC "rdpmc" "15.9" "RDPMC";
    0x070 PUSHF "pushf" "15.9" "PUSHF";
    0x071 POPF "popf" "15.9" "POPF";
    0x072 CPUID "cpuid" "15.9" "CPUID";
    0x073 RSM "rsm" "15.9" "RSM";
    0x074 IRET "iret" "15.9" "IRET";
    0x075 SWINT "swint" "15.9" "INTn";
    0x076 INVD "invd" "15.9" "INVD";
    0x077 PAUSE "pause" "15.14.4" "PAUSE, after the filter count ran out";
    0x078 HLT "hlt" "15.9" "HLT";
    0x079 INVLPG "invlpg" "15.9" "INVLPG";
    0x07a INVLPGA "invlpga" "15.9" "INVLPGA";
    0x07b IOIO "io" "15.10" "IN, OUT, INS or OUTS on a protected port";
    0x07c MSR "msr" "15.11" "RDMSR (info1 = 0) or WRMSR (info1 = 1) of a protected MSR";
    0x07d TASK_SWITCH "task_switch" "15.14.1" "Task switch";
    0x07e FERR_FREEZE "ferr_freeze" "15.14.2" "Processor frozen for a legacy FERR interrupt";
    0x07f SHUTDOWN "shutdown" "15.14.3" "Shutdown (triple fault)";
    0x080 VMRUN "vmrun" "15.9" "VMRUN";
    0x081 VMMCALL "hypercall" "15.9" "VMMCALL";
    0x082 VMLOAD "vmload" "15.9" "VMLOAD";
    0x083 VMSAVE "vmsave" "15.9" "VMSAVE";
    0x084 STGI "stgi" "15.9" "STGI";
    0x085 CLGI "clgi" "15.9" "CLGI";
    0x086 SKINIT "skinit" "15.9" "SKINIT";
    0x087 RDTSCP "rdtscp" "15.9" "RDTSCP";
    0x088 ICEBP "icebp" "15.9" "ICEBP (INT1)";
    0x089 WBINVD "wbinvd" "15.9" "WBINVD or WBNOINVD";
    0x08a MONITOR "monitor" "15.9" "MONITOR or MONITORX";
    0x08b MWAIT "mwait" "15.9" "MWAIT or MWAITX";
    0x08c MWAIT_COND "mwait_conditional" "15.9" "MWAIT or MWAITX, only if the monitor is armed";
    0x08d XSETBV "xsetbv" "15.9" "XSETBV";
    0x08e RDPRU "rdpru" "15.9" "RDPRU";
    0x08f EFER_WRITE_TRAP "write_efer_trap" "15.35" "EFER was written; info1 is the new value";
    0x090 CR0_WRITE_TRAP "write_cr0_trap" "15.35" "CR0 was written; info1 is the new value";
    0x091 CR1_WRITE_TRAP "write_cr1_trap" "15.35" "CR1 was written; info1 is the new value";
    0x092 CR2_WRITE_TRAP "write_cr2_trap" "15.35" "CR2 was written; info1 is the new value";
    0x093 CR3_WRITE_TRAP "write_cr3_trap" "15.35" "CR3 was written; info1 is the new value";
    0x094 CR4_WRITE_TRAP "write_cr4_trap" "15.35" "CR4 was written; info1 is the new value";
    0x095 CR5_WRITE_TRAP "write_cr5_trap" "15.35" "CR5 was written; info1 is the new value";
    0x096 CR6_WRITE_TRAP "write_cr6_trap" "15.35" "CR6 was written; info1 is the new value";
    0x097 CR7_WRITE_TRAP "write_cr7_trap" "15.35" "CR7 was written; info1 is the new value";
    0x098 CR8_WRITE_TRAP "write_cr8_trap" "15.35" "CR8 was written; info1 is the new value";
    0x099 CR9_WRITE_TRAP "write_cr9_trap" "15.35" "CR9 was written; info1 is the new value";
    0x09a CR10_WRITE_TRAP "write_cr10_trap" "15.35" "CR10 was written; info1 is the new value";
    0x09b CR11_WRITE_TRAP "write_cr11_trap" "15.35" "CR11 was written; info1 is the new value";
    0x09c CR12_WRITE_TRAP "write_cr12_trap" "15.35" "CR12 was written; info1 is the new value";
    0x09d CR13_WRITE_TRAP "write_cr13_trap" "15.35" "CR13 was written; info1 is the new value";
    0x09e CR14_WRITE_TRAP "write_cr14_trap" "15.35" "CR14 was written; info1 is the new value";
    0x09f CR15_WRITE_TRAP "write_cr15_trap" "15.35" "CR15 was written; info1 is the new value";
    0x0a0 INVLPGB "invlpgb" "15.9" "INVLPGB";
    0x0a1 INVLPGB_ILLEGAL "invlpgb_illegal" "15.9" "INVLPGB with operands the hypervisor does not allow";
    0x0a2 INVPCID "invpcid" "15.9" "INVPCID";
    0x0a3 MCOMMIT "mcommit" "15.9" "MCOMMIT";
    0x0a4 TLBSYNC "tlbsync" "15.9" "TLBSYNC";
    0x0a5 BUS_LOCK "buslock" "15.14.5" "Bus lock, with the threshold count at 0";
    0x0a6 IDLE_HLT "idle-halt" "15.9" "HLT without a pending virtual interrupt";
    0x400 NPF "npf" "15.25.6" "Nested page fault; info1 is the error code, info2 the guest physical address";
    0x401 AVIC_INCOMPLETE_IPI "avic_incomplete_ipi" "15.29" "IPI that the AVIC could not deliver to every target";
    0x402 AVIC_UNACCELERATED_ACCESS "avic_unaccelerated_access" "15.29" "Access to an APIC register that the AVIC does not accelerate";
    0x403 VMGEXIT "vmgexit" "15.35" "VMGEXIT of an SEV-ES guest";
    0x80000001 VMGEXIT_MMIO_READ "vmgexit_mmio_read" "GHCB" "MMIO read";
    0x80000002 VMGEXIT_MMIO_WRITE "vmgexit_mmio_write" "GHCB" "MMIO write";
    0x80000003 VMGEXIT_NMI_COMPLETE "vmgexit_nmi_complete" "GHCB" "NMI handled";
    0x80000004 VMGEXIT_AP_HLT_LOOP "vmgexit_ap_hlt_loop" "GHCB" "AP waits for INIT-SIPI-SIPI";
    0x80000005 VMGEXIT_AP_JUMP_TABLE "vmgexit_ap_jump_table" "GHCB" "Set or get the address of the AP jump table";
    0x80000010 VMGEXIT_PSC "vmgexit_page_state_change" "GHCB" "Page state changes";
    0x80000011 VMGEXIT_GUEST_REQUEST "vmgexit_guest_request" "GHCB" "Message to the SEV firmware";
    0x80000012 VMGEXIT_EXT_GUEST_REQUEST "vmgexit_ext_guest_request" "GHCB" "Message to the SEV firmware, with certificates";
    0x80000013 VMGEXIT_AP_CREATION "vmgexit_ap_creation" "GHCB" "Create or destroy an AP";
    0x80000018 VMGEXIT_SNP_RUN_VMPL "vmgexit_snp_run_vmpl" "GHCB" "Run a VMPL";
    0x8000001a VMGEXIT_SAVIC "vmgexit_savic" "GHCB" "Secure AVIC: register or unregister the backing page";
    0x8000fffd VMGEXIT_HV_FEATURES "vmgexit_hypervisor_feature" "GHCB" "Query of hypervisor features";
    0x8000fffe VMGEXIT_TERM_REQUEST "vmgexit_term_request" "GHCB" "Guest asks to be terminated";
    0x8000ffff VMGEXIT_UNSUPPORTED_EVENT "vmgexit_unsupported_event" "GHCB" "#VC that the guest cannot handle";
    0xf0000000 SW "sw" "App. C" "Reserved for software; Hyper-V's enlightened exit (TLFS \"Nested Virtualization\")";
    0xfffffffc INVALID_PMC "invalid_pmc" "App. C" "Invalid PMC state for VMRUN";
    0xfffffffd IDLE_REQUIRED "idle_required" "App. C" "VMRUN needs the sibling thread to be idle";
    0xfffffffe BUSY "busy" "App. C" "The encrypted VMSA is in use (SEV-ES)";
    0xffffffff ERR "invalid_guest_state" "App. C" "VMEXIT_INVALID: invalid guest state in the VMCB";
}

impl ExitCode {
    /// The name that the kernel prints, or one made in its manner; `None` for a code that is not defined.
    pub const fn name(self) -> Option<&'static str> {
        EXIT_CODES.name(self.0)
    }

    /// A few words on what happened.
    pub const fn text(self) -> Option<&'static str> {
        match EXIT_CODES.get(self.0) {
            Some(entry) => Some(entry.text),
            None => None,
        }
    }

    /// The code called `name`, whatever the case of its letters.
    pub fn by_name(name: &str) -> Option<Self> {
        EXIT_CODES.by_name(name).map(Self)
    }

    /// The code whose constant in the kernel's source is `SVM_EXIT_` and `name`.
    pub fn by_identifier(name: &str) -> Option<Self> {
        IDENTIFIERS.by_name(name).map(Self)
    }

    /// The vector of an exception exit.
    pub const fn exception_vector(self) -> Option<u8> {
        if self.0 >= 0x40 && self.0 <= 0x5f { Some((self.0 - 0x40) as u8) } else { None }
    }
}

/// The name, or the number as the kernel prints one without a name.
impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// Whether an [`ExitCode::MSR`] exit with this EXITINFO1 is a WRMSR; else it is a RDMSR. APM Vol. 2 section 15.11.
pub const fn msr_is_write(info1: u64) -> bool {
    info1 & 1 != 0
}

/// EXITINFO1 of [`ExitCode::IOIO`]; EXITINFO2 is the RIP of the next instruction. APM Vol. 2 section 15.10.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoInfo(pub u64);

impl IoInfo {
    /// The port, bits 31:16.
    pub const fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Bytes moved at once, bits 6:4 (SZ32, SZ16, SZ8); 0 if none is set.
    pub const fn size(self) -> u8 {
        match (self.0 >> 4) & 7 {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => 0,
        }
    }

    /// Bits of the effective address of a string instruction, bits 9:7 (A64, A32, A16); 0 if none is set.
    pub const fn address_size(self) -> u8 {
        match (self.0 >> 7) & 7 {
            1 => 16,
            2 => 32,
            4 => 64,
            _ => 0,
        }
    }

    /// Bit 0: IN or INS; else OUT or OUTS.
    pub const fn is_in(self) -> bool {
        self.0 & 1 != 0
    }

    /// Bit 2: INS or OUTS.
    pub const fn is_string(self) -> bool {
        self.0 & (1 << 2) != 0
    }

    /// Bit 3: the string instruction has a REP prefix.
    pub const fn is_rep(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// The segment of a string instruction's memory operand, bits 12:10; `None` for the two encodings without one.
    pub const fn segment(self) -> Option<&'static str> {
        Some(match (self.0 >> 10) & 7 {
            0 => "es",
            1 => "cs",
            2 => "ss",
            3 => "ds",
            4 => "fs",
            5 => "gs",
            _ => return None,
        })
    }

    /// The access without what only SVM reports.
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

/// As [`PortAccess`]; a string instruction's segment and address size follow: `rep outs 0x3f8 size 1 ds a64`.
impl fmt::Display for IoInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.access().fmt(f)?;
        if self.is_string() {
            if let Some(segment) = self.segment() {
                write!(f, " {segment}")?;
            }
            if self.address_size() != 0 {
                write!(f, " a{}", self.address_size())?;
            }
        }
        Ok(())
    }
}

/// EXITINFO1 of a control- or debug-register exit; the exit code tells the register and the direction. All zero on a
/// processor without decode assists (CPUID Fn8000_000A_EDX bit 7). APM Vol. 2 section 15.8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterAccess(pub u64);

impl RegisterAccess {
    /// Bit 63, control registers only: a MOV; else CLTS, LMSW or SMSW, or no decode assists.
    pub const fn is_mov_cr(self) -> bool {
        self.0 >> 63 != 0
    }

    /// The general-purpose register of the MOV, bits 3:0.
    pub const fn gpr(self) -> Gpr {
        Gpr::from_number(self.0)
    }
}

/// EXITINFO1 and EXITINFO2 of [`ExitCode::TASK_SWITCH`]. APM Vol. 2 section 15.14.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskSwitch {
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
}

impl TaskSwitch {
    /// The selector of the incoming TSS.
    pub const fn selector(self) -> u16 {
        self.info1 as u16
    }

    /// Whether an IRET caused it.
    pub const fn by_iret(self) -> bool {
        self.info2 & (1 << 36) != 0
    }

    /// Whether a far jump caused it. Neither an IRET nor a far jump: a far call or an event through a task gate.
    pub const fn by_jmp(self) -> bool {
        self.info2 & (1 << 38) != 0
    }

    /// The error code that the new task is to find on its stack.
    pub const fn error_code(self) -> Option<u32> {
        if self.info2 & (1 << 44) != 0 { Some(self.info2 as u32) } else { None }
    }

    /// RFLAGS.RF as the outgoing TSS would keep it.
    pub const fn resume_flag(self) -> bool {
        self.info2 & (1 << 48) != 0
    }
}

/// `to 0x28 by iret`, `to 0x30 by call or gate, error code 0x0`.
impl fmt::Display for TaskSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = if self.by_iret() {
            "iret"
        } else if self.by_jmp() {
            "jmp"
        } else {
            "call or gate"
        };
        write!(f, "to {:#x} by {cause}", self.selector())?;
        match self.error_code() {
            Some(code) => write!(f, ", error code {code:#x}"),
            None => Ok(()),
        }
    }
}

/// EXITINFO1 and EXITINFO2 of [`ExitCode::AVIC_INCOMPLETE_IPI`]. APM Vol. 2 section 15.29.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AvicIncompleteIpi {
    /// EXITINFO1: the value written to the interrupt command register.
    pub icr: u64,
    /// EXITINFO2.
    pub info2: u64,
}

impl AvicIncompleteIpi {
    /// Why the IPI was not delivered: `enum avic_ipi_failure_cause` in arch/x86/include/asm/svm.h.
    pub const fn cause(self) -> Option<&'static str> {
        Some(match self.info2 >> 32 {
            0 => "invalid interrupt type",
            1 => "target not running",
            2 => "invalid target",
            3 => "invalid backing page",
            4 => "invalid vector",
            _ => return None,
        })
    }

    /// Index of the first target's entry in the logical or physical APIC ID table, bits 11:0.
    pub const fn index(self) -> u16 {
        (self.info2 & 0xfff) as u16
    }
}

/// `icr 0x4fd: target not running, index 1`.
impl fmt::Display for AvicIncompleteIpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "icr {:#x}: ", self.icr)?;
        match self.cause() {
            Some(cause) => f.write_str(cause)?,
            None => write!(f, "cause {:#x}", self.info2 >> 32)?,
        }
        write!(f, ", index {}", self.index())
    }
}

/// EXITINFO1 and EXITINFO2 of [`ExitCode::AVIC_UNACCELERATED_ACCESS`]. APM Vol. 2 section 15.29.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AvicUnacceleratedAccess {
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
}

impl AvicUnacceleratedAccess {
    /// Offset of the register in the APIC page, EXITINFO1 bits 11:4.
    pub const fn offset(self) -> u16 {
        (self.info1 & 0xff0) as u16
    }

    /// EXITINFO1 bit 32: a write.
    pub const fn is_write(self) -> bool {
        self.info1 & (1 << 32) != 0
    }

    /// The vector, for a write of the EOI register.
    pub const fn vector(self) -> u32 {
        self.info2 as u32
    }
}

/// `write 0x0b0 vector 0x30`, `read 0x390`.
impl fmt::Display for AvicUnacceleratedAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.is_write() { "write" } else { "read" };
        write!(f, "{access} {:#05x}", self.offset())?;
        if self.offset() == 0xb0 { write!(f, " vector {:#x}", self.vector()) } else { Ok(()) }
    }
}
