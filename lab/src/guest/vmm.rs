// SPDX-License-Identifier: MIT
//! KVM: the VM, its vCPU threads, their exits to user space.

use std::arch::x86_64::__cpuid;
use std::io::Write;
use std::mem::size_of;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, Msrs, kvm_dtable, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal as UnixSignal};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use exitregs_common::isa::Isa;

use crate::script::Script;
use crate::truth::Line;

use super::assemble::{self, CODE_SELECTOR, Code, DATA_SELECTOR};
use super::image;
use super::layout::{LARGE_PAGE, Layout, MEMORY_LIMIT, PAGE, VcpuLayout, slot};
use super::log::{Failure, Reader, Record};
use super::signal::Signal;
use super::svm::{EFER_SVME, MSR_VM_HSAVE_PA};
use super::vendor::{GDT_LIMIT, IDT_LIMIT, State};
use super::vmx::{self, CR4_VMXE};

/// Bytes of a vCPU's log, unless one turn needs more.
const LOG_BYTES: u64 = 4 << 20;
/// Room for records that a turn makes beyond those counted: HLTs that are tried again.
const SPARE_RECORDS: u64 = 256;

/// CR0: PE, MP, ET, NE, WP, PG.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// The PAT after reset.
const PAT: u64 = 0x0007_0406_0007_0406;
/// IA32_APIC_BASE: enabled, x2APIC.
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 10;
/// Offset of the spurious-interrupt vector register, and its value: enabled, vector 255.
const APIC_SPURIOUS: (usize, u32) = (0xf0, 0x1ff);

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// What every vCPU does.
    pub script: Script,
    /// How many there are.
    pub vcpus: u32,
    /// Turns of the script.
    pub repeat: u32,
    /// When to give up.
    pub timeout: Duration,
    /// Kill this process in the middle.
    pub die_midway: bool,
}

/// Where lines of truth go.
pub type Truth = Arc<Mutex<dyn Write + Send>>;

/// A VM that is ready to run.
pub struct Vm {
    // Keeps the VM; its vCPUs refer to it.
    _vm: VmFd,
    memory: Arc<GuestMemoryMmap>,
    vcpus: Vec<Vcpu>,
    timeout: Duration,
}

struct Vcpu {
    index: u32,
    fd: VcpuFd,
    layout: VcpuLayout,
    reader: Reader,
    memory: Arc<GuestMemoryMmap>,
}

