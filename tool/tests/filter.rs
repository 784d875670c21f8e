// SPDX-License-Identifier: MIT
//! Filters: what they select, that their text and their program mean the same, and that bad text is told where it is bad.

use exitregs::filter::{Filter, Operation, Operator, refusal};
use exitregs_common::event::{Event, Exit, KvmExit};
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::VIEWS;
use proptest::prelude::*;

fn parse(text: &str) -> Filter<KvmExit> {
    Filter::parse(text, Isa::Svm).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a program as tool/bpf/filter.h does, over the record's bytes.
fn run(program: &[Operation], exit: &KvmExit) -> bool {
    let field = |operation: &Operation| {
        let index =
            KvmExit::FIELDS.iter().position(|field| field.offset == operation.offset as usize).unwrap();
        assert_eq!(KvmExit::FIELDS[index].size, operation.size as usize);
        exit.value(index).unwrap()
    };
    let mut stack = Vec::new();
    for operation in program {
        let result = match operation.operator {
            Operator::And => {
                let (right, left) = (stack.pop().unwrap(), stack.pop().unwrap());
                left && right
            }
            Operator::Or => {
                let (right, left) = (stack.pop().unwrap(), stack.pop().unwrap());
                left || right
            }
            Operator::Not => !stack.pop().unwrap(),
            Operator::Equal => field(operation) == operation.operand,
            Operator::NotEqual => field(operation) != operation.operand,
            Operator::Less => field(operation) < operation.operand,
            Operator::LessOrEqual => field(operation) <= operation.operand,
            Operator::Greater => field(operation) > operation.operand,
            Operator::GreaterOrEqual => field(operation) >= operation.operand,
            Operator::BitAnd => field(operation) & operation.operand != 0,
        };
        stack.push(result);
    }
    assert_eq!(stack.len(), 1, "a program leaves one result");
    stack[0]
}

/// Exits whose values collide with those of [`filters`] often enough to be selected.
fn exits() -> impl Strategy<Value = KvmExit> {
    let small = || prop_oneof![0u64..4, Just(0x7c), Just(0x1_0000_0000), any::<u64>()];
    (small(), small(), small(), small(), small(), 0u8..2, 0u32..4).prop_map(
        |(exit_reason, info1, rax, rcx, guest_rip, is_nested, vcpu_id)| KvmExit {
            exit_reason: exit_reason as u32,
            info1,
            rax,
            rcx,
            guest_rip,
            is_nested,
            vcpu_id,
            isa: Isa::Svm as u32,
            ..KvmExit::default()
        },
    )
}

fn filters() -> impl Strategy<Value = String> {
    let names: Vec<_> = KvmExit::FIELDS.iter().map(|field| field.name).collect();
    let operators = prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">=", "&"]);
    let numbers = prop_oneof![
        (0u64..5).prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| format!("{number:#x}")),
        Just("0x7c".to_owned()),
        Just("0400".to_owned()),
    ];
    let comparison = (prop::sample::select(names), operators, numbers)
        .prop_map(|(name, operator, number)| format!("{name} {operator} {number}"));
    comparison.prop_recursive(5, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| format!("!({inner})")),
            inner.clone().prop_map(|inner| format!("({inner})")),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("{left} && {right}")),
            (inner.clone(), inner).prop_map(|(left, right)| format!("{left} || {right}")),
        ]
    })
}

