// SPDX-License-Identifier: MIT
//! What recordings of the same exits take: as they are, with MSRs of random values, and without registers. Prints JSON
//! for `cargo xtask bench report`.

use std::fs::File;
use std::io::BufReader;

use anyhow::{Context, Result, ensure};
use exitregs::analysis::batch::registers;
use exitregs::analysis::pairing::Record;
use exitregs::recording::{Encoded, Reader, Writer};
use exitregs_common::detail::Detail;
use exitregs_common::event::{Exit, KvmEntry, KvmExit};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("which recording?")?;
    let mut reader = Reader::new(BufReader::new(File::open(&path).context("cannot open it")?))?;
    let mut batches = Vec::new();
    while let Some(batch) = reader.read()? {
        batches.push(batch);
    }
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let as_recorded = size(&reader, &batches, "as recorded, a batch a second", true, |_| {})?;
    let full = |what, change: &mut dyn FnMut(&mut Exit)| size(&reader, &batches, what, false, change);
    let sizes = [
        as_recorded,
        full("in full batches, as of a busier host", &mut |_| {})?,
        full("likewise, with a random value of 64 bits in every MSR", &mut |exit| {
            random_msr(exit, random.next_u64());
        })?,
        full("likewise, without registers", &mut without_registers)?,
    ];
    println!("{}", serde_json::to_string(&sizes)?);
    Ok(())
}

/// The size of a recording in which each exit was changed, in the same batches or in full ones.
fn size<R: std::io::Read>(
    reader: &Reader<R>,
    batches: &[Encoded],
    what: &str,
    same_batches: bool,
    mut change: impl FnMut(&mut Exit),
) -> Result<serde_json::Value> {
    let mut writer = Writer::new(reader.metadata())?;
    let (mut exits, mut bytes) = (0, writer.begin()?.len() + Writer::end().len());
    for batch in batches {
        for record in batch.records()? {
            let Record::Exit(mut exit) = record else { continue };
            change(&mut exit);
            if writer.is_full() {
                bytes += writer.encode(|_| "guest".to_owned())?.len();
            }
            writer.push(Record::Exit(exit));
            exits += 1;
        }
        if same_batches {
            bytes += writer.encode(|_| "guest".to_owned())?.len();
        }
    }
    if !writer.is_empty() {
        bytes += writer.encode(|_| "guest".to_owned())?.len();
    }
    ensure!(exits > 0, "it has no exits");
    Ok(json!({ "what": what, "exits": exits, "bytes": bytes }))
}

/// Lets an instruction write, or have read, that value.
fn random_msr(exit: &mut Exit, value: u64) {
    let Detail::Msr { write, .. } = Detail::of(exit) else { return };
    let (low, high) = (value & u64::from(u32::MAX), value >> 32);
    if write {
        (exit.exit.rax, exit.exit.rdx) = (low, high);
    }
    (exit.entry.rax, exit.entry.rdx) = (low, high);
}

fn without_registers(exit: &mut Exit) {
    exit.exit_unknown |= registers::<KvmExit>();
    exit.entry_unknown |= registers::<KvmEntry>();
    (exit.operands, exit.results) = (0, 0);
}
