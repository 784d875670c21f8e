// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the guest did when it exited, in the words of an assembler listing.

use super::detail::Detail;
use super::event::{Event, Exit, KvmNestedPageFault, field_bit};
use super::flags::{EventInfo, PageFaultError, exception_name};
use super::gpr::Gpr;
use super::hypercall::{Abi, HyperVInput};
use super::isa::Isa;
use super::outcome::low_bytes;
use super::svm::{self, ExitCode};
use super::vmx::{self, ExitReason};
use core::fmt::{self, Display};

/// Displays the operation: `wrmsr IA32_TSC_DEADLINE <- 0x1f4`, `hypercall KVM_HC_KICK_CPU(0x0, 0x1)`,
/// `out 0x3f8 <- 0x41`, `npf 0xfee00000 WRITE|USER`. What the source could not read prints as `?`, and
/// arguments that are not in RAX, RBX, RCX or RDX as `…`.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a>(pub &'a Exit);

impl Display for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exit = self.0;
        let Some(isa) = Isa::from_field(exit.exit.isa) else {
            return write!(f, "exit {:#x} of isa {}", exit.exit.exit_reason, exit.exit.isa);
        };
        match Detail::of(exit) {
            Detail::None => match isa {
                Isa::Svm => svm(f, exit),
                Isa::Vmx => vmx(f, exit),
            },
            Detail::Unknown => write!(f, "{} ?", isa.exit_reason(exit.exit.exit_reason)),
            detail @ Detail::Msr { write, .. } => match (exit.operand(Gpr::Rdx), exit.operand(Gpr::Rax)) {
                (Some(rdx), Some(rax)) if write => {
                    write!(f, "{detail} <- {:#x}", rdx << 32 | u64::from(rax as u32))
                }
                _ => detail.fmt(f),
            },
            detail @ Detail::Hypercall { abi, .. } => {
                write!(f, "hypercall {detail}")?;
                arguments(f, exit, abi)
            }
            detail @ Detail::Cpuid { .. } => write!(f, "cpuid {detail}"),
            Detail::Io(access) => {
                let rep = if access.is_rep { "rep " } else { "" };
                let direction = if access.is_in { "in" } else { "out" };
                let string = if access.is_string { "s" } else { "" };
                write!(f, "{rep}{direction}{string} {:#x}", access.port)?;
                match exit.operand(Gpr::Rax) {
                    Some(rax) if !access.is_in && !access.is_string => {
                        write!(f, " <- {:#x}", low_bytes(rax, access.size))
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Displays a page fault of L2's that L0 gives to L1: `nested page fault gpa=0x4000000 host=WRITE|USER guest=WRITE|USER`.
/// `host` is what the hardware said of the access, `none` if L0 found the fault by itself; `guest` is what L1 is told; `?` is
/// what the source does not know: bit n of the last member is set if that is so of `KvmNestedPageFault::FIELDS[n]`.
#[derive(Debug, Clone, Copy)]
pub struct NestedPageFault<'a>(pub &'a KvmNestedPageFault, pub Isa, pub u32);

impl Display for NestedPageFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HOST: u32 = field_bit(KvmNestedPageFault::FIELDS, "host_error_code");
        const GUEST: u32 = field_bit(KvmNestedPageFault::FIELDS, "guest_error_code");
        let Self(KvmNestedPageFault { gpa, host_error_code, guest_error_code, .. }, isa, unknown) = *self;
        write!(f, "nested page fault gpa={gpa:#x}")?;
        for (who, code, bit) in [("host", *host_error_code, HOST), ("guest", *guest_error_code, GUEST)] {
            write!(f, " {who}=")?;
            match isa {
                _ if unknown & bit != 0 => f.write_str("?")?,
                _ if code == 0 && who == "host" => f.write_str("none")?,
                Isa::Svm => PageFaultError::from_bits_retain(code).fmt(f)?,
                Isa::Vmx => vmx::EptViolation::from_bits_retain(code).fmt(f)?,
            }
        }
        Ok(())
    }
}

/// A hypercall's arguments: as many as its convention names for this call; of a call without names,
/// and of an unknown convention, those that KVM's own would pass.
fn arguments(f: &mut fmt::Formatter<'_>, exit: &Exit, abi: Option<Abi>) -> fmt::Result {
    let convention = abi.unwrap_or(Abi::Kvm);
    let registers = convention.argument_registers();
    let number = exit.operand(convention.number_register());
    let named = match (abi, number) {
        (Some(abi), Some(number)) => {
            abi.call_name(abi.number(number)).map(|_| abi.argument_names(number).count())
        }
        _ => None,
    };
    f.write_str("(")?;
    for (index, gpr) in registers.iter().take(named.unwrap_or(registers.len())).enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        match exit.operand(*gpr) {
            Some(value) => write!(f, "{value:#x}")?,
            None => f.write_str("…")?,
        }
    }
    f.write_str(")")?;
    if let (Some(Abi::HyperV), Some(number)) = (abi, number) {
        let input = HyperVInput(number);
        if input.rep_count() != 0 {
            write!(f, " rep {}/{}", input.rep_start(), input.rep_count())?;
        }
    }
    Ok(())
}

