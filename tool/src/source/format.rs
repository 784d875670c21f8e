// SPDX-License-Identifier: MIT
//! tracefs' `format` files: what the running kernel's records look like.
//!
//! Source: `f_show()` and `print_subsystem_event_filter()` in Linux' `kernel/trace/trace_events.c`.

use exitregs_common::event::{Event, Field};
use std::marker::PhantomData;

/// Where a field lies in a record or page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Byte offset.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

impl Place {
    /// The field's value, zero-extended; `None` if `bytes` ends before it, or if it is no number.
    #[inline]
    pub fn read(self, bytes: &[u8]) -> Option<u64> {
        let field = bytes.get(self.offset..self.offset.checked_add(self.size)?)?;
        Some(match *field {
            [byte] => byte.into(),
            [a, b] => u16::from_ne_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            _ => return None,
        })
    }
}

/// Sizes of numbers.
const NUMBERS: [usize; 4] = [1, 2, 4, 8];

/// A `format` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// The event's name.
    pub name: String,
    /// `common_type` of its records.
    pub id: u16,
    fields: Vec<(String, Place)>,
}

/// Why a `format` file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The text is not a `format` file's.
    #[error("line {line} of the format file makes no sense: {text:?}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A line is missing.
    #[error("the format file has no {0}")]
    Missing(&'static str),
    /// The kernel, or whoever makes it, lacks the event.
    #[error("there is no event {0}")]
    NoEvent(&'static str),
    /// The event lacks fields.
    #[error("{event} has no {}", .fields.join(", "))]
    NoField {
        /// The event.
        event: String,
        /// The fields.
        fields: Vec<&'static str>,
    },
    /// A field is not of the size that it should be.
    #[error("{event} has {field} in {found} bytes; {expected} are expected")]
    Size {
        /// The event.
        event: String,
        /// The field.
        field: &'static str,
        /// The file's size.
        found: usize,
        /// The size that exitregs-common says.
        expected: usize,
    },
}

impl Format {
    /// Parses the text of a `format` file.
    ///
    /// # Errors
    /// A line makes no sense, or there is no name or id.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let name = value("name:").ok_or(FormatError::Missing("name"))?.to_owned();
        let id = value("ID:").and_then(|id| id.parse().ok()).ok_or(FormatError::Missing("ID"))?;
        Ok(Self { name, id, fields: fields(text)? })
    }

    /// Where a field lies in the record, which begins with the common header.
    pub fn place(&self, field: &str) -> Option<Place> {
        find(&self.fields, field)
    }

    /// As [`place`](Self::place), of a field that has to be a number if the event has it.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, field: &'static str) -> Result<Option<Place>, FormatError> {
        let place = self.place(field);
        match place.filter(|place| !NUMBERS.contains(&place.size)) {
            Some(Place { size: found, .. }) => {
                let event = self.name.clone();
                Err(FormatError::Size { event, field, found, expected: size_of::<u64>() })
            }
            None => Ok(place),
        }
    }

    /// As [`number`](Self::number), of a field that the event has to have.
    ///
    /// # Errors
    /// It does not.
    pub fn expect(&self, field: &'static str) -> Result<Place, FormatError> {
        let missing = || FormatError::NoField { event: self.name.clone(), fields: vec![field] };
        self.number(field)?.ok_or_else(missing)
    }

    /// Bytes of a record, which has all fields.
    pub fn length(&self) -> usize {
        let end = |place: &Place| place.offset.saturating_add(place.size);
        self.fields.iter().map(|(_, place)| end(place)).max().unwrap_or(0)
    }
}

/// The fields that a text describes, each in a line such as `field:u64 info1; offset:32; size:8; signed:0;`.
pub(in crate::source) fn fields(text: &str) -> Result<Vec<(String, Place)>, FormatError> {
    let lines = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("field:"));
    lines
        .map(|(number, line)| {
            field(line).ok_or_else(|| FormatError::Line { line: number + 1, text: line.to_owned() })
        })
        .collect()
}

fn field(line: &str) -> Option<(String, Place)> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let name = declaration.split_whitespace().last()?;
    let name = name.split_once('[').map_or(name, |(name, _)| name);
    let mut number = |key: &str| parts.next()?.strip_prefix(key)?.parse().ok();
    Some((name.to_owned(), Place { offset: number("offset:")?, size: number("size:")? }))
}

pub(in crate::source) fn find(fields: &[(String, Place)], name: &str) -> Option<Place> {
    fields.iter().find(|(field, _)| field == name).map(|(_, place)| *place)
}

