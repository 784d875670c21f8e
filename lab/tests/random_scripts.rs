// SPDX-License-Identifier: MIT
//! Scripts made from numbers: each is possible, and its code is what the script says.

use std::collections::HashSet;

use exitregs_common::isa::Isa;
use exitregs_lab::guest::assemble::{Code, HOLE_CODE, Options, assemble};
use exitregs_lab::guest::layout::Layout;
use exitregs_lab::guest::log::{Reader, Record};
use exitregs_lab::guest::site::{Entering, Instruction, Next, Site};
use exitregs_lab::script::{BUILTIN, Op, Script, builtins, random};
use exitregs_lab::truth::{Difference, Exits, Handled, InjectedBy, Line, Outcome, Seen, compare};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use proptest::prelude::*;

const VCPU: u32 = 3;
const ISAS: [Isa; 2] = [Isa::Svm, Isa::Vmx];

fn layout(script: &Script) -> Layout {
    Layout::new(VCPU + 1, script.guests.len(), 1 << 20)
}

fn code(script: &Script, layout: &Layout, isa: Isa) -> Code {
    let options = Options {
        script,
        isa,
        vcpu: VCPU,
        layout: &layout.vcpus[VCPU as usize],
        cr: [0x8001_0033, 0, 0, 0, 0x620, 0, 0, 0, 0],
        repeat: 5,
        die_midway: false,
    };
    assemble(options, layout.code).unwrap()
}

/// The instruction at an address, as a disassembler that knows nothing of the script reads it.
fn disassemble(code: &Code, address: u64) -> (String, usize) {
    let bytes = &code.bytes[(address - code.base) as usize..];
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let mut text = String::new();
    IntelFormatter::new().format(&instruction, &mut text);
    (text, instruction.len())
}

/// How the disassembler's text begins, for a mnemonic of the truth.
fn begins_with(mnemonic: &str) -> &str {
    match mnemonic {
        "load" | "store" => "mov ",
        "fetch" => "jmp rsi",
        "mov from cr0" => "mov rax,cr0",
        "mov from cr4" => "mov rax,cr4",
        "mov from cr8" => "mov rax,cr8",
        "mov to cr0" => "mov cr0,rax",
        "mov to cr4" => "mov cr4,rax",
        "mov to cr8" => "mov cr8,rax",
        same => same,
    }
}

fn check_code(script: &Script, isa: Isa) {
    let layout = layout(script);
    let code = code(script, &layout, isa);
    let end = code.base + code.bytes.len() as u64;
    let mut places = HashSet::new();
    for site in &code.sites {
        assert!(places.insert(site.rip), "two instructions at {:#x}", site.rip);
        let fetch = site.mnemonic() == "fetch";
        // A fetch's exit is at its target; the jump is two bytes before where L2 goes on.
        let at = if fetch { site.resume - HOLE_CODE.len() as u64 } else { site.rip };
        assert!((code.base..end).contains(&at) && (code.base..=end).contains(&site.resume), "{site:?}");
        let (text, length) = disassemble(&code, at);
        assert!(text.starts_with(begins_with(&site.mnemonic())), "{text} for {site:?}");
        assert_eq!(at + length as u64, site.resume, "{text} for {site:?}");
        assert_eq!(usize::from(site.length), length, "{text} for {site:?}");
        let of_its_own = matches!(site.instruction, Instruction::Enter { .. } | Instruction::Op(Op::Vmx(_)));
        assert!(site.before.is_some() || of_its_own, "{site:?}");
        assert_eq!(site.handled.is_some(), site.reason.is_some(), "{site:?}");
        let reflected = matches!(site.handled, Some(Handled::Reflected | Handled::Forced));
        assert!(!reflected || site.guest.is_some(), "{site:?}");
    }
    for (_, handler) in code.l1_handlers.iter().chain(&code.l2_handlers) {
        assert!((code.base..end).contains(handler));
    }
    let vectors: HashSet<u8> = code.l1_handlers.iter().map(|(vector, _)| *vector).collect();
    assert!((0..32).chain([0x40]).all(|vector| vectors.contains(&vector)));
}

