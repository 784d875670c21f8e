// SPDX-License-Identifier: MIT
//! Measures, inside an emulated host, what watching exits costs; see [`exitregs_lab::overhead`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use exitregs_lab::guest::vmm::{Config, Truth, Vm};
use exitregs_lab::overhead::{
    Configuration, INSTANCE, Measured, PLAN_PATH, Plan, RESULT_PATH, Run, Setting, Watcher, Workload,
    in_instance,
};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// KVM's count of exits, of all VMs that exist (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD, has the same).
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// Where a watcher's output goes.
const OUTPUT: [&str; 2] = ["/tmp/overhead.stdout", "/tmp/overhead.stderr"];
/// How often one looks whether a watcher is ready.
const QUIET_WINDOW: Duration = Duration::from_millis(200);
/// It is when it used less than this share of so many windows: it waits for events, or polls.
const QUIET_SHARE: u32 = 10;
/// See [`QUIET_SHARE`].
const QUIET_WINDOWS: u32 = 3;
/// Time awake before each run: a few ticks of the kernel's timer.
const AWAKE: Duration = Duration::from_millis(20);
/// When to give up on it. Idle time passes at once where the clock counts instructions.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exitregs-lab-overhead: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let text = fs::read(PLAN_PATH).with_context(|| format!("cannot read {PLAN_PATH}"))?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("{PLAN_PATH} is no plan"))?;
    let mut results = File::create(RESULT_PATH).with_context(|| format!("cannot write {RESULT_PATH}"))?;
    for configuration in &plan.configurations {
        let name = &configuration.name;
        eprintln!("{name}");
        let measured = measure(&plan, configuration).with_context(|| format!("cannot measure {name:?}"))?;
        serde_json::to_writer(&mut results, &measured)?;
        results.write_all(b"\n").with_context(|| format!("cannot write {RESULT_PATH}"))?;
    }
    Ok(())
}