fn svm(f: &mut fmt::Formatter<'_>, exit: &Exit) -> fmt::Result {
    let event = &exit.exit;
    let code = ExitCode(event.exit_reason);
    if let Some(vector) = code.exception_vector() {
        return exception(f, vector, event.info1, event.info2);
    }
    match code {
        ExitCode::NPF => {
            write!(f, "npf {:#x} {}", event.info2, PageFaultError::from_bits_retain(event.info1))
        }
        ExitCode::VMRUN | ExitCode::VMLOAD | ExitCode::VMSAVE => match exit.operand(Gpr::Rax) {
            Some(vmcb) => write!(f, "{code} {vmcb:#x}"),
            None => code.fmt(f),
        },
        ExitCode(0..=0x1f) => {
            let (cr, access) = (event.exit_reason & 0xf, svm::RegisterAccess(event.info1));
            let gpr = access.is_mov_cr().then(|| access.gpr());
            mov_cr(f, cr, event.exit_reason < 0x10, gpr, exit)
        }
        ExitCode::INVLPG if event.info1 != 0 => write!(f, "invlpg {:#x}", event.info1),
        _ => code.fmt(f),
    }
}

fn vmx(f: &mut fmt::Formatter<'_>, exit: &Exit) -> fmt::Result {
    let event = &exit.exit;
    let reason = ExitReason(event.exit_reason);
    if !reason.flags().is_empty() {
        return reason.fmt(f);
    }
    let qualification = exit.knows_exit("info1").then_some(event.info1);
    match (reason, qualification) {
        (ExitReason::EXCEPTION_NMI, _) if exit.knows_exit("intr_info") => {
            write!(f, "exception {}", EventInfo(event.intr_info))
        }
        (ExitReason::EXTERNAL_INTERRUPT, _)
            if exit.knows_exit("intr_info") && EventInfo(event.intr_info).is_valid() =>
        {
            EventInfo(event.intr_info).fmt(f)
        }
        (ExitReason::EPT_VIOLATION, Some(qualification)) => {
            write!(f, "ept violation {}", vmx::EptViolation::from_bits_retain(qualification))
        }
        (ExitReason::CR_ACCESS, Some(qualification)) => {
            let access = vmx::CrQualification(qualification);
            let gpr = access.gpr();
            match access.access_type() {
                vmx::CrAccessType::MovTo => mov_cr(f, access.cr().into(), false, Some(gpr), exit),
                vmx::CrAccessType::MovFrom => mov_cr(f, access.cr().into(), true, Some(gpr), exit),
                _ => access.fmt(f),
            }
        }
        (ExitReason::INVLPG, Some(address)) => write!(f, "invlpg {address:#x}"),
        (ExitReason::APIC_ACCESS, Some(qualification)) => {
            write!(f, "apic access {}", vmx::ApicAccess(qualification))
        }
        (ExitReason::EOI_INDUCED, Some(vector)) => write!(f, "eoi {vector:#x}"),
        (ExitReason::APIC_WRITE, Some(offset)) => write!(f, "apic write {offset:#x}"),
        _ => LowerCase(reason).fmt(f),
    }
}

fn exception(f: &mut fmt::Formatter<'_>, vector: u8, error_code: u64, address: u64) -> fmt::Result {
    match exception_name(vector) {
        Some(name) => write!(f, "exception {name}")?,
        None => write!(f, "exception {vector:#x}")?,
    }
    match vector {
        14 => write!(f, " {address:#x} {}", PageFaultError::from_bits_retain(error_code)),
        _ => Ok(()),
    }
}

/// `mov cr3 <- 0x1000` if the register's value is known, else `mov cr3 <- rsi`; reads `mov rax <- cr3`.
fn mov_cr(f: &mut fmt::Formatter<'_>, cr: u32, read: bool, gpr: Option<Gpr>, exit: &Exit) -> fmt::Result {
    match (read, gpr) {
        (true, Some(gpr)) => write!(f, "mov {gpr} <- cr{cr}"),
        (true, None) => write!(f, "mov ? <- cr{cr}"),
        (false, Some(gpr)) => match exit.operand(gpr) {
            Some(value) => write!(f, "mov cr{cr} <- {value:#x}"),
            None => write!(f, "mov cr{cr} <- {gpr}"),
        },
        (false, None) => write!(f, "mov cr{cr} <- ?"),
    }
}

/// A VMX exit reason in lower case with spaces, as the other operations are written.
struct LowerCase(ExitReason);

impl Display for LowerCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        let Some(name) = self.0.name() else { return self.0.fmt(f) };
        for character in name.chars() {
            f.write_char(if character == '_' { ' ' } else { character.to_ascii_lowercase() })?;
        }
        Ok(())
    }
}
