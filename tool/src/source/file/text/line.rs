// SPDX-License-Identifier: MIT
//! A line of text about an event: as tracefs and `perf script` print it by the kernel's print format, as `trace-cmd report`
//! does by its own, and as `trace-cmd report -R` and dynamic events do, `NAME=VALUE`.
//!
//! Source: `TP_printk()` of the events in Linux' `arch/x86/kvm/trace.h`; trace-cmd's `plugin_kvm.c`.

use crate::analysis::pairing::{Occurrence, Operands, What};
use ahash::RandomState;
use exitregs_common::event::{Event, KvmEntry, KvmExit, KvmNestedPageFault};
use exitregs_common::flags::{EventInfo, exception_by_name};
use exitregs_common::hypercall::Abi;
use exitregs_common::isa::Isa;
use exitregs_common::svm::ExitCode;
use std::collections::HashMap;

/// The events whose text is read.
const EVENTS: &[u8] = b"kvm_";

/// What stands before an event's own text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The thread.
    pub thread: u32,
    /// Its process, 0 if the line does not tell.
    pub tgid: u32,
    /// Nanoseconds.
    pub time: u64,
    /// The event's name without its system.
    pub event: &'a [u8],
    /// Its own text.
    pub body: &'a [u8],
}

/// Takes apart what stands before the event's own text; `None` if the line is not one of an event of KVM's.
pub fn head(line: &[u8]) -> Option<Head<'_>> {
    // `COMMAND-THREAD (TGID) [CPU] FLAGS TIME: EVENT: …`; a command may have any characters.
    let mut from = 0;
    let (before, after) = loop {
        let open = from + memchr::memchr(b'[', &line[from..])?;
        let close = open + memchr::memchr(b']', line[open..].get(..12).unwrap_or(&line[open..]))?;
        if close > open + 1 && line[open + 1..close].iter().all(u8::is_ascii_digit) {
            break (&line[..open], &line[close + 1..]);
        }
        from = open + 1;
    };
    let mut words = Words { rest: after };
    let time = loop {
        let word = words.raw()?;
        if let Some(time) = word.strip_suffix(b":") {
            break nanoseconds(time)?;
        }
    };
    let event = words.raw()?.strip_suffix(b":")?;
    let event = match memchr::memchr(b':', event) {
        Some(colon) => &event[colon + 1..],
        None => event,
    };
    if !event.starts_with(EVENTS) {
        return None;
    }
    let mut before = before.trim_ascii_end();
    let mut tgid = 0;
    if let Some(rest) = before.strip_suffix(b")") {
        let open = memchr::memrchr(b'(', rest)?;
        // `-------` if the kernel does not know.
        tgid = decimal(rest[open + 1..].trim_ascii()).unwrap_or(0) as u32;
        before = rest[..open].trim_ascii_end();
    }
    let digits = before.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (command, thread) = before.split_at(before.len() - digits);
    let thread = decimal(thread)? as u32;
    if let Some(rest) = command.strip_suffix(b"/") {
        // `perf script -F pid,tid`.
        let digits = rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        tgid = decimal(&rest[rest.len() - digits..])? as u32;
    }
    Some(Head { thread, tgid, time, event, body: words.rest })
}

/// `SECONDS.FRACTION`, or a clock's ticks.
fn nanoseconds(text: &[u8]) -> Option<u64> {
    let Some(dot) = memchr::memchr(b'.', text) else { return decimal(text) };
    let (seconds, fraction) = (decimal(&text[..dot])?, &text[dot + 1..]);
    let scale = 10u64.pow(9u32.checked_sub(fraction.len() as u32)?);
    seconds.checked_mul(1_000_000_000)?.checked_add(decimal(fraction)? * scale)
}

fn decimal(text: &[u8]) -> Option<u64> {
    // So few digits do not overflow.
    if let 1..=19 = text.len() {
        return text.iter().try_fold(0u64, |value, byte| {
            byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0'))
        });
    }
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// What a byte is as a hexadecimal digit; more than 15 if it is none.
const DIGITS: [u8; 256] = {
    let mut digits = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        digits[b"0123456789abcdef"[digit] as usize] = digit as u8;
        digit += 1;
    }
    digits
};

/// Digits up to what is none.
fn hexadecimal(text: &[u8]) -> Option<u64> {
    let text = text.strip_prefix(b"0x").unwrap_or(text);
    let digits = text.iter().map(|byte| DIGITS[usize::from(*byte)]).take_while(|digit| *digit < 16);
    let (value, count) =
        digits.fold((0, 0), |(value, count), digit| (value << 4 | u64::from(digit), count + 1));
    (1..=16).contains(&count).then_some(value)
}

