//! Terminals on the caller's side: handing the container's over, or being one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{isatty, read, write};

use crate::sys;
use crate::sys::fs::standard_stream;

/// Connects to the engine's socket at `path`, which `flag` named, and passes it a descriptor, as
/// runc's console-socket protocol has it: one message with a name and the one descriptor.
///
/// # Errors
/// When nobody listens there.
pub fn hand_over(flag: &str, path: &Path, name: &[u8], fd: &OwnedFd) -> Result<()> {
    let context = || format!("{flag} {}", path.display());
    let stream = std::os::unix::net::UnixStream::connect(path).with_context(context)?;
    let data = [std::io::IoSlice::new(name)];
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .with_context(context)?;
    Ok(())
}

/// The settings of the caller's terminal, for the panic hook, which has no other way to them.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// The caller's terminal in raw mode: every key goes to the container. Restored when dropped,
/// and by the panic hook.
pub struct RawMode(());

impl RawMode {
    /// Makes standard input raw if it is a terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> Result<Option<Self>> {
        let tty = standard_stream(0);
        if !isatty(tty).unwrap_or(false) {
            return Ok(None);
        }
        let saved = tcgetattr(tty).context("read the settings of the terminal")?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        if let Ok(mut slot) = SAVED.lock() {
            *slot = Some(saved);
        }
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        tcsetattr(tty, SetArg::TCSANOW, &raw).context("put the terminal into raw mode")?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = SAVED.lock().ok().and_then(|mut slot| slot.take());
    if let Some(saved) = saved {
        let _ = tcsetattr(standard_stream(0), SetArg::TCSANOW, &saved);
    }
}

/// Gives the container's terminal the size of the caller's, if that is one.
pub fn copy_window_size(master: &OwnedFd) {
    for number in 0..3 {
        if let Ok(size) = sys::tty::window_size(standard_stream(number)) {
            let _ = sys::tty::set_window_size(master, size);
            return;
        }
    }
}

/// Carries bytes between standard input and output and the container's terminal.
pub struct Relay {
    master: OwnedFd,
    /// Typed, but not taken by the container yet.
    pending: Vec<u8>,
    input_open: bool,
}

impl Relay {
    /// A relay for the terminal whose master side is `master`.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn new(master: OwnedFd) -> Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("unblock the terminal")?;
        Ok(Self { master, pending: Vec::new(), input_open: true })
    }

    /// The master side.
    pub fn master(&self) -> &OwnedFd {
        &self.master
    }

    /// Whether to wait for input of the caller.
    pub fn wants_input(&self) -> bool {
        self.input_open && self.pending.is_empty()
    }

    /// Whether to wait until the container takes more.
    pub fn wants_output(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes what the caller has typed.
    pub fn read_input(&mut self) {
        let mut buffer = [0; 4096];
        match read(standard_stream(0), &mut buffer) {
            Ok(0) => self.input_open = false,
            Ok(length) => {
                self.pending.extend_from_slice(&buffer[..length]);
                self.write_pending();
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.input_open = false,
        }
    }

    /// Gives the container what it takes now.
    pub fn write_pending(&mut self) {
        match write(&self.master, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.pending.clear(),
        }
    }

    /// Shows what the container has written; false at its end.
    pub fn copy_output(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match read(&self.master, &mut buffer) {
            Ok(0) => false,
            Ok(length) => write_all(standard_stream(1), &buffer[..length]),
            Err(Errno::EINTR) => true,
            // EIO: nobody has the other side open any more. EAGAIN: nothing left for now.
            Err(_) => false,
        }
    }
}

fn write_all(to: BorrowedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match write(to.as_fd(), bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [nix::poll::PollFd::new(to, nix::poll::PollFlags::POLLOUT)];
                let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE);
            }
            Err(_) => return false,
        }
    }
    true
}
