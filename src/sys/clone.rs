//! Making processes: `clone3(2)` and pidfds.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::{check, check_fd};

/// `CLONE_NEWTIME`; nix has no name for it.
pub const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

/// Which side of [`clone3`] returned.
pub enum Forked {
    /// The new process.
    Child,
    /// The calling process.
    Parent {
        /// The child's pid in the caller's PID namespace.
        pid: i32,
        /// A descriptor that names the child whatever happens to its pid.
        pidfd: OwnedFd,
    },
}

/// Forks with new namespaces (`flags`: `CLONE_NEW…`), and on cgroup v2 straight into `cgroup`.
/// With `CLONE_PARENT` in `flags` the new process is a sibling.
///
/// The child is a copy of the caller, with signal handlers reset to their defaults.
///
/// # Errors
/// Those of `clone3(2)`; `E2BIG`/`ENOSYS` on a kernel before 5.7.
pub fn clone3(flags: CloneFlags, cgroup: Option<BorrowedFd>) -> nix::Result<Forked> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    let mut pidfd: i32 = -1;
    let sibling = flags.contains(CloneFlags::CLONE_PARENT);
    let mut args = libc::clone_args {
        flags: flags.bits() as u32 as u64 | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        // A sibling inherits that of the caller.
        exit_signal: if sibling { 0 } else { libc::SIGCHLD as u64 },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is fork(2): the child gets its own copy of all memory and of
    // this stack. The process is single-threaded, so no lock can be held by a thread that the
    // child lacks. `args` and `pidfd` live across the call.
    let ret = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    if ret == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: CLONE_PIDFD stored a new descriptor there.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: ret as i32, pidfd })
}

/// `pidfd_open(2)`.
///
/// # Errors
/// `ESRCH` when no such process exists.
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: no pointers; returns a new descriptor.
    unsafe { check_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }
}

/// `pidfd_send_signal(2)`; a signal number, since real-time signals have no [`Signal`].
///
/// # Errors
/// `ESRCH` when the process is gone and reaped, `EINVAL` for a bad number.
pub fn pidfd_send_signal(pidfd: BorrowedFd, signal: i32) -> nix::Result<()> {
    // SAFETY: a null siginfo means that of kill(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Waits for the child `pidfd` to end and reaps it: its exit code, or 128 + n for signal n, which
/// may be a real-time one.
///
/// # Errors
/// `ECHILD` when it is no child of ours.
pub fn wait_status(pidfd: BorrowedFd) -> nix::Result<i32> {
    loop {
        // SAFETY: all-zero is a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pidfd.as_raw_fd() as libc::id_t;
        // SAFETY: `info` outlives the call.
        match check(unsafe { libc::waitid(libc::P_PIDFD, id, &mut info, libc::WEXITED) }.into()) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => {
                // SAFETY: waitid filled in the fields of a SIGCHLD.
                let status = unsafe { info.si_status() };
                return Ok(if info.si_code == libc::CLD_EXITED { status } else { 128 + status });
            }
        }
    }
}

/// `kill(2)` with any signal number; nix has no type for the real-time ones.
///
/// # Errors
/// Those of `kill(2)`.
pub fn kill(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: takes two numbers and touches no memory.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sets a signal's disposition to its default; an ignored one would stay ignored over an exec.
pub fn reset_signal(signal: i32) {
    // Not by libc, which refuses the signals that it uses itself.
    let default = [0u64; 4];
    // SAFETY: SIG_DFL is 0 and runs no code of ours; no kernel's sigaction is larger than this, and
    // its set has 8 bytes.
    unsafe {
        let none = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>());
    }
}

/// Ends the process at once, without destructors or exit handlers: what a forked child must do.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}
