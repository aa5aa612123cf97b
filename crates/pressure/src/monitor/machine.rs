//! Memory of the machine and of this process, for use without a control group.

use std::fs;
use std::path::Path;

use sysinfo::{MemoryRefreshKind, System};

/// The machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MachineMemory {
    pub(super) total: u64,
    /// Memory that can be allocated without swapping.
    pub(super) available: u64,
}

/// The machine's memory. Below another root than `/`, from `proc/meminfo` there. `None` if unknown.
pub(super) fn memory(root: &Path) -> Option<MachineMemory> {
    if root == Path::new("/") {
        let mut system = System::new();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let memory = MachineMemory { total: system.total_memory(), available: system.available_memory() };
        return (memory.total > 0).then_some(memory);
    }
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    Some(MachineMemory { total: field(&text, "MemTotal:")?, available: field(&text, "MemAvailable:")? })
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
        let root = Path::new("/");
        let memory = memory(root).unwrap();
        assert!(memory.total > 1 << 20 && memory.available <= memory.total, "{memory:?}");
        assert!(resident(root).is_some_and(|resident| resident > 0));
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
