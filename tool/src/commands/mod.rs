// SPDX-License-Identifier: MIT
//! The commands, one a file.

mod child;
pub mod doctor;
pub mod events;
pub mod generate;
pub mod record;
pub mod report;
pub mod stat;
pub mod trace;
pub mod views;

use crate::cli::Misuse;
use crate::source::Counters;
use anyhow::Context;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When to stop: SIGINT, SIGTERM or SIGHUP, or the end of a given time.
pub(crate) struct Stop {
    signal: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Stop {
    /// Takes the signals from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        let signal = Arc::new(AtomicBool::new(false));
        for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(number, Arc::clone(&signal))?;
        }
        Ok(Self { signal, deadline: None })
    }

    /// Stops `duration` from now, if one is given.
    pub(crate) fn after(&mut self, duration: Option<Duration>) {
        self.deadline = duration.map(|duration| Instant::now() + duration);
    }

    pub(crate) fn is_due(&self) -> bool {
        self.signal.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Sleeps for `time`, or until it is time to stop.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        let until = self.deadline.map_or(until, |deadline| deadline.min(until));
        // A signal ends a sleep early, but one that came just before it does not.
        while !self.is_due() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::park_timeout(left.min(Duration::from_millis(50)));
        }
    }
}

/// Says so if a ring buffer was full, and what to do.
pub(crate) fn say_full(counters: Counters) {
    if counters.lost > 0 {
        eprintln!(
            "exitregs: the ring buffer was full: give it more with --buffer-size, or select fewer exits"
        );
    }
}

/// Says how many exits a filter could not decide on.
pub(crate) fn say_undecided(counters: Counters) {
    if counters.undecided > 0 {
        eprintln!(
            "exitregs: {} exits were left out: the filter reads a field that was unknown",
            counters.undecided
        );
    }
}

/// A time on the command line: `10`, `1.5` (seconds), `500ms`, `2s`, `3m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "" | "s" => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time: use us, ms, s, m or h")),
    };
    let seconds: f64 =
        number.parse().map_err(|_| "expected a number of seconds, such as 10, 500ms or 2m".to_owned())?;
    match Duration::try_from_secs_f64(seconds * scale) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("the time must be more than zero, and within reason".to_owned()),
    }
}

/// Makes a file, empty, that only its owner may read: guest registers are guest data.
pub(crate) fn create_private(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        // The mode above is only that of a new file.
        let private = file.set_permissions(Permissions::from_mode(0o600));
        private.with_context(|| format!("cannot keep {} from other users", path.display()))?;
    }
    Ok(file)
}

/// The exit status of an error: 2 for misuse, 0 for a reader that has read enough, else 1.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    let broken_pipe = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe);
    if broken_pipe {
        0
    } else if error.is::<Misuse>() {
        2
    } else {
        1
    }
}

/// Prints an error and its causes on standard error.
pub fn complain(error: &anyhow::Error) {
    eprintln!("exitregs: {error:#}");
}