proptest! {
    #[test]
    fn text_and_program_select_the_same(text in filters(), exit in exits()) {
        let filter = parse(&text);
        let selected = filter.selects(&exit);
        prop_assert_eq!(parse(&filter.to_string()).selects(&exit), selected, "as text: {}", filter);
        if let Ok(program) = filter.program() {
            prop_assert_eq!(run(&program, &exit), selected, "as a program: {}", filter);
        }
    }

    #[test]
    fn what_is_unknown_leaves_open_only_what_depends_on_it(text in filters(), exit in exits(), other in exits(), unknown: u32) {
        let filter = parse(&text);
        let known = |index: usize| unknown & 1 << index == 0;
        // As `exit` where that is known, and whatever else it might be where it is not.
        let maybe = KvmExit::from_values(|index| if known(index) { exit.value(index) } else { other.value(index) }.unwrap_or(0));
        if let Some(decided) = filter.decides(&exit, unknown) {
            prop_assert_eq!(filter.selects(&maybe), decided, "{}", filter);
        }
        prop_assert_eq!(filter.decides(&exit, unknown & !filter.fields()), Some(filter.selects(&exit)));
    }

    #[test]
    fn bad_text_is_an_error_with_a_place_in_it(text in ".{0,60}") {
        if let Err(error) = Filter::<KvmExit>::parse(&text, Isa::Vmx) {
            prop_assert!(error.span.end <= text.len());
            prop_assert!(text.get(error.span.clone()).is_some(), "between characters");
            let shown = error.to_string();
            prop_assert!(shown.contains('^'), "{}", shown);
        }
    }

    #[test]
    fn damaged_filters_are_no_danger(text in filters(), at in any::<prop::sample::Index>(), junk in "[()!&|=<>a-z0-9 ~\"é]") {
        let mut text: Vec<char> = text.chars().collect();
        let at = at.index(text.len());
        text[at] = junk.chars().next().unwrap();
        let text: String = text.into_iter().collect();
        if let Err(error) = Filter::<KvmExit>::parse(&text, Isa::Svm) {
            prop_assert!(error.to_string().contains('^'));
        }
    }

    #[test]
    fn what_the_kernel_says_is_shown_in_its_text(message in "[ -~]{1,30}", text in ".{1,40}", column in 0..80usize, rest in ".{0,40}") {
        let log = format!("[    1.0] event filter parse error: error: {message}\n  Command: {text}\n{:width$}^\n", "", width = 11 + column);
        let shown = refusal(&log).unwrap();
        prop_assert_eq!((&shown.message, &shown.text), (&message, &text));
        prop_assert!(text.get(shown.span.clone()).is_some() && shown.to_string().contains('^'));
        // And of a log that makes no sense nothing, whatever it is.
        let _ = refusal(&format!("] event filter parse error: error: {rest}"));
        let _ = refusal(&format!("] event filter parse error: error: \n  Command: {text}\n{rest}^"));
    }

    #[test]
    fn views_select_what_their_text_does(exit in exits(), svm in any::<bool>(), level in 0u8..3) {
        let isa = if svm { Isa::Svm } else { Isa::Vmx };
        let exit = Exit { exit: KvmExit { isa: isa as u32, exit_reason: exit.exit_reason & 0x7ff, ..exit }, ..Exit::default() };
        let level = [None, Some(Level::L1), Some(Level::L2)][usize::from(level)];
        for view in VIEWS.iter().filter(|view| view.event == KvmExit::NAME) {
            let text = view.filter(isa, level).to_string();
            let filter = Filter::<KvmExit>::parse(&text, isa).unwrap();
            prop_assert_eq!(filter.selects(&exit.exit), view.selects(&exit, level), "{}: {}", view.name, text);
        }
    }
}

#[test]
fn precedence_is_the_kernels() {
    let exit = KvmExit { exit_reason: 1, rax: 1, ..KvmExit::default() };
    // && before ||: true || (true && false).
    assert!(parse("rax == 1 || exit_reason == 1 && rax == 0").selects(&exit));
    assert!(!parse("(rax == 1 || exit_reason == 1) && rax == 0").selects(&exit));
    // ! takes the comparison, not the field.
    assert!(parse("!rax == 5").selects(&exit));
    assert!(!parse("!!rax == 5").selects(&exit));
}

#[test]
fn one_side_may_decide_alone() {
    let exit = KvmExit { rax: 1, ..KvmExit::default() };
    let unknown = 1 << KvmExit::index("rbx").unwrap();
    let decides = |text| parse(text).decides(&exit, unknown);
    assert_eq!(decides("rbx == 1"), None);
    assert_eq!(decides("!(rbx == 1)"), None);
    assert_eq!(decides("rbx == 1 && rax == 0"), Some(false));
    assert_eq!(decides("rbx == 1 && rax == 1"), None);
    assert_eq!(decides("rbx == 1 || rax == 1"), Some(true));
    assert_eq!(decides("rbx == 1 || rax == 0"), None);
}

#[test]
fn numbers_are_the_kernels() {
    let exit = |rcx| KvmExit { rcx, ..KvmExit::default() };
    assert!(parse("rcx == 010").selects(&exit(8)));
    assert!(parse("rcx == 0X10").selects(&exit(16)));
    assert!(parse("rcx & 0x6").selects(&exit(4)));
    assert!(!parse("rcx & 0x6").selects(&exit(1)));
    // The kernel cuts a number to the size of its field.
    assert!(
        parse("exit_reason == 0x10000007c").selects(&KvmExit { exit_reason: 0x7c, ..KvmExit::default() })
    );
    // It has no way to mask a register: dirty upper bits are part of the value.
    assert!(!parse("rcx == 0x10").selects(&exit(0xdead_0000_0000_0010)));
}

#[test]
fn names_are_numbers() {
    assert_eq!(parse("rcx == IA32_TSC_DEADLINE").to_string(), "rcx == 0x6e0");
    assert_eq!(parse("rcx == msr_efer").to_string(), "rcx == 0xc0000080");
    assert_eq!(parse("exit_reason == npf").to_string(), "exit_reason == 0x400");
    let vmx = Filter::<KvmExit>::parse("exit_reason == ept_violation", Isa::Vmx).unwrap();
    assert_eq!(vmx.to_string(), "exit_reason == 0x30");
}

/// What is said of a bad filter: the message, what is marked, the help.
#[track_caller]
fn refused(text: &str, message: &str, marked: &str, help: &str) {
    let error = Filter::<KvmExit>::parse(text, Isa::Svm).unwrap_err();
    assert_eq!((error.message.as_str(), &text[error.span.clone()]), (message, marked), "{error}");
    let said = error.help.unwrap_or_default();
    assert!(said.starts_with(help) && said.is_empty() == help.is_empty(), "{text}: {said}");
}

