// SPDX-License-Identifier: MIT
//! Which entry ends an exit, by the rules of docs/pairing.md, from a stream of events by time.
//!
//! The BPF programs do the same in the kernel (tool/bpf/trace.bpf.c); this is for sources that only have records.

use exitregs_common::detail::DetailKind;
use exitregs_common::event::{
    Cause, Event, Exit, KvmEntry, KvmExit, KvmNestedPageFault, abi_field, field_bit,
};
use exitregs_common::flags::EventInfo;
use exitregs_common::hypercall::Abi;
use exitregs_common::isa::Isa;
use exitregs_common::vmx::ExitReason;
use std::collections::{HashMap, VecDeque};

/// L2s that can be away from one vCPU at once; `TRACE_OPEN - 1` of tool/bpf/trace.h.
const MAX_AWAY: usize = 4;
/// Of so many gaps the bounds are remembered; what spans the time before them is not paired.
const MAX_GAPS: usize = 1024;

/// An event of KVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// Nanoseconds.
    pub time: u64,
    /// The thread that it happened on: the vCPU's.
    pub thread: u32,
    /// The thread's process, 0 if unknown.
    pub tgid: u32,
    /// Bit n set: the event, a [`KvmExit`], [`KvmEntry`] or [`KvmNestedPageFault`], does not tell the field n of its table.
    pub unknown: u32,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// `kvm_exit`
    Exit(KvmExit),
    /// `kvm_entry`
    Entry(KvmEntry),
    /// `kvm_nested_page_fault`
    NestedPageFault(KvmNestedPageFault),
    /// `kvm_nested_vmenter`: L1 is about to run an L2.
    NestedEntry {
        /// GPA of its vmcb12 or vmcs12.
        l2: u64,
        /// The event that L1 injects, as EVENTINJ and VM-entry interruption information have it.
        event: EventInfo,
    },
    /// `kvm_inj_exception`: KVM injects an exception at the next entry.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error_code: Option<u32>,
    },
    /// `kvm_hypercall` or its likes: whose the hypercall is that exited, and what it has in registers.
    Hypercall(Abi, Operands),
    /// `kvm_msr`: KVM handles an MSR access.
    Msr {
        /// WRMSR; else RDMSR.
        write: bool,
        /// The MSR.
        index: u32,
        /// What is written, or was read.
        data: u64,
        /// It ends with #GP.
        exception: bool,
    },
    /// `kvm_cpuid`: KVM answers a query.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX; `None` from a kernel whose event does not have it.
        subleaf: Option<u32>,
        /// The answer: RAX, RBX, RCX, RDX.
        answer: [u64; 4],
    },
    /// `kvm_pio`: KVM handles a port access.
    Pio {
        /// OUT; else IN.
        write: bool,
        /// The port.
        port: u16,
        /// How often the instruction repeats.
        count: u32,
        /// What is written, or was read, the first time.
        value: u32,
    },
    /// `kvm_nested_vmexit`: the exit that was last is L2's.
    NestedExit {
        /// Its reason.
        exit_reason: u32,
    },
    /// `kvm_nested_vmexit_inject`: L0 gives L1 an exit of L2's. Reflected, if the reason is that of L2's exit; else L0
    /// forces L2 to be left for something of its own.
    NestedExitInject {
        /// What L1 is told.
        exit_reason: u32,
        /// EXITINFO1 or exit qualification that L1 is told.
        info1: Option<u64>,
    },
    /// `kvm_nested_intr_vmexit`: L0 forces L2 to be left for an interrupt of L1's.
    NestedInterruptExit,
    /// `kvm_nested_vmenter_failed`: the L2 of the [`NestedEntry`](Self::NestedEntry) before is not entered.
    NestedEntryFailed,
    /// Events between the occurrence's time and this one were lost, of whatever thread.
    Gap {
        /// `u64::MAX`: to the end.
        until: u64,
        /// How many; 0 if that is not known.
        lost: u64,
    },
}

/// The bits of RAX, RBX, RCX and RDX that an instruction uses, as another event than `kvm_exit` and `kvm_entry` tells
/// them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Operands {
    /// The registers.
    pub values: [u64; 4],
    /// Bit n set: `values[n]` is told.
    pub known: u8,
}