/// A number with or without `0x`.
fn number(text: &[u8]) -> Option<u64> {
    match text {
        [b'0', b'x', ..] => hexadecimal(text),
        [b'y' | b'Y', ..] => Some(1),
        _ => {
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
            decimal(&text[..digits])
        }
    }
}

/// Words: what blanks, `=` and brackets part.
struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    /// The next word up to a blank.
    fn raw(&mut self) -> Option<&'a [u8]> {
        let start = self.rest.iter().position(|byte| *byte != b' ' && *byte != b'\t')?;
        let rest = &self.rest[start..];
        let end = rest.iter().position(|byte| *byte == b' ' || *byte == b'\t').unwrap_or(rest.len());
        self.rest = &rest[end..];
        Some(&rest[..end])
    }

    /// The next word, without the comma or colon behind it.
    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'=' | b','))?;
        let rest = &self.rest[start..];
        let end =
            rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'=' | b',')).unwrap_or(rest.len());
        self.rest = &rest[end..];
        let word = &rest[..end];
        Some(word.strip_suffix(b":").unwrap_or(word))
    }

    /// The number behind the next word that is one of these.
    fn after(&mut self, names: &[&[u8]], read: fn(&[u8]) -> Option<u64>) -> Option<u64> {
        while let Some(word) = self.next() {
            if names.contains(&word) {
                return read(self.next()?);
            }
        }
        None
    }
}

/// Names of exit reasons that are remembered, at most; the letters of one may be of either case.
const MAX_REASONS: usize = 1024;

/// Exit reasons that lines have named. They are few, and would be looked for in long tables each time.
#[derive(Debug, Default)]
pub struct Reasons(HashMap<Vec<u8>, (u32, Isa), RandomState>);

impl Reasons {
    /// An exit reason by name or number: the reason, and whose it is; that of `isa` if it is a number.
    fn get(&mut self, word: &[u8], isa: Option<Isa>) -> Option<(u32, Option<Isa>)> {
        if word.first()?.is_ascii_digit() {
            return Some((number(word)? as u32, isa));
        }
        let (reason, isa) = match self.0.get(word) {
            Some(known) => *known,
            None => {
                let found = reason(word)?;
                if self.0.len() < MAX_REASONS {
                    self.0.insert(word.to_vec(), found);
                }
                found
            }
        };
        Some((reason, Some(isa)))
    }
}

/// An exit reason by name, and whose it is.
fn reason(word: &[u8]) -> Option<(u32, Isa)> {
    let text = std::str::from_utf8(word).ok()?;
    // trace-cmd has SVM's as the kernel's source does; the kernel prints those in lower case, VMX's in upper case.
    if let Some(name) = text.strip_prefix("EXIT_") {
        return Some((ExitCode::by_identifier(name)?.0, Isa::Svm));
    }
    let is_svm = text.starts_with(|first: char| first.is_ascii_lowercase());
    let isa = if is_svm { Isa::Svm } else { Isa::Vmx };
    Some((isa.exit_reason_by_name(text)?, isa))
}

/// The fields of an event, by the names that texts have for them.
fn fields(words: &mut Words, of: impl Fn(&[u8]) -> Option<usize>, values: &mut [u64; 16]) -> u32 {
    let mut known = 0;
    while let Some(word) = words.next() {
        let Some(index) = of(word) else { continue };
        let Some(value) = words.next().and_then(number) else { continue };
        values[index] = value;
        known |= 1 << index;
    }
    known
}

/// The field of `E` that a word names.
fn field<E: Event>(word: &[u8]) -> Option<usize> {
    E::FIELDS.iter().position(|field| field.name.as_bytes() == word)
}

