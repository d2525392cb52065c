//! Handing the notification descriptor to the seccomp agent (runtime-spec config-linux.md, "The
//! Container Process State").
//!
//! ```text
//! agent        P (`run`, `start`, `exec`)           C
//!   ◀─ connect ─  before it says Start
//!                               ── Start ────────▶  a second thread; the first loads the filter
//!                               ◀─ Listener(fd) ─   the second, which the filter does not bind
//!   ◀─ state + fd
//!                               ── Delivered ────▶  the first goes on to the exec
//! ```
//!
//! From the moment when the filter is loaded any system call of its thread may be refused, be
//! fatal, or wait for an agent that does not have the descriptor yet. So the thread that loads it
//! makes none: it leaves the descriptor's number in memory and spins until a second thread, whose
//! calls no filter sees, has passed it on. The exec ends that thread. A process in its place would
//! be a child of the container's program, which nobody reaps.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action};
use serde_json::{Value, json};

use crate::channel::{Channel, Message};
use crate::spec::Seccomp;
use crate::sys;

/// How long an agent may take to make room for one more connection or message, in seconds.
const PATIENCE: i64 = 10;

/// The agent that answers SCMP_ACT_NOTIFY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// `linux.seccomp.listenerPath`: a Unix socket.
    pub path: PathBuf,
    /// `linux.seccomp.listenerMetadata`, passed on as it is.
    pub metadata: Option<String>,
}

impl Listener {
    /// The agent that a profile asks for; none if no rule has SCMP_ACT_NOTIFY or no path is set.
    pub fn of(seccomp: &LinuxSeccomp) -> Option<Self> {
        let rules = seccomp.syscalls().iter().flatten();
        let notifies = seccomp.default_action() == Action::ScmpActNotify
            || rules.into_iter().any(|rule| rule.action() == Action::ScmpActNotify);
        let path = seccomp.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
        let metadata = seccomp.listener_metadata().clone();
        path.filter(|_| notifies).map(|path| Self { path, metadata })
    }

    /// That of the profile of a config.json, if there is one, which is only read if need be.
    ///
    /// # Errors
    /// Names the property that does not fit.
    pub fn wanted(seccomp: Option<&Seccomp>) -> Result<Option<Self>> {
        match seccomp.filter(|seccomp| seccomp.may_notify()) {
            Some(seccomp) => Ok(Self::of(seccomp.profile()?)),
            None => Ok(None),
        }
    }

    /// Connects to the agent, for one process. `state` is the container's state, `pid` the process
    /// that will load the filter, as this process sees it.
    ///
    /// # Errors
    /// Names the property when nobody listens there.
    pub fn connect(&self, state: Value, pid: i32) -> Result<Connection> {
        let mut report = json!({
            "ociVersion": state["ociVersion"],
            "fds": ["seccompFd"],
            "pid": pid,
            "state": state,
        });
        if let Some(metadata) = &self.metadata {
            report["metadata"] = json!(metadata);
        }
        let socket = self.try_connect().with_context(|| {
            format!(
                "linux.seccomp.listenerPath: connect to {} (does the seccomp agent listen there, \
                 on a stream socket?)",
                self.path.display()
            )
        })?;
        Ok(Connection { socket, path: self.path.clone(), report: report.to_string() })
    }

    fn try_connect(&self) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // An agent that hangs must not hang everybody.
        setsockopt(&stream, SendTimeout, &TimeVal::seconds(PATIENCE))?;
        // By a descriptor: paths may be longer than an address has room for.
        let file = sys::fs::open_path(&self.path, OFlag::empty())?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        connect(stream.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        Ok(stream)
    }
}

/// A connection to the agent, good for one process.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    path: PathBuf,
    report: String,
}

impl Connection {
    /// Sends the container process state with the notification descriptor and hangs up.
    ///
    /// # Errors
    /// Names the property when the agent has gone or does not read.
    pub fn send(self, descriptor: &OwnedFd) -> Result<()> {
        let context = || {
            format!(
                "linux.seccomp.listenerPath: send the container process state to {}",
                self.path.display()
            )
        };
        let mut rest = self.report.as_bytes();
        let fds = [descriptor.as_raw_fd()];
        // The descriptor comes with the first part.
        let mut rights = vec![ControlMessage::ScmRights(&fds)];
        while !rest.is_empty() {
            let data = [std::io::IoSlice::new(rest)];
            let fd = self.socket.as_raw_fd();
            match sendmsg::<UnixAddr>(fd, &data, &rights, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).with_context(context),
            }
            rights.clear();
        }
        Ok(())
    }
}

/// The notification descriptor, once the filter is loaded. Never dropped: that would be a call.
static DESCRIPTOR: OnceLock<OwnedFd> = OnceLock::new();
/// The agent has it.
static DELIVERED: AtomicBool = AtomicBool::new(false);

/// The thread that passes the notification descriptor on to the parent.
pub struct Courier(());

impl Courier {
    /// Starts it, before the filter is loaded. Once a process.
    ///
    /// # Errors
    /// When there may be no more threads.
    pub fn start(channel: &Channel) -> Result<Self> {
        let channel = channel.try_clone()?;
        // The kernel's least stack for a thread is 16 KiB; messages take 8.
        let thread = std::thread::Builder::new().stack_size(128 * 1024);
        thread.spawn(move || deliver(&channel)).context(
            "linux.seccomp.listenerPath: start the thread that passes the notification descriptor \
             on (do linux.resources.pids.limit and RLIMIT_NPROC leave room for one?)",
        )?;
        Ok(Self(()))
    }

    /// Waits until the agent has the descriptor. Makes no system call.
    pub fn pass(self, descriptor: OwnedFd) {
        // Nobody waits in it, so that nobody has to be woken.
        let _ = DESCRIPTOR.set(descriptor);
        while !DELIVERED.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
    }
}

fn deliver(channel: &Channel) {
    let descriptor = loop {
        match DESCRIPTOR.get() {
            Some(descriptor) => break descriptor.try_clone(),
            None => std::thread::sleep(Duration::from_micros(20)),
        }
    };
    let delivered = descriptor
        .context("duplicate the notification descriptor")
        .and_then(|descriptor| channel.send(&Message::Listener(descriptor)))
        .and_then(|()| channel.expect(&Message::Delivered));
    match delivered {
        Ok(()) => {
            DELIVERED.store(true, Ordering::Release);
            // Until the exec: a thread that ends frees memory, and the other would wait for the heap
            // by a call.
            loop {
                std::thread::park();
            }
        }
        // The parent is gone or has failed, and says so itself. The other thread may not even be
        // able to exit.
        Err(_) => sys::clone::exit_now(1),
    }
}