/// What comes out: exits with their entries, and what stands for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// An exit.
    Exit(Exit),
    /// A page fault of L2's that L0 gives to L1.
    NestedPageFault(NestedPageFault),
}

impl Record {
    /// When it happened, in nanoseconds.
    pub fn time(&self) -> u64 {
        match self {
            Self::Exit(exit) => exit.exit_time,
            Self::NestedPageFault(fault) => fault.time,
        }
    }

    /// The VM, by the VMM's pid; 0 if unknown.
    pub fn tgid(&self) -> u32 {
        match self {
            Self::Exit(exit) => exit.tgid,
            Self::NestedPageFault(fault) => fault.tgid,
        }
    }
}

/// A page fault of L2's that L0 gives to L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NestedPageFault {
    /// Nanoseconds.
    pub time: u64,
    /// The VM, by the VMM's pid.
    pub tgid: u32,
    /// GPA of vmcb12 or vmcs12; 0 if unknown.
    pub nested_state: u64,
    /// The event.
    pub event: KvmNestedPageFault,
    /// Bit n set: `KvmNestedPageFault::FIELDS[n]` is unknown to the source.
    pub unknown: u32,
}

impl NestedPageFault {
    /// The fault, with what L1 is told if that is what happened next on the vCPU. `None`: L1 is told of its full
    /// page-modification log instead.
    fn told(mut self, next: Option<&What>) -> Option<Self> {
        match next {
            Some(What::NestedExitInject { exit_reason, .. }) if *exit_reason == ExitReason::PML_FULL.0 => {
                None
            }
            Some(What::NestedExitInject { info1: Some(info1), .. }) => {
                self.event.guest_error_code = *info1;
                self.unknown &= !GUEST_ERROR_CODE;
                Some(self)
            }
            _ => Some(self),
        }
    }
}

/// What the events of a source do not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Bit n set: `KvmExit::FIELDS[n]`.
    pub exit: u32,
    /// Bit n set: `KvmEntry::FIELDS[n]`.
    pub entry: u32,
    /// Bit n set: `KvmNestedPageFault::FIELDS[n]`.
    pub nested_page_fault: u32,
}

impl Unknown {
    /// Of these the bits that are for `what`.
    pub fn of(&self, what: &What) -> u32 {
        match what {
            What::Exit(_) => self.exit,
            What::Entry(_) => self.entry,
            What::NestedPageFault(_) => self.nested_page_fault,
            _ => 0,
        }
    }
}

/// Pairs exits with entries.
#[derive(Debug, Default)]
pub struct Pairing {
    threads: Threads,
    gaps: Gaps,
    hypercall_abi_l2: Option<Abi>,
    /// Of exits that do not tell their level it is known: L2's are followed by `kvm_nested_vmexit`.
    nested_exits: bool,
    records: Vec<Record>,
}

/// Threads by pid.
#[derive(Debug)]
struct Threads {
    threads: Vec<Thread>,
    places: HashMap<u32, usize>,
    /// Pids and places of threads that were last asked for, by the pid's low bits.
    recent: [Option<(u32, usize)>; RECENT],
}

const RECENT: usize = 64;

impl Default for Threads {
    fn default() -> Self {
        Self { threads: Vec::new(), places: HashMap::new(), recent: [None; RECENT] }
    }
}

impl Threads {
    fn get(&mut self, pid: u32) -> &mut Thread {
        let recent = &mut self.recent[pid as usize % RECENT];
        let place = match *recent {
            Some((same, place)) if same == pid => place,
            _ => {
                let place = *self.places.entry(pid).or_insert_with(|| {
                    self.threads.push(Thread::default());
                    self.threads.len() - 1
                });
                *recent = Some((pid, place));
                place
            }
        };
        &mut self.threads[place]
    }
}

/// A thread, which nearly always runs the same vCPU.
#[derive(Debug, Default)]
struct Thread {
    vcpus: Vec<Vcpu>,
    /// The one that runs.
    current: usize,
}

