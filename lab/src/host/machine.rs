// SPDX-License-Identifier: MIT
//! Runs an emulator from power-on to power-off: collects its console, passes live output on, enforces the time limit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::job;

/// What differs between emulated hosts.
pub trait Emulator: std::fmt::Debug {
    /// The vendor's half of KVM, by module name.
    fn kvm_module(&self) -> &'static str;
    /// Modules needed to reach [`Emulator::result_device`].
    fn device_modules(&self) -> &'static [&'static str];
    /// What its kernels must have on their command line.
    fn kernel_parameters(&self) -> String;
    /// The name, inside, of the raw disk behind [`Boot::result`].
    fn result_device(&self) -> &'static str;
    /// Where the emulator is installed.
    ///
    /// # Errors
    /// If it is not; the message says how to install it.
    fn program(&self) -> Result<PathBuf>;
    /// What its first serial line is connected to.
    fn console(&self) -> Console;
    /// Whether reading its initramfs takes long, so that debug information is better left out.
    fn reads_slowly(&self) -> bool;
    /// The command line that boots a machine.
    ///
    /// # Errors
    /// If what it boots from cannot be made.
    fn command(&self, program: &Path, boot: &Boot) -> Result<Command>;
    /// Whether it ended because the machine was switched off. `said` is what the emulator itself printed.
    fn switched_off(&self, status: ExitStatus, said: &str) -> bool;
}

/// How an emulator passes its first serial line on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// By its standard input and output.
    Pipes,
    /// By the terminal that its standard input is.
    Terminal,
}

/// What an emulator is given to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kernel, a bzImage.
    pub vmlinuz: &'a Path,
    /// Its command line.
    pub kernel_line: &'a str,
    /// The initramfs.
    pub initramfs: &'a File,
    /// The sparse image of the disk that takes the answer.
    pub result: &'a File,
    /// Where the bytes of the second and third serial line go; empty if the run is not live.
    pub live: &'a [PipeWriter],
}

/// How a machine's life went.
#[derive(Debug)]
pub(super) struct Life {
    /// All that the first serial line carried, with plain line ends.
    pub console: String,
    /// From power-on until user space was ready, if it ever was.
    pub boot_time: Option<Duration>,
    /// The commands' time limit passed, and init was told to stop.
    pub stopped: bool,
    /// It did not power off even after that, or did not boot in time.
    pub killed: bool,
}

/// How long init has, after it was told to stop, to write down what was done so far.
const GRACE: Duration = Duration::from_secs(15);

/// The emulator; it dies with this value, and with this process.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended and been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long a machine may take, by the clock of this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// From power-on until the first command runs.
    pub boot: Duration,
    /// From then on until the last command has ended.
    pub commands: Duration,
}

/// Runs the machine until it powers off or a limit passes.
///
/// # Errors
/// If the emulator cannot be started, or fails by itself.
pub(super) fn run(emulator: &dyn Emulator, boot: Boot, live: bool, limits: Limits) -> Result<Life> {
    let mut writers = Vec::new();
    let mut copiers = Vec::new();
    if live {
        for target in [Target::Stdout, Target::Stderr] {
            let (reader, writer) = io::pipe()?;
            writers.push(writer);
            copiers.push(thread::spawn(move || copy_live(reader, target)));
        }
    }
    let program = emulator.program()?;
    let mut command = emulator.command(&program, &Boot { live: &writers, ..boot })?;
    let wires = Wires::connect(emulator.console(), &mut command)?;
    // SAFETY: prctl(2) is async-signal-safe and the closure allocates nothing.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    let program = program.display();
    let start = Instant::now();
    let mut running = Running(command.spawn().with_context(|| format!("cannot start {program}"))?);
    // With it go this process's copies of the emulator's ends.
    drop(command);
    let Wires { mut input, output, mut messages } = wires;

    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before an error is all there is to show.
        let _ = messages.read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });

    let mut life = Life { console: String::new(), boot_time: None, stopped: false, killed: false };
    let mut deadline = start + limits.boot;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if life.boot_time.is_none() && line.contains(job::READY) {
                    life.boot_time = Some(start.elapsed());
                    deadline = Instant::now() + limits.commands;
                }
                life.console.push_str(&line);
                life.console.push('\n');
            }
            Err(RecvTimeoutError::Timeout) if life.boot_time.is_some() && !life.stopped => {
                life.stopped = true;
                deadline = Instant::now() + GRACE;
                // If the emulator has just ended, the next receive says so.
                let _ = writeln!(input, "{}", job::STOP);
            }
            Err(RecvTimeoutError::Timeout) => {
                life.killed = true;
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if life.killed {
        running.0.kill().context("cannot end the emulator")?;
    }
    let status = running.0.wait().context("cannot wait for the emulator")?;
    // The copiers read to the end of what was written: the emulator has closed its ends, these are the last.
    drop(writers);
    for copier in copiers {
        copier.join().expect("copying does not panic");
    }
    let complaints = complaints.join().expect("reading does not panic");
    anyhow::ensure!(
        life.killed || emulator.switched_off(status, &complaints),
        "{program} failed ({status}): {complaints}\n{}",
        tail(&life.console)
    );
    Ok(life)
}

