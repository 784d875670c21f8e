// SPDX-License-Identifier: MIT
//! Emulated hosts on both stock kernels: what runs inside comes back as it was, and what goes wrong is said.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use exitregs_lab::host::{Command, Failure, Host, Kernel, Kvm, Lockdown, Status};

/// Checks that hold on every kernel, in one boot each.
fn runs_commands(kernel: Kernel, release: &str) {
    let outcome = Host::amd(kernel)
        .run_each([
            Command::shell("echo out; echo err >&2"),
            Command::shell("exit 3"),
            Command::shell("kill -9 $$"),
            Command::new(["no-such-program", "argument"]),
            Command::shell("echo \"$NAME\"").env("NAME", "a b"),
            Command::new(["uname", "-r"]),
            Command::new(["ls", "-l", "/dev/kvm"]),
            Command::new(["cat", "/proc/modules"]),
            Command::new(["cat", "/sys/module/kvm_amd/parameters/nested"]),
            Command::shell("cat /sys/kernel/tracing/events/kvm/kvm_exit/format && ls -d /sys/fs/bpf /sys/kernel/debug/kvm"),
            Command::shell("ping -c 1 127.0.0.1"),
            Command::shell("grep -c ^CONFIG_KVM_AMD=m /boot/config-$(uname -r)"),
        ])
        .unwrap();
    let text = |number: usize| outcome.commands[number].stdout_text();
    assert_eq!(outcome.commands[0].stdout, b"out\n");
    assert_eq!(outcome.commands[0].stderr, b"err\n");
    let statuses: Vec<_> = outcome.commands[..4].iter().map(|command| command.status).collect();
    assert_eq!(statuses, [Status::Code(0), Status::Code(3), Status::Signal(9), Status::Code(127)]);
    assert!(outcome.commands[3].stderr_text().starts_with("no-such-program: "), "{:?}", outcome.commands[3]);
    for command in &outcome.commands[4..] {
        command.check().unwrap();
    }
    assert_eq!(text(4), "a b\n");
    assert!(text(5).starts_with(release), "{}", text(5));
    assert!(text(6).starts_with('c'), "{}", text(6));
    let modules = text(7);
    assert!(modules.contains("kvm_amd ") && !modules.contains("kvm_intel "), "{modules}");
    assert_eq!(text(8), "1\n");
    assert!(text(9).contains("exit_reason"), "{}", text(9));
    assert_eq!(text(11), "1\n");
    assert_eq!(outcome.kernel_warnings(), [""; 0], "{}", outcome.kernel_log);
    assert!(outcome.kernel_log.contains("Linux version "));
}

#[test]
fn runs_commands_on_6_1() {
    runs_commands(Kernel::Stock6_1, "6.1.");
}

#[test]
fn runs_commands_on_6_12() {
    runs_commands(Kernel::Stock6_12, "6.12.");
}

#[test]
fn kvm_is_absent_when_asked() {
    let look = || Command::shell("cut -d ' ' -f 1 /proc/modules | grep kvm; test ! -e /dev/kvm");
    for kernel in Kernel::STOCK {
        let outcome = Host::amd(kernel)
            .kvm(Kvm::NotLoaded)
            .run_each([
                look(),
                Command::shell("modprobe kvm_amd && test -e /dev/kvm && grep -w kvm /proc/modules"),
            ])
            .unwrap();
        assert_eq!(outcome.commands[0].check().unwrap().stdout_text(), "");
        outcome.commands[1].check().unwrap();
        let outcome = Host::amd(kernel).kvm(Kvm::OnlyKvm).run(look()).unwrap();
        assert_eq!(outcome.last().check().unwrap().stdout_text(), "kvm\n");
    }
}

#[test]
fn kernel_parameters_reach_kernel_and_modules() {
    let outcome = Host::amd(Kernel::Stock6_12)
        .kernel_parameter("kvm_amd.nested=0")
        .lockdown(Lockdown::Integrity)
        .smp(2)
        .memory_mib(1024)
        .run(Command::shell(
            "cat /sys/module/kvm_amd/parameters/nested /sys/kernel/security/lockdown; nproc; grep MemTotal /proc/meminfo",
        ))
        .unwrap();
    let text = outcome.last().check().unwrap().stdout_text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["0", "none [integrity] confidentiality", "2"]);
    let kib: u32 = lines[3].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((900 << 10..1024 << 10).contains(&kib), "{text}");
}