#[derive(Debug, Default)]
struct Vcpu {
    /// Unknown until an event tells.
    id: Option<u32>,
    /// The exit of L1 that no entry has ended yet, and those of L2s.
    open: [Option<Exit>; 1 + MAX_AWAY],
    /// The exit that was last, until the next entry.
    last: Option<usize>,
    /// The L2 that L1 ran last, and when it began to.
    l2: Option<(u64, u64)>,
    injected: Option<Injected>,
    /// What the instruction that exited last gives.
    results: Operands,
    /// The events since the last exit say that L2 is to be entered.
    enters_l2: bool,
    /// A nested page fault of which it is not known yet what L1 is told.
    fault: Option<NestedPageFault>,
}

/// What is injected at the next entry, with the error code if that is known.
type Injected = (EventInfo, Option<u32>);

/// The place of L1's exit in [`Vcpu::open`].
const L1: usize = 0;

/// Times from which events were lost.
#[derive(Debug, Default)]
struct Gaps {
    gaps: VecDeque<(u64, u64)>,
    /// What began before is broken.
    forgotten: u64,
    /// Where the last of all gaps ends.
    end: u64,
}

impl Gaps {
    fn add(&mut self, from: u64, to: u64) {
        if self.gaps.len() == MAX_GAPS {
            self.forgotten = self.gaps.pop_front().map_or(0, |(_, to)| to.max(self.forgotten));
        }
        self.gaps.push_back((from, to));
        self.end = self.end.max(to);
    }

    /// Whether no event between the two times was lost.
    #[inline]
    fn none_in(&self, from: u64, to: u64) -> bool {
        from > self.end || from >= self.forgotten && self.gaps.iter().all(|gap| gap.1 < from || gap.0 > to)
    }
}

impl Pairing {
    /// Nothing yet. `hypercall_abi_l2` is the convention of L2's hypercalls, which only L1 knows.
    pub fn new(hypercall_abi_l2: Option<Abi>) -> Self {
        Self { hypercall_abi_l2, ..Self::default() }
    }

    /// Of exits that do not tell their level it is known if `told`: each of L2's is followed by a
    /// [`NestedExit`](What::NestedExit).
    pub fn nested_exits(mut self, told: bool) -> Self {
        self.nested_exits = told;
        self
    }

    /// Events between these times were lost. To be said before the first event after it is taken.
    pub fn gap(&mut self, from: u64, to: u64) {
        self.gaps.add(from, to);
    }

