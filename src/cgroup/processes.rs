//! The processes of a container's cgroup: listing, freezing, signalling, killing.

use super::Cgroup;
use super::node::Node;
use crate::sys::clone;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long processes may take to stop. They do at the next return to user space or signal stop,
/// but a process in an uninterruptible sleep (a dead NFS server) may take for ever.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often all processes are killed one by one, where they can't be frozen first.
const KILL_ROUNDS: usize = 20;

impl Cgroup {
    /// All processes in the cgroup and those below it, sorted. Empty if the cgroup is gone.
    pub fn processes(&self) -> Result<Vec<libc::pid_t>> {
        let v1 = ["freezer", "devices"]
            .iter()
            .find_map(|controller| self.v1_node(controller))
            .or_else(|| self.v1_nodes().next());
        let mut pids = Vec::new();
        for node in self.unified().into_iter().chain(v1) {
            pids.append(&mut all_below(&node)?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops every process until [`Cgroup::thaw`]. Returns when all have stopped; if they don't
    /// within 10 s, all go on and it is an error.
    pub fn freeze(&self) -> Result<()> {
        let result = match (self.v1_node("freezer"), self.unified()) {
            (Some(node), _) => v1_freeze(&node),
            (None, Some(node)) => v2_freeze(&node),
            (None, None) => bail!("{}", self.no_freezer()),
        };
        // A half-frozen container is neither running nor paused.
        result.inspect_err(|_| drop(self.thaw()))
    }

    /// Lets every process go on. Not an error if they are not frozen, or gone.
    pub fn thaw(&self) -> Result<()> {
        let (node, file, value) = match (self.v1_node("freezer"), self.unified()) {
            (Some(node), _) => (node, "freezer.state", "THAWED"),
            (None, Some(node)) => (node, "cgroup.freeze", "0"),
            (None, None) => return Ok(()),
        };
        match node.write(file, value) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
            Err(errno) => {
                Err(errno).with_context(|| format!("cannot thaw: writing {}/{file}", node.path()))
            }
        }
    }

    /// Whether the container itself is frozen (a frozen parent does not count, as in runc).
    pub fn frozen(&self) -> Result<bool> {
        let (node, file, value) = match (self.v1_node("freezer"), self.unified()) {
            (Some(node), _) => (node, "freezer.self_freezing", "1"),
            (None, Some(node)) => (node, "cgroup.freeze", "1"),
            (None, None) => return Ok(false),
        };
        match node.read(file) {
            Ok(text) => Ok(text == value),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
            Err(errno) => Err(errno).with_context(|| format!("cannot read {}/{file}", node.path())),
        }
    }

    /// SIGKILL to every process, frozen or not. They are gone a moment later ([`Cgroup::remove`]
    /// waits for that). Not an error if there are none.
    pub fn kill(&self) -> Result<()> {
        if self.location.systemd.as_ref().is_some_and(|unit| unit.is_foreign()) {
            return Ok(());
        }
        if let Some(node) = self.unified() {
            match node.write("cgroup.kill", "1") {
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                // A threaded cgroup: its processes are killed one by one.
                Err(Errno::EOPNOTSUPP) => return self.kill_each(),
                Err(errno) => {
                    return Err(errno).with_context(|| {
                        format!("cannot kill the container: writing {}/cgroup.kill", node.path())
                    });
                }
            }
            // v1's freezer, unlike v2's, holds the dying too.
            if self.v1_node("freezer").is_some() {
                self.thaw()?;
            }
            return Ok(());
        }
        self.kill_each()
    }

    /// Without cgroup.kill a process may fork while its list is gone through: they are stopped
    /// first or, if they can't be, killed until none is left.
    fn kill_each(&self) -> Result<()> {
        let frozen = self.freeze().is_ok();
        for round in 0..KILL_ROUNDS {
            let pids = self.processes()?;
            signal_each(&pids, libc::SIGKILL)?;
            if frozen {
                return self.thaw();
            }
            if pids.is_empty() {
                return Ok(());
            }
            sleep(Duration::from_millis(1 << round.min(6)));
        }
        Ok(())
    }

    /// Sends a signal to every process, stopping them meanwhile, so that none is missed. Processes
    /// that were frozen before stay so and get it when they are thawed; SIGKILL ends them at once.
    pub fn signal_all(&self, signal: libc::c_int) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        let was_frozen = self.frozen()?;
        // A process that can't be stopped must not keep the others from their signal.
        let froze = !was_frozen && self.freeze().is_ok();
        let result = self.processes().and_then(|pids| signal_each(&pids, signal));
        if froze {
            self.thaw()?;
        }
        result
    }

    fn no_freezer(&self) -> String {
        match &self.absent {
            Some(why) => format!("cannot freeze: the container has no cgroup: {why}"),
            None => format!(
                "cannot freeze: the cgroup {} is gone, or the host has no freezer",
                self.shown()
            ),
        }
    }
}

/// Sends a signal to processes; not an error for those that are gone.
///
/// # Errors
/// When the caller has no right to.
pub fn signal_each(pids: &[libc::pid_t], signal: libc::c_int) -> Result<()> {
    pids.iter().try_for_each(|pid| send(*pid, signal))
}

fn send(pid: libc::pid_t, number: libc::c_int) -> Result<()> {
    match clone::kill(pid, number) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => {
            Err(errno).with_context(|| format!("cannot send signal {number} to process {pid}"))
        }
    }
}

