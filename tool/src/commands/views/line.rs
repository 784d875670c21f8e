// SPDX-License-Identifier: MIT
//! Lines for other tools that select what a view does.

use super::events::{Events, Source};
use crate::filter::{Filter, Prefixed};
use exitregs_common::event::{Event, KvmExit};
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::View;
use serde::Serialize;

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// The event's own filter, which sets it for all who read the top-level trace
    Tracefs,
    /// trace-cmd record
    TraceCmd,
    /// perf stat
    PerfStat,
    /// perf record
    PerfRecord,
    /// A hist trigger, which counts by the view's keys
    Hist,
    /// bpftrace, which counts by the view's keys
    Bpftrace,
}

impl Tool {
    /// Whether it can use a source's events. The kernel attaches BPF programs to no dynamic event of this kind
    /// (`perf_event_set_bpf_prog()` in kernel/events/core.c).
    pub fn can_use(self, source: Source) -> bool {
        self != Self::Bpftrace || source != Source::Tprobe
    }
}

/// A view at a level, as other tools can ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    event: String,
    folder: String,
    /// The filter in the kernel's language; empty if it selects all of the event.
    pub filter: String,
    predicate: String,
    /// The fields that tell apart what it selects, without those that the event lacks.
    pub keys: Vec<&'static str>,
}

/// The fields that an event lacks; none: there is no such event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking(pub Vec<&'static str>);

impl Line {
    /// The line for a view, at a level or at all.
    ///
    /// # Errors
    /// What the filter asks for the event has not.
    pub fn new(view: &View, level: Option<Level>, events: &Events) -> Result<Self, Lacking> {
        let (filter, predicate, fields) = texts(view, level, events.isa);
        if !events.has_event(view.event) {
            return Err(Lacking(Vec::new()));
        }
        let lacking: Vec<_> = fields.into_iter().filter(|field| !events.has(view.event, field)).collect();
        if !lacking.is_empty() {
            return Err(Lacking(lacking));
        }
        let group = events.source.group();
        Ok(Self {
            event: format!("{group}:{}", view.event),
            folder: format!("{}/events/{group}/{}", events.tracefs.display(), view.event),
            filter,
            predicate,
            keys: view.keys.iter().copied().filter(|key| events.has(view.event, key)).collect(),
        })
    }

    /// The line, for a POSIX shell.
    pub fn text(&self, tool: Tool) -> String {
        let Self { event, folder, filter, predicate, keys } = self;
        let option = |name: &str| match filter.is_empty() {
            true => String::new(),
            false => format!(" {name} '{filter}'"),
        };
        match tool {
            Tool::Tracefs => {
                let filter = if filter.is_empty() { "0" } else { filter };
                // A filter that the kernel refuses must not leave the event unfiltered and enabled.
                format!("echo '{filter}' > {folder}/filter && echo 1 > {folder}/enable")
            }
            Tool::TraceCmd => format!("trace-cmd record -e {event}{}", option("-f")),
            Tool::PerfStat => format!("perf stat -a -e {event}{}", option("--filter")),
            Tool::PerfRecord => format!("perf record -a -e {event}{}", option("--filter")),
            Tool::Hist => {
                let keys: Vec<_> = keys.iter().map(|key| format!("{key}.hex")).collect();
                let condition = if filter.is_empty() { String::new() } else { format!(" if {filter}") };
                // Opening it to overwrite it would remove everybody's hist triggers.
                format!("echo 'hist:keys={}{condition}' >> {folder}/trigger", keys.join(","))
            }
            Tool::Bpftrace => {
                let keys: Vec<_> = keys.iter().map(|key| format!("args->{key}")).collect();
                let predicate = if predicate.is_empty() { String::new() } else { format!(" /{predicate}/") };
                format!("bpftrace -e 'tracepoint:{event}{predicate} {{ @[{}] = count(); }}'", keys.join(", "))
            }
        }
    }
}

