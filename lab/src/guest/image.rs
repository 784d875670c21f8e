// SPDX-License-Identifier: MIT
//! The memory's contents before the start.

use anyhow::{Context, Result};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use crate::script::{Defect, Guest, Script};

use super::assemble::{CODE_SELECTOR, Code, DATA_SELECTOR, HOLE_CODE};
use super::layout::{GuestLayout, LARGE_PAGE, Layout, MAPPED, PAGE, VcpuLayout, slot};
use super::svm::{self, EFER_SVME, Segment, Vmcb};

/// Entries of a page table.
const ENTRIES: u64 = 512;
/// Present and writable.
const TABLE: u64 = 0b11;
/// A large page.
const LARGE: u64 = 1 << 7;
/// What a nested page table also has: a nested walk is a user access.
const USER: u64 = 1 << 2;

/// A 64-bit code segment, and a data segment.
pub const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// See [`CODE_DESCRIPTOR`].
pub const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// Bytes of the GDT: the null descriptor and the two above.
pub const GDT_LIMIT: u16 = 3 * 8 - 1;
/// Bytes of an IDT of 256 gates.
pub const IDT_LIMIT: u16 = 256 * 16 - 1;

/// The processor's state at the start, at both levels.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, with SVME.
    pub efer: u64,
    /// The PAT.
    pub pat: u64,
}

/// Writes everything.
///
/// # Errors
/// If the memory is smaller than the layout.
pub fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    script: &Script,
    codes: &[Code],
    state: State,
) -> Result<()> {
    let image = Image { memory };
    image.directories(layout.page_tables, 0)?;
    for (n, descriptor) in [0, CODE_DESCRIPTOR, DATA_DESCRIPTOR].into_iter().enumerate() {
        image.word(layout.gdt + 8 * n as u64, descriptor)?;
    }
    for (vcpu, code) in layout.vcpus.iter().zip(codes) {
        image.bytes(code.base, &code.bytes)?;
        image.idt(vcpu.l1_idt, &code.l1_handlers)?;
        image.idt(vcpu.l2_idt, &code.l2_handlers)?;
        for page in 0..LARGE_PAGE / PAGE {
            image.bytes(vcpu.holes + page * PAGE, &HOLE_CODE)?;
        }
        for (guest, area) in script.guests.iter().zip(&vcpu.guests) {
            image.guest(layout, vcpu, guest, area, state)?;
        }
        for (defect, address) in [Defect::AsidZero, Defect::SvmeClear, Defect::NoVmrunIntercept]
            .into_iter()
            .zip(vcpu.invalid_vmcbs)
        {
            image.invalid_vmcb(layout, vcpu, defect, address, state)?;
        }
        image.word(vcpu.slots + slot::EMPTY_IDTR, 0)?;
    }
    Ok(())
}

struct Image<'a> {
    memory: &'a GuestMemoryMmap,
}

impl Image<'_> {
    fn bytes(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write_slice(bytes, GuestAddress(address)).with_context(|| {
            format!("cannot write {} bytes to the guest's memory at {address:#x}", bytes.len())
        })
    }

    fn word(&self, address: u64, word: u64) -> Result<()> {
        self.bytes(address, &word.to_le_bytes())
    }

    /// A PML4, a PDPT and four page directories at `tables`, which map 4 GiB to themselves.
    fn directories(&self, tables: u64, flags: u64) -> Result<()> {
        self.word(tables, (tables + PAGE) | TABLE | flags)?;
        let directories = MAPPED / (ENTRIES * LARGE_PAGE);
        for n in 0..directories {
            self.word(tables + PAGE + 8 * n, (tables + (2 + n) * PAGE) | TABLE | flags)?;
        }
        for n in 0..directories * ENTRIES {
            self.word(tables + 2 * PAGE + 8 * n, (n * LARGE_PAGE) | LARGE | TABLE | flags)?;
        }
        Ok(())
    }

    /// 64-bit interrupt gates. APM Vol. 2 section 4.8.4.
    fn idt(&self, idt: u64, handlers: &[(u8, u64)]) -> Result<()> {
        const INTERRUPT_GATE: u64 = 0x8e00;
        for &(vector, handler) in handlers {
            let gate = idt + 16 * u64::from(vector);
            let low = handler & 0xffff
                | u64::from(CODE_SELECTOR) << 16
                | INTERRUPT_GATE << 32
                | (handler >> 16 & 0xffff) << 48;
            self.word(gate, low)?;
            self.word(gate + 8, handler >> 32)?;
        }
        Ok(())
    }

    fn guest(
        &self,
        layout: &Layout,
        vcpu: &VcpuLayout,
        guest: &Guest,
        area: &GuestLayout,
        state: State,
    ) -> Result<()> {
        let mut vmcb = Vmcb::control(guest, area);
        save_state(&mut vmcb, layout, vcpu, state);
        vmcb.save.rsp = area.stack;
        self.bytes(area.vmcb, vmcb.as_slice())?;
        self.bytes(area.pristine_vmcb, vmcb.as_slice())?;
        self.bytes(area.msrpm, &svm::msr_permission_map(&guest.intercept_msrs))?;
        self.bytes(area.iopm, &svm::io_permission_map(&guest.intercept_ports))?;
        self.directories(area.nested_tables, USER)?;
        // The holes' large page by its own table; L1 makes the holes.
        let page_table = area.nested_tables + 6 * PAGE;
        self.word(area.nested_tables + 2 * PAGE + 8 * (vcpu.holes / LARGE_PAGE), page_table | TABLE | USER)?;
        for page in 0..ENTRIES {
            self.word(page_table + 8 * page, svm::nested_entry(vcpu.holes + page * PAGE, None))?;
        }
        Ok(())
    }

    fn invalid_vmcb(
        &self,
        layout: &Layout,
        vcpu: &VcpuLayout,
        defect: Defect,
        address: u64,
        state: State,
    ) -> Result<()> {
        use exitregs_common::svm::ExitCode;
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
        self.bytes(address, vmcb.as_slice())
    }
}

/// An L2 in the same 64-bit mode as L1, with its own IDT.
fn save_state(vmcb: &mut Vmcb, layout: &Layout, vcpu: &VcpuLayout, state: State) {
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