/// The processes of a cgroup and of all below it; none if it is gone.
pub(super) fn all_below(node: &Node) -> Result<Vec<libc::pid_t>> {
    let mut pids = Vec::new();
    let mut nodes = vec![node.clone()];
    while let Some(node) = nodes.pop() {
        let text = match node.read_long("cgroup.procs") {
            // The list of a threaded cgroup is that of the domain above it.
            Err(Errno::EOPNOTSUPP) => node.read_long("cgroup.threads"),
            text => text,
        };
        match text {
            // 0 is a process of a pid namespace that is not below ours.
            Ok(text) => pids.extend(
                text.lines()
                    .filter_map(|line| line.parse::<libc::pid_t>().ok())
                    .filter(|pid| *pid > 0),
            ),
            Err(Errno::ENOENT | Errno::ENODEV) => continue,
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("cannot list the processes of {}", node.path()));
            }
        }
        let children = node
            .children()
            .with_context(|| format!("cannot list the cgroups in {}", node.path()))?;
        nodes.extend(children);
    }
    Ok(pids)
}

fn v2_freeze(node: &Node) -> Result<()> {
    node.write("cgroup.freeze", "1")
        .with_context(|| format!("cannot freeze: writing {}/cgroup.freeze", node.path()))?;
    if wait_for_event(node, "frozen 1", Instant::now() + FREEZE_TIMEOUT)? {
        return Ok(());
    }
    bail!(
        "cannot freeze {}: its processes have not stopped within {FREEZE_TIMEOUT:?}; one may be in an uninterruptible sleep",
        node.path()
    );
}

/// Waits until `cgroup.events` has this line; the kernel signals each change of it. Tells whether
/// it came in time.
pub(super) fn wait_for_event(node: &Node, line: &str, deadline: Instant) -> Result<bool> {
    let step = || format!("cannot wait for {line:?} in {}/cgroup.events", node.path());
    let events = node.open("cgroup.events", OFlag::O_RDONLY).with_context(step)?;
    loop {
        let mut buffer = [0u8; 256];
        let count = nix::sys::uio::pread(&events, &mut buffer, 0).with_context(step)?;
        if String::from_utf8_lossy(&buffer[..count]).lines().any(|have| have == line) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(step),
        }
    }
}

/// The v1 freezer stops only the tasks that it finds: while new ones keep coming the state stays
/// FREEZING, and writing again makes it look again (kernel: cgroup-v1/freezer-subsystem.rst).
fn v1_freeze(node: &Node) -> Result<()> {
    const FILE: &str = "freezer.state";
    let step = || format!("cannot freeze: {}/{FILE}", node.path());
    let deadline = Instant::now() + FREEZE_TIMEOUT;
    let mut round = 0u32;
    loop {
        node.write(FILE, "FROZEN").with_context(step)?;
        if node.read(FILE).with_context(step)? == "FROZEN" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "cannot freeze {}: its processes have not stopped within {FREEZE_TIMEOUT:?}; one may be in an uninterruptible sleep",
                node.path()
            );
        }
        round += 1;
        // A short thaw now and then lets a fork that is half done come to its end.
        if round.is_multiple_of(64) {
            node.write(FILE, "THAWED").with_context(step)?;
        }
        sleep(Duration::from_micros(if round < 16 { 50 } else { 1000 }));
    }
}
