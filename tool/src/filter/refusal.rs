// SPDX-License-Identifier: MIT
//! What the kernel says of a filter that it refuses.
//!
//! Source: `tracing_err_log_seq_show()` in Linux' `kernel/trace/trace.c`, and where `trace_events_filter.c` calls
//! `parse_error()`.

use super::ParseError;

/// How an entry of the `error_log` begins, after the time.
const ENTRY: &str = "] event filter parse error: error: ";
/// What precedes the filter's text there.
const COMMAND: &str = "\n  Command: ";

/// The last refusal in the text of an `error_log`, in the kernel's words; `None` if it refused no filter.
pub fn refusal(log: &str) -> Option<ParseError> {
    let (_, entry) = log.trim_end().rsplit_once(ENTRY)?;
    let (message, rest) = entry.split_once(COMMAND)?;
    let (text, caret) = rest.rsplit_once('\n')?;
    // The caret is below the text, which the line above has after `Command`.
    let column = caret.strip_suffix('^')?.len().checked_sub(COMMAND.len() - 1)?;
    // The kernel counts from 1 in a comparison, where it has read on to behind what it does not like, or to before it.
    let whole = ["Too ", "Missing matching quote", "Meaningless", "No filter"];
    let is_whole = whole.iter().any(|start| message.starts_with(start));
    let at = (if is_whole { column } else { column.saturating_sub(1) }).min(text.len());
    let at = (0..=at).rev().find(|at| text.is_char_boundary(*at))?;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let start = text[..at].trim_end_matches(is_word).len();
    let end = text.len() - text[at..].trim_start_matches(is_word).len();
    let span = match start == end {
        true => at..at + text[at..].chars().next().map_or(0, char::len_utf8),
        false => start..end,
    };
    Some(ParseError { text: text.to_owned(), span, message: message.to_owned(), help: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(log: &str) -> String {
        refusal(log).unwrap().to_string()
    }

    /// What Linux 6.12 has written.
    #[test]
    fn the_kernels_caret_is_put_below_the_word() {
        let field = "[   12.500000] event filter parse error: error: Field not found\n  \
            Command: rax == 1 && foo == 2\n                           ^\n";
        assert_eq!(shown(field), "Field not found\n  | rax == 1 && foo == 2\n  |             ^^^");
        let number = "[   12.500000] event filter parse error: error: Illegal integer value\n  \
            Command: rax == 08 && rbx == 2\n                    ^\n";
        assert_eq!(shown(number), "Illegal integer value\n  | rax == 08 && rbx == 2\n  |        ^^");
        let parenthesis = "[   12.500000] event filter parse error: error: Too many '('\n  \
            Command: rax == 1 && (rbx == 2\n                       ^\n";
        assert_eq!(shown(parenthesis), "Too many '('\n  | rax == 1 && (rbx == 2\n  |             ^");
    }

    #[test]
    fn the_last_entry_counts() {
        let log = "[   12.5] event filter parse error: error: Field not found\n  Command: foo == 1\n               ^\n\
            [   13.0] event filter parse error: error: Invalid operator\n  Command: vcpu_id % 1\n                    ^\n";
        assert_eq!(shown(log), "Invalid operator\n  | vcpu_id % 1\n  |         ^");
        assert_eq!(refusal(""), None);
        assert_eq!(
            refusal("[   13.0] hist:kvm:kvm_exit: error: Couldn't find field\n  Command: x\n           ^\n"),
            None
        );
    }

    #[test]
    fn a_log_that_makes_no_sense_is_none() {
        for log in [
            "] event filter parse error: error: ",
            "] event filter parse error: error: x\n  Command: é\n^",
            "\n^",
        ] {
            assert_eq!(refusal(log), None, "{log:?}");
        }
        let far = format!("] event filter parse error: error: x\n  Command: é\n{}^", " ".repeat(90));
        assert_eq!(refusal(&far).unwrap().span, 0..2);
    }
}
