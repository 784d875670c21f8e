// SPDX-License-Identifier: MIT
//! Random filters over the fields of `kvm_exit`, with values that scripted guests' exits have.

use exitregs_common::event::{Event, Field, KvmExit};
use exitregs_common::svm::{EXIT_CODES, ExitCode};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The exit reasons that a filter asks for most often: those that scripts have most of.
const REASONS: [ExitCode; 7] = [
    ExitCode::MSR,
    ExitCode::CPUID,
    ExitCode::IOIO,
    ExitCode::VMMCALL,
    ExitCode::VMRUN,
    ExitCode::NPF,
    ExitCode::HLT,
];

/// The filter of this number.
pub fn random(seed: u64) -> String {
    generate(&expression(), seed)
}

/// The text of this number: a filter of which a character or two were replaced, taken out or put in.
pub fn damaged(seed: u64) -> String {
    // Everything that the language has a meaning for, and some that it has not.
    let junk = proptest::sample::select("()!&|=<>~\"-_.%#{} \t0189xabfr".chars().collect::<Vec<_>>());
    let damage = (any::<proptest::sample::Index>(), 0..3u8, junk);
    let damaged = (expression(), proptest::collection::vec(damage, 1..3)).prop_map(|(text, damages)| {
        let mut text: Vec<_> = text.chars().collect();
        for (at, what, junk) in damages {
            let at = at.index(text.len());
            match what {
                0 => text[at] = junk,
                1 => text.insert(at, junk),
                _ if text.len() > 1 => drop(text.remove(at)),
                _ => {}
            }
        }
        text.into_iter().collect()
    });
    generate(&damaged, seed)
}

fn generate<T>(strategy: &impl Strategy<Value = T>, seed: u64) -> T {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    strategy.new_tree(&mut runner).expect("the strategy rejects nothing").current()
}

fn expression() -> impl Strategy<Value = String> {
    comparison().prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("{left} && {right}")),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("{left} || {right}")),
            inner.clone().prop_map(|inner| format!("({inner})")),
            inner.prop_map(|inner| format!("!({inner})")),
        ]
    })
}

fn comparison() -> impl Strategy<Value = String> {
    // More often those that divide exits in two.
    const OFTEN: [&str; 6] = ["exit_reason", "is_nested", "vcpu_id", "info1", "guest_rip", "rbx"];
    // Requests come in at any time: two traces of the same exit may see different ones.
    let any = KvmExit::FIELDS.iter().filter(|field| field.name != "requests");
    let often = KvmExit::FIELDS.iter().filter(|field| OFTEN.contains(&field.name)).cycle().take(12);
    let fields: Vec<_> = any.chain(often).collect();
    proptest::sample::select(fields).prop_flat_map(|field| {
        let operators = proptest::sample::select(&["==", "!=", "<", "<=", ">", ">=", "&"][..]);
        (operators, operand(field))
            .prop_map(|(operator, operand)| format!("{} {operator} {operand}", field.name))
    })
}

/// A value near those that the field has, and now and then any.
fn operand(field: &'static Field) -> BoxedStrategy<String> {
    let likely = match field.name {
        "exit_reason" => {
            let common = proptest::sample::select(&REASONS[..]).prop_map(|code| u64::from(code.0));
            let any =
                (0..EXIT_CODES.entries().len()).prop_map(|at| u64::from(EXIT_CODES.entries()[at].number));
            prop_oneof![3 => common, 1 => any].boxed()
        }
        // Where the guests' code lies.
        "guest_rip" => (0x100_0000u64..0x140_0000).boxed(),
        "isa" => (1u64..=2).boxed(),
        "vcpu_id" | "is_nested" => (0u64..=1).boxed(),
        "is_protected" => (0u64..=2).boxed(),
        // An MSR access's direction, and the bits of port accesses.
        "info1" => prop_oneof![0u64..=1, (0u32..32).prop_map(|bit| 1 << bit)].boxed(),
        "rcx" => prop_oneof![Just(0x200u64), Just(0x1b), pattern(0xc0)].boxed(),
        "rax" => pattern(0xa0).boxed(),
        "rbx" => pattern(0xb0).boxed(),
        "rdx" => pattern(0xd0).boxed(),
        _ => (0u32..64).prop_map(|bit| 1 << bit).boxed(),
    };
    let number = prop_oneof![8 => likely, 1 => any::<u64>(), 1 => 0u64..4];
    (number, 0..3u8)
        .prop_map(|(number, base)| match base {
            0 => format!("{number}"),
            1 => format!("{number:#x}"),
            _ => format!("0{number:o}"),
        })
        .boxed()
}

/// The guests' registers, unless something else is asked for, have a pattern that begins with the register's number and
/// the vCPU: `exitregs_lab::guest::site::pattern`.
fn pattern(register: u64) -> impl Strategy<Value = u64> {
    (0u64..2, 0u64..0x40).prop_map(move |(vcpu, step)| (register << 24 | vcpu << 16 | step) << 32)
}

#[cfg(test)]
mod tests {
    use super::random;
    use exitregs::filter::Filter;
    use exitregs_common::event::KvmExit;
    use exitregs_common::isa::Isa;

    #[test]
    fn each_is_a_filter_that_fits() {
        for seed in 0..1_000 {
            let text = random(seed);
            let filter = Filter::<KvmExit>::parse(&text, Isa::Svm).unwrap_or_else(|error| panic!("{error}"));
            filter.program().unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn a_number_is_a_filter() {
        assert_eq!(random(7), random(7));
        assert_ne!(random(7), random(8));
    }
}
