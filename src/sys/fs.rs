//! Paths and descriptors: `openat2(2)`, adopting inherited descriptors.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::NixPath;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use super::descriptor::Fd;
use super::{check, check_fd};

bitflags::bitflags! {
    /// How `openat2(2)` may walk a path (`RESOLVE_*`).
    #[derive(Clone, Copy, Debug)]
    pub struct Resolve: u64 {
        /// Never leave the mount of the starting folder.
        const NO_XDEV = 0x01;
        /// No links of procfs that jump to another object.
        const NO_MAGICLINKS = 0x02;
        /// No symbolic links at all, in any component.
        const NO_SYMLINKS = 0x04;
        /// Fail on every step out of the starting folder.
        const BENEATH = 0x08;
        /// Treat the starting folder as the root.
        const IN_ROOT = 0x10;
    }
}

/// `open(2)` with `O_PATH`. Always close-on-exec.
///
/// # Errors
/// Those of `open(2)`.
pub fn open_path<P: ?Sized + NixPath>(path: &P, flags: OFlag) -> nix::Result<Fd> {
    let flags = flags | OFlag::O_PATH | OFlag::O_CLOEXEC;
    // Some libc's open calls fcntl(2) as well, for kernels that knew no O_CLOEXEC.
    openat(AT_FDCWD, path, flags, Mode::empty()).map(Fd::from)
}

/// Opens `path` below `dir` as `openat2(2)` does. Always close-on-exec.
///
/// # Errors
/// Those of `openat2(2)`: `EXDEV` when the walk would leave what `resolve` allows, `ELOOP` for a
/// forbidden link, `EAGAIN` when a rename elsewhere made the kernel unsure (retried here).
pub fn openat2<P: ?Sized + NixPath>(
    dir: impl AsFd,
    path: &P,
    flags: OFlag,
    mode: u32,
    resolve: Resolve,
) -> nix::Result<Fd> {
    let how = [(flags | OFlag::O_CLOEXEC).bits() as u32 as u64, u64::from(mode), resolve.bits()];
    let dir = dir.as_fd().as_raw_fd();
    path.with_nix_path(|path: &CStr| {
        // A rename or mount anywhere on the system during the walk gives EAGAIN; a container
        // that renames in a loop can repeat it, but not make it last for ever.
        for _ in 0..1024 {
            // SAFETY: `how` is a struct open_how (three u64) and `path` is NUL-terminated; both
            // outlive the call, which returns a new descriptor.
            let opened = unsafe {
                check_fd(libc::syscall(
                    libc::SYS_openat2,
                    dir,
                    path.as_ptr(),
                    how.as_ptr(),
                    size_of_val(&how),
                ))
            };
            match opened {
                Err(nix::errno::Errno::EAGAIN) => continue,
                other => return other.map(Fd::from),
            }
        }
        Err(nix::errno::Errno::EAGAIN)
    })?
}

/// Whether `fd` is open and would survive an exec, as only inherited descriptors would.
pub fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: reads a flag of a descriptor, open or not.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Takes over the descriptor `number`, which this program was executed with, as one that it owns.
/// The number is free afterwards; ask once for each, before anything else is opened.
///
/// # Errors
/// `EBADF` when it is not open, or would not have survived an exec.
pub fn take_inherited(number: RawFd) -> nix::Result<OwnedFd> {
    if number < 3 || !is_inherited(number) {
        return Err(nix::errno::Errno::EBADF);
    }
    // SAFETY: a descriptor without close-on-exec is none that this program has opened: Rust's and
    // ours all have it.
    let inherited = unsafe { OwnedFd::from_raw_fd(number) };
    inherited.try_clone().map_err(|_| nix::errno::Errno::EMFILE)
}

/// Renames `from` to `to`, both in `folder`, unless `to` exists: `renameat2(2)` with
/// `RENAME_NOREPLACE`, which not every C library has.
///
/// # Errors
/// `EEXIST`, and those of `rename(2)`.
pub fn rename_to_new(folder: impl AsFd, from: &str, to: &str) -> nix::Result<()> {
    let folder = folder.as_fd().as_raw_fd();
    let rename = |from: &CStr, to: &CStr| {
        let (from, to) = (from.as_ptr(), to.as_ptr());
        // SAFETY: both names end with a zero and outlive the call.
        check(unsafe {
            libc::syscall(libc::SYS_renameat2, folder, from, folder, to, libc::RENAME_NOREPLACE)
        })
    };
    from.with_nix_path(|from| to.with_nix_path(|to| rename(from, to)))??.map(drop)
}

/// Makes `fd` appear as number `target` (0, 1 or 2) without close-on-exec.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn dup_onto(fd: impl AsFd, target: RawFd) -> nix::Result<()> {
    // SAFETY: only the standard streams are replaced, which no Rust object owns.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }.into()).map(drop)
}

/// An anonymous file in memory whose contents can be sealed, executable.
///
/// # Errors
/// Those of `memfd_create(2)`.
pub fn memfd_exec(name: &CStr) -> nix::Result<OwnedFd> {
    const MFD_EXEC: u32 = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    for flags in [flags | MFD_EXEC, flags] {
        // SAFETY: `name` is NUL-terminated; the call returns a new descriptor.
        let fd = unsafe { check_fd(libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags)) };
        // Kernels before 6.3 do not know MFD_EXEC and refuse it.
        if !matches!(fd, Err(nix::errno::Errno::EINVAL)) {
            return fd;
        }
    }
    Err(nix::errno::Errno::EINVAL)
}

/// The path by which the kernel was asked to execute this program (`AT_EXECFN`).
pub fn exec_filename() -> &'static CStr {
    // SAFETY: getauxval(AT_EXECFN) is a pointer to a string on the initial stack, which lives as
    // long as the process, or 0.
    unsafe {
        let name = libc::getauxval(libc::AT_EXECFN) as *const libc::c_char;
        if name.is_null() { c"" } else { CStr::from_ptr(name) }
    }
}

/// Borrows the standard stream `number` (0, 1 or 2).
pub fn standard_stream(number: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the standard streams stay open for the life of the process.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}

/// Takes the next connection of the listening socket `fd`.
///
/// # Errors
/// Those of `accept4(2)`.
pub fn accept(fd: RawFd) -> nix::Result<OwnedFd> {
    loop {
        // SAFETY: null pointers mean that the peer's address is not wanted; returns a new
        // descriptor.
        let accepted = unsafe {
            let null = std::ptr::null_mut();
            check_fd(libc::accept4(fd, null, null.cast(), libc::SOCK_CLOEXEC).into())
        };
        match accepted {
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            other => return other,
        }
    }
}

/// Wraps a descriptor just received over a socket.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: SCM_RIGHTS installed it in our table for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
