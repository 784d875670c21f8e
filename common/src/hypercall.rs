// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Hypercalls of the three conventions that KVM offers a guest: its own, Hyper-V's and Xen's.

use super::gpr::Gpr;
use super::table::{Entry, Table};
use core::fmt;

/// How a guest passes a hypercall. KVM treats every VMCALL or VMMCALL of a VM as Hyper-V's once the guest has enabled
/// those, and as Xen's if user space asked for those (there, bit 31 of EAX marks a Hyper-V one); else as its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Abi {
    /// KVM's own. Documentation/virt/kvm/x86/hypercalls.rst, `kvm_emulate_hypercall()`.
    Kvm = 0,
    /// Hyper-V's. TLFS "Hypercall Interface", `kvm_hv_hypercall()`.
    HyperV = 1,
    /// Xen's. arch/x86/include/asm/xen/hypercall.h, `kvm_xen_hypercall()`.
    Xen = 2,
}

/// Registers are those of 64-bit mode. In 32-bit mode KVM's are the same; Xen's arguments are in EBX, ECX, EDX, ESI, EDI;
/// Hyper-V's input value is in EDX:EAX, its arguments in EBX:ECX and EDI:ESI.
impl Abi {
    /// Every convention.
    pub const ALL: [Self; 3] = [Self::Kvm, Self::HyperV, Self::Xen];

    /// Its name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::HyperV => "hyperv",
            Self::Xen => "xen",
        }
    }

    /// The convention called `name`, whatever the case of its letters.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|abi| abi.name().eq_ignore_ascii_case(name))
    }

    /// Its calls. The text of each is the names of its arguments, separated by `, `; empty if not known.
    pub const fn calls(self) -> &'static Table {
        match self {
            Self::Kvm => &KVM_CALLS,
            Self::HyperV => &HYPERV_CALLS,
            Self::Xen => &XEN_CALLS,
        }
    }

    /// The register that holds the number of the call; Hyper-V's is a [`HyperVInput`].
    pub const fn number_register(self) -> Gpr {
        match self {
            Self::Kvm | Self::Xen => Gpr::Rax,
            Self::HyperV => Gpr::Rcx,
        }
    }

    /// The registers that hold its arguments, in order; those that are not [`Gpr::is_common`] are not in the events.
    pub const fn argument_registers(self) -> &'static [Gpr] {
        match self {
            Self::Kvm => &[Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi],
            Self::HyperV => &[Gpr::Rdx, Gpr::R8],
            Self::Xen => &[Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8],
        }
    }

    /// The number of the call, from the value of [`Abi::number_register`]. KVM and Xen compare all 64 bits of it.
    pub const fn number(self, register: u64) -> u64 {
        match self {
            Self::Kvm | Self::Xen => register,
            Self::HyperV => HyperVInput(register).code() as u64,
        }
    }

    /// The name of a call.
    pub const fn call_name(self, number: u64) -> Option<&'static str> {
        if number >> 32 == 0 { self.calls().name(number as u32) } else { None }
    }

    /// The number of the call called `name`, whatever the case of its letters; Xen's also with the leading `__`.
    pub fn call_by_name(self, name: &str) -> Option<u64> {
        let name = if let Self::Xen = self { name.trim_start_matches("__") } else { name };
        self.calls().by_name(name).map(u64::from)
    }

    /// What the arguments of a call are called, from the value of [`Abi::number_register`]: as many as are known, in the
    /// order of [`Abi::argument_registers`].
    pub fn argument_names(self, register: u64) -> impl Iterator<Item = &'static str> {
        let names = match self {
            Self::HyperV if !HyperVInput(register).is_fast() => "input_gpa, output_gpa",
            _ => u32::try_from(self.number(register))
                .ok()
                .and_then(|number| self.calls().get(number))
                .map_or("", |call| call.text),
        };
        names.split(", ").filter(|name| !name.is_empty()).take(self.argument_registers().len())
    }

    /// Displays what a call returned in RAX: `0x0`, `-EPERM`, `HV_STATUS_SUCCESS`.
    pub const fn result(self, rax: u64) -> HypercallResult {
        HypercallResult { abi: self, rax }
    }
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The hypercall input value of Hyper-V. TLFS "Hypercall Inputs"; `HV_HYPERCALL_*` in include/hyperv/hvgdk_mini.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HyperVInput(pub u64);

