// SPDX-License-Identifier: MIT
//! The command line: what can be asked for, and what the words mean on this host.

use crate::commands::{doctor, events, generate, record, report, stat, trace, views};
use crate::filter::Filter;
use crate::host::Host;
use crate::source::choose::Source;
use crate::source::{self, MAX_VMS, Selection};
use crate::vm;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use exitregs_common::event::{Event, KvmExit, KvmNestedPageFault};
use exitregs_common::hypercall::Abi;
use exitregs_common::isa::{Isa, Level};
use exitregs_common::view::{VIEWS, View};
use std::fmt;

/// Every KVM VM exit with its guest registers and its level.
#[derive(Debug, Parser)]
#[command(name = "exitregs", version, about, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Exit status: 0 success, 1 failure, 2 misuse. Try `exitregs doctor` first.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell what this host can do, and how to get what is missing
    Doctor(doctor::Arguments),
    /// Print one line per exit: what the guest did, what it got, how long it took
    Trace(trace::Arguments),
    /// Count and time exits in the kernel, by VM, level, reason and detail
    Stat(stat::Arguments),
    /// Record exits in a file
    Record(record::Arguments),
    /// Tell what a recording amounts to
    Report(report::Arguments),
    /// Give this kernel the patched kernel's events, for other tools to use
    Events(events::Arguments),
    /// Print every view as trace-cmd, perf, bpftrace and tracefs can ask for it, ready to paste
    Views(views::Arguments),
    /// Write the man pages and shell completions into a directory
    #[command(hide = true)]
    Generate(generate::Arguments),
}

/// A misuse of the command line: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub String);

/// Misuse in what was given for an option.
pub fn misuse(option: &str, error: impl fmt::Display) -> anyhow::Error {
    Misuse(format!("{option}: {error}")).into()
}

/// A level, as the command line spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LevelArgument {
    /// The VM that KVM runs for user space
    L1,
    /// A guest of L1, or deeper
    L2,
}

impl From<LevelArgument> for Level {
    fn from(level: LevelArgument) -> Self {
        match level {
            LevelArgument::L1 => Self::L1,
            LevelArgument::L2 => Self::L2,
        }
    }
}

/// One of the conditions that a selection's alternatives make.
#[derive(Debug, Clone)]
pub struct Alternative {
    /// The name of its view.
    pub view: Option<&'static str>,
    /// Its level.
    pub level: Option<Level>,
    /// Its `--where`.
    pub condition: Option<String>,
    /// What it selects.
    pub selection: Selection,
}

/// Which exits are wanted. Conditions of different options all apply; values of one option are alternatives.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Which exits")]
pub struct ExitArguments {
    /// Exits of a view
    #[arg(long, value_name = "VIEW", value_delimiter = ',', value_parser = view_names())]
    view: Vec<&'static View>,
    /// Exits from this level
    #[arg(long, ignore_case = true)]
    level: Option<LevelArgument>,
    /// VMs by the pid of their VMM, or by name (QEMU's -name)
    #[arg(short = 'p', long, visible_alias = "pid", value_name = "PID|NAME", value_delimiter = ',')]
    pub vm: Vec<String>,
    /// vCPUs by id
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    vcpu: Vec<u32>,
    /// Exit reasons by the kernel's name or by number
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    /// A condition on kvm_exit's fields in the kernel's filter language, such as 'rcx == 0x6e0 && is_nested == 1'
    #[arg(long = "where", value_name = "EXPR")]
    conditions: Vec<String>,
}

/// Which exits are wanted of those that happen, and how they are got at.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Which exits")]
pub struct SelectionArguments {
    #[command(flatten)]
    exits: ExitArguments,
    /// How L2's hypercalls are to be read, which only L1 knows
    #[arg(long, value_name = "ABI", value_parser = abis())]
    hypercall_abi: Option<Abi>,
    /// Where exits come from
    #[arg(long, value_enum, default_value = "auto")]
    pub source: Source,
}

/// Takes the name of a view.
pub fn view_names() -> impl TypedValueParser<Value = &'static View> {
    PossibleValuesParser::new(VIEWS.iter().map(|view| PossibleValue::new(view.name).help(view.about)))
        .try_map(|name| View::by_name(&name).ok_or("no such view"))
}

fn abis() -> impl TypedValueParser<Value = Abi> {
    PossibleValuesParser::new(Abi::ALL.map(Abi::name))
        .try_map(|name| Abi::by_name(&name).ok_or("no such convention"))
}

