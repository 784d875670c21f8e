// SPDX-License-Identifier: GPL-2.0-only
//! Trace events, defined in Rust.
//!
//! C headers: [`include/linux/trace_events.h`](srctree/include/linux/trace_events.h),
//! [`include/trace/trace_custom_events.h`](srctree/include/trace/trace_custom_events.h).
//!
//! [`trace_event!`] does for an event of `common/` what `TRACE_CUSTOM_EVENT()` does for its arguments, and
//! `DEFINE_EVENT()` for perf: it attaches an event with fields of its own to a tracepoint that somebody else defined. The
//! core registers what it finds in the section `_ftrace_events` while it loads the module, and removes it on unloading.

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_void};
use core::mem::{MaybeUninit, size_of};
use core::ptr;

use crate::bindings;
use crate::common::event::{Event, Field, GROUP, HEADER_SIZE};
use crate::version::PreemptionGuard;

/// A record as it lies in a trace buffer: what every event has, then the event's own.
#[repr(C)]
struct Entry<E> {
    header: bindings::trace_entry,
    record: E,
}

/// What the core takes by pointer, and may write to.
#[repr(transparent)]
pub(crate) struct Shared<T>(UnsafeCell<T>);

// SAFETY: The module never accesses the content of a `Shared` static: only the core does, under `event_mutex` and its
// other locks.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// A value for the core.
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where the value lies.
    pub(crate) const fn get(&'static self) -> *mut T {
        self.0.get()
    }
}

/// The section `_ftrace_events` is an array of these.
#[repr(transparent)]
pub(crate) struct CallPointer(pub(crate) *mut bindings::trace_event_call);

// SAFETY: It is only a place for an address, which nobody changes.
unsafe impl Sync for CallPointer {}

/// As C has them: `u8` strings with an end, in arrays that are long enough for any.
const NAME_SIZE: usize = 32;

/// A field's type and name.
#[derive(Clone, Copy)]
pub(crate) struct FieldStrings {
    c_type: [u8; NAME_SIZE],
    name: [u8; NAME_SIZE],
}

const fn terminated(text: &str) -> [u8; NAME_SIZE] {
    let mut bytes = [0; NAME_SIZE];
    let mut index = 0;
    // Evaluated by the compiler, which refuses a text that is too long.
    assert!(text.len() < NAME_SIZE);
    while index < text.len() {
        bytes[index] = text.as_bytes()[index];
        index += 1;
    }
    bytes
}

/// The group that tracefs has the events in.
pub(crate) static SYSTEM: [u8; NAME_SIZE] = terminated(GROUP);

/// The types and names of an event's fields.
pub(crate) const fn field_strings<const N: usize>(fields: &[Field]) -> [FieldStrings; N] {
    let mut strings = [FieldStrings { c_type: [0; NAME_SIZE], name: [0; NAME_SIZE] }; N];
    let mut index = 0;
    while index < N {
        strings[index] =
            FieldStrings { c_type: terminated(fields[index].c_type), name: terminated(fields[index].name) };
        index += 1;
    }
    strings
}

/// The array that the core makes an event's fields from; it ends, as in C, with an empty one. `M` is `N + 1`.
pub(crate) const fn fields_array<const N: usize, const M: usize>(
    fields: &[Field],
    strings: &'static [FieldStrings; N],
) -> [bindings::trace_event_fields; M] {
    assert!(fields.len() == N && M == N + 1);
    // SAFETY: All zero is a valid value of this type: it is plain C data, pointers included.
    let mut array: [bindings::trace_event_fields; M] = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut index = 0;
    while index < N {
        array[index].type_ = strings[index].c_type.as_ptr().cast();
        // SAFETY: Both members of the union are plain data.
        let field = unsafe { &mut array[index].__bindgen_anon_1.__bindgen_anon_1 };
        field.name = strings[index].name.as_ptr().cast();
        // Sizes are a few bytes; that alignments equal them is checked by `layout_matches`.
        field.size = fields[index].size as c_int;
        field.align = fields[index].size as c_int;
        index += 1;
    }
    array
}

/// Whether the core, which puts each field at the next multiple of its size, gets to the offsets that the record has.
pub(crate) const fn layout_matches(fields: &[Field]) -> bool {
    let mut offset = HEADER_SIZE;
    let mut index = 0;
    while index < fields.len() {
        offset = offset.next_multiple_of(fields[index].size);
        if offset != fields[index].offset + HEADER_SIZE {
            return false;
        }
        offset += fields[index].size;
        index += 1;
    }
    size_of::<bindings::trace_entry>() == HEADER_SIZE
}

