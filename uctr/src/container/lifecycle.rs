//! What ends, pauses and removes containers. None of it needs the monitor: where that was killed the
//! same things are done from here.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ultari::container::Container as Runtime;

use super::monitor::finish::{free, reread, settle, settled_after, wait_for_monitor};
use super::monitor::protocol::{Connection, LOOK};
use super::record::Status;
use super::{Container, NotFound};
use crate::volume;

/// How long the monitor may take to tidy up after the end.
const TIDY: Duration = Duration::from_secs(30);

/// How long a program has after the signal that asks it to stop, in seconds.
const GRACE: i64 = 10;

impl Container {
    /// What the runtime has of it.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn runtime(&self) -> Result<Runtime> {
        Runtime::open(&self.paths().runtime(), &self.record.id)
    }

    /// Must run, and not be paused.
    fn check_running(&self, what: &str) -> Result<()> {
        match self.state().status {
            Status::Running => Ok(()),
            Status::Paused => {
                bail!(
                    "Container {} is paused, unpause the container before {what}",
                    self.short_id()
                )
            }
            _ => bail!("Container {} is not running", self.record.id),
        }
    }

    /// For `exec` and `attach`.
    ///
    /// # Errors
    /// In docker's words, when it doesn't run.
    pub fn check_usable(&self, what: &str) -> Result<()> {
        self.check_running(what)
    }
}

/// Sends a signal to the first process.
///
/// # Errors
/// When the container doesn't run.
pub fn kill(container: &mut Container, signal: i32) -> Result<()> {
    let id = container.record.id.clone();
    settle(container)?;
    let Some((runtime, pidfd)) = process(container) else {
        bail!("cannot kill container: {id}: container {id} is not running");
    };
    if signal == libc::SIGKILL || signal == stop_signal(container)? {
        mark_stopped(container)?;
    }
    runtime.kill(signal, false).with_context(|| format!("cannot kill container: {id}"))?;
    if signal == libc::SIGKILL {
        ended(&pidfd, Some(TIDY));
        tidy(container, 128 + signal)?;
    }
    Ok(())
}

/// Its first process, if it has not ended.
fn process(container: &Container) -> Option<(Runtime, OwnedFd)> {
    if !container.state().status.is_alive() {
        return None;
    }
    let runtime = container.runtime().ok()?;
    let (pidfd, _) = runtime.init_pidfd().ok()??;
    Some((runtime, pidfd))
}

/// The restart policy is to leave it alone.
fn mark_stopped(container: &mut Container) -> Result<()> {
    container.change(|record| {
        record.stopped_by_user = true;
        Ok(())
    })
}

fn stop_signal(container: &Container) -> Result<i32> {
    match container.record.config.stop_signal.as_deref() {
        Some(text) => super::parse_signal(text),
        None => Ok(libc::SIGTERM),
    }
}

/// Waits for the end of a process; without a limit for ever.
fn ended(pidfd: &OwnedFd, limit: Option<Duration>) -> bool {
    let until = limit.map(|limit| Instant::now() + limit);
    loop {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now()).as_millis();
                PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX))
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(_) => {}
        }
    }
}

/// After the end of the program: the monitor frees everything, or, where it was killed, this does.
fn tidy(container: &mut Container, status: i32) -> Result<()> {
    let until = Instant::now() + TIDY;
    while super::monitor::is_alive(container) {
        match Container::read(container.paths(), &container.record.id)? {
            None => return Ok(()),
            Some(now) if !now.record.state.status.is_alive() => {
                container.record = now.record;
                // `--rm` is at work.
                if !container.record.host_config.auto_remove {
                    return Ok(());
                }
            }
            Some(_) => {}
        }
        ensure!(Instant::now() < until, "the container's monitor does not tidy up");
        std::thread::sleep(Duration::from_millis(1));
    }
    match Container::read(container.paths(), &container.record.id)? {
        Some(now) => container.record = now.record,
        None => return Ok(()),
    }
    settled_after(container, status)?;
    if container.record.host_config.auto_remove && container.record.state.status == Status::Exited {
        remove_stopped(container, true)?;
    }
    Ok(())
}

/// Asks the program to end, and ends it if it doesn't within `seconds` (for ever if negative). A
/// container that doesn't run is left alone.
///
/// # Errors
/// When it can't be ended.
pub fn stop(container: &mut Container, signal: Option<i32>, seconds: Option<i64>) -> Result<()> {
    settle(container)?;
    reread(container)?;
    let state = container.state();
    if state.status == Status::Restarting {
        return stop_restarting(container);
    }
    if !state.status.is_alive() {
        return Ok(());
    }
    mark_stopped(container)?;
    let signal = match signal {
        Some(signal) => signal,
        None => stop_signal(container)?,
    };
    let seconds = seconds.or(container.record.config.stop_timeout).unwrap_or(GRACE);
    // It may just have ended.
    let Some((runtime, pidfd)) = process(container) else { return tidy(container, 255) };
    let _ = runtime.kill(signal, false);
    if state.status == Status::Paused {
        // Frozen, it would never hear of it.
        let _ = runtime.resume();
    }
    let limit = u64::try_from(seconds).ok().map(Duration::from_secs);
    let mut last = signal;
    if !ended(&pidfd, limit) {
        last = libc::SIGKILL;
        let _ = runtime.kill(last, false);
        ensure!(ended(&pidfd, Some(TIDY)), "the program does not end after SIGKILL");
    }
    tidy(container, 128 + last)
}

