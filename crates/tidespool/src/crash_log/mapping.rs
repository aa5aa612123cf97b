//! The mapped file as words that many threads read and write. Contains all `unsafe` code of the
//! crash log.
//!
//! # A page that can't be read or allocated
//!
//! A write to a mapped page raises `SIGBUS` if the file no longer has the page (something else cut
//! the file short), if the file system can't read or write the page, or if the file system has
//! failed as a whole. The default action ends the process. So the first mapping installs a handler
//! for `SIGBUS`.
//!
//! * A fault inside a mapping of this module marks the mapping as broken and replaces it with
//!   anonymous memory. The processor repeats the write that faulted, which then succeeds.
//! * Every change of an entry checks the mark after the change ([`Mapping::is_broken`]), so that no
//!   caller gets `Ok` for a change that only anonymous memory has.
//! * The first page stays mapped, unless it is the page that faulted, because the file is
//!   invalidated there.
//! * Any other fault goes to the handler that was installed before.
//!
//! # Why the `unsafe` code is sound
//!
//! * The words are only reachable as `&[AtomicU64]`. Every access is atomic, so that accesses never
//!   race, whatever other threads, or other processes that map the file, do at the same time.
//! * The slice lives as long as the [`Mapping`]: its range is unmapped in `Drop` and nowhere else.
//!   The handler replaces pages of the range in place, and never leaves a hole in it.
//! * `mmap` returns page-aligned memory of the requested length, so the words are aligned and in
//!   bounds. Any bytes are valid words.
//! * The handler calls only `mmap`, `sigaction`, `raise` and atomic operations. The first three are
//!   system calls without state in the C library.
//! * A forked child does not have the mapping (`MADV_DONTFORK`): it can't write into the log of its
//!   parent, and unmaps nothing. A child that continues to use the spool of its parent faults.

#![allow(unsafe_code, reason = "there is no other way to map a file and to survive a fault in it")]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Bytes of the first page, which contains the file's header.
const PAGE: usize = 4096;

/// Mappings that a process can have at a time. A spool has one, and two for a moment while a log is
/// replaced.
const MAX_MAPPINGS: usize = 256;

/// The mappings of the process, for the handler.
static MAPPED: [Mapped; MAX_MAPPINGS] = [const { Mapped::none() }; MAX_MAPPINGS];

/// The action for `SIGBUS` that was set before the handler of this module.
static PREVIOUS: OnceLock<io::Result<libc::sigaction>> = OnceLock::new();

/// One mapping, as the handler sees it.
#[derive(Debug)]
struct Mapped {
    is_taken: AtomicBool,
    /// 0: not mapped.
    base: AtomicUsize,
    /// In bytes.
    len: AtomicUsize,
    is_broken: AtomicBool,
}

impl Mapped {
    const fn none() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
        }
    }

    fn contains(&self, address: usize) -> bool {
        let base = self.base.load(Ordering::Acquire);
        base != 0 && address >= base && address - base < self.len.load(Ordering::Acquire)
    }
}

/// A file that is mapped shared, for reading and writing.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<AtomicU64>,
    /// In words.
    len: usize,
    mapped: &'static Mapped,
    /// The id of the process that made the mapping.
    owner: u32,
    /// Every written word, in order.
    #[cfg(test)]
    pub(super) trace: parking_lot::Mutex<Vec<(usize, u64)>>,
}

