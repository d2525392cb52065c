//! News of a container that runs out of memory.

use super::Cgroup;
use super::node::Node;
use crate::sys::descriptor::Fd;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// A source of events to poll, each being one time that the OOM killer came.
pub struct OomEvents(Source);

enum Source {
    /// An eventfd that the kernel counts up (kernel: admin-guide/cgroup-v1/memory.rst, "OOM
    /// Control"), and the cgroup's directory.
    V1(EventFd, PathBuf),
    /// `memory.events`, which the kernel signals when it changes, and how many there were.
    V2(Fd, u64),
    /// The cgroup is gone.
    Over,
}

impl Cgroup {
    /// Watches for events from now on; none where memory isn't controlled.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn oom_events(&self) -> Result<Option<OomEvents>> {
        if let Some(node) = self.v1_node("memory") {
            return v1_source(&node).map(OomEvents).map(Some);
        }
        let Some(node) = self.unified() else { return Ok(None) };
        let step = || format!("cannot watch {}/memory.events", node.path());
        let file = match node.open("memory.events", OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.with_context(step)?,
        };
        let count = kills(&file).with_context(step)?;
        Ok(Some(OomEvents(Source::V2(file, count))))
    }
}

fn v1_source(node: &Node) -> Result<Source> {
    let step = || format!("cannot watch {}/memory.oom_control", node.path());
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let event = EventFd::from_flags(flags).with_context(step)?;
    let control = node.open("memory.oom_control", OFlag::O_RDONLY).with_context(step)?;
    let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    node.write("cgroup.event_control", &line).with_context(step)?;
    Ok(Source::V1(event, node.path().into()))
}

impl OomEvents {
    /// What to poll; none when there will be no more.
    pub fn poll_fd(&self) -> Option<PollFd<'_>> {
        match &self.0 {
            Source::V1(event, _) => Some(PollFd::new(event.as_fd(), PollFlags::POLLIN)),
            Source::V2(file, _) => Some(PollFd::new(file.as_fd(), PollFlags::POLLPRI)),
            Source::Over => None,
        }
    }

    /// How many events there were since the last call.
    ///
    /// # Errors
    /// When the source can't be read.
    pub fn take(&mut self) -> Result<u64> {
        match &mut self.0 {
            Source::V1(event, directory) => {
                let count = match event.read() {
                    Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
                    count => count.context("read the number of OOM events")?,
                };
                // The removal of the cgroup counts as one.
                let gone = !directory.exists();
                if gone {
                    self.0 = Source::Over;
                }
                Ok(count - u64::from(gone))
            }
            Source::V2(file, seen) => match kills(file) {
                Err(Errno::ENODEV) => {
                    self.0 = Source::Over;
                    Ok(0)
                }
                now => {
                    let now = now.context("read memory.events")?;
                    Ok(now.saturating_sub(std::mem::replace(seen, now)))
                }
            },
            Source::Over => Ok(0),
        }
    }
}

/// Processes killed in the cgroup and below for want of memory. Reading it arms the next signal.
fn kills(file: &Fd) -> nix::Result<u64> {
    let mut buffer = [0u8; 1024];
    let count = nix::sys::uio::pread(file, &mut buffer, 0)?;
    let text = String::from_utf8_lossy(&buffer[..count]);
    let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(kills.and_then(|kills| kills.parse().ok()).unwrap_or(0))
}
