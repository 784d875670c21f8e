// SPDX-License-Identifier: MIT
//! Files that are written here, whole, cut off and damaged.

use super::*;
use crate::analysis::pairing::Occurrence;
use crate::source::format::{Format, Layout};
use exitregs_common::event::{Event, HEADER_SIZE, KvmEntry, KvmExit};
use exitregs_common::svm::ExitCode;
use proptest::prelude::*;
use std::io::Write;

/// Smaller than the kernel's, so that few events take several.
const PAGE: usize = 512;
const HEADER_PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\
    \tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n\
    \tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n\
    \tfield: char data;\toffset:16;\tsize:496;\tsigned:1;\n";
const EXIT_ID: u16 = 300;
const ENTRY_ID: u16 = 301;
const THREAD: u32 = 1000;

/// The `format` file of `E` on a kernel with the patches.
fn format_file<E: Event>(id: u16) -> String {
    let common = "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n";
    format!("name: {}\nID: {id}\nformat:\n{common}\n{}", E::NAME, E::format())
}

/// A record of `event`, by the field table.
fn record<E: Event>(id: u16, thread: u32, event: &E) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_SIZE + size_of::<E>()];
    bytes[..2].copy_from_slice(&id.to_le_bytes());
    bytes[4..8].copy_from_slice(&thread.to_le_bytes());
    for (index, field) in E::FIELDS.iter().enumerate() {
        let value = event.value(index).unwrap_or(0).to_le_bytes();
        bytes[HEADER_SIZE + field.offset..][..field.size].copy_from_slice(&value[..field.size]);
    }
    bytes
}

/// The occurrence of a number, and its record.
fn occurrence(number: u64, cpu: u32) -> (Occurrence, Vec<u8>) {
    let (thread, time) = (THREAD + cpu, 1_000_000 + 100 * number);
    let (what, record) = if number.is_multiple_of(2) {
        let exit = KvmExit {
            exit_reason: ExitCode::CPUID.0,
            guest_rip: 0xffff_ffff_8100_0000 + number,
            isa: Isa::Svm as u32,
            vcpu_id: cpu,
            rax: number << 32 | 7,
            rdx: number,
            ..KvmExit::default()
        };
        (What::Exit(exit), record(EXIT_ID, thread, &exit))
    } else {
        let entry = KvmEntry { vcpu_id: cpu, rip: number, rbx: u64::MAX - number, ..KvmEntry::default() };
        (What::Entry(entry), record(ENTRY_ID, thread, &entry))
    };
    (Occurrence { time, thread, tgid: 0, unknown: 0, what }, record)
}

/// A CPU's records, each with its time.
type Records = Vec<(u64, Vec<u8>)>;

/// `count` events in turns of two CPUs; their records by CPU.
fn events(count: u64) -> (Vec<Occurrence>, [Records; 2]) {
    let (mut occurrences, mut records) = (Vec::new(), [Vec::new(), Vec::new()]);
    for number in 0..count {
        let cpu = number / 3 % 2;
        let (occurrence, record) = occurrence(number, cpu as u32);
        records[cpu as usize].push((occurrence.time, record));
        occurrences.push(occurrence);
    }
    (occurrences, records)
}

/// The pages that hold these records.
fn pages(records: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut pages = Vec::new();
    let mut rest = records;
    while let Some((start, _)) = rest.first() {
        let (mut data, mut time, mut taken) = (Vec::new(), *start, 0);
        for (now, record) in rest {
            if 16 + data.len() + 4 + record.len() > PAGE {
                break;
            }
            let words = record.len() as u32 / 4;
            // Longer ones have their length in a word of its own.
            let delta = (now - time) as u32;
            if words <= 28 {
                data.extend((words | delta << 5).to_le_bytes());
            } else {
                data.extend((delta << 5).to_le_bytes());
                data.extend((4 * words + 4).to_le_bytes());
            }
            data.extend(record);
            (time, taken) = (*now, taken + 1);
        }
        pages.extend(start.to_le_bytes());
        pages.extend((data.len() as u64).to_le_bytes());
        pages.extend(&data);
        pages.resize(pages.len().next_multiple_of(PAGE), 0);
        rest = &rest[taken..];
    }
    pages
}

fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// What tells how pages and events look.
fn header_info() -> Vec<u8> {
    [&b"header_page\0"[..], &sized(HEADER_PAGE), b"header_event\0", &sized("# compressed entry header\n")]
        .concat()
}