/// Text that grows while the compiler evaluates it; with `N` 0 it only counts.
struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    const fn push(mut self, text: &str) -> Self {
        let mut index = 0;
        while index < text.len() {
            if N != 0 {
                self.bytes[self.length] = text.as_bytes()[index];
            }
            self.length += 1;
            index += 1;
        }
        self
    }

    /// `name conversion name conversion …`, as [`crate::common::event::PrintFormat`] displays it.
    const fn push_format(mut self, fields: &[Field]) -> Self {
        let mut index = 0;
        while index < fields.len() {
            self = self.push(if index == 0 { "" } else { " " });
            self = self.push(fields[index].name).push(" ").push(fields[index].conversion);
            index += 1;
        }
        self
    }

    const fn print_format(fields: &[Field]) -> Self {
        let mut text = Self { bytes: [0; N], length: 0 }.push("\"").push_format(fields).push("\"");
        let mut index = 0;
        while index < fields.len() {
            text = text.push(", REC->").push(fields[index].name);
            index += 1;
        }
        text.push("\0")
    }

    const fn line_format(fields: &[Field]) -> Self {
        Self { bytes: [0; N], length: 0 }.push_format(fields).push("\n\0")
    }
}

/// The length of [`print_format`].
pub(crate) const fn print_format_length(fields: &[Field]) -> usize {
    Text::<0>::print_format(fields).length
}

/// What the `format` file shows as `print fmt`, for those who print records themselves.
pub(crate) const fn print_format<const N: usize>(fields: &[Field]) -> [u8; N] {
    Text::<N>::print_format(fields).bytes
}

/// The length of [`line_format`].
pub(crate) const fn line_format_length(fields: &[Field]) -> usize {
    Text::<0>::line_format(fields).length
}

/// The format by which the kernel prints a record.
pub(crate) const fn line_format<const N: usize>(fields: &[Field]) -> [u8; N] {
    Text::<N>::line_format(fields).bytes
}

/// `trace_trigger_soft_disabled()`, which is inline: runs triggers that need no fields, and tells whether that is all.
///
/// # Safety
/// `file` must be what the core gave a probe.
unsafe fn is_soft_disabled(file: *mut bindings::trace_event_file) -> bool {
    const EXCEPTIONAL: u32 = bindings::EVENT_FILE_FL_TRIGGER_MODE
        | bindings::EVENT_FILE_FL_SOFT_DISABLED
        | bindings::EVENT_FILE_FL_PID_FILTER;

    // SAFETY: By the requirement, the file is there; the core changes its flags meanwhile, as C's READ_ONCE() expects.
    let flags = unsafe { (&raw const (*file).flags).read_volatile() };
    if flags & u64::from(EXCEPTIONAL) == 0 || flags & u64::from(bindings::EVENT_FILE_FL_TRIGGER_COND) != 0 {
        return false;
    }
    // SAFETY: By the requirement.
    unsafe { bindings::__trace_trigger_soft_disabled(file) }
}

/// What a probe of tracefs does: writes a record into the buffer of the instance that `file` belongs to.
///
/// # Safety
/// Only for probes, with the `data` they got from the core.
pub(crate) unsafe fn log<E: Event>(data: *mut c_void, record: impl FnOnce() -> Option<E>) {
    let _guard = PreemptionGuard::new();
    let file: *mut bindings::trace_event_file = data.cast();
    // SAFETY: By the requirement.
    if unsafe { is_soft_disabled(file) } {
        return;
    }
    let Some(record) = record() else { return };
    let mut buffer = MaybeUninit::uninit();
    // SAFETY: The file is there, by the requirement; `buffer` is memory that the function initializes. Preemption is
    // disabled once, as the function expects.
    let entry = unsafe {
        bindings::trace_event_buffer_reserve(buffer.as_mut_ptr(), file, size_of::<Entry<E>>() as _)
    };
    if entry.is_null() {
        return;
    }
    let entry: *mut Entry<E> = entry.cast();
    // SAFETY: What was reserved is as large as an entry, and nobody else writes to it until it is committed. A ring
    // buffer aligns its records to 4 bytes only.
    unsafe { (&raw mut (*entry).record).write_unaligned(record) };
    // SAFETY: The reservation was successful, so `buffer` is initialized.
    unsafe { bindings::trace_event_buffer_commit(buffer.as_mut_ptr()) };
}

