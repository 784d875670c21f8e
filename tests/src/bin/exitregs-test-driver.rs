// SPDX-License-Identifier: MIT
//! Plays a [`Scenario`] on the host that it runs on: reads it from the file that it is given, and writes a [`Report`] to
//! standard output.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use exitregs_lab::host::Status;
use exitregs_tests::leftover;
use exitregs_tests::scenario::{Ended, FOLDER, PATIENCE, Process, Report, Scenario, Step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often something is looked for that is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// The kernel frees BPF objects some time after their last user has gone.
const RELEASE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exitregs-test-driver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: exitregs-test-driver SCENARIO.json")?;
    let scenario: Scenario =
        serde_json::from_slice(&fs::read(path)?).context("cannot understand the scenario")?;
    let folder = Path::new(FOLDER).join(scenario.folder());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Processes that are not root write their results here as well.
    fs::set_permissions(&folder, Permissions::from_mode(0o777))?;

    let before = leftover::list()?;
    let mut play = Play { folder, running: BTreeMap::new(), ended: BTreeMap::new() };
    let mut report = Report::default();
    for (number, step) in scenario.steps.into_iter().enumerate() {
        let what = format!("{step:?}");
        if let Err(error) = play.step(step) {
            report.broken_off = Some(format!("step {number}, {what}: {error:#}"));
            break;
        }
    }
    if report.broken_off.is_none() && !play.running.is_empty() {
        let names: Vec<_> = play.running.keys().cloned().collect();
        report.broken_off = Some(format!("the scenario ends, but not {}", names.join(", ")));
    }
    for (_, mut running) in std::mem::take(&mut play.running) {
        // It may have ended since; that it has is all that is wanted.
        let _ = running.child.kill();
        let _ = running.child.wait();
    }

    let end = Instant::now() + RELEASE;
    loop {
        let after = leftover::list()?;
        report.left_behind = after.difference(&before).cloned().collect();
        if report.left_behind.is_empty() || Instant::now() > end {
            break;
        }
        thread::sleep(LOOK);
    }
    report.processes = play.ended;
    serde_json::to_writer(std::io::stdout(), &report).context("cannot write the report")
}

struct Play {
    folder: PathBuf,
    running: BTreeMap<String, Running>,
    ended: BTreeMap<String, Ended>,
}

struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Play {
    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Start(process) => self.start(&process),
            Step::WaitFor { process, text } => self.wait_for(&process, &text),
            Step::Type { process, line } => {
                let running = self.running(&process)?;
                let stdin = running.stdin.as_mut().context("it has no standard input")?;
                writeln!(stdin, "{line}").and_then(|()| stdin.flush()).context("it does not read")
            }
            Step::Kill { process, signal } => {
                let signal = Signal::try_from(signal).context("there is no such signal")?;
                let pid = self.running(&process)?.child.id();
                kill(Pid::from_raw(pid as i32), signal).context("kill(2)")
            }
            Step::End { process } => self.end(&process),
            Step::Sleep { milliseconds } => {
                thread::sleep(Duration::from_millis(milliseconds));
                Ok(())
            }
        }
    }

    fn running(&mut self, process: &str) -> Result<&mut Running> {
        self.running.get_mut(process).with_context(|| format!("{process} does not run"))
    }

    fn start(&mut self, process: &Process) -> Result<()> {
        ensure!(
            !self.running.contains_key(&process.name) && !self.ended.contains_key(&process.name),
            "there was a process of that name already"
        );
        let argv = process.argv.iter().map(|word| self.with_pids(word)).collect::<Result<Vec<_>>>()?;
        let (program, arguments) = argv.split_first().context("it has no program")?;
        let file = |kind: &str| {
            let path = self.folder.join(format!("{}.{kind}", process.name));
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::piped()).stderr(file("stderr")?);
        let stdout = file("stdout")?;
        let mut head_into = None;
        match process.lines {
            None => command.stdout(stdout),
            Some(lines) => {
                head_into = Some((stdout, lines));
                command.stdout(Stdio::piped())
            }
        };
        let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        if let (Some(pipe), Some((stdout, lines))) = (child.stdout.take(), head_into) {
            thread::spawn(move || head(pipe, stdout, lines));
        }
        let stdin = child.stdin.take();
        self.running.insert(process.name.clone(), Running { child, stdin });
        Ok(())
    }

    /// `word` with each `{pid:NAME}` replaced.
    fn with_pids(&self, word: &str) -> Result<String> {
        let Some((before, rest)) = word.split_once("{pid:") else { return Ok(word.to_owned()) };
        let (name, after) = rest.split_once('}').context("`{pid:` without `}`")?;
        let pid = match (self.running.get(name), self.ended.get(name)) {
            (Some(running), _) => running.child.id(),
            (None, Some(ended)) => ended.pid,
            (None, None) => bail!("{name} was not started"),
        };
        Ok(format!("{before}{pid}{}", self.with_pids(after)?))
    }

    fn wait_for(&mut self, process: &str, text: &str) -> Result<()> {
        let path = self.folder.join(format!("{process}.stderr"));
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            // What it wrote before it ended counts.
            let ended = match self.running.get_mut(process) {
                Some(running) => running.child.try_wait()?.is_some(),
                None => true,
            };
            let written = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if String::from_utf8_lossy(&written).contains(text) {
                return Ok(());
            }
            ensure!(!ended, "it ended without writing that");
            ensure!(Instant::now() < end, "it did not write that within {PATIENCE} s");
            thread::sleep(LOOK);
        }
    }

    fn end(&mut self, process: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            let running = self.running(process)?;
            // A process that reads must not wait for what nobody will write.
            running.stdin = None;
            if let Some(status) = running.child.try_wait()? {
                let ended = Ended { pid: running.child.id(), status: report(status) };
                self.running.remove(process);
                self.ended.insert(process.to_owned(), ended);
                return Ok(());
            }
            ensure!(Instant::now() < end, "it did not end within {PATIENCE} s");
            thread::sleep(LOOK);
        }
    }
}

fn report(status: ExitStatus) -> Status {
    match status.code() {
        Some(code) => Status::Code(code),
        None => Status::Signal(status.signal().unwrap_or_default()),
    }
}

/// Copies so many lines; dropping the pipe closes it.
fn head(pipe: ChildStdout, mut into: File, lines: usize) {
    for line in BufReader::with_capacity(1, pipe).split(b'\n').map_while(Result::ok).take(lines) {
        // The check sees what is missing.
        let _ = into.write_all(&[&line[..], b"\n"].concat());
    }
}