fn event_formats() -> Vec<u8> {
    let (exit, entry) = (format_file::<KvmExit>(EXIT_ID), format_file::<KvmEntry>(ENTRY_ID));
    [&1u32.to_le_bytes()[..], b"kvm\0", &2u32.to_le_bytes(), &sized(&exit), &sized(&entry)].concat()
}

const BEGIN: &[u8] = b"\x17\x08\x44tracing";

/// A `trace.dat` of version 6.
fn trace_dat_6(records: &[Vec<(u64, Vec<u8>)>]) -> Vec<u8> {
    let mut file = [BEGIN, b"6\0", &[0, 8], &(PAGE as u32).to_le_bytes()].concat();
    file.extend(header_info());
    file.extend(0u32.to_le_bytes());
    file.extend(event_formats());
    // kallsyms, printk formats, command lines.
    file.extend([0; 8]);
    file.extend(sized("1000 CPU 0/KVM\n1001 CPU 1/KVM\n"));
    file.extend((records.len() as u32).to_le_bytes());
    file.extend(b"options  \0");
    file.extend(5u16.to_le_bytes());
    let uname = b"Linux host 6.12.9 #1 SMP x86_64\0";
    file.extend((uname.len() as u32).to_le_bytes());
    file.extend(uname);
    file.extend([0; 2]);
    file.extend(b"flyrecord\0");
    let data: Vec<_> = records.iter().map(|records| pages(records)).collect();
    let mut at = (file.len() + 16 * data.len()).next_multiple_of(PAGE);
    for pages in &data {
        file.extend((at as u64).to_le_bytes());
        file.extend((pages.len() as u64).to_le_bytes());
        at += pages.len();
    }
    file.resize(file.len().next_multiple_of(PAGE), 0);
    file.extend(data.concat());
    file
}

