// SPDX-License-Identifier: MIT
//! `cargo xtask test` and `cargo xtask soak`: every check there is, suite by suite.
//!
//! The suites before the integration tests are listed in [`suites`]; each integration test of each package of the
//! workspace is a suite by itself, found through cargo, so a new one cannot be forgotten. Of these as many run at once as
//! there are CPUs, with one test at a time each: most boot emulated hosts, which take one CPU, and in the end all have one that
//! takes longer than the others.

mod spdx;

use std::io::IsTerminal;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use exitregs_lab::counts;
use exitregs_lab::host::{Base, Built, Kernel};

use crate::setup;

/// Run every check and test with small counts, as CI does
///
/// Shows the output of what fails, then how long each suite took. The last line has the totals; the exit status is 1
/// if anything failed.
#[derive(Args)]
pub struct Arguments {
    /// Only these suites
    #[arg(value_name = "SUITE")]
    only: Vec<String>,
    /// Print the suites' names and do nothing
    #[arg(long)]
    list: bool,
}

/// Run the same tests with large counts
#[derive(Args)]
pub struct SoakArguments {
    #[command(flatten)]
    arguments: Arguments,
}

/// A check with a name.
struct Suite {
    name: String,
    what: What,
}

enum What {
    /// Passes if the command does; if it runs Rust tests they count one by one.
    Run(Command),
    /// The same, of an integration test.
    Test(Command),
    /// Returns what is wrong, line by line.
    Check(fn() -> Result<Vec<String>>),
}

/// What a suite came to.
struct Ended {
    passed: usize,
    failed: usize,
    /// Why it failed; empty if it passed.
    output: String,
}

/// Runs the suites with small counts.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    run_suites(arguments, &[])
}

/// Runs the suites with large counts.
pub fn soak(arguments: &SoakArguments) -> Result<ExitCode> {
    run_suites(&arguments.arguments, &[(counts::VARIABLE, counts::SOAK), ("PROPTEST_CASES", "20000")])
}

/// All suites, in the order in which they run: what fails fastest first.
fn suites() -> Result<Vec<Suite>> {
    let command = |arguments: &[&str]| {
        let mut command = crate::cargo();
        command.args(arguments);
        command
    };
    let cargo =
        |name: &str, arguments: &[&str]| Suite { name: name.to_owned(), what: What::Run(command(arguments)) };
    let mut rustdoc = crate::cargo();
    rustdoc.args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    rustdoc.env("RUSTDOCFLAGS", "--deny warnings");
    let mut suites = vec![
        Suite { name: "spdx".to_owned(), what: What::Check(spdx::check) },
        cargo("fmt", &["fmt", "--all", "--check"]),
        cargo("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
        Suite { name: "rustdoc".to_owned(), what: What::Run(rustdoc) },
        cargo("unit", &["test", "--quiet", "--workspace", "--lib", "--bins"]),
        cargo("doctest", &["test", "--quiet", "--workspace", "--doc"]),
    ];
    // Built ahead, for their time to be seen; the tests would build them, too.
    suites.push(Suite { name: "kernels".to_owned(), what: What::Check(build_kernels) });
    for (package, test) in integration_tests()? {
        let test_it = command(&["test", "--quiet", "--package", &package, "--test", &test]);
        suites.push(Suite { name: format!("{package}/{test}"), what: What::Test(test_it) });
    }
    Ok(suites)
}

/// Builds the kernels that are booted.
fn build_kernels() -> Result<Vec<String>> {
    for base in Base::ALL {
        for built in [Built::plain(base), Built::patched(base)] {
            Kernel::Built(built).image()?;
        }
    }
    Ok(Vec::new())
}

/// Package and name of each integration test of the workspace, in cargo's order.
fn integration_tests() -> Result<Vec<(String, String)>> {
    let output = crate::cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output();
    let output = output.context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut tests = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_test = target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"test".into()));
            if let (true, Some(package), Some(test)) =
                (is_test, package["name"].as_str(), target["name"].as_str())
            {
                tests.push((package.to_owned(), test.to_owned()));
            }
        }
    }
    Ok(tests)
}

fn run_suites(arguments: &Arguments, environment: &[(&str, &str)]) -> Result<ExitCode> {
    let mut suites = suites()?;
    if let Some(name) = arguments.only.iter().find(|name| suites.iter().all(|suite| suite.name != **name)) {
        let names: Vec<_> = suites.iter().map(|suite| &*suite.name).collect();
        bail!("there is no suite {name:?}; there are: {}", names.join(", "));
    }
    if !arguments.only.is_empty() {
        suites.retain(|suite| arguments.only.contains(&suite.name));
    }
    if arguments.list {
        suites.iter().for_each(|suite| println!("{}", suite.name));
        return Ok(ExitCode::SUCCESS);
    }
    setup::all(false)?;

    let (tests, checks) = suites.into_iter().partition(|suite| matches!(suite.what, What::Test(_)));
    let start = Instant::now();
    let mut rows = run_all(checks, 1, environment)?;
    rows.extend(run_all(tests, thread::available_parallelism().map_or(1, usize::from), environment)?);
    Ok(summary(&rows, start.elapsed()))
}

