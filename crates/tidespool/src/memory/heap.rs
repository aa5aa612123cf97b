//! The heap of the process, and how freed memory returns to the operating system. Only glibc needs
//! a request; other allocators return memory on their own.

use std::fs;

/// Resident memory of the process in bytes. `None` if it cannot be read.
pub(crate) fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns free memory between used pieces to the system. It locks the allocator's arenas one after
/// the other, for some milliseconds.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers, and may be called at any time from any thread.
    #[expect(unsafe_code, reason = "there is no safe interface")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes glibc's allocator hold less freed memory: two arenas, and separate pages for each
/// allocation of 128 KiB or more.
///
/// Call it at the start of a program, before it has threads. It does not change an option that is
/// set in the environment (`MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_`), and has no effect on
/// another allocator.
///
/// By default glibc has eight arenas per core, and each keeps the memory freed in it. Some threads
/// store and others evict, so the process grows far beyond the
/// [`memory_budget`](crate::Config::memory_budget). Figures: `docs/decisions/0013-allocator.md`.
pub fn keep_the_heap_small() {
    #[cfg(target_env = "gnu")]
    {
        let unset = |name: &str| std::env::var_os(name).is_none();
        // SAFETY: it takes no pointers, and locks what it changes.
        #[expect(unsafe_code, reason = "the only alternative is the environment of the process")]
        unsafe {
            if unset("MALLOC_ARENA_MAX") {
                libc::mallopt(libc::M_ARENA_MAX, 2);
            }
            if unset("MALLOC_MMAP_THRESHOLD_") {
                libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
            }
        }
    }
}
