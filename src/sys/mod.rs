//! Every system call that the libraries do not wrap, and the only `unsafe` code of the crate.
//!
//! Each function is a thin, safe wrapper: it takes owned or borrowed descriptors and typed
//! arguments and returns [`nix::Result`], so that callers can add the step and the property of
//! config.json to the errno.
#![allow(unsafe_code)]

pub mod bpf;
pub mod clone;
pub mod descriptor;
pub mod entry;
pub mod fs;
pub mod heap;
pub mod mount;
pub mod net;
pub mod process;
pub mod seccomp;
pub mod tty;
pub mod wait;

use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Turns a raw system call's return value into a result.
fn check(ret: libc::c_long) -> nix::Result<libc::c_long> {
    Errno::result(ret)
}

/// Like [`check`], for system calls that return a new descriptor.
///
/// # Safety
/// `ret` must be the return value of a system call that creates a descriptor nobody else owns.
unsafe fn check_fd(ret: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = check(ret)?;
    // SAFETY: the caller vouches that the descriptor is new and unowned.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