/// Pseudo-random bytes (xorshift), so that a block that is lost, doubled or misplaced shows.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

#[test]
fn a_hundred_megabytes_come_back_intact() {
    let content = noise(100_000_000);
    let local = tempfile::NamedTempFile::new().unwrap();
    local.as_file().write_all_at(&content, 0).unwrap();
    let outcome = Host::amd(Kernel::Stock6_1)
        .file(local.path(), "/data/in")
        .get("/tmp/big*")
        .get("/proc/version")
        .get("/sys/kernel/tracing/events/kvm/kvm_entry")
        .get("/nowhere/*")
        .run(Command::shell("cp /data/in /tmp/big.copy; cat /data/in"))
        .unwrap();
    outcome.last().check().unwrap();
    assert!(outcome.last().stdout == content, "standard output differs");
    assert!(outcome.files.read("/tmp/big.copy").unwrap() == content, "the file differs");
    assert!(outcome.files.read("/proc/version").unwrap().starts_with(b"Linux version 6.1."));
    let format = outcome.files.read("/sys/kernel/tracing/events/kvm/kvm_entry/format").unwrap();
    assert!(format.starts_with(b"name: kvm_entry\n"));
    assert!(outcome.files.missing().contains(&"/nowhere/*: no such file".to_owned()));
    let error = outcome.files.read("/nowhere/file").unwrap_err().to_string();
    assert!(
        error.starts_with("the emulated host sent no /nowhere/file (/nowhere/*: no such file"),
        "{error}"
    );
}

#[test]
fn a_program_brings_its_libraries() {
    let outcome =
        Host::amd(Kernel::Stock6_1).program("dpkg").run(Command::new(["dpkg", "--version"])).unwrap();
    let text = outcome.last().check().unwrap().stdout_text();
    assert!(text.contains("package management"), "{text}");
}

