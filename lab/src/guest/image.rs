// SPDX-License-Identifier: MIT
//! The memory's contents before the start.

use anyhow::{Context, Result};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use exitregs_common::isa::Isa;

use crate::script::{Defect, Guest, Script};

use super::assemble::{CODE_SELECTOR, Code, HOLE_CODE};
use super::layout::{END_OF_FIELDS, GuestLayout, LARGE_PAGE, Layout, MAPPED, PAGE, VcpuLayout, slot};
use super::svm::{self, Vmcb};
use super::vendor::{self, CODE_DESCRIPTOR, DATA_DESCRIPTOR, State};
use super::vmx;

/// Entries of a page table.
const ENTRIES: u64 = 512;
/// Present and writable.
const TABLE: u64 = 0b11;
/// A large page.
const LARGE: u64 = 1 << 7;

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
    let entry = |address: u64, large: bool| address | TABLE | if large { LARGE } else { 0 };
    image.directories(layout.page_tables, entry)?;
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
        match state.isa {
            Isa::Svm => {
                let defects = [Defect::AsidZero, Defect::SvmeClear, Defect::NoVmrunIntercept];
                for (defect, address) in defects.into_iter().zip(vcpu.invalid) {
                    image.bytes(address, svm::invalid_vmcb(layout, vcpu, defect, state).as_slice())?;
                }
            }
            Isa::Vmx => {
                for region in [vcpu.host_save, vcpu.spare].into_iter().chain(vcpu.invalid) {
                    image.word(region, state.vmx.revision.into())?;
                }
                let guest = vmx::fields(layout, vcpu, None, state);
                image.fields(vcpu.invalid_fields, &guest)?;
            }
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

    /// The fields of a VMCS.
    fn fields(&self, address: u64, fields: &[(u32, u64)]) -> Result<()> {
        let end = (END_OF_FIELDS, 0);
        let all = fields.iter().map(|&(field, value)| (field.into(), value)).chain([end]);
        for (n, (field, value)) in (0..).zip(all) {
            self.word(address + 16 * n, field)?;
            self.word(address + 16 * n + 8, value)?;
        }
        Ok(())
    }

    /// A PML4, a PDPT and four page directories at `tables`, which map 4 GiB to themselves. `entry` makes an entry of an
    /// address, which is that of a large page or of a table.
    fn directories(&self, tables: u64, entry: impl Fn(u64, bool) -> u64) -> Result<()> {
        self.word(tables, entry(tables + PAGE, false))?;
        let directories = MAPPED / (ENTRIES * LARGE_PAGE);
        for n in 0..directories {
            self.word(tables + PAGE + 8 * n, entry(tables + (2 + n) * PAGE, false))?;
        }
        for n in 0..directories * ENTRIES {
            self.word(tables + 2 * PAGE + 8 * n, entry(n * LARGE_PAGE, true))?;
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
        match state.isa {
            Isa::Svm => {
                let mut vmcb = Vmcb::control(guest, area);
                svm::save_state(&mut vmcb, layout, vcpu, state);
                vmcb.save.rsp = area.stack;
                self.bytes(area.control, vmcb.as_slice())?;
                self.bytes(area.initial, vmcb.as_slice())?;
                self.bytes(area.msr_map, &svm::msr_permission_map(&guest.intercept_msrs))?;
                self.bytes(area.io_map, &svm::io_permission_map(&guest.intercept_ports))?;
            }
            Isa::Vmx => {
                self.word(area.control, state.vmx.revision.into())?;
                self.fields(area.initial, &vmx::fields(layout, vcpu, Some((guest, area)), state))?;
                self.bytes(area.msr_map, &vmx::msr_bitmaps(&guest.intercept_msrs))?;
                self.bytes(area.io_map, &vmx::io_bitmaps(&guest.intercept_ports))?;
            }
        }
        self.directories(area.nested_tables, |address, large| {
            vendor::nested_directory_entry(state.isa, address, large)
        })?;
        // The holes' large page by its own table; L1 makes the holes.
        let page_table = area.nested_tables + 6 * PAGE;
        self.word(
            area.nested_tables + 2 * PAGE + 8 * (vcpu.holes / LARGE_PAGE),
            vendor::nested_directory_entry(state.isa, page_table, false),
        )?;
        for page in 0..ENTRIES {
            self.word(
                page_table + 8 * page,
                vendor::nested_entry(state.isa, vcpu.holes + page * PAGE, None),
            )?;
        }
        Ok(())
    }
}
