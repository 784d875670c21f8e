// SPDX-License-Identifier: MIT
//! Scenarios on emulated hosts, each a test. One boot plays all the scenarios of a host; it begins when the first test
//! that needs it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use exitregs_lab::host::{Amd, Command, Emulator, Finished, Host, Intel, Kernel, Outcome, Status};
use exitregs_lab::{binaries, counts};
use libtest_mimic::{Arguments, Trial};

use crate::scenario::{FOLDER, Report, Scenario};

/// Seconds that a host may take for all its scenarios, with small and with large counts.
const TIME_LIMIT: (u64, u64) = (900, 4 * 3600);

/// An emulated AMD host with this checkout's programs.
///
/// # Errors
/// If they cannot be built.
pub fn host(kernel: Kernel) -> Result<Host<Amd>> {
    with_programs(Host::amd(kernel))
}

/// An emulated Intel host with this checkout's programs.
///
/// # Errors
/// If they cannot be built.
pub fn intel(kernel: Kernel) -> Result<Host<Intel>> {
    with_programs(Host::intel(kernel))
}

fn with_programs<E: Emulator>(host: Host<E>) -> Result<Host<E>> {
    let limit = Duration::from_secs(counts().pick(TIME_LIMIT.0, TIME_LIMIT.1));
    let mut host = host.time_limit(limit).program("setpriv");
    let driver = binaries::programs("exitregs-tests")?;
    let guest = binaries::lab()?.all;
    for (name, program) in driver.into_iter().chain(guest).chain([("exitregs".to_owned(), binaries::tool()?)])
    {
        host = host.file(program, Path::new("/usr/bin").join(name));
    }
    Ok(host)
}

/// A suite of tests.
#[derive(Default)]
pub struct Suite {
    boots: Vec<Boot>,
}

/// A host to boot, and what to do there.
pub struct Boot {
    name: String,
    host: Play,
    tests: Vec<(Scenario, Check)>,
}

/// Boots a host with the scenarios in a folder and runs commands there.
type Play = Box<dyn Fn(&Path, Vec<Command>) -> Result<Outcome> + Send + Sync>;

/// Judges what came back.
type Check = Box<dyn Fn(&Played) -> Result<()> + Send + Sync>;

impl Boot {
    /// Adds a test. Whatever `check` looks at, a scenario must have come to its end and left nothing behind.
    pub fn test(
        &mut self,
        scenario: Scenario,
        check: impl Fn(&Played) -> Result<()> + Send + Sync + 'static,
    ) {
        self.tests.push((scenario, Box::new(check)));
    }
}

impl Suite {
    /// Adds a host; its name goes before those of its tests.
    pub fn boot<E>(&mut self, name: impl Into<String>, host: Host<E>) -> &mut Boot
    where
        E: Emulator + Clone + Send + Sync + 'static,
    {
        let host = move |scenarios: &Path, commands| {
            host.clone().file(scenarios, "/scenarios").get(FOLDER).run_each(commands)
        };
        self.boots.push(Boot { name: name.into(), host: Box::new(host), tests: Vec::new() });
        self.boots.last_mut().expect("one was just added")
    }

    /// Runs the tests that the command line names, as every Rust test program does.
    pub fn run(self) -> ExitCode {
        let mut trials = Vec::new();
        for boot in self.boots {
            let (scenarios, checks): (Vec<_>, Vec<_>) = boot.tests.into_iter().unzip();
            let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name.clone()).collect();
            let run = Arc::new(Run { host: boot.host, scenarios, outcome: OnceLock::new() });
            for (number, (name, check)) in names.into_iter().zip(checks).enumerate() {
                let run = Arc::clone(&run);
                let judge = move || run.played(number).and_then(|played| played.judge(&check));
                let judge = move || judge().map_err(|error| format!("{error:#}").into());
                trials.push((number, Trial::test(format!("{}: {name}", boot.name), judge)));
            }
        }
        // The hosts in turn, so that they run side by side.
        trials.sort_by_key(|(number, _)| *number);
        let trials = trials.into_iter().map(|(_, trial)| trial).collect();
        libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
    }
}

