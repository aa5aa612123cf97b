//! The machine of the measurements.

use std::path::Path;

use serde::Serialize;

/// The machine, from `/proc`. Fields that it does not report are empty.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// The type of the file system that the runs used.
    pub(crate) file_system: String,
}

/// Returns this machine and the file system of `dir`.
pub(crate) fn describe(dir: &Path) -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kib = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|value| value.split_whitespace().next()?.parse().ok());
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    Machine {
        cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: kib.map_or(0, |kib: u64| kib / 1_024),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        file_system: file_system(&read("/proc/self/mounts"), &dir),
    }
}

/// Returns the value after `name` and a colon at the start of a line.
fn field(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(key, value)| (key.trim(), value.trim()))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.to_owned())
}

/// Returns the file system type of the longest mount point above `dir`, the last one if there are
/// several.
fn file_system(mounts: &str, dir: &Path) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let here = mounts.filter(|(point, _)| dir.starts_with(point));
    here.max_by_key(|(point, _)| point.len()).map_or_else(String::new, |(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/vdb /tmpx xfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")), "tmpfs");
        assert_eq!(file_system(mounts, Path::new("/tmpx")), "xfs");
        assert_eq!(file_system(mounts, Path::new("/var")), "ext4");
        assert_eq!(file_system("", Path::new("/var")), "");
    }

    #[test]
    fn fields_of_proc_are_found() {
        assert_eq!(field("model name\t: A CPU\n", "model name"), Some("A CPU".to_owned()));
        assert!(describe(Path::new("/")).cores > 0);
    }
}
