// SPDX-License-Identifier: MIT
//! The scripted guest in scenarios: `exitregs-guest`, which writes the ground truth to `NAME.truth`.

use anyhow::{Context, Result};
use exitregs_lab::truth::Line;

use crate::scenario::{Process, Scenario};
use crate::suite::Played;

/// A guest to run.
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    truth: String,
    arguments: Vec<String>,
}

impl Guest {
    /// The guest that the scenario calls `name`, doing one of its own scripts.
    pub fn new(name: impl Into<String>, script: &str) -> Self {
        Self::named(name.into()).argument("--script", script)
    }

    /// The guest, doing about `ops` instructions that depend on `seed`.
    pub fn random(name: impl Into<String>, seed: u64, ops: u32) -> Self {
        Self::named(name.into()).argument("--random", seed).argument("--ops", ops)
    }

    fn named(name: String) -> Self {
        Self { truth: format!("{name}.truth"), name, arguments: Vec::new() }
    }

    fn argument(mut self, name: &str, value: impl ToString) -> Self {
        self.arguments.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// Turns of the script.
    pub fn repeat(self, turns: u32) -> Self {
        self.argument("--repeat", turns)
    }

    /// vCPUs.
    pub fn vcpus(self, vcpus: u32) -> Self {
        self.argument("--vcpus", vcpus)
    }

    /// Die (SIGKILL) in the middle of the script.
    pub fn die_midway(mut self) -> Self {
        self.arguments.push("--die-midway".to_owned());
        self
    }

    /// Do not write down what it does.
    pub fn without_truth(self) -> Self {
        Self { truth: "/dev/null".to_owned(), ..self }
    }

    /// Do the script until somebody kills the guest, and do not write down what it does: that would fill the memory.
    pub fn endless(self) -> Self {
        self.repeat(i32::MAX as u32).argument("--timeout", 24 * 3600).without_truth()
    }

    /// What the scenario calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command line.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec!["exitregs-guest".to_owned(), "--truth".to_owned(), self.truth.clone()];
        argv.extend(self.arguments.iter().cloned());
        argv
    }

    /// The process that runs it at once.
    pub fn process(&self) -> Process {
        Process::new(&self.name, self.argv())
    }

    /// Starts it; it is then ready, and waits for its [`go`](Self::go).
    pub fn start(&self) -> impl FnOnce(Scenario) -> Scenario {
        let mut process = self.process();
        process.argv.push("--start-on-line".to_owned());
        let name = self.name.clone();
        move |scenario| scenario.start(process).wait_for(name, "ready")
    }

    /// Lets it go, and waits for its end.
    pub fn go(&self) -> impl FnOnce(Scenario) -> Scenario {
        let name = self.name.clone();
        move |scenario| scenario.press_enter(&name).end(name)
    }

    /// What it did, in the order in which it wrote that.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn truth(&self, played: &Played) -> Result<Vec<Line>> {
        let text = played.read(&self.truth)?;
        let parse = |(number, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("line {} of {} makes no sense", number + 1, self.truth))
        };
        text.lines().enumerate().map(parse).collect()
    }
}