#[test]
fn a_command_can_run_without_privileges() {
    let look = || Command::shell("id -u; id -G; grep CapEff /proc/self/status; test -w /etc/passwd; echo $?");
    let outcome = Host::amd(Kernel::Stock6_12)
        .run_each([look(), look().unprivileged([""; 0]), look().unprivileged(["CAP_PERFMON", "CAP_BPF"])])
        .unwrap();
    let words = |number: usize| -> Vec<String> {
        let text = outcome.commands[number].check().unwrap().stdout_text();
        text.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(words(0)[0], "0");
    assert_eq!(words(1), ["1000", "1000", "CapEff:", "0000000000000000", "1"]);
    // Bits 38 and 39: include/uapi/linux/capability.h.
    assert_eq!(words(2), ["1000", "1000", "CapEff:", "000000c000000000", "1"]);
}

#[test]
fn the_time_limit_ends_a_command_and_keeps_what_it_did() {
    let outcome = Host::amd(Kernel::Stock6_1)
        .time_limit(Duration::from_secs(10))
        .get("/tmp/left")
        .run_each([
            Command::shell("echo first"),
            Command::shell("echo begun | tee /tmp/left; sleep 1000 & sleep 1000"),
            Command::shell("echo never"),
        ])
        .unwrap();
    let run_time = outcome.last().run_time;
    assert!((Duration::from_secs(5)..Duration::from_secs(30)).contains(&run_time), "{run_time:?}");
    let ends: Vec<_> =
        outcome.commands.iter().map(|command| (command.status, command.stdout_text())).collect();
    assert_eq!(ends, [(Status::Code(0), "first\n".to_owned()), (Status::TimedOut, "begun\n".to_owned())]);
    assert_eq!(outcome.files.read("/tmp/left").unwrap(), b"begun\n");
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    let outcome = Host::amd(Kernel::Stock6_1)
        .run_each([Command::shell("sleep 1000 & echo done"), Command::shell("pidof sleep")])
        .unwrap();
    assert_eq!(outcome.commands[0].stdout, b"done\n");
    assert_eq!(outcome.status(), Status::Code(1));
}

#[test]
fn a_panic_is_reported() {
    let error = Host::amd(Kernel::Stock6_12)
        .run(Command::shell("echo before; echo c > /proc/sysrq-trigger"))
        .unwrap_err();
    let Some(Failure::Panic { message, console }) = error.downcast_ref() else { panic!("{error:#}") };
    assert_eq!(message, "sysrq triggered crash");
    assert!(console.contains("write_sysrq_trigger"), "{console}");
}

#[test]
fn a_host_that_does_not_boot_is_reported() {
    exitregs_lab::binaries::lab().unwrap();
    let limit = Duration::from_secs(8);
    let start = Instant::now();
    let error = Host::amd(Kernel::Stock6_1)
        .kernel_parameter("rdinit=/bin/sleep -- 1000")
        .boot_limit(limit)
        .run(Command::shell("true"))
        .unwrap_err();
    assert!(start.elapsed() < limit + Duration::from_secs(30), "{:?}", start.elapsed());
    let Some(Failure::Hang { booted: false, .. }) = error.downcast_ref() else { panic!("{error:#}") };
}

#[test]
fn a_host_that_stops_answering_is_reported() {
    // A process that lets nobody else, not even init, have the only CPU.
    let starve =
        "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; exec chrt -f 99 sh -c 'while :; do :; done'";
    let error = Host::amd(Kernel::Stock6_1)
        .program("chrt")
        .time_limit(Duration::from_secs(5))
        .run(Command::shell(starve))
        .unwrap_err();
    let Some(Failure::Hang { booted: true, .. }) = error.downcast_ref() else { panic!("{error:#}") };
}

#[test]
fn what_init_cannot_do_is_reported() {
    let nothing = tempfile::NamedTempFile::new().unwrap();
    let error = Host::amd(Kernel::Stock6_1)
        .file(nothing.path(), "/etc/hostname/x")
        .run(Command::shell("true"))
        .unwrap_err();
    assert!(error.to_string().contains("/etc/hostname is not a folder"), "{error:#}");
    let error = Host::amd(Kernel::Stock6_1)
        .kernel_parameter("kvm_amd.nested=neither")
        .run(Command::shell("true"))
        .unwrap_err();
    let Some(Failure::Init { message, .. }) = error.downcast_ref() else { panic!("{error:#}") };
    assert!(message.contains("kvm-amd.ko: EINVAL"), "{message}");
}

#[test]
fn kernel_warnings_are_reported() {
    let line = "BUG: KASAN: use-after-free in nothing";
    let outcome =
        Host::amd(Kernel::Stock6_1).run(Command::shell(format!("echo '{line}' > /dev/kmsg"))).unwrap();
    let warnings = outcome.kernel_warnings();
    assert!(matches!(&warnings[..], [warning] if warning.ends_with(line)), "{warnings:?}");
}

#[test]
fn instances_do_not_collide() {
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let start = |number: u32| {
            scope.spawn(move || {
                let line =
                    format!("seq {number} 2000000 | tail -n 300000 > /tmp/x; cat /tmp/x; echo {number}");
                Host::amd(Kernel::Stock6_12).get("/tmp/x").run(Command::shell(line)).unwrap()
            })
        };
        let threads = [1, 2].map(start);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (outcome, number) in outputs.iter().zip(1..) {
        let text = outcome.last().check().unwrap().stdout_text();
        assert!(text.ends_with(&format!("\n2000000\n{number}\n")), "{number}");
        let file = outcome.files.path("/tmp/x").unwrap();
        assert_eq!(fs::read_to_string(file).unwrap().lines().count(), 300_000);
    }
}

#[test]
fn icount_makes_time_count_instructions() {
    let run = || {
        let outcome = Host::amd(Kernel::Stock6_12)
            .icount(true)
            .run(Command::shell("i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done"))
            .unwrap();
        outcome.last().check().unwrap();
        outcome.last().run_time.as_nanos() as f64
    };
    let (first, second) = (run(), run());
    assert!((first / second - 1.0).abs() < 0.05, "{first} ns, then {second} ns");
}
