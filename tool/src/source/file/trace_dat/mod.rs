// SPDX-License-Identifier: MIT
//! `trace.dat`: what trace-cmd records, in versions 6 and 7 of the format.

mod compression;
mod cpu;
mod header;

pub use header::{MAGIC, TracingData};

use super::decode::Decoders;
use super::input::Input;
use super::merge::Merge;
use super::{Damage, Description, Occurrences, Reader};
use crate::analysis::pairing::What;
use crate::source::page::PageFormat;
use anyhow::{Context, Result, ensure};
use cpu::{Common, Cpu};
use header::{Header, Instance};
use std::sync::Arc;

/// Pages of the kernel's are not larger.
const LARGEST_PAGE: u32 = 1 << 20;

/// A file.
#[derive(Debug)]
pub struct TraceDat {
    description: Description,
    decoders: Arc<Decoders>,
    merge: Merge<Cpu>,
    /// Of the header; told first.
    damage: Vec<Damage>,
    total: u64,
}

impl TraceDat {
    /// Reads the header.
    ///
    /// # Errors
    /// It makes no sense, or the file has none of the events that are read.
    pub fn new(input: Input) -> Result<Self> {
        let header = Header::read(&input)?;
        let format =
            PageFormat::parse(&header.tracing.header_page).context("cannot understand its header_page")?;
        ensure!(
            (16..=LARGEST_PAGE).contains(&header.page_size),
            "pages of {} bytes make no sense",
            header.page_size
        );
        let mut description = Description {
            format: format!("trace.dat version {}", header.version),
            kernel: header.kernel,
            clock: header.clock,
            commands: header.commands,
            ..Description::default()
        };
        let formats = header.tracing.formats.iter().map(|(system, text)| (system.as_str(), text.as_str()));
        let decoders = Decoders::new(formats, &mut description);
        ensure!(!decoders.is_empty(), "it has no events of KVM's: record them with trace-cmd record -e kvm");
        let common = Arc::new(Common {
            input,
            compression: header.compression,
            format,
            page_size: header.page_size as usize,
            scale: header.scale,
            decoders: Arc::new(decoders),
        });
        let cpus = |instance: &Instance| -> Vec<Cpu> {
            let cpus = instance.cpus.iter().filter(|cpu| cpu.size > 0);
            cpus.map(|data| Cpu::new(Arc::clone(&common), *data)).collect()
        };
        // The same exit may be in several instances, but is to be counted once.
        let mut read = &header.instances[..];
        if let [_, _, ..] = read {
            let has_exits = |instance: &Instance| {
                cpus(instance).into_iter().any(|cpu| {
                    let mut first = Occurrences::default();
                    first.decode_by(&common.decoders);
                    let mut merge = Merge::new(std::iter::once(cpu));
                    while merge.read(&mut first).is_err() {}
                    first.iter().any(|occurrence| matches!(occurrence.what, What::Exit(_)))
                })
            };
            if let Some(first) = read.iter().position(has_exits) {
                read = &read[first..=first];
                if !read[0].name.is_empty() {
                    description.format += &format!(", of its instance {}", read[0].name);
                }
            }
        }
        let sizes = read.iter().flat_map(|instance| &instance.cpus).map(|cpu| cpu.size);
        let total = sizes.fold(0, u64::saturating_add);
        let merge = Merge::new(read.iter().flat_map(cpus));
        Ok(Self { description, decoders: Arc::clone(&common.decoders), merge, damage: header.damage, total })
    }
}

impl Reader for TraceDat {
    fn description(&self) -> &Description {
        &self.description
    }

    fn read(&mut self, batch: &mut Occurrences) -> Result<bool, Damage> {
        batch.clear();
        if let Some(damage) = self.damage.pop() {
            return Err(damage);
        }
        batch.decode_by(&self.decoders);
        let more = self.merge.read(batch);
        self.description.saw(batch);
        more
    }

    fn progress(&self) -> (u64, u64) {
        (self.merge.sources().map(Cpu::done).fold(0, u64::saturating_add), self.total)
    }
}