/// What a probe of perf does: gives a record to the BPF programs on the event and to the perf events of this CPU.
///
/// # Safety
/// Only for probes, with the `data` they got from the core.
pub(crate) unsafe fn submit<E: Event>(data: *mut c_void, record: impl FnOnce() -> Option<E>) {
    let _guard = PreemptionGuard::new();
    let call: *mut bindings::trace_event_call = data.cast();
    // SAFETY: The core gives perf probes the call, which is a static of this module; it allocated the per-CPU list before it
    // registered the probe. Lists and program arrays are changed by single stores.
    let (head, is_idle) = unsafe {
        let head = bindings::exitregs_perf_events((*call).perf_events);
        let has_programs = !(&raw const (*call).prog_array).read_volatile().is_null();
        (head, !has_programs && (&raw const (*head).first).read_volatile().is_null())
    };
    if is_idle {
        return;
    }
    let Some(record) = record() else { return };
    // As in C: with the size that perf writes before it, the entry is a multiple of 8 bytes long.
    let size = const { (size_of::<Entry<E>>() + size_of::<u32>()).next_multiple_of(8) - size_of::<u32>() };
    let (mut registers, mut context) = (ptr::null_mut(), 0);
    // SAFETY: Both pointers are to locals. Preemption is disabled.
    let entry =
        unsafe { bindings::perf_trace_buf_alloc(size as c_int, &raw mut registers, &raw mut context) };
    if entry.is_null() {
        return;
    }
    let record_at = entry.cast::<Entry<E>>();
    // SAFETY: The buffer has `size` bytes, and is this context's until it is submitted; `registers` is that context's.
    unsafe {
        (&raw mut (*record_at).record).write_unaligned(record);
        bindings::exitregs_perf_caller_regs(registers);
        bindings::perf_trace_run_bpf_submit(
            entry,
            size as c_int,
            context,
            call,
            1,
            registers,
            head,
            ptr::null_mut(),
        );
    }
}

/// `trace_event_reg()`, after which no probe is running that was taken off: it may be the module's end.
///
/// # Safety
/// Only for `trace_event_class.reg`.
pub(crate) unsafe extern "C" fn register(
    call: *mut bindings::trace_event_call,
    what: bindings::trace_reg,
    data: *mut c_void,
) -> c_int {
    // SAFETY: By the requirement.
    let result = unsafe { bindings::trace_event_reg(call, what, data) };
    if what == bindings::trace_reg_TRACE_REG_UNREGISTER {
        // SAFETY: The core calls this where it may sleep. After perf's it does this itself.
        unsafe { bindings::exitregs_synchronize_tracepoints() };
    }
    result
}

/// The most fields that an event may have: as many values are passed to the kernel's `printf`.
const FIELDS_LIMIT: usize = 16;

/// Prints a record as a line of the file `trace`.
///
/// # Safety
/// Only for `trace_event_functions.trace`. `format` must be [`line_format`] of this event.
pub(crate) unsafe extern "C" fn print<E: Event + Copy>(
    iter: *mut bindings::trace_iterator,
    event: *mut bindings::trace_event,
    format: *const c_char,
) -> bindings::print_line_t {
    const { assert!(E::FIELDS.len() <= FIELDS_LIMIT) };
    // SAFETY: The core calls this with an iterator that is at a record of this event.
    let result = unsafe { bindings::trace_raw_output_prep(iter, event) } as bindings::print_line_t;
    if result != bindings::print_line_t_TRACE_TYPE_HANDLED {
        return result;
    }
    // SAFETY: As above; the record may not be aligned.
    let record = unsafe { (&raw const (*(*iter).ent.cast::<Entry<E>>()).record).read_unaligned() };
    let value = |index| record.value(index).unwrap_or(0);
    // SAFETY: Each conversion of the format takes one of the values; those that no field has are ignored. An argument
    // narrower than a register lies in the low bits of one, in the psABI, whatever its type.
    unsafe {
        bindings::trace_event_printf(
            iter,
            format,
            value(0),
            value(1),
            value(2),
            value(3),
            value(4),
            value(5),
            value(6),
            value(7),
            value(8),
            value(9),
            value(10),
            value(11),
            value(12),
            value(13),
            value(14),
            value(15),
        );
        bindings::trace_handle_return(&raw mut (*iter).seq)
    }
}

