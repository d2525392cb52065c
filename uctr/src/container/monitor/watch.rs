//! The long wait: output to the log and to those who look on, their input to the program, until it
//! ends.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::finish::{self, Next};
use super::protocol::{
    ATTACH, Connection, END_OF_INPUT, EXIT, INPUT, LOOK, MAX_DATA, SIZE, STDERR, STDOUT,
    WANTS_INPUT, WANTS_OUTPUT, accept, parse_size, unblock,
};
use super::{Orders, SET_UP, log_limits};
use crate::container::Container;
use crate::container::logs::{Stream, Writer};

/// More clients than that at a time are turned away.
const MAX_CLIENTS: usize = 64;

/// As much of the last output is read: more than two pipes hold, in bytes.
const LAST_OUTPUT: usize = 1024 * 1024;

/// How long somebody who doesn't take the last output holds up a restart, in milliseconds.
const PATIENCE: u16 = 1000;

/// How long nothing has to happen until the monitor lets go of memory, in milliseconds.
const IDLE: u16 = 1000;

struct Client {
    connection: Connection,
    wants: u8,
    /// Packets that it doesn't take at the moment: nothing more is read until it has.
    pending: VecDeque<(u8, Vec<u8>)>,
    gone: bool,
}

impl Client {
    fn send(&mut self, what: u8, data: &[u8]) {
        if self.pending.is_empty() && self.sent(what, data) {
            return;
        }
        self.pending.push_back((what, data.to_vec()));
    }

    fn send_pending(&mut self) {
        while let Some((what, data)) = self.pending.pop_front() {
            if !self.sent(what, &data) {
                self.pending.push_front((what, data));
                return;
            }
        }
    }

    fn sent(&mut self, what: u8, data: &[u8]) -> bool {
        match self.connection.send(what, data) {
            Ok(()) => true,
            Err(Errno::EAGAIN | Errno::ENOBUFS) => false,
            Err(_) => {
                self.gone = true;
                true
            }
        }
    }
}

struct Watch {
    pidfd: OwnedFd,
    listener: OwnedFd,
    /// Where input goes: a pipe, or the terminal.
    stdin: Option<OwnedFd>,
    /// Standard output and error, or the terminal alone.
    outputs: [Option<OwnedFd>; 2],
    is_terminal: bool,
    /// The end of one client's input is that of the program's.
    once: bool,
    clients: Vec<Client>,
    /// Input that the program doesn't take at the moment.
    input: Vec<u8>,
    log: Option<Writer>,
    /// Nobody has the terminal open: poll says so without end.
    hung_up: bool,
}

/// What there is to do.
#[derive(Default)]
struct Events {
    ended: bool,
    client: bool,
    output: [bool; 2],
    input: bool,
    clients: Vec<(bool, bool)>,
}

/// Waits for the end of the program, and then does what is to be done.
pub fn run(args: &[OsString]) -> Result<()> {
    let orders = Orders::parse(args)?;
    ultari::sys::process::set_name(c"uctr");
    let lock = orders.take("lock")?.context("no lock")?;
    let (mut watch, mut container) = Watch::new(&orders)?;
    while !watch.turn()? {}
    let status = ultari::supervise::exit_status(&watch.pidfd)?;
    watch.drain();
    let next = finish::finish(&mut container, status);
    let Ok(Next::Restart(delay)) = next else {
        // It may be started again while somebody still has to take the last output.
        drop(lock);
        watch.say_goodbye(status, PollTimeout::NONE);
        return next.map(drop);
    };
    watch.say_goodbye(status, PollTimeout::from(PATIENCE));
    let delay =
        if finish::ran_long(&container) { finish::FIRST_DELAY } else { delay.max(orders.delay) };
    if !watch.wait_for_restart(delay, &mut container)? {
        return Ok(());
    }
    drop(watch);
    let orders = Orders { delay: (delay * 2).min(finish::LAST_DELAY), ..orders };
    let error = orders.execute(SET_UP, &[("lock", &lock)]);
    // Nobody else would say so.
    finish::give_up(&mut container, "the monitor could not execute itself")?;
    error
}

