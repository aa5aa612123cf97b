//! The kernel's figures of this process.

use anyhow::{Context, Result};

/// Returns the bytes that this process caused to be written to block devices since it started, from
/// `/proc/self/io`.
///
/// The kernel counts a page when it becomes dirty in the page cache, not when it reaches the
/// device. A page that changes again before writeback counts once; pages truncated or unlinked
/// before it are subtracted (`cancelled_write_bytes`). tmpfs has no device and counts nothing. If
/// the file system keeps large folios in the cache, a small change in a clean folio counts as the
/// whole folio, though only the changed blocks are written. On Linux 6.18 and ext4, 1 000 synced
/// writes of 4 096 bytes into a file written before in steps of 1 MiB counted as 1 048 576 000
/// bytes; the device saw 4 096 000.
pub(crate) fn disk_write_bytes() -> Result<u64> {
    let io = read_proc("/proc/self/io")?;
    let field = |name| field(&io, name).with_context(|| format!("no {name} in /proc/self/io"));
    Ok(field("write_bytes")?.saturating_sub(field("cancelled_write_bytes")?))
}

/// Returns the bytes that this process caused to be read from block devices since it started, from
/// `/proc/self/io`.
pub(crate) fn disk_read_bytes() -> Result<u64> {
    field(&read_proc("/proc/self/io")?, "read_bytes").context("no read_bytes in /proc/self/io")
}

/// Resets the peak to the memory that is resident now. If the kernel refuses, the peak remains that
/// of the whole process.
pub(crate) fn reset_peak_rss() {
    drop(std::fs::write("/proc/self/clear_refs", "5"));
}

/// Returns the peak resident memory in bytes: `VmHWM` of `/proc/self/status`.
pub(crate) fn peak_rss_bytes() -> Result<u64> {
    let status = read_proc("/proc/self/status")?;
    let kib = field(&status, "VmHWM").context("no VmHWM in /proc/self/status")?;
    Ok(kib * 1_024)
}

fn read_proc(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {path}: the bench needs Linux's /proc"))
}

/// Returns the resident memory in bytes: `VmRSS` of `/proc/self/status`.
pub(crate) fn rss_bytes() -> Result<u64> {
    let status = read_proc("/proc/self/status")?;
    let kib = field(&status, "VmRSS").context("no VmRSS in /proc/self/status")?;
    Ok(kib * 1_024)
}

/// Returns the number after `name:` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_fields_are_found_by_their_whole_name() {
        let io = "write_bytes: 10\ncancelled_write_bytes: 4\n";
        assert_eq!(field(io, "cancelled_write_bytes"), Some(4));
        assert_eq!(field(io, "write_bytes"), Some(10));
        assert_eq!(field("VmHWM:\t  12 kB\n", "VmHWM"), Some(12));
        assert_eq!(field(io, "bytes"), None);
    }

    #[test]
    fn the_kernel_reports_memory_and_writes() {
        let resident = rss_bytes().unwrap();
        assert!(resident > 0 && peak_rss_bytes().unwrap() > 0);
        disk_write_bytes().unwrap();
    }
}