#[test]
fn errors_mark_the_place() {
    let error = |text: &str| Filter::<KvmExit>::parse(text, Isa::Svm).unwrap_err().to_string();
    assert_eq!(
        error("is_nested && rax == 1"),
        "a field alone is not a condition\n  | is_nested && rax == 1\n  | ^^^^^^^^^\n  = help: write `is_nested == 1` or `is_nested != 0`"
    );
    assert!(error("é == 1 && rax == 0").contains("\n  | é == 1 && rax == 0\n  | ^\n"));
    assert!(error("").ends_with("\n  | \n  | ^"));
}

#[test]
fn fields_that_there_are_not() {
    let unknown = "there is no field `foo`";
    refused("rax == 1 && foo == 2", unknown, "foo", "the fields are exit_reason, guest_rip");
    refused(
        "exit_reasn == 2",
        "there is no field `exit_reasn`",
        "exit_reasn",
        "did you mean `exit_reason`? the fields",
    );
    refused("RCX == 2", "there is no field `RCX`", "RCX", "did you mean `rcx`?");
    refused("comm == \"qemu\"", "there is no field `comm`", "comm", "that is of the host's thread");
    refused("0x7c == exit_reason", "there is no field `0x7c`", "0x7c", "the field comes first");
}

#[test]
fn what_is_no_condition() {
    let bare = "a field alone is not a condition";
    refused("(rax)", bare, "rax", "write `rax == 1`");
    refused("rax == 1 || !is_nested", bare, "is_nested", "write `is_nested == 1`");
    let expected = "expected a comparison";
    refused("rax = 1", expected, "=", "the comparisons are == != < <= > >= &");
    refused("rax ~ \"x*\"", expected, "~", "`~` is for strings, and `rax` is a number");
    refused("rax === 1", "there is no such comparison", "===", "");
    refused("", "expected a field's name", "", "");
    refused("rax == 1 && ()", "expected a field's name", ")", "");
}

#[test]
fn what_is_no_number() {
    refused("rax == \"a b\" && rbx == 1", "`rax` is a number, and this is a string", "\"a b\"", "");
    refused("rax == 'x", "`rax` is a number, and this is a string", "'x", "");
    refused("rax ==", "expected a number", "", "");
    refused("rax == -1", "not a number", "-1", "`rax` is unsigned");
    refused("rax == 08", "not a number", "08", "");
    refused("rax == 0x10000000000000000", "the number does not fit into 64 bits", "0x10000000000000000", "");
    let zeros = "000000000000000000000001";
    refused(&format!("rax == {zeros}"), "a number of 24 characters; the kernel takes 23 at most", zeros, "");
    let name = "`foo` is neither a number nor a known name";
    refused("rax == foo", name, "foo", "");
    refused(
        "rax == rbx",
        "`rbx` is neither a number nor a known name",
        "rbx",
        "a field is compared with a number",
    );
    let reason = "`ept_violation` is neither a number nor a known name";
    refused("exit_reason == ept_violation", reason, "ept_violation", "it is an exit reason of vmx's");
}

#[test]
fn what_does_not_go_together() {
    refused("(rax == 1", "this parenthesis is never closed", "(", "");
    refused("rax == 1)", "this parenthesis was never opened", ")", "");
    refused("rax == 1 rbx == 2", "expected `&&`, `||` or the end of the filter", "rbx", "");
    refused("rax == 1 and rbx == 2", "expected `&&`, `||` or the end of the filter", "and", "write `&&`");
    refused("(rax == 1 OR rbx == 2)", "expected `&&`, `||` or `)`", "OR", "write `||`");
    refused("rax == 1 & rbx == 2", "expected `&&`, `||` or the end of the filter", "&", "");
    refused("rax == 1\u{a0}", "expected `&&`, `||` or the end of the filter", "\u{a0}", "");
}

#[test]
fn what_is_too_much() {
    let error = |text: &str| Filter::<KvmExit>::parse(text, Isa::Svm).unwrap_err().message;
    assert!(error(&"(".repeat(1000)).contains("nested more than"));
    assert!(error(&"!".repeat(4000)).contains("nested more than"));
    let long = vec!["rax == 1"; 400].join(" || ");
    assert_eq!(error(&long), "4796 bytes, but the kernel takes 4095 at most");
    assert!(error(&"é".repeat(3000)).starts_with("6000 bytes"));
    let fits = vec!["rax&1"; 585].join("||");
    assert_eq!(fits.len(), 4093);
    assert!(parse(&fits).selects(&KvmExit { rax: 1, ..KvmExit::default() }));
}

#[test]
fn a_program_that_is_too_long_is_refused() {
    let text = vec!["rax == 1"; 33].join(" || ");
    let error = parse(&text).program().unwrap_err();
    assert_eq!(error.0, 65);
    assert!(parse(&vec!["rax == 1"; 32].join(" || ")).program().is_ok());
}