impl Watch {
    fn new(orders: &Orders) -> Result<(Self, Container)> {
        let pidfd = orders.take("pid")?.context("no process to watch")?;
        let listener = orders.take("listener")?.context("no socket")?;
        let console = orders.take("console")?;
        let is_terminal = console.is_some();
        let (stdin, outputs) = match console {
            Some(master) => {
                unblock(&master)?;
                let output = master.try_clone().context("duplicate the terminal")?;
                (Some(master), [Some(output), None])
            }
            None => (orders.take("stdin")?, [orders.take("stdout")?, orders.take("stderr")?]),
        };
        let first = orders.take("client")?.map(Connection::over);
        let container =
            Container::read(&orders.paths, &orders.id)?.context("the container is gone")?;
        let record = &container.record;
        let no_log = record.host_config.log_config.kind == "none";
        let log = (!no_log).then(|| Writer::open(&container.folder(), log_limits(record)));
        let mut watch = Self {
            pidfd,
            listener,
            stdin,
            outputs,
            is_terminal,
            once: record.config.stdin_once && !is_terminal,
            clients: Vec::new(),
            input: Vec::new(),
            log,
            hung_up: false,
        };
        if let Some(connection) = first {
            connection.unblock()?;
            watch.add_client(connection);
        }
        Ok((watch, container))
    }

    fn add_client(&mut self, connection: Connection) {
        if self.clients.len() < MAX_CLIENTS {
            self.clients.push(Client {
                connection,
                wants: 0,
                pending: VecDeque::new(),
                gone: false,
            });
            let last = self.clients.len() - 1;
            // What it wants is mostly there already, and output is not to go by meanwhile.
            self.take_packets(last);
        }
    }

    /// Waits for something and does it; whether the program has ended.
    fn turn(&mut self) -> Result<bool> {
        let events = self.next_events()?;
        if events.client
            && let Some(connection) = accept(&self.listener)
        {
            self.add_client(connection);
        }
        for (index, (readable, writable)) in events.clients.iter().enumerate() {
            if *writable {
                self.clients[index].send_pending();
            }
            if *readable {
                self.take_packets(index);
            }
        }
        if events.input {
            self.write_input();
        }
        for (index, readable) in events.output.into_iter().enumerate() {
            if readable {
                self.copy_output(index);
            }
        }
        self.forget_clients();
        Ok(events.ended)
    }

    fn blocked(&self) -> bool {
        self.clients.iter().any(|client| !client.pending.is_empty())
    }