impl HyperVInput {
    /// The call code, bits 15:0.
    pub const fn code(self) -> u16 {
        self.0 as u16
    }

    /// Bit 16: the arguments are in registers (RDX, R8, XMM0 to XMM5); else RDX and R8 are the guest physical addresses
    /// of the input and output.
    pub const fn is_fast(self) -> bool {
        self.0 & (1 << 16) != 0
    }

    /// Length of the variable header in units of 8 bytes, bits 26:17.
    pub const fn variable_header_size(self) -> u16 {
        ((self.0 >> 17) & 0x3ff) as u16
    }

    /// Bit 31: to be handled by the L0 hypervisor.
    pub const fn is_nested(self) -> bool {
        self.0 & (1 << 31) != 0
    }

    /// Elements of a rep call, bits 43:32; 0 for a simple call.
    pub const fn rep_count(self) -> u16 {
        ((self.0 >> 32) & 0xfff) as u16
    }

    /// The element to start at, bits 59:48.
    pub const fn rep_start(self) -> u16 {
        ((self.0 >> 48) & 0xfff) as u16
    }
}

/// `HvCallSignalEvent fast`, `HvCallFlushVirtualAddressList rep 0/3`, `0x7777`.
impl fmt::Display for HyperVInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match HYPERV_CALLS.name(self.code() as u32) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{:#x}", self.code())?,
        }
        if self.is_fast() {
            f.write_str(" fast")?;
        }
        if self.is_nested() {
            f.write_str(" nested")?;
        }
        if self.variable_header_size() != 0 {
            write!(f, " header {}", self.variable_header_size())?;
        }
        if self.rep_count() != 0 || self.rep_start() != 0 {
            write!(f, " rep {}/{}", self.rep_start(), self.rep_count())?;
        }
        Ok(())
    }
}

/// What a hypercall returned. Made by [`Abi::result`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HypercallResult {
    abi: Abi,
    rax: u64,
}

impl HypercallResult {
    /// The name of the error that KVM or Xen returned, without its sign. KVM cuts what it returns to 32-bit mode to 32
    /// bits, so a negative number of 32 bits counts as well.
    pub const fn error(self) -> Option<&'static str> {
        let value = if self.rax >> 32 == 0 { self.rax as u32 as i32 as i64 } else { self.rax as i64 };
        match self.abi {
            Abi::HyperV => None,
            Abi::Kvm | Abi::Xen if value < 0 && value >= -(u32::MAX as i64) => ERRNOS.name(-value as u32),
            Abi::Kvm | Abi::Xen => None,
        }
    }

    /// The name of the status that Hyper-V's convention returns in bits 15:0.
    pub const fn status(self) -> Option<&'static str> {
        match self.abi {
            Abi::HyperV => HV_STATUSES.name(self.rax as u16 as u32),
            Abi::Kvm | Abi::Xen => None,
        }
    }

    /// Elements of a rep call that Hyper-V's convention reports as done, bits 43:32.
    pub const fn reps_completed(self) -> u16 {
        match self.abi {
            Abi::HyperV => ((self.rax >> 32) & 0xfff) as u16,
            Abi::Kvm | Abi::Xen => 0,
        }
    }
}

impl fmt::Display for HypercallResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.error(), self.status()) {
            (Some(error), _) => return write!(f, "-{error}"),
            (None, Some(status)) => f.write_str(status)?,
            (None, None) if self.abi == Abi::HyperV => write!(f, "{:#x}", self.rax as u16)?,
            (None, None) => return write!(f, "{:#x}", self.rax),
        }
        match self.reps_completed() {
            0 => Ok(()),
            reps => write!(f, " reps {reps}"),
        }
    }
}

macro_rules! table {
    ($($number:literal $name:literal $text:literal;)*) => {
        Table::new(&[$(Entry { number: $number, name: $name, text: $text },)*])
    };
}

