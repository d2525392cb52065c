//! In front of a container: the caller's terminal and streams, its signals, and the exit status.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{isatty, read, write};
use ultari::console::RawMode;
use ultari::sys::fs::standard_stream;
use ultari::sys::tty::{WindowSize, window_size};

use super::monitor::protocol::{Connection, END_OF_INPUT, EXIT, INPUT, MAX_DATA, STDERR, STDOUT};
use super::{Container, lifecycle};

/// How the caller is attached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Standard input goes to the program.
    pub input: bool,
    /// The container has a terminal.
    pub terminal: bool,
    /// Leaves the container when typed.
    pub detach_keys: Vec<u8>,
    /// Its output and its errors are shown.
    pub shown: [bool; 2],
    /// Signals go to the program.
    pub signals: bool,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program's exit status.
    Exited(i32),
    /// The user typed the keys: the program goes on.
    Detached,
}

/// Docker's keys.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// Signals that a terminal, or somebody, sends to the client and means for the program.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks them, before the program can have started.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGQUIT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
            Signal::SIGCONT,
        ] {
            set.add(signal);
        }
        set.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags).context("take signals")?))
    }
}

impl Signals {
    /// Passes all that have come to a process.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn forward(&self, pidfd: &OwnedFd) -> Result<()> {
        while let Some(info) = self.0.read_signal().context("read a signal")? {
            let number = info.ssi_signo as i32;
            if !matches!(number, libc::SIGWINCH | libc::SIGCONT) {
                // It may just have ended.
                let _ = ultari::sys::clone::pidfd_send_signal(pidfd.as_fd(), number);
            }
        }
        Ok(())
    }

    /// Ends this process as a signal that came would have, had it not been taken.
    pub fn end(&self) -> Result<()> {
        while let Some(info) = self.0.read_signal().context("read a signal")? {
            let number = info.ssi_signo as i32;
            if !matches!(number, libc::SIGWINCH | libc::SIGCONT) {
                std::process::exit(128 + number);
            }
        }
        Ok(())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The size of the caller's terminal, if it has one.
#[must_use]
pub fn own_size() -> Option<WindowSize> {
    (0..3).find_map(|number| window_size(standard_stream(number)).ok())
}

/// Refuses `-t` where standard input is none, in docker's words.
///
/// # Errors
/// When it isn't.
pub fn check_terminal(input: bool, terminal: bool) -> Result<()> {
    if input && terminal && !isatty(standard_stream(0)).unwrap_or(false) {
        bail!("the input device is not a TTY");
    }
    Ok(())
}

/// Finds the keys in what is typed. The first of them are held back until it is certain that the
/// others don't follow.
#[derive(Debug)]
struct Keys {
    wanted: Vec<u8>,
    matched: usize,
}

impl Keys {
    /// What is to be passed on, and whether the keys were typed.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.wanted.is_empty() {
                passed.push(*byte);
                continue;
            }
            if *byte == self.wanted[self.matched] {
                self.matched += 1;
                if self.matched == self.wanted.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.wanted[..self.matched]);
            self.matched = 0;
            match *byte == self.wanted[0] {
                true => self.matched = 1,
                false => passed.push(*byte),
            }
        }
        (passed, false)
    }
}

/// Copies between the caller and the container until either ends.
///
/// # Errors
/// When the container's monitor is gone, or the caller's output can't be written.
pub fn run(
    container: &Container,
    monitor: &Connection,
    signals: &Signals,
    options: &Options,
) -> Result<Outcome> {
    let _raw = match options.terminal && options.input {
        true => RawMode::enter()?,
        false => None,
    };
    // Whoever waits until input is taken, and takes no output meanwhile, may wait for ever.
    monitor.unblock()?;
    let mut session = Session {
        container,
        monitor,
        pending: VecDeque::new(),
        keys: Keys {
            wanted: if options.terminal { options.detach_keys.clone() } else { Vec::new() },
            matched: 0,
        },
        input: options.input,
        terminal: options.terminal,
        shown: options.shown,
        output: None,
        signals: options.signals,
    };
    loop {
        let ready = session.wait(signals)?;
        session.send_pending();
        if ready.signals {
            session.pass_signals(signals)?;
        }
        if ready.input && session.pass_input()? {
            return Ok(Outcome::Detached);
        }
        if ready.output {
            session.show()?;
        } else if ready.monitor
            && session.output.is_none()
            && let Some(status) = session.hear()?
        {
            return Ok(Outcome::Exited(status));
        }
    }
}

struct Session<'a> {
    container: &'a Container,
    monitor: &'a Connection,
    /// Packets that the monitor doesn't take at the moment.
    pending: VecDeque<(u8, Vec<u8>)>,
    keys: Keys,
    input: bool,
    terminal: bool,
    shown: [bool; 2],
    /// What the program has said and the caller hasn't taken: on which stream, and the rest of it.
    output: Option<(i32, Vec<u8>)>,
    signals: bool,
}

/// What there is to do.
struct Ready {
    monitor: bool,
    signals: bool,
    input: bool,
    /// The caller takes more of [`Session::output`].
    output: bool,
}