    fn next_events(&mut self) -> Result<Events> {
        let readable = PollFlags::POLLIN;
        let mut fds = Vec::with_capacity(5 + self.clients.len());
        fds.push(PollFd::new(self.pidfd.as_fd(), readable));
        fds.push(PollFd::new(self.listener.as_fd(), readable));
        let add = |fds: &mut Vec<_>, fd, flags| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        };
        let idle = self.blocked() || self.hung_up;
        let mut outputs = [None; 2];
        for (place, output) in outputs.iter_mut().zip(&self.outputs) {
            let output = output.as_ref().filter(|_| !idle);
            *place = output.map(|fd| add(&mut fds, fd.as_fd(), readable));
        }
        let stdin = self.stdin.as_ref().filter(|_| !self.input.is_empty());
        let input = stdin.map(|fd| add(&mut fds, fd.as_fd(), PollFlags::POLLOUT));
        let mut places = Vec::with_capacity(self.clients.len());
        for client in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.input.is_empty());
            flags.set(PollFlags::POLLOUT, !client.pending.is_empty());
            // Of one that is gone poll would say so without end.
            let wanted = (!flags.is_empty()).then_some(client);
            places.push(wanted.map(|client| add(&mut fds, client.connection.as_fd(), flags)));
        }
        // A terminal that nobody has open may be opened again.
        let timeout = if self.hung_up { PollTimeout::from(100u8) } else { IDLE.into() };
        let mut outcome = poll(&mut fds, timeout);
        if outcome == Ok(0) && !self.hung_up {
            // It may be long until anything happens.
            outcome = ultari::sys::wait::poll(&mut fds).map(|()| 1);
        }
        match outcome {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for the container"),
        }
        let seen = |index: usize| fds[index].revents().unwrap_or(PollFlags::empty());
        let any = |index: Option<usize>| index.is_some_and(|index| !seen(index).is_empty());
        let clients = places
            .into_iter()
            .map(|place| {
                let seen = place.map_or(PollFlags::empty(), seen);
                (!(seen - PollFlags::POLLOUT).is_empty(), seen.contains(PollFlags::POLLOUT))
            })
            .collect();
        let events = Events {
            ended: any(Some(0)),
            client: any(Some(1)),
            output: outputs.map(any),
            input: any(input),
            clients,
        };
        self.hung_up = false;
        Ok(events)
    }

    fn take_packets(&mut self, index: usize) {
        let mut buffer = [0; MAX_DATA + 1];
        while self.input.is_empty() && !self.clients[index].gone {
            let client = &mut self.clients[index];
            let packet = match client.connection.receive(&mut buffer) {
                Err(Errno::EAGAIN) => return,
                Ok(Some(packet)) => packet,
                Ok(None) | Err(_) => {
                    client.gone = true;
                    return;
                }
            };
            match packet {
                (ATTACH, [wants, size @ ..]) => {
                    client.wants = *wants;
                    self.set_size(size);
                }
                (INPUT, data) if client.wants & WANTS_INPUT != 0 => {
                    self.input.extend_from_slice(data);
                    self.write_input();
                }
                (END_OF_INPUT, _) if client.wants & WANTS_INPUT != 0 => {
                    client.wants &= !WANTS_INPUT;
                    self.end_input();
                }
                (SIZE, size) => self.set_size(size),
                _ => {}
            }
        }
    }

    fn set_size(&self, size: &[u8]) {
        if let (true, Some(master), Some(size)) = (self.is_terminal, &self.stdin, parse_size(size))
        {
            let _ = ultari::sys::tty::set_window_size(master, size);
        }
    }

    fn end_input(&mut self) {
        if self.once && self.input.is_empty() {
            self.stdin = None;
        }
    }

    fn write_input(&mut self) {
        let Some(stdin) = &self.stdin else { return self.input.clear() };
        while !self.input.is_empty() {
            match write(stdin, &self.input) {
                Ok(length) => drop(self.input.drain(..length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The program has closed it.
                Err(_) => {
                    self.input.clear();
                    if !self.is_terminal {
                        self.stdin = None;
                    }
                    return;
                }
            }
        }
    }

    /// Copies what is there of one output; whether there may be more.
    fn copy_output(&mut self, index: usize) -> bool {
        let Some(output) = &self.outputs[index] else { return false };
        let mut buffer = [0; MAX_DATA];
        let length = match read(output, &mut buffer) {
            Ok(0) => {
                self.outputs[index] = None;
                return false;
            }
            Ok(length) => length,
            Err(Errno::EINTR) => return true,
            Err(Errno::EIO) if self.is_terminal => {
                self.hung_up = true;
                return false;
            }
            Err(_) => return false,
        };
        let (stream, what) = match index {
            0 => (Stream::Stdout, STDOUT),
            _ => (Stream::Stderr, STDERR),
        };
        if let Some(log) = &mut self.log {
            log.write(stream, &buffer[..length]);
        }
        for client in &mut self.clients {
            if client.wants & WANTS_OUTPUT != 0 && !client.gone {
                client.send(what, &buffer[..length]);
            }
        }
        true
    }

    fn forget_clients(&mut self) {
        let writer_left =
            self.clients.iter().any(|client| client.gone && client.wants & WANTS_INPUT != 0);
        self.clients.retain(|client| !client.gone);
        if writer_left {
            self.end_input();
        }
    }

    /// Takes what was written just before the end: before anybody hears of that the log is whole.
    fn drain(&mut self) {
        for index in 0..2 {
            // Somebody whom the container has left behind may go on writing.
            let most = (0..LAST_OUTPUT).step_by(MAX_DATA);
            most.take_while(|_| self.copy_output(index)).for_each(drop);
        }
    }

    /// Passes on the last output and the exit status.
    fn say_goodbye(&mut self, status: i32, timeout: PollTimeout) {
        while let Some(connection) = accept(&self.listener) {
            self.add_client(connection);
        }
        for client in &mut self.clients {
            client.send(EXIT, &status.to_le_bytes());
        }
        self.flush(timeout);
        self.clients.clear();
    }

    /// Waits until all clients have taken what is pending, and leaves those that take too long.
    fn flush(&mut self, timeout: PollTimeout) {
        while let Some(client) = self.clients.iter_mut().find(|client| !client.pending.is_empty()) {
            let mut fds = [PollFd::new(client.connection.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut fds, timeout) {
                Ok(0) => client.gone = true,
                Ok(_) => client.send_pending(),
                Err(Errno::EINTR) => {}
                Err(_) => client.gone = true,
            }
            self.clients.retain(|client| !client.gone);
        }
    }

    /// Waits until the container is to be started again; false if somebody stopped it meanwhile.
    fn wait_for_restart(&mut self, delay: u64, container: &mut Container) -> Result<bool> {
        let until = std::time::Instant::now() + std::time::Duration::from_millis(delay);
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return finish::may_restart(container);
            }
            let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, timeout);
            let Some(connection) = accept(&self.listener) else { continue };
            if asks_to_look(connection.as_fd()) && !finish::may_restart(container)? {
                return Ok(false);
            }
        }
    }
}

/// Whether this client says that the record has changed.
fn asks_to_look(socket: BorrowedFd) -> bool {
    let mut buffer = [0; 16];
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::from(PATIENCE));
    let received = nix::sys::socket::recv(
        socket.as_raw_fd(),
        &mut buffer,
        nix::sys::socket::MsgFlags::MSG_DONTWAIT,
    );
    matches!(received, Ok(1..)) && buffer[0] == LOOK
}
