// SPDX-License-Identifier: MIT
//! What is AMD's: the VMCB and its permission maps, what L1 can intercept, and which instructions exit for which reason.
//!
//! References are to the AMD64 Architecture Programmer's Manual, Volume 2 (APM).

use std::mem::{offset_of, size_of};

use exitregs_common::svm::ExitCode;

use crate::script::{Defect, Exception, Guest, Hole, Intercept, Op, Selection, SvmOp, control_port};
use crate::truth::{Exits, Handled};

use super::assemble::{CODE_SELECTOR, DATA_SELECTOR};
use super::layout::{GuestLayout, Layout, PAGE, VcpuLayout};
use super::vendor::{Expected, GDT_LIMIT, IDT_LIMIT, State};

/// MSR VM_HSAVE_PA. APM 15.30.4.
pub const MSR_VM_HSAVE_PA: u32 = 0xc001_0117;
/// EFER.SVME. APM 15.30, 3.1.7.
pub const EFER_SVME: u64 = 1 << 12;
/// ASID of L2.
const ASID: u32 = 1;

/// A segment register. APM appendix B, table B-2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes: bits 55:52 and 47:40 of the descriptor.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// The control area, as far as it is used. APM appendix B, table B-1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ControlArea {
    /// Intercepts: that of exit code `c` is bit `c % 32` of word `c / 32`.
    pub intercepts: [u32; 5],
    reserved_014: [u8; 0x40 - 0x14],
    /// Address of the I/O permission map.
    pub iopm_base_pa: u64,
    /// Address of the MSR permission map.
    pub msrpm_base_pa: u64,
    /// Added to the TSC.
    pub tsc_offset: u64,
    /// Address space identifier.
    pub asid: u32,
    /// 1: flush the whole TLB.
    pub tlb_control: u32,
    /// Virtual interrupts; V_INTR_MASKING is bit 24.
    pub int_ctl: u64,
    /// Interrupt shadow.
    pub int_state: u64,
    /// EXITCODE.
    pub exit_code: u64,
    /// EXITINFO1.
    pub exit_info_1: u64,
    /// EXITINFO2.
    pub exit_info_2: u64,
    /// EXITINTINFO.
    pub exit_int_info: u64,
    /// Bit 0: nested paging.
    pub nested_ctl: u64,
    reserved_098: [u8; 0xa8 - 0x98],
    /// EVENTINJ.
    pub event_inj: u64,
    /// Root of the nested page table.
    pub nested_cr3: u64,
    reserved_0b8: [u8; 0x400 - 0xb8],
}

/// The state-save area, as far as it is used. APM appendix B, table B-2.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the registers of these names")]
pub struct SaveArea {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_0a0: [u8; 0xcb - 0xa0],
    pub cpl: u8,
    reserved_0cc: [u8; 4],
    pub efer: u64,
    reserved_0d8: [u8; 0x148 - 0xd8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x1d8 - 0x180],
    pub rsp: u64,
    reserved_1e0: [u8; 0x1f8 - 0x1e0],
    pub rax: u64,
    reserved_200: [u8; 0x268 - 0x200],
    pub g_pat: u64,
    reserved_270: [u8; 0xc00 - 0x270],
}

/// A VMCB.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Vmcb {
    /// From 0.
    pub control: ControlArea,
    /// From 0x400.
    pub save: SaveArea,
}

const _: () = {
    assert!(size_of::<Vmcb>() == PAGE as usize);
    assert!(offset_of!(Vmcb, control.asid) == 0x58);
    assert!(offset_of!(Vmcb, control.int_ctl) == 0x60);
    assert!(offset_of!(Vmcb, control.exit_code) == 0x70);
    assert!(offset_of!(Vmcb, control.nested_ctl) == 0x90);
    assert!(offset_of!(Vmcb, control.event_inj) == 0xa8);
    assert!(offset_of!(Vmcb, control.nested_cr3) == 0xb0);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(SaveArea, tr) == 0x90);
    assert!(offset_of!(SaveArea, cpl) == 0xcb);
    assert!(offset_of!(SaveArea, efer) == 0xd0);
    assert!(offset_of!(SaveArea, cr4) == 0x148);
    assert!(offset_of!(SaveArea, rip) == 0x178);
    assert!(offset_of!(SaveArea, rsp) == 0x1d8);
    assert!(offset_of!(SaveArea, rax) == 0x1f8);
    assert!(offset_of!(SaveArea, g_pat) == 0x268);
};