impl Vm {
    /// Makes the VM, its memory and its vCPUs.
    ///
    /// # Errors
    /// If there is no usable KVM, if it offers neither nested SVM nor nested VMX, or if the script is not possible.
    pub fn new(config: &Config) -> Result<Self> {
        ensure!(config.vcpus >= 1, "a VM has at least one vCPU");
        ensure!(
            (1..=i32::MAX as u32).contains(&config.repeat),
            "the script is to be done at least once and at most {} times",
            i32::MAX
        );
        let kvm = Kvm::new().context(
            "cannot open /dev/kvm: is the kvm_amd or kvm_intel module loaded, and may this user open it?",
        )?;
        let (isa, cpuid) = supported(&kvm)?;
        config.script.check(isa)?;
        let max = kvm.get_max_vcpus();
        ensure!(config.vcpus as usize <= max, "{} vCPUs are more than KVM's {max}", config.vcpus);

        let state = match isa {
            Isa::Svm => State {
                isa,
                cr0: CR0,
                cr4: CR4,
                efer: EFER | EFER_SVME,
                pat: PAT,
                vmx: vmx::Capabilities::default(),
            },
            Isa::Vmx => {
                State { isa, cr0: CR0, cr4: CR4 | CR4_VMXE, efer: EFER, pat: PAT, vmx: capabilities(&kvm)? }
            }
        };
        let (layout, codes) = lay_out(config, state)?;

        let end = codes.last().map_or(layout.code, |code| code.base + code.bytes.len() as u64);
        let bytes = end.next_multiple_of(LARGE_PAGE);
        ensure!(
            bytes <= MEMORY_LIMIT,
            "the script needs {} MiB of memory, more than {}: fewer steps or fewer vCPUs",
            bytes >> 20,
            MEMORY_LIMIT >> 20
        );
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)])
            .with_context(|| format!("cannot map {} MiB of memory for the guest", bytes >> 20))?;
        image::write(&memory, &layout, &config.script, &codes, state)?;
        let memory = Arc::new(memory);

        let vm = kvm.create_vm().context("KVM cannot make a VM (KVM_CREATE_VM)")?;
        vm.create_irq_chip().context("KVM has no interrupt controller (KVM_CREATE_IRQCHIP)")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the region is `memory`'s only mapping, of `bytes` bytes, which each `Vcpu` and the `Vm` keep alive by
        // their `Arc` for as long as KVM may use it; nothing else in this process refers to it but through `vm-memory`.
        unsafe { vm.set_user_memory_region(region) }.context("KVM does not take the guest's memory")?;

        let mut vcpus = Vec::new();
        for (index, (area, code)) in (0..).zip(layout.vcpus.iter().zip(codes)) {
            let fd = vm.create_vcpu(index.into()).with_context(|| format!("KVM cannot make vCPU {index}"))?;
            set_up(&fd, index, &cpuid, &layout, area, code.entry, state)
                .with_context(|| format!("cannot set up vCPU {index}"))?;
            vcpus.push(Vcpu {
                index,
                fd,
                reader: Reader::new(index, code.sites, area),
                layout: area.clone(),
                memory: Arc::clone(&memory),
            });
        }
        Ok(Self { _vm: vm, memory, vcpus, timeout: config.timeout })
    }

    /// Bytes of guest memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    /// Runs it to its end, and writes what it did.
    ///
    /// # Errors
    /// If the guest did not do what its script says, or took too long.
    pub fn run(self, truth: &Truth) -> Result<()> {
        install_kick()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (done, finished) = mpsc::channel();
        let deadline = Instant::now() + self.timeout;
        let mut threads = Vec::new();
        for vcpu in self.vcpus {
            let (truth, stop, done) = (Arc::clone(truth), Arc::clone(&stop), done.clone());
            threads.push(spawn(vcpu, truth, stop, done)?);
        }
        drop(done);
        let mut failures = Vec::new();
        let mut left = threads.len();
        while left > 0 {
            let wait = deadline.saturating_duration_since(Instant::now());
            match finished.recv_timeout(wait) {
                Ok(Ok(())) => left -= 1,
                Ok(Err(error)) => {
                    failures.push(error);
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {
                    failures.push(anyhow!("the guest was not done after {:?}", self.timeout));
                    break;
                }
                // A thread panicked; joining it tells.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        stop.store(true, Ordering::Relaxed);
        join(threads)?;
        // What the others say about where they were.
        failures.extend(finished.try_iter().filter_map(Result::err));
        lock(truth).flush().context("cannot write the truth")?;
        match failures.len() {
            0 => Ok(()),
            _ => {
                Err(anyhow!(failures.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("\n")))
            }
        }
    }
}

/// Addresses and code for all vCPUs, with logs that hold at least two turns.
fn lay_out(config: &Config, state: State) -> Result<(Layout, Vec<Code>)> {
    let mut log_bytes = LOG_BYTES;
    loop {
        let layout = Layout::new(config.vcpus, config.script.guests.len(), log_bytes);
        let mut base = layout.code;
        let mut codes = Vec::new();
        for (vcpu, area) in (0..).zip(&layout.vcpus) {
            let options = assemble::Options {
                script: &config.script,
                vcpu,
                isa: state.isa,
                layout: area,
                cr: [state.cr0, 0, 0, 0, state.cr4, 0, 0, 0, 0],
                repeat: config.repeat,
                die_midway: config.die_midway,
            };
            let code = assemble::assemble(options, base).context("the script cannot be assembled")?;
            base = (base + code.bytes.len() as u64).next_multiple_of(PAGE);
            codes.push(code);
        }
        let turn = codes.iter().map(|code| code.records_per_turn).max().unwrap_or(0);
        let needed = (turn.saturating_add(SPARE_RECORDS)).saturating_mul(2 * Record::SIZE);
        if needed <= log_bytes {
            return Ok((layout, codes));
        }
        ensure!(
            needed <= MEMORY_LIMIT / 2,
            "a turn of the script makes {turn} records, more than a log can hold: repeat the script rather than a block"
        );
        log_bytes = needed;
    }
}

/// The instruction set of guests on this host's processor. One without is taken for AMD's: scripts can be looked at anywhere.
pub fn host_isa() -> Isa {
    // CPUID.01H:ECX.VMX; Intel's processors have it, and those of others that do what Intel's do.
    if __cpuid(1).ecx >> 5 & 1 != 0 { Isa::Vmx } else { Isa::Svm }
}

/// Whether ECX of a CPUID leaf has a bit.
fn has(cpuid: &CpuId, leaf: u32, ecx_bit: u32) -> bool {
    cpuid.as_slice().iter().any(|entry| entry.function == leaf && entry.ecx >> ecx_bit & 1 != 0)
}

/// The instruction set of nested guests that KVM offers, and the CPUID that it supports.
fn supported(kvm: &Kvm) -> Result<(Isa, CpuId)> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM does not say what it supports (KVM_GET_SUPPORTED_CPUID): it cannot run guests here")?;
    // CPUID Fn8000_0001_ECX[SVM], 01H:ECX.VMX and 01H:ECX.x2APIC.
    let isa = match (has(&cpuid, 0x8000_0001, 2), has(&cpuid, 1, 5)) {
        (true, _) => Isa::Svm,
        (false, true) => Isa::Vmx,
        (false, false) => bail!(
            "KVM offers its guests neither SVM nor VMX: this needs kvm_amd or kvm_intel with nested=1, on a processor that has \
             them, or on an emulated one"
        ),
    };
    ensure!(has(&cpuid, 1, 21), "KVM offers no x2APIC");
    Ok((isa, cpuid))
}

/// The VMX capabilities that KVM offers.
fn capabilities(kvm: &Kvm) -> Result<vmx::Capabilities> {
    let entries = vmx::CAPABILITY_MSRS.map(|index| kvm_msr_entry { index, ..Default::default() });
    let mut msrs = Msrs::from_entries(&entries).map_err(|error| anyhow!("{error:?}"))?;
    let read = kvm.get_msrs(&mut msrs).context("KVM does not tell its VMX capabilities (KVM_GET_MSRS)")?;
    ensure!(read == entries.len(), "KVM does not tell VMX capability MSR {:#x}", vmx::CAPABILITY_MSRS[read]);
    let mut values = [0; vmx::CAPABILITY_MSRS.len()];
    for (value, entry) in values.iter_mut().zip(msrs.as_slice()) {
        *value = entry.data;
    }
    Ok(vmx::Capabilities::new(values))
}

fn set_up(
    fd: &VcpuFd,
    index: u32,
    cpuid: &CpuId,
    layout: &Layout,
    area: &VcpuLayout,
    entry: u64,
    state: State,
) -> Result<()> {
    let mut own = cpuid.clone();
    for leaf in own.as_mut_slice() {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | index << 24,
            0xb | 0x1f => leaf.edx = index,
            _ => {}
        }
    }
    fd.set_cpuid2(&own).context("KVM_SET_CPUID2")?;

    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { type_: 0xb, present: 1, limit: 0x67, ..Default::default() };
    sregs.gdt = kvm_dtable { base: layout.gdt, limit: GDT_LIMIT, ..Default::default() };
    sregs.idt = kvm_dtable { base: area.l1_idt, limit: IDT_LIMIT, ..Default::default() };
    sregs.cr0 = state.cr0;
    sregs.cr3 = layout.page_tables;
    sregs.cr4 = state.cr4;
    sregs.efer = state.efer;
    sregs.apic_base = APIC_BASE | if index == 0 { 1 << 8 } else { 0 };
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;

    let mut lapic = fd.get_lapic().context("KVM_GET_LAPIC")?;
    set_lapic_register(&mut lapic, APIC_SPURIOUS);
    fd.set_lapic(&lapic).context("KVM_SET_LAPIC")?;

    let own = match state.isa {
        Isa::Svm => (MSR_VM_HSAVE_PA, area.host_save),
        Isa::Vmx => (vmx::MSR_FEATURE_CONTROL, vmx::FEATURE_CONTROL),
    };
    let msrs =
        [own, (0x277, state.pat)].map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let list = Msrs::from_entries(&msrs).map_err(|error| anyhow!("{error:?}"))?;
    let written = fd.set_msrs(&list).context("KVM_SET_MSRS")?;
    ensure!(written == msrs.len(), "KVM refuses MSR {:#x}", msrs[written].index);

    fd.set_regs(&kvm_regs { rip: entry, rsp: area.stack, rflags: 2, ..Default::default() })
        .context("KVM_SET_REGS")?;
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).context("KVM_SET_MP_STATE")
}

