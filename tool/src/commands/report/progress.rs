// SPDX-License-Identifier: MIT
//! How much of a file has been read, on a terminal and if it takes a while.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;
use std::time::{Duration, Instant};

/// Reading that takes less is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bar on standard error, which goes away when this does.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// Before, nothing is shown; `None`: it is, or nothing will be.
    hidden_until: Option<Instant>,
}

impl Progress {
    /// Of `path`, which has `total` bytes; 0 if that is not known. Nothing is shown unless it is `wanted`.
    pub(super) fn new(path: &Path, total: u64, wanted: bool) -> Self {
        let bar = ProgressBar::with_draw_target((total > 0).then_some(total), ProgressDrawTarget::hidden());
        let template = match total {
            0 => "{msg} {bytes} {bytes_per_sec}",
            _ => "{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left",
        };
        // The template is no input: were it wrong, the bar would look otherwise.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(path.display().to_string());
        Self { bar, hidden_until: wanted.then(|| Instant::now() + PATIENCE) }
    }

    /// So many bytes have been read.
    pub(super) fn at(&mut self, bytes: u64) {
        if self.hidden_until.is_some_and(|until| Instant::now() >= until) {
            self.hidden_until = None;
            // Not a terminal: still nothing is shown.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