/// The filter for the kernel, the same for bpftrace, and the fields that it reads. Of nested page faults a view takes all.
fn texts(view: &View, level: Option<Level>, isa: Isa) -> (String, String, Vec<&'static str>) {
    if view.event != KvmExit::NAME {
        return Default::default();
    }
    let text = view.filter(isa, level).to_string();
    let filter: Filter<KvmExit> =
        Filter::parse(&text, isa).expect("a view's filter is one over its event's fields");
    let read = filter.fields();
    let fields = KvmExit::FIELDS.iter().enumerate().filter(|(index, _)| read & 1 << index != 0);
    (text, Prefixed(&filter, "args->").to_string(), fields.map(|(_, field)| field.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitregs_common::view::VIEWS;

    fn line(view: &str, level: Option<Level>, source: Source, isa: Isa) -> Result<Line, Lacking> {
        Line::new(View::by_name(view).unwrap(), level, &Events::elsewhere(source, isa))
    }

    #[test]
    fn lines_of_a_view() {
        let line = line("msr-read", Some(Level::L2), Source::Native, Isa::Svm).unwrap();
        assert_eq!(
            line.text(Tool::Tracefs),
            "echo 'exit_reason == 0x7c && info1 == 0x0 && is_nested == 1' > /sys/kernel/tracing/events/kvm/kvm_exit/filter \
             && echo 1 > /sys/kernel/tracing/events/kvm/kvm_exit/enable"
        );
        assert_eq!(
            line.text(Tool::TraceCmd),
            "trace-cmd record -e kvm:kvm_exit -f 'exit_reason == 0x7c && info1 == 0x0 && is_nested == 1'"
        );
        assert_eq!(
            line.text(Tool::Hist),
            "echo 'hist:keys=exit_reason.hex,rcx.hex if exit_reason == 0x7c && info1 == 0x0 && is_nested == 1' >> \
             /sys/kernel/tracing/events/kvm/kvm_exit/trigger"
        );
        assert_eq!(
            line.text(Tool::Bpftrace),
            "bpftrace -e 'tracepoint:kvm:kvm_exit /args->exit_reason == 0x7c && args->info1 == 0x0 && \
             args->is_nested == 1/ { @[args->exit_reason, args->rcx] = count(); }'"
        );
    }

    #[test]
    fn an_event_that_is_wanted_whole_has_no_filter() {
        let line = line("nested-page-fault", None, Source::Native, Isa::Vmx).unwrap();
        assert_eq!(line.text(Tool::PerfStat), "perf stat -a -e kvm:kvm_nested_page_fault");
        assert!(line.text(Tool::Tracefs).starts_with("echo '0' > "));
        assert!(!line.text(Tool::Hist).contains(" if ") && !line.text(Tool::Bpftrace).contains('/'));
    }

    #[test]
    fn a_stock_kernel_tells_no_levels() {
        for view in VIEWS.iter().filter(|view| view.event == KvmExit::NAME) {
            assert!(line(view.name, None, Source::Stock, Isa::Vmx).is_ok());
            let lacking = line(view.name, Some(Level::L1), Source::Stock, Isa::Vmx).unwrap_err();
            assert_eq!(lacking.0, ["is_nested"]);
        }
        assert_eq!(line("msr", None, Source::Stock, Isa::Svm).unwrap().keys, ["exit_reason", "info1"]);
        assert_eq!(line("nested-page-fault", None, Source::Stock, Isa::Svm), Err(Lacking(Vec::new())));
    }

    #[test]
    fn probes_do_without_what_vmx_reads_lazily() {
        for view in VIEWS {
            for level in [None, Some(Level::L2)] {
                let line = line(view.name, level, Source::Tprobe, Isa::Vmx).unwrap();
                assert!(line.text(Tool::PerfStat).contains(" exitregs:kvm_"));
                assert!(!line.keys.is_empty() && !line.keys.contains(&"info1"), "{line:?}");
            }
        }
    }
}