// include/uapi/linux/kvm_para.h; arguments by Documentation/virt/kvm/x86/hypercalls.rst.
const KVM_CALLS: Table = table! {
    1 "KVM_HC_VAPIC_POLL_IRQ" "";
    2 "KVM_HC_MMU_OP" "size, gpa, gpa_high";
    3 "KVM_HC_FEATURES" "";
    4 "KVM_HC_PPC_MAP_MAGIC_PAGE" "";
    5 "KVM_HC_KICK_CPU" "flags, apic_id";
    6 "KVM_HC_MIPS_GET_CLOCK_FREQ" "";
    7 "KVM_HC_MIPS_EXIT_VM" "";
    8 "KVM_HC_MIPS_CONSOLE_OUTPUT" "";
    9 "KVM_HC_CLOCK_PAIRING" "gpa, clock_type";
    10 "KVM_HC_SEND_IPI" "bitmap_low, bitmap_high, min, icr";
    11 "KVM_HC_SCHED_YIELD" "apic_id";
    12 "KVM_HC_MAP_GPA_RANGE" "gpa, pages, attributes";
};

// TLFS 6.0b Appendix A and its later online table; above 0xb0 include/hyperv/hvgdk_mini.h. Names are the TLFS's, with
// the prefix HvCall throughout. Arguments are the 8-byte words of the input that a fast call passes in registers.
const HYPERV_CALLS: Table = table! {
    0x0001 "HvCallSwitchVirtualAddressSpace" "address_space";
    0x0002 "HvCallFlushVirtualAddressSpace" "address_space, flags";
    0x0003 "HvCallFlushVirtualAddressList" "address_space, flags";
    0x0004 "HvCallGetLogicalProcessorRunTime" "";
    0x0008 "HvCallNotifyLongSpinWait" "spin_count";
    0x0009 "HvCallParkedVirtualProcessors" "";
    0x000b "HvCallSendSyntheticClusterIpi" "vector, processor_mask";
    0x000c "HvCallModifyVtlProtectionMask" "partition, flags";
    0x000d "HvCallEnablePartitionVtl" "partition, vtl";
    0x000e "HvCallDisablePartitionVtl" "partition, vtl";
    0x000f "HvCallEnableVpVtl" "partition, vp";
    0x0010 "HvCallDisableVpVtl" "partition, vp";
    0x0011 "HvCallVtlCall" "";
    0x0012 "HvCallVtlReturn" "";
    0x0013 "HvCallFlushVirtualAddressSpaceEx" "address_space, flags";
    0x0014 "HvCallFlushVirtualAddressListEx" "address_space, flags";
    0x0015 "HvCallSendSyntheticClusterIpiEx" "vector, processor_set";
    0x0040 "HvCallCreatePartition" "";
    0x0041 "HvCallInitializePartition" "partition";
    0x0042 "HvCallFinalizePartition" "partition";
    0x0043 "HvCallDeletePartition" "partition";
    0x0044 "HvCallGetPartitionProperty" "partition, property";
    0x0045 "HvCallSetPartitionProperty" "partition, property";
    0x0046 "HvCallGetPartitionId" "";
    0x0047 "HvCallGetNextChildPartition" "";
    0x0048 "HvCallDepositMemory" "partition";
    0x0049 "HvCallWithdrawMemory" "partition";
    0x004a "HvCallGetMemoryBalance" "partition";
    0x004b "HvCallMapGpaPages" "partition, gpa_page";
    0x004c "HvCallUnmapGpaPages" "partition, gpa_page";
    0x004d "HvCallInstallIntercept" "partition";
    0x004e "HvCallCreateVp" "partition, vp";
    0x004f "HvCallDeleteVp" "partition, vp";
    0x0050 "HvCallGetVpRegisters" "partition, vp";
    0x0051 "HvCallSetVpRegisters" "partition, vp";
    0x0052 "HvCallTranslateVirtualAddress" "partition, vp";
    0x0053 "HvCallReadGpa" "partition, vp";
    0x0054 "HvCallWriteGpa" "partition, vp";
    0x0056 "HvCallClearVirtualInterrupt" "partition";
    0x0058 "HvCallDeletePort" "partition, port";
    0x005a "HvCallGetPortProperty" "";
    0x005b "HvCallDisconnectPort" "partition, connection";
    0x005c "HvCallPostMessage" "connection, type_and_size";
    0x005d "HvCallSignalEvent" "connection";
    0x005e "HvCallSavePartitionState" "";
    0x005f "HvCallRestorePartitionState" "";
    0x0060 "HvCallInitializeEventLogBufferGroup" "";
    0x0061 "HvCallFinalizeEventLogBufferGroup" "";
    0x0062 "HvCallCreateEventLogBuffer" "";
    0x0063 "HvCallDeleteEventLogBuffer" "";
    0x0064 "HvCallMapEventLogBuffer" "";
    0x0065 "HvCallUnmapEventLogBuffer" "";
    0x0066 "HvCallSetEventLogGroupSources" "";
    0x0067 "HvCallReleaseEventLogBuffer" "";
    0x0068 "HvCallFlushEventLogBuffer" "";
    0x0069 "HvCallPostDebugData" "";
    0x006a "HvCallRetrieveDebugData" "";
    0x006b "HvCallResetDebugSession" "";
    0x006c "HvCallMapStatsPage" "";
    0x006d "HvCallUnmapStatsPage" "";
    0x006e "HvCallMapSparseGpaPages" "";
    0x006f "HvCallSetSystemProperty" "";
    0x0070 "HvCallSetPortProperty" "";
    0x0071 "HvCallOutputDebugCharacter" "";
    0x0076 "HvCallAddLogicalProcessor" "";
    0x0077 "HvCallRemoveLogicalProcessor" "";
    0x0078 "HvCallQueryNumaDistance" "";
    0x0079 "HvCallSetLogicalProcessorProperty" "";
    0x007a "HvCallGetLogicalProcessorProperty" "";
    0x007b "HvCallGetSystemProperty" "";
    0x007c "HvCallMapDeviceInterrupt" "";
    0x007d "HvCallUnmapDeviceInterrupt" "";
    0x007e "HvCallRetargetDeviceInterrupt" "partition, device";
    0x0080 "HvCallMapDevicePages" "";
    0x0081 "HvCallUnmapDevicePages" "";
    0x0082 "HvCallAttachDevice" "";
    0x0083 "HvCallDetachDevice" "";
    0x0084 "HvCallEnterSleepState" "";
    0x0085 "HvCallPrepareForSleep" "";
    0x0086 "HvCallPrepareForHibernate" "";
    0x0087 "HvCallNotifyPartitionEvent" "";
    0x0088 "HvCallGetLogicalProcessorRegisters" "";
    0x0089 "HvCallSetLogicalProcessorRegisters" "";
    0x008a "HvCallQueryAssociatedLpsForMca" "";
    0x008b "HvCallNotifyPortRingEmpty" "";
    0x008c "HvCallInjectSyntheticMachineCheck" "";
    0x008d "HvCallScrubPartition" "";
    0x008e "HvCallCollectLivedump" "";
    0x008f "HvCallDisableHypervisor" "";
    0x0090 "HvCallModifySparseGpaPages" "";
    0x0091 "HvCallRegisterInterceptResult" "";
    0x0092 "HvCallUnregisterInterceptResult" "";
    0x0094 "HvCallAssertVirtualInterrupt" "partition";
    0x0095 "HvCallCreatePort" "";
    0x0096 "HvCallConnectPort" "";
    0x0097 "HvCallGetSpaPageList" "";
    0x0099 "HvCallStartVirtualProcessor" "partition, vp";
    0x009a "HvCallGetVpIndexFromApicId" "partition, vtl";
    0x00ac "HvCallTranslateVirtualAddressEx" "";
    0x00ad "HvCallCheckForIoIntercept" "";
    0x00af "HvCallFlushGuestPhysicalAddressSpace" "address_space, flags";
    0x00b0 "HvCallFlushGuestPhysicalAddressList" "address_space, flags";
    0x00c0 "HvCallSignalEventDirect" "";
    0x00c1 "HvCallPostMessageDirect" "";
    0x00c2 "HvCallDispatchVp" "";
    0x00c9 "HvCallGetGpaPagesAccessStates" "";
    0x00d4 "HvCallCheckSparseGpaPageVtlAccess" "";
    0x00d7 "HvCallAcquireSparseSpaPageHostAccess" "";
    0x00d8 "HvCallReleaseSparseSpaPageHostAccess" "";
    0x00d9 "HvCallAcceptGpaPages" "";
    0x00db "HvCallModifySparseGpaPageHostVisibility" "partition, visibility";
    0x00e1 "HvCallMapVpStatePage" "";
    0x00e2 "HvCallUnmapVpStatePage" "";
    0x00e3 "HvCallGetVpState" "";
    0x00e4 "HvCallSetVpState" "";
    0x00f4 "HvCallGetVpCpuidValues" "";
    0x0101 "HvCallGetPartitionPropertyEx" "";
    0x0106 "HvCallMemoryMappedIoRead" "gpa, size";
    0x0107 "HvCallMemoryMappedIoWrite" "gpa, size";
    0x010f "HvCallDisableHypervisorEx" "";
    0x0112 "HvCallPinGpaPageRanges" "";
    0x0113 "HvCallUnpinGpaPageRanges" "";
    0x011c "HvCallQuerySparseGpaPageHostVisibility" "";
    0x0131 "HvCallMapStatsPage2" "";
    0x8001 "HvExtCallQueryCapabilities" "";
    0x8002 "HvExtCallGetBootZeroedMemory" "";
    0x8003 "HvExtCallMemoryHeatHint" "";
};

