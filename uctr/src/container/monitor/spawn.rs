//! Starting a container: its monitor is executed, and says whether that worked.

use std::io::Read;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use ultari::sys::tty::WindowSize;

use super::{Connection, SET_UP, STARTED, finish};
use crate::container::Container;
use crate::container::record::Status;

/// How a client looks on from the first moment.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// `WANTS_…` of the protocol.
    pub wants: u8,
    /// Of its terminal.
    pub size: Option<WindowSize>,
}

/// The container could not be started.
#[derive(Debug)]
pub struct StartFailed {
    /// 125, 126 or 127.
    pub code: u8,
    /// Why.
    pub text: String,
}

impl std::fmt::Display for StartFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StartFailed {}

/// Starts a container that doesn't run; one that does is left as it is. Whoever wants to look on
/// gets a connection on which nothing is missing.
///
/// # Errors
/// [`StartFailed`]; or when its state forbids it.
pub fn start(container: &mut Container, client: Option<Client>) -> Result<Option<Connection>> {
    finish::settle(container)?;
    finish::reread(container)?;
    match container.state().status {
        Status::Running | Status::Restarting => {
            return client.map(|client| join(container, client)).transpose();
        }
        Status::Paused => bail!("cannot start a paused container, try unpause instead"),
        Status::Removing | Status::Dead => {
            bail!("container is marked for removal and cannot be started")
        }
        Status::Created | Status::Exited => {}
    }
    container.change(|record| {
        record.stopped_by_user = false;
        record.restart_count = 0;
        Ok(())
    })?;
    let pair = match client {
        Some(client) => {
            let (ours, theirs) = Connection::pair()?;
            ours.attach(client.wants, client.size).context("speak to the monitor")?;
            Some((ours, theirs))
        }
        None => None,
    };
    let (ours, theirs) = pair.unzip();
    spawn(container, theirs)?;
    finish::reread(container).or_else(|error| match ours {
        // It is over and removed already.
        Some(_) => Ok(()),
        None if container.record.host_config.auto_remove => Ok(()),
        None => Err(error),
    })?;
    Ok(ours)
}

/// Looks on at a container that runs.
///
/// # Errors
/// When its monitor is gone.
pub fn join(container: &Container, client: Client) -> Result<Connection> {
    let run = container.paths().container_run(&container.record.id);
    let connection = Connection::to(&run)?;
    let connection = connection.context("the container's monitor was killed: restart it")?;
    connection.attach(client.wants, client.size).context("speak to the monitor")?;
    Ok(connection)
}

fn spawn(container: &Container, client: Option<Connection>) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let log = container.folder().join("monitor.log");
    let log = std::fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let (mut report, theirs) = std::io::pipe().context("make a pipe")?;
    let mut command = Command::new("/proc/self/exe");
    let path = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    command
        .arg(SET_UP)
        .args([&container.paths().data, &container.paths().run])
        .arg(&container.record.id)
        .arg(program)
        .args(["0", ""])
        .env_clear()
        .env("PATH", path)
        .stdin(client.map_or_else(Stdio::null, |client| client.into_fd().into()))
        .stdout(theirs)
        .stderr(log);
    // ^C at the terminal is the client's business.
    ultari::sys::process::spawn_in_session(&mut command);
    let mut child = command.spawn().context("execute the monitor")?;
    // The command holds ends of the pipe and of the socket.
    drop(command);
    let mut text = String::new();
    report.read_to_string(&mut text).context("hear from the monitor")?;
    if text == STARTED {
        return Ok(());
    }
    let _ = child.wait();
    match text.split_once(' ') {
        Some((code, text)) => Err(StartFailed {
            code: code.parse().unwrap_or(125),
            text: format!("failed to start container {}: {text}", container.short_id()),
        }
        .into()),
        // Killed before it could say anything.
        None => died(container),
    }
}

fn died(container: &Container) -> Result<()> {
    let log = container.folder().join("monitor.log");
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let text = format!("the container's monitor ended unexpectedly: {}", text.trim());
    Err(StartFailed { code: 125, text }.into())
}
