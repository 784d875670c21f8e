// SPDX-License-Identifier: MIT
//! Exits by the column: what every analysis takes, wherever the exits come from.

use super::pairing::Record;
use ahash::RandomState;
use exitregs_common::detail::{self, Detail};
use exitregs_common::event::{Cause, Event, Exit, Field, KvmEntry, KvmExit, abi_from_field, field_bit};
use exitregs_common::isa::{Isa, Level};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};

/// A time that there was not.
pub const NEVER: u64 = u64::MAX;

/// The fields of `kvm_exit` that a [`Class`] has.
pub const CLASS_FIELDS: [&str; 5] = ["exit_reason", "isa", "vcpu_id", "is_nested", "is_protected"];

/// What many exits have in common. There are few classes among many exits, so that analyses look at classes, and at
/// exits only for their times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// The VM, by the VMM's pid; 0 if unknown.
    pub vm: u32,
    /// The vCPU's id.
    pub vcpu: u32,
    /// `isa` of `kvm_exit`.
    pub isa: u32,
    /// The exit reason with its flag bits.
    pub exit_reason: u32,
    /// `is_nested` of `kvm_exit`.
    pub is_nested: u8,
    /// `is_protected` of `kvm_exit`.
    pub is_protected: u8,
    /// As [`Exit::hypercall_abi`] has it.
    pub hypercall_abi: u8,
    /// As [`Exit::cause`] has it.
    pub cause: u8,
    /// Bit n set: `KvmExit::FIELDS[n]` is one of [`CLASS_FIELDS`], and unknown.
    pub unknown: u32,
    /// GPA of vmcb12 or vmcs12; 0 at L1, and if unknown.
    pub l2: u64,
    /// The key of the [`Detail`].
    pub detail: u64,
}

/// Of what differs most: this is asked for each exit.
impl Hash for Class {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { vm, vcpu, exit_reason, is_nested, l2, detail, .. } = *self;
        state.write_u64(u64::from(vm) << 32 | u64::from(exit_reason));
        state.write_u64(u64::from(vcpu) << 32 | u64::from(is_nested));
        state.write_u64(detail ^ l2.rotate_left(32));
    }
}

impl Class {
    /// The class of an exit.
    pub fn of(exit: &Exit) -> Self {
        let KvmExit { vcpu_id, isa, exit_reason, is_nested, is_protected, .. } = exit.exit;
        Self {
            vm: exit.tgid,
            vcpu: vcpu_id,
            isa,
            exit_reason,
            is_nested,
            is_protected,
            hypercall_abi: exit.hypercall_abi,
            cause: exit.cause,
            unknown: exit.exit_unknown & CLASS_BITS,
            l2: exit.nested_state,
            detail: detail::key(exit),
        }
    }

    /// Who ran.
    pub fn level(&self) -> Level {
        Level::from_is_nested(self.is_nested)
    }

    /// The instruction set; `None` if it is none that there is.
    pub fn isa(&self) -> Option<Isa> {
        Isa::from_field(self.isa)
    }

    /// MSR, hypercall, CPUID leaf or port.
    pub fn detail(&self) -> Detail {
        match self.isa() {
            Some(isa) => {
                Detail::from_key(isa, self.exit_reason, abi_from_field(self.hypercall_abi), self.detail)
            }
            None => Detail::Unknown,
        }
    }

    /// Why L1 ran after it, if that is known.
    pub fn cause(&self) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| *cause as u8 == self.cause)
    }

    /// The fields of `kvm_exit` that the class has; all else is 0.
    pub fn event(&self) -> KvmExit {
        let Self { vcpu, isa, exit_reason, is_nested, is_protected, .. } = *self;
        KvmExit { vcpu_id: vcpu, isa, exit_reason, is_nested, is_protected, ..KvmExit::default() }
    }
}

/// The bits of [`CLASS_FIELDS`] in a mask of `KvmExit`'s fields.
pub const CLASS_BITS: u32 = bits(KvmExit::FIELDS, &CLASS_FIELDS);

/// The bits of the fields of these names.
const fn bits(fields: &[Field], names: &[&str]) -> u32 {
    let (mut mask, mut index) = (0, 0);
    while index < names.len() {
        mask |= field_bit(fields, names[index]);
        index += 1;
    }
    mask
}

