//! Further programs in a container that runs. They are this process' own children: no monitor
//! takes part.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use serde_json::{Value, json};
use ultari::launch::{self, Child, Options};
use ultari::supervise::{self, Signals};
use ultari::sys::fs::{dup_onto, standard_stream};

use super::Container;
use super::config::{capabilities, capability_sets, user};
use super::monitor::protocol::unblock;

/// What the user wants.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `-d`
    pub detach: bool,
    /// `-i`
    pub input: bool,
    /// `-t`
    pub terminal: bool,
    /// `-e`, with values.
    pub env: Vec<String>,
    /// `-u`
    pub user: Option<String>,
    /// `-w`
    pub working_dir: Option<String>,
    /// `--privileged`
    pub privileged: bool,
}

/// As much of the last output is shown: more than a pipe holds, in bytes.
const LAST_OUTPUT: usize = 128 * 1024;

/// The program's end of a pipe, and ours.
type Pipe = (OwnedFd, OwnedFd);

/// Runs a program in the container; its exit status, 0 at once when detached.
///
/// # Errors
/// When the container doesn't run, or the program can't be executed.
pub fn exec(container: &Container, request: &Request) -> Result<i32> {
    container.check_usable("exec")?;
    let runtime = container.runtime()?;
    let text = process(container, request)?.to_string();
    let mut process = ultari::spec::parse_process(text.as_bytes(), &mut Vec::new())?;
    let options = Options {
        root: container.paths().runtime(),
        id: container.record.id.clone(),
        ..Options::default()
    };
    if request.terminal && !request.detach {
        let signals = Signals::block()?;
        let mut child = launch::exec(&runtime, &mut process, &options)?;
        child.start(&runtime)?;
        return supervise::wait(&child.pidfd, &signals, child.console.take(), None);
    }
    let [input, output, errors] = pipes(request)?;
    let signals = super::attach::Signals::block()?;
    let own = save_streams()?;
    let started = (|| {
        wear(&[input.as_ref(), output.as_ref(), errors.as_ref()])?;
        launch::exec(&runtime, &mut process, &options)
    })();
    restore(&own)?;
    let child = started?;
    child.start(&runtime)?;
    if request.detach {
        return Ok(0);
    }
    let ours = |pipe: Option<Pipe>| pipe.map(|(_, ours)| ours);
    copy(&child, &signals, ours(input), [ours(output), ours(errors)])
}

/// The process object of config.json, with what the flags change.
fn process(container: &Container, request: &Request) -> Result<Value> {
    let path = container.folder().join("config.json");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut config: Value = serde_json::from_slice(&text).context("config.json")?;
    let mut process = config["process"].take();
    let host = &container.record.host_config;
    process["args"] = json!(request.args);
    process["terminal"] = json!(request.terminal && !request.detach);
    if let Some(folder) = &request.working_dir {
        process["cwd"] = json!(folder);
    }
    let mut env: Vec<String> = serde_json::from_value(process["env"].take()).unwrap_or_default();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut more = request.env.clone();
    if request.terminal && !env.iter().chain(&more).any(|entry| name(entry) == "TERM") {
        more.push("TERM=xterm".into());
    }
    for entry in more {
        env.retain(|other| name(other) != name(&entry));
        env.push(entry);
    }
    process["env"] = json!(env);
    let mut uid = process["user"]["uid"].as_u64().unwrap_or(0) as u32;
    if let Some(wanted) = &request.user {
        let root = user::open_root(Path::new(&format!("/proc/{}/root", container.state().pid)))?;
        let user = user::find(&root, wanted, &host.group_add)?;
        uid = user.uid;
        process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
    }
    let privileged = request.privileged || host.privileged;
    let names = capabilities::of(&host.cap_add, &host.cap_drop, privileged)?;
    process["capabilities"] = match request.privileged {
        true => capability_sets(&names, 0),
        false => capability_sets(&names, uid),
    };
    Ok(process)
}

fn pipes(request: &Request) -> Result<[Option<Pipe>; 3]> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).context("make a pipe");
    if request.detach {
        return Ok([None, None, None]);
    }
    let input = match request.input {
        true => {
            let (read, write) = pipe()?;
            Some((read, write))
        }
        false => None,
    };
    let output = || pipe().map(|(read, write)| Some((write, read)));
    Ok([input, output()?, output()?])
}

fn save_streams() -> Result<[OwnedFd; 3]> {
    let save = |number| standard_stream(number).try_clone_to_owned().context("keep a stream");
    Ok([save(0)?, save(1)?, save(2)?])
}

/// Makes the program's ends this process' own streams, for the moment in which it is made. It gets
/// pipes, never the caller's own terminal or files: those are the host's.
fn wear(pipes: &[Option<&Pipe>; 3]) -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = OwnedFd::from(null.context("open /dev/null")?);
    for (number, pipe) in pipes.iter().enumerate() {
        let theirs = pipe.map_or(&null, |(theirs, _)| theirs);
        dup_onto(theirs, number as i32).context("pass a stream")?;
    }
    Ok(())
}