impl Session<'_> {
    fn wait(&self, signals: &Signals) -> Result<Ready> {
        let mut of_monitor = PollFlags::empty();
        if self.output.is_none() {
            of_monitor |= PollFlags::POLLIN;
        }
        if !self.pending.is_empty() {
            of_monitor |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        let mut place = |wanted: bool, fd, event: PollFlags| {
            wanted.then(|| fds.push(PollFd::new(fd, event)))?;
            Some(fds.len() - 1)
        };
        // Not without a wish: that it is gone would be told again and again.
        let monitor = place(!of_monitor.is_empty(), self.monitor.as_fd(), of_monitor);
        let takes_input = self.input && self.pending.is_empty();
        let input = place(takes_input, standard_stream(0), PollFlags::POLLIN);
        let stream = self.output.as_ref().map_or(1, |(stream, _)| *stream);
        let output = place(self.output.is_some(), standard_stream(stream), PollFlags::POLLOUT);
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for the container"),
        }
        let any = |index: usize| fds[index].any().unwrap_or(false);
        Ok(Ready {
            monitor: monitor.is_some_and(any),
            signals: any(0),
            input: input.is_some_and(any),
            output: output.is_some_and(any),
        })
    }

    fn send(&mut self, what: u8, data: &[u8]) {
        self.pending.push_back((what, data.to_vec()));
        self.send_pending();
    }

    fn send_pending(&mut self) {
        while let Some((what, data)) = self.pending.front() {
            match self.monitor.send(*what, data) {
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return,
                Ok(()) => drop(self.pending.pop_front()),
                // It ends: its last words are still to be read.
                Err(_) => {
                    self.pending.clear();
                    self.input = false;
                }
            }
        }
    }

    fn pass_signals(&self, signals: &Signals) -> Result<()> {
        while let Some(info) = signals.0.read_signal().context("read a signal")? {
            let number = info.ssi_signo as i32;
            if matches!(number, libc::SIGWINCH | libc::SIGCONT) {
                if let (true, Some(size)) = (self.terminal, own_size()) {
                    let _ = self.monitor.send_size(size);
                }
                continue;
            }
            if !self.signals {
                // As if it had not been taken.
                std::process::exit(128 + number);
            }
            // It may just have ended.
            let _ = lifecycle::kill(&mut self.container.clone(), number);
        }
        Ok(())
    }

    /// Whether the keys were typed.
    fn pass_input(&mut self) -> Result<bool> {
        let mut buffer = [0; MAX_DATA];
        let length = match read(standard_stream(0), &mut buffer) {
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
            Ok(length) => length,
            // The terminal is gone.
            Err(_) => 0,
        };
        if length == 0 {
            self.input = false;
            self.send(END_OF_INPUT, &[]);
            return Ok(false);
        }
        let (passed, detach) = self.keys.filter(&buffer[..length]);
        for part in passed.chunks(MAX_DATA) {
            self.send(INPUT, part);
        }
        Ok(detach)
    }

    /// Takes what the monitor says: the exit status when it has come.
    fn hear(&mut self) -> Result<Option<i32>> {
        let mut buffer = [0; MAX_DATA + 1];
        let packet = match self.monitor.receive(&mut buffer) {
            Err(Errno::EAGAIN) => return Ok(None),
            other => other.context("hear from the monitor")?,
        };
        match packet {
            Some((STDOUT, data)) if self.shown[0] => self.output = Some((1, data.to_vec())),
            Some((STDERR, data)) if self.shown[1] => self.output = Some((2, data.to_vec())),
            Some((EXIT, data)) => {
                let bytes = data.try_into().context("exit status of four bytes")?;
                return Ok(Some(i32::from_le_bytes(bytes)));
            }
            Some(_) => {}
            None => bail!(
                "the monitor of container {} was killed; its state is unknown to this command",
                self.container.short_id()
            ),
        }
        Ok(None)
    }

    fn show(&mut self) -> Result<()> {
        let Some((stream, data)) = &mut self.output else { return Ok(()) };
        show(*stream, data)?;
        if data.is_empty() {
            self.output = None;
        }
        Ok(())
    }
}

/// Moves as much of `data` to the caller's output (1, 2) as a pipe takes that takes anything, so that
/// whoever takes nothing for a while keeps neither signals nor input from the program.
pub(super) fn show(stream: i32, data: &mut Vec<u8>) -> Result<()> {
    let part = &data[..data.len().min(libc::PIPE_BUF)];
    match write(standard_stream(stream), part) {
        Ok(length) => drop(data.drain(..length)),
        Err(Errno::EINTR | Errno::EAGAIN) => {}
        // Whoever reads has enough: the program is to hear of it as it would without us.
        Err(Errno::EPIPE) => std::process::exit(128 + libc::SIGPIPE),
        Err(errno) => return Err(errno).context("write the container's output"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s32_the_keys_are_found_wherever_they_are() {
        let filter = |typed: &[&[u8]]| {
            let mut keys = Keys { wanted: vec![16, 17], matched: 0 };
            let mut passed = Vec::new();
            for part in typed {
                let (more, detach) = keys.filter(part);
                passed.extend(more);
                if detach {
                    return (passed, true);
                }
            }
            (passed, false)
        };
        assert_eq!(filter(&[b"ab\x10\x11c"]), (b"ab".to_vec(), true));
        assert_eq!(filter(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(filter(&[b"a\x10", b"b\x11"]), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(filter(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        let mut none = Keys { wanted: Vec::new(), matched: 0 };
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