// include/xen/interface/xen.h; arguments by arch/x86/include/asm/xen/hypercall.h and, where that has none, by Xen's own
// public headers.
const XEN_CALLS: Table = table! {
    0 "HYPERVISOR_set_trap_table" "table";
    1 "HYPERVISOR_mmu_update" "req, count, success_count, domid";
    2 "HYPERVISOR_set_gdt" "frame_list, entries";
    3 "HYPERVISOR_stack_switch" "ss, esp";
    4 "HYPERVISOR_set_callbacks" "event, failsafe, syscall";
    5 "HYPERVISOR_fpu_taskswitch" "set";
    6 "HYPERVISOR_sched_op_compat" "cmd, arg";
    7 "HYPERVISOR_platform_op" "op";
    8 "HYPERVISOR_set_debugreg" "reg, value";
    9 "HYPERVISOR_get_debugreg" "reg";
    10 "HYPERVISOR_update_descriptor" "ma, desc";
    12 "HYPERVISOR_memory_op" "cmd, arg";
    13 "HYPERVISOR_multicall" "call_list, nr_calls";
    14 "HYPERVISOR_update_va_mapping" "va, new_val, flags";
    15 "HYPERVISOR_set_timer_op" "timeout";
    16 "HYPERVISOR_event_channel_op_compat" "op";
    17 "HYPERVISOR_xen_version" "cmd, arg";
    18 "HYPERVISOR_console_io" "cmd, count, str";
    19 "HYPERVISOR_physdev_op_compat" "op";
    20 "HYPERVISOR_grant_table_op" "cmd, uop, count";
    21 "HYPERVISOR_vm_assist" "cmd, type";
    22 "HYPERVISOR_update_va_mapping_otherdomain" "va, new_val, flags, domid";
    23 "HYPERVISOR_iret" "";
    24 "HYPERVISOR_vcpu_op" "cmd, vcpuid, extra_args";
    25 "HYPERVISOR_set_segment_base" "reg, value";
    26 "HYPERVISOR_mmuext_op" "op, count, success_count, domid";
    27 "HYPERVISOR_xsm_op" "op";
    28 "HYPERVISOR_nmi_op" "cmd, arg";
    29 "HYPERVISOR_sched_op" "cmd, arg";
    30 "HYPERVISOR_callback_op" "cmd, arg";
    31 "HYPERVISOR_xenoprof_op" "op, arg";
    32 "HYPERVISOR_event_channel_op" "cmd, arg";
    33 "HYPERVISOR_physdev_op" "cmd, arg";
    34 "HYPERVISOR_hvm_op" "op, arg";
    35 "HYPERVISOR_sysctl" "op";
    36 "HYPERVISOR_domctl" "op";
    37 "HYPERVISOR_kexec_op" "op, arg";
    38 "HYPERVISOR_tmem_op" "op";
    39 "HYPERVISOR_xc_reserved_op" "";
    40 "HYPERVISOR_xenpmu_op" "op, arg";
    41 "HYPERVISOR_dm_op" "domid, nr_bufs, bufs";
    48 "HYPERVISOR_mca" "mc_op";
    49 "HYPERVISOR_arch_1" "";
    50 "HYPERVISOR_arch_2" "";
    51 "HYPERVISOR_arch_3" "";
    52 "HYPERVISOR_arch_4" "";
    53 "HYPERVISOR_arch_5" "";
    54 "HYPERVISOR_arch_6" "";
    55 "HYPERVISOR_arch_7" "";
};