/// A record such as the guest would make at this site in this turn.
fn record(n: usize, site: &Site, turn: u64) -> Record {
    let before = site.before.map_or([turn; 4], |values| values.map(|value| value.at(turn)));
    Record {
        site: n as u64,
        state: if site.next == Next::Leaves { Record::OPEN } else { Record::CLOSED },
        turn,
        rip: site.rip,
        resume: site.resume,
        before,
        after: before.map(|value| !value),
        fault: if site.next == Next::L1Injects { 1 << Record::FAULTED_BIT | 13 } else { 0 },
        exit_code: 0x72,
    }
}

/// A line for each site, as a reader makes it of a record, after a VM entry if it is L2's.
fn lines(script: &Script, isa: Isa) -> Vec<Line> {
    let layout = layout(script);
    let code = code(script, &layout, isa);
    let by = match isa {
        Isa::Svm => Entering::Vmrun,
        Isa::Vmx => Entering::Vmresume,
    };
    let enters = |guest| {
        let runs = Instruction::Enter { guest, by };
        let n = code.sites.iter().position(|site| site.instruction == runs).expect("each guest is run");
        record(n, &code.sites[n], 0)
    };
    let lines = code.sites.iter().enumerate().map(|(n, site)| {
        let mut reader = Reader::new(VCPU, code.sites.clone(), &layout.vcpus[VCPU as usize]);
        if let Some(guest) = site.guest {
            reader.record(&enters(guest), false).unwrap();
            reader.next_line().unwrap();
        }
        reader.record(&record(n, site, 7), false).unwrap();
        let mut line = reader.next_line().or_else(|| reader.finish().next()).unwrap();
        line.seq = n as u64;
        line
    });
    lines.collect()
}

fn check_truth(script: &Script, isa: Isa) {
    let lines = lines(script, isa);
    for (n, line) in lines.iter().enumerate() {
        assert_eq!((line.step as usize, line.vcpu, line.turn), (n, VCPU, 7));
        assert_eq!(line.level == 2, line.l2.is_some() && line.vmcb12.is_some(), "{line:?}");
        assert_eq!(
            line.after.is_none(),
            matches!(line.outcome, Outcome::Left | Outcome::Shutdown),
            "{line:?}"
        );
        assert_eq!(
            line.injected_by == Some(InjectedBy::L1),
            line.outcome == Outcome::GeneralProtection,
            "{line:?}"
        );
        let text = serde_json::to_string(line).unwrap();
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), *line);
    }
    // A tracer that sees everything agrees; one that lost any exit does not.
    let seen: Vec<Seen> = lines
        .iter()
        .filter(|line| line.exits != Exits::Never)
        .map(|line| Seen {
            reason: line.exit_reason.clone().unwrap_or_default(),
            rip: line.rip,
            level: Some(line.level),
            registers: Some(line.before),
        })
        .collect();
    assert_eq!(compare(&lines, &seen), []);
    let exits: Vec<&Line> = lines.iter().filter(|line| line.exits != Exits::Never).collect();
    for lost in (0..exits.len()).filter(|&n| exits[n].exits != Exits::HostDecides) {
        let mut less = seen.clone();
        less.remove(lost);
        assert_eq!(compare(&lines, &less), [Difference::Missing(Box::new(exits[lost].clone()))]);
    }
}