/// Defines the trace event of an [`Event`] and attaches it to a tracepoint.
///
/// ```ignore
/// trace_event! {
///     /// The vCPU left the guest.
///     mod exit: KvmExit on __tracepoint_kvm_exit(vcpu: *mut bindings::kvm_vcpu, isa: u32) {
///         // an Option<KvmExit>; None if nothing can be said
///     }
/// }
/// ```
///
/// The parameters must be those of the tracepoint (`TP_PROTO`), whose name is the event's. An event with another name than the
/// tracepoint that it is attached to is `named by` one of the module's own, and `attached by` a function like [`register`].
macro_rules! trace_event {
    (
        $(#[$doc:meta])*
        mod $module:ident: $Event:ident on $tracepoint:ident $arguments:tt $record:block
    ) => {
        trace_event! {
            @define $(#[$doc])* $module $Event (&raw mut bindings::$tracepoint) ($crate::trace_event::register)
            $arguments $record
        }
    };
    (
        $(#[$doc:meta])*
        mod $module:ident: $Event:ident named by $tracepoint:ident attached by $register:ident $arguments:tt $record:block
    ) => {
        trace_event! {
            @define $(#[$doc])* $module $Event ($tracepoint.get()) ($register) $arguments $record
        }
    };
    (
        @define $(#[$doc:meta])* $module:ident $Event:ident ($tracepoint:expr) ($register:path)
        ($($argument:ident: $type:ty),* $(,)?) $record:block
    ) => {
        $(#[$doc])*
        mod $module {
            use super::*;
            use $crate::trace_event::{self as te, CallPointer, Shared};

            const FIELDS: &[Field] = $Event::FIELDS;
            const COUNT: usize = FIELDS.len();
            const _: () = assert!(te::layout_matches(FIELDS));

            static STRINGS: [te::FieldStrings; COUNT] = te::field_strings(FIELDS);
            static FIELDS_ARRAY: Shared<[bindings::trace_event_fields; COUNT + 1]> =
                Shared::new(te::fields_array(FIELDS, &STRINGS));
            static PRINT_FORMAT: Shared<[u8; te::print_format_length(FIELDS)]> =
                Shared::new(te::print_format(FIELDS));
            static LINE_FORMAT: [u8; te::line_format_length(FIELDS)] = te::line_format(FIELDS);

            /// What the event says of this moment.
            #[inline(always)]
            fn record($($argument: $type),*) -> Option<$Event> $record

            unsafe extern "C" fn probe(data: *mut c_void $(, $argument: $type)*) {
                // SAFETY: This is a probe.
                unsafe { te::log(data, || record($($argument),*)) }
            }

            unsafe extern "C" fn perf_probe(data: *mut c_void $(, $argument: $type)*) {
                // SAFETY: This is a probe.
                unsafe { te::submit(data, || record($($argument),*)) }
            }

            unsafe extern "C" fn print(
                iter: *mut bindings::trace_iterator,
                _flags: c_int,
                event: *mut bindings::trace_event,
            ) -> bindings::print_line_t {
                // SAFETY: This is `trace_event_functions.trace`, and the format is the event's.
                unsafe { te::print::<$Event>(iter, event, LINE_FORMAT.as_ptr().cast()) }
            }

            static FUNCTIONS: Shared<bindings::trace_event_functions> = Shared::new({
                // SAFETY: All zero is a valid value: no functions.
                let mut functions: bindings::trace_event_functions =
                    unsafe { MaybeUninit::zeroed().assume_init() };
                functions.trace = Some(print);
                functions
            });

            static CLASS: Shared<bindings::trace_event_class> = Shared::new({
                // SAFETY: All zero is a valid value: plain data and no functions.
                let mut class: bindings::trace_event_class =
                    unsafe { MaybeUninit::zeroed().assume_init() };
                // SAFETY: Only an address is computed.
                let list = unsafe { &raw mut (*CLASS.get()).fields };
                class.system = te::SYSTEM.as_ptr().cast();
                class.probe = probe as *mut c_void;
                class.perf_probe = perf_probe as *mut c_void;
                class.reg = Some($register);
                class.fields_array = FIELDS_ARRAY.get().cast();
                class.fields.next = list;
                class.fields.prev = list;
                class.raw_init = Some(bindings::trace_event_raw_init);
                class
            });

            static CALL: Shared<bindings::trace_event_call> = Shared::new({
                // SAFETY: All zero is a valid value: plain data and no functions.
                let mut call: bindings::trace_event_call =
                    unsafe { MaybeUninit::zeroed().assume_init() };
                call.class = CLASS.get();
                call.__bindgen_anon_1.tp = $tracepoint;
                call.event.funcs = FUNCTIONS.get();
                call.print_fmt = PRINT_FORMAT.get().cast();
                call.flags = bindings::TRACE_EVENT_FL_TRACEPOINT as c_int;
                call
            });

            #[used(compiler)]
            #[link_section = "_ftrace_events"]
            static POINTER: CallPointer = CallPointer(CALL.get());
        }
    };
}
pub(crate) use trace_event;
