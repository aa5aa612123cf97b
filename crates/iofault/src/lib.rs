//! A library for `LD_PRELOAD` that makes selected system calls on selected files fail.
//!
//! It replaces functions of the C library by functions that first check the control file
//! (`layout`). A call matches if its path contains the pattern. Matching calls are counted over all
//! threads. If a fault is set, a run of them fails with the selected `errno`, and the system call
//! is not made. All other calls go to the kernel unchanged.
//!
//! # Limits
//!
//! Not affected: system calls that a program makes without the C library (as `rustix` does), and
//! calls that the C library makes inside its own functions.
//!
//! # Layout
//!
//! * `layout` – the control file, shared with the test as source.
//! * `control` – the mapped control file, and the decision whether a call fails.
//! * `calls` – the replaced functions.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#![allow(unsafe_code, reason = "it replaces functions of the C library")]

mod calls;
mod control;
mod layout;
