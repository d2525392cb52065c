//! The parent's view of a process that is being set up, and what the two say to each other.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::Options;
use crate::channel::{Channel, Message};
use crate::container::{Container, Status, wait_for_exec};
use crate::procfs::Proc;
use crate::security::seccomp;
use crate::spec::{Config, Process};
use crate::{console, hooks, log, notify, sys, timings};

/// A process that waits to become its program.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's PID namespace.
    pub pid: i32,
    /// Names it whatever happens to the pid.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when the caller keeps it.
    pub console: Option<OwnedFd>,
    /// It is the container's first process, not one of `exec`.
    pub(super) first: bool,
    /// It has been told to start already.
    pub(super) started: bool,
    pub(super) channel: Channel,
    /// Its seccomp filter, as a message has it.
    filter: Vec<u8>,
}

impl Child {
    pub(super) fn new(pid: i32, pidfd: OwnedFd, first: bool, channel: Channel) -> Self {
        Self { pid, pidfd, console: None, first, started: false, channel, filter: Vec::new() }
    }

    /// Compiles `linux.seccomp`, for which it has no time itself: everybody waits for it.
    ///
    /// What there is to say of the profile is for whoever looks at the log, or for the person who has
    /// called: engines' profiles name calls of every architecture and of newer kernels.
    pub(super) fn compile_filter(&mut self, config: &Config, options: &Options) -> Result<()> {
        if let Some(seccomp) = &config.seccomp {
            sys::heap::populate_more();
            let filter = seccomp::compile(seccomp.profile()?)?;
            let by_hand = options.pid_file.is_none();
            filter.warnings.iter().for_each(|text| log::quiet_warning(text, by_hand));
            self.filter = filter.to_bytes();
            timings::step("compile the system call filter");
        }
        Ok(())
    }

    /// Lets it execute its program as a process of `container`.
    ///
    /// # Errors
    /// With the reason for which it could not.
    pub fn start(&self, container: &Container) -> Result<()> {
        self.start_unnoticed(container)?;
        if self.first {
            container.folder().wait_for_exec();
        }
        Ok(())
    }

    /// The same, but for a moment others may still see a container that is created and does not run yet.
    /// For who tells nobody.
    ///
    /// # Errors
    /// As that.
    pub fn start_unnoticed(&self, container: &Container) -> Result<()> {
        let (status, init) = match self.first {
            true => (Status::Created, self.pid),
            false => container.status()?,
        };
        let agent = container.connect_agent(status, init, self.pid)?;
        if !self.started {
            self.say_start(container.proc())?;
        }
        wait_for_exec(&self.channel, agent)?;
        timings::step("wait until init has become the program");
        Ok(())
    }

    /// Tells it to go on; what it needs for that, it leaves to the parent, who waits for it anyway.
    pub(super) fn say_start(&self, proc: &Proc) -> Result<()> {
        let ignored = proc.ignored_signals().context("read which signals are ignored")?;
        self.channel.send(&Message::Start { ignored, filter: self.filter.clone() })
    }

    /// Tells it to start before it is ready, which saves it a wait: if nobody has anything to do
    /// between the two that could fail, or that the program may not overtake.
    pub(super) fn start_at_once(
        &mut self,
        config: &Config,
        process: &Process,
        options: &Options,
        proc: &Proc,
    ) -> Result<()> {
        let hooks = &config.hooks;
        let nothing_between = options.pid_file.is_none()
            && options.pidfd_socket.is_none()
            && !process.terminal
            && hooks.prestart.is_empty()
            && hooks.create_runtime.is_empty()
            && !notify::is_wanted()
            && seccomp::agent::Listener::wanted(config.seccomp.as_ref())?.is_none();
        if options.start_at_once && nothing_between {
            self.say_start(proc)?;
            self.started = true;
        }
        Ok(())
    }

    /// Ends and reaps it after `error`. If it had failed first, its own words say more than what
    /// the parent saw of that.
    pub(super) fn give_up(&self, error: anyhow::Error) -> anyhow::Error {
        // It is on its way out when its end of the channel or its namespaces are gone.
        let leaving = matches!(error.downcast_ref(), Some(Errno::EPIPE | Errno::ESRCH));
        let ended = leaving || hooks::ends_within(&self.pidfd, Duration::ZERO);
        let _ = sys::clone::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let status = sys::clone::wait_status(self.pidfd.as_fd());
        while ended && let Ok(Some(message)) = self.channel.receive() {
            if let Message::Failed(text) = message {
                return anyhow::Error::msg(text);
            }
        }
        if ended && status == Ok(128 + libc::SIGKILL) {
            return anyhow::Error::msg(
                "the container's init was killed while it was set up; for lack of memory? is \
                 linux.resources.memory.limit too low?",
            );
        }
        error
    }

    /// Keeps the terminal's master side, or passes it on to the engine.
    fn keep_console(&mut self, master: OwnedFd, options: &Options) -> Result<()> {
        // Kept open in any case: the child's own error for a lost terminal would say less.
        let master = self.console.insert(master);
        let Some(path) = &options.console_socket else {
            // Before the program looks at it.
            console::copy_window_size(master);
            return Ok(());
        };
        console::hand_over("--console-socket", path, b"/dev/ptmx", master)?;
        self.console = None;
        Ok(())
    }

    /// Takes its messages until it is ready; `mounted` runs the hooks that want the mounts made.
    pub(super) fn converse(
        &mut self,
        options: &Options,
        mounted: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        loop {
            match self.channel.receive()? {
                Some(Message::Ready) => break,
                Some(Message::Mounted) => {
                    mounted()?;
                    self.channel.send(&Message::HooksDone)?;
                }
                Some(Message::Console(master)) => self.keep_console(master, options)?,
                Some(Message::Warning(text)) => log::warning(&text),
                Some(Message::Failed(text)) => bail!(text),
                Some(other) => bail!("channel: unexpected {other:?}"),
                // As when it is written to: the process may not be quite gone yet.
                None => {
                    return Err(Errno::EPIPE)
                        .context("the container's init ended while it was set up");
                }
            }
        }
        if let Some(path) = &options.pidfd_socket {
            console::hand_over("--pidfd-socket", path, b"pidfd", &self.pidfd)?;
        }
        match &options.pid_file {
            Some(path) => write_pid_file(path, self.pid),
            None => Ok(()),
        }
    }
}

/// Engines wait for the file and read it at once, so it must appear whole.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let context = || format!("--pid-file {}", path.display());
    let name = path.file_name().with_context(context)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    std::fs::write(&temporary, pid.to_string()).with_context(context)?;
    std::fs::rename(&temporary, path).with_context(context)
}