fn restore(own: &[OwnedFd; 3]) -> Result<()> {
    for (number, fd) in own.iter().enumerate() {
        dup_onto(fd, number as i32).context("restore a stream")?;
    }
    Ok(())
}

/// One of the program's outputs, on its way to the caller's.
struct Output {
    from: Option<OwnedFd>,
    /// What the caller hasn't taken yet.
    rest: Vec<u8>,
}

impl Output {
    fn of(from: Option<OwnedFd>) -> Self {
        Self { from, rest: Vec::new() }
    }

    /// What it waits for. `number`: that of the caller's stream.
    fn waits_for(&self, number: i32) -> Option<PollFd<'_>> {
        match &self.from {
            _ if !self.rest.is_empty() => {
                Some(PollFd::new(standard_stream(number), PollFlags::POLLOUT))
            }
            Some(from) => Some(PollFd::new(from.as_fd(), PollFlags::POLLIN)),
            None => None,
        }
    }

    fn go_on(&mut self, number: i32) -> Result<()> {
        if !self.rest.is_empty() {
            return super::attach::show(number, &mut self.rest);
        }
        self.take();
        Ok(())
    }

    /// Takes what there is; false when that is nothing.
    fn take(&mut self) -> bool {
        let Some(from) = &self.from else { return false };
        let mut buffer = [0; 16 * 1024];
        match read(from, &mut buffer) {
            Ok(length @ 1..) => {
                self.rest.extend_from_slice(&buffer[..length]);
                return true;
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(_) | Err(_) => self.from = None,
        }
        false
    }
}

/// Copies until the program has ended and its output is shown.
fn copy(
    child: &Child,
    signals: &super::attach::Signals,
    mut input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
) -> Result<i32> {
    for fd in outputs.iter().chain([&input]).flatten() {
        unblock(fd)?;
    }
    let mut outputs = outputs.map(Output::of);
    let mut pending: Vec<u8> = Vec::new();
    let mut typed_ends = false;
    loop {
        let readable = PollFlags::POLLIN;
        let mut fds = vec![
            PollFd::new(child.pidfd.as_fd(), readable),
            PollFd::new(signals.as_fd(), readable),
        ];
        let mut places = [None; 3];
        for ((place, output), number) in places.iter_mut().zip(&outputs).zip(1..) {
            if let Some(fd) = output.waits_for(number) {
                fds.push(fd);
                *place = Some(fds.len() - 1);
            }
        }
        if let Some(input) = &input {
            fds.push(match pending.is_empty() {
                true => PollFd::new(standard_stream(0), readable),
                false => PollFd::new(input.as_fd(), PollFlags::POLLOUT),
            });
            places[2] = Some(fds.len() - 1);
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for the program"),
        }
        let any = |index: usize| fds[index].any().unwrap_or(false);
        let (ended, signalled) = (any(0), any(1));
        let ready = places.map(|place| place.is_some_and(any));
        if signalled {
            signals.forward(&child.pidfd)?;
        }
        for ((output, ready), number) in outputs.iter_mut().zip(ready).zip(1..) {
            if ready {
                output.go_on(number)?;
            }
        }
        if ready[2]
            && let Some(to) = &input
        {
            typed_ends |= take_input(to, &mut pending);
            if typed_ends && pending.is_empty() {
                input = None;
            }
        }
        if ended {
            finish(outputs, signals)?;
            return supervise::exit_status(&child.pidfd);
        }
    }
}

/// Shows what the program wrote just before it ended. Others that it has left may hold its pipes for
/// ever: what is there now is all.
fn finish(outputs: [Output; 2], signals: &super::attach::Signals) -> Result<()> {
    for (mut output, number) in outputs.into_iter().zip(1..) {
        while output.rest.len() < LAST_OUTPUT && output.take() {}
        while !output.rest.is_empty() {
            let mut fds = [
                PollFd::new(standard_stream(number), PollFlags::POLLOUT),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("wait for who takes the output"),
            }
            if fds[1].any().unwrap_or(false) {
                signals.end()?;
            }
            if fds[0].any().unwrap_or(false) {
                super::attach::show(number, &mut output.rest)?;
            }
        }
    }
    Ok(())
}

/// Takes what the caller has typed, or passes on what is pending; whether nothing more will come.
fn take_input(to: &OwnedFd, pending: &mut Vec<u8>) -> bool {
    let mut ends = false;
    if pending.is_empty() {
        let mut buffer = [0; 16 * 1024];
        match read(standard_stream(0), &mut buffer) {
            Ok(0) => ends = true,
            Ok(length) => pending.extend_from_slice(&buffer[..length]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => ends = true,
        }
    }
    match write(to, pending) {
        Ok(length) => drop(pending.drain(..length)),
        Err(Errno::EINTR | Errno::EAGAIN) => {}
        // The program has closed it.
        Err(_) => {
            pending.clear();
            ends = true;
        }
    }
    ends
}
