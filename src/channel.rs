//! The one channel between the parent (P) and the container's first process (C).
//!
//! ```text
//! P                                            C
//! clone3 ───────────────────────────────────▶  joins what it must; new user namespace: waits
//! id maps written             ── Mapped ────▶  (user namespace) becomes root, mounts …
//! cgroups made                ── Placed ────▶  … waits for this before its cgroup namespace
//! device rules, pid on disk, loopback up       … meanwhile; before Placed if C has hooks
//! (hooks?)                    ◀─ Mounted ───
//! prestart, createRuntime     ── HooksDone ─▶  createContainer hooks, pivot_root, masks, console
//! keeps or passes the pty     ◀─ Console(fd)
//! opens the gate              ◀─ Ready ─────   waits at the gate (`create`), or
//!                             ── Start ─────▶  (`run`, `exec`) goes on; sent before Ready where
//!                                              P has nothing to do in between. With the seccomp
//!                                              filter, which P has compiled meanwhile
//! passes it to the agent      ◀─ Listener(fd)  seccomp filter with SCMP_ACT_NOTIFY is loaded
//!                             ── Delivered ─▶
//! exec has worked             ◀─ (end) ─────   execve closes the socket
//! error                       ◀─ Failed ────   any step, or the exec itself
//! ```
//!
//! A SEQPACKET pair: messages keep their borders, and the end of either side is seen at once.
//! If P dies, C sees the end of the channel at its next step and exits.

use std::borrow::Cow;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::slice::from_ref;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};

use crate::sys;
use crate::sys::descriptor::Fd;

/// The longest text that a message carries, in bytes; longer errors are cut.
const MAX_TEXT: usize = 8 * 1024;

/// The most descriptors that a message carries, as the kernel has it (unix(7), SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// What one side tells the other.
#[derive(Debug)]
pub enum Message {
    /// The id maps are written. With the door to the cgroups of v1, which whoever has become
    /// another user may no longer go through.
    Mapped(Vec<Fd>),
    /// The process is in its cgroup of v2. With the door to the cgroups of v1, if it has not been
    /// through.
    Placed(Vec<Fd>),
    /// All mounts are made; hooks of the runtime may run now.
    Mounted,
    /// They have run.
    HooksDone,
    /// The master side of the container's terminal.
    Console(OwnedFd),
    /// Everything is set up but the program itself.
    Ready,
    /// Execute the program.
    Start {
        /// The signals that the process ignores because the runtime was told to: bit n is signal
        /// n + 1.
        ignored: u64,
        /// The seccomp filter as [`Filter::to_bytes`] has it. Empty if there is none, or if it is longer
        /// than a message; whoever wants it compiles it then.
        ///
        /// [`Filter::to_bytes`]: crate::security::seccomp::Filter::to_bytes
        filter: Vec<u8>,
    },
    /// The seccomp filter's notification descriptor.
    Listener(OwnedFd),
    /// The seccomp agent has it.
    Delivered,
    /// A step failed: the whole error chain, for people.
    Failed(String),
    /// A startContainer hook failed, likewise.
    HookFailed(String),
    /// Something odd that is no error.
    Warning(String),
}

impl Message {
    fn parts(&self) -> (u8, Cow<'_, [u8]>, Vec<RawFd>) {
        let none = Vec::new;
        let all = |door: &[Fd]| door.iter().map(AsRawFd::as_raw_fd).collect();
        let (tag, text, fds): (_, &str, _) = match self {
            Self::Mapped(door) => (1, "", all(door)),
            Self::Placed(door) => (2, "", all(door)),
            Self::Mounted => (3, "", none()),
            Self::HooksDone => (4, "", none()),
            Self::Console(fd) => (5, "", vec![fd.as_raw_fd()]),
            Self::Ready => (6, "", none()),
            Self::Start { ignored, filter } => {
                let ignored = ignored.to_ne_bytes();
                let fits = ignored.len() + filter.len() <= MAX_TEXT;
                let filter = if fits { filter.as_slice() } else { &[] };
                return (7, [&ignored, filter].concat().into(), none());
            }
            Self::Failed(text) => (8, text, none()),
            Self::Warning(text) => (9, text, none()),
            Self::Listener(fd) => (10, "", vec![fd.as_raw_fd()]),
            Self::Delivered => (11, "", none()),
            Self::HookFailed(text) => (12, text, none()),
        };
        (tag, text.as_bytes().into(), fds)
    }