fn measure(plan: &Plan, configuration: &Configuration) -> Result<Measured> {
    if configuration.dynamic_events {
        events("install")?;
    }
    let instance = Instance::new(&configuration.settings)?;
    let watcher = configuration.watcher.as_ref().map(Watching::start).transpose()?;
    let mut all_exits = 0;
    let mut once = |workload: &Workload| -> Result<Run> {
        let run = guest(workload)?;
        all_exits += run.exits;
        // A reader that polls gets to what this run has left it.
        settle(watcher.as_ref())?;
        Ok(run)
    };
    let mut workloads = Vec::new();
    for workload in &plan.workloads {
        once(workload)?;
        workloads.push((0..plan.runs).map(|_| once(workload)).collect::<Result<_>>()?);
    }
    let evidence = configuration
        .evidence
        .iter()
        .map(|file| {
            let path = in_instance(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        })
        .collect::<Result<_>>()?;
    let output = watcher.map_or_else(|| Ok(Default::default()), Watching::stop)?;
    instance.remove()?;
    if configuration.dynamic_events {
        events("remove")?;
    }
    Ok(Measured { name: configuration.name.clone(), workloads, output, evidence, all_exits })
}

// --- The guest -----------------------------------------------------------------------------------------------------------

/// Runs the guest once.
fn guest(workload: &Workload) -> Result<Run> {
    let script = workload.script.clone();
    let config = Config {
        vcpus: 1,
        repeat: script.repeat,
        script,
        timeout: Duration::from_secs(600),
        die_midway: false,
    };
    let vm = Vm::new(&config)?;
    stay_awake()?;
    let finish = Arc::new(Mutex::new(Finish::default()));
    let truth: Truth = Arc::clone(&finish) as Truth;
    let start = clock(ClockId::CLOCK_MONOTONIC)?;
    vm.run(&truth)?;
    let finish = finish.lock().unwrap_or_else(PoisonError::into_inner);
    let (vcpu, end, exits) = finish.stamp.context("the guest did nothing")?;
    Ok(Run { vcpu, machine: end - start, exits })
}

/// Gives the kernel time for what it puts off while the CPU is idle: that would come into the run.
fn stay_awake() -> Result<()> {
    let start = clock(ClockId::CLOCK_MONOTONIC)?;
    while clock(ClockId::CLOCK_MONOTONIC)? - start < AWAKE.as_nanos() as u64 {
        thread::yield_now();
    }
    Ok(())
}

/// Takes the ground truth, and of that only the moment when it comes: right after the guest's last exit.
#[derive(Default)]
struct Finish {
    /// CPU time of the vCPU's thread, time of the clock, KVM's count of exits.
    stamp: Option<(u64, u64, u64)>,
}

impl Write for Finish {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stamp.is_none() {
            // The vCPU's thread is the one that writes.
            let vcpu = clock(ClockId::CLOCK_THREAD_CPUTIME_ID).map_err(io::Error::other)?;
            let now = clock(ClockId::CLOCK_MONOTONIC).map_err(io::Error::other)?;
            let text = fs::read_to_string(EXITS)?;
            self.stamp = Some((vcpu, now, text.trim().parse().map_err(io::Error::other)?));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A clock's time in nanoseconds.
fn clock(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock).with_context(|| format!("cannot read clock {clock}"))?;
    Ok(u64::try_from(Duration::from(time).as_nanos())?)
}

// --- Those who watch -----------------------------------------------------------------------------------------------------

/// A tracefs instance. Removing it undoes what was set in it.
struct Instance {
    exists: bool,
}

impl Instance {
    fn new(settings: &[Setting]) -> Result<Self> {
        if settings.is_empty() {
            return Ok(Self { exists: false });
        }
        fs::create_dir(INSTANCE).with_context(|| format!("cannot make {INSTANCE}"))?;
        for Setting { file, value } in settings {
            let path = in_instance(file);
            fs::write(&path, value)
                .with_context(|| format!("cannot write {value:?} to {}", path.display()))?;
        }
        Ok(Self { exists: true })
    }

    fn remove(self) -> Result<()> {
        if self.exists {
            fs::write(in_instance("events/enable"), "0")?;
            fs::remove_dir(INSTANCE).with_context(|| format!("cannot remove {INSTANCE}"))?;
        }
        Ok(())
    }
}

/// `exitregs events ACTION`
fn events(action: &str) -> Result<()> {
    let output = Command::new("exitregs").args(["events", action]).output().context("cannot run exitregs")?;
    ensure!(
        output.status.success(),
        "exitregs events {action}: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

/// A running watcher.
struct Watching {
    child: Child,
    name: String,
}

impl Watching {
    /// Starts it and waits until it is ready.
    fn start(watcher: &Watcher) -> Result<Self> {
        let argv = match &watcher.capabilities {
            None => watcher.argv.clone(),
            // Process 1 of an emulated host, started again, is what gives a program other privileges.
            Some(capabilities) => {
                let words = ["/init".to_owned(), "1000".to_owned(), capabilities.join(",")];
                words.into_iter().chain(watcher.argv.iter().cloned()).collect()
            }
        };
        let (program, arguments) = argv.split_first().context("a watcher has no program")?;
        let create = |path: &str| File::create(path).with_context(|| format!("cannot write {path}"));
        let [stdout, stderr] = OUTPUT.map(create);
        let stdout = match &watcher.stdout {
            None => stdout?,
            Some(path) => create(path)?,
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr?);
        // A group of its own, so that the end reaches its children as Ctrl-C would.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
        let mut watching = Self { child, name: watcher.argv.join(" ") };
        watching.wait_until_ready()?;
        Ok(watching)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut quiet = 0;
        for _ in 0..PATIENCE.as_millis() / QUIET_WINDOW.as_millis() {
            let before = self.cpu_time()?;
            thread::sleep(QUIET_WINDOW);
            if let Some(status) = self.child.try_wait()? {
                bail!("`{}` ended too early ({status}): {}", self.name, output()?.concat());
            }
            let used = self.cpu_time()?.saturating_sub(before);
            quiet = if used < QUIET_WINDOW / QUIET_SHARE { quiet + 1 } else { 0 };
            if quiet == QUIET_WINDOWS {
                return Ok(());
            }
        }
        bail!("`{}` was not ready after {PATIENCE:?}: {}", self.name, output()?.concat())
    }

    /// CPU time of its group so far.
    fn cpu_time(&self) -> Result<Duration> {
        let group = self.child.id();
        let mut nanoseconds = 0;
        for entry in fs::read_dir("/proc").context("cannot list /proc")? {
            let path = entry?.path();
            // Not a process, or one that has ended meanwhile.
            let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
            // The name, in parentheses, may hold anything; then come the state, the parent and the group.
            let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect::<Vec<_>>());
            if fields.and_then(|fields| fields.get(2)?.parse().ok()) == Some(group) {
                nanoseconds += threads_time(&path);
            }
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Ends it and returns what it printed.
    fn stop(mut self) -> Result<[String; 2]> {
        let group = Pid::from_raw(-i32::try_from(self.child.id())?);
        kill(group, Signal::SIGINT).with_context(|| format!("cannot stop `{}`", self.name))?;
        for _ in 0..PATIENCE.as_millis() / QUIET_WINDOW.as_millis() {
            if let Some(status) = self.child.try_wait()? {
                let printed = output()?;
                // perf ends itself by the signal once it is done.
                let by_signal =
                    std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::SIGINT as i32);
                ensure!(status.success() || by_signal, "`{}`: {status}: {}", self.name, printed.concat());
                return Ok(printed);
            }
            thread::sleep(QUIET_WINDOW);
        }
        bail!("`{}` did not stop: {}", self.name, output()?.concat())
    }
}

/// Nanoseconds that a process's threads have run (/proc/PID/task/TID/schedstat, first field).
fn threads_time(process: &Path) -> u64 {
    let Ok(tasks) = fs::read_dir(process.join("task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Waits until nothing is left to do, in user space or by the kernel's own threads.
fn settle(watcher: Option<&Watching>) -> Result<()> {
    let Some(watcher) = watcher else {
        thread::sleep(QUIET_WINDOW);
        return Ok(());
    };
    for _ in 0..PATIENCE.as_millis() / QUIET_WINDOW.as_millis() {
        let before = watcher.cpu_time()?;
        thread::sleep(QUIET_WINDOW);
        if watcher.cpu_time()?.saturating_sub(before) < QUIET_WINDOW / QUIET_SHARE {
            return Ok(());
        }
    }
    bail!("`{}` does not come to rest", watcher.name)
}

/// What the watcher has printed.
fn output() -> Result<[String; 2]> {
    let [stdout, stderr] = OUTPUT.map(|path| {
        let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
    });
    Ok([stdout?, stderr?])
}