fn set_lapic_register(lapic: &mut kvm_lapic_state, (offset, value): (usize, u32)) {
    for (place, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *place = byte as _;
    }
}

/// The signal that makes KVM_RUN return.
const KICK: UnixSignal = UnixSignal::SIGUSR1;

fn install_kick() -> Result<()> {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any point of any thread.
    unsafe { signal::sigaction(KICK, &action) }.context("cannot handle SIGUSR1")?;
    Ok(())
}

fn spawn(
    vcpu: Vcpu,
    truth: Truth,
    stop: Arc<AtomicBool>,
    done: Sender<Result<()>>,
) -> Result<JoinHandle<()>> {
    let index = vcpu.index;
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(move || {
            let result = vcpu.run(&truth, &stop).with_context(|| format!("vCPU {index}"));
            // Nobody listens any more if another vCPU failed; then this one's result is not needed.
            let _ = done.send(result);
        })
        .context("cannot start a thread")
}

/// Waits for the threads, and kicks those that are in KVM_RUN: `stop` is set.
fn join(threads: Vec<JoinHandle<()>>) -> Result<()> {
    for thread in threads {
        while !thread.is_finished() {
            // The thread may be just before KVM_RUN, where a signal does not stop it: so again and again.
            let _ = pthread_kill(thread.as_pthread_t(), KICK);
            thread::sleep(Duration::from_millis(5));
        }
        thread.join().map_err(|_| anyhow!("a vCPU thread panicked"))?;
    }
    Ok(())
}