/// A `trace.dat` of version 7, with its options first, as `trace-cmd convert` may have them.
fn trace_dat_7(records: &[Vec<(u64, Vec<u8>)>], compression: &str) -> Vec<u8> {
    let compress = |data: &[u8]| match compression {
        "zstd" => zstd::encode_all(data, 3).unwrap(),
        "zlib" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        _ => data.to_vec(),
    };
    let is_compressed = compression != "none";
    let section = |id: u16, data: &[u8]| {
        let mut body = compress(data);
        if is_compressed {
            body.splice(
                0..0,
                [(body.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat(),
            );
        }
        let flags = u16::from(is_compressed).to_le_bytes();
        [&id.to_le_bytes()[..], &flags, &[0; 4], &(body.len() as u64).to_le_bytes(), &body].concat()
    };
    let mut file = [BEGIN, b"7\0", &[0, 8], &(PAGE as u32).to_le_bytes()].concat();
    file.extend([compression.as_bytes(), b"\0", b"1.0\0"].concat());
    let options_at = file.len();
    file.extend([0; 8]);
    let (info, formats) = (file.len() as u64, section(16, &header_info()));
    file.extend(formats);
    let formats_at = file.len() as u64;
    file.extend(section(18, &event_formats()));
    let buffer = file.len() as u64;
    file.extend([&3u16.to_le_bytes()[..], &u16::from(is_compressed).to_le_bytes(), &[0; 12]].concat());
    let mut cpus = Vec::new();
    for (cpu, records) in records.iter().enumerate() {
        // As trace-cmd has them.
        file.resize(file.len().next_multiple_of(PAGE), 0);
        let (at, pages) = (file.len() as u64, pages(records));
        if is_compressed {
            let chunks: Vec<_> = pages.chunks(PAGE).collect();
            file.extend((chunks.len() as u32).to_le_bytes());
            for chunk in chunks {
                let data = compress(chunk);
                file.extend((data.len() as u32).to_le_bytes());
                file.extend((chunk.len() as u32).to_le_bytes());
                file.extend(data);
            }
        } else {
            file.extend(&pages);
        }
        let size = file.len() as u64 - at;
        cpus.extend([&(cpu as u32).to_le_bytes()[..], &at.to_le_bytes(), &size.to_le_bytes()].concat());
    }
    let option =
        |id: u16, data: &[u8]| [&id.to_le_bytes()[..], &(data.len() as u32).to_le_bytes(), data].concat();
    let counts = [(PAGE as u32).to_le_bytes(), (records.len() as u32).to_le_bytes()].concat();
    let options = [
        option(16, &info.to_le_bytes()),
        option(18, &formats_at.to_le_bytes()),
        option(3, &[&buffer.to_le_bytes()[..], b"\0", b"mono\0", &counts, &cpus].concat()),
        option(0, &0u64.to_le_bytes()),
    ]
    .concat();
    let at = file.len() as u64;
    file[options_at..options_at + 8].copy_from_slice(&at.to_le_bytes());
    // Options are not compressed.
    file.extend([&[0; 8][..], &(options.len() as u64).to_le_bytes(), &options].concat());
    file
}

/// A record of perf's.
fn perf_record(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()) as u16;
    [&kind.to_le_bytes()[..], &[0; 2], &size.to_le_bytes(), body].concat()
}

/// An attribute whose samples have a thread, a time and a trace event.
fn attr() -> Vec<u8> {
    let mut attr = vec![0; 128];
    attr[4..8].copy_from_slice(&128u32.to_le_bytes());
    attr[24..32].copy_from_slice(&(1u64 << 1 | 1 << 2 | 1 << 10).to_le_bytes());
    attr
}

fn tracing_data() -> Vec<u8> {
    let begin = [BEGIN, b"0.6\0", &[0, 8], &(PAGE as u32).to_le_bytes()].concat();
    [begin, header_info(), vec![0; 4], event_formats()].concat()
}

/// perf's records of these events: rounds, in which one CPU's come after the other's.
fn perf_records(records: &[Vec<(u64, Vec<u8>)>]) -> Vec<u8> {
    let mut stream = Vec::new();
    let end = records.iter().flatten().map(|(time, _)| *time).max().unwrap_or(0);
    for until in (1_000_000..=end + 1000).step_by(1000) {
        for (cpu, records) in records.iter().enumerate() {
            for (time, record) in records.iter().filter(|(time, _)| (until - 1000..until).contains(time)) {
                let mut body = [THREAD.to_le_bytes(), (THREAD + cpu as u32).to_le_bytes()].concat();
                body.extend(time.to_le_bytes());
                body.extend((record.len() as u32).to_le_bytes());
                body.extend(record);
                body.resize(body.len().next_multiple_of(8), 0);
                stream.extend(perf_record(9, &body));
            }
        }
        stream.extend(perf_record(68, &[]));
    }
    stream
}

fn perf_pipe(records: &[Vec<(u64, Vec<u8>)>]) -> Vec<u8> {
    let mut tracing = tracing_data();
    let length = tracing.len() as u32;
    tracing.resize(tracing.len().next_multiple_of(8), 0);
    let parts = [
        [perf_data::MAGIC, &perf_data::PIPE.to_le_bytes()].concat(),
        perf_record(64, &attr()),
        perf_record(66, &length.to_le_bytes()),
        tracing,
        perf_records(records),
    ];
    parts.concat()
}

/// A `perf.data`; its records in compressed ones, each of which ends somewhere.
fn perf_file(records: &[Vec<(u64, Vec<u8>)>], compressed: bool) -> Vec<u8> {
    let mut data = perf_records(records);
    if compressed {
        let mut encoder = zstd::stream::raw::Encoder::new(3).unwrap();
        let mut stream = Vec::new();
        for part in data.chunks(1000) {
            use zstd::stream::raw::{InBuffer, Operation, OutBuffer};
            let mut space = vec![0; 1 << 16];
            let mut output = OutBuffer::around(&mut space[..]);
            encoder.run(&mut InBuffer::around(part), &mut output).unwrap();
            encoder.flush(&mut output).unwrap();
            let length = output.pos();
            stream.extend(perf_record(81, &space[..length]));
        }
        data = stream;
    }
    let (tracing, attrs_at) = (tracing_data(), 104u64);
    let data_at = attrs_at + 128 + 16;
    let header = [104, 144, attrs_at, 144, data_at, data.len() as u64, 0, 0, 1 << 1, 0, 0, 0];
    let mut file = perf_data::MAGIC.to_vec();
    file.extend(header.iter().flat_map(|number: &u64| number.to_le_bytes()));
    file.extend(attr());
    file.extend([0; 16]);
    file.extend(&data);
    file.extend((file.len() as u64 + 16).to_le_bytes());
    file.extend((tracing.len() as u64).to_le_bytes());
    file.extend(tracing);
    file
}

fn text(occurrences: &[Occurrence]) -> Vec<u8> {
    fn print<E: Event>(event: &E, name: impl Fn(&'static str) -> &'static str) -> String {
        let fields = E::FIELDS.iter().enumerate();
        fields
            .map(|(index, field)| format!(" {} {:#x}", name(field.name), event.value(index).unwrap_or(0)))
            .collect()
    }
    let mut text = String::from("# tracer: nop\n#\n");
    for Occurrence { time, thread, what, .. } in occurrences {
        let (name, body) = match what {
            What::Exit(exit) => {
                ("kvm_exit", print(exit, |name| if name == "guest_rip" { "rip" } else { name }))
            }
            What::Entry(entry) => ("kvm_entry", print(entry, |name| name)),
            _ => unreachable!("there are no others"),
        };
        let (seconds, rest) = (time / 1_000_000_000, time % 1_000_000_000);
        text += &format!(" CPU 0/KVM-{thread}  [001] d..1. {seconds}.{rest:09}: {name}:{body}\n");
    }
    text.into_bytes()
}

/// A file is the one that its first bytes say, also in a pipe.
#[test]
fn the_format_is_detected() {
    for (name, bytes, expected) in files(24) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let (pipe, mut writer) = io::pipe().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&bytes));
        for input in [file, File::from(std::os::fd::OwnedFd::from(pipe))] {
            let mut reader = of(input).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let (mut all, mut batch) = (Vec::new(), Occurrences::default());
            while reader.read(&mut batch).unwrap() {
                all.extend(batch.iter());
            }
            assert_eq!(all, expected, "{name}");
            assert_eq!(reader.description().isa, Some(Isa::Svm), "{name}");
        }
        writing.join().unwrap().unwrap();
    }
    assert!(of(File::open("/dev/null").unwrap()).is_err());
}

