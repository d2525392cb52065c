//! Both ends of a terminal: one that the test makes for `run -it`, and the console socket by
//! which a runtime hands over the master of a terminal that it made itself.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::PATIENCE;

/// The master side of a terminal.
pub struct Terminal {
    master: File,
    seen: String,
}

impl Terminal {
    /// A new terminal of this size, and its slave side.
    pub fn open(rows: u16, columns: u16) -> (Terminal, OwnedFd) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        // Other tests start programs at the same time: they must not inherit it.
        for fd in [&pair.master, &pair.slave] {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
                .unwrap();
        }
        (Terminal::from(pair.master), pair.slave)
    }

    /// Types something.
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `text` has appeared; returns everything seen so far.
    ///
    /// # Panics
    /// When it does not appear in time or the terminal is closed.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        while !self.seen.contains(text) {
            assert!(start.elapsed() < *PATIENCE, "no {text:?} on the terminal: {:?}", self.seen);
            assert!(self.read_some(), "the terminal closed before {text:?}: {:?}", self.seen);
        }
        self.seen.clone()
    }

    /// Forgets what was seen.
    pub fn clear(&mut self) {
        self.seen.clear();
    }

    /// Reads until the other side has closed it.
    pub fn read_to_end(&mut self) -> String {
        let start = Instant::now();
        while start.elapsed() < *PATIENCE && self.read_some() {}
        self.seen.clone()
    }

    /// False at the end.
    fn read_some(&mut self) -> bool {
        let mut waiting = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(100u8)).unwrap() == 0 {
            super::host().reap_orphans();
            return true;
        }
        let mut buffer = [0; 4096];
        // EIO is how a terminal says that nobody has its slave open any more.
        match self.master.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
        }
    }

    /// The descriptor of the master.
    pub fn fd(&self) -> &File {
        &self.master
    }
}

impl From<OwnedFd> for Terminal {
    fn from(master: OwnedFd) -> Terminal {
        Terminal { master: File::from(master), seen: String::new() }
    }
}

/// What an engine passes as `--console-socket`.
pub struct ConsoleSocket {
    listener: UnixListener,
    /// Where it listens.
    pub path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at a path, which must be shorter than 108 bytes.
    pub fn listen(path: PathBuf) -> ConsoleSocket {
        let listener = UnixListener::bind(&path).unwrap();
        // Also for an ordinary user.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        ConsoleSocket { listener, path }
    }

    /// Takes the terminal that the runtime sent, after it was called.
    #[track_caller]
    pub fn receive(&self) -> Terminal {
        Terminal::from(self.receive_fd())
    }

    /// Takes whatever descriptor the runtime sent.
    #[track_caller]
    pub fn receive_fd(&self) -> OwnedFd {
        self.listener.set_nonblocking(true).unwrap();
        let (connection, _) = self.listener.accept().expect("the runtime connected to the socket");
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(*PATIENCE)).unwrap();
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        recvmsg(&connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        fd.expect("a descriptor came with the message")
    }
}
