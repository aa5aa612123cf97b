//! How much memory is in use, and of how much.

use std::fs;
use std::path::{Path, PathBuf};

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::cgroup;

/// Where the use and the limit of a [`Sample`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A control group, version 2.
    CgroupV2,
    /// A control group, version 1.
    CgroupV1,
    /// The resident memory of this process, and the memory of the machine or the limit from the settings.
    Process,
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// What is compared with the limit, in bytes.
    pub(crate) used: u64,
    /// In bytes; never 0.
    pub(crate) limit: u64,
    pub(crate) source: Source,
    /// Resident memory of this process, in bytes, where it is known.
    pub(crate) resident: Option<u64>,
    /// Share of the last 10 s in which some task waited for memory (PSI `some avg10`), 0 to 1.
    pub(crate) stall_ratio: Option<f64>,
}

impl Sample {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn fraction(&self) -> f64 {
        self.used as f64 / self.limit as f64
    }
}

/// What the monitor reads from.
pub(crate) trait Sampler: Send {
    /// `None` where neither use nor limit can be found out.
    fn sample(&mut self) -> Option<Sample>;
}

/// What is asked of the machine where there are no files to read.
trait Machine: Send {
    /// Physical memory in bytes; 0 where it is not known.
    fn physical(&self) -> u64;
    /// Resident memory of this process in bytes.
    fn resident(&mut self) -> Option<u64>;
}

/// Reads the control group, the process and the machine.
pub(crate) struct SystemSampler {
    /// `/`, save in tests.
    root: PathBuf,
    memory_limit: Option<u64>,
    machine: Box<dyn Machine>,
}

impl SystemSampler {
    /// `memory_limit` as in [`PressureConfig`](crate::PressureConfig::memory_limit).
    pub(crate) fn new(memory_limit: Option<u64>) -> Self {
        Self { root: PathBuf::from("/"), memory_limit, machine: Box::new(ThisMachine::new()) }
    }

    fn cgroup(&self, physical: u64) -> Option<(u64, u64, Source)> {
        let v2 = cgroup::v2(&self.root).map(|memory| (memory, Source::CgroupV2));
        let (memory, source) =
            v2.or_else(|| cgroup::v1(&self.root).map(|memory| (memory, Source::CgroupV1)))?;
        // A limit that the machine cannot fill does not limit anything.
        (physical == 0 || memory.limit < physical).then_some((memory.working_set, memory.limit, source))
    }
}

impl Sampler for SystemSampler {
    fn sample(&mut self) -> Option<Sample> {
        let physical = self.machine.physical();
        let resident = resident(&self.root).or_else(|| self.machine.resident());
        let (used, limit, source) = match self.cgroup(physical) {
            Some((used, limit, source)) => {
                (used, self.memory_limit.map_or(limit, |own| own.min(limit)), source)
            }
            None => (resident?, self.memory_limit.unwrap_or(physical / 4 * 3), Source::Process),
        };
        let stall_ratio = stall_ratio(&self.root);
        (limit > 0).then_some(Sample { used, limit, source, resident, stall_ratio })
    }
}

fn resident(root: &Path) -> Option<u64> {
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

fn stall_ratio(root: &Path) -> Option<f64> {
    let pressure = fs::read_to_string(root.join("proc/pressure/memory")).ok()?;
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent: f64 = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

struct ThisMachine {
    /// `None` on a system that sysinfo does not know.
    system: Option<System>,
    pid: Option<Pid>,
}

impl ThisMachine {
    fn new() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        }
        Self { system, pid: sysinfo::get_current_pid().ok() }
    }
}

impl Machine for ThisMachine {
    fn physical(&self) -> u64 {
        self.system.as_ref().map_or(0, System::total_memory)
    }