/// The round trips of a script whose order of execution is plain: VMRUN, L2's exit, what L1 does about it, VMRUN ….
#[test]
fn exits_of_l1_are_those_until_l2_runs_again() {
    let script: Script = serde_json::from_str(
        r#"{"description": "", "guests": [{"intercept": ["cpuid"]}], "steps": [{"op": {"l2": {"guest": 0, "steps": [
            {"op": {"cpuid": {"leaf": 0}}},
            {"op": {"rdmsr": {"msr": "0x200"}}},
            {"op": {"cpuid": {"leaf": 1}}, "l1": {"steps": [{"op": {"rdmsr": {"msr": 1}}}, {"op": "wbinvd"}]}}
        ]}}}]}"#,
    )
    .unwrap();
    let layout = layout(&script);
    let code = code(&script, &layout, Isa::Svm);
    let mut left: Vec<Option<&Site>> = code.sites.iter().map(Some).collect();
    let mut next = |mnemonic: &str| {
        let n = left
            .iter()
            .position(|site| site.is_some_and(|site| site.mnemonic() == mnemonic))
            .expect(mnemonic);
        record(n, left[n].take().unwrap(), 0)
    };
    let order = ["vmrun", "cpuid", "vmrun", "rdmsr", "cpuid", "rdmsr", "wbinvd", "vmrun", "vmmcall", "out"];
    let mut reader = Reader::new(VCPU, code.sites.clone(), &layout.vcpus[VCPU as usize]);
    let mut lines = Vec::new();
    for mnemonic in order {
        reader.record(&next(mnemonic), false).unwrap();
        while let Some(line) = reader.next_line() {
            lines.push(line);
        }
    }
    assert_eq!(lines.len(), order.len() - 2, "the last exit of L2 has no end yet");
    lines.extend(reader.finish());
    let exits: Vec<&[String]> = lines.iter().map(|line| line.l1_exits.as_slice()).collect();
    let none: &[&str] = &[];
    let expected =
        [none, &["vmrun"], none, none, &["rdmsr", "wbinvd", "vmrun"], none, none, none, &["out"], none];
    assert_eq!(exits, expected);
    assert!(lines.iter().map(|line| line.seq).eq(0..order.len() as u64));
    // L2 does nothing before L1 runs it.
    let mut reader = Reader::new(VCPU, code.sites.clone(), &layout.vcpus[VCPU as usize]);
    reader.record(&record(0, &code.sites[0], 0), false).unwrap_err();
}

#[test]
fn built_in_scripts_have_the_code_they_say() {
    for isa in ISAS {
        for builtin in builtins(isa) {
            let script = builtin.script().unwrap();
            check_code(&script, isa);
            check_truth(&script, isa);
        }
    }
}

#[test]
fn the_same_number_is_the_same_script() {
    for isa in ISAS {
        assert_eq!(random(7, 100, isa), random(7, 100, isa));
        assert_ne!(random(7, 100, isa), random(8, 100, isa));
    }
}

#[test]
fn registers_that_the_script_did_not_write_are_a_failure() {
    let script = BUILTIN[0].script().unwrap();
    let layout = layout(&script);
    let code = code(&script, &layout, Isa::Svm);
    let good = record(0, &code.sites[0], 0);
    let take = |record: Record| {
        let mut reader = Reader::new(VCPU, code.sites.clone(), &layout.vcpus[VCPU as usize]);
        reader.record(&record, false)
    };
    take(good).unwrap();
    let bad = [
        Record { before: [0; 4], ..good },
        Record { turn: 1, ..good },
        Record { site: code.sites.len() as u64, ..good },
        Record { state: Record::OPEN, ..good },
        Record { fault: 1 << Record::FAULTED_BIT | 14, ..good },
    ];
    for record in bad {
        take(record).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_number_makes_a_possible_script(seed: u64, ops in 1u32..200) {
        for isa in ISAS {
            let script = random(seed, ops, isa);
            script.check(isa).unwrap();
            let text = serde_json::to_string(&script).unwrap();
            prop_assert_eq!(serde_json::from_str::<Script>(&text).unwrap(), script);
        }
    }

    #[test]
    fn random_scripts_have_the_code_they_say(seed: u64, ops in 1u32..100) {
        for isa in ISAS {
            let script = random(seed, ops, isa);
            check_code(&script, isa);
            check_truth(&script, isa);
        }
    }
}
