// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Numbers and their names: the form that exit reasons, MSRs, hypercalls and CPUID leaves share.

/// One number of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The number as hardware or the hypervisor interface encodes it.
    pub number: u32,
    /// Its name, as the table's source spells it.
    pub name: &'static str,
    /// What it stands for, in a few words; may be empty where the name says it all.
    pub text: &'static str,
}

/// Entries sorted by number, each number once.
#[derive(Clone, Copy, Debug)]
pub struct Table(&'static [Entry]);

impl Table {
    /// A table of `entries`.
    ///
    /// # Panics
    /// If the numbers do not rise strictly. In a `const` or `static`, where tables belong, that is a build error.
    pub const fn new(entries: &'static [Entry]) -> Self {
        let mut i = 1;
        while i < entries.len() {
            assert!(
                entries[i - 1].number < entries[i].number,
                "table is not sorted by number, or has one twice"
            );
            i += 1;
        }
        Self(entries)
    }

    /// Every entry, by rising number.
    pub const fn entries(&self) -> &'static [Entry] {
        self.0
    }

    /// The entry of `number`.
    pub const fn get(&self, number: u32) -> Option<&'static Entry> {
        let (mut low, mut high) = (0, self.0.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = &self.0[middle];
            if entry.number == number {
                return Some(entry);
            }
            if entry.number < number {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        None
    }

    /// The name of `number`.
    pub const fn name(&self, number: u32) -> Option<&'static str> {
        match self.get(number) {
            Some(entry) => Some(entry.name),
            None => None,
        }
    }

    /// The number called `name`, whatever the case of its letters.
    pub fn by_name(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|entry| entry.name.eq_ignore_ascii_case(name)).map(|entry| entry.number)
    }
}