/// The columns that an analysis needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Columns {
    /// [`Batch::exit_time`].
    pub exit_time: bool,
    /// [`Batch::next_entry`].
    pub next_entry: bool,
    /// [`Batch::entry`].
    pub entry: bool,
    /// Bit n set: `KvmExit::FIELDS[n]`.
    pub exit_fields: u32,
    /// Bit n set: `KvmEntry::FIELDS[n]`.
    pub entry_fields: u32,
}

impl Columns {
    /// The columns of either.
    pub fn and(self, other: Self) -> Self {
        Self {
            exit_time: self.exit_time | other.exit_time,
            next_entry: self.next_entry | other.next_entry,
            entry: self.entry | other.entry,
            exit_fields: self.exit_fields | other.exit_fields,
            entry_fields: self.entry_fields | other.entry_fields,
        }
    }
}

/// A field of many exits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Column {
    /// Zero-extended.
    pub values: Vec<u64>,
    /// Which of them are unknown; empty if none is.
    pub unknown: Vec<bool>,
}

impl Column {
    /// The value of an exit, if it is known.
    pub fn get(&self, row: usize) -> Option<u64> {
        let known = !self.unknown.get(row).copied().unwrap_or(false);
        known.then(|| self.values.get(row).copied()).flatten()
    }
}

/// Exits by the column, in the order in which they ended, and what was lost. Columns that were not asked for are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The classes that there are.
    pub classes: Vec<Class>,
    /// Of each exit, its class's place in `classes`.
    pub class: Vec<u16>,
    /// Of each exit, nanoseconds on the source's clock.
    pub exit_time: Vec<u64>,
    /// Nanoseconds from each exit to the vCPU's next entry, or [`NEVER`].
    pub next_entry: Vec<u64>,
    /// Nanoseconds from each exit to the entry that ended it, or [`NEVER`].
    pub entry: Vec<u64>,
    /// Fields of `kvm_exit`, each at its place in `KvmExit::FIELDS`.
    pub exit_fields: Vec<Column>,
    /// Fields of `kvm_entry` of the entries that ended the exits.
    pub entry_fields: Vec<Column>,
    /// Events that were lost while these came.
    pub lost: u64,
    /// Names of the VMs.
    pub names: Vec<(u32, String)>,
}

impl Batch {
    /// The most exits that a batch can have.
    pub const MAX: usize = 1 << 16;

    /// The columns of records, of which there are [`MAX`](Self::MAX) at most. Nested page faults are left out.
    pub fn new(records: &[Record], columns: Columns, lost: u64) -> Self {
        let mut builder = Builder::new(columns);
        for record in records.iter().take(Self::MAX) {
            builder.push(record);
        }
        builder.batch.lost = lost;
        builder.batch
    }

    /// How many exits there are.
    pub fn len(&self) -> usize {
        self.class.len()
    }

    /// Whether a VM is one of those wanted, by pid or name; of all, if `wanted` is empty.
    pub fn is_of(&self, vm: u32, wanted: &[String]) -> bool {
        let name = self.names.iter().find(|(pid, _)| *pid == vm).map(|(_, name)| name);
        wanted.is_empty() || wanted.iter().any(|word| word.parse() == Ok(vm) || Some(word) == name)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.class.is_empty()
    }
}

/// The bits of registers in a mask of an event's fields of which another event tells the part that the instruction uses:
/// what [`Exit::operands`] and [`Exit::results`] are for. In a column they are known.
pub fn told<E: Event>(registers: u8) -> u32 {
    u32::from(registers) * const { field_bit(E::FIELDS, "rax") }
}

/// The bits of the four registers.
pub const fn registers<E: Event>() -> u32 {
    const { bits(E::FIELDS, &["rax", "rbx", "rcx", "rdx"]) }
}

/// The bits of the registers if the guest is protected, which makes them unknown whatever the source says; else none.
pub const fn protected<E: Event>(is_protected: u8) -> u32 {
    if is_protected != 0 { registers::<E>() } else { 0 }
}

/// Makes one batch after the other, in the same memory.
#[derive(Debug)]
pub struct Builder {
    columns: Columns,
    batch: Batch,
    /// Of the batch's classes.
    places: HashMap<Class, u16, RandomState>,
    /// Those that were last asked for, by what of them differs most.
    recent: [Option<(Class, u16)>; RECENT],
}