// include/uapi/asm-generic/errno*.h, whose numbers Xen shares, and KVM_ENOSYS of include/uapi/linux/kvm_para.h; KVM's
// other errors (KVM_EPERM ...) are the errno of the same name.
const ERRNOS: Table = table! {
    1 "EPERM" "";
    2 "ENOENT" "";
    3 "ESRCH" "";
    4 "EINTR" "";
    5 "EIO" "";
    6 "ENXIO" "";
    7 "E2BIG" "";
    8 "ENOEXEC" "";
    9 "EBADF" "";
    10 "ECHILD" "";
    11 "EAGAIN" "";
    12 "ENOMEM" "";
    13 "EACCES" "";
    14 "EFAULT" "";
    16 "EBUSY" "";
    17 "EEXIST" "";
    18 "EXDEV" "";
    19 "ENODEV" "";
    20 "ENOTDIR" "";
    21 "EISDIR" "";
    22 "EINVAL" "";
    23 "ENFILE" "";
    24 "EMFILE" "";
    28 "ENOSPC" "";
    30 "EROFS" "";
    31 "EMLINK" "";
    33 "EDOM" "";
    34 "ERANGE" "";
    35 "EDEADLK" "";
    36 "ENAMETOOLONG" "";
    37 "ENOLCK" "";
    38 "ENOSYS" "";
    39 "ENOTEMPTY" "";
    61 "ENODATA" "";
    62 "ETIME" "";
    74 "EBADMSG" "";
    75 "EOVERFLOW" "";
    84 "EILSEQ" "";
    85 "ERESTART" "";
    88 "ENOTSOCK" "";
    90 "EMSGSIZE" "";
    95 "EOPNOTSUPP" "";
    98 "EADDRINUSE" "";
    99 "EADDRNOTAVAIL" "";
    105 "ENOBUFS" "";
    106 "EISCONN" "";
    107 "ENOTCONN" "";
    110 "ETIMEDOUT" "";
    1000 "KVM_ENOSYS" "";
};

