//! Our processes in the background: the proxy of a container's published ports, and a network's
//! resolver. Both end by themselves when the devices that they serve are gone, so that nothing stays
//! of a container whose monitor was killed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};
use ultari::sys::clone::{pidfd_open, pidfd_send_signal};
use ultari::sys::fs::dup_onto;

use super::netlink::Socket;
use crate::paths::Paths;

/// A process that can't be mistaken for another one that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Clock ticks since boot (proc_pid_stat(5), starttime).
    start: u64,
}

impl Process {
    fn of(pid: i32) -> Result<Self> {
        let start = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        let Ok(pidfd) = pidfd_open(self.pid) else { return false };
        start_time(self.pid) == Some(self.start) && !ended(pidfd.as_fd(), PollTimeout::ZERO)
    }

    /// Ends it, and waits until it has.
    pub fn end(self) {
        let Ok(pidfd) = pidfd_open(self.pid) else { return };
        if self.pid == std::process::id().cast_signed() || start_time(self.pid) != Some(self.start)
        {
            return;
        }
        if pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).is_ok() {
            ended(pidfd.as_fd(), PollTimeout::from(5000_u16));
            // In case that it is a child of ours.
            let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// A pidfd can be read when its process has ended.
fn ended(pidfd: BorrowedFd, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            other => return other.is_ok_and(|ready| ready > 0),
        }
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may have anything in it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A helper that is ready, and ends unless it is let go: nothing is left when we are killed before
/// it is on record.
pub struct Started<T> {
    pub process: Process,
    /// What it answered.
    pub answer: T,
    line: ChildStdin,
}

impl<T> Started<T> {
    /// It is on record now.
    pub fn let_go(mut self) -> Result<()> {
        self.line.write_all(b"\n").context("let the process go")
    }
}

/// Starts this program anew as a helper, with `input`, and waits until it is ready.
pub fn start<T: for<'a> Deserialize<'a>>(
    paths: &Paths,
    command: &str,
    input: &impl Serialize,
) -> Result<Started<T>> {
    let mut child = Command::new("/proc/self/exe")
        .arg("--root")
        .arg(&paths.data)
        .arg("--run-root")
        .arg(&paths.run)
        .arg(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start the process {command}"))?;
    talk(&mut child, input).with_context(|| format!("process {command}")).inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
    })?
}

/// What goes wrong on the way, or what the helper says that does.
fn talk<T: for<'a> Deserialize<'a>>(
    child: &mut Child,
    input: &impl Serialize,
) -> Result<Result<Started<T>>> {
    let process = Process::of(child.id().cast_signed())?;
    let mut line = child.stdin.take().context("no pipe")?;
    line.write_all(&to_line(input)?)?;
    let mut said = String::new();
    BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut said)?;
    let answer: Result<T, String> = serde_json::from_str(&said).context("no answer")?;
    match answer {
        Ok(answer) => Ok(Ok(Started { process, answer, line })),
        Err(error) => {
            child.wait()?;
            Ok(Err(anyhow!(error)))
        }
    }
}

fn to_line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// In the helper: what it is to do.
pub fn input<T: for<'a> Deserialize<'a>>() -> Result<T> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("read what is to be done")?;
    serde_json::from_str(&line).context("read what is to be done")
}

/// In the helper: leaves the terminal and the mounts of whoever started it.
pub fn into_background(paths: &Paths) -> Result<()> {
    // It leads its session already if the caller has started it so.
    let _ = setsid();
    std::env::set_current_dir("/").context("go to /")?;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
    // A monitor's mount of its container's root filesystem would otherwise stay until we end.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let containers = paths.containers();
    for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(place).starts_with(&containers) {
            umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("unmount {place}"))?;
        }
    }
    Ok(())
}

/// In the helper: says that it is ready, or why it isn't, and waits until it is on record. Then
/// nobody listens to it any more.
pub fn answer<T: Serialize>(answer: &Result<T>) -> Result<()> {
    let said = answer.as_ref().map_err(|error| format!("{error:#}"));
    std::io::stdout().write_all(&to_line(&said)?).context("answer")?;
    std::io::stdout().flush().context("answer")?;
    if answer.is_err() {
        return Ok(());
    }
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).context("wait to be on record")?;
    ensure!(!go.is_empty(), "whoever started this process has ended");
    let null =
        File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    dup_onto(null.as_fd(), 0).context("close the input")?;
    dup_onto(null.as_fd(), 1).context("close the output")
}

/// Tells when network devices go.
pub struct Watch {
    events: Socket,
    questions: Socket,
}

impl Watch {
    pub fn new() -> Result<Self> {
        let mut events = Socket::open().context("open a netlink socket")?;
        events.watch_links().context("watch network devices")?;
        let questions = Socket::open().context("open a netlink socket")?;
        Ok(Self { events, questions })
    }

    /// To be polled for input: then something has changed.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes the input.
    pub fn drain(&self) {
        self.events.drain();
    }

    /// Whether none of these devices is there.
    pub fn all_gone(&self, links: &[String]) -> bool {
        links.iter().all(|link| matches!(self.questions.link(link), Ok(None)))
    }
}
