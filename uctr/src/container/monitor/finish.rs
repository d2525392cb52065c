//! After the end of a container's program: what it had is freed, what is known goes on record, and
//! the restart policy has its say. Also for a container whose monitor was killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::mount::{MntFlags, umount2};

use super::is_alive;
use crate::container::record::{Record, Status};
use crate::container::{Container, lifecycle};
use crate::network::{self, Attached};

/// How long the first restart waits, in milliseconds; each further one twice as long.
pub const FIRST_DELAY: u64 = 100;
/// And the longest.
pub const LAST_DELAY: u64 = 60_000;
/// Who ran so long is started again without delay, in seconds.
const LONG: i64 = 10;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start it again, after so many milliseconds at least.
    Restart(u64),
    /// It is over.
    Nothing,
}

/// A start that failed.
#[derive(Debug)]
pub struct Failed {
    /// Docker's exit status for it: 125, 126 or 127.
    pub code: i32,
    /// Why.
    pub text: String,
}

/// Docker's exit status for a container that could not be started: whether its program isn't there
/// or can't be executed is known by the runtime's words.
#[must_use]
pub fn failure_code(text: &str) -> i32 {
    let of_program = text.contains("process.args[0]");
    let missing = ["executable file not found", "no such file or directory", "not a directory"];
    if of_program && missing.iter().any(|words| text.contains(words)) {
        127
    } else if of_program && text.contains("permission denied") {
        126
    } else {
        125
    }
}

/// Frees whatever it had got, and puts the reason on record.
pub fn failed_start(container: &mut Container, error: &anyhow::Error, restarted: bool) -> Failed {
    let text = format!("{error:#}").replace('\n', " ");
    let code = failure_code(&text);
    let freed = free(container);
    let noted = container.change(|record| {
        record.network = Attached::default();
        record.state.pid = 0;
        record.state.exit_code = code;
        record.state.error.clone_from(&text);
        if restarted || record.state.started_at.is_some() {
            record.state.status = Status::Exited;
            record.state.finished_at = Some(Timestamp::now());
        } else {
            record.state.status = Status::Created;
        }
        Ok(())
    });
    for leftover in [freed, noted].into_iter().filter_map(Result::err) {
        eprintln!("uctr: {leftover:#}");
    }
    Failed { code, text }
}

/// Takes away its network, and what the runtime has of it.
///
/// # Errors
/// When something can't be freed.
pub fn free(container: &Container) -> Result<()> {
    let record = &container.record;
    let detached = match record.wishes.is_empty() {
        true => Ok(()),
        false => network::detach(container.paths(), &record.id),
    };
    let runtime = container.paths().runtime();
    if ultari::state::Folder::open(&runtime, &record.id)?.is_some() {
        let opened = ultari::container::Container::open(&runtime, &record.id);
        match opened {
            Ok(opened) => opened.destroy()?,
            // A killed monitor's, before there was anything to tell of.
            Err(_) => {
                let folder = ultari::state::Folder::open(&runtime, &record.id)?;
                if let Some(folder) = folder
                    && let Some(alone) = folder.lock()?
                {
                    folder.remove(&alone)?;
                }
            }
        }
    }
    detached
}

/// Whether the kernel has killed a process of it for lack of memory.
fn out_of_memory(container: &Container) -> bool {
    let runtime = container.paths().runtime();
    let Ok(opened) = ultari::container::Container::open(&runtime, &container.record.id) else {
        return false;
    };
    let cgroup = &opened.record.cgroup;
    let v1 = cgroup.v1_paths().find(|(name, _)| *name == "memory");
    let file = match v1 {
        Some((_, path)) => path.join("memory.oom_control"),
        None => cgroup.unified_path().join("memory.events"),
    };
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let count = |line: &str| line.strip_prefix("oom_kill ").and_then(|n| n.parse::<u64>().ok());
    text.lines().find_map(count).is_some_and(|count| count > 0)
}

/// Whether the policy wants it to be started again.
fn wants_restart(record: &Record, status: i32) -> bool {
    let policy = &record.host_config.restart_policy;
    let more = policy.maximum_retry_count == 0 || record.restart_count < policy.maximum_retry_count;
    !record.stopped_by_user
        && match policy.name.as_str() {
            "always" | "unless-stopped" => true,
            "on-failure" => status != 0 && more,
            _ => false,
        }
}