    /// Takes the next event; events come by time.
    pub fn take(&mut self, occurrence: &Occurrence) {
        let &Occurrence { time, thread, tgid, unknown, ref what } = occurrence;
        let id = match what {
            What::Exit(exit) => (unknown & EXIT_VCPU_ID == 0).then_some(exit.vcpu_id),
            What::Entry(entry) => (unknown & ENTRY_VCPU_ID == 0).then_some(entry.vcpu_id),
            What::NestedPageFault(fault) => Some(fault.vcpu_id),
            What::Gap { until, .. } => return self.gaps.add(time, *until),
            _ => None,
        };
        let vcpu = self.threads.get(thread).vcpu(id);
        let records = &mut self.records;
        if let Some(fault) = vcpu.fault.take() {
            let is_same = self.gaps.none_in(fault.time, time);
            records.extend(fault.told(is_same.then_some(what)).map(Record::NestedPageFault));
        }
        match what {
            What::Exit(exit) => {
                let is_nested = exit.is_nested != 0;
                let nested_state = if is_nested { vcpu.l2(time, &self.gaps).unwrap_or(0) } else { 0 };
                let id = vcpu.id;
                let open = vcpu.exit(is_nested, nested_state, records);
                (open.exit_time, open.nested_state, open.tgid) = (time, nested_state, tgid);
                (open.exit_unknown, open.exit) = (unknown, *exit);
                if let Some(id) = id {
                    open.exit.vcpu_id = id;
                    open.exit_unknown &= !EXIT_VCPU_ID;
                }
                if self.nested_exits {
                    // Until a kvm_nested_vmexit says otherwise.
                    open.exit_unknown &= !EXIT_IS_NESTED;
                }
                if exit.is_protected != 0 {
                    open.exit_unknown |= GUEST_RIP;
                }
                if is_nested {
                    open.hypercall_abi = self.hypercall_abi_l2.map_or(0, abi_field);
                }
            }
            What::Entry(entry) => {
                let (is_nested, unknown) = match unknown & ENTRY_IS_NESTED != 0 && self.nested_exits {
                    true => (vcpu.enters_l2, unknown & !ENTRY_IS_NESTED),
                    false => (entry.is_nested != 0, unknown),
                };
                vcpu.entry(time, entry, is_nested, unknown, &self.gaps, records);
            }
            What::NestedPageFault(event) => {
                let nested_state = vcpu.l2(time, &self.gaps).unwrap_or(0);
                let event = *event;
                let fault = NestedPageFault { time, tgid, nested_state, event, unknown };
                match unknown & GUEST_ERROR_CODE {
                    0 => records.push(Record::NestedPageFault(fault)),
                    _ => vcpu.fault = Some(fault),
                }
            }
            What::NestedEntry { l2, event } => {
                self.nested_exits = true;
                vcpu.l2 = Some((*l2, time));
                vcpu.injected = event.is_valid().then_some((*event, None));
                vcpu.enters_l2 = true;
                // L1 has run: what L2 does next is not the end of its last exit because it comes next.
                vcpu.last = vcpu.last.filter(|last| *last == L1);
            }
            What::NestedEntryFailed => vcpu.enters_l2 = false,
            What::NestedExitInject { exit_reason, .. } => {
                vcpu.enters_l2 = false;
                if let Some(place) = vcpu.last.filter(|place| *place != L1)
                    && let Some(exit) = &mut vcpu.open[place]
                {
                    exit.cause = Cause::of(exit.exit.exit_reason, *exit_reason) as u8;
                }
            }
            What::NestedExit { .. } => {
                self.nested_exits = true;
                vcpu.enters_l2 = true;
                vcpu.was_nested(self.hypercall_abi_l2, &self.gaps, records);
            }
            What::NestedInterruptExit => {}
            What::Exception { vector, error_code } => {
                let code = if error_code.is_some() { EventInfo::ERROR_CODE_VALID } else { 0 };
                let info = EventInfo::VALID | EventInfo::TYPE_EXCEPTION | code | u32::from(*vector);
                vcpu.injected = Some((EventInfo(info), Some(error_code.unwrap_or(0))));
            }
            What::Hypercall(abi, operands) => {
                if let Some(exit) = vcpu.last_of(DetailKind::Hypercall) {
                    if exit.exit.is_nested == 0 {
                        exit.hypercall_abi = abi_field(*abi);
                    }
                    learn(exit, operands);
                }
            }
            What::Msr { write, index, data, .. } => {
                let (low, high) = (*data & u64::from(u32::MAX), *data >> 32);
                if let Some(exit) = vcpu.last_of(DetailKind::Msr) {
                    let known = if *write { 0b1101 } else { 0b0100 };
                    learn(exit, &Operands { values: [low, 0, (*index).into(), high], known });
                    if !write {
                        vcpu.results = Operands { values: [low, 0, 0, high], known: 0b1001 };
                    }
                }
            }
            What::Cpuid { leaf, subleaf, answer } => {
                if let Some(exit) = vcpu.last_of(DetailKind::Cpuid) {
                    let known = if subleaf.is_some() { 0b0101 } else { 0b0001 };
                    let values = [(*leaf).into(), 0, subleaf.unwrap_or(0).into(), 0];
                    learn(exit, &Operands { values, known });
                    vcpu.results = Operands { values: *answer, known: 0b1111 };
                }
            }
            What::Pio { write, count, value, .. } => {
                // What is at a string's end, memory, is in no register.
                if let Some(exit) = vcpu.last_of(DetailKind::Io)
                    && *count == 1
                {
                    let value = Operands { values: [(*value).into(), 0, 0, 0], known: 0b0001 };
                    if *write {
                        learn(exit, &value);
                    } else {
                        vcpu.results = value;
                    }
                }
            }
            What::Gap { .. } => {}
        }
    }

    /// What has come out since the last call, by time.
    pub fn records(&mut self) -> Vec<Record> {
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(Record::time);
        records
    }

    /// Gives `take` what has come out since the last call, in the order in which it ended.
    #[inline]
    pub fn ended(&mut self, take: impl FnMut(&Record)) {
        self.records.iter().for_each(take);
        self.records.clear();
    }

