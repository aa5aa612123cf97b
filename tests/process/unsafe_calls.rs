//! The two calls that no safe crate offers.

#![allow(unsafe_code, reason = "rustix neither forks nor sets signal handlers")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A forked child that only holds what it inherited. Killed on drop.
pub(crate) struct Forked(libc::pid_t);

impl Forked {
    pub(crate) fn new() -> Self {
        // SAFETY: the child calls nothing that is not async-signal-safe, and never returns.
        match unsafe { libc::fork() } {
            0 => loop {
                unsafe { libc::pause() };
            },
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            child => Self(child),
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: the child is ours, and no other code waits for it.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handle(_signal: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// The number of signals handled so far.
pub(crate) fn handled() -> u64 {
    HANDLED.load(Ordering::Relaxed)
}

/// Handles `SIGALRM` without `SA_RESTART`: it interrupts the current call of a thread.
pub(crate) fn handle_alarms() {
    // SAFETY: the handler only adds to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Repeatedly sends `SIGALRM` to every other thread of the process, until `stop`.
pub(crate) fn send_alarms(stop: &AtomicBool, pause: Duration) {
    let process = std::process::id();
    // SAFETY: plain system calls with numbers.
    let own = unsafe { libc::gettid() };
    while !stop.load(Ordering::Relaxed) {
        for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let thread: libc::pid_t = entry.file_name().to_string_lossy().parse().unwrap();
            if thread != own {
                // Ignores errors: the thread may have ended.
                unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGALRM) };
            }
        }
        std::thread::sleep(pause);
    }
}