fn exit(body: &[u8], isa: &mut Option<Isa>, reasons: &mut Reasons) -> Option<(What, u32)> {
    const fn index(name: &str) -> usize {
        exitregs_common::event::field_bit(KvmExit::FIELDS, name).trailing_zeros() as usize
    }
    const REASON: usize = index("exit_reason");
    const RIP: usize = index("guest_rip");
    const ISA: usize = index("isa");
    const INFO1: usize = index("info1");
    const INFO2: usize = index("info2");
    const VCPU: usize = index("vcpu_id");
    const INTR_INFO: usize = index("intr_info");
    const ERROR_CODE: usize = index("error_code");
    let mut words = Words { rest: body };
    let (mut values, mut known) = ([0; 16], 0u32);
    while let Some(word) = words.next() {
        let at = match word {
            b"reason" | b"exit_reason" => {
                let mut word = words.next()?;
                if word == b"UNKNOWN" {
                    word = words.next()?.strip_prefix(b"(")?.strip_suffix(b")")?;
                }
                let (reason, whose) = reasons.get(word, *isa)?;
                values[REASON] = reason.into();
                known |= 1 << REASON;
                if let Some(whose) = whose {
                    *isa = Some(whose);
                    values[ISA] = whose as u64;
                    known |= 1 << ISA;
                }
                continue;
            }
            b"FAILED_VMENTRY" => {
                values[REASON] |= 1 << 31;
                continue;
            }
            b"info" => {
                values[INFO1] = hexadecimal(words.next()?)?;
                values[INFO2] = hexadecimal(words.next()?)?;
                known |= 1 << INFO1 | 1 << INFO2;
                continue;
            }
            b"vcpu" | b"vcpu_id" => VCPU,
            b"rip" | b"guest_rip" => RIP,
            b"info1" => INFO1,
            b"info2" => INFO2,
            b"intr_info" => INTR_INFO,
            b"error_code" => ERROR_CODE,
            _ => match field::<KvmExit>(word) {
                Some(index) => index,
                None => continue,
            },
        };
        values[at] = number(words.next()?)?;
        known |= 1 << at;
        if at == ISA {
            *isa = Isa::from_field(values[ISA] as u32);
        }
    }
    let exit = KvmExit::from_values(|index| values[index]);
    (known & 1 << REASON != 0).then_some((What::Exit(exit), !known & all::<KvmExit>()))
}

/// Every field's bit.
fn all<E: Event>() -> u32 {
    (1 << E::FIELDS.len()) - 1
}

fn entry(body: &[u8]) -> Option<(What, u32)> {
    let of = |word: &[u8]| field::<KvmEntry>(if word == b"vcpu" { b"vcpu_id" } else { word });
    let mut values = [0; 16];
    let known = fields(&mut Words { rest: body }, of, &mut values);
    let entry = KvmEntry::from_values(|index| values[index]);
    (known != 0).then_some((What::Entry(entry), !known & all::<KvmEntry>()))
}