    /// No events will come any more: the exits that no entry has ended come out as well.
    pub fn finish(&mut self) -> Vec<Record> {
        let vcpus = self.threads.threads.iter_mut().flat_map(|thread| &mut thread.vcpus);
        for vcpu in vcpus {
            self.records.extend(vcpu.fault.take().map(Record::NestedPageFault));
            self.records.extend(vcpu.open.iter_mut().filter_map(Option::take).map(Record::Exit));
        }
        self.records()
    }
}

impl Thread {
    /// The vCPU of an event that says which, or else the one that runs.
    fn vcpu(&mut self, id: Option<u32>) -> &mut Vcpu {
        if self.vcpus.is_empty() {
            self.vcpus.push(Vcpu { id, ..Vcpu::default() });
        }
        let current = &mut self.vcpus[self.current];
        current.id = current.id.or(id);
        if id.is_some() && current.id != id {
            let known = self.vcpus.iter().position(|vcpu| vcpu.id == id);
            self.current = known.unwrap_or_else(|| {
                self.vcpus.push(Vcpu { id, ..Vcpu::default() });
                self.vcpus.len() - 1
            });
        }
        &mut self.vcpus[self.current]
    }
}

impl Vcpu {
    /// The L2 that runs or was last to run, if that is known.
    fn l2(&self, now: u64, gaps: &Gaps) -> Option<u64> {
        self.l2.filter(|(_, since)| gaps.none_in(*since, now)).map(|(l2, _)| l2)
    }

    /// Begins an exit, of this L2 if it is one of L2's.
    #[inline]
    fn exit(&mut self, is_nested: bool, nested_state: u64, records: &mut Vec<Record>) -> &mut Exit {
        self.injected = None;
        self.results.known = 0;
        self.enters_l2 = false;
        let place = if is_nested { self.l2_place(nested_state) } else { L1 };
        self.open(place, records)
    }

    /// Begins an exit at a place, where it is to be filled: it is too large to be made first and moved then.
    #[inline]
    fn open(&mut self, place: usize, records: &mut Vec<Record>) -> &mut Exit {
        let open = &mut self.open[place];
        if let Some(never_ended) = open {
            records.push(Record::Exit(*never_ended));
        }
        self.last = Some(place);
        open.insert(Exit::default())
    }

    /// The last exit is L2's.
    fn was_nested(&mut self, abi: Option<Abi>, gaps: &Gaps, records: &mut Vec<Record>) {
        if self.last != Some(L1) {
            return;
        }
        let Some(mut exit) = self.open[L1].take() else { return };
        exit.exit.is_nested = 1;
        exit.exit_unknown &= !EXIT_IS_NESTED;
        exit.hypercall_abi = abi.map_or(0, abi_field);
        exit.nested_state = self.l2(exit.exit_time, gaps).unwrap_or(0);
        *self.open(self.l2_place(exit.nested_state), records) = exit;
    }

    /// The exit that was last, if no entry has come since and it is of this kind.
    fn last_of(&mut self, kind: DetailKind) -> Option<&mut Exit> {
        let exit = self.open[self.last?].as_mut()?;
        (DetailKind::of(Isa::from_field(exit.exit.isa)?, exit.exit.exit_reason) == kind).then_some(exit)
    }

    /// Where an L2's exit is or may be put: where no exit is, or that of the L2 that has been away for longest.
    fn l2_place(&self, l2: u64) -> usize {
        let places = L1 + 1..self.open.len();
        let of = |place: &usize| self.open[*place].as_ref();
        let same = places.clone().find(|place| of(place).is_some_and(|exit| exit.nested_state == l2));
        same.or_else(|| places.min_by_key(|place| of(place).map(|exit| exit.exit_time))).unwrap_or(L1 + 1)
    }

