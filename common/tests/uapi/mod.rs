// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The kernel's headers for user space, as the distribution installs them.
#![allow(dead_code)] // Each test takes the part it needs.

use std::collections::HashMap;
use std::fs;

/// The text of a header, such as `asm/svm.h`, with lines that end in a backslash joined to the next.
pub fn header(name: &str) -> String {
    let text = ["/usr/include/x86_64-linux-gnu", "/usr/include"]
        .iter()
        .find_map(|root| fs::read_to_string(format!("{root}/{name}")).ok())
        .unwrap_or_else(|| {
            panic!("no <{name}>: install the kernel's headers for user space (linux-libc-dev)")
        });
    text.replace("\\\n", " ")
}

/// The integer constants that `#define` lines of `text` give.
pub fn constants(text: &str) -> HashMap<String, i64> {
    let mut constants = HashMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("#define") {
            continue;
        }
        if let (Some(name), Some(value)) =
            (words.next(), words.next().and_then(|word| integer(word, &constants)))
        {
            constants.insert(name.to_owned(), value);
        }
    }
    constants
}

/// The `{ NUMBER, "name" }` pairs of the macro `name` in `text`.
pub fn symbols(text: &str, name: &str, constants: &HashMap<String, i64>) -> Vec<(i64, String)> {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().take(2).eq(["#define", name]))
        .unwrap_or_else(|| panic!("no {name} in the header"));
    line.split('{')
        .skip(1)
        .map(|pair| {
            let (number, name) = pair.split_once(',').unwrap_or_else(|| panic!("not a pair: {pair}"));
            let number = number
                .split('+')
                .map(|term| {
                    integer(term.trim(), constants).unwrap_or_else(|| panic!("unknown number: {term}"))
                })
                .sum();
            (number, name.split('"').nth(1).unwrap_or_else(|| panic!("no name: {pair}")).to_owned())
        })
        .collect()
}

fn integer(word: &str, constants: &HashMap<String, i64>) -> Option<i64> {
    if let Some(&value) = constants.get(word) {
        return Some(value);
    }
    let digits = word.trim_end_matches(['u', 'U', 'l', 'L']);
    match digits.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => digits.parse().ok(),
    }
}
