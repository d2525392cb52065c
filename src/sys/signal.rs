//! Signals that `nix` has no type for.

use nix::errno::Errno;

/// kill(2) with any signal number, the realtime ones among them.
pub fn kill(pid: libc::pid_t, signal: libc::c_int) -> nix::Result<()> {
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}