// TLFS 6.0b Appendix B; include/hyperv/hvgdk_mini.h.
const HV_STATUSES: Table = table! {
    0x00 "HV_STATUS_SUCCESS" "";
    0x02 "HV_STATUS_INVALID_HYPERCALL_CODE" "";
    0x03 "HV_STATUS_INVALID_HYPERCALL_INPUT" "";
    0x04 "HV_STATUS_INVALID_ALIGNMENT" "";
    0x05 "HV_STATUS_INVALID_PARAMETER" "";
    0x06 "HV_STATUS_ACCESS_DENIED" "";
    0x07 "HV_STATUS_INVALID_PARTITION_STATE" "";
    0x08 "HV_STATUS_OPERATION_DENIED" "";
    0x09 "HV_STATUS_UNKNOWN_PROPERTY" "";
    0x0a "HV_STATUS_PROPERTY_VALUE_OUT_OF_RANGE" "";
    0x0b "HV_STATUS_INSUFFICIENT_MEMORY" "";
    0x0c "HV_STATUS_PARTITION_TOO_DEEP" "";
    0x0d "HV_STATUS_INVALID_PARTITION_ID" "";
    0x0e "HV_STATUS_INVALID_VP_INDEX" "";
    0x10 "HV_STATUS_NOT_FOUND" "";
    0x11 "HV_STATUS_INVALID_PORT_ID" "";
    0x12 "HV_STATUS_INVALID_CONNECTION_ID" "";
    0x13 "HV_STATUS_INSUFFICIENT_BUFFERS" "";
    0x14 "HV_STATUS_NOT_ACKNOWLEDGED" "";
    0x15 "HV_STATUS_INVALID_VP_STATE" "";
    0x16 "HV_STATUS_ACKNOWLEDGED" "";
    0x17 "HV_STATUS_INVALID_SAVE_RESTORE_STATE" "";
    0x18 "HV_STATUS_INVALID_SYNIC_STATE" "";
    0x19 "HV_STATUS_OBJECT_IN_USE" "";
    0x1a "HV_STATUS_INVALID_PROXIMITY_DOMAIN_INFO" "";
    0x1b "HV_STATUS_NO_DATA" "";
    0x1c "HV_STATUS_INACTIVE" "";
    0x1d "HV_STATUS_NO_RESOURCES" "";
    0x1e "HV_STATUS_FEATURE_UNAVAILABLE" "";
    0x1f "HV_STATUS_PARTIAL_PACKET" "";
    0x20 "HV_STATUS_PROCESSOR_FEATURE_NOT_SUPPORTED" "";
    0x30 "HV_STATUS_PROCESSOR_CACHE_LINE_FLUSH_SIZE_INCOMPATIBLE" "";
    0x33 "HV_STATUS_INSUFFICIENT_BUFFER" "";
    0x37 "HV_STATUS_INCOMPATIBLE_PROCESSOR" "";
    0x38 "HV_STATUS_INSUFFICIENT_DEVICE_DOMAINS" "";
    0x3c "HV_STATUS_CPUID_FEATURE_VALIDATION_ERROR" "";
    0x3d "HV_STATUS_CPUID_XSAVE_FEATURE_VALIDATION_ERROR" "";
    0x3e "HV_STATUS_PROCESSOR_STARTUP_TIMEOUT" "";
    0x3f "HV_STATUS_SMX_ENABLED" "";
    0x41 "HV_STATUS_INVALID_LP_INDEX" "";
    0x50 "HV_STATUS_INVALID_REGISTER_VALUE" "";
    0x51 "HV_STATUS_INVALID_VTL_STATE" "";
    0x55 "HV_STATUS_NX_NOT_DETECTED" "";
    0x57 "HV_STATUS_INVALID_DEVICE_ID" "";
    0x58 "HV_STATUS_INVALID_DEVICE_STATE" "";
    0x59 "HV_STATUS_PENDING_PAGE_REQUESTS" "";
    0x60 "HV_STATUS_PAGE_REQUEST_INVALID" "";
    0x6f "HV_STATUS_INVALID_CPU_GROUP_ID" "";
    0x70 "HV_STATUS_INVALID_CPU_GROUP_STATE" "";
    0x71 "HV_STATUS_OPERATION_FAILED" "";
    0x72 "HV_STATUS_NOT_ALLOWED_WITH_NESTED_VIRT_ACTIVE" "";
    0x73 "HV_STATUS_INSUFFICIENT_ROOT_MEMORY" "";
    0x75 "HV_STATUS_INSUFFICIENT_CONTIGUOUS_MEMORY" "";
    0x78 "HV_STATUS_TIME_OUT" "";
    0x79 "HV_STATUS_CALL_PENDING" "";
    0x83 "HV_STATUS_INSUFFICIENT_CONTIGUOUS_ROOT_MEMORY" "";
    0x86 "HV_STATUS_VTL_ALREADY_ENABLED" "";
};
