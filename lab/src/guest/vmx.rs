// SPDX-License-Identifier: MIT
//! What is Intel's: the fields of a VMCS and its bitmaps, what L1 can intercept, and which instructions exit for which reason.
//!
//! References are to the Intel 64 and IA-32 Architectures Software Developer's Manual, Volume 3 (SDM).

use exitregs_common::vmx::ExitReason;

use crate::script::{Exception, Guest, Hole, Intercept, Op, Selection, control_port};
use crate::truth::{Exits, Handled};

use super::assemble::{CODE_SELECTOR, DATA_SELECTOR};
use super::layout::{GuestLayout, Layout, PAGE, VcpuLayout};
use super::vendor::{Expected, GDT_LIMIT, IDT_LIMIT, State};

/// CR4.VMXE. SDM 2.5.
pub const CR4_VMXE: u64 = 1 << 13;
/// IA32_FEATURE_CONTROL.
pub const MSR_FEATURE_CONTROL: u32 = 0x3a;
/// Its value: locked, VMXON outside SMX allowed.
pub const FEATURE_CONTROL: u64 = 1 | 1 << 2;
/// The selector of L1's task register, which a VM exit loads and which may not be 0. Nothing reads its descriptor.
const TR_SELECTOR: u64 = 0x18;

/// IA32_VMX_BASIC and the four MSRs that say how the control fields must be. SDM appendix A.
pub const CAPABILITY_MSRS: [u32; 5] = [0x480, 0x48d, 0x48e, 0x48f, 0x490];

/// What the capability MSRs say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The VMCS revision identifier.
    pub revision: u32,
    /// Bits that must be set in the pin-based controls,
    pub pin: u32,
    /// in the primary processor-based ones,
    pub processor: u32,
    /// in those of VM exits,
    pub exit: u32,
    /// in those of VM entries.
    pub entry: u32,
}

impl Capabilities {
    /// From the values of [`CAPABILITY_MSRS`].
    pub const fn new(values: [u64; 5]) -> Self {
        let [basic, pin, processor, exit, entry] = values;
        Self {
            revision: basic as u32 & 0x7fff_ffff,
            pin: pin as u32,
            processor: processor as u32,
            exit: exit as u32,
            entry: entry as u32,
        }
    }
}