// SAFETY: `repr(C)` of integers and arrays of them with no padding: the sizes and offsets asserted above leave no gap
// (`cpl` at 0xcb is a byte, the four reserved bytes after it end at 0xd0, a multiple of 8), and any bytes are a valid value.
unsafe impl vm_memory::ByteValued for Vmcb {}

impl Vmcb {
    /// All zero.
    pub fn zeroed() -> Self {
        vm_memory::ByteValued::zeroed()
    }

    /// Intercepts an exit code below 0xa0.
    pub fn intercept(&mut self, code: ExitCode) {
        self.control.intercepts[code.0 as usize / 32] |= 1 << (code.0 % 32);
    }

    /// Stops intercepting it.
    pub fn do_not_intercept(&mut self, code: ExitCode) {
        self.control.intercepts[code.0 as usize / 32] &= !(1 << (code.0 % 32));
    }

    /// The control area of a guest.
    pub fn control(guest: &Guest, layout: &GuestLayout) -> Self {
        let mut vmcb = Self::zeroed();
        for code in [ExitCode::INTR, ExitCode::SHUTDOWN, ExitCode::VMRUN, ExitCode::VMMCALL] {
            vmcb.intercept(code);
        }
        for &intercept in &guest.intercept {
            vmcb.intercept(exit_code(intercept));
        }
        if !guest.intercept_msrs.is_none() {
            vmcb.intercept(ExitCode::MSR);
        }
        if !guest.intercept_ports.is_none() {
            vmcb.intercept(ExitCode::IOIO);
        }
        vmcb.control.iopm_base_pa = layout.io_map;
        vmcb.control.msrpm_base_pa = layout.msr_map;
        vmcb.control.asid = ASID;
        vmcb.control.tlb_control = 1;
        vmcb.control.nested_ctl = 1;
        vmcb.control.nested_cr3 = layout.nested_tables;
        vmcb
    }
}

/// The exit code of an instruction that L1 intercepts.
pub const fn exit_code(intercept: Intercept) -> ExitCode {
    match intercept {
        Intercept::Cpuid => ExitCode::CPUID,
        Intercept::Hlt => ExitCode::HLT,
        Intercept::Invlpg => ExitCode::INVLPG,
        Intercept::Invlpga => ExitCode::INVLPGA,
        Intercept::Monitor => ExitCode::MONITOR,
        Intercept::Mwait => ExitCode::MWAIT,
        Intercept::Pause => ExitCode::PAUSE,
        Intercept::Rdpmc => ExitCode::RDPMC,
        Intercept::Rdtsc => ExitCode::RDTSC,
        Intercept::ReadCr0 => ExitCode::READ_CR0,
        Intercept::ReadCr4 => ExitCode::READ_CR4,
        Intercept::ReadCr8 => ExitCode::READ_CR8,
        Intercept::Stgi => ExitCode::STGI,
        Intercept::Clgi => ExitCode::CLGI,
        Intercept::Ud => ExitCode::EXCP_UD,
        Intercept::Vmload => ExitCode::VMLOAD,
        Intercept::Vmsave => ExitCode::VMSAVE,
        Intercept::Wbinvd => ExitCode::WBINVD,
        Intercept::WriteCr0 => ExitCode::WRITE_CR0,
        Intercept::WriteCr4 => ExitCode::WRITE_CR4,
        Intercept::WriteCr8 => ExitCode::WRITE_CR8,
    }
}

/// EVENTINJ for an exception: valid (bit 31), type 3 (bits 10:8), the vector, and whether the error code in the upper half
/// counts (bit 11). APM 15.20.
pub const fn event_injection(exception: Exception) -> u64 {
    const VALID_EXCEPTION: u64 = 1 << 31 | 3 << 8;
    match exception {
        Exception::Gp => VALID_EXCEPTION | 1 << 11 | 13,
        Exception::Ud => VALID_EXCEPTION | 6,
    }
}

