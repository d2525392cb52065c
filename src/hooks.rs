//! Running hooks (runtime-spec config.md, "POSIX-platform Hooks").

use std::ffi::CStr;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::spec::Hook;
use crate::sys;

/// Runs `hooks` of the kind `name` in order in the folder `cwd`, each with the container's
/// `state` (the specification's JSON) on its standard input.
///
/// # Errors
/// At the first that can't be started, fails or takes longer than its timeout.
pub fn run_all(name: &str, hooks: &[Hook], state: &str, cwd: &Path) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        run(hook, state, cwd)
            .with_context(|| format!("hooks.{name}[{index}] ({})", hook.path.display()))?;
    }
    Ok(())
}

fn run(hook: &Hook, state: &str, cwd: &Path) -> Result<()> {
    let mut output = file_in_memory(c"hook-output")?;
    // A file, since a pipe would fill up while a hook does not read it.
    let mut input = file_in_memory(c"hook-state")?;
    input.write_all(state.as_bytes()).context("write the state for the hook")?;
    input.rewind().context("write the state for the hook")?;
    let mut command = Command::new(&hook.path);
    // The first argument of config.json is the program's own name for itself.
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command
        .env_clear()
        .envs(hook.env.iter().filter_map(|entry| entry.split_once('=')))
        .current_dir(cwd)
        .stdin(input)
        .stdout(output.try_clone().context("duplicate the hook's output")?)
        .stderr(output.try_clone().context("duplicate the hook's output")?);
    sys::process::spawn_unblocked(&mut command);
    let mut child = command.spawn().context("start the hook")?;
    if let Some(seconds) = hook.timeout {
        let pidfd = sys::clone::pidfd_open(child.id() as i32).context("watch the hook")?;
        if !ends_within(&pidfd, Duration::from_secs(seconds)) {
            let _ = child.kill();
            let _ = child.wait();
            bail!("still running after its timeout of {seconds} s, killed");
        }
    }
    let status = child.wait().context("wait for the hook")?;
    if !status.success() {
        let mut text = String::new();
        let _ = output.rewind().and_then(|()| output.read_to_string(&mut text));
        let said = text.trim().replace('\n', "; ");
        let said = if said.is_empty() { said } else { format!(": {said}") };
        bail!("{}{said}", describe(status));
    }
    Ok(())
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// A file without a name: a pipe could fill up while nobody reads.
fn file_in_memory(name: &CStr) -> Result<std::fs::File> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC);
    Ok(fd.context("make a file in memory for the hook")?.into())
}

/// Whether the process ends in time.
pub fn ends_within(pidfd: impl AsFd, limit: Duration) -> bool {
    let until = std::time::Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let timeout =
            PollTimeout::try_from(left.as_millis().saturating_add(1).min(i32::MAX as u128))
                .unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(1..) => return true,
            _ => {}
        }
    }
}
