//! The replaced functions. Each checks the control file, and then makes the system call itself.

use std::ffi::CStr;

use libc::{c_char, c_int, c_long, c_uint, c_void, mode_t, off_t, size_t, ssize_t};

use crate::control::control;
use crate::layout::Call;

/// Sets `errno` and returns -1, as the C library does.
fn fail(errno: i32) -> c_long {
    // SAFETY: the C library returns a pointer to this thread's own `errno`.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Makes the system call, unless the control file returns a fault for the open file `fd`.
fn on_fd(call: Call, fd: c_int, real: impl FnOnce() -> c_long) -> c_long {
    match control().and_then(|control| control.fault_for_fd(call, fd)) {
        Some(errno) => fail(errno),
        None => real(),
    }
}

/// Makes the system call, unless the control file returns a fault for the path.
///
/// # Safety
///
/// `path` is null or ends with a zero byte.
unsafe fn on_path(call: Call, dir: c_int, path: *const c_char, real: impl FnOnce() -> c_long) -> c_long {
    if path.is_null() {
        return real();
    }
    // SAFETY: `path` is not null, and the caller of the replaced function passes a C string.
    let text = unsafe { CStr::from_ptr(path) };
    match control().and_then(|control| control.fault_for_path_at(call, dir, text)) {
        Some(errno) => fail(errno),
        None => real(),
    }
}

/// Replaces functions on an open file: the name, its arguments after the descriptor, and the system
/// call.
macro_rules! replaced_on_fd {
    ($($call:ident $system:ident: $name:ident($($arg:ident: $of:ty),*) -> $result:ty;)+) => {$(
        /// Replaces the C library's function of this name.
        ///
        /// # Safety
        ///
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(fd: c_int $(, $arg: $of)*) -> $result {
            // SAFETY: the caller's arguments are passed on unchanged.
            on_fd(Call::$call, fd, || unsafe { libc::syscall(libc::$system, fd $(, $arg)*) }) as $result
        }
    )+};
}

#[allow(clippy::cast_possible_truncation, reason = "a descriptor, 0 or -1")]
mod on_open_files {
    use super::*;

    replaced_on_fd! {
        Read SYS_read: read(buf: *mut c_void, len: size_t) -> ssize_t;
        Write SYS_write: write(buf: *const c_void, len: size_t) -> ssize_t;
        Pread SYS_pread64: pread(buf: *mut c_void, len: size_t, at: off_t) -> ssize_t;
        Pread SYS_pread64: pread64(buf: *mut c_void, len: size_t, at: off_t) -> ssize_t;
        Pwrite SYS_pwrite64: pwrite(buf: *const c_void, len: size_t, at: off_t) -> ssize_t;
        Pwrite SYS_pwrite64: pwrite64(buf: *const c_void, len: size_t, at: off_t) -> ssize_t;
        Fsync SYS_fsync: fsync() -> c_int;
        Fdatasync SYS_fdatasync: fdatasync() -> c_int;
        Ftruncate SYS_ftruncate: ftruncate(len: off_t) -> c_int;
        Ftruncate SYS_ftruncate: ftruncate64(len: off_t) -> c_int;
        SyncFileRange SYS_sync_file_range: sync_file_range(at: off_t, len: off_t, flags: c_uint) -> c_int;
    }
}

/// Replaces functions on a path: the name, its arguments, and the arguments of the system call.
macro_rules! replaced_on_path {
    ($($call:ident $system:ident: $name:ident($($arg:ident: $of:ty),*) at $dir:expr, $path:ident
        => ($($passed:expr),*);)+) => {$(
        /// Replaces the C library's function of this name.
        ///
        /// # Safety
        ///
        /// As for the C library's function.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $of),*) -> c_int {
            // SAFETY: the caller's arguments are passed on unchanged.
            let real = || unsafe { libc::syscall(libc::$system, $($passed),*) };
            // SAFETY: the caller passes a C string.
            (unsafe { on_path(Call::$call, $dir, $path, real) }) as c_int
        }
    )+};
}

#[allow(clippy::cast_possible_truncation, reason = "a descriptor, 0 or -1")]
mod on_paths {
    use super::*;

    const HERE: c_int = libc::AT_FDCWD;

    // `open` and `openat` take the mode as a variadic argument. On 64-bit Linux it is passed like
    // any other argument, and the kernel ignores it if no file is created.
    replaced_on_path! {
        Open SYS_openat: open(path: *const c_char, flags: c_int, mode: mode_t)
            at HERE, path => (HERE, path, flags, mode);
        Open SYS_openat: open64(path: *const c_char, flags: c_int, mode: mode_t)
            at HERE, path => (HERE, path, flags, mode);
        Open SYS_openat: openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t)
            at dir, path => (dir, path, flags, mode);
        Open SYS_openat: openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t)
            at dir, path => (dir, path, flags, mode);
        Mkdir SYS_mkdirat: mkdir(path: *const c_char, mode: mode_t) at HERE, path => (HERE, path, mode);
        Unlink SYS_unlinkat: unlink(path: *const c_char) at HERE, path => (HERE, path, 0);
        Unlink SYS_unlinkat: rmdir(path: *const c_char) at HERE, path => (HERE, path, libc::AT_REMOVEDIR);
        Unlink SYS_unlinkat: unlinkat(dir: c_int, path: *const c_char, flags: c_int)
            at dir, path => (dir, path, flags);
    }

    /// Replaces the C library's function of this name. If the old path has no fault, the new path
    /// is checked, too.
    ///
    /// # Safety
    ///
    /// As for the C library's function.
    #[unsafe(no_mangle)]
    pub(crate) unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
        // SAFETY: the caller's arguments are passed on unchanged.
        let real = || unsafe { libc::syscall(libc::SYS_renameat2, HERE, old, HERE, new, 0) };
        // SAFETY: the caller passes C strings.
        let result = unsafe { on_path(Call::Rename, HERE, old, || on_path(Call::Rename, HERE, new, real)) };
        result as c_int
    }
}
