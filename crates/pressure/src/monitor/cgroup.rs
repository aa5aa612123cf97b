//! Memory of the control group of this process, versions 2 and 1.
//!
//! The kernel's usage includes page cache that it would reclaim at no cost. So the *working set* is
//! compared with the limit: usage minus `inactive_file`, but never less than the anonymous memory,
//! which cannot be reclaimed.
//!
//! Any ancestor of the group may have a limit. The limit that is nearest to being reached counts.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Usage and limit of one group, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CgroupMemory {
    pub(super) working_set: u64,
    pub(super) limit: u64,
}

/// Names of the files and fields of one version.
struct Layout {
    /// Relative to the root directory.
    mount: &'static str,
    usage: &'static str,
    limits: &'static [&'static str],
    inactive_file: &'static str,
    anonymous: &'static str,
}

const V2: Layout = Layout {
    mount: "sys/fs/cgroup",
    usage: "memory.current",
    // Above `high` the kernel throttles the group until usage falls, so it is a limit too.
    limits: &["memory.max", "memory.high"],
    inactive_file: "inactive_file",
    anonymous: "anon",
};

const V1: Layout = Layout {
    mount: "sys/fs/cgroup/memory",
    usage: "memory.usage_in_bytes",
    limits: &["memory.limit_in_bytes"],
    inactive_file: "total_inactive_file",
    anonymous: "total_rss",
};

/// Version 1 writes "no limit" as the largest number of whole pages. Values above this are no
/// limit.
const NO_LIMIT: u64 = 1 << 62;

/// The group under version 2, below `root`. `None` if there is no group, or none with a limit.
pub(super) fn v2(root: &Path) -> Option<CgroupMemory> {
    nearest_limit(root, &V2, &own_group(root, str::is_empty)?)
}

/// The group under version 1, below `root`. `None` if there is no group, or none with a limit.
pub(super) fn v1(root: &Path) -> Option<CgroupMemory> {
    let memory = |controllers: &str| controllers.split(',').any(|controller| controller == "memory");
    nearest_limit(root, &V1, &own_group(root, memory)?)
}

/// Share of the last 10 s in which some task of the group waited for memory, 0 to 1. Version 2
/// only.
pub(super) fn stall_ratio(root: &Path) -> Option<f64> {
    let mount = root.join(V2.mount);
    let group = own_group(root, str::is_empty)?;
    // In a container the mount is the group itself, and the path does not exist below it.
    let texts = [mount.join(group), mount].map(|dir| fs::read_to_string(dir.join("memory.pressure")));
    parse_stalls(&texts.into_iter().find_map(Result::ok)?)
}

/// The field `avg10` of the line `some`, in the kernel's format for a group and for the machine.
pub(super) fn parse_stalls(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent: f64 = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

/// The path of this process's group: from the line of `/proc/self/cgroup`
/// (`number:controllers:path`) whose controllers `is_wanted` accepts.
fn own_group(root: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| {
        let (_number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        is_wanted(controllers).then_some(path)
    })?;
    // Relative, and without the `..` of a group outside the namespace.
    Some(Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect())
}

/// Reads the group and its ancestors. In a container the root of the mount is often the group
/// itself, and the path does not exist below it. Then only that root is read, which is correct.
fn nearest_limit(root: &Path, layout: &Layout, group: &Path) -> Option<CgroupMemory> {
    let mount = root.join(layout.mount);
    let levels = group.ancestors().filter_map(|level| read_group(&mount.join(level), layout));
    levels.min_by_key(|level| level.limit.saturating_sub(level.working_set))
}

fn read_group(dir: &Path, layout: &Layout) -> Option<CgroupMemory> {
    let limits = layout.limits.iter().filter_map(|file| read_number(&dir.join(file)));
    let limit = limits.filter(|limit| (1..NO_LIMIT).contains(limit)).min()?;
    let usage = read_number(&dir.join(layout.usage))?;
    let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
    let inactive_file = stat_field(&stat, layout.inactive_file)?;
    let anonymous = stat_field(&stat, layout.anonymous)?;
    Some(CgroupMemory { working_set: usage.saturating_sub(inactive_file).max(anonymous), limit })
}

/// Returns `None` for `max` too: version 2 writes "no limit" like that.
fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn stat_field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
