// SPDX-License-Identifier: MIT
//! Exits counted and timed in the kernel.

use super::{Access, Target, explain, set_constants};
use crate::analysis::stat::{Key, Table, Times};
use crate::host::Host;
use crate::source::{self, Counters, Selection};
use anyhow::{Context, Result};
use exitregs_common::detail::Detail;
use exitregs_common::event::abi_from_field;
use exitregs_common::isa::{Isa, Level};
use libbpf_rs::Link;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use std::mem::MaybeUninit;

#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/stat.skel.rs"));
}
use skeleton::{StatSkel, StatSkelBuilder, types};

/// A running count. Dropping it removes the programs from the kernel.
pub struct Stat {
    links: Vec<Link>,
    skeleton: StatSkel<'static>,
    isa: Isa,
    access: Access,
    per_vcpu: bool,
}

impl Stat {
    /// Starts to count, by vCPU if `per_vcpu`, else by VM.
    ///
    /// # Errors
    /// The host cannot run the programs, or the selection cannot be evaluated in the kernel.
    pub fn start(host: &Host, selection: &Selection, per_vcpu: bool) -> Result<Self> {
        let target = Target::new(host)?;
        let mut builder = StatSkelBuilder::default();
        target.configure(&mut builder.obj_builder)?;
        // Of the object only its place is leaked: a pointer's worth, once a process.
        let place = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder.open(place).map_err(|error| explain(error, "cannot open the BPF programs"))?;

        let constants = open.maps.rodata_data.as_deref_mut().context("the BPF programs have no constants")?;
        set_constants!(constants, skeleton::types, &target, selection);

        let progs = &mut open.progs;
        target.access.choose(
            [&mut progs.exit_typed, &mut progs.entry_typed],
            [&mut progs.exit_untyped, &mut progs.entry_untyped],
        );

        let skeleton = open.load().map_err(|error| explain(error, "cannot load the BPF programs"))?;
        let progs = &skeleton.progs;
        let links = target
            .access
            .attach([&progs.exit_typed, &progs.entry_typed], [&progs.exit_untyped, &progs.entry_untyped])?;
        Ok(Self { links, skeleton, isa: target.isa, access: target.access, per_vcpu })
    }

    fn vcpus(&self) -> impl Iterator<Item = types::stat_vcpu> {
        used(self.tables().into_iter().flat_map(|tables| &tables.vcpus), |vcpu| vcpu.owner)
    }

    fn tables(&self) -> Option<&types::bss> {
        self.skeleton.maps.bss_data.as_deref()
    }

    fn counters(&self) -> Counters {
        self.tables().map_or_else(Counters::default, |bss| Counters {
            uncounted: bss.counters.uncounted,
            undecided: bss.counters.undecided,
            ..Counters::default()
        })
    }

    fn key(&self, key: &types::stat_key) -> Key {
        let abi = abi_from_field(key.hypercall_abi);
        Key {
            vm: key.tgid,
            vcpu: self.per_vcpu.then_some(key.vcpu_id),
            level: Level::from_is_nested(key.is_nested),
            isa: self.isa,
            exit_reason: key.exit_reason,
            detail: Detail::from_key(self.isa, key.exit_reason, abi, key.detail),
        }
    }
}

impl source::Stat for Stat {
    fn how(&self) -> String {
        self.access.to_string()
    }

    fn read(&mut self) -> Result<Table> {
        let mut table = Table::default();
        for value in used(self.tables().into_iter().flat_map(|tables| &tables.values), |value| value.owner) {
            // A place that was taken this moment may not have its key yet.
            if value.count + value.unended > 0 {
                table.entry(self.key(&value.key)).or_default().add(&Times {
                    count: value.count,
                    unended: value.unended,
                    total: value.total,
                    min: value.min,
                    max: value.max,
                    buckets: value.buckets,
                });
            }
        }
        Ok(table)
    }

    fn finish(&mut self) -> Result<(Table, Counters)> {
        self.links.clear();
        let mut table = self.read()?;
        for vcpu in self.vcpus().filter(|vcpu| vcpu.exit_time != 0) {
            table.entry(self.key(&vcpu.key)).or_default().unended += 1;
        }
        Ok((table, self.counters()))
    }

    fn commands(&self) -> Vec<(u32, String)> {
        self.vcpus().map(|vcpu| (vcpu.key.tgid, text(&vcpu.command))).collect()
    }
}

/// Copies of the entries of a table that have an owner.
fn used<'a, T: Copy + 'a>(
    table: impl Iterator<Item = &'a T>,
    owner: impl Fn(&T) -> u64,
) -> impl Iterator<Item = T> {
    // SAFETY: the reference is valid. The programs may write meanwhile, so the read is volatile; the entries are
    // made of integers, of which any bytes are valid ones.
    table
        .map(|entry| unsafe { std::ptr::from_ref(entry).read_volatile() })
        .filter(move |entry| owner(entry) != 0)
}

/// A C string that may fill its array.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

const _: () = assert!(size_of::<types::stat_value>() == 72 + 8 * crate::analysis::stat::BUCKETS);
