// SPDX-License-Identifier: MIT
//! Which entry ends an exit, by the rules of docs/pairing.md, from a stream of events by time.
//!
//! The BPF programs do the same in the kernel (tool/bpf/trace.bpf.c); this is for sources that only have records.

use exitregs_common::event::{Event, Exit, KvmEntry, KvmExit, KvmNestedPageFault, abi_field};
use exitregs_common::flags::EventInfo;
use exitregs_common::hypercall::Abi;
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
    /// `kvm_hypercall` or its likes: whose the hypercall is that exited.
    Hypercall(Abi),
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
}

/// What the source of a stream cannot know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unknown {
    /// Bit n set: `KvmExit::FIELDS[n]`.
    pub exit: u32,
    /// Bit n set: `KvmEntry::FIELDS[n]`.
    pub entry: u32,
}

/// Pairs exits with entries.
#[derive(Debug, Default)]
pub struct Pairing {
    threads: HashMap<u32, Thread>,
    gaps: Gaps,
    unknown: Unknown,
    hypercall_abi_l2: Option<Abi>,
    records: Vec<Record>,
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
}

impl Gaps {
    fn add(&mut self, from: u64, to: u64) {
        if self.gaps.len() == MAX_GAPS {
            self.forgotten = self.gaps.pop_front().map_or(0, |(_, to)| to.max(self.forgotten));
        }
        self.gaps.push_back((from, to));
    }

    /// Whether no event between the two times was lost.
    fn none_in(&self, from: u64, to: u64) -> bool {
        from >= self.forgotten && self.gaps.iter().all(|gap| gap.1 < from || gap.0 > to)
    }
}

impl Pairing {
    /// Nothing yet. `hypercall_abi_l2` is the convention of L2's hypercalls, which only L1 knows.
    pub fn new(unknown: Unknown, hypercall_abi_l2: Option<Abi>) -> Self {
        Self { unknown, hypercall_abi_l2, ..Self::default() }
    }

    /// Events between these times were lost. To be said before the first event after it is taken.
    pub fn gap(&mut self, from: u64, to: u64) {
        self.gaps.add(from, to);
    }

    /// Takes the next event; events come by time.
    pub fn take(&mut self, occurrence: &Occurrence) {
        let Occurrence { time, thread, tgid, what } = *occurrence;
        let id = match what {
            What::Exit(exit) => Some(exit.vcpu_id),
            What::Entry(entry) => Some(entry.vcpu_id),
            What::NestedPageFault(fault) => Some(fault.vcpu_id),
            What::NestedEntry { .. } | What::Exception { .. } | What::Hypercall(_) => None,
        };
        let vcpu = self.threads.entry(thread).or_default().vcpu(id);
        let records = &mut self.records;
        match what {
            What::Exit(exit) => {
                let mut exit = Exit { exit_time: time, tgid, exit, ..Exit::default() };
                exit.exit_unknown = self.unknown.exit;
                if exit.exit.is_protected != 0 {
                    exit.exit_unknown |= bit::<KvmExit>("guest_rip");
                }
                if exit.exit.is_nested != 0 {
                    exit.hypercall_abi = self.hypercall_abi_l2.map_or(0, abi_field);
                }
                vcpu.exit(exit, &self.gaps, records);
            }
            What::Entry(entry) => vcpu.entry(time, entry, self.unknown.entry, &self.gaps, records),
            What::NestedPageFault(event) => {
                let nested_state = vcpu.l2(time, &self.gaps).unwrap_or(0);
                records.push(Record::NestedPageFault(NestedPageFault { time, tgid, nested_state, event }));
            }
            What::NestedEntry { l2, event } => {
                vcpu.l2 = Some((l2, time));
                vcpu.injected = event.is_valid().then_some((event, None));
                // L1 has run: what L2 does next is not the end of its last exit because it comes next.
                vcpu.last = vcpu.last.filter(|last| *last == L1);
            }
            What::Exception { vector, error_code } => {
                let code = if error_code.is_some() { EventInfo::ERROR_CODE_VALID } else { 0 };
                let info = EventInfo::VALID | EventInfo::TYPE_EXCEPTION | code | u32::from(vector);
                vcpu.injected = Some((EventInfo(info), Some(error_code.unwrap_or(0))));
            }
            What::Hypercall(abi) => {
                if let (Some(L1), Some(exit)) = (vcpu.last, &mut vcpu.open[L1]) {
                    exit.hypercall_abi = abi_field(abi);
                }
            }
        }
    }

    /// What has come out since the last call, by time.
    pub fn records(&mut self) -> Vec<Record> {
        let mut records = std::mem::take(&mut self.records);
        records.sort_by_key(Record::time);
        records
    }

    /// No events will come any more: the exits that no entry has ended come out as well.
    pub fn finish(&mut self) -> Vec<Record> {
        let vcpus = self.threads.values_mut().flat_map(|thread| &mut thread.vcpus);
        for exit in vcpus.flat_map(|vcpu| &mut vcpu.open).filter_map(Option::take) {
            self.records.push(Record::Exit(exit));
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

    fn exit(&mut self, mut exit: Exit, gaps: &Gaps, records: &mut Vec<Record>) {
        let place = if exit.exit.is_nested == 0 {
            L1
        } else {
            exit.nested_state = self.l2(exit.exit_time, gaps).unwrap_or(0);
            self.l2_place(exit.nested_state)
        };
        let never_ended = self.open[place].replace(exit);
        records.extend(never_ended.map(Record::Exit));
        self.last = Some(place);
        self.injected = None;
    }

    /// Where an L2's exit is or may be put: where no exit is, or that of the L2 that has been away for longest.
    fn l2_place(&self, l2: u64) -> usize {
        let places = L1 + 1..self.open.len();
        let of = |place: &usize| self.open[*place].as_ref();
        let same = places.clone().find(|place| of(place).is_some_and(|exit| exit.nested_state == l2));
        same.or_else(|| places.min_by_key(|place| of(place).map(|exit| exit.exit_time))).unwrap_or(L1 + 1)
    }

    fn entry(&mut self, time: u64, entry: KvmEntry, unknown: u32, gaps: &Gaps, records: &mut Vec<Record>) {
        let injected = self.injected.take();
        let nested = entry.is_nested != 0;
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
            let Some(mut exit) = self.open[place].take() else { continue };
            if gaps.none_in(exit.exit_time, time) {
                end(&mut exit, time, entry, unknown, injected);
            }
            records.push(Record::Exit(exit));
        }
    }
}

/// `exit` ends with `entry`.
fn end(exit: &mut Exit, time: u64, entry: KvmEntry, unknown: u32, injected: Option<Injected>) {
    exit.entry_time = time;
    if exit.next_entry_time == 0 {
        exit.next_entry_time = time;
    }
    exit.entry = entry;
    exit.entry_unknown = unknown;
    let (intr_info, error_code) = (bit::<KvmEntry>("intr_info"), bit::<KvmEntry>("error_code"));
    // Older kernels' kvm_entry does not say what is injected; the event that does tells of exceptions only.
    if unknown & intr_info != 0
        && let Some((info, code)) = injected
    {
        exit.entry.intr_info = info.0;
        exit.entry.error_code = code.unwrap_or(0);
        exit.entry_unknown &= !intr_info;
        if code.is_some() || !info.has_error_code() {
            exit.entry_unknown &= !error_code;
        }
    }
    if entry.is_protected != 0 {
        exit.entry_unknown |= bit::<KvmEntry>("rip");
    }
}

fn bit<E: Event>(field: &str) -> u32 {
    E::index(field).map_or(0, |index| 1 << index)
}

#[cfg(test)]
mod tests;