    fn from_parts(tag: u8, text: &[u8], mut fds: Vec<OwnedFd>) -> Result<Self> {
        match tag {
            1 => return Ok(Self::Mapped(fds.into_iter().map(Fd::from).collect())),
            2 => return Ok(Self::Placed(fds.into_iter().map(Fd::from).collect())),
            _ => {}
        }
        // Whoever comes to the gate may be of a version that says nothing.
        let (ignored, filter) = text.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let ignored = u64::from_ne_bytes(*ignored);
        let text = || String::from_utf8_lossy(text).into_owned();
        let fd = fds.pop();
        ensure!(fds.is_empty(), "channel: message {tag} makes no sense");
        Ok(match (tag, fd) {
            (3, None) => Self::Mounted,
            (4, None) => Self::HooksDone,
            (5, Some(fd)) => Self::Console(fd),
            (6, None) => Self::Ready,
            (7, None) => Self::Start { ignored, filter: filter.to_vec() },
            (8, None) => Self::Failed(text()),
            (9, None) => Self::Warning(text()),
            (10, Some(fd)) => Self::Listener(fd),
            (11, None) => Self::Delivered,
            (12, None) => Self::HookFailed(text()),
            (tag, _) => bail!("channel: message {tag} makes no sense"),
        })
    }
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends of a new channel.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn pair() -> Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context("make the channel to the container's init (socketpair)")?;
        Ok((Self(a), Self(b)))
    }

    /// A channel over a connected SEQPACKET socket.
    pub fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The same end once more, for another thread.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).context("duplicate the channel")
    }

    /// Sends `message`.
    ///
    /// # Errors
    /// `EPIPE` when the other side is gone.
    pub fn send(&self, message: &Message) -> Result<()> {
        let (tag, text, fds) = message.parts();
        let text = &text[..text.len().min(MAX_TEXT)];
        let data = [IoSlice::new(from_ref(&tag)), IoSlice::new(text)];
        let rights = (!fds.is_empty()).then(|| ControlMessage::ScmRights(&fds));
        loop {
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.0.as_raw_fd(), &data, rights.as_slice(), flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    // Once the container's seccomp filter is loaded that call may be forbidden;
                    // hardly any filter forbids this one.
                    let whole = [from_ref(&tag), text].concat();
                    let forbidden = fds.is_empty() && errno != Errno::EPIPE;
                    if forbidden && nix::unistd::write(&self.0, &whole).is_ok() {
                        return Ok(());
                    }
                    return Err(errno).context("channel: send");
                }
            }
        }
    }

    /// The next message, or none when the other side has closed its end.
    ///
    /// # Errors
    /// For a message that makes no sense.
    pub fn receive(&self) -> Result<Option<Message>> {
        let mut tag = [0u8];
        let mut text = [0u8; MAX_TEXT];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, fds) = {
            let mut data = [IoSliceMut::new(&mut tag), IoSliceMut::new(&mut text)];
            let received = loop {
                let fd = self.0.as_raw_fd();
                match recvmsg::<UnixAddr>(fd, &mut data, Some(&mut space), flags) {
                    // Told once, of a side that died with a message of ours unread; what it said
                    // before is still there.
                    Err(Errno::EINTR | Errno::ECONNRESET) => {}
                    other => break other.context("channel: receive")?,
                }
            };
            let rights = received.cmsgs().context("channel: descriptors")?.flat_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            });
            (received.bytes, rights.map(sys::fs::received).collect())
        };
        match length {
            0 => Ok(None),
            length => Message::from_parts(tag[0], &text[..length - 1], fds).map(Some),
        }
    }

    /// As [`Channel::receive`], for a message that must come.
    ///
    /// # Errors
    /// Also when the other side is gone.
    pub fn next(&self) -> Result<Message> {
        self.receive()?.context("channel: the runtime ended while setting up the container")
    }

    /// Waits for exactly `expected`, a message that says no more than its kind.
    ///
    /// # Errors
    /// Also when something else comes.
    pub fn expect(&self, expected: &Message) -> Result<()> {
        let message = self.next()?;
        let same = message.parts().0 == expected.parts().0;
        ensure!(same, "channel: expected {expected:?}, got {message:?}");
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Failed("no such thing".into())).unwrap();
        let filter = vec![3; 100];
        a.send(&Message::Start { ignored: 1 << 63 | 5, filter }).unwrap();
        let filter = vec![3; MAX_TEXT];
        a.send(&Message::Start { ignored: 6, filter }).unwrap();
        a.send(&Message::HooksDone).unwrap();
        assert!(matches!(b.receive().unwrap(), Some(Message::Failed(t)) if t == "no such thing"));
        let start = b.receive().unwrap();
        assert!(matches!(start, Some(Message::Start { ignored, filter })
            if ignored == 1 << 63 | 5 && filter == [3; 100]));
        let start = b.receive().unwrap();
        assert!(matches!(start, Some(Message::Start { ignored: 6, filter }) if filter.is_empty()));
        b.expect(&Message::HooksDone).unwrap();
        drop(a);
        assert!(b.receive().unwrap().is_none());
    }

    #[test]
    fn the_last_words_of_who_did_not_listen_arrive() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::HooksDone).unwrap();
        b.send(&Message::Failed("no such thing".into())).unwrap();
        drop(b);
        assert!(matches!(a.receive().unwrap(), Some(Message::Failed(t)) if t == "no such thing"));
        assert!(a.receive().unwrap().is_none());
    }

    #[test]
    fn descriptors_travel() {
        let (a, b) = Channel::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        a.send(&Message::Console(file.try_clone().unwrap().into())).unwrap();
        assert!(matches!(b.receive().unwrap(), Some(Message::Console(_))));
        let door = [file.try_clone().unwrap(), file].map(|file| OwnedFd::from(file).into());
        a.send(&Message::Placed(door.into())).unwrap();
        assert!(matches!(b.receive().unwrap(), Some(Message::Placed(door)) if door.len() == 2));
    }

    #[test]
    fn long_texts_are_cut_not_lost() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Failed("x".repeat(MAX_TEXT + 1))).unwrap();
        assert!(matches!(b.receive().unwrap(), Some(Message::Failed(t)) if t.len() == MAX_TEXT));
    }
}