/// Encodings of the fields that are used. SDM appendix B.
#[expect(missing_docs, reason = "the fields of these names")]
pub mod field {
    pub const GUEST_ES_SELECTOR: u32 = 0x800;
    pub const HOST_ES_SELECTOR: u32 = 0xc00;
    pub const HOST_CS_SELECTOR: u32 = 0xc02;
    pub const HOST_TR_SELECTOR: u32 = 0xc0c;
    pub const IO_BITMAP_A: u32 = 0x2000;
    pub const IO_BITMAP_B: u32 = 0x2002;
    pub const MSR_BITMAPS: u32 = 0x2004;
    pub const TSC_OFFSET: u32 = 0x2010;
    pub const EPT_POINTER: u32 = 0x201a;
    pub const GUEST_PHYSICAL_ADDRESS: u32 = 0x2400;
    pub const VMCS_LINK_POINTER: u32 = 0x2800;
    pub const GUEST_DEBUGCTL: u32 = 0x2802;
    pub const GUEST_PAT: u32 = 0x2804;
    pub const GUEST_EFER: u32 = 0x2806;
    pub const HOST_PAT: u32 = 0x2c00;
    pub const HOST_EFER: u32 = 0x2c02;
    pub const PIN_CONTROLS: u32 = 0x4000;
    pub const PROCESSOR_CONTROLS: u32 = 0x4002;
    pub const EXCEPTION_BITMAP: u32 = 0x4004;
    pub const CR3_TARGETS: u32 = 0x400a;
    pub const EXIT_CONTROLS: u32 = 0x400c;
    pub const EXIT_MSR_STORES: u32 = 0x400e;
    pub const EXIT_MSR_LOADS: u32 = 0x4010;
    pub const ENTRY_CONTROLS: u32 = 0x4012;
    pub const ENTRY_MSR_LOADS: u32 = 0x4014;
    pub const ENTRY_INTERRUPTION: u32 = 0x4016;
    pub const ENTRY_ERROR_CODE: u32 = 0x4018;
    pub const SECONDARY_CONTROLS: u32 = 0x401e;
    pub const INSTRUCTION_ERROR: u32 = 0x4400;
    pub const EXIT_REASON: u32 = 0x4402;
    pub const GUEST_ES_LIMIT: u32 = 0x4800;
    pub const GUEST_GDTR_LIMIT: u32 = 0x4810;
    pub const GUEST_IDTR_LIMIT: u32 = 0x4812;
    pub const GUEST_ES_RIGHTS: u32 = 0x4814;
    pub const GUEST_INTERRUPTIBILITY: u32 = 0x4824;
    pub const GUEST_ACTIVITY: u32 = 0x4826;
    pub const CR0_MASK: u32 = 0x6000;
    pub const CR4_MASK: u32 = 0x6002;
    pub const CR0_SHADOW: u32 = 0x6004;
    pub const CR4_SHADOW: u32 = 0x6006;
    pub const EXIT_QUALIFICATION: u32 = 0x6400;
    pub const GUEST_CR0: u32 = 0x6800;
    pub const GUEST_CR3: u32 = 0x6802;
    pub const GUEST_CR4: u32 = 0x6804;
    pub const GUEST_ES_BASE: u32 = 0x6806;
    pub const GUEST_GDTR_BASE: u32 = 0x6816;
    pub const GUEST_IDTR_BASE: u32 = 0x6818;
    pub const GUEST_DR7: u32 = 0x681a;
    pub const GUEST_RSP: u32 = 0x681c;
    pub const GUEST_RIP: u32 = 0x681e;
    pub const GUEST_RFLAGS: u32 = 0x6820;
    pub const HOST_CR0: u32 = 0x6c00;
    pub const HOST_CR3: u32 = 0x6c02;
    pub const HOST_CR4: u32 = 0x6c04;
    pub const HOST_GDTR_BASE: u32 = 0x6c0c;
    pub const HOST_IDTR_BASE: u32 = 0x6c0e;
    pub const HOST_RSP: u32 = 0x6c14;
    pub const HOST_RIP: u32 = 0x6c16;
}

// Control bits. SDM 25.6 to 25.8.
const PIN_EXTERNAL_INTERRUPT: u32 = 1 << 0;
const PROCESSOR_IO_BITMAPS: u32 = 1 << 25;
const PROCESSOR_MSR_BITMAPS: u32 = 1 << 28;
const PROCESSOR_SECONDARY: u32 = 1 << 31;
const SECONDARY_EPT: u32 = 1 << 1;
const SECONDARY_WBINVD: u32 = 1 << 6;
const EXIT_HOST_64_BIT: u32 = 1 << 9;
const EXIT_SAVE_PAT: u32 = 1 << 18;
const EXIT_LOAD_PAT: u32 = 1 << 19;
const EXIT_SAVE_EFER: u32 = 1 << 20;
const EXIT_LOAD_EFER: u32 = 1 << 21;
const ENTRY_GUEST_64_BIT: u32 = 1 << 9;
const ENTRY_LOAD_PAT: u32 = 1 << 14;
const ENTRY_LOAD_EFER: u32 = 1 << 15;
/// The vector of #UD.
const UD: u32 = 6;

/// The primary processor-based control that makes an instruction exit. SDM table 25-6.
const fn control(intercept: Intercept) -> u32 {
    match intercept {
        Intercept::Hlt => 1 << 7,
        Intercept::Invlpg => 1 << 9,
        Intercept::Mwait => 1 << 10,
        Intercept::Rdpmc => 1 << 11,
        Intercept::Rdtsc => 1 << 12,
        Intercept::WriteCr8 => 1 << 19,
        Intercept::ReadCr8 => 1 << 20,
        Intercept::Monitor => 1 << 29,
        Intercept::Pause => 1 << 30,
        // By another field, always, or never.
        _ => 0,
    }
}

