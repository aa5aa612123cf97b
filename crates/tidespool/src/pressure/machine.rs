//! Memory of the machine and of this process, for use without a control group.

use std::fs;
use std::path::{Path, PathBuf};

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// The machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MachineMemory {
    pub(super) total: u64,
    /// Memory that can be allocated without swapping.
    pub(super) available: u64,
}

/// Reads the memory of the machine and of this process.
pub(super) trait Machine: Send {
    /// The machine's memory. `None` if unknown.
    fn memory(&mut self) -> Option<MachineMemory>;
    /// Resident memory of this process in bytes, for systems without a file that has it.
    fn resident(&mut self) -> Option<u64>;
}

/// The real machine.
#[derive(Default)]
pub(super) struct ThisMachine {
    /// Created at the first sample: a disabled monitor never needs it. On a system that sysinfo
    /// does not support, all its values are zero.
    system: Option<System>,
    pid: Option<Pid>,
}

impl ThisMachine {
    fn system(&mut self) -> &mut System {
        self.system.get_or_insert_with(System::new)
    }
}

impl Machine for ThisMachine {
    fn memory(&mut self) -> Option<MachineMemory> {
        let system = self.system();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let memory = MachineMemory { total: system.total_memory(), available: system.available_memory() };
        (memory.total > 0).then_some(memory)
    }

    fn resident(&mut self) -> Option<u64> {
        let pid = match self.pid {
            Some(pid) => pid,
            None => *self.pid.insert(sysinfo::get_current_pid().ok()?),
        };
        let system = self.system();
        let memory = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
        Some(system.process(pid)?.memory())
    }
}

/// A machine whose `/proc` is below another directory.
pub(super) struct MachineBelow(pub(super) PathBuf);

impl Machine for MachineBelow {
    fn memory(&mut self) -> Option<MachineMemory> {
        let text = fs::read_to_string(self.0.join("proc/meminfo")).ok()?;
        Some(MachineMemory { total: field(&text, "MemTotal:")?, available: field(&text, "MemAvailable:")? })
    }

    fn resident(&mut self) -> Option<u64> {
        None
    }
}

/// Resident memory of this process in bytes, from `/proc/self/status` below `root`.
pub(super) fn resident(root: &Path) -> Option<u64> {
    field(&fs::read_to_string(root.join("proc/self/status")).ok()?, "VmRSS:")
}

/// The number of bytes in a line `name  number kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_reports_plausible_values() {
        let mut machine = ThisMachine::default();
        let memory = machine.memory().unwrap();
        assert!(memory.total > 1 << 20 && memory.available <= memory.total, "{memory:?}");
        assert!(machine.resident().is_some_and(|resident| resident > 0));
    }

    #[test]
    fn fields_are_read_in_kibibytes() {
        let text =
            "MemTotal:       24683520 kB\nMemAvailable:   12 kB\nHugePages_Total:       0\nOdd: many kB\n";
        assert_eq!(field(text, "MemTotal:"), Some(24_683_520 * 1_024));
        assert_eq!(field(text, "MemAvailable:"), Some(12_288));
        assert_eq!(field(text, "HugePages_Total:"), None, "not a size");
        assert_eq!(field(text, "Odd:"), None);
        assert_eq!(field(text, "Missing:"), None);
    }
}
