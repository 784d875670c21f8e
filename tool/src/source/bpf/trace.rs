// SPDX-License-Identifier: MIT
//! Exits one by one, each with the entry that ended it.

use super::{Access, Target, explain, record, set_constants};
use crate::analysis::pairing::Record;
use crate::host::Host;
use crate::source::{self, Counters, Selection};
use anyhow::{Context, Result};
use exitregs_common::event::Exit;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, RingBuffer, RingBufferBuilder};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::rc::Rc;

#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/trace.skel.rs"));
}
use skeleton::{TraceSkel, TraceSkelBuilder, types};

const _: () = assert!(size_of::<types::exit_record>() == size_of::<Exit>());

/// A running trace. Dropping it removes the programs from the kernel.
pub struct Trace {
    links: Vec<Link>,
    ring: RingBuffer<'static>,
    received: Rc<RefCell<Vec<Exit>>>,
    skeleton: TraceSkel<'static>,
    access: Access,
}

impl Trace {
    /// Starts to trace into a ring buffer of `buffer_size` bytes, a power of two of at least a page.
    ///
    /// # Errors
    /// The host cannot run the programs, or the selection cannot be evaluated in the kernel.
    pub fn start(host: &Host, selection: &Selection, buffer_size: u32) -> Result<Self> {
        let target = Target::new(host)?;
        let mut builder = TraceSkelBuilder::default();
        target.configure(&mut builder.obj_builder)?;
        // Of the object only its place is leaked: a pointer's worth, once a process.
        let place = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder.open(place).map_err(|error| explain(error, "cannot open the BPF programs"))?;

        let constants = open.maps.rodata_data.as_deref_mut().context("the BPF programs have no constants")?;
        set_constants!(constants, skeleton::types, &target, selection);
        open.maps.records.set_max_entries(buffer_size)?;

        let progs = &mut open.progs;
        target.access.choose(
            [&mut progs.exit_typed, &mut progs.entry_typed],
            [&mut progs.exit_untyped, &mut progs.entry_untyped],
        );

        let skeleton = open.load().map_err(|error| explain(error, "cannot load the BPF programs"))?;
        let received = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&received);
        let mut rings = RingBufferBuilder::new();
        rings.add(&skeleton.maps.records, move |bytes| {
            // SAFETY: Exit is made of integers.
            into.borrow_mut().extend(unsafe { record::<Exit>(bytes) });
            0
        })?;
        let ring = rings.build()?;

        let progs = &skeleton.progs;
        let links = target
            .access
            .attach([&progs.exit_typed, &progs.entry_typed], [&progs.exit_untyped, &progs.entry_untyped])?;
        Ok(Self { links, ring, received, skeleton, access: target.access })
    }

    fn counters(&self) -> Counters {
        self.skeleton.maps.bss_data.as_ref().map_or_else(Counters::default, |bss| Counters {
            lost: bss.counters.lost,
            undecided: bss.counters.undecided,
            ..Counters::default()
        })
    }
}

impl source::Trace for Trace {
    fn how(&self) -> String {
        self.access.to_string()
    }

    fn read(&mut self) -> Result<Vec<Record>> {
        self.ring.consume().context("cannot read the ring buffer")?;
        let mut exits = std::mem::take(&mut *self.received.borrow_mut());
        exits.sort_by_key(|exit| exit.exit_time);
        Ok(exits.into_iter().map(Record::Exit).collect())
    }

    fn lost(&self) -> Result<u64> {
        Ok(self.counters().lost)
    }

    fn finish(&mut self) -> Result<(Vec<Record>, Counters)> {
        self.links.clear();
        let mut records = self.read()?;
        let vcpus = self.skeleton.maps.bss_data.iter().flat_map(|bss| &bss.vcpus);
        for open in vcpus.flat_map(|vcpu| &vcpu.open).filter(|open| open.exit_time != 0) {
            // SAFETY: exit_record and Exit have the same members, all integers, and the same size; the programs,
            // which wrote it, are detached.
            let mut exit: Exit = unsafe { std::mem::transmute_copy(open) };
            exit.entry_time = 0;
            records.push(Record::Exit(exit));
        }
        records.sort_by_key(Record::time);
        Ok((records, self.counters()))
    }
}
