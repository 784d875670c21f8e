// SPDX-License-Identifier: MIT
//! The command under test in scenarios.

use nix::sys::signal::Signal;

use crate::scenario::{Process, Scenario};

/// `exitregs` with these arguments, called `name` in the scenario.
pub fn exitregs<'a>(name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Process {
    Process::new(name, ["exitregs"].into_iter().chain(arguments))
}

/// `exitregs trace --json` into `NAME.json`, with these arguments.
pub fn trace(name: &str, arguments: &[&str]) -> Process {
    let output = format!("{name}.json");
    exitregs(name, ["trace", "--json", "-o", &output].into_iter().chain(arguments.iter().copied()))
}

/// `exitregs stat --json` into `NAME.json`, with these arguments.
pub fn stat(name: &str, arguments: &[&str]) -> Process {
    let output = format!("{name}.json");
    exitregs(name, ["stat", "--json", "-o", &output].into_iter().chain(arguments.iter().copied()))
}

/// Starts these and waits until each traces or counts; does `between`; interrupts them, and waits for their end.
pub fn while_running(
    processes: Vec<Process>,
    between: impl FnOnce(Scenario) -> Scenario,
) -> impl FnOnce(Scenario) -> Scenario {
    move |mut scenario| {
        let names: Vec<_> = processes.iter().map(|process| process.name.clone()).collect();
        for process in processes {
            scenario = scenario.start(process);
        }
        for name in &names {
            // What `trace` and `stat` both say, whichever source it is.
            scenario = scenario.wait_for(name, " source with ");
        }
        scenario = between(scenario);
        for name in &names {
            scenario = scenario.kill(name, Signal::SIGINT);
        }
        names.into_iter().fold(scenario, Scenario::end)
    }
}
