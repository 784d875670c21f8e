// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Views: the exits that people ask for by one word, as a predicate for each instruction set.
//!
//! A predicate is data. Its text is a filter in the kernel's language (tracefs, trace-cmd, perf);
//! the tool compiles that same text for its BPF programs and evaluates it over records.

use super::event::{Event, Exit, KvmExit};
use super::isa::{Isa, Level};
use super::svm::ExitCode as Svm;
use super::vmx::ExitReason as Vmx;
use core::fmt;

/// Exits by reason, and by `info1` where the reason alone does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predicate {
    /// Inclusive ranges of exit reasons. VMX: with all their flag bits clear, so that a failed VM
    /// entry is none of these.
    pub reasons: &'static [(u32, u32)],
    /// The value of `info1`, if it matters.
    pub info1: Option<u64>,
}

impl Predicate {
    /// Whether it selects an exit.
    pub fn selects(&self, exit: &KvmExit) -> bool {
        self.reasons.iter().any(|&(first, last)| (first..=last).contains(&exit.exit_reason))
            && self.info1.is_none_or(|info1| info1 == exit.info1)
    }
}

/// The filter's text, in the kernel's language.
impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grouped = self.reasons.len() > 1 && self.info1.is_some();
        if grouped {
            f.write_str("(")?;
        }
        for (index, &(first, last)) in self.reasons.iter().enumerate() {
            if index > 0 {
                f.write_str(" || ")?;
            }
            if first == last {
                write!(f, "exit_reason == {first:#x}")?;
            } else if first == 0 {
                write!(f, "exit_reason <= {last:#x}")?;
            } else {
                write!(f, "(exit_reason >= {first:#x} && exit_reason <= {last:#x})")?;
            }
        }
        if grouped {
            f.write_str(")")?;
        }
        if let Some(info1) = self.info1 {
            write!(f, " && info1 == {info1:#x}")?;
        }
        Ok(())
    }
}

/// A view: what it is called, what it is for, what it selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The word for it.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// The trace event that it filters; of `kvm_nested_page_fault` it takes all.
    pub event: &'static str,
    /// The event's fields that tell apart what it selects, the most telling first. Three at most: a hist trigger takes no
    /// more keys. The first one the event of every source has.
    pub keys: &'static [&'static str],
    /// On AMD.
    pub svm: Predicate,
    /// On Intel.
    pub vmx: Predicate,
}

impl View {
    /// The view called `name`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        VIEWS.iter().find(|view| view.name == name)
    }

    /// What it selects on an instruction set.
    pub const fn predicate(&self, isa: Isa) -> &Predicate {
        match isa {
            Isa::Vmx => &self.vmx,
            Isa::Svm => &self.svm,
        }
    }

    /// Whether it selects an exit, at `level` if one is given.
    pub fn selects(&self, exit: &Exit, level: Option<Level>) -> bool {
        Isa::from_field(exit.exit.isa).is_some_and(|isa| self.predicate(isa).selects(&exit.exit))
            && level.is_none_or(|level| level == Level::from_is_nested(exit.exit.is_nested))
    }

    /// The filter's text for an instruction set and, if one is given, a level.
    pub const fn filter(&self, isa: Isa, level: Option<Level>) -> ViewFilter<'_> {
        ViewFilter { predicate: self.predicate(isa), level }
    }
}

/// Displays a view's filter in the kernel's language.
#[derive(Debug, Clone, Copy)]
pub struct ViewFilter<'a> {
    predicate: &'a Predicate,
    level: Option<Level>,
}

impl fmt::Display for ViewFilter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(level) = self.level else {
            return self.predicate.fmt(f);
        };
        // The kernel refuses a bare `is_nested`, and then traces everything.
        match self.predicate {
            Predicate { reasons: [], .. } => write!(f, "is_nested == {}", level.is_nested()),
            Predicate { reasons: [_], .. } => {
                write!(f, "{} && is_nested == {}", self.predicate, level.is_nested())
            }
            _ => write!(f, "({}) && is_nested == {}", self.predicate, level.is_nested()),
        }
    }
}

macro_rules! predicate {
    ($isa:ident: $($first:ident $(..= $last:ident)?),* $(; info1 $info1:literal)?) => {
        Predicate {
            reasons: &[$( predicate!(@range $isa $first $($last)?) ),*],
            info1: predicate!(@info1 $($info1)?),
        }
    };
    (@range $isa:ident $only:ident) => { ($isa::$only.0, $isa::$only.0) };
    (@range $isa:ident $first:ident $last:ident) => { ($isa::$first.0, $isa::$last.0) };
    (@info1) => { None };
    (@info1 $info1:literal) => { Some($info1) };
}

macro_rules! views {
    ($($event:ident $name:literal $about:literal by($($key:ident),*)
        svm($($svm:tt)*) vmx($($vmx:tt)*);)*) => {
        /// Every view.
        pub const VIEWS: &[View] = &[$( View {
            name: $name,
            about: $about,
            event: <super::event::$event as Event>::NAME,
            keys: &[$( {
                // It is a field.
                let _ = core::mem::offset_of!(super::event::$event, $key);
                stringify!($key)
            } ),*],
            svm: predicate!(Svm: $($svm)*),
            vmx: predicate!(Vmx: $($vmx)*),
        } ),*];
    };
}

views! {
    KvmExit "msr" "RDMSR and WRMSR" by(exit_reason, rcx, info1)
        svm(MSR) vmx(MSR_READ, MSR_WRITE, MSR_READ_IMM, MSR_WRITE_IMM);
    KvmExit "msr-read" "RDMSR" by(exit_reason, rcx)
        svm(MSR; info1 0) vmx(MSR_READ, MSR_READ_IMM);
    KvmExit "msr-write" "WRMSR" by(exit_reason, rcx)
        svm(MSR; info1 1) vmx(MSR_WRITE, MSR_WRITE_IMM);
    KvmExit "hypercall" "VMMCALL and VMCALL" by(exit_reason, rax)
        svm(VMMCALL) vmx(VMCALL);
    KvmExit "cpuid" "CPUID" by(exit_reason, rax, rcx)
        svm(CPUID) vmx(CPUID);
    KvmExit "pio" "port I/O" by(exit_reason, info1)
        svm(IOIO) vmx(IO_INSTRUCTION);
    KvmExit "page-fault" "nested page faults; EPT violations and misconfigurations" by(exit_reason, info1)
        svm(NPF) vmx(EPT_VIOLATION, EPT_MISCONFIG);
    KvmNestedPageFault "nested-page-fault" "page faults of L2 that L0 gives to L1" by(vcpu_id, host_error_code, guest_error_code)
        svm() vmx();
    KvmExit "cr" "control-register accesses" by(exit_reason, info1)
        svm(READ_CR0 ..= WRITE_CR15, CR0_SEL_WRITE) vmx(CR_ACCESS);
    KvmExit "hlt" "HLT" by(exit_reason, vcpu_id)
        svm(HLT) vmx(HLT);
    KvmExit "interrupt" "interrupts, NMIs, and the windows for injecting them" by(exit_reason, intr_info)
        svm(INTR ..= INIT, VINTR) vmx(EXTERNAL_INTERRUPT, INTERRUPT_WINDOW, NMI_WINDOW);
    KvmExit "nested" "the virtualization instructions that L1 executes" by(exit_reason, guest_rip)
        svm(INVLPGA, VMRUN, VMLOAD ..= SKINIT)
        vmx(VMCLEAR ..= VMON, INVEPT, INVVPID);
}
