// SPDX-License-Identifier: MIT
//! Which guest-physical addresses are used for what. L1 and L2 see all of it at virtual addresses of the same number.

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Bytes that an entry of a page directory maps.
pub const LARGE_PAGE: u64 = 0x20_0000;
/// Bytes that the page tables map, from 0; above the memory there is nothing (MMIO).
pub const MAPPED: u64 = 1 << 32;
/// Where memory may not be, so that scripts have a place for MMIO; KVM's own pages lie here too.
pub const MEMORY_LIMIT: u64 = 0x8000_0000;

/// The vector of the interrupt that wakes a HLT.
pub const WAKE_VECTOR: u8 = 0x40;

/// The VM's addresses.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Page tables of L1 and of L2: PML4, PDPT and four page directories.
    pub page_tables: u64,
    /// The GDT.
    pub gdt: u64,
    /// What each vCPU has for itself.
    pub vcpus: Vec<VcpuLayout>,
    /// Where the code of the vCPUs begins.
    pub code: u64,
}

/// A vCPU's addresses.
#[derive(Clone, Debug)]
pub struct VcpuLayout {
    /// The IDT of L1.
    pub l1_idt: u64,
    /// The IDT of its L2s.
    pub l2_idt: u64,
    /// Where L1's stack begins (its upper end).
    pub stack: u64,
    /// See [`slot`].
    pub slots: u64,
    /// The buffer of INS and OUTS: one page.
    pub buffer: u64,
    /// The log's first byte.
    pub log: u64,
    /// The log's end.
    pub log_end: u64,
    /// SVM: L1's host state-save area (MSR VM_HSAVE_PA). VMX: the VMXON region.
    pub host_save: u64,
    /// SVM: a page for VMLOAD and VMSAVE. VMX: a VMCS that nothing runs on.
    pub spare: u64,
    /// VMCBs that VMRUN refuses, in the order of [`crate::script::Defect`]; VMCSs that VMLAUNCH refuses, in that of
    /// [`crate::script::VmcsDefect`].
    pub invalid: [u64; 3],
    /// VMX: the fields of the latter but for the defects, as [`GuestLayout::initial`].
    pub invalid_fields: u64,
    /// The large page that L2 reaches through 4-KiB entries of L1's nested page table.
    pub holes: u64,
    /// The guests.
    pub guests: Vec<GuestLayout>,
}

/// An L2 guest's addresses.
#[derive(Clone, Debug)]
pub struct GuestLayout {
    /// Its VMCB or VMCS.
    pub control: u64,
    /// SVM: the VMCB as it is at the start. VMX: the fields of the VMCS at the start, encoding and value in 8 bytes each, the
    /// last one followed by [`END_OF_FIELDS`].
    pub initial: u64,
    /// What L1 keeps of it, see [`saved`].
    pub registers: u64,
    /// Where its stack begins.
    pub stack: u64,
    /// The MSR permission map: two pages. VMX: the MSR bitmaps, one page.
    pub msr_map: u64,
    /// The I/O permission map: three pages. VMX: the I/O bitmaps A and B.
    pub io_map: u64,
    /// The nested page table: PML4, PDPT, four page directories, and the page table of [`VcpuLayout::holes`].
    pub nested_tables: u64,
}

impl GuestLayout {
    /// The address of the nested page-table entry of hole `index`.
    pub const fn hole_entry(&self, index: u64) -> u64 {
        self.nested_tables + 6 * PAGE + 8 * index
    }
}

/// Offsets in the page [`VcpuLayout::slots`].
pub mod slot {
    /// Where the log ends now; written before user space is asked to read it.
    pub const LOG_NOW: u64 = 0;
    /// An IDTR value with limit 0.
    pub const EMPTY_IDTR: u64 = 0x10;
    /// Where L1 is to go on if its HLT was interrupted before it was executed.
    pub const RETRY: u64 = 0x20;
    /// VMX: the address of the current VMCS, or 0 if that is none of a guest's.
    pub const CURRENT: u64 = 0x28;
    /// VMX: L1's RSP while an L2 runs.
    pub const L1_RSP: u64 = 0x30;
    /// VMX: an operand in memory.
    pub const OPERAND: u64 = 0x38;
    /// VMX: an INVEPT descriptor of zeros.
    pub const DESCRIPTOR: u64 = 0x40;
    /// The record of the port write that asks user space to read the log.
    pub const SIGNAL: u64 = 0x100;
    /// What r8 and r9 point to before the first instruction.
    pub const UNUSED: u64 = 0x200;
    /// See [`crate::guest::log::Failure`].
    pub const FAILURE: u64 = 0x300;
}

/// Ends the fields at [`GuestLayout::initial`].
pub const END_OF_FIELDS: u64 = u64::MAX;

/// Offsets in [`GuestLayout::registers`].
#[expect(missing_docs, reason = "the registers of these names")]
pub mod saved {
    pub const RBX: u64 = 0;
    pub const RCX: u64 = 8;
    pub const RDX: u64 = 16;
    pub const RSI: u64 = 24;
    pub const RDI: u64 = 32;
    pub const R9: u64 = 40;
    pub const R11: u64 = 48;
    pub const RAX: u64 = 56;
    pub const R13: u64 = 64;
    /// VMX: the reason of its last exit.
    pub const EXIT_REASON: u64 = 72;
    /// VMX: RIP at its last exit.
    pub const RIP: u64 = 80;
    /// VMX: whether its VMCS is launched.
    pub const LAUNCHED: u64 = 88;
}

impl Layout {
    /// Addresses for `vcpus` vCPUs with `guests` L2 guests each, and logs of `log_bytes` bytes.
    pub fn new(vcpus: u32, guests: usize, log_bytes: u64) -> Self {
        let mut next = Allocator(0x10_0000);
        let page_tables = next.pages(6);
        let gdt = next.pages(1);
        let vcpus = (0..vcpus)
            .map(|_| VcpuLayout {
                l1_idt: next.pages(1),
                l2_idt: next.pages(1),
                stack: next.pages(2) + 2 * PAGE,
                slots: next.pages(1),
                buffer: next.pages(1),
                host_save: next.pages(1),
                spare: next.pages(1),
                invalid: [next.pages(1), next.pages(1), next.pages(1)],
                invalid_fields: next.pages(1),
                guests: (0..guests)
                    .map(|_| GuestLayout {
                        control: next.pages(1),
                        initial: next.pages(1),
                        registers: next.pages(1),
                        stack: next.pages(1) + PAGE,
                        msr_map: next.pages(2),
                        io_map: next.pages(3),
                        nested_tables: next.pages(7),
                    })
                    .collect(),
                log: next.pages(log_bytes.div_ceil(PAGE)),
                log_end: next.0,
                holes: next.large_page(),
            })
            .collect();
        Self { page_tables, gdt, vcpus, code: next.0 }
    }
}

struct Allocator(u64);

impl Allocator {
    fn pages(&mut self, count: u64) -> u64 {
        let address = self.0;
        self.0 += count * PAGE;
        address
    }

    fn large_page(&mut self) -> u64 {
        let address = self.0.next_multiple_of(LARGE_PAGE);
        self.0 = address + LARGE_PAGE;
        address
    }
}
