// SPDX-License-Identifier: MIT
//! The filter language is the kernel's: random filters, set as an event's filter, select the same random exits in the kernel
//! as in user space; and what the tool refuses the kernel refuses, and the other way round.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use exitregs::filter::Filter;
use exitregs_common::event::{Event, KvmExit};
use exitregs_common::isa::Isa;
use exitregs_lab::counts;
use exitregs_tests::expression;
use exitregs_tests::guest::Guest;
use exitregs_tests::scenario::{Process, Scenario};
use exitregs_tests::suite::{self, Boot, Suite};

/// Filters at once, each in a tracefs instance of its own.
const AT_ONCE: u64 = 50;
/// Where the instances are; beside them one without a filter.
const INSTANCE: &str = "/sys/kernel/tracing/instances/filter";

fn main() -> ExitCode {
    suite::main(describe)
}

fn describe(suite: &mut Suite) -> Result<()> {
    let kernel = "v6.12+patched";
    let boot = suite.boot(kernel, suite::host(kernel.parse()?)?.smp(2));
    for batch in 0..counts().pick(500, 10_000) / AT_ONCE {
        select_the_same(boot, batch);
    }
    for batch in 0..counts().pick(1, 20) {
        refuse_the_same(boot, batch);
    }
    Ok(())
}

/// A shell's here-document with these lines.
fn lines(texts: &[String]) -> String {
    format!("<<'END'\n{}\nEND\n", texts.join("\n"))
}

/// The same exits by filters in the kernel and in user space.
fn select_the_same(boot: &mut Boot, batch: u64) {
    let filters: Vec<_> =
        (batch * AT_ONCE..(batch + 1) * AT_ONCE).map(|seed| expression::random(20_000 + seed)).collect();
    let guest = Guest::random("guest", 21_000 + batch, 40).vcpus(2).without_truth();
    // The number that belongs to the whole is 0.
    let each = format!("for i in $(seq 0 {AT_ONCE}); do");
    let set_up = format!(
        "set -e; {each} mkdir {INSTANCE}$i; cd {INSTANCE}$i; echo 512 > buffer_size_kb; echo 1 > options/fields; done\n\
         i=0; while read -r filter; do i=$((i+1)); echo \"$filter\" > {INSTANCE}$i/events/kvm/kvm_exit/filter; done {}\
         {each} echo 1 > {INSTANCE}$i/events/kvm/kvm_exit/enable; done",
        lines(&filters)
    );
    let take_down = format!(
        "set -e; {each} echo 0 > {INSTANCE}$i/tracing_on; cat {INSTANCE}$i/trace > $i.trace; rmdir {INSTANCE}$i; done"
    );
    let scenario = Scenario::new(format!("filters select the same, {batch}"))
        .run(Process::shell("set-up", set_up))
        .run(guest.process())
        .run(Process::shell("take-down", take_down));
    boot.test(scenario, move |played| {
        played.succeeded(&["set-up", "guest", "take-down"])?;
        let exits = |number: usize| exits(&played.read(&format!("{number}.trace"))?);
        let all = exits(0)?;
        let count: usize = all.values().map(Vec::len).sum();
        ensure!(count >= 100 && all.len() == 2, "only {count} exits of {} vCPUs", all.len());
        let mut telling = 0;
        for (number, text) in filters.iter().enumerate() {
            let filter = Filter::<KvmExit>::parse(text, Isa::Svm)?;
            let mut expected = all.clone();
            expected.retain(|_, exits| {
                exits.retain(|exit| filter.selects(exit));
                !exits.is_empty()
            });
            let found = exits(number + 1)?;
            ensure!(found == expected, "{text}: found {found:x?}\nexpected {expected:x?}");
            telling += usize::from(!expected.is_empty() && expected != all);
        }
        ensure!(telling * 4 > filters.len(), "only {telling} select some and not all");
        Ok(())
    });
}

/// The exits of a `trace` file that shows fields, by vCPU.
fn exits(text: &str) -> Result<BTreeMap<u32, Vec<KvmExit>>> {
    let mut exits: BTreeMap<u32, Vec<KvmExit>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        ensure!(!line.contains("LOST"), "events were lost");
        let (_, fields) = line.split_once(": kvm_exit:").with_context(|| format!("not an exit: {line}"))?;
        let value = |name: &str| {
            let (_, value) = fields.split_once(&format!(" {name}="))?;
            // `0x7c (124)`; of one byte `(1)`, after the character, if it is one.
            match value.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits.split(' ').next()?, 16).ok(),
                None => value.split_once('(')?.1.split_once(')')?.0.parse().ok(),
            }
        };
        let missing = |name: &str| format!("no {name} in {line}");
        let known = KvmExit::FIELDS.iter().map(|field| match value(field.name) {
            None if field.optional => Ok(0),
            value => value.with_context(|| missing(field.name)),
        });
        let values = known.collect::<Result<Vec<_>>>()?;
        let exit = KvmExit::from_values(|index| values[index]);
        exits.entry(exit.vcpu_id).or_default().push(exit);
    }
    Ok(exits)
}

/// Damaged filters: what the tool takes the kernel takes, and nothing else.
fn refuse_the_same(boot: &mut Boot, batch: u64) {
    let texts: Vec<_> = (0..500).map(|seed| expression::damaged(30_000 + 500 * batch + seed)).collect();
    let instance = format!("{INSTANCE}s");
    let judge = format!(
        "mkdir {instance}; while IFS= read -r filter; do\n\
         echo \"$filter\" 2> /dev/null > {instance}/events/kvm/kvm_exit/filter && echo taken || echo refused\n\
         done 2> /dev/null {}rmdir {instance}",
        lines(&texts)
    );
    let scenario = Scenario::new(format!("bad filters, {batch}")).run(Process::shell("kernel", judge));
    boot.test(scenario, move |played| {
        played.succeeded(&["kernel"])?;
        let said = played.stdout("kernel")?;
        ensure!(said.lines().count() == texts.len(), "{} answers", said.lines().count());
        let mut taken = 0;
        let mut wrong = Vec::new();
        for (text, said) in texts.iter().zip(said.lines()) {
            let ours = Filter::<KvmExit>::parse(text, Isa::Svm);
            taken += usize::from(ours.is_ok());
            match ours {
                Ok(_) if said != "taken" => wrong.push(format!("the kernel refuses {text}")),
                Err(error) if said != "refused" => wrong.push(format!("the kernel takes this: {error}")),
                _ => {}
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ensure!((50..450).contains(&taken), "{taken} of {} are filters", texts.len());
        Ok(())
    });
}
