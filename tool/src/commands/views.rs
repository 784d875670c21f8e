// SPDX-License-Identifier: MIT
//! `exitregs views`: every view as other tools can ask for it, ready to paste into a shell.

mod events;
mod line;

use crate::cli::{LevelArgument, misuse, view_names};
use crate::host::Host;
use crate::output::style::{self, Styled};
use anyhow::{Result, anyhow};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use events::{Events, Source};
use exitregs_common::event::Event;
use exitregs_common::event::KvmNestedPageFault;
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::{VIEWS, View};
use line::{Lacking, Line, Tool};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

/// The arguments of `exitregs views`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The views; all if none is given
    #[arg(value_name = "VIEW", value_parser = view_names())]
    views: Vec<&'static View>,
    /// At this level only
    #[arg(long, ignore_case = true)]
    level: Option<LevelArgument>,
    /// For this only
    #[arg(long, value_enum, value_delimiter = ',')]
    tool: Vec<Tool>,
    /// For the guests of this vendor's processors; this host's, if it is not given
    #[arg(long, value_parser = isas())]
    vendor: Option<Isa>,
    /// For the events of this source; the best one that is here, if it is not given
    #[arg(long, value_enum)]
    source: Option<Source>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn isas() -> impl TypedValueParser<Value = Isa> {
    const ISAS: [Isa; 2] = [Isa::Svm, Isa::Vmx];
    PossibleValuesParser::new(["svm", "vmx"])
        .try_map(|name| ISAS.into_iter().find(|isa| isa.to_string() == name).ok_or("no such vendor"))
}

/// A view at a level, as it is printed.
#[derive(Debug, Serialize)]
struct Entry {
    view: &'static str,
    about: &'static str,
    event: &'static str,
    /// 1 or 2; null: both.
    level: Option<u8>,
    /// Null if the event lacks what it reads.
    filter: Option<String>,
    keys: Vec<&'static str>,
    /// The fields that the event lacks: those of the filter, or else of the keys.
    lacks: Vec<&'static str>,
    commands: BTreeMap<Tool, String>,
}

/// Runs it; returns exit status 0 if there is a line to paste, else 1.
///
/// # Errors
/// The vendor or the source is not known, or standard output cannot be written.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let events = Events::of(&Host::this(), arguments.source, arguments.vendor)?;
    let tools = if arguments.tool.is_empty() { Tool::value_variants() } else { &arguments.tool };
    let (tools, cannot): (Vec<Tool>, Vec<_>) = tools.iter().partition(|tool| tool.can_use(events.source));
    if tools.is_empty() {
        return Err(anyhow!(
            "{NO_BPF}\n  use --tool hist, or `exitregs stat`, which counts by BPF programs of its own"
        ));
    }
    let entries = arguments.entries(&events, &tools);
    if entries.is_empty() {
        return Err(misuse("--level", "nested page faults are of L2"));
    }
    let mut out = anstream::stdout().lock();
    if arguments.json {
        let json = serde_json::json!({
            "source": events.source,
            "vendor": events.isa.to_string(),
            "group": events.source.group(),
            "here": events.are_here,
            "views": entries,
        });
        serde_json::to_writer_pretty(&mut out, &json).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &events, &entries)?;
        if !cannot.is_empty() {
            writeln!(out, "\n{}", Styled(style::FAINT, format!("# {NO_BPF}")))?;
        }
    }
    out.flush()?;
    if entries.iter().all(|entry| entry.commands.is_empty()) {
        return Err(anyhow!("the events in {}: tell nothing of this\n  {REMEDY}", events.source.group()));
    }
    Ok(0)
}

const REMEDY: &str =
    "`exitregs events install` makes events that have registers and levels; `exitregs trace` needs none";

const NO_BPF: &str = "bpftrace cannot use these events: the kernel attaches no BPF program to them";

impl Arguments {
    fn entries(&self, events: &Events, tools: &[Tool]) -> Vec<Entry> {
        let all: Vec<_> = VIEWS.iter().collect();
        let views = if self.views.is_empty() { &all } else { &self.views };
        let wanted = self.level.map(Level::from);
        let mut entries = Vec::new();
        for view in views {
            // Nested page faults are all of L2.
            let levels = match (view.event, wanted) {
                (KvmNestedPageFault::NAME, Some(Level::L1)) => vec![],
                (KvmNestedPageFault::NAME, _) => vec![Some(Level::L2)],
                (_, None) => vec![None, Some(Level::L1), Some(Level::L2)],
                (_, Some(level)) => vec![Some(level)],
            };
            entries.extend(levels.into_iter().map(|level| entry(view, level, tools, events)));
        }
        entries
    }
}

fn entry(view: &'static View, level: Option<Level>, tools: &[Tool], events: &Events) -> Entry {
    let line = Line::new(view, level, events);
    let (keys, lacks) = match &line {
        Ok(line) => {
            let lacks = view.keys.iter().copied().filter(|key| !line.keys.contains(key));
            (line.keys.clone(), lacks.collect())
        }
        Err(Lacking(fields)) => (Vec::new(), fields.clone()),
    };
    let line = line.ok();
    Entry {
        view: view.name,
        about: view.about,
        event: view.event,
        level: level.map(|level| level.is_nested() + 1),
        keys,
        lacks,
        commands: line.iter().flat_map(|line| tools.iter().map(|tool| (*tool, line.text(*tool)))).collect(),
        filter: line.map(|line| line.filter),
    }
}

/// Everything that is no line to paste is a comment of the shell's.
fn print(out: &mut impl Write, events: &Events, entries: &[Entry]) -> std::io::Result<()> {
    let comment =
        |out: &mut dyn Write, style, text: String| writeln!(out, "{}", Styled(style, format!("# {text}")));
    let group = events.source.group();
    let vendor = events.isa.to_string().to_uppercase();
    let source = format!("{:?}", events.source).to_lowercase();
    let place = if events.are_here { "here" } else { "not seen here" };
    comment(
        out,
        style::FAINT,
        format!("events of the source {source} ({group}:, {place}), guests of {vendor}"),
    )?;
    let folder = format!("{}/events/{group}/EVENT", events.tracefs.display());
    comment(
        out,
        style::FAINT,
        format!("to undo a filter: echo 0 > {folder}/enable; echo 0 > {folder}/filter"),
    )?;
    comment(
        out,
        style::FAINT,
        format!("to read a hist trigger: cat {folder}/hist; to undo it: the same line with ! before hist"),
    )?;
    for Entry { view, about, event, level, filter, lacks, commands, .. } in entries {
        writeln!(out)?;
        let level = level.map_or("L1 and L2".to_owned(), |level| format!("L{level}"));
        comment(out, style::HEADING, format!("{view}, {level}: {about}"))?;
        let lacking = lacks.join(", ");
        match filter {
            Some(_) if lacks.is_empty() => {}
            Some(_) => comment(out, style::UNSURE, format!("{group}:{event} has no {lacking} to count by"))?,
            None if lacks.is_empty() => {
                comment(out, style::BAD, format!("there is no {group}:{event}: {REMEDY}"))?
            }
            None => comment(out, style::BAD, format!("{group}:{event} has no {lacking}: {REMEDY}"))?,
        }
        commands.values().try_for_each(|command| writeln!(out, "{command}"))?;
    }
    Ok(())
}