/// Makes a suite by `describe` and runs it. Every suite's `main`.
pub fn main(describe: impl FnOnce(&mut Suite) -> Result<()>) -> ExitCode {
    let mut suite = Suite::default();
    match describe(&mut suite) {
        Ok(()) => suite.run(),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A boot that was or will be.
struct Run {
    host: Play,
    scenarios: Vec<Scenario>,
    outcome: OnceLock<Result<Outcome, String>>,
}

impl Run {
    fn outcome(&self) -> Result<&Outcome> {
        let outcome = self.outcome.get_or_init(|| self.boot().map_err(|error| format!("{error:#}")));
        outcome.as_ref().map_err(|error| anyhow!("{error}"))
    }

    fn boot(&self) -> Result<Outcome> {
        let folder = tempfile::tempdir()?;
        let mut commands = Vec::new();
        for (number, scenario) in self.scenarios.iter().enumerate() {
            let name = format!("{number}.json");
            fs::write(folder.path().join(&name), serde_json::to_vec(scenario)?)?;
            commands.push(Command::new(["exitregs-test-driver".to_owned(), format!("/scenarios/{name}")]));
        }
        (self.host)(folder.path(), commands)
    }

    fn played(&self, number: usize) -> Result<Played> {
        let outcome = self.outcome()?;
        let warnings = outcome.kernel_warnings();
        ensure!(warnings.is_empty(), "the host's kernel says:\n{}", warnings.join("\n"));
        let driver =
            outcome.commands.get(number).context("the host's time was up before it was this one's turn")?;
        let folder = Path::new(FOLDER).join(self.scenarios[number].folder());
        Played::new(driver, outcome.files.path(folder))
    }
}

/// A scenario that has been played.
#[derive(Debug)]
pub struct Played {
    report: Report,
    folder: PathBuf,
}

impl Played {
    fn new(driver: &Finished, folder: Result<PathBuf>) -> Result<Self> {
        driver.check()?;
        let report = serde_json::from_slice(&driver.stdout).context("the driver's report makes no sense")?;
        Ok(Self { report, folder: folder? })
    }

    fn judge(&self, check: &Check) -> Result<()> {
        let result = match &self.report.broken_off {
            Some(why) => Err(anyhow!("broken off at {why}")),
            None => check(self),
        };
        let left = &self.report.left_behind;
        let result = result.and_then(|()| match left.is_empty() {
            true => Ok(()),
            false => bail!("left behind: {}", left.join(", ")),
        });
        result.map_err(|error| anyhow!("{error:#}\n{}", self.messages()))
    }

    /// What the processes wrote to standard error.
    fn messages(&self) -> String {
        let mut text = String::new();
        let paths = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "stderr")) {
            let written = fs::read(&path).unwrap_or_default();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            for line in String::from_utf8_lossy(&written).lines() {
                text += &format!("  {name}: {line}\n");
            }
        }
        text
    }

    /// Where a file of the scenario's folder is, if it is there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file of the scenario's folder.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        let bytes = fs::read(&path).with_context(|| format!("the scenario left no {name}"))?;
        String::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8"))
    }

    /// A process's standard output.
    ///
    /// # Errors
    /// If there was no such process.
    pub fn stdout(&self, process: &str) -> Result<String> {
        self.read(&format!("{process}.stdout"))
    }

    /// A process's standard error.
    ///
    /// # Errors
    /// If there was no such process.
    pub fn stderr(&self, process: &str) -> Result<String> {
        self.read(&format!("{process}.stderr"))
    }

    /// A process's id.
    ///
    /// # Errors
    /// If there was no such process.
    pub fn pid(&self, process: &str) -> Result<u32> {
        Ok(self.ended(process)?.pid)
    }

    /// How a process ended.
    ///
    /// # Errors
    /// If there was no such process.
    pub fn status(&self, process: &str) -> Result<Status> {
        Ok(self.ended(process)?.status)
    }

    fn ended(&self, process: &str) -> Result<crate::scenario::Ended> {
        self.report
            .processes
            .get(process)
            .copied()
            .with_context(|| format!("no process was called {process}"))
    }

    /// Checks that processes exited with 0.
    ///
    /// # Errors
    /// If one did not.
    pub fn succeeded(&self, processes: &[&str]) -> Result<()> {
        processes.iter().try_for_each(|process| self.exited(process, 0))
    }

    /// Checks a process's exit code.
    ///
    /// # Errors
    /// If it is another, or a signal ended it.
    pub fn exited(&self, process: &str, code: i32) -> Result<()> {
        let status = self.status(process)?;
        ensure!(status == Status::Code(code), "{process}: {status}, expected {code}");
        Ok(())
    }

    /// Checks that a process exited with this code and wrote this to standard error, without panicking.
    ///
    /// # Errors
    /// If it did not.
    pub fn failed(&self, process: &str, code: i32, words: &[&str]) -> Result<()> {
        let said = self.stderr(process)?;
        self.exited(process, code)?;
        ensure!(!said.contains("panicked"), "{process} panicked");
        for word in words {
            ensure!(said.contains(word), "{process} did not say {word:?}");
        }
        Ok(())
    }
}
