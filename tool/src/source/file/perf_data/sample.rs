// SPDX-License-Identifier: MIT
//! What `perf_event_attr` says of samples: where in them the parts are that are read.
//!
//! Source: `enum perf_event_sample_format` and `PERF_RECORD_SAMPLE` in Linux' `include/uapi/linux/perf_event.h`.

use super::super::input::Bytes;

const IP: u64 = 1 << 0;
const TID: u64 = 1 << 1;
const TIME: u64 = 1 << 2;
const ADDR: u64 = 1 << 3;
const READ: u64 = 1 << 4;
const CALLCHAIN: u64 = 1 << 5;
const ID: u64 = 1 << 6;
const CPU: u64 = 1 << 7;
const PERIOD: u64 = 1 << 8;
const STREAM_ID: u64 = 1 << 9;
const RAW: u64 = 1 << 10;
const IDENTIFIER: u64 = 1 << 16;
/// In the flags of `perf_event_attr`.
const SAMPLE_ID_ALL: u64 = 1 << 18;
/// `PERF_TYPE_SOFTWARE` and `PERF_COUNT_SW_DUMMY`: perf opens such an event for what is no sample.
const DUMMY: (u32, u64) = (1, 9);

/// The parts of `perf_event_attr` that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    sample_type: u64,
    sample_id_all: bool,
    /// There are no samples of it.
    pub is_dummy: bool,
    /// Bytes of what stands in a sample before the thread.
    before_thread: u64,
    /// Bytes of what stands between the time and the call chain or, if there is none, the trace event's record.
    behind_time: u64,
}

/// A sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// The process.
    pub pid: u32,
    /// Nanoseconds.
    pub time: u64,
    /// Where in the body the trace event's record begins.
    pub start: usize,
    /// The record.
    pub raw: &'a [u8],
}

impl Attr {
    /// The size that the attribute itself says it has.
    pub fn size(attr: &[u8]) -> Option<u32> {
        Bytes { rest: attr.get(4..)? }.u32()
    }

    /// Reads a `struct perf_event_attr`.
    pub fn parse(attr: &[u8]) -> Option<Self> {
        let mut bytes = Bytes { rest: attr };
        let (kind, _size, config, _period) = (bytes.u32()?, bytes.u32()?, bytes.u64()?, bytes.u64()?);
        let (sample_type, _read_format, flags) = (bytes.u64()?, bytes.u64()?, bytes.u64()?);
        let size = |parts: u64| 8 * u64::from((sample_type & parts).count_ones());
        Some(Self {
            sample_type,
            sample_id_all: flags & SAMPLE_ID_ALL != 0,
            is_dummy: (kind, config) == DUMMY,
            before_thread: size(IDENTIFIER | IP),
            behind_time: size(ADDR | ID | STREAM_ID | CPU | PERIOD),
        })
    }

    /// Whether samples begin with the id of their attribute.
    pub fn is_identified(&self) -> bool {
        self.sample_type & IDENTIFIER != 0
    }

    /// Whether samples have what is needed.
    pub fn is_enough(&self) -> bool {
        self.sample_type & (TID | TIME | RAW) == TID | TIME | RAW && self.sample_type & READ == 0
    }

    /// Takes the body of a `PERF_RECORD_SAMPLE` apart; `None` if it is too short.
    #[inline]
    pub fn sample<'a>(&self, body: &'a [u8]) -> Option<Sample<'a>> {
        let mut bytes = Bytes { rest: body };
        bytes.take(self.before_thread)?;
        let (pid, _tid) = (bytes.u32()?, bytes.u32()?);
        let time = bytes.u64()?;
        bytes.take(self.behind_time)?;
        if self.sample_type & CALLCHAIN != 0 {
            let length = bytes.u64()?.checked_mul(8)?;
            bytes.take(length)?;
        }
        let length = bytes.u32()?;
        let start = body.len() - bytes.rest.len();
        Some(Sample { pid, time, start, raw: bytes.take(length.into())? })
    }

    /// The time of a record that is no sample, from what stands at its end; `None` if nothing does.
    pub fn time(&self, body: &[u8]) -> Option<u64> {
        if !self.sample_id_all || self.sample_type & TIME == 0 {
            return None;
        }
        let behind = (self.sample_type & (TIME | ID | STREAM_ID | CPU | IDENTIFIER)).count_ones();
        let start = body.len().checked_sub(8 * behind as usize)?;
        Bytes { rest: &body[start..] }.u64()
    }
}