/// What a line says, and the fields that it does not have. `Some(None)`: the line is not of an event that is read. `None`:
/// it is, and makes no sense. `isa` is that of the exits before.
pub fn parse(line: &[u8], isa: &mut Option<Isa>, reasons: &mut Reasons) -> Option<Option<Occurrence>> {
    let Some(head) = head(line) else { return Some(None) };
    let mut words = Words { rest: head.body };
    let (what, unknown) = match head.event {
        b"kvm_exit" => exit(head.body, isa, reasons)?,
        b"kvm_entry" => entry(head.body)?,
        b"kvm_nested_page_fault" => {
            let mut values = [0; 16];
            let known = fields(&mut words, field::<KvmNestedPageFault>, &mut values);
            let fault = KvmNestedPageFault::from_values(|index| values[index]);
            (known != 0).then_some((What::NestedPageFault(fault), !known & all::<KvmNestedPageFault>()))?
        }
        b"kvm_nested_vmenter" | b"kvm_nested_vmrun" => {
            let l2 = words.after(&[b"vmcb", b"vmcs"], number)?;
            let event = words.after(&[b"event_inj"], number).unwrap_or(0);
            (What::NestedEntry { l2, event: EventInfo(event as u32) }, 0)
        }
        b"kvm_nested_vmenter_failed" => (What::NestedEntryFailed, 0),
        b"kvm_nested_vmexit" => match exit(head.body, isa, reasons)?.0 {
            What::Exit(exit) => (What::NestedExit { exit_reason: exit.exit_reason }, 0),
            _ => return None,
        },
        b"kvm_nested_vmexit_inject" => {
            while ![&b"reason"[..], b"exit_code"].contains(&words.next()?) {}
            let (exit_reason, _) = reasons.get(words.next()?, *isa)?;
            let failed = words.next().is_some_and(|word| word == b"FAILED_VMENTRY");
            let exit_reason = exit_reason | u32::from(failed) << 31;
            // The kernel's word, the field's name, and that of trace-cmd's plugin.
            let words = &mut Words { rest: head.body };
            let info1 = words.after(&[b"ext_inf1", b"exit_info1", b"info1"], hexadecimal);
            (What::NestedExitInject { exit_reason, info1 }, 0)
        }
        b"kvm_nested_intr_vmexit" => (What::NestedInterruptExit, 0),
        b"kvm_inj_exception" => {
            let word = words.next()?;
            let vector = match word.strip_prefix(b"#") {
                Some(_) => exception_by_name(std::str::from_utf8(word).ok()?)?,
                None if word == b"exception" => number(words.next()?)? as u8,
                None => number(word)? as u8,
            };
            // `#GP (0x0)`; or `has_error=1 error_code=0x0`.
            let code = match words.next() {
                Some(b"has_error") => {
                    let has = words.next().and_then(number)? != 0;
                    has.then(|| words.after(&[b"error_code"], number)).flatten()
                }
                Some(word) => word.strip_prefix(b"(").and_then(hexadecimal),
                None => None,
            };
            (What::Exception { vector, error_code: code.map(|code| code as u32) }, 0)
        }
        b"kvm_hypercall" => {
            let mut values = [0; 4];
            for (value, name) in values.iter_mut().zip([&b"nr"[..], b"a0", b"a1", b"a2"]) {
                *value = words.after(&[name], number)?;
            }
            (What::Hypercall(Abi::Kvm, Operands { values, known: 0b1111 }), 0)
        }
        b"kvm_hv_hypercall" => {
            let code = words.after(&[b"code"], number)?;
            (What::Hypercall(Abi::HyperV, Operands { values: [0, 0, code, 0], known: 0b0100 }), 0)
        }
        b"kvm_xen_hypercall" => {
            let number = words.after(&[b"nr"], number)?;
            (What::Hypercall(Abi::Xen, Operands { values: [number, 0, 0, 0], known: 0b0001 }), 0)
        }
        b"kvm_msr" => {
            // `msr_read 1b = 0x…`; or `write=0 ecx=1b data=0x… exception=0`.
            let (write, index) = match words.next()? {
                b"msr_read" => (false, hexadecimal(words.next()?)?),
                b"msr_write" => (true, hexadecimal(words.next()?)?),
                b"write" => (number(words.next()?)? != 0, words.after(&[b"ecx"], hexadecimal)?),
                _ => return None,
            };
            let mut data = words.next()?;
            if data == b"data" {
                data = words.next()?;
            }
            let exception = match words.next() {
                Some(b"exception") => number(words.next()?)? != 0,
                word => word.is_some(),
            };
            (What::Msr { write, index: index as u32, data: hexadecimal(data)?, exception }, 0)
        }
        b"kvm_cpuid" => {
            let leaf = words.after(&[b"func", b"function"], hexadecimal)? as u32;
            let mut subleaf = None;
            let mut word = words.next()?;
            if [&b"idx"[..], b"index"].contains(&word) {
                subleaf = Some(hexadecimal(words.next()?)? as u32);
                word = words.next()?;
            }
            if word != b"rax" {
                return None;
            }
            let mut answer = [hexadecimal(words.next()?)?, 0, 0, 0];
            for (value, name) in answer[1..].iter_mut().zip([&b"rbx"[..], b"rcx", b"rdx"]) {
                *value = words.after(&[name], hexadecimal)?;
            }
            (What::Cpuid { leaf, subleaf, answer }, 0)
        }
        b"kvm_pio" => {
            let write = match words.next()? {
                b"pio_read" => false,
                b"pio_write" => true,
                b"rw" => number(words.next()?)? != 0,
                _ => return None,
            };
            let port = words.after(&[b"at", b"port"], number)? as u16;
            let count = words.after(&[b"count"], number)? as u32;
            let value = words.after(&[b"val"], number).unwrap_or(0) as u32;
            (What::Pio { write, port, count, value }, 0)
        }
        _ => return Some(None),
    };
    Some(Some(Occurrence { time: head.time, thread: head.thread, tgid: head.tgid, unknown, what }))
}

/// How many events a line says were lost: `CPU:1 [LOST 14 EVENTS]`; 0 if it does not say how many.
pub fn lost(line: &[u8]) -> Option<u64> {
    let open = memchr::memchr(b'[', line)?;
    let mut words = Words { rest: line[open + 1..].strip_suffix(b"]")? };
    match (words.raw()?, words.raw()?) {
        (b"LOST", count) => decimal(count),
        (b"EVENTS", b"DROPPED") => Some(0),
        _ => None,
    }
}