/// Name of a suite, what it came to, and how long it took.
type Row = (String, Ended, Duration);

/// Runs suites, so many at once, which share `cpus`.
fn run_all(suites: Vec<Suite>, cpus: usize, environment: &[(&str, &str)]) -> Result<Vec<Row>> {
    let at_once = cpus.min(suites.len()).max(1);
    let queue = Mutex::new(suites.into_iter().enumerate());
    let work = || -> Result<Vec<(usize, Row)>> {
        let mut rows = Vec::new();
        // The lock is released before the suite runs.
        let next = || queue.lock().ok()?.next();
        while let Some((number, suite)) = next() {
            rows.push((number, run_suite(suite, cpus / at_once, environment)?));
        }
        Ok(rows)
    };
    let mut rows = thread::scope(|scope| -> Result<Vec<_>> {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut rows = Vec::new();
        for worker in workers {
            rows.extend(worker.join().map_err(|_| anyhow!("a suite's thread panicked"))??);
        }
        Ok(rows)
    })?;
    rows.sort_by_key(|(number, _)| *number);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Runs a suite, of whose tests `threads` may run at once, and says how it ended.
fn run_suite(suite: Suite, threads: usize, environment: &[(&str, &str)]) -> Result<Row> {
    // The line is completed when a suite ends; in a log it would stay unfinished for minutes.
    if std::io::stderr().is_terminal() {
        eprint!("{:<32}...\r", suite.name);
    }
    let start = Instant::now();
    let ended = match suite.what {
        What::Run(command) => run_command(command, environment)?,
        What::Test(mut command) => {
            command.args(["--", "--test-threads", &threads.to_string()]);
            run_command(command, environment)?
        }
        What::Check(check) => {
            let findings = check()?;
            let failed = usize::from(!findings.is_empty());
            Ended { passed: 1 - failed, failed, output: findings.join("\n") }
        }
    };
    let time = start.elapsed();
    let mut said = format!(
        "{:<32}{} {:.1} s",
        suite.name,
        if ended.failed == 0 { "ok    " } else { "FAILED" },
        time.as_secs_f32()
    );
    if ended.failed > 0 {
        said = format!("{said}\n{}", ended.output.trim_end());
    }
    eprintln!("{said}");
    Ok((suite.name, ended, time))
}

/// Prints the table and the totals.
fn summary(rows: &[Row], time: Duration) -> ExitCode {
    println!("\n{:<32} {:>8} {:>8} {:>10}", "suite", "passed", "failed", "seconds");
    for (name, ended, time) in rows {
        println!("{name:<32} {:>8} {:>8} {:>10.1}", ended.passed, ended.failed, time.as_secs_f32());
    }
    let passed: usize = rows.iter().map(|(_, ended, _)| ended.passed).sum();
    let failed: usize = rows.iter().map(|(_, ended, _)| ended.failed).sum();
    println!("{:<32} {passed:>8} {failed:>8} {:>10.1}", "total", time.as_secs_f32());
    println!("\n{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_command(mut command: Command, environment: &[(&str, &str)]) -> Result<Ended> {
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().context("cannot run cargo")?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(judge(output.status.success(), text))
}

/// Counts libtest's results in the output of a suite. Tests that were skipped count as failed.
fn judge(success: bool, mut output: String) -> Ended {
    let count = |word: &str| -> usize {
        let results = output.lines().filter(|line| line.starts_with("test result: "));
        let parts = results.flat_map(|line| line.split(['.', ';']));
        parts.filter_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok()).sum()
    };
    let (passed, mut failed, ignored) = (count("passed"), count("failed"), count("ignored"));
    if ignored > 0 {
        failed += ignored;
        output += &format!("\n{ignored} ignored: a test runs or it goes");
    }
    match (success, passed + failed) {
        // No tests of its own (fmt, clippy): the suite counts as one.
        (true, 0) => Ended { passed: 1, failed: 0, output },
        // It broke off before or between its tests, which therefore say nothing of it.
        (false, _) if failed == 0 => Ended { passed, failed: 1, output },
        _ => Ended { passed, failed, output },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(success: bool, output: &str) -> (usize, usize) {
        let ended = judge(success, output.to_owned());
        (ended.passed, ended.failed)
    }

    #[test]
    fn results_of_several_test_programs_add_up() {
        let output = "test result: ok. 13 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\
                      test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 5 filtered out; finished in 0.01s";
        assert_eq!(counts(false, output), (15, 3));
    }

    #[test]
    fn a_suite_without_tests_counts_as_one() {
        assert_eq!(counts(true, ""), (1, 0));
        assert_eq!(counts(false, "error: could not compile"), (0, 1));
    }

    #[test]
    fn a_suite_that_dies_after_its_first_results_has_failed() {
        assert_eq!(counts(false, "test result: ok. 4 passed; 0 failed; 0 ignored"), (4, 1));
    }

    #[test]
    fn an_ignored_test_has_failed() {
        assert_eq!(counts(true, "test result: ok. 4 passed; 0 failed; 2 ignored"), (4, 2));
    }
}