impl ExitArguments {
    /// What the words mean of guests that run by `isa`, but for the VMs.
    ///
    /// # Errors
    /// [`Misuse`]: a reason or condition that there is not.
    pub fn conditions(&self, isa: Isa) -> anyhow::Result<Selection> {
        let reasons: Vec<_> = self
            .reason
            .iter()
            .map(|name| {
                let number = if name.starts_with(|c: char| c.is_ascii_digit()) {
                    name.clone()
                } else {
                    let number = isa.exit_reason_by_name(name);
                    number
                        .ok_or_else(|| misuse("--reason", format!("{isa} has no exit reason `{name}`")))?
                        .to_string()
                };
                Ok(format!("exit_reason == {number}"))
            })
            .collect::<anyhow::Result<_>>()?;
        let (exit_views, fault_views): (Vec<&View>, Vec<&View>) =
            self.view.iter().partition(|view| view.event == KvmExit::NAME);
        let exits = self.view.is_empty() || !exit_views.is_empty();
        let views = exit_views.iter().map(|view| view.predicate(isa).to_string()).collect();
        let vcpus: Vec<_> = self.vcpu.iter().map(|vcpu| format!("vcpu_id == {vcpu}")).collect();
        let level = self.level.map(|level| format!("is_nested == {}", Level::from(level).is_nested()));

        // Those are of L2, and an exit's reason or fields do not select them.
        let unasked = self.view.is_empty() && self.reason.is_empty() && self.conditions.is_empty();
        let nested_page_faults =
            (unasked || !fault_views.is_empty()) && self.level != Some(LevelArgument::L1);
        if !exits && !nested_page_faults {
            return Err(misuse("--level", "nested page faults are of L2"));
        }
        if !exits && !self.reason.is_empty() {
            return Err(misuse("--reason", "nested page faults have no exit reason"));
        }

        let (vcpus, conditions) = (("--vcpu", vcpus), ("--where", self.conditions.clone()));
        let filter: Option<Filter<KvmExit>> = match exits {
            true => {
                let level = ("--level", level.into_iter().collect());
                let reasons = ("--reason", reasons);
                all_of(&[("--view", views), level, vcpus.clone(), reasons, conditions.clone()], isa)?
            }
            false => None,
        };
        let nested_page_fault_filter: Option<Filter<KvmNestedPageFault>> = match nested_page_faults {
            true => all_of(&[vcpus, conditions], isa)?,
            false => None,
        };
        if let Some(filter) = &filter {
            // The programs are compiled when they are needed; that they can be is the user's to know now.
            filter.program().map_err(|error| Misuse(format!("{error}: ask for less at once")))?;
        }
        Ok(Selection { exits, filter, nested_page_faults, nested_page_fault_filter, ..Selection::default() })
    }

    /// Whether a `--where` asks for the level.
    fn reads_level(&self, isa: Isa) -> bool {
        let is_nested = KvmExit::index("is_nested").map_or(0, |index| 1 << index);
        let filters = self.conditions.iter().flat_map(|text| Filter::<KvmExit>::parse(text, isa));
        filters.map(|filter| filter.fields()).any(|fields| fields & is_nested != 0)
    }
}

impl SelectionArguments {
    /// What the words mean on a host whose guests run by `isa`.
    ///
    /// # Errors
    /// [`Misuse`]: a VM, reason or condition that there is not.
    pub fn resolve(&self, isa: Isa) -> anyhow::Result<Selection> {
        let mut vms = Vec::new();
        for wanted in &self.exits.vm {
            vms.extend(vm::resolve(wanted).map_err(|error| misuse("--vm", error))?);
        }
        if vms.len() > MAX_VMS {
            return Err(misuse("--vm", format!("{} VMs, but {MAX_VMS} at most can be selected", vms.len())));
        }
        let selection = self.exits.conditions(isa)?;
        Ok(Selection { vms, hypercall_abi_l2: self.hypercall_abi, ..selection })
    }

    /// Every single condition that the alternatives make: one view, one `--where`, one level. Levels are told apart if
    /// the events tell them (`has_levels`), no condition asks for one already, and there are two: a nested page fault is
    /// of L2.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn alternatives(&self, isa: Isa, has_levels: bool) -> anyhow::Result<Vec<Alternative>> {
        fn each<T: Clone>(values: &[T]) -> Vec<Option<T>> {
            if values.is_empty() { vec![None] } else { values.iter().cloned().map(Some).collect() }
        }
        let both = [Some(LevelArgument::L1), Some(LevelArgument::L2)];
        let mut alternatives = Vec::new();
        for view in each(&self.exits.view) {
            let is_fault = view.is_some_and(|view| view.event == KvmNestedPageFault::NAME);
            let levels = match self.exits.level {
                None if has_levels && !is_fault && !self.exits.reads_level(isa) => &both[..],
                level => &[level],
            };
            for (condition, level) in each(&self.exits.conditions)
                .iter()
                .flat_map(|condition| levels.iter().map(move |l| (condition, l)))
            {
                let exits = ExitArguments {
                    view: view.into_iter().collect(),
                    conditions: condition.iter().cloned().collect(),
                    level: *level,
                    ..self.exits.clone()
                };
                let one = Self { exits, ..self.clone() };
                alternatives.push(Alternative {
                    view: view.map(|view| view.name),
                    level: if is_fault { Some(Level::L2) } else { level.map(Level::from) },
                    condition: condition.clone(),
                    selection: one.resolve(isa)?,
                });
            }
        }
        Ok(alternatives)
    }

    /// The selection on `host`.
    ///
    /// # Errors
    /// KVM does not work here, or as [`resolve`](Self::resolve).
    pub fn on(&self, host: &Host) -> anyhow::Result<Selection> {
        self.resolve(source::check_kvm(host)?)
    }
}

/// The filter of several options' conditions, which must all hold; of one option's, one must. None without any.
fn all_of<E: Event>(options: &[(&str, Vec<String>)], isa: Isa) -> anyhow::Result<Option<Filter<E>>> {
    let mut all: Option<Filter<E>> = None;
    for (option, texts) in options {
        let mut any: Option<Filter<E>> = None;
        for text in texts {
            let one = Filter::parse(text, isa).map_err(|error| misuse(option, error))?;
            any = Some(match any {
                Some(any) => any.or(one),
                None => one,
            });
        }
        all = match (all, any) {
            (Some(all), Some(any)) => Some(all.and(any)),
            (all, any) => all.or(any),
        };
    }
    Ok(all)
}