const RECENT: usize = 64;
/// Exits of a batch that is made here: so few that the columns stay in a CPU's cache until they are looked at.
const CAPACITY: usize = Batch::MAX / 4;

impl Builder {
    /// Of batches with these columns.
    pub fn new(columns: Columns) -> Self {
        let mut batch = Batch::default();
        let fields = |wanted: u32, count| vec![Column::default(); if wanted == 0 { 0 } else { count }];
        batch.exit_fields = fields(columns.exit_fields, KvmExit::FIELDS.len());
        batch.entry_fields = fields(columns.entry_fields, KvmEntry::FIELDS.len());
        Self { columns, batch, places: HashMap::default(), recent: [None; RECENT] }
    }

    /// Adds an exit; there must be [room](Self::is_full). Nested page faults are left out.
    #[inline]
    pub fn push(&mut self, record: &Record) {
        let Record::Exit(exit) = record else { return };
        let place = self.place(Class::of(exit));
        let (columns, batch) = (&self.columns, &mut self.batch);
        batch.class.push(place);
        let after = |time: u64| time.checked_sub(exit.exit_time).unwrap_or(NEVER);
        if columns.exit_time {
            batch.exit_time.push(exit.exit_time);
        }
        if columns.next_entry {
            batch.next_entry.push(after(exit.next_entry_time));
        }
        if columns.entry {
            batch.entry.push(after(exit.entry_time));
        }
        if columns.exit_fields != 0 {
            let protected = protected::<KvmExit>(exit.exit.is_protected);
            let unknown = exit.exit_unknown & !told::<KvmExit>(exit.operands) | protected;
            add(&mut batch.exit_fields, columns.exit_fields, &exit.exit, unknown);
        }
        if columns.entry_fields != 0 {
            let protected = protected::<KvmEntry>(exit.entry.is_protected);
            let told = told::<KvmEntry>(exit.results);
            let unknown =
                if exit.entry_time == 0 { u32::MAX } else { exit.entry_unknown & !told | protected };
            add(&mut batch.entry_fields, columns.entry_fields, &exit.entry, unknown);
        }
    }

    /// The place of a class among the batch's, where it is put if it is new.
    #[inline]
    fn place(&mut self, class: Class) -> u16 {
        let Class { exit_reason, vcpu, is_nested, detail, .. } = class;
        let slot = (detail ^ detail >> 32) as u32 ^ exit_reason ^ vcpu << 2 ^ u32::from(is_nested) << 5;
        let recent = &mut self.recent[slot as usize % RECENT];
        match *recent {
            Some((same, place)) if same == class => place,
            _ => {
                let classes = &mut self.batch.classes;
                let place = *self.places.entry(class).or_insert_with(|| {
                    classes.push(class);
                    (classes.len() - 1) as u16
                });
                *recent = Some((class, place));
                place
            }
        }
    }

    /// Whether the batch has to be [delivered](Self::deliver) before another exit is added.
    pub fn is_full(&self) -> bool {
        self.batch.len() >= CAPACITY || self.batch.classes.len() == Batch::MAX
    }

    /// Whether there are no exits.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Gives the batch to `take`, and begins another one.
    pub fn deliver(&mut self, lost: u64, take: impl FnOnce(&Batch)) {
        self.batch.lost = lost;
        take(&self.batch);
        let Batch { classes, class, exit_time, next_entry, entry, exit_fields, entry_fields, .. } =
            &mut self.batch;
        for column in exit_fields.iter_mut().chain(entry_fields) {
            column.values.clear();
            column.unknown.clear();
        }
        class.clear();
        for times in [exit_time, next_entry, entry] {
            times.clear();
        }
        // The next exits are mostly of the same classes; only if those are many have they to be found again.
        if classes.len() > Batch::MAX / 2 {
            classes.clear();
            self.places.clear();
            self.recent = [None; RECENT];
        }
    }
}

/// Adds an event's fields, those of the mask `wanted`, to their columns.
fn add<E: Event>(columns: &mut [Column], wanted: u32, event: &E, unknown: u32) {
    for (index, column) in columns.iter_mut().enumerate().filter(|(index, _)| wanted & 1 << index != 0) {
        let is_unknown = unknown & 1 << index != 0;
        if is_unknown || !column.unknown.is_empty() {
            column.unknown.resize(column.values.len(), false);
            column.unknown.push(is_unknown);
        }
        column.values.push(event.value(index).unwrap_or(0));
    }
}