/// Every kind of file, and what it says.
fn files(count: u64) -> Vec<(&'static str, Vec<u8>, Vec<Occurrence>)> {
    let (occurrences, records) = events(count);
    let of_process: Vec<_> =
        occurrences.iter().map(|occurrence| Occurrence { tgid: THREAD, ..*occurrence }).collect();
    let text = text(&occurrences);
    vec![
        ("trace.dat 6", trace_dat_6(&records), occurrences.clone()),
        ("trace.dat 7", trace_dat_7(&records, "none"), occurrences.clone()),
        ("trace.dat 7, zstd", trace_dat_7(&records, "zstd"), occurrences.clone()),
        ("trace.dat 7, zlib", trace_dat_7(&records, "zlib"), occurrences.clone()),
        ("perf.data", perf_file(&records, false), of_process.clone()),
        ("perf.data, compressed", perf_file(&records, true), of_process.clone()),
        ("perf.data of a pipe", perf_pipe(&records), of_process),
        ("text", text, occurrences),
    ]
}

fn reader(bytes: &[u8]) -> Result<Box<dyn Reader>> {
    Ok(if bytes.starts_with(trace_dat::MAGIC) {
        Box::new(trace_dat::TraceDat::new(Input::from(bytes.to_vec()))?)
    } else if let Some(pipe) =
        bytes.strip_prefix(&[perf_data::MAGIC, &perf_data::PIPE.to_le_bytes()].concat()[..])
    {
        Box::new(perf_data::PerfData::pipe(io::Cursor::new(pipe.to_vec()), 0))
    } else if bytes.starts_with(perf_data::MAGIC) {
        Box::new(perf_data::PerfData::file(Input::from(bytes.to_vec()))?)
    } else {
        Box::new(text::Text::new(io::Cursor::new(bytes.to_vec()), 0))
    })
}

/// What a reader of these bytes delivers, and what it found damaged.
fn read(bytes: &[u8]) -> Result<(Vec<Occurrence>, Vec<Damage>)> {
    let mut reader = reader(bytes)?;
    let (mut all, mut damage, mut batch) = (Vec::new(), Vec::new(), Occurrences::default());
    // No more rounds than there can be events, and damage.
    for _ in 0..bytes.len() + 3 {
        let outcome = reader.read(&mut batch);
        all.extend(batch.iter());
        match outcome {
            Ok(true) => {}
            Ok(false) => return Ok((all, damage)),
            Err(found) => damage.push(found),
        }
    }
    panic!("the reader does not come to an end");
}

fn is_by_time(occurrences: &[Occurrence]) -> bool {
    occurrences.is_sorted_by_key(|occurrence| occurrence.time)
}