/// The MSR permission map: two bits per MSR, RDMSR's and WRMSR's, of three ranges; other MSRs always exit. APM 15.11.
pub fn msr_permission_map(selection: &Selection) -> Vec<u8> {
    let mut map = vec![0; 2 * PAGE as usize];
    match selection {
        Selection::None => {}
        Selection::All => map.fill(0xff),
        Selection::Only(msrs) => {
            for bit in msrs.iter().filter_map(|msr| u32::try_from(msr.0).ok().and_then(msr_map_bit)) {
                map[bit / 8] |= 3 << (bit % 8);
            }
        }
    }
    map
}

fn msr_map_bit(msr: u32) -> Option<usize> {
    let range = match msr & !0x1fff {
        0 => 0,
        0xc000_0000 => 1,
        0xc001_0000 => 2,
        _ => return None,
    };
    Some((range * 0x2000 + (msr & 0x1fff) as usize) * 2)
}

/// The I/O permission map: a bit per port. APM 15.10.1.
pub fn io_permission_map(selection: &Selection) -> Vec<u8> {
    let mut map = vec![0; 3 * PAGE as usize];
    for port in 0..=u16::MAX {
        if selection.contains(port.into()) && !control_port(port) {
            map[usize::from(port) / 8] |= 1 << (port % 8);
        }
    }
    map
}

/// The entry of a nested page table for the page at `address`. Nested walks are user accesses. APM 15.25.5.
pub const fn nested_entry(address: u64, hole: Option<Hole>) -> u64 {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 2;
    const USER: u64 = 4;
    const NO_EXECUTE: u64 = 1 << 63;
    match hole {
        None => address | PRESENT | WRITE | USER,
        Some(Hole::Absent) => 0,
        Some(Hole::ReadOnly) => address | PRESENT | USER,
        Some(Hole::NoExecute) => address | PRESENT | WRITE | USER | NO_EXECUTE,
    }
}

/// What an operation of L1 (`guest` is `None`) or of an L2 causes under KVM with nested paging.
pub fn expected(op: &Op, guest: Option<&Guest>) -> Expected {
    let (reason, exits) = under_l0(op);
    let reason = reason.map(|code| code.0);
    let Some(guest) = guest else {
        return Expected { reason, exits, handled: reason.map(|_| Handled::L0) };
    };
    let reflected =
        |code: u32| Expected { reason: Some(code), exits: Exits::Once, handled: Some(Handled::Reflected) };
    match op {
        Op::NestedPageFault { .. } => {
            Expected { reason, exits: Exits::AtLeastOnce, handled: Some(Handled::Reflected) }
        }
        Op::Hypercall { .. } => reflected(ExitCode::VMMCALL.0),
        Op::TripleFault => reflected(ExitCode::SHUTDOWN.0),
        _ if is_intercepted(op, guest) => reflected(match intercept(op) {
            Some(intercept) => exit_code(intercept).0,
            None => reason.expect("an MSR or port access"),
        }),
        Op::Hlt { .. } => Expected { reason, exits, handled: Some(Handled::Forced) },
        _ => Expected { reason, exits, handled: reason.map(|_| Handled::L0) },
    }
}

/// Whether L1 intercepts an operation of this guest.
pub fn is_intercepted(op: &Op, guest: &Guest) -> bool {
    match op {
        Op::Rdmsr { msr } | Op::Wrmsr { msr, .. } => match &guest.intercept_msrs {
            Selection::None => false,
            Selection::All => true,
            only @ Selection::Only(_) => {
                let msr = msr.0 as u32;
                only.contains(msr) || msr_map_bit(msr).is_none()
            }
        },
        Op::In { port, size, .. }
        | Op::Out { port, size, .. }
        | Op::Ins { port, size, .. }
        | Op::Outs { port, size, .. } => (0..u16::from(*size)).any(|byte| {
            let port = port.wrapping_add(byte);
            guest.intercept_ports.contains(port.into()) && !control_port(port)
        }),
        Op::Hypercall { .. } | Op::NestedPageFault { .. } | Op::TripleFault => true,
        op => intercept(op).is_some_and(|intercept| guest.intercept.contains(&intercept)),
    }
}

