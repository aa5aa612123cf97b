//! The heap of the process: what of it goes back to the operating system. Only the C library of Linux has to be asked; other allocators do it by themselves.

use std::fs;

/// Resident memory of the process in bytes; `None` where it is not told.
pub(crate) fn resident() -> Option<u64> {
    let told = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = told.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Gives back what lies free between pieces in use. The arenas are locked meanwhile, one after the other, for some milliseconds.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers, and may be called at any time from any thread.
    #[expect(unsafe_code, reason = "there is no other way to ask for it")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the C library's allocator keep less than it would: two arenas, and pages of its own for each piece of 128 KiB or more. For the start of a
/// program, before it has threads. Where another allocator is in use, or the environment says something else (`MALLOC_ARENA_MAX`,
/// `MALLOC_MMAP_THRESHOLD_`), nothing changes.
///
/// By default there are eight arenas for each core, and each keeps what was freed in it: with threads that store and others that evict, the process
/// grows to far more than the [`memory_budget`](crate::Config::memory_budget) (ARCHITECTURE.md has figures).
pub fn keep_the_heap_small() {
    #[cfg(target_env = "gnu")]
    {
        let unset = |name: &str| std::env::var_os(name).is_none();
        // SAFETY: it takes no pointers, and locks what it changes.
        #[expect(unsafe_code, reason = "there is no other way to say it but the environment of the process")]
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