/// After the end of the program with `status`.
pub fn finish(container: &mut Container, status: i32) -> Result<Next> {
    let oom = out_of_memory(container);
    let freed = free(container);
    let mut next = Next::Nothing;
    container.change(|record| {
        record.network = Attached::default();
        record.state.pid = 0;
        record.state.exit_code = status;
        record.state.oom_killed = oom;
        record.state.finished_at = Some(Timestamp::now());
        if record.state.status != Status::Removing {
            record.state.status = Status::Exited;
            if wants_restart(record, status) {
                record.state.status = Status::Restarting;
                record.restart_count += 1;
                next = Next::Restart(FIRST_DELAY);
            }
        }
        Ok(())
    })?;
    freed?;
    if next == Next::Nothing && container.record.host_config.auto_remove {
        // A folder on which something is mounted in this namespace can't be removed.
        let _ = umount2(&container.folder().join("rootfs"), MntFlags::MNT_DETACH);
        lifecycle::remove_stopped(container, true)?;
    }
    Ok(next)
}

/// Whether it ran so long that its end is no sign of a crash at each start.
pub fn ran_long(container: &Container) -> bool {
    let state = &container.record.state;
    match (state.started_at, state.finished_at) {
        (Some(start), Some(end)) => end.duration_since(start).as_secs() >= LONG,
        _ => false,
    }
}

/// Whether nobody has stopped it while it waited. If so it is over.
pub fn may_restart(container: &mut Container) -> Result<bool> {
    container.change(|record| {
        if record.stopped_by_user && record.state.status == Status::Restarting {
            record.state.status = Status::Exited;
        }
        Ok(record.state.status == Status::Restarting)
    })
}

/// It can't be started again.
pub fn give_up(container: &mut Container, why: &str) -> Result<()> {
    container.change(|record| {
        record.state.status = Status::Exited;
        record.state.error = why.into();
        Ok(())
    })
}

/// Does what a monitor that was killed has left undone, if the program has ended.
///
/// # Errors
/// When something can't be freed.
pub fn settle(container: &mut Container) -> Result<()> {
    settled_after(container, 255)
}

/// As [`settle`], for a program of which the end is known: `status` is its exit status.
///
/// # Errors
/// When something can't be freed.
pub fn settled_after(container: &mut Container, status: i32) -> Result<()> {
    let recorded = |container: &Container| {
        let status = container.record.state.status;
        status.is_alive() || status == Status::Restarting
    };
    if !recorded(container) || is_alive(container) || container.state().status.is_alive() {
        return Ok(());
    }
    free(container)?;
    container.change(|record| {
        let state = &mut record.state;
        if state.status.is_alive() || state.status == Status::Restarting {
            if state.status.is_alive() {
                state.exit_code = status;
                state.finished_at = Some(Timestamp::now());
            }
            state.status = Status::Exited;
            state.pid = 0;
            record.network = Attached::default();
        }
        Ok(())
    })
}

/// Waits for the monitor to go.
///
/// # Errors
/// When it doesn't.
pub fn wait_for_monitor(container: &Container, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    while is_alive(container) {
        if Instant::now() > until {
            bail!("the container's monitor does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// For whoever needs the record of this moment.
///
/// # Errors
/// When the container is gone.
pub fn reread(container: &mut Container) -> Result<()> {
    let id = container.record.id.clone();
    *container =
        Container::read(container.paths(), &id)?.with_context(|| crate::container::NotFound(id))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s24_exit_statuses_of_failed_starts() {
        for (text, code) in [
            ("process.args[0]: exec \"x\": executable file not found in $PATH (/bin)", 127),
            ("process.args[0]: exec \"/x\": no such file or directory", 127),
            ("process.args[0]: exec \"/x\": permission denied (it is a folder)", 126),
            ("mounts[3]: /x: no such file or directory", 125),
            ("process.cwd: permission denied", 125),
        ] {
            assert_eq!(failure_code(text), code, "{text}");
        }
    }
}
