//! A seccomp agent as runtimes know it: it listens, gets the descriptor of a filter and answers
//! the calls that the filter hands over.
#![allow(unsafe_code)]

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc::{seccomp_notif, seccomp_notif_resp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use super::PATIENCE;

nix::ioctl_readwrite!(notif_recv, b'!', 0, seccomp_notif);
nix::ioctl_readwrite!(notif_send, b'!', 1, seccomp_notif_resp);
nix::ioctl_write_ptr!(notif_id_valid, b'!', 2, u64);

/// Waits for runtimes.
pub struct Agent {
    listener: UnixListener,
    /// Where.
    pub path: PathBuf,
}

impl Agent {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> Agent {
        Agent { listener: UnixListener::bind(path).unwrap(), path: path.to_owned() }
    }

    /// The next connection.
    #[track_caller]
    pub fn connection(&self) -> UnixStream {
        wait_for(&self.listener);
        self.listener.accept().unwrap().0
    }

    /// The next filter, with all that the connection brings up to its end.
    #[track_caller]
    pub fn accept(&self) -> Supervised {
        let mut connection = self.connection();
        connection.set_read_timeout(Some(*PATIENCE)).unwrap();
        let mut text = vec![0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(&connection, &mut parts, &mut control, flags).unwrap().bytes;
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        assert_eq!(fds.len(), 1, "one descriptor with the first part of the state");
        text.truncate(length);
        connection.read_to_end(&mut text).expect("the runtime closes the connection");
        let state = serde_json::from_slice(&text).expect("one JSON document a connection");
        Supervised { state, descriptor: fds.remove(0) }
    }
}

#[track_caller]
fn wait_for(fd: &impl AsFd) {
    let mut waiting = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(*PATIENCE).unwrap();
    assert_eq!(poll(&mut waiting, timeout).unwrap(), 1, "the agent waited in vain");
}

/// What a process is told instead of its call being made.
pub enum Answer {
    /// The call returns this.
    Value(i64),
    /// The call fails with this.
    Errno(i32),
    /// The call is made after all.
    Continue,
}

/// A filter under the agent's supervision.
pub struct Supervised {
    /// The container process state.
    pub state: Value,
    descriptor: OwnedFd,
}

impl Supervised {
    /// The next call that waits for an answer; none when no process has the filter any more.
    #[track_caller]
    pub fn next(&self) -> Option<seccomp_notif> {
        loop {
            let mut waiting = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(*PATIENCE).unwrap();
            assert_eq!(poll(&mut waiting, timeout).unwrap(), 1, "the agent waited in vain");
            let events = waiting[0].revents().unwrap();
            if !events.contains(PollFlags::POLLIN) {
                return None;
            }
            // SAFETY: all-zero is valid, and what the kernel asks for.
            let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one `seccomp_notif`.
            match unsafe { notif_recv(self.descriptor.as_raw_fd(), &mut call) } {
                Ok(_) => return Some(call),
                // It was interrupted or killed meanwhile.
                Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINTR) => {}
                Err(errno) => panic!("SECCOMP_IOCTL_NOTIF_RECV: {errno}"),
            }
        }
    }

    /// Whether the call still waits.
    pub fn waits(&self, call: &seccomp_notif) -> bool {
        // SAFETY: the kernel reads one number.
        unsafe { notif_id_valid(self.descriptor.as_raw_fd(), &call.id) }.is_ok()
    }

    /// Answers it. A process that is gone does not care.
    pub fn answer(&self, call: &seccomp_notif, answer: Answer) {
        let (val, error, flags) = match answer {
            Answer::Value(value) => (value, 0, 0),
            Answer::Errno(errno) => (0, -errno, 0),
            Answer::Continue => (0, 0, nix::libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let mut response = seccomp_notif_resp { id: call.id, val, error, flags };
        // SAFETY: the kernel reads one `seccomp_notif_resp`.
        match unsafe { notif_send(self.descriptor.as_raw_fd(), &mut response) } {
            Ok(_) | Err(nix::errno::Errno::ENOENT) => {}
            Err(errno) => panic!("SECCOMP_IOCTL_NOTIF_SEND: {errno}"),
        }
    }

    /// Lets all calls be made until the processes have ended; returns their numbers.
    pub fn let_all_pass(&self) -> Vec<i32> {
        let mut seen = Vec::new();
        while let Some(call) = self.next() {
            seen.push(call.data.nr);
            self.answer(&call, Answer::Continue);
        }
        seen
    }
}