fn lock<'a>(truth: &'a Truth) -> std::sync::MutexGuard<'a, dyn Write + Send + 'static> {
    // A thread that panicked has its own error; what it wrote are whole lines.
    truth.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vcpu {
    fn run(mut self, truth: &Truth, stop: &AtomicBool) -> Result<()> {
        loop {
            if stop.load(Ordering::Relaxed) {
                bail!("stopped {}", self.position());
            }
            let signal = match self.fd.run() {
                Ok(VcpuExit::IoOut(port, _)) => Signal::from_port(port),
                Ok(VcpuExit::IoIn(port, data)) => {
                    answer(port.into(), data);
                    None
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    answer(address, data);
                    None
                }
                Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr) => None,
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    bail!("the processor refuses to run the guest, reason {reason:#x}, {}", self.position())
                }
                Ok(VcpuExit::InternalError) => {
                    let run = self.fd.get_kvm_run();
                    // SAFETY: KVM has set `exit_reason` to KVM_EXIT_INTERNAL_ERROR, for which this is the union's member.
                    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
                    bail!("KVM gives up with internal error {suberror}, {}", self.position())
                }
                Ok(VcpuExit::Shutdown) => bail!("L1 shut down by a triple fault, {}", self.position()),
                Ok(other) => bail!("unexpected exit to user space {other:?}"),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
                Err(error) => return Err(error).context("KVM_RUN failed"),
            };
            match signal {
                None => {}
                Some(Signal::ReadLog) => self.read_log(truth, false)?,
                Some(Signal::Done) => return self.end(truth, false),
                Some(Signal::Die) => {
                    self.end(truth, true)?;
                    signal::raise(UnixSignal::SIGKILL)?;
                }
                Some(Signal::Failed) => {
                    let failure: Failure = self.read(self.layout.slots + slot::FAILURE)?;
                    let failure = failure.describe(self.reader.sites());
                    // What it did before it failed is of use too.
                    if let Err(error) = self.read_log(truth, true).and_then(|()| self.write_rest(truth)) {
                        bail!("{failure}; and its log cannot be read: {error:#}");
                    }
                    bail!("{failure}");
                }
            }
        }
    }

    fn position(&self) -> String {
        match self.fd.get_regs() {
            Ok(regs) => format!(
                "at RIP {:#x} (RAX {:#x} RBX {:#x} RCX {:#x} RDX {:#x}) in turn {}",
                regs.rip, regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.r14
            ),
            Err(error) => format!("at an unknown place ({error})"),
        }
    }

    fn read<T: ByteValued>(&self, address: u64) -> Result<T> {
        self.memory
            .read_obj(GuestAddress(address))
            .with_context(|| format!("cannot read guest memory at {address:#x}"))
    }

    /// Writes what the log holds. `abruptly`: instructions may be unfinished.
    fn read_log(&mut self, truth: &Truth, abruptly: bool) -> Result<()> {
        let end: u64 = self.read(self.layout.slots + slot::LOG_NOW)?;
        ensure!(
            (self.layout.log..=self.layout.log_end).contains(&end)
                && (end - self.layout.log).is_multiple_of(Record::SIZE),
            "the guest's log ends at {end:#x}, outside of {:#x} to {:#x}",
            self.layout.log,
            self.layout.log_end
        );
        let mut address = self.layout.log;
        while address < end {
            let record: Record = self.read(address)?;
            self.reader.record(&record, abruptly)?;
            address += size_of::<Record>() as u64;
            self.write_lines(truth)?;
        }
        Ok(())
    }

    /// Writes everything there is.
    fn end(&mut self, truth: &Truth, abruptly: bool) -> Result<()> {
        self.read_log(truth, abruptly)?;
        let record: Record = self.read(self.layout.slots + slot::SIGNAL)?;
        self.reader.record(&record, true)?;
        self.write_rest(truth)
    }

    /// Writes the lines that wait for an end that does not come.
    fn write_rest(&mut self, truth: &Truth) -> Result<()> {
        self.write_lines(truth)?;
        let mut out = lock(truth);
        for line in self.reader.finish() {
            write_line(&mut *out, &line)?;
        }
        out.flush().context("cannot write the truth")
    }

    fn write_lines(&mut self, truth: &Truth) -> Result<()> {
        let mut out = lock(truth);
        while let Some(line) = self.reader.next_line() {
            write_line(&mut *out, &line)?;
        }
        Ok(())
    }
}

fn write_line(out: &mut dyn Write, line: &Line) -> Result<()> {
    serde_json::to_writer(&mut *out, line)
        .map_err(std::io::Error::from)
        .and_then(|()| out.write_all(b"\n"))
        .context("cannot write the truth")
}

/// What user space answers to a read: each byte is the sum of the address's bytes and its own number.
fn answer(address: u64, data: &mut [u8]) {
    let sum = address.to_le_bytes().into_iter().fold(0u8, u8::wrapping_add);
    for (n, byte) in (0u8..=u8::MAX).cycle().zip(data) {
        *byte = sum.wrapping_add(n);
    }
}
