// SPDX-License-Identifier: MIT
//! VMs as users know them: a pid and a name.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

const UNKNOWN: &str = "?";

/// The names of VMs, each looked up once, so that a VM keeps its name when it is gone.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<u32, String>,
    /// The VMs are not this host's.
    elsewhere: bool,
}

impl Names {
    /// Names of VMs that ran some time or on another host.
    pub fn elsewhere(known: HashMap<u32, String>) -> Self {
        Self { known, elsewhere: true }
    }

    /// Gives a VM whose name is not known the name of its VMM's command.
    pub fn suggest(&mut self, pid: u32, command: &str) {
        if self.get(pid) == UNKNOWN && !command.is_empty() {
            self.known.insert(pid, printable(command));
        }
    }

    /// The name of the VM whose VMM has this pid: QEMU's `-name`, else the command's name, else `?`.
    pub fn get(&mut self, pid: u32) -> &str {
        let look_up = || if self.elsewhere { None } else { name(pid) };
        self.known.entry(pid).or_insert_with(|| look_up().unwrap_or_else(|| UNKNOWN.to_owned()))
    }
}

fn name(pid: u32) -> Option<String> {
    let process = Path::new("/proc").join(pid.to_string());
    let arguments = fs::read(process.join("cmdline")).ok()?;
    guest_name(&arguments).or_else(|| {
        let command = fs::read_to_string(process.join("comm")).ok()?;
        Some(printable(command.trim_end()))
    })
}

/// QEMU's `-name NAME`, `-name guest=NAME,…`, in a command line as /proc has it.
fn guest_name(arguments: &[u8]) -> Option<String> {
    let mut arguments = arguments.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == b"-name")?;
    let value = String::from_utf8_lossy(arguments.next()?).into_owned();
    let name = value
        .split(',')
        .find_map(|part| part.strip_prefix("guest="))
        .or_else(|| value.split(',').find(|part| !part.contains('=')))?;
    Some(printable(name))
}

/// Names come from other processes: nothing of them may move the terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The pids of the VMMs of running VMs, as far as this user may see them.
pub fn running() -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = processes
        .filter_map(|process| process.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| has_vm(*pid))
        .collect();
    pids.sort_unstable();
    pids
}

/// The threads of a process; none if it is gone.
pub fn threads(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

fn has_vm(pid: u32) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|to| to == Path::new("anon_inode:kvm-vm")))
}

/// The pids of the VMs that `wanted` means: a pid, or a name that at least one running VM has.
///
/// # Errors
/// No process has the pid, or no running VM the name; the names that there are.
pub fn resolve(wanted: &str) -> Result<Vec<u32>, String> {
    if let Ok(pid) = wanted.parse::<u32>() {
        return if Path::new("/proc").join(pid.to_string()).exists() {
            Ok(vec![pid])
        } else {
            Err(format!("there is no process {pid}"))
        };
    }
    let mut names = Names::default();
    let running = running();
    let found: Vec<u32> = running.iter().copied().filter(|pid| names.get(*pid) == wanted).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let known: Vec<_> = running.iter().map(|pid| format!("{} (pid {pid})", names.get(*pid))).collect();
    Err(if known.is_empty() {
        format!("no running VM is called `{wanted}`: no VM runs here that this user may see")
    } else {
        format!("no running VM is called `{wanted}`; there are {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::guest_name;

    #[test]
    fn qemu_names_are_found() {
        let name = |arguments: &[&str]| guest_name(arguments.join("\0").as_bytes());
        assert_eq!(name(&["qemu", "-name", "web,process=x"]), Some("web".to_owned()));
        assert_eq!(name(&["qemu", "-name", "guest=db,debug-threads=on"]), Some("db".to_owned()));
        assert_eq!(name(&["qemu", "-m", "1G"]), None);
        assert_eq!(name(&["qemu", "-name"]), None);
        assert_eq!(name(&["qemu", "-name", "a\x1b[2Jb"]), Some("a?[2Jb".to_owned()));
    }
}