/// No event has more fields.
const MAX_FIELDS: usize = 16;

/// How a number is taken out of a record: the eight bytes from `offset`, shifted and masked, whatever its size.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::source) struct Column {
    offset: usize,
    shift: u32,
    mask: u64,
}

impl Column {
    /// Of a number at this place in records of at least so many bytes, eight or more; `None` if it is not in those.
    pub(in crate::source) fn new(Place { offset, size }: Place, length: usize) -> Option<Self> {
        let window = offset.min(length.checked_sub(size_of::<u64>())?);
        let is_within = NUMBERS.contains(&size) && offset.checked_add(size)? <= length;
        is_within.then(|| Self {
            offset: window,
            shift: 8 * (offset - window) as u32,
            mask: u64::MAX >> (64 - 8 * size),
        })
    }

    /// The number, zero-extended, of a record that is not shorter than that.
    #[inline]
    pub(in crate::source) fn read(self, record: &[u8]) -> u64 {
        let window = record[self.offset..].first_chunk().copied().unwrap_or_default();
        u64::from_ne_bytes(window) >> self.shift & self.mask
    }
}

/// Where the fields of `E` lie in records.
#[derive(Debug, Clone)]
pub struct Layout<E> {
    /// Those that there are: which in `E::FIELDS`, and where.
    columns: Vec<(usize, Column)>,
    absent: u32,
    /// Bytes that a record has at least.
    length: usize,
    event: PhantomData<E>,
}

fn size_error(format: &Format, field: &Field, found: Place) -> FormatError {
    let event = format.name.clone();
    FormatError::Size { event, field: field.name, found: found.size, expected: field.size }
}

impl<E: Event> Layout<E> {
    /// Checks a `format` file against the field table of `E`.
    ///
    /// # Errors
    /// A field is missing that is not optional, or has another size.
    pub fn of(format: &Format) -> Result<Self, FormatError> {
        let missing: Vec<_> = E::FIELDS
            .iter()
            .filter(|field| !field.optional && format.place(field.name).is_none())
            .map(|field| field.name)
            .collect();
        if !missing.is_empty() {
            return Err(FormatError::NoField { event: format.name.clone(), fields: missing });
        }
        let sizes = E::FIELDS.iter().filter_map(|field| Some((field, format.place(field.name)?)));
        match sizes.into_iter().find(|(field, place)| place.size != field.size) {
            Some((field, place)) => Err(size_error(format, field, place)),
            None => Self::of_any(format),
        }
    }

    /// As [`of`](Self::of), whichever fields are missing: other kernels' events have fewer.
    ///
    /// # Errors
    /// A field is larger than it should be, or is no number.
    pub fn of_any(format: &Format) -> Result<Self, FormatError> {
        const { assert!(E::FIELDS.len() <= MAX_FIELDS) };
        let places: Vec<_> = E::FIELDS.iter().map(|field| format.place(field.name)).collect();
        let end = |place: &Place| place.offset.checked_add(place.size);
        let mut layout =
            Self { columns: Vec::new(), absent: 0, length: size_of::<u64>(), event: PhantomData };
        for (field, place) in E::FIELDS.iter().zip(&places) {
            if let Some(place) = place {
                // A 32-bit kernel's `long` is shorter.
                if place.size > field.size || !NUMBERS.contains(&place.size) {
                    return Err(size_error(format, field, *place));
                }
                layout.length =
                    layout.length.max(end(place).ok_or_else(|| size_error(format, field, *place))?);
            }
        }
        for (index, place) in places.into_iter().enumerate() {
            match place.and_then(|place| Column::new(place, layout.length)) {
                Some(column) => layout.columns.push((index, column)),
                None => layout.absent |= 1 << index,
            }
        }
        Ok(layout)
    }

    /// Bit n set: the event lacks `E::FIELDS[n]`.
    pub fn absent(&self) -> u32 {
        self.absent
    }

