//! The mapped control file, and the decision whether a call fails.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{
    ARMED, BYTES, CALLS, CONTROL, COUNT, Call, ERRNO, FAILED, MAGIC, MATCHED, PATTERN_AT, PATTERN_LEN,
    PATTERN_MAX, SKIP, THIS_LAYOUT,
};

/// The maximum length of a path. The kernel's `PATH_MAX`.
const PATH_MAX: usize = 4096;

const FIELDS: usize = BYTES / size_of::<u64>();

/// The control file of this process.
pub(crate) struct Control {
    fields: &'static [AtomicU64; FIELDS],
    pattern: Vec<u8>,
}

/// Returns the control file that the environment names. `None`: no call fails.
pub(crate) fn control() -> Option<&'static Control> {
    static INSTANCE: OnceLock<Option<Control>> = OnceLock::new();
    INSTANCE.get_or_init(Control::from_env).as_ref()
}

impl Control {
    fn from_env() -> Option<Self> {
        let path = std::env::var_os(CONTROL)?;
        let path = CString::new(path.as_bytes()).ok()?;
        let fields = map(&path)?;
        if fields[MAGIC].load(Ordering::Acquire) != THIS_LAYOUT {
            return None;
        }
        let len = usize::try_from(fields[PATTERN_LEN].load(Ordering::Acquire)).ok()?.min(PATTERN_MAX);
        let words = fields.iter().skip(PATTERN_AT / 8);
        let mut pattern: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect();
        pattern.truncate(len);
        (len > 0).then_some(Self { fields, pattern })
    }

    /// Returns the `errno` with which this call fails, or `None` if the system call must be made.
    pub(crate) fn fault_for(&self, call: Call, path: &[u8]) -> Option<i32> {
        // A directory matches a pattern that ends with its name and a slash.
        let of_directory = || path.len() + 1 >= self.pattern.len() && self.ends_before_slash(path);
        if !contains(path, &self.pattern) && !of_directory() {
            return None;
        }
        self.fields[call.seen()].fetch_add(1, Ordering::Relaxed);
        if self.read(ARMED) == 0 || self.read(CALLS) & call.bit() == 0 {
            return None;
        }
        let before = self.fields[MATCHED].fetch_add(1, Ordering::Relaxed);
        let fails = before.checked_sub(self.read(SKIP)).is_some_and(|nth| nth < self.read(COUNT));
        if !fails {
            return None;
        }
        self.fields[FAILED].fetch_add(1, Ordering::Relaxed);
        i32::try_from(self.read(ERRNO)).ok()
    }

    /// Like `fault_for`, for an open file. Uses the current path: a renamed file has its new path.
    pub(crate) fn fault_for_fd(&self, call: Call, fd: i32) -> Option<i32> {
        let link = CString::new(format!("/proc/self/fd/{fd}")).ok()?;
        let mut path = [0; PATH_MAX];
        // SAFETY: `link` ends with a zero byte, and the kernel writes at most `PATH_MAX` bytes to
        // `path`, which has as many.
        let len = unsafe {
            libc::syscall(libc::SYS_readlinkat, libc::AT_FDCWD, link.as_ptr(), path.as_mut_ptr(), PATH_MAX)
        };
        self.fault_for(call, path.get(..usize::try_from(len).ok()?)?)
    }

    /// Like `fault_for`, for a path relative to the directory `dir`.
    pub(crate) fn fault_for_path_at(&self, call: Call, dir: i32, path: &CStr) -> Option<i32> {
        let bytes = path.to_bytes();
        if dir == libc::AT_FDCWD || bytes.starts_with(b"/") {
            return self.fault_for(call, bytes);
        }
        let base = std::fs::read_link(format!("/proc/self/fd/{dir}")).ok()?;
        let whole = base.join(Path::new(std::ffi::OsStr::from_bytes(bytes)));
        self.fault_for(call, whole.as_os_str().as_bytes())
    }

    fn ends_before_slash(&self, path: &[u8]) -> bool {
        self.pattern.strip_suffix(b"/").is_some_and(|start| path.ends_with(start))
    }

    fn read(&self, field: usize) -> u64 {
        self.fields[field].load(Ordering::Acquire)
    }
}

fn contains(path: &[u8], pattern: &[u8]) -> bool {
    path.windows(pattern.len()).any(|window| window == pattern)
}

/// Maps the control file. `None`: it is missing or too short.
fn map(path: &CStr) -> Option<&'static [AtomicU64; FIELDS]> {
    // SAFETY: `path` ends with a zero byte.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC)
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the descriptor is open; the kernel chooses the address.
    let (len, at) = unsafe {
        let len = libc::lseek(fd, 0, libc::SEEK_END);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), BYTES, protection, libc::MAP_SHARED, fd, 0);
        libc::syscall(libc::SYS_close, fd);
        (len, at)
    };
    if at == libc::MAP_FAILED || usize::try_from(len).ok()? < BYTES {
        return None;
    }
    // SAFETY: the mapping has `BYTES` bytes, is aligned to a page, is never unmapped, and is
    // accessed through atomics only.
    Some(unsafe { &*at.cast::<[AtomicU64; FIELDS]>() })
}