/// The fields of the VMCS of a guest, all but HOST_RIP; without one, of a VMCS that need not run.
pub fn fields(
    layout: &Layout,
    vcpu: &VcpuLayout,
    guest: Option<(&Guest, &GuestLayout)>,
    state: State,
) -> Vec<(u32, u64)> {
    use field::*;
    let capabilities = state.vmx;
    let intercepts = |intercept| guest.is_some_and(|(guest, _)| guest.intercept.contains(&intercept));
    let mut processor = capabilities.processor;
    let mut secondary = 0;
    let mut all = vec![
        (VMCS_LINK_POINTER, u64::MAX),
        (PIN_CONTROLS, (capabilities.pin | PIN_EXTERNAL_INTERRUPT).into()),
        (CR3_TARGETS, 0),
        (EXIT_MSR_STORES, 0),
        (EXIT_MSR_LOADS, 0),
        (ENTRY_MSR_LOADS, 0),
        (ENTRY_INTERRUPTION, 0),
        (TSC_OFFSET, 0),
        (EXCEPTION_BITMAP, if intercepts(Intercept::Ud) { 1 << UD } else { 0 }),
        // A bit of the mask is L1's: writing another value than the shadow's to it exits.
        (CR0_MASK, if intercepts(Intercept::WriteCr0) { u64::MAX } else { 0 }),
        (CR4_MASK, if intercepts(Intercept::WriteCr4) { u64::MAX } else { 0 }),
        (CR0_SHADOW, state.cr0),
        (CR4_SHADOW, state.cr4),
    ];
    if let Some((guest, area)) = guest {
        processor |= PROCESSOR_IO_BITMAPS | PROCESSOR_MSR_BITMAPS | PROCESSOR_SECONDARY;
        processor |= guest.intercept.iter().map(|intercept| control(*intercept)).fold(0, |a, b| a | b);
        secondary |= SECONDARY_EPT;
        if intercepts(Intercept::Wbinvd) {
            secondary |= SECONDARY_WBINVD;
        }
        all.extend([
            (IO_BITMAP_A, area.io_map),
            (IO_BITMAP_B, area.io_map + PAGE),
            (MSR_BITMAPS, area.msr_map),
            // Write-back, four levels. SDM table 25-9.
            (EPT_POINTER, area.nested_tables | 6 | 3 << 3),
            (SECONDARY_CONTROLS, secondary.into()),
            (GUEST_RSP, area.stack),
        ]);
    }
    let exit = EXIT_HOST_64_BIT | EXIT_SAVE_PAT | EXIT_LOAD_PAT | EXIT_SAVE_EFER | EXIT_LOAD_EFER;
    let entry = ENTRY_GUEST_64_BIT | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER;
    all.extend([
        (PROCESSOR_CONTROLS, processor.into()),
        (EXIT_CONTROLS, (capabilities.exit | exit).into()),
        (ENTRY_CONTROLS, (capabilities.entry | entry).into()),
        (GUEST_CR0, state.cr0),
        (GUEST_CR3, layout.page_tables),
        (GUEST_CR4, state.cr4),
        (GUEST_EFER, state.efer),
        (GUEST_PAT, state.pat),
        (GUEST_DEBUGCTL, 0),
        (GUEST_DR7, 0x400),
        (GUEST_RFLAGS, 2),
        (GUEST_GDTR_BASE, layout.gdt),
        (GUEST_GDTR_LIMIT, GDT_LIMIT.into()),
        (GUEST_IDTR_BASE, vcpu.l2_idt),
        (GUEST_IDTR_LIMIT, IDT_LIMIT.into()),
        (GUEST_INTERRUPTIBILITY, 0),
        (GUEST_ACTIVITY, 0),
        (HOST_CR0, state.cr0),
        (HOST_CR3, layout.page_tables),
        (HOST_CR4, state.cr4),
        (HOST_EFER, state.efer),
        (HOST_PAT, state.pat),
        (HOST_GDTR_BASE, layout.gdt),
        (HOST_IDTR_BASE, vcpu.l1_idt),
        (HOST_TR_SELECTOR, TR_SELECTOR),
        // Before the code takes its own RSP back.
        (HOST_RSP, vcpu.stack),
    ]);
    // ES, CS, SS, DS, FS, GS: of each, selector, limit, access rights and base are two apart.
    const CS: u32 = 1;
    for segment in 0..6 {
        let selector = u64::from(if segment == CS { CODE_SELECTOR } else { DATA_SELECTOR });
        all.extend([
            (GUEST_ES_SELECTOR + 2 * segment, selector),
            (GUEST_ES_LIMIT + 2 * segment, u32::MAX.into()),
            (GUEST_ES_RIGHTS + 2 * segment, if segment == CS { 0xa09b } else { 0xc093 }),
            (GUEST_ES_BASE + 2 * segment, 0),
            (HOST_ES_SELECTOR + 2 * segment, selector),
        ]);
    }
    // LDTR, unusable; TR, a busy TSS.
    for (segment, limit, rights) in [(6, 0, 0x1_0000), (7, 0x67, 0x8b)] {
        all.extend([
            (GUEST_ES_SELECTOR + 2 * segment, 0),
            (GUEST_ES_LIMIT + 2 * segment, limit),
            (GUEST_ES_RIGHTS + 2 * segment, rights),
            (GUEST_ES_BASE + 2 * segment, 0),
        ]);
    }
    all
}

