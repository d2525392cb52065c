//! Standing in front of a container's process: terminal, signals, exit status.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::console::{RawMode, Relay, copy_window_size};
use crate::notify::Notify;
use crate::sys;
use crate::sys::fs::standard_stream;

/// Signals that wait until [`wait`] takes them. Made before the process is, so that none is lost
/// in between.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks every signal that can be forwarded.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn block() -> Result<Self> {
        let mut set = sys::process::all_signals();
        // Faults of our own are not the container's business.
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTRAP,
            Signal::SIGSYS,
        ] {
            set.remove(fault);
        }
        set.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags).context("take signals")?))
    }
}

/// Waits until the child `pidfd` ends, forwarding signals to it, relaying its terminal if it has
/// one, and passing on that it is ready if somebody wants to know; returns its exit status, 128 + n for signal n.
///
/// # Errors
/// When waiting itself fails.
pub fn wait(
    pidfd: &OwnedFd,
    signals: &Signals,
    console: Option<OwnedFd>,
    mut notify: Option<Notify>,
) -> Result<i32> {
    let mut relay = console.map(Relay::new).transpose()?;
    let raw = match &relay {
        Some(_) => RawMode::enter()?,
        None => None,
    };
    loop {
        let events = next_events(pidfd, signals, relay.as_ref(), notify.as_ref())?;
        if events.notified && notify.as_ref().is_some_and(|notify| notify.pass_on().unwrap_or(true))
        {
            notify = None;
        }
        if events.signal {
            forward(pidfd, signals, relay.as_ref())?;
        }
        if let Some(relay) = &mut relay {
            if events.input {
                relay.read_input();
            }
            if events.writable {
                relay.write_pending();
            }
            if events.output && !events.ended {
                relay.copy_output();
            }
        }
        if events.ended {
            break;
        }
    }
    if let Some(relay) = &mut relay {
        // What was written just before the end.
        while relay.copy_output() {}
    }
    drop(raw);
    exit_status(pidfd)
}

#[derive(Default)]
struct Events {
    ended: bool,
    signal: bool,
    input: bool,
    output: bool,
    writable: bool,
    notified: bool,
}

fn next_events(
    pidfd: &OwnedFd,
    signals: &Signals,
    relay: Option<&Relay>,
    notify: Option<&Notify>,
) -> Result<Events> {
    let input = PollFlags::POLLIN;
    let mut fds = vec![PollFd::new(pidfd.as_fd(), input), PollFd::new(signals.0.as_fd(), input)];
    let mut add = |fd, flags| {
        fds.push(PollFd::new(fd, flags));
        Some(fds.len() - 1)
    };
    let notified = notify.and_then(|notify| add(notify.as_fd(), input));
    let terminal = relay.and_then(|relay| {
        let output = if relay.wants_output() { PollFlags::POLLOUT } else { PollFlags::empty() };
        add(relay.master().as_fd(), input | output)
    });
    let typed = relay.filter(|relay| relay.wants_input());
    let typed = typed.and_then(|_| add(standard_stream(0), input));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno).context("wait for the container"),
    }
    let any = |index: Option<usize>| {
        index.and_then(|index| fds[index].revents()).unwrap_or(PollFlags::empty())
    };
    let ended = any(Some(0));
    let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    // While nobody in the container has the terminal open, poll reports a hang-up for ever; the
    // first program may just not have opened it yet.
    if any(terminal) == PollFlags::POLLHUP && !ended.intersects(readable) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(Events {
        ended: ended.intersects(readable),
        signal: any(Some(1)).intersects(readable),
        output: any(terminal).intersects(readable),
        writable: any(terminal).contains(PollFlags::POLLOUT),
        input: any(typed).intersects(readable),
        notified: any(notified).intersects(readable),
    })
}

fn forward(pidfd: &OwnedFd, signals: &Signals, relay: Option<&Relay>) -> Result<()> {
    while let Some(info) = signals.0.read_signal().context("read a signal")? {
        let number = info.ssi_signo as i32;
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) => reap_orphans(pidfd),
            // A runtime of Go or a debugger sends these to itself.
            Ok(Signal::SIGURG | Signal::SIGPIPE) => {}
            Ok(Signal::SIGWINCH) if relay.is_some() => {
                if let Some(relay) = relay {
                    copy_window_size(relay.master());
                }
            }
            _ => {
                // It may just have ended.
                let _ = sys::clone::pidfd_send_signal(pidfd.as_fd(), number);
            }
        }
    }
    Ok(())
}

/// As a subreaper this process inherits the container's daemons; their statuses interest nobody.
fn reap_orphans(pidfd: &OwnedFd) {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(pid) = waitid(Id::All, peek).ok().and_then(|status| status.pid()) {
        // The container's own process is left to exit_status.
        if waitid(Id::PIDFd(pidfd.as_fd()), peek).is_ok_and(|own| own.pid() == Some(pid)) {
            return;
        }
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
}

/// Reaps the child `pidfd`, waiting for its end if need be.
///
/// # Errors
/// When it is no child of ours.
pub fn exit_status(pidfd: &OwnedFd) -> Result<i32> {
    sys::clone::wait_status(pidfd.as_fd()).context("wait for the container's process")
}