/// Without the gaps.
fn told(occurrences: &[Occurrence]) -> Vec<Occurrence> {
    let gap = |occurrence: &&Occurrence| !matches!(occurrence.what, What::Gap { .. });
    occurrences.iter().filter(gap).copied().collect()
}

#[test]
fn what_was_written_is_read() {
    for (name, bytes, expected) in files(300) {
        let (found, damage) = read(&bytes).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(damage, [], "{name}");
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{name}");
        }
    }
}

/// Blocks of text that several threads parse come in their order, and so does what is wrong with lines.
#[test]
fn long_text_is_read_in_order() {
    let (occurrences, _) = events(10_000);
    let (mut bytes, mut expected, mut nonsense) = (Vec::new(), Vec::new(), Vec::new());
    for (number, occurrence) in occurrences.iter().enumerate() {
        match number % 1000 {
            300 => {
                nonsense.push(bytes.len() as u64);
                bytes.extend(b" a-7 [000] 1.0: kvm_exit: of nothing\n");
            }
            700 => {
                bytes.extend(b"CPU:1 [LOST 14 EVENTS]\n");
                let what = What::Gap { until: occurrence.time, lost: 14 };
                let time = occurrences[number - 1].time;
                expected.push(Occurrence { time, thread: 0, tgid: 0, unknown: 0, what });
            }
            _ => {}
        }
        bytes.extend(text(&[*occurrence]));
        expected.push(*occurrence);
    }
    let (found, damage) = read(&bytes).unwrap();
    assert!(found == expected);
    assert_eq!(damage.iter().map(|damage| damage.offset).collect::<Vec<_>>(), nonsense);
}

/// Each event is in one share, that of its thread; of what is no record all are in all.
#[test]
fn shares_are_by_thread() {
    for (name, bytes, expected) in files(300) {
        let (mut reader, mut batch) = (reader(&bytes).unwrap(), Occurrences::default());
        let mut shares = [Vec::new(), Vec::new()];
        while reader.read(&mut batch).unwrap() {
            for (remainder, share) in (0..).zip(&mut shares) {
                share.extend(batch.share(Share { of: 2, remainder }));
            }
        }
        for (remainder, share) in (0..).zip(shares) {
            let is_of = |of: &&Occurrence| name == "text" || of.thread % 2 == remainder;
            let expected: Vec<_> = expected.iter().filter(is_of).copied().collect();
            assert_eq!(share, expected, "{name}");
        }
    }
}

#[test]
fn the_formats_here_are_the_kernels() {
    let format = Format::parse(&format_file::<KvmExit>(1)).unwrap();
    assert_eq!(Layout::<KvmExit>::of(&format).unwrap().absent(), 0);
}

/// Of a file that is cut off everything before is read: an event that comes is the next that should.
#[test]
fn a_file_may_end_anywhere() {
    for (name, bytes, expected) in files(24) {
        // A page's events are one piece: see the pages apart from the header, which is much longer.
        let mut most = 0;
        for length in 0..bytes.len() {
            let Ok((found, damage)) = read(&bytes[..length]) else { continue };
            let found = told(&found);
            assert!(is_by_time(&found), "{name}, cut off at {length}");
            let mut rest = expected.iter();
            for occurrence in &found {
                assert!(rest.any(|next| next == occurrence), "{name}, cut off at {length}: {occurrence:?}");
            }
            if found.len() < expected.len() && name != "text" && !name.contains("pipe") {
                assert!(!damage.is_empty(), "{name}, cut off at {length}: nobody says so");
            }
            most = most.max(found.len());
        }
        // The end of a perf.data tells what all else is.
        if !["perf.data", "perf.data, compressed"].contains(&name) {
            assert!(most > expected.len() / 3, "{name}: {most} of {}", expected.len());
        }
    }
}

proptest! {
    /// Damage is told or does not show; there is no panic, no end of reading, and no event out of its place.
    #[test]
    fn damage_does_no_harm(
        which in 0usize..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (name, mut bytes, _) = files(24).swap_remove(which);
        for (at, with) in changes {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok((found, _)) = read(&bytes) {
            prop_assert!(is_by_time(&found), "{}", name);
            let mut pairing = crate::analysis::pairing::Pairing::new(None);
            found.iter().for_each(|occurrence| pairing.take(occurrence));
            pairing.finish();
        }
    }
}
