//! seccomp(2).
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Attaches a filter to the calling thread, for good and for all its children
/// (`SECCOMP_SET_MODE_FILTER`). `flags` are `SECCOMP_FILTER_FLAG_*` bits; with
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` the result is the notification descriptor (close-on-exec).
///
/// The thread needs CAP_SYS_ADMIN in its user namespace or NO_NEW_PRIVS (else EACCES); neither is
/// touched here.
pub fn load(program: &[libc::sock_filter], flags: u32) -> nix::Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads `len` instructions from `filter`, which the borrowed slice
    // holds, and copies them before it returns.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let fd = Errno::result(result)?;
    if u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the result is a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}
