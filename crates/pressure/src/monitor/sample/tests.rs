use tempfile::TempDir;

use super::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A directory that stands for `/`.
struct Root(TempDir);

impl Root {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A machine with 16 GiB, half of it available. The process uses 7 MiB.
    fn new() -> Self {
        Self::empty()
            .write("proc/meminfo", "MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:  8388608 kB\n")
            .write("proc/self/status", "VmRSS:  7168 kB\n")
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
        SystemSampler::below(self.0.path().to_owned(), memory_limit)
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

const V2_STAT: &str = "anon 1000\nfile 700\nkernel 9\ninactive_anon 1\ninactive_file 600\nactive_file 100\n";
const V1_STAT: &str =
    "cache 7\nrss 3\ninactive_file 5\ntotal_cache 700\ntotal_rss 1000\ntotal_inactive_file 600\n";

#[test]
fn version_2_reports_usage_minus_inactive_file() {
    v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT).gives(Source::CgroupV2, 2_400, 8_000);
}

#[test]
fn version_1_reports_usage_minus_inactive_file_of_the_whole_group() {
    v1_root().v1_group("/mail", 3_000, "8000", V1_STAT).gives(Source::CgroupV1, 2_400, 8_000);
}

#[test]
fn the_working_set_is_never_less_than_the_anonymous_memory() {
    v2_root().v2_group("/mail/spool.service", 1_100, "8000", V2_STAT).gives(Source::CgroupV2, 1_000, 8_000);
    v1_root().v1_group("/mail", 500, "8000", V1_STAT).gives(Source::CgroupV1, 1_000, 8_000);
}

#[test]
fn a_nearer_limit_of_an_ancestor_counts() {
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
fn memory_high_counts_as_a_limit() {
    let root = v2_root().v2_group("/mail/spool.service", 3_000, "max", V2_STAT);
    let root = root.write("sys/fs/cgroup/mail/spool.service/memory.high", "5000\n");
    root.gives(Source::CgroupV2, 2_400, 5_000);
}

#[test]
fn without_a_group_limit_the_machine_or_the_process_counts() {
    let (used, limit) = (8 * GIB, 16 * GIB);
    Root::new().gives(Source::System, used, limit);
    v2_root().v2_group("/mail/spool.service", 3_000, "max", V2_STAT).gives(Source::System, used, limit);
    v1_root().v1_group("/mail", 3_000, "9223372036854771712", V1_STAT).gives(Source::System, used, limit);
    let more_than_there_is = (17 * GIB).to_string();
    v1_root().v1_group("/mail", 3_000, &more_than_there_is, V1_STAT).gives(Source::System, used, limit);
    // More than half of the 12 GiB that a process may use.
    let root = Root::new().write("proc/self/status", "VmRSS:\t 9437184 kB\n");
    root.gives(Source::Process, 9 * GIB, 12 * GIB);
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
        root.gives(Source::System, 8 * GIB, 16 * GIB);
    }
    Root::new().write("proc/self/cgroup", "nonsense\n::\n").gives(Source::System, 8 * GIB, 16 * GIB);
    // Version 2 is broken and version 1 is valid, as on a machine with both.
    let both = Root::new().write("proc/self/cgroup", "4:memory:/mail\n0::/\n");
    let both = both.v1_group("/mail", 3_000, "8000", V1_STAT);
    both.write("sys/fs/cgroup/memory.max", "?").gives(Source::CgroupV1, 2_400, 8_000);
}

#[test]
fn unreadable_files_fall_through_to_the_next_source() {
    let root = v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
    // A directory in place of the file cannot be read, even by root.
    let file = root.0.path().join("sys/fs/cgroup/mail/spool.service/memory.current");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    root.gives(Source::System, 8 * GIB, 16 * GIB);
}

#[test]
fn a_changed_limit_is_used_by_the_next_sample() {
    let root = v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
    let mut sampler = root.sampler(None);
    assert_eq!(sampler.sample().unwrap().limit, 8_000);
    root.rewrite("sys/fs/cgroup/mail/spool.service/memory.max", "4000\n");
    let sample = sampler.sample().unwrap();
    assert_eq!(sample.limit, 4_000);
    assert!((sample.fraction() - 0.6).abs() < 1e-9);
    root.rewrite("sys/fs/cgroup/mail/spool.service/memory.max", "max\n");
    assert_eq!(sampler.sample().unwrap().source, Source::System);
}

#[test]
fn the_nearest_limit_counts() {
    let root = v2_root().v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
    let own = |limit: u64| {
        let sample = root.sampler(Some(limit)).sample().unwrap();
        (sample.source, sample.used, sample.limit)
    };
    // The group uses 0.3 of its limit. The process uses 7 MiB.
    assert_eq!(own(24 * MIB), (Source::CgroupV2, 2_400, 8_000));
    assert_eq!(own(20 * MIB), (Source::Process, 7 * MIB, 20 * MIB));
    // Without a group: half of the machine against the process.
    assert_eq!(Root::new().sampler(Some(GIB)).sample().unwrap().source, Source::System);
    let sample = Root::new().sampler(Some(8 * MIB)).sample().unwrap();
    assert_eq!((sample.source, sample.used, sample.limit), (Source::Process, 7 * MIB, 8 * MIB));
}

#[test]
fn resident_memory_is_read_from_the_file() {
    assert_eq!(Root::new().sample().resident, Some(7 * MIB));
    let root = Root::new().write("proc/self/status", "Name:\tspool\nVmHWM:\t  999 kB\nVmRSS:\t   2048 kB\n");
    assert_eq!(root.sample().resident, Some(2 * MIB));
    root.rewrite("proc/self/status", "VmRSS:\t lots kB\n");
    assert_eq!(root.sample().resident, None);
}

fn stalls(percent: &str) -> String {
    format!("some avg10={percent} avg60=1.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0 avg300=0 total=0\n")
}

#[test]
fn the_machines_stalls_count_if_the_group_has_no_limit() {
    assert_eq!(Root::new().sample().stall_ratio, None);
    let root = v1_root().write("proc/pressure/memory", &stalls("12.50"));
    assert_eq!(root.sample().stall_ratio, Some(0.125));
    for text in [stalls("NaN"), stalls("-1"), stalls("101"), "full avg10=5.00\n".to_owned(), String::new()] {
        root.rewrite("proc/pressure/memory", &text);
        assert_eq!(root.sample().stall_ratio, None, "{text}");
    }
    let root = root.v1_group("/mail", 3_000, "8000", V1_STAT);
    root.rewrite("proc/pressure/memory", &stalls("12.50"));
    assert_eq!(root.sample().stall_ratio, None, "other programs may cause them");
}

#[test]
fn the_groups_stalls_take_precedence_over_the_machines() {
    let root = v2_root().write("proc/pressure/memory", &stalls("50.00"));
    let root = root.write("sys/fs/cgroup/mail/spool.service/memory.pressure", &stalls("2.00"));
    assert_eq!(root.sample().stall_ratio, Some(0.02));
    let root = root.v2_group("/mail/spool.service", 3_000, "8000", V2_STAT);
    assert_eq!(root.sample().stall_ratio, Some(0.02));
    // In a container.
    let root = v2_root().write("sys/fs/cgroup/memory.pressure", &stalls("3.00"));
    assert_eq!(root.sample().stall_ratio, Some(0.03));
}

#[test]
fn below_reads_no_other_directory() {
    let root = Root::empty();
    let mut sampler = root.sampler(None);
    assert_eq!(sampler.sample(), None, "there is nothing to read");
    root.rewrite("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n");
    let sample = sampler.sample().unwrap();
    assert_eq!((sample.source, sample.used, sample.limit), (Source::System, 600 * 1_024, 1_000 * 1_024));
    assert_eq!(sample.resident, None);
    // The process's own limit is three quarters of the machine's memory.
    root.rewrite("proc/self/status", "VmRSS:  700 kB\n");
    let sample = sampler.sample().unwrap();
    assert_eq!((sample.source, sample.used, sample.limit), (Source::Process, 700 * 1_024, 750 * 1_024));
    sampler.set_memory_limit(Some(2_000 * 1_024));
    assert_eq!(sampler.sample().unwrap().source, Source::System);
}

#[test]
fn this_machine_reports_plausible_values() {
    let sample = SystemSampler::below("/".into(), None).sample().unwrap();
    assert!(sample.used > 0 && sample.limit > MIB, "{sample:?}");
    assert!(sample.resident.is_some_and(|resident| resident > 0), "{sample:?}");
}
