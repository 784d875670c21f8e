// SPDX-License-Identifier: MIT
//! Runs the job's commands, with their output into files of [`OUTPUT`] and, live, also to the serial lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, PipeReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use exitregs_lab::host::Status;
use exitregs_lab::host::job::{self, Finished, Job};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::privileges;

/// Folder of the commands' output, under the names it has in the answer.
pub const OUTPUT: &str = "/run/exitregs-lab";

/// Set when the other side says that time is up.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Runs the commands one after the other; after a stop, the one that ran then is the last.
pub fn run_all(job: &Job) -> Result<Vec<Finished>> {
    fs::create_dir_all(OUTPUT).with_context(|| format!("cannot create {OUTPUT}"))?;
    let lines = if job.live { open_live()? } else { Vec::new() };
    thread::spawn(wait_for_stop);
    println!("{}", job::READY);
    let mut finished = Vec::new();
    for (number, command) in job.commands.iter().enumerate() {
        let files = [job::stdout_member(number), job::stderr_member(number)].map(|name| {
            let path = Path::new(OUTPUT).join(name);
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))
        });
        let [stdout, stderr] = files;
        finished.push(run(command, [stdout?, stderr?], &lines)?);
        if STOPPED.load(Ordering::SeqCst) {
            break;
        }
    }
    for line in &lines {
        tcdrain(line).context("cannot empty a serial line")?;
    }
    Ok(finished)
}

/// Opens the serial lines for live output, as plain byte streams.
fn open_live() -> Result<Vec<File>> {
    let open = |path: &str| -> Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut settings = tcgetattr(&file)?;
        cfmakeraw(&mut settings);
        tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        Ok(file)
    };
    job::LIVE_DEVICES
        .into_iter()
        .map(|path| open(path).with_context(|| format!("cannot set up the serial line {path}")))
        .collect()
}

/// Waits for [`job::STOP`] on the console and then ends every process but this one.
fn wait_for_stop() {
    for line in io::stdin().lock().lines().map_while(io::Result::ok) {
        if line.contains(job::STOP) {
            STOPPED.store(true, Ordering::SeqCst);
            kill_everything();
        }
    }
}

fn kill_everything() {
    // -1 is every process but process 1; the only error is that there is none.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
}

/// Runs one command to its end, and with it all that it left running.
fn run(command: &job::Command, files: [File; 2], lines: &[File]) -> Result<Finished> {
    let argv = match &command.privileges {
        None => command.argv.clone(),
        Some(privileges) => privileges::wrap(privileges, &command.argv),
    };
    let (program, arguments) = argv.split_first().context("a command has no program")?;
    let home = if command.privileges.is_some() { "/tmp" } else { "/root" };
    let mut process = Command::new(program);
    process.args(arguments).current_dir(home).stdin(Stdio::null()).env_clear();
    process.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    process.env("HOME", home).env("TERM", "dumb").env("LANG", "C.UTF-8").envs(&command.environment);

    let mut error_file = files[1].try_clone()?;
    let mut copiers = Vec::new();
    let mut outputs = Vec::new();
    for (number, file) in files.into_iter().enumerate() {
        // Straight into the file unless live: then nothing of ours runs beside the command.
        outputs.push(match lines.get(number) {
            None => Stdio::from(file),
            Some(line) => {
                let (reader, writer) = io::pipe()?;
                let line = line.try_clone()?;
                copiers.push(thread::spawn(move || copy(reader, file, line)));
                Stdio::from(writer)
            }
        });
    }
    let stderr = outputs.pop().context("a command has two outputs")?;
    let stdout = outputs.pop().context("a command has two outputs")?;
    process.stdout(stdout).stderr(stderr);

    let start = Instant::now();
    let spawned = process.spawn();
    // It holds the writing ends of the pipes, whose end the copiers wait for.
    drop(process);
    let status = match spawned {
        Ok(child) => {
            let status = wait_for(Pid::from_raw(child.id() as i32))?;
            match status.code() {
                _ if STOPPED.load(Ordering::SeqCst) => Status::TimedOut,
                Some(code) => Status::Code(code),
                None => Status::Signal(status.signal().unwrap_or_default()),
            }
        }
        // What a shell says and does then.
        Err(error) => {
            let text = format!("{program}: {error}\n");
            error_file.write_all(text.as_bytes())?;
            if let Some(mut line) = lines.get(1) {
                line.write_all(text.as_bytes())?;
            }
            Status::Code(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
        }
    };
    let run_time = start.elapsed();
    kill_everything();
    for copier in copiers {
        copier.join().expect("copying does not panic")?;
    }
    Ok(Finished { status, run_time })
}

/// Waits for the child `pid`; others that end meanwhile are orphans, which process 1 has to bury.
fn wait_for(pid: Pid) -> Result<ExitStatus> {
    loop {
        match wait().context("cannot wait for a command")? {
            WaitStatus::Exited(child, code) if child == pid => return Ok(ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(child, signal, _) if child == pid => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            _ => {}
        }
    }
}

/// Copies a command's output both into its file and to a serial line, as it comes.
fn copy(mut reader: PipeReader, mut file: File, mut line: File) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = reader.read(&mut buffer).context("cannot read a command's output")?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..count]).context("cannot keep a command's output")?;
        line.write_all(&buffer[..count]).context("cannot pass on a command's output")?;
    }
}