/// The VM-entry interruption-information field for an exception, and its error code if it has one. SDM table 25-17.
pub const fn event_injection(exception: Exception) -> (u64, Option<u64>) {
    const VALID_EXCEPTION: u64 = 1 << 31 | 3 << 8;
    match exception {
        Exception::Gp => (VALID_EXCEPTION | 1 << 11 | 13, Some(0)),
        Exception::Ud => (VALID_EXCEPTION | UD as u64, None),
    }
}

/// The MSR bitmaps: a bit per MSR of RDMSR for two ranges, then of WRMSR. Other MSRs always exit. SDM 25.6.9.
pub fn msr_bitmaps(selection: &Selection) -> Vec<u8> {
    let mut map = vec![0; PAGE as usize];
    match selection {
        Selection::None => {}
        Selection::All => map.fill(0xff),
        Selection::Only(msrs) => {
            for bit in msrs.iter().filter_map(|msr| u32::try_from(msr.0).ok().and_then(msr_bit)) {
                for half in [0, PAGE as usize / 2] {
                    map[half + bit / 8] |= 1 << (bit % 8);
                }
            }
        }
    }
    map
}

fn msr_bit(msr: u32) -> Option<usize> {
    match msr & !0x1fff {
        0 => Some(msr as usize),
        0xc000_0000 => Some(0x2000 + (msr & 0x1fff) as usize),
        _ => None,
    }
}

/// The I/O bitmaps A and B: a bit per port. SDM 25.6.4.
pub fn io_bitmaps(selection: &Selection) -> Vec<u8> {
    let mut map = vec![0; 2 * PAGE as usize];
    for port in 0..=u16::MAX {
        if selection.contains(port.into()) && !control_port(port) {
            map[usize::from(port) / 8] |= 1 << (port % 8);
        }
    }
    map
}

const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
/// Memory type write-back, of a page.
const WRITE_BACK: u64 = 6 << 3;

/// The EPT entry for the page at `address`. SDM table 29-7.
pub const fn ept_entry(address: u64, hole: Option<Hole>) -> u64 {
    let page = address | WRITE_BACK;
    match hole {
        None => page | READ | WRITE | EXECUTE,
        Some(Hole::Absent) => 0,
        Some(Hole::ReadOnly) => page | READ | EXECUTE,
        Some(Hole::NoExecute) => page | READ | WRITE,
    }
}

/// The EPT entry for a table.
pub const fn ept_table_entry(address: u64) -> u64 {
    address | READ | WRITE | EXECUTE
}

/// What an operation of L1 (`guest` is `None`) or of an L2 causes under KVM with EPT.
pub fn expected(op: &Op, guest: Option<&Guest>) -> Expected {
    let (reason, exits) = under_l0(op);
    let reason = reason.map(|reason| reason.0);
    let Some(guest) = guest else {
        return Expected { reason, exits, handled: reason.map(|_| Handled::L0) };
    };
    match op {
        Op::NestedPageFault { .. } => {
            Expected { reason, exits: Exits::AtLeastOnce, handled: Some(Handled::Reflected) }
        }
        _ if is_intercepted(op, guest) => Expected {
            reason: Some(reason.expect("what L1 intercepts has a reason")),
            exits: Exits::Once,
            handled: Some(Handled::Reflected),
        },
        Op::Hlt { .. } => Expected { reason, exits, handled: Some(Handled::Forced) },
        _ => Expected { reason, exits, handled: reason.map(|_| Handled::L0) },
    }
}

