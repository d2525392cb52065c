//! `events`.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use ultari::cgroup::Stats;
use ultari::container::Container;
use ultari::{hooks, log};

/// A line of the output, as runc's.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Stats>,
}

pub fn events(container: &Container, interval: &str, once: bool) -> Result<()> {
    let interval = humantime::parse_duration(interval).with_context(|| {
        format!("--interval {interval:?}: write a time such as 500ms, 5s or 1m30s")
    })?;
    ensure!(!interval.is_zero(), "--interval: duration interval must be greater than 0");
    let outcome = if once { print_stats(container) } else { watch(container, interval) };
    match outcome {
        // The reader has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

fn print_stats(container: &Container) -> Result<()> {
    ensure!(container.init_pidfd()?.is_some(), not_running(container));
    print(container, "stats", Some(&container.stats()?))
}

fn not_running(container: &Container) -> String {
    format!("container with id {} is not running", container.record.id)
}

/// Prints until the container's first process has ended.
fn watch(container: &Container, interval: Duration) -> Result<()> {
    let mut oom = container.record.cgroup.open()?.oom_events()?;
    let (pidfd, _) = container.init_pidfd()?.with_context(|| not_running(container))?;
    // An interval beyond all time is for ever.
    let mut next = Instant::now().checked_add(interval);
    loop {
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(oom.as_ref().and_then(|oom| oom.poll_fd()));
        match poll(&mut fds, timeout(next)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait for events of the container"),
        }
        let ended = fds[0].any().unwrap_or(false);
        // The kernel counts before it kills: what led to the end is there by now.
        let count = oom.as_mut().map_or(Ok(0), |oom| oom.take())?;
        for _ in 0..count {
            print(container, "oom", None)?;
        }
        if ended {
            return Ok(());
        }
        if next.is_some_and(|next| next <= Instant::now()) {
            match container.stats() {
                // These may be the figures of a cgroup that nobody is in any more, or that is being
                // removed: the next round sees the end.
                _ if hooks::ends_within(&pidfd, Duration::ZERO) => {}
                Ok(stats) => print(container, "stats", Some(&stats))?,
                Err(error) => log::warning(&format!("{error:#}")),
            }
            next = Instant::now().checked_add(interval);
        }
    }
}

/// Up to the next figures, as far as poll can wait.
fn timeout(next: Option<Instant>) -> PollTimeout {
    let Some(next) = next else { return PollTimeout::MAX };
    let left = next.saturating_duration_since(Instant::now());
    // Rounded up: not to wake too early and wait in a circle.
    let milliseconds = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

fn print(container: &Container, kind: &str, data: Option<&Stats>) -> Result<()> {
    let event = Event { kind, id: &container.record.id, data };
    let line = serde_json::to_string(&event)? + "\n";
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}