/// One that waits for its next start.
fn stop_restarting(container: &mut Container) -> Result<()> {
    mark_stopped(container)?;
    let until = Instant::now() + TIDY;
    loop {
        let run = container.paths().container_run(&container.record.id);
        if let Some(monitor) = Connection::to(&run)? {
            let _ = monitor.send(LOOK, &[]);
        }
        reread(container)?;
        let state = container.state();
        if state.status.is_alive() {
            return stop(container, None, None);
        }
        if state.status != Status::Restarting {
            return Ok(());
        }
        settle(container)?;
        ensure!(Instant::now() < until, "the container's monitor does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Freezes all processes.
///
/// # Errors
/// In docker's words.
pub fn pause(container: &mut Container) -> Result<()> {
    let id = container.record.id.clone();
    match container.state().status {
        Status::Running => {}
        Status::Paused => bail!("Container {id} is already paused"),
        _ => bail!("Container {id} is not running"),
    }
    container.runtime()?.pause()?;
    set_status(container, Status::Paused)
}

/// Lets them go on.
///
/// # Errors
/// In docker's words.
pub fn unpause(container: &mut Container) -> Result<()> {
    let id = container.record.id.clone();
    ensure!(container.state().status == Status::Paused, "Container {id} is not paused");
    container.runtime()?.resume()?;
    set_status(container, Status::Running)
}

fn set_status(container: &mut Container, status: Status) -> Result<()> {
    container.change(|record| {
        // It may have ended meanwhile.
        if record.state.status.is_alive() {
            record.state.status = status;
        }
        Ok(())
    })
}

/// Waits until it doesn't run (any more); its exit status.
///
/// # Errors
/// When its record can't be read.
pub fn wait(container: &mut Container) -> Result<i32> {
    use super::monitor::protocol::{EXIT, MAX_DATA};
    loop {
        settle(container)?;
        reread(container)?;
        // What is on record: one that has died since is to be settled first.
        let state = &container.record.state;
        if !state.status.is_alive() && state.status != Status::Restarting {
            return Ok(state.exit_code);
        }
        let run = container.paths().container_run(&container.record.id);
        let Some(monitor) = Connection::to(&run)? else {
            // No monitor: the process itself, whose exit status nobody gets.
            match process(container) {
                Some((_, pidfd)) => drop(ended(&pidfd, Some(Duration::from_secs(1)))),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
            continue;
        };
        let mut buffer = [0; MAX_DATA + 1];
        while let Ok(Some((what, data))) = monitor.receive(&mut buffer) {
            if let (EXIT, Ok(bytes)) = (what, <[u8; 4]>::try_from(data)) {
                return Ok(i32::from_le_bytes(bytes));
            }
        }
    }
}

/// Removes a container, with `force` also one that runs, with `volumes` also its anonymous volumes.
///
/// # Errors
/// When it runs, or something can't be removed.
pub fn remove(container: &mut Container, force: bool, volumes: bool) -> Result<()> {
    settle(container)?;
    reread(container)?;
    let status = container.state().status;
    if status.is_alive() || status == Status::Restarting {
        if !force {
            let id = &container.record.id;
            let verb = match status {
                Status::Paused => "unpause and stop the container before removal or force remove",
                _ => "Stop the container before attempting removal or force remove",
            };
            bail!("You cannot remove a {} container {id}. {verb}", status.word());
        }
        end(container)?;
        if Container::read(container.paths(), &container.record.id)?.is_none() {
            return Ok(());
        }
    }
    wait_for_monitor(container, TIDY)?;
    match remove_stopped(container, volumes) {
        // Somebody else was faster.
        Err(error) if error.is::<NotFound>() => Ok(()),
        other => other,
    }
}

/// Ends it at once.
fn end(container: &mut Container) -> Result<()> {
    if container.state().status == Status::Restarting {
        return stop_restarting(container);
    }
    match kill(container, libc::SIGKILL) {
        // It has just ended by itself.
        Err(_) if process(container).is_none() => tidy(container, 255),
        other => other,
    }
}

/// Removes all that there is of a container without processes. Interrupted, the next call goes on:
/// the record is the last to go.
///
/// # Errors
/// When something can't be removed.
pub fn remove_stopped(container: &mut Container, volumes: bool) -> Result<()> {
    container.change(|record| {
        ensure!(!record.state.status.is_alive(), "container {} was started again", record.id);
        record.state.status = Status::Removing;
        Ok(())
    })?;
    // A start that was killed may have left something.
    free(container)?;
    let id = container.record.id.clone();
    let folder = container.folder();
    if volumes {
        remove_anonymous_volumes(container)?;
    }
    let run = container.paths().container_run(&id);
    match std::fs::remove_dir_all(&run) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", run.display()));
        }
        _ => {}
    }
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        if entry.file_name() == "record.json" {
            continue;
        }
        let path = entry.path();
        let gone = match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        match gone {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Those that were made for it and that no other container has got from it.
fn remove_anonymous_volumes(container: &Container) -> Result<()> {
    let paths = container.paths();
    let names = container.record.mounts.iter().filter_map(|mount| mount.name.as_deref());
    for name in names {
        let Some(volume) = volume::find(paths, name)? else { continue };
        let uses = |other: &Container| {
            other.record.id != container.record.id
                && other.record.mounts.iter().any(|mount| mount.name.as_deref() == Some(name))
        };
        if volume.anonymous && !super::list(paths)?.iter().any(uses) {
            volume::remove(paths, name)?;
        }
    }
    Ok(())
}
