//! Terminals: pseudo-terminal pairs by ioctl, window sizes, the controlling terminal.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{check, check_fd};

/// Unlocks the pty whose master is `master` and opens its other end by ioctl, never by a path
/// that somebody could have exchanged.
///
/// # Errors
/// `ENOTTY` when `master` is no pty master.
pub fn open_peer(master: impl AsFd) -> nix::Result<OwnedFd> {
    let fd = master.as_fd().as_raw_fd();
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int through the pointer.
    check(unsafe { libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    unsafe { check_fd(libc::ioctl(fd, libc::TIOCGPTPEER, flags).into()) }
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The window size of `tty`.
///
/// # Errors
/// `ENOTTY` when it is no terminal.
pub fn window_size(tty: impl AsFd) -> nix::Result<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a struct winsize.
    check(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the window size of `tty`; the kernel sends `SIGWINCH` to its foreground processes.
///
/// # Errors
/// `ENOTTY` when it is no terminal.
pub fn set_window_size(tty: impl AsFd, size: WindowSize) -> nix::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a struct winsize.
    check(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())
        .map(drop)
}

/// Makes `tty` the controlling terminal of this session.
///
/// # Errors
/// `EPERM` when the caller leads no session.
pub fn make_controlling(tty: impl AsFd) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes a plain number.
    check(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}