/// What L1 has to name in [`Guest::intercept`] to get an operation's exits.
pub fn intercept(op: &Op) -> Option<Intercept> {
    Some(match op {
        Op::Cpuid { .. } => Intercept::Cpuid,
        Op::Hlt { .. } => Intercept::Hlt,
        Op::ReadCr { cr: 0 } => Intercept::ReadCr0,
        Op::ReadCr { cr: 4 } => Intercept::ReadCr4,
        Op::ReadCr { .. } => Intercept::ReadCr8,
        Op::WriteCr { cr: 0, .. } => Intercept::WriteCr0,
        Op::WriteCr { cr: 4, .. } => Intercept::WriteCr4,
        Op::WriteCr { .. } => Intercept::WriteCr8,
        Op::Rdtsc => Intercept::Rdtsc,
        Op::Rdpmc { .. } => Intercept::Rdpmc,
        Op::Invlpg => Intercept::Invlpg,
        Op::Wbinvd => Intercept::Wbinvd,
        Op::Pause => Intercept::Pause,
        Op::Monitor => Intercept::Monitor,
        Op::Mwait => Intercept::Mwait,
        Op::Ud2 => Intercept::Ud,
        Op::Svm(SvmOp::Vmload) => Intercept::Vmload,
        Op::Svm(SvmOp::Vmsave) => Intercept::Vmsave,
        Op::Svm(SvmOp::Stgi) => Intercept::Stgi,
        Op::Svm(SvmOp::Clgi) => Intercept::Clgi,
        Op::Svm(SvmOp::Invlpga) => Intercept::Invlpga,
        _ => return None,
    })
}

/// What KVM itself intercepts: `init_vmcb()` in arch/x86/kvm/svm/svm.c.
fn under_l0(op: &Op) -> (Option<ExitCode>, Exits) {
    let (code, exits) = match op {
        Op::Rdmsr { msr } | Op::Wrmsr { msr, .. } if may_pass_through(msr.0 as u32) => {
            (ExitCode::MSR, Exits::HostDecides)
        }
        Op::Rdmsr { .. } | Op::Wrmsr { .. } => (ExitCode::MSR, Exits::Once),
        Op::Cpuid { .. } => (ExitCode::CPUID, Exits::Once),
        Op::Hypercall { .. } => (ExitCode::VMMCALL, Exits::Once),
        Op::In { .. } | Op::Out { .. } => (ExitCode::IOIO, Exits::Once),
        // The emulator may come back to the instruction to do the next part of it.
        Op::Ins { .. } | Op::Outs { .. } => (ExitCode::IOIO, Exits::AtLeastOnce),
        Op::Hlt { .. } => (ExitCode::HLT, Exits::Once),
        Op::ReadCr { cr: 0 } => (ExitCode::READ_CR0, Exits::HostDecides),
        Op::ReadCr { cr: 4 } => (ExitCode::READ_CR4, Exits::Once),
        Op::ReadCr { .. } => (ExitCode::READ_CR8, Exits::HostDecides),
        // KVM keeps only the selective intercept while the guest's CR0 is the real one.
        Op::WriteCr { cr: 0, .. } => (ExitCode::CR0_SEL_WRITE, Exits::HostDecides),
        Op::WriteCr { cr: 4, .. } => (ExitCode::WRITE_CR4, Exits::Once),
        // Only while an interrupt waits for the TPR to fall.
        Op::WriteCr { .. } => (ExitCode::WRITE_CR8, Exits::HostDecides),
        Op::Rdtsc => (ExitCode::RDTSC, Exits::HostDecides),
        Op::Rdpmc { .. } => (ExitCode::RDPMC, Exits::HostDecides),
        Op::Invlpg => (ExitCode::INVLPG, Exits::HostDecides),
        Op::Wbinvd => (ExitCode::WBINVD, Exits::Once),
        // Depends on the filter count.
        Op::Pause => (ExitCode::PAUSE, Exits::HostDecides),
        // KVM_CAP_X86_DISABLE_EXITS is not used here.
        Op::Monitor => (ExitCode::MONITOR, Exits::Once),
        Op::Mwait => (ExitCode::MWAIT, Exits::Once),
        Op::Ud2 => (ExitCode::EXCP_UD, Exits::Once),
        Op::Mmio { .. } | Op::NestedPageFault { .. } => (ExitCode::NPF, Exits::AtLeastOnce),
        Op::TripleFault => (ExitCode::SHUTDOWN, Exits::Once),
        // Virtual VMLOAD/VMSAVE and virtual GIF, if the processor has them. APM 15.33.
        Op::Svm(SvmOp::Vmload) => (ExitCode::VMLOAD, Exits::HostDecides),
        Op::Svm(SvmOp::Vmsave) => (ExitCode::VMSAVE, Exits::HostDecides),
        Op::Svm(SvmOp::Stgi) => (ExitCode::STGI, Exits::HostDecides),
        Op::Svm(SvmOp::Clgi) => (ExitCode::CLGI, Exits::HostDecides),
        Op::Svm(SvmOp::Invlpga) => (ExitCode::INVLPGA, Exits::Once),
        Op::Svm(SvmOp::Skinit) => (ExitCode::SKINIT, Exits::Once),
        // Whether the processor looks at RAX before or after the intercept differs.
        Op::VmrunInvalid { defect: Defect::Unaligned } => (ExitCode::VMRUN, Exits::HostDecides),
        Op::VmrunInvalid { .. } => (ExitCode::VMRUN, Exits::Once),
        Op::L2 { .. } | Op::Vmx(_) | Op::VmlaunchInvalid { .. } => return (None, Exits::Never),
    };
    (Some(code), exits)
}