/// Whether L1 gets the exits of an operation of this guest: always, or because it asked for them.
pub fn is_intercepted(op: &Op, guest: &Guest) -> bool {
    let has = |intercept| guest.intercept.contains(&intercept);
    match op {
        Op::Cpuid { .. }
        | Op::Hypercall { .. }
        | Op::NestedPageFault { .. }
        | Op::TripleFault
        | Op::Vmx(_) => true,
        Op::Rdmsr { msr } | Op::Wrmsr { msr, .. } => {
            let msr = msr.0 as u32;
            guest.intercept_msrs.contains(msr) || msr_bit(msr).is_none()
        }
        Op::In { port, size, .. }
        | Op::Out { port, size, .. }
        | Op::Ins { port, size, .. }
        | Op::Outs { port, size, .. } => (0..u16::from(*size)).any(|byte| {
            let port = port.wrapping_add(byte);
            guest.intercept_ports.contains(port.into()) && !control_port(port)
        }),
        Op::Hlt { .. } => has(Intercept::Hlt),
        Op::ReadCr { cr: 8 } => has(Intercept::ReadCr8),
        // Reading CR0 and CR4 never exits; a write does if it changes something that is L1's.
        Op::ReadCr { .. } => false,
        Op::WriteCr { cr: 0, flip } => has(Intercept::WriteCr0) && flip.0 != 0,
        Op::WriteCr { cr: 4, flip } => has(Intercept::WriteCr4) && flip.0 != 0,
        Op::WriteCr { .. } => has(Intercept::WriteCr8),
        Op::Rdtsc => has(Intercept::Rdtsc),
        Op::Rdpmc { .. } => has(Intercept::Rdpmc),
        Op::Invlpg => has(Intercept::Invlpg),
        Op::Wbinvd => has(Intercept::Wbinvd),
        Op::Pause => has(Intercept::Pause),
        Op::Monitor => has(Intercept::Monitor),
        Op::Mwait => has(Intercept::Mwait),
        Op::Ud2 => has(Intercept::Ud),
        Op::Mmio { .. }
        | Op::Svm(_)
        | Op::VmrunInvalid { .. }
        | Op::VmlaunchInvalid { .. }
        | Op::L2 { .. } => false,
    }
}