    fn resident(&mut self) -> Option<u64> {
        let (system, pid) = (self.system.as_mut()?, self.pid?);
        let memory = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
        Some(system.process(pid)?.memory())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    struct FakeMachine;

    impl Machine for FakeMachine {
        fn physical(&self) -> u64 {
            16 * GIB
        }

        fn resident(&mut self) -> Option<u64> {
            Some(7 * MIB)
        }
    }

    /// A directory that stands for `/`.
    struct Root(TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(self, file: &str, text: &str) -> Self {
            self.rewrite(file, text);
            self
        }

        fn rewrite(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn v2_group(self, group: &str, current: u64, max: &str, stat: &str) -> Self {
            let dir = format!("sys/fs/cgroup{group}");
            self.write(&format!("{dir}/memory.current"), &format!("{current}\n"))
                .write(&format!("{dir}/memory.max"), &format!("{max}\n"))
                .write(&format!("{dir}/memory.stat"), stat)
        }

        fn v1_group(self, group: &str, usage: u64, limit: &str, stat: &str) -> Self {
            let dir = format!("sys/fs/cgroup/memory{group}");
            self.write(&format!("{dir}/memory.usage_in_bytes"), &format!("{usage}\n"))
                .write(&format!("{dir}/memory.limit_in_bytes"), &format!("{limit}\n"))
                .write(&format!("{dir}/memory.stat"), stat)
        }

        fn sampler(&self, memory_limit: Option<u64>) -> SystemSampler {
            SystemSampler { root: self.0.path().to_owned(), memory_limit, machine: Box::new(FakeMachine) }
        }

        fn sample(&self) -> Sample {
            self.sampler(None).sample().unwrap()
        }

        #[track_caller]
        fn gives(&self, source: Source, used: u64, limit: u64) {
            let sample = self.sample();
            assert_eq!((sample.source, sample.used, sample.limit), (source, used, limit));
        }
    }

    fn v2_root() -> Root {
        Root::new().write("proc/self/cgroup", "0::/mail/spool.service\n")
    }

    fn v1_root() -> Root {
        let groups = "12:pids:/mail\n4:cpuset,memory:/mail\n1:name=systemd:/elsewhere\n0::/\n";
        Root::new().write("proc/self/cgroup", groups)
    }

    const V2_STAT: &str =
        "anon 1000\nfile 700\nkernel 9\ninactive_anon 1\ninactive_file 600\nactive_file 100\n";
    const V1_STAT: &str =
        "cache 7\nrss 3\ninactive_file 5\ntotal_cache 700\ntotal_rss 1000\ntotal_inactive_file 600\n";

    #[test]
    fn version_2_gives_usage_less_inactive_file() {
        v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT).gives(
            Source::CgroupV2,
            2_400,
            8_000,
        );
    }

    #[test]
    fn version_1_gives_usage_less_inactive_file_of_the_whole_group() {
        v1_root().v1_group("/mail", 3_000, "8000", V1_STAT).gives(Source::CgroupV1, 2_400, 8_000);
    }

    #[test]
    fn the_working_set_is_never_less_than_the_anonymous_memory() {
        v2_root().v2_group("/mail/spool.service", 1_100, "8000", V2_STAT).gives(
            Source::CgroupV2,
            1_000,
            8_000,
        );
        v1_root().v1_group("/mail", 500, "8000", V1_STAT).gives(Source::CgroupV1, 1_000, 8_000);
    }

    #[test]
    fn the_limit_of_an_ancestor_counts_where_it_is_nearer() {
        let root = v2_root()
            .v2_group("/mail/spool.service", 3_000, "8000", V2_STAT)
            .v2_group("/mail", 9_600, "10000", V2_STAT)
            .v2_group("", 100_000, "max", V2_STAT);
        root.gives(Source::CgroupV2, 9_000, 10_000);
        let root = v2_root().v2_group("/mail/spool.service", 3_000, "max", V2_STAT);
        root.v2_group("/mail", 9_600, "10000", V2_STAT).gives(Source::CgroupV2, 9_000, 10_000);
    }

    #[test]
    fn in_a_container_the_mount_is_the_group() {
        v2_root().v2_group("", 3_000, "8000", V2_STAT).gives(Source::CgroupV2, 2_400, 8_000);
        v1_root().v1_group("", 3_000, "8000", V1_STAT).gives(Source::CgroupV1, 2_400, 8_000);
        let outside = Root::new().write("proc/self/cgroup", "0::/../../other\n");
        outside.v2_group("", 3_000, "8000", V2_STAT).gives(Source::CgroupV2, 2_400, 8_000);
    }

    #[test]
    fn the_throttling_limit_counts_as_a_limit() {
        let root = v2_root().v2_group("/mail/spool.service", 3_000, "max", V2_STAT);
        let root = root.write("sys/fs/cgroup/mail/spool.service/memory.high", "5000\n");
        root.gives(Source::CgroupV2, 2_400, 5_000);
    }

    #[test]
    fn no_limit_means_the_process_and_the_machine() {
        let (used, limit) = (7 * MIB, 12 * GIB);
        Root::new().gives(Source::Process, used, limit);
        v2_root().v2_group("/mail/spool.service", 3_000, "max", V2_STAT).gives(Source::Process, used, limit);
        v1_root().v1_group("/mail", 3_000, "9223372036854771712", V1_STAT).gives(
            Source::Process,
            used,
            limit,
        );
        let more_than_there_is = (17 * GIB).to_string();
        v1_root().v1_group("/mail", 3_000, &more_than_there_is, V1_STAT).gives(Source::Process, used, limit);
    }

    #[test]
    fn malformed_files_fall_through_to_the_next_source() {
        let whole = || v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
        let dir = "sys/fs/cgroup/mail/spool.service";
        for (file, text) in [
            ("memory.max", "many\n"),
            ("memory.max", ""),
            ("memory.max", "0\n"),
            ("memory.current", "-5\n"),
            ("memory.current", "99999999999999999999999\n"),
            ("memory.stat", "anon\ninactive_file x\n"),
            ("memory.stat", ""),
        ] {
            let root = whole();
            root.rewrite(&format!("{dir}/{file}"), text);
            root.gives(Source::Process, 7 * MIB, 12 * GIB);
        }
        Root::new().write("proc/self/cgroup", "nonsense\n::\n").gives(Source::Process, 7 * MIB, 12 * GIB);
        // Version 2 broken, version 1 whole, as on a machine with both.
        let both = Root::new().write("proc/self/cgroup", "4:memory:/mail\n0::/\n");
        let both = both.v1_group("/mail", 3_000, "8000", V1_STAT);
        both.write("sys/fs/cgroup/memory.max", "?").gives(Source::CgroupV1, 2_400, 8_000);
    }

    #[test]
    fn unreadable_files_fall_through_to_the_next_source() {
        let root = v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
        // A directory in the place of the file cannot be read, whoever runs the test.
        let file = root.0.path().join("sys/fs/cgroup/mail/spool.service/memory.current");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        root.gives(Source::Process, 7 * MIB, 12 * GIB);
    }

    #[test]
    fn a_limit_that_changes_is_seen_at_the_next_sample() {
        let root = v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
        let mut sampler = root.sampler(None);
        assert_eq!(sampler.sample().unwrap().limit, 8_000);
        root.rewrite("sys/fs/cgroup/mail/spool.service/memory.max", "4000\n");
        let sample = sampler.sample().unwrap();
        assert_eq!(sample.limit, 4_000);
        assert!((sample.fraction() - 0.6).abs() < 1e-9);
        root.rewrite("sys/fs/cgroup/mail/spool.service/memory.max", "max\n");
        assert_eq!(sampler.sample().unwrap().source, Source::Process);
    }

    #[test]
    fn a_limit_from_the_settings_counts_unless_the_groups_is_lower() {
        let root = v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
        assert_eq!(root.sampler(Some(5_000)).sample().unwrap().limit, 5_000);
        assert_eq!(root.sampler(Some(9_000)).sample().unwrap().limit, 8_000);
        let sample = Root::new().sampler(Some(GIB)).sample().unwrap();
        assert_eq!((sample.used, sample.limit), (7 * MIB, GIB));
    }

    #[test]
    fn resident_memory_and_stalls_are_read_where_they_are_told() {
        let root = Root::new();
        let sample = root.sample();
        assert_eq!((sample.resident, sample.stall_ratio), (Some(7 * MIB), None));
        let root =
            root.write("proc/self/status", "Name:\tspool\nVmHWM:\t  999 kB\nVmRSS:\t   2048 kB\n").write(
                "proc/pressure/memory",
                "some avg10=12.50 avg60=1.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0 avg300=0 total=0\n",
            );
        let sample = root.sample();
        assert_eq!((sample.resident, sample.used, sample.stall_ratio), (Some(2 * MIB), 2 * MIB, Some(0.125)));
        root.rewrite("proc/pressure/memory", "some avg10=NaN avg60=1.00\n");
        root.rewrite("proc/self/status", "VmRSS:\t lots kB\n");
        let sample = root.sample();
        assert_eq!((sample.resident, sample.stall_ratio), (Some(7 * MIB), None));
    }

    #[test]
    fn this_machine_tells_something_plausible() {
        let sample = SystemSampler::new(None).sample().unwrap();
        assert!(sample.used > 0 && sample.limit > MIB, "{sample:?}");
        assert!(sample.resident.is_some_and(|resident| resident > 0), "{sample:?}");
        let mut machine = ThisMachine::new();
        assert!(machine.physical() > MIB && machine.resident().is_some_and(|resident| resident > 0));
    }
}
