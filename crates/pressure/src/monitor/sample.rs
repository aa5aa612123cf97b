//! Reads the memory use and its limit.

use std::path::PathBuf;

use super::cgroup;
use super::machine::{self, MachineMemory};
use crate::Source;

/// One sample of the memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// The usage that is compared with the limit, in bytes.
    pub(crate) used: u64,
    /// In bytes. Never 0.
    pub(crate) limit: u64,
    pub(crate) source: Source,
    /// Resident memory of this process, in bytes, if known.
    pub(crate) resident: Option<u64>,
    /// Share of the last 10 s in which some task waited for memory (PSI `some avg10`), 0 to 1.
    pub(crate) stall_ratio: Option<f64>,
}

impl Sample {
    pub(crate) fn fraction(&self) -> f64 {
        fraction(self.used, self.limit)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn fraction(used: u64, limit: u64) -> f64 {
    used as f64 / limit as f64
}

/// The source of samples.
pub(crate) trait Sampler: Send {
    /// `None` if use or limit cannot be determined.
    fn sample(&mut self) -> Option<Sample>;

    /// Sets another [`memory_limit`](crate::PressureConfig::memory_limit), from the next sample on.
    fn set_memory_limit(&mut self, limit: Option<u64>);
}

/// Reads the control group, the process and the machine.
pub(crate) struct SystemSampler {
    /// `/`, except in tests.
    root: PathBuf,
    memory_limit: Option<u64>,
}

/// Use and limit in bytes, and their source.
type Candidate = (u64, u64, Source);

impl SystemSampler {
    /// Reads the files below `root`. `memory_limit` as in
    /// [`PressureConfig`](crate::PressureConfig::memory_limit).
    pub(crate) fn below(root: PathBuf, memory_limit: Option<u64>) -> Self {
        Self { root, memory_limit }
    }

    fn cgroup(&self, machine: Option<MachineMemory>) -> Option<Candidate> {
        let v2 = cgroup::v2(&self.root).map(|memory| (memory, Source::CgroupV2));
        let (memory, source) =
            v2.or_else(|| cgroup::v1(&self.root).map(|memory| (memory, Source::CgroupV1)))?;
        // A limit above the machine's memory limits nothing.
        let is_real = machine.is_none_or(|machine| memory.limit < machine.total);
        is_real.then_some((memory.working_set, memory.limit, source))
    }

    /// The stalls of the group, else those of the machine. If the group has a limit, the machine's
    /// stalls do not count: other programs may cause them, and freeing memory here would not help
    /// those.
    fn stall_ratio(&self, has_group_limit: bool) -> Option<f64> {
        let machine = || std::fs::read_to_string(self.root.join("proc/pressure/memory")).ok();
        cgroup::stall_ratio(&self.root)
            .or_else(|| if has_group_limit { None } else { cgroup::parse_stalls(&machine()?) })
    }
}

impl Sampler for SystemSampler {
    fn sample(&mut self) -> Option<Sample> {
        let machine = machine::memory(&self.root);
        let resident = machine::resident(&self.root);
        let group = self.cgroup(machine);
        let without_group = machine.filter(|_| group.is_none());
        let system = without_group.map(|MachineMemory { total, available }| {
            (total.saturating_sub(available), total, Source::System)
        });
        let process_limit = self.memory_limit.or(without_group.map(|machine| machine.total / 4 * 3));
        let process = resident.zip(process_limit).map(|(used, limit)| (used, limit, Source::Process));
        let candidates = [group, system, process].into_iter().flatten().filter(|(_, limit, _)| *limit > 0);
        let (used, limit, source) =
            candidates.max_by(|a, b| fraction(a.0, a.1).total_cmp(&fraction(b.0, b.1)))?;
        let stall_ratio = self.stall_ratio(group.is_some());
        Some(Sample { used, limit, source, resident, stall_ratio })
    }

    fn set_memory_limit(&mut self, limit: Option<u64>) {
        self.memory_limit = limit;
    }
}

#[cfg(test)]
mod tests;