/// This side of an emulator's console, and what the emulator itself says.
struct Wires {
    input: File,
    output: File,
    messages: PipeReader,
}

impl Wires {
    /// Makes them, and gives the other ends to the emulator.
    fn connect(console: Console, command: &mut Command) -> Result<Self> {
        let (messages, said) = io::pipe()?;
        let own = |end: OwnedFd| File::from(end);
        match console {
            Console::Pipes => {
                let ((stdin, input), (output, stdout)) = (io::pipe()?, io::pipe()?);
                command.stdin(stdin).stdout(stdout).stderr(said);
                Ok(Self { input: own(input.into()), output: own(output.into()), messages })
            }
            Console::Terminal => {
                let OpenptyResult { master, slave } =
                    openpty(None, None).context("cannot open a terminal")?;
                let mut settings = tcgetattr(&slave)?;
                cfmakeraw(&mut settings);
                tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
                // The emulator shall not keep the end that tells when it is gone.
                fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
                command.stdin(slave).stdout(said.try_clone()?).stderr(said);
                Ok(Self { input: own(master.try_clone()?), output: own(master), messages })
            }
        }
    }
}

enum Target {
    Stdout,
    Stderr,
}

/// Passes on what the machine writes until it is off. The rest is dropped if nobody wants it any more (a closed pipe):
/// the machine must not block, and everything is in the outcome anyway.
fn copy_live(mut reader: PipeReader, target: Target) {
    let mut buffer = [0; 4096];
    while let Ok(count) = reader.read(&mut buffer) {
        let bytes = &buffer[..count];
        let _ = match target {
            _ if count == 0 => break,
            Target::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            Target::Stderr => io::stderr().write_all(bytes),
        };
    }
}

/// The end of a console, or from the first sign of trouble on, to be shown with an error.
pub(super) fn tail(console: &str) -> String {
    const LINES: usize = 30;
    let lines: Vec<_> = console.lines().collect();
    let trouble = lines.iter().position(|line| {
        ["Kernel panic", "BUG: ", "Oops: ", "general protection fault"].iter().any(|mark| line.contains(mark))
    });
    let start = trouble.unwrap_or(usize::MAX).min(lines.len().saturating_sub(LINES));
    let shown = &lines[start..lines.len().min(start + LINES)];
    if shown.is_empty() {
        return "(its console stayed empty)".to_owned();
    }
    format!("from its console:\n  {}", shown.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_where_the_trouble_began() {
        let noise: String = (0..100).map(|number| format!("line {number}\n")).collect();
        assert!(tail(&noise).starts_with("from its console:\n  line 70\n"));
        let console = format!("{noise}Kernel panic - not syncing: x\n{noise}");
        assert!(tail(&console).starts_with("from its console:\n  Kernel panic - not syncing: x\n  line 0\n"));
        assert_eq!(tail(""), "(its console stayed empty)");
    }
}