// SAFETY: the memory at `base` is accessed by atomic operations only, and is not tied to a thread.
// `Drop` unmaps it when no reference to the mapping is left.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, which must have as many.
    pub(super) fn new(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        install_handler()?;
        let is_free = |mapped: &&Mapped| !mapped.is_taken.swap(true, Ordering::AcqRel);
        let mapped = MAPPED.iter().find(is_free).ok_or_else(|| {
            io::Error::other(format!("{MAX_MAPPINGS} crash logs are mapped: no more are possible"))
        })?;
        let free = || mapped.is_taken.store(false, Ordering::Release);
        let base = map(ptr::null_mut(), len, libc::MAP_SHARED, file.as_raw_fd()).inspect_err(|_| free())?;
        // SAFETY: `map` returned exactly this range. The advice changes no content.
        unsafe {
            libc::madvise(base.as_ptr(), len, libc::MADV_DONTFORK);
        }
        mapped.is_broken.store(false, Ordering::Release);
        mapped.len.store(len, Ordering::Release);
        mapped.base.store(base.as_ptr() as usize, Ordering::Release);
        Ok(Self {
            base: base.cast(),
            len: len / size_of::<u64>(),
            mapped,
            owner: std::process::id(),
            #[cfg(test)]
            trace: parking_lot::Mutex::default(),
        })
    }

    /// Reads the word at index `at`.
    pub(super) fn load(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }

    /// Writes the word at index `at`, ordered after all earlier writes of this thread.
    pub(super) fn store(&self, at: usize, word: u64) {
        #[cfg(test)]
        self.trace.lock().push((at, word));
        self.words()[at].store(word, Ordering::Release);
    }

    /// Writes bytes from the word at index `at` on, in any order. Pads the last word with zeros.
    pub(super) fn fill(&self, at: usize, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<{ size_of::<u64>() }>();
        let words = &self.words()[at..][..bytes.len().div_ceil(size_of::<u64>())];
        for (word, bytes) in words.iter().zip(whole) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if let Some(word) = words.get(whole.len()) {
            let mut last = [0; size_of::<u64>()];
            last[..rest.len()].copy_from_slice(rest);
            word.store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
        #[cfg(test)]
        self.trace.lock().extend((at..).zip(words.iter().map(|word| word.load(Ordering::Relaxed))));
    }

    /// Returns the words of the file.
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` points to `len` mapped, aligned words, which stay mapped until `Drop`. All
        // accesses are atomic. See the documentation of the module.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// True if a page could not be read or allocated. Since then writes go to anonymous memory of
    /// the process.
    pub(super) fn is_broken(&self) -> bool {
        self.mapped.is_broken.load(Ordering::SeqCst)
    }

    /// Removes pages from the memory of the process. The kernel keeps their contents.
    pub(super) fn release_resident(&self, at: usize, words: usize) {
        let range = &self.words()[at..][..words];
        // SAFETY: the range is a part of the mapping. For a shared mapping of a file the advice
        // changes no content: the next access finds the same page of the file.
        unsafe {
            libc::madvise(range.as_ptr().cast_mut().cast(), size_of_val(range), libc::MADV_DONTNEED);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            // A forked child does not have the mapping: something else may be at its address.
            return;
        }
        self.mapped.base.store(0, Ordering::Release);
        // SAFETY: nothing refers to the range, because the result of `words` borrows this value.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len * size_of::<u64>());
        }
        self.mapped.is_taken.store(false, Ordering::Release);
    }
}

/// Maps `len` bytes of a file, or of anonymous memory.
fn map(at: *mut c_void, len: usize, flags: c_int, fd: c_int) -> io::Result<NonNull<c_void>> {
    // SAFETY: without MAP_FIXED the kernel chooses an unused range. With MAP_FIXED the caller
    // passes a range that it has mapped.
    let base = unsafe { libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    match NonNull::new(base).filter(|base| base.as_ptr() != libc::MAP_FAILED) {
        Some(base) => Ok(base),
        None => Err(io::Error::last_os_error()),
    }
}

/// Installs the handler, once in the process.
fn install_handler() -> io::Result<()> {
    let installed = PREVIOUS.get_or_init(|| {
        // SAFETY: a `sigaction` of zeros is valid: the default action, an empty mask, no flags.
        let (mut action, mut previous): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
        action.sa_sigaction = handler as *const () as usize;
        // On the thread's signal stack, if it has one: little may be left of its normal stack.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both pointers are to actions that live through the call.
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) } {
            0 => Ok(previous),
            _ => Err(io::Error::last_os_error()),
        }
    });
    installed.as_ref().map(drop).map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

/// Handles `SIGBUS`.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, because the action has SA_SIGINFO.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    // Positive: the kernel raised the signal. A signal sent by a process has no address.
    if code > 0
        && let Some(mapped) = MAPPED.iter().find(|mapped| mapped.contains(address))
    {
        let (base, len) = (mapped.base.load(Ordering::Acquire), mapped.len.load(Ordering::Acquire));
        // Before the pages are replaced: a thread that writes to anonymous memory and reads the
        // mark after that finds it set.
        mapped.is_broken.store(true, Ordering::SeqCst);
        let kept = if address - base < PAGE { 0 } else { PAGE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        if map((base + kept) as *mut c_void, len - kept, flags, -1).is_ok() {
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Passes a fault on to the previous action.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get().and_then(|previous| previous.as_ref().ok());
    match previous.filter(|previous| ![libc::SIG_DFL, libc::SIG_IGN].contains(&previous.sa_sigaction)) {
        Some(previous) if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: an action with SA_SIGINFO holds a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(previous.sa_sigaction) };
            handler(signal, info, context);
        }
        Some(previous) => {
            // SAFETY: an action without SA_SIGINFO holds a function of this type.
            let handler =
                unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(previous.sa_sigaction) };
            handler(signal);
        }
        // The default action, which ends the process when this handler returns.
        None => {
            // SAFETY: a `sigaction` of zeros is valid: the default action.
            unsafe {
                let action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const action, ptr::null_mut());
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    const LEN: usize = 1 << 20;

    #[test]
    fn written_words_are_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let mapping = Mapping::new(file.as_fd(), LEN).unwrap();
        mapping.store(3, 7);
        let mut word = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 24).unwrap();
        assert_eq!((u64::from_le_bytes(word), mapping.is_broken()), (7, false));
    }

    /// Without the handler, a file that something else cuts short ends the process.
    #[test]
    fn a_missing_page_breaks_the_mapping_and_not_the_process() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let (mapping, other) = (Mapping::new(file.as_fd(), LEN).unwrap(), tempfile::tempfile().unwrap());
        other.set_len(LEN as u64).unwrap();
        let other = Mapping::new(other.as_fd(), LEN).unwrap();
        mapping.store(0, 1);
        file.set_len(0).unwrap();
        mapping.store(LEN / 16, 2);
        assert!(mapping.is_broken());
        assert_eq!(mapping.load(LEN / 16), 2, "the write went on");
        other.store(0, 3);
        assert!(!other.is_broken());
    }

    #[test]
    fn a_dropped_mapping_frees_its_entry() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        for _ in 0..MAX_MAPPINGS * 2 {
            Mapping::new(file.as_fd(), 4096).unwrap();
        }
    }
}