/// MSRs that some KVM, in some configuration, lets a guest access directly: `direct_access_msrs` in
/// arch/x86/kvm/svm/svm.c (its successors `svm_recalc_*` too), x2AVIC's and the mediated PMU's.
fn may_pass_through(msr: u32) -> bool {
    matches!(msr,
        0x48 | 0x49 | 0x10b            // SPEC_CTRL, PRED_CMD, FLUSH_CMD
        | 0x174..=0x176                // SYSENTER
        | 0x1d9 | 0x1db..=0x1de        // DEBUGCTL, last branch and last interrupt
        | 0x277                        // PAT
        | 0x6a0..=0x6a8                // shadow stacks
        | 0x800..=0x8ff                // x2APIC
        | 0xda0                        // XSS
        | 0xc000_0080..=0xc000_0084    // EFER, STAR, LSTAR, CSTAR, SFMASK
        | 0xc000_0100..=0xc000_0104    // segment bases, TSC_AUX, TSC ratio
        | 0xc000_0300..=0xc000_0303    // performance monitoring
        | 0xc001_0000..=0xc001_0007
        | 0xc001_0200..=0xc001_020b
        | 0xc001_011f                  // VIRT_SPEC_CTRL
        | 0xc001_0130)
}

/// An L2 in the same 64-bit mode as L1, with its own IDT.
pub fn save_state(vmcb: &mut Vmcb, layout: &Layout, vcpu: &VcpuLayout, state: State) {
    let data = Segment { selector: DATA_SELECTOR, attributes: 0xc93, limit: u32::MAX, base: 0 };
    let save = &mut vmcb.save;
    save.cs = Segment { selector: CODE_SELECTOR, attributes: 0xa9b, limit: u32::MAX, base: 0 };
    for segment in [&mut save.es, &mut save.ss, &mut save.ds, &mut save.fs, &mut save.gs] {
        *segment = data;
    }
    save.gdtr = Segment { limit: GDT_LIMIT.into(), base: layout.gdt, ..Segment::default() };
    save.idtr = Segment { limit: IDT_LIMIT.into(), base: vcpu.l2_idt, ..Segment::default() };
    save.tr = Segment { selector: 0, attributes: 0x8b, limit: 0x67, base: 0 };
    save.cr0 = state.cr0;
    save.cr3 = layout.page_tables;
    save.cr4 = state.cr4;
    save.efer = state.efer;
    save.g_pat = state.pat;
    save.dr6 = 0xffff_0ff0;
    save.dr7 = 0x400;
    save.rflags = 2;
}

/// A VMCB that VMRUN refuses.
pub fn invalid_vmcb(layout: &Layout, vcpu: &VcpuLayout, defect: Defect, state: State) -> Vmcb {
    let mut vmcb = Vmcb::zeroed();
    vmcb.intercept(ExitCode::VMRUN);
    vmcb.control.asid = 1;
    save_state(&mut vmcb, layout, vcpu, state);
    match defect {
        Defect::AsidZero => vmcb.control.asid = 0,
        Defect::SvmeClear => vmcb.save.efer &= !EFER_SVME,
        Defect::NoVmrunIntercept => vmcb.do_not_intercept(ExitCode::VMRUN),
        Defect::Unaligned => {}
    }
    vmcb
}