    /// The fields of a record; absent ones are 0. `None` if the record is too short.
    #[inline(always)]
    pub fn decode(&self, record: &[u8]) -> Option<E> {
        let record = record.get(..self.length)?;
        let mut values = [0; MAX_FIELDS];
        for (index, column) in &self.columns {
            values[index % MAX_FIELDS] = column.read(record);
        }
        Some(E::from_values(|index| values[index % MAX_FIELDS]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitregs_common::event::{KvmEntry, KvmExit, KvmNestedPageFault};

    /// What a kernel with these fields of `E` would show.
    fn text<E: Event>(has: impl Fn(&Field) -> bool) -> String {
        let mut text = format!("name: {}\nID: 321\nformat:\n", E::NAME);
        for (name, offset, size) in [("common_type", 0, 2), ("common_pid", 4, 4)] {
            text += &format!("\tfield:unsigned short {name};\toffset:{offset};\tsize:{size};\tsigned:0;\n");
        }
        text.push('\n');
        for field in E::FIELDS.iter().filter(|field| has(field)) {
            let Field { c_type, name, offset, size, .. } = field;
            text += &format!("\tfield:{c_type} {name};\toffset:{};\tsize:{size};\tsigned:0;\n", offset + 8);
        }
        text + "\nprint fmt: \"vcpu %u\", REC->vcpu_id\n"
    }

    fn round_trip<E: Event + PartialEq + std::fmt::Debug>() {
        let format = Format::parse(&text::<E>(|_| true)).unwrap();
        assert_eq!((format.name.as_str(), format.id), (E::NAME, 321));
        let layout = Layout::<E>::of(&format).unwrap();
        assert_eq!(layout.absent(), 0);
        let event = E::from_values(|index| 0x0101_0101_0101_0101 * (index as u64 + 1));
        let mut record = vec![0; 8 + size_of::<E>()];
        for (index, field) in E::FIELDS.iter().enumerate() {
            let value = event.value(index).unwrap().to_ne_bytes();
            record[8 + field.offset..][..field.size].copy_from_slice(&value[..field.size]);
        }
        assert_eq!(layout.decode(&record), Some(event));
        let end = E::FIELDS.iter().map(|field| 8 + field.offset + field.size).max().unwrap();
        assert_eq!(layout.decode(&record[..end - 1]), None, "a record that is cut off");
        assert_eq!(format.length(), end);
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        round_trip::<KvmExit>();
        round_trip::<KvmEntry>();
        round_trip::<KvmNestedPageFault>();
    }

    #[test]
    fn older_kernels_lack_optional_fields() {
        let format = Format::parse(&text::<KvmExit>(|field| !field.optional)).unwrap();
        let absent = Layout::<KvmExit>::of(&format).unwrap().absent();
        assert_eq!(absent, 1 << KvmExit::index("requests").unwrap());
    }

    #[test]
    fn an_unpatched_kernel_lacks_the_registers() {
        let format = Format::parse(&text::<KvmExit>(|field| !field.is_common())).unwrap();
        let error = Layout::<KvmExit>::of(&format).unwrap_err().to_string();
        assert_eq!(error, "kvm_exit has no is_nested, is_protected, rax, rbx, rcx, rdx");
    }

    #[test]
    fn a_field_of_another_size_is_refused() {
        let text = text::<KvmExit>(|_| true).replace("rax;\toffset:80;\tsize:8", "rax;\toffset:80;\tsize:4");
        let error = Layout::<KvmExit>::of(&Format::parse(&text).unwrap()).unwrap_err();
        assert!(matches!(error, FormatError::Size { field: "rax", found: 4, expected: 8, .. }), "{error}");
    }

    #[test]
    fn a_number_is_read_where_it_is_and_nowhere_else() {
        let record = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let read = |offset, size| Some(Column::new(Place { offset, size }, record.len())?.read(&record));
        assert_eq!(read(0, 1), Some(1));
        assert_eq!(read(8, 2), Some(0x0a09));
        assert_eq!(read(2, 8), Some(0x0a09_0807_0605_0403));
        for (offset, size) in [(0, 3), (9, 2), (3, 8), (usize::MAX, 1), (usize::MAX - 7, 8)] {
            assert_eq!(read(offset, size), None, "{size} bytes at {offset}");
        }
        assert!(Column::new(Place { offset: 0, size: 1 }, 7).is_none());
    }

    #[test]
    fn arrays_are_fields_as_well() {
        let line = "\tfield:char comm[16];\toffset:8;\tsize:16;\tsigned:0;";
        assert_eq!(field(line), Some(("comm".to_owned(), Place { offset: 8, size: 16 })));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(Format::parse(""), Err(FormatError::Missing("name"))));
        assert!(matches!(Format::parse("name: x\nID: -1\n"), Err(FormatError::Missing("ID"))));
        let line = Format::parse("name: x\nID: 1\n\tfield:int a;\toffset:x;\tsize:4;\n");
        assert!(matches!(line, Err(FormatError::Line { line: 3, .. })));
    }
}
