// SPDX-License-Identifier: MIT
//! The scripted guest: a small VM whose L1 is a tiny hypervisor and whose L1 and L2s execute a
//! [script](crate::script), and that knows [what it did](crate::truth).
//!
//! A script becomes straight-line machine code ([`assemble`]), so that each of its instructions has an address of its
//! own. Before and after each, the code stores RAX, RBX, RCX and RDX in a log in guest memory ([`log`]), from which the
//! ground truth is made. General-purpose registers are not switched between L1 and L2 by a VM entry, so both append to one
//! log, in the order of execution.
//!
//! | module | |
//! |---|---|
//! | [`layout`] | which guest-physical addresses are used for what |
//! | [`site`] | an instruction's place in the code, and what it is expected to cause |
//! | [`assemble`] | from a script to machine code |
//! | [`signal`] | what the guest tells the VMM |
//! | [`svm`] | what is AMD's: the VMCB, its permission maps, what exits and why |
//! | [`vmx`] | what is Intel's: the fields of the VMCS, its bitmaps, what exits and why |
//! | [`vendor`] | either of them |
//! | [`image`] | the memory's contents before the start |
//! | [`log`] | from the guest's log to lines of truth |
//! | [`vmm`] | KVM: the VM, its vCPU threads, their exits to user space |

pub mod assemble;
pub mod image;
pub mod layout;
pub mod log;
pub mod signal;
pub mod site;
pub mod svm;
pub mod vendor;
pub mod vmm;
pub mod vmx;