    /// An entry, to L2 if `nested`; of its fields these are unknown.
    fn entry(
        &mut self,
        time: u64,
        entry: &KvmEntry,
        nested: bool,
        unknown: u32,
        gaps: &Gaps,
        records: &mut Vec<Record>,
    ) {
        let injected = self.injected.take();
        let last = self.last.take();
        let ended = match last {
            // Nothing of L1 ran since: the L2 that is entered is the one that left.
            Some(place) if place == L1 || nested => Some(place),
            _ => None,
        };
        if let Some(exit) = last.and_then(|place| self.open[place].as_mut())
            && gaps.none_in(exit.exit_time, time)
        {
            exit.next_entry_time = time;
        }
        let returned =
            (nested && last.is_none_or(|place| place == L1)).then(|| self.l2(time, gaps)).flatten();
        let returned = returned.and_then(|l2| {
            (L1 + 1..self.open.len())
                .find(|place| self.open[*place].as_ref().is_some_and(|exit| exit.nested_state == l2))
        });
        for place in ended.into_iter().chain(returned) {
            let open = &mut self.open[place];
            let Some(exit) = open else { continue };
            if gaps.none_in(exit.exit_time, time) {
                let results = if last == Some(place) { self.results } else { Operands::default() };
                end(exit, time, entry, unknown, injected, &results);
                exit.entry.is_nested = nested.into();
            }
            records.push(Record::Exit(*exit));
            *open = None;
        }
    }
}

/// `exit` ends with `entry`.
fn end(
    exit: &mut Exit,
    time: u64,
    entry: &KvmEntry,
    unknown: u32,
    injected: Option<Injected>,
    results: &Operands,
) {
    exit.entry_time = time;
    if exit.next_entry_time == 0 {
        exit.next_entry_time = time;
    }
    exit.entry = *entry;
    exit.entry_unknown = unknown;
    if unknown & ENTRY_REGISTERS != 0 {
        let KvmEntry { rax, rbx, rcx, rdx, .. } = &mut exit.entry;
        exit.results = put(results, [rax, rbx, rcx, rdx]);
    }
    // Older kernels' kvm_entry does not say what is injected; the event that does tells of exceptions only.
    if unknown & INTR_INFO != 0
        && let Some((info, code)) = injected
    {
        exit.entry.intr_info = info.0;
        exit.entry.error_code = code.unwrap_or(0);
        exit.entry_unknown &= !INTR_INFO;
        if code.is_some() || !info.has_error_code() {
            exit.entry_unknown &= !ERROR_CODE;
        }
    }
    if entry.is_protected != 0 {
        exit.entry_unknown |= ENTRY_RIP;
    }
}

/// Another event tells of an exit's operands, of which its own may not.
fn learn(exit: &mut Exit, operands: &Operands) {
    if exit.exit_unknown & EXIT_REGISTERS != 0 {
        let KvmExit { rax, rbx, rcx, rdx, .. } = &mut exit.exit;
        exit.operands = put(operands, [rax, rbx, rcx, rdx]);
    }
}

/// Puts operands into registers; which, as in [`Operands::known`].
fn put(operands: &Operands, registers: [&mut u64; 4]) -> u8 {
    for (index, register) in registers.into_iter().enumerate() {
        if operands.known & 1 << index != 0 {
            *register = operands.values[index];
        }
    }
    operands.known
}

const EXIT_VCPU_ID: u32 = field_bit(KvmExit::FIELDS, "vcpu_id");
const EXIT_IS_NESTED: u32 = field_bit(KvmExit::FIELDS, "is_nested");
const EXIT_REGISTERS: u32 = field_bit(KvmExit::FIELDS, "rax");
const GUEST_RIP: u32 = field_bit(KvmExit::FIELDS, "guest_rip");
const ENTRY_VCPU_ID: u32 = field_bit(KvmEntry::FIELDS, "vcpu_id");
const ENTRY_IS_NESTED: u32 = field_bit(KvmEntry::FIELDS, "is_nested");
const ENTRY_REGISTERS: u32 = field_bit(KvmEntry::FIELDS, "rax");
const ENTRY_RIP: u32 = field_bit(KvmEntry::FIELDS, "rip");
const INTR_INFO: u32 = field_bit(KvmEntry::FIELDS, "intr_info");
const ERROR_CODE: u32 = field_bit(KvmEntry::FIELDS, "error_code");
const GUEST_ERROR_CODE: u32 = field_bit(KvmNestedPageFault::FIELDS, "guest_error_code");

#[cfg(test)]
mod tests;