/// What KVM itself intercepts: `setup_vmcs_config()` and `vmx_exec_control()` in arch/x86/kvm/vmx/vmx.c.
fn under_l0(op: &Op) -> (Option<ExitReason>, Exits) {
    use crate::script::VmxOp;
    let (reason, exits) = match op {
        Op::Rdmsr { msr } => (ExitReason::MSR_READ, msr_exits(msr.0 as u32)),
        Op::Wrmsr { msr, .. } => (ExitReason::MSR_WRITE, msr_exits(msr.0 as u32)),
        Op::Cpuid { .. } => (ExitReason::CPUID, Exits::Once),
        Op::Hypercall { .. } => (ExitReason::VMCALL, Exits::Once),
        Op::In { .. } | Op::Out { .. } => (ExitReason::IO_INSTRUCTION, Exits::Once),
        // The emulator may come back to the instruction to do the next part of it.
        Op::Ins { .. } | Op::Outs { .. } => (ExitReason::IO_INSTRUCTION, Exits::AtLeastOnce),
        Op::Hlt { .. } => (ExitReason::HLT, Exits::Once),
        // Only without a TPR shadow.
        Op::ReadCr { cr: 8 } | Op::WriteCr { cr: 8, .. } => (ExitReason::CR_ACCESS, Exits::HostDecides),
        Op::ReadCr { .. } => return (None, Exits::Never),
        // If it changes a bit that KVM wants to know of.
        Op::WriteCr { .. } => (ExitReason::CR_ACCESS, Exits::HostDecides),
        Op::Rdtsc => (ExitReason::RDTSC, Exits::HostDecides),
        Op::Rdpmc { .. } => (ExitReason::RDPMC, Exits::HostDecides),
        Op::Invlpg => (ExitReason::INVLPG, Exits::HostDecides),
        Op::Wbinvd => (ExitReason::WBINVD, Exits::HostDecides),
        // PAUSE-loop exiting.
        Op::Pause => (ExitReason::PAUSE_INSTRUCTION, Exits::HostDecides),
        // KVM_CAP_X86_DISABLE_EXITS is not used here.
        Op::Monitor => (ExitReason::MONITOR_INSTRUCTION, Exits::Once),
        Op::Mwait => (ExitReason::MWAIT_INSTRUCTION, Exits::Once),
        Op::Ud2 => (ExitReason::EXCEPTION_NMI, Exits::Once),
        // The first access to a page is a violation, after which KVM may make it a misconfiguration.
        Op::Mmio { .. } => (ExitReason::EPT_MISCONFIG, Exits::HostDecides),
        Op::NestedPageFault { .. } => (ExitReason::EPT_VIOLATION, Exits::AtLeastOnce),
        Op::TripleFault => (ExitReason::TRIPLE_FAULT, Exits::Once),
        // With VMCS shadowing only some fields are KVM's business.
        Op::Vmx(VmxOp::Vmread) => (ExitReason::VMREAD, Exits::HostDecides),
        Op::Vmx(VmxOp::Vmwrite) => (ExitReason::VMWRITE, Exits::HostDecides),
        Op::Vmx(VmxOp::Vmclear) => (ExitReason::VMCLEAR, Exits::Once),
        Op::Vmx(VmxOp::Vmptrld) => (ExitReason::VMPTRLD, Exits::Once),
        Op::Vmx(VmxOp::Vmptrst) => (ExitReason::VMPTRST, Exits::Once),
        Op::Vmx(VmxOp::Vmxon) => (ExitReason::VMON, Exits::Once),
        Op::Vmx(VmxOp::Invept) => (ExitReason::INVEPT, Exits::Once),
        Op::Vmx(VmxOp::Invvpid) => (ExitReason::INVVPID, Exits::Once),
        Op::VmlaunchInvalid { .. } => (ExitReason::VMLAUNCH, Exits::Once),
        Op::L2 { .. } | Op::Svm(_) | Op::VmrunInvalid { .. } => return (None, Exits::Never),
    };
    (Some(reason), exits)
}

/// MSRs that some KVM, in some configuration, lets a guest access directly: `vmx_possible_passthrough_msrs` in
/// arch/x86/kvm/vmx/vmx.c, x2APIC's, and those of processor trace, last branches and the mediated PMU.
fn msr_exits(msr: u32) -> Exits {
    match msr {
        0x10                            // TSC
        | 0x48 | 0x49 | 0x10b           // SPEC_CTRL, PRED_CMD, FLUSH_CMD
        | 0xc1..=0xc8 | 0x186..=0x18d   // performance monitoring
        | 0x174..=0x176                 // SYSENTER
        | 0x1c4 | 0x1c5                 // XFD
        | 0x1c8 | 0x1c9 | 0x1d9 | 0x1db..=0x1de // last branches, DEBUGCTL
        | 0x277                         // PAT
        | 0x309..=0x30c | 0x38d..=0x390
        | 0x3f8..=0x3fc | 0x3fd..=0x3fe | 0x660..=0x662 // idle residency
        | 0x4c1..=0x4c8
        | 0x560..=0x587                 // processor trace
        | 0x680..=0x6bf                 // last branches, shadow stacks
        | 0x6c0..=0x6df
        | 0x800..=0x8ff                 // x2APIC
        | 0xda0                         // XSS
        | 0xdc0..=0xddf
        | 0xc000_0080..=0xc000_0084     // EFER, STAR, LSTAR, CSTAR, SFMASK
        | 0xc000_0100..=0xc000_0103     // segment bases, TSC_AUX
            => Exits::HostDecides,
        _ => Exits::Once,
    }
}
