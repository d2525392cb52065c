//! What passes between a container's monitor and those who look at it: packets of a byte that says
//! what it is, and data.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv,
    send, socket, socketpair,
};
use nix::sys::stat::Mode;
use ultari::sys::tty::WindowSize;

/// The most data in a packet, in bytes.
pub const MAX_DATA: usize = 16 * 1024;

/// The socket's name in [`crate::paths::Paths::container_run`].
const SOCKET: &str = "attach";

/// What a packet is: from a client what it wants, and the size of its terminal …
pub const ATTACH: u8 = b'A';
/// … bytes for the program's input …
pub const INPUT: u8 = b'I';
/// … their end …
pub const END_OF_INPUT: u8 = b'E';
/// … the size of the client's terminal …
pub const SIZE: u8 = b'W';
/// … look at the record: somebody stopped the container while it waits for a restart.
pub const LOOK: u8 = b'L';
/// From the monitor: output …
pub const STDOUT: u8 = b'1';
/// … output of the other kind …
pub const STDERR: u8 = b'2';
/// … the program's exit status, four bytes; the last packet.
pub const EXIT: u8 = b'X';

/// What a client wants of [`ATTACH`]: to write input.
pub const WANTS_INPUT: u8 = 1;
/// To see output.
pub const WANTS_OUTPUT: u8 = 2;

/// One end of a connection.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Over a socket that is there already.
    #[must_use]
    pub fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Two ends.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn pair() -> Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context("make a pair of sockets")?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to the monitor whose folder is `run`; none if nobody listens.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn to(run: &Path) -> Result<Option<Self>> {
        let Ok(folder) = open_folder(run) else { return Ok(None) };
        let own = new_socket()?;
        match connect(own.as_raw_fd(), &address(&folder)?) {
            Ok(()) => Ok(Some(Self(own))),
            Err(_) => Ok(None),
        }
    }

    /// Sends a packet; waits, unless the socket was made not to.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn send(&self, what: u8, data: &[u8]) -> nix::Result<()> {
        let mut packet = [0; MAX_DATA + 1];
        let length = data.len().min(MAX_DATA);
        packet[0] = what;
        packet[1..=length].copy_from_slice(&data[..length]);
        loop {
            match send(self.0.as_raw_fd(), &packet[..=length], MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Says what this client wants (`WANTS_…`), and the size of its terminal.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn attach(&self, wants: u8, size: Option<WindowSize>) -> nix::Result<()> {
        let [a, b, c, d] = size_bytes(size.unwrap_or(WindowSize { rows: 0, columns: 0 }));
        self.send(ATTACH, &[wants, a, b, c, d])
    }

    /// Sends the size of a terminal.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn send_size(&self, size: WindowSize) -> nix::Result<()> {
        self.send(SIZE, &size_bytes(size))
    }

    /// Takes a packet into `buffer`; none when the other side is gone.
    ///
    /// # Errors
    /// Those of recv(2).
    pub fn receive<'a>(
        &self,
        buffer: &'a mut [u8; MAX_DATA + 1],
    ) -> nix::Result<Option<(u8, &'a [u8])>> {
        let length = loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        Ok(buffer[..length].split_first().map(|(what, data)| (*what, data)))
    }

    /// Makes [`Self::send`] and [`Self::receive`] fail with `EAGAIN` instead of waiting.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn unblock(&self) -> Result<()> {
        unblock(&self.0)
    }

    /// The socket itself.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes reads and writes of `fd` fail with `EAGAIN` instead of waiting.
///
/// # Errors
/// Those of fcntl(2).
pub fn unblock(fd: impl AsFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .context("make a descriptor non-blocking")
}

fn size_bytes(size: WindowSize) -> [u8; 4] {
    let [a, b] = size.rows.to_le_bytes();
    let [c, d] = size.columns.to_le_bytes();
    [a, b, c, d]
}

/// Reads what [`Connection::send_size`] sends; none for no size.
#[must_use]
pub fn parse_size(data: &[u8]) -> Option<WindowSize> {
    let [a, b, c, d] = *data else { return None };
    let size = WindowSize { rows: u16::from_le_bytes([a, b]), columns: u16::from_le_bytes([c, d]) };
    (size.rows > 0 && size.columns > 0).then_some(size)
}

/// The socket by which clients come, in the folder `run`.
///
/// # Errors
/// When it can't be made.
pub fn listen_in(run: &Path) -> Result<OwnedFd> {
    let context = || format!("listen in {}", run.display());
    let folder = open_folder(run).with_context(context)?;
    let own = new_socket()?;
    // A killed monitor's.
    let _ = std::fs::remove_file(run.join(SOCKET));
    bind(own.as_raw_fd(), &address(&folder)?).with_context(context)?;
    listen(&own, Backlog::new(16).with_context(context)?).with_context(context)?;
    unblock(&own)?;
    Ok(own)
}

/// The next client, if one is there.
#[must_use]
pub fn accept(listener: &OwnedFd) -> Option<Connection> {
    let connection = Connection(ultari::sys::fs::accept(listener.as_raw_fd()).ok()?);
    connection.unblock().ok()?;
    Some(connection)
}

fn new_socket() -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .context("make a socket")
}

fn open_folder(run: &Path) -> nix::Result<OwnedFd> {
    open(run, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// By descriptor: a socket's path is limited to 108 bytes.
fn address(folder: &OwnedFd) -> Result<UnixAddr> {
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    UnixAddr::new(path.as_str()).context("address of the socket")
}
