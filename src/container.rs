//! The handle on an existing container: its status, signals, freezing, removal.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxNamespaceType as Ns, LinuxResources};
use serde_json::json;

use crate::channel::{Channel, Message};
use crate::procfs::Proc;
use crate::security::seccomp::agent;
use crate::spec::{self, Config, IntelRdt};
use crate::state::{Folder, Init, Lock, Record};
use crate::{cgroup, hooks, log, sys};

/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a container is in its life (runtime-spec runtime.md, "State"; `Paused` is runc's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A runtime is setting it up.
    Creating,
    /// Waits for `start`.
    Created,
    /// Its program was executed.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// The word of the specification.
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container that is on record.
#[derive(Debug)]
pub struct Container {
    folder: Folder,
    /// Its record.
    pub record: Record,
    proc: Proc,
    config: OnceCell<Config>,
}

/// The specification's state JSON.
pub fn state_json(record: &Record, status: Status, pid: i32) -> serde_json::Value {
    let mut state = json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status.word(),
        "bundle": record.bundle,
        "annotations": record.annotations,
    });
    // A pid is required while there is a process; runc says 0 when there is none.
    state["pid"] = json!(pid);
    state
}

impl Container {
    /// The container `id` below the state root.
    ///
    /// # Errors
    /// When there is none, or its record is damaged.
    pub fn open(root: &Path, id: &str) -> Result<Self> {
        let folder = Folder::open(root, id)?.with_context(|| does_not_exist(root, id))?;
        let record = folder.record()?.with_context(|| {
            format!(
                "container {id} is half-made: a runtime is creating it, or was killed while it did \
                 (`ultari delete --force {id}` removes it)"
            )
        })?;
        Ok(Self { folder, record, proc: Proc::open()?, config: OnceCell::new() })
    }

    pub(crate) fn from_parts(folder: Folder, record: Record, proc: Proc, config: Config) -> Self {
        Self { folder, record, proc, config: config.into() }
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(crate) fn proc(&self) -> &Proc {
        &self.proc
    }

    /// The checked configuration that it was created with.
    ///
    /// # Errors
    /// When the copy of config.json is gone.
    pub fn config(&self) -> Result<&Config> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let config = spec::parse(&self.folder.config()?, &self.record.bundle)
            .with_context(|| format!("config.json of container {}", self.record.id))?;
        Ok(self.config.get_or_init(|| config))
    }

    /// Its status now, and the pid of its first process (0 when there is none).
    ///
    /// # Errors
    /// When its files can't be read.
    pub fn status(&self) -> Result<(Status, i32)> {
        let (status, init) = self.look()?;
        Ok((status, init.map_or(0, |init| init.pid)))
    }

    fn look(&self) -> Result<(Status, Option<Init>)> {
        let (init, locked) = self.folder.init()?;
        let alive = match init {
            Some(init) => self.is_alive(init)?.then_some(init),
            None => None,
        };
        let frozen = || self.record.cgroup.open()?.frozen();
        let status = match (alive, locked) {
            (None, false) => Status::Stopped,
            // Without a process on record the lock is held by who is about to make one.
            (None, true) => Status::Creating,
            (Some(_), true) if !self.folder.has_gate()? => Status::Creating,
            (Some(_), _) if frozen()? => Status::Paused,
            (Some(_), true) => Status::Created,
            (Some(_), false) => Status::Running,
        };
        Ok((status, alive))
    }

    fn is_alive(&self, init: Init) -> Result<bool> {
        let stat = self.proc.stat(init.pid)?;
        Ok(stat.is_some_and(|s| s.start_time == init.start_time && !matches!(s.state, 'Z' | 'X')))
    }

    /// The state JSON of this moment.
    ///
    /// # Errors
    /// As [`Container::status`].
    pub fn state(&self) -> Result<serde_json::Value> {
        let (status, pid) = self.status()?;
        let mut state = state_json(&self.record, status, pid);
        // What runc adds to the specification's fields.
        state["rootfs"] = json!(self.record.rootfs);
        state["created"] = json!(self.record.created);
        state["owner"] = json!(user_name(self.record.owner));
        Ok(state)
    }

    /// A pidfd of the first process; none when it has ended.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn init_pidfd(&self) -> Result<Option<(OwnedFd, i32)>> {
        let (Some(init), _) = self.folder.init()? else { return Ok(None) };
        let pidfd = match sys::clone::pidfd_open(init.pid) {
            Ok(pidfd) => pidfd,
            // EINVAL: only processes of its group or session are left, or a thread has its number.
            Err(Errno::ESRCH | Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno).context("watch the container's process"),
        };
        // Only now is it certain that the descriptor and the record mean one process.
        Ok(self.is_alive(init)?.then_some((pidfd, init.pid)))
    }

    /// Executes the program of a created container.
    ///
    /// # Errors
    /// With the reason for which the program could not be executed.
    pub fn start(&self) -> Result<()> {
        let id = &self.record.id;
        let (status, pid) = self.status()?;
        match status {
            Status::Created => {}
            Status::Running => bail!("cannot start container {id}: it is already running"),
            other => bail!("cannot start container {id}: it is {}, not created", other.word()),
        }
        let config = self.config()?;
        ensure!(
            config.process.is_some(),
            "cannot start container {id}: its config.json has no process"
        );
        let agent = self.connect_agent(Status::Created, pid, pid)?;
        if let Err(error) = self.pass_gate(agent) {
            if error.is::<HookFailed>() {
                self.undo();
            } else {
                self.kill_all();
            }
            return Err(error);
        }
        self.poststart(config, pid).inspect_err(|_| self.undo())
    }

    /// What the specification wants after a hook that has failed: the container is destroyed and
    /// the poststop hooks run (runtime.md, "Lifecycle").
    fn undo(&self) {
        if let Err(leftover) = self.destroy() {
            log::warning(&format!("{leftover:#}"));
        }
    }

    /// Connects to the seccomp agent, if the profile names one, for the process `pid` of the
    /// container whose first process is `init`.
    ///
    /// # Errors
    /// When nobody listens there; nothing has changed then.
    pub(crate) fn connect_agent(
        &self,
        status: Status,
        init: i32,
        pid: i32,
    ) -> Result<Option<agent::Connection>> {
        let wanted = agent::Listener::wanted(self.config()?.seccomp.as_ref())?;
        let Some(mut listener) = wanted else { return Ok(None) };
        listener.path = self.record.bundle.join(&listener.path);
        listener.connect(state_json(&self.record, status, init), pid).map(Some)
    }

    fn pass_gate(&self, agent: Option<agent::Connection>) -> Result<()> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .context("make a socket")?;
        let address = UnixAddr::new(&self.folder.gate_path()).context("address of the gate")?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)
            .context("connect to the container's init (another start may have been first)")?;
        let channel = Channel::over(socket);
        channel.send(&Message::Start { ignored: 0, filter: Vec::new() })?;
        wait_for_exec(&channel, agent)?;
        self.folder.wait_for_exec();
        Ok(())
    }

    /// Runs the poststart hooks of a program just executed as process `pid`.
    ///
    /// # Errors
    /// At the first hook that fails.
    pub fn run_poststart(&self, pid: i32) -> Result<()> {
        self.poststart(self.config()?, pid)
    }

    fn poststart(&self, config: &Config, pid: i32) -> Result<()> {
        if config.hooks.poststart.is_empty() {
            return Ok(());
        }
        let state = state_json(&self.record, Status::Running, pid).to_string();
        hooks::run_all("poststart", &config.hooks.poststart, &state, &self.record.bundle)
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    /// With runc's words, by which engines know that it has ended.
    pub fn kill(&self, signal: i32, all: bool) -> Result<()> {
        let cgroup = self.record.cgroup.open()?;
        // With the host's PID namespace the others would outlive the first process.
        let shared = signal == libc::SIGKILL && self.config()?.namespaces.get(Ns::Pid).is_none();
        let init = self.init_pidfd()?;
        if all || (shared && init.is_some()) {
            let processes = self.processes()?;
            if processes.is_empty() && init.is_none() {
                bail!("container not running");
            }
            return match signal {
                _ if !cgroup.exists() => cgroup::signal_each(&processes, signal),
                libc::SIGKILL => cgroup.kill(),
                signal => cgroup.signal_all(signal),
            };
        }
        let (pidfd, _) = init.context("container not running")?;
        match sys::clone::pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) => {}
            Err(Errno::ESRCH) => bail!("container not running"),
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("send signal {signal} to the container"));
            }
        }
        // A frozen process takes even SIGKILL only when it is thawed.
        if signal == libc::SIGKILL && cgroup.frozen().unwrap_or(false) {
            cgroup.thaw()?;
        }
        Ok(())
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<()> {
        let (status, _) = self.status()?;
        ensure!(
            matches!(status, Status::Running | Status::Created),
            "cannot pause container {}: container not running or created ({})",
            self.record.id,
            status.word()
        );
        let cgroup = self.record.cgroup.open()?;
        ensure!(
            cgroup.exists(),
            "cannot pause container {}: it has no cgroup of its own, by which processes are \
             frozen; create it in a delegated cgroup (systemd-run --user --scope -p Delegate=yes)",
            self.record.id
        );
        cgroup.freeze()
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn resume(&self) -> Result<()> {
        let (status, _) = self.status()?;
        ensure!(
            status == Status::Paused,
            "cannot resume container {}: container not paused ({})",
            self.record.id,
            status.word()
        );
        self.record.cgroup.open()?.thaw()
    }

    /// Changes limits and shares; what is not given stays as it is. Nothing is put on record: the
    /// kernel has the limits.
    ///
    /// # Errors
    /// When it is not running, or a limit was refused; all are as they were then.
    pub fn update(&self, resources: &LinuxResources, shares: &IntelRdt) -> Result<()> {
        let (status, _) = self.status()?;
        ensure!(
            matches!(status, Status::Created | Status::Running | Status::Paused),
            "cannot update container {}: container not running ({})",
            self.record.id,
            status.word()
        );
        // Two at a time might put back what the other has set.
        let _alone = self.lock()?;
        let mut undo = None;
        if !shares.lines().is_empty() {
            let groups = self.record.resctrl.as_ref().context(
                "linux.intelRdt: the container was created without it, so that it has no group \
                 whose shares could be changed",
            )?;
            undo = Some((groups, groups.update(shares)?));
        }
        let result = self.record.cgroup.open()?.apply(resources);
        if let (Err(_), Some((groups, old))) = (&result, &undo)
            && let Err(error) = groups.put_back(old)
        {
            log::warning(&format!("{error:#}"));
        }
        result?.iter().for_each(|warning| log::warning(warning));
        Ok(())
    }

    /// What it uses and has used.
    ///
    /// # Errors
    /// When it has no cgroup, or that can't be read.
    pub fn stats(&self) -> Result<cgroup::Stats> {
        let mut stats = self.record.cgroup.open()?.stats()?;
        if let Some(groups) = &self.record.resctrl {
            stats.intel_rdt = groups.stats();
        }
        Ok(stats)
    }

    /// The pids of all processes, in the caller's PID namespace.
    ///
    /// # Errors
    /// When the cgroup can't be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let cgroup = self.record.cgroup.open()?;
        match cgroup.exists() {
            true => cgroup.processes(),
            false => self.processes_by_namespace(),
        }
    }

    /// The processes of a container without a cgroup: those in its own PID namespace, else in its
    /// own mount namespace. Some may have left that; they are not found.
    fn processes_by_namespace(&self) -> Result<Vec<i32>> {
        let Some((_, init)) = self.init_pidfd()? else { return Ok(Vec::new()) };
        let namespaces = &self.config()?.namespaces;
        let kind = match (namespaces.is_new(Ns::Pid), namespaces.is_new(Ns::Mount)) {
            (true, _) => "pid",
            (false, true) => "mnt",
            (false, false) => return Ok(vec![init]),
        };
        let own = self.proc.namespace(init, kind);
        let mut found = self.proc.processes()?;
        found.retain(|pid| *pid == init || own.is_some() && self.proc.namespace(*pid, kind) == own);
        Ok(found)
    }

    /// Removes a stopped or created container; with `force` any.
    ///
    /// # Errors
    /// When it runs, or all that could not be removed.
    pub fn delete(&self, force: bool) -> Result<()> {
        if !force {
            let (status, _) = self.status()?;
            // The specification allows stopped ones only; every engine relies on created ones too.
            ensure!(
                matches!(status, Status::Stopped | Status::Created),
                "cannot delete container {} that is not stopped: {} (kill it first, or use --force)",
                self.record.id,
                status.word()
            );
        }
        self.destroy()
    }

    /// Keeps others from changing it, until the lock is dropped.
    ///
    /// # Errors
    /// When it has been deleted meanwhile.
    pub fn lock(&self) -> Result<Lock> {
        let gone = || format!("container {} has been deleted meanwhile", self.record.id);
        self.folder.lock()?.with_context(gone)
    }

    /// Ends whatever is left of the container and removes every trace, going on after errors.
    ///
    /// # Errors
    /// All that went wrong, together.
    pub fn destroy(&self) -> Result<()> {
        self.destroy_with(false)
    }

    /// As [`Container::destroy`], by who has seen the end of the first process.
    ///
    /// # Errors
    /// As that.
    pub fn destroy_ended(&self) -> Result<()> {
        self.destroy_with(true)
    }

    fn destroy_with(&self, ended: bool) -> Result<()> {
        log::debug(|| format!("remove container {}", self.record.id));
        // One after the other: what the second removed might be the next container of this name.
        let Some(alone) = self.folder.lock()? else { return Ok(()) };
        let config = self.config();
        let mut errors = Vec::new();
        let isolated = config.as_ref().is_ok_and(|c| c.namespaces.is_new(Ns::Pid));
        // The end of a PID namespace's first process has ended all others.
        let stopped = || ended || matches!(self.look(), Ok((Status::Stopped, _)));
        if !wait_for(|| {
            if !(isolated && stopped()) {
                self.kill_all();
            }
            // Who has seen the end has made it.
            ended || self.folder.bar()
        }) {
            let id = &self.record.id;
            bail!("a runtime is still creating container {id}: end that, then delete again");
        }
        errors.extend(self.record.cgroup.remove().err());
        errors.extend(self.record.resctrl.as_ref().and_then(|groups| groups.remove().err()));
        // Without the record nobody would find what is left.
        if errors.is_empty() {
            let own_mounts = config.as_ref().is_ok_and(|c| c.namespaces.get(Ns::Mount).is_some());
            let removed = match ended && own_mounts {
                true => self.folder.remove_unmounted(&alone),
                false => self.folder.remove(&alone),
            };
            errors.extend(removed.err());
        }
        if !errors.is_empty() {
            let texts: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
            let id = &self.record.id;
            bail!(
                "remove container {id} (`ultari delete --force {id}` tries again): {}",
                texts.join("; ")
            );
        }
        if let Ok(config) = &config {
            self.poststop(config);
        }
        Ok(())
    }

    /// A failing poststop hook must not keep the others from running.
    fn poststop(&self, config: &Config) {
        for hook in &config.hooks.poststop {
            let state = state_json(&self.record, Status::Stopped, 0).to_string();
            let one = std::slice::from_ref(hook);
            if let Err(error) = hooks::run_all("poststop", one, &state, &self.record.bundle) {
                log::warning(&format!("{error:#}"));
            }
        }
    }

    /// Kills the first process and all in the cgroup, and waits for the first to be gone.
    fn kill_all(&self) {
        let init = self.init_pidfd().ok().flatten();
        if let Some((pidfd, _)) = &init {
            let _ = sys::clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        if let Err(error) = self.record.cgroup.open().and_then(|cgroup| cgroup.kill()) {
            log::debug(|| format!("kill what is left in the cgroup: {error:#}"));
        }
        if let Some((pidfd, pid)) = init
            && !hooks::ends_within(&pidfd, KILL_TIMEOUT)
        {
            let tracer = self.proc.tracer(pid);
            let why = tracer.map(|tracer| format!(": process {tracer} traces it; end that"));
            let why = why.unwrap_or_default();
            log::warning(&format!("process {pid} does not end after SIGKILL{why}"));
        }
    }
}

/// Whether `condition` holds before [`KILL_TIMEOUT`] is over.
pub fn wait_for(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > KILL_TIMEOUT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The name of a user of the host, or the number where it has none.
pub(crate) fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    passwd.lines().find_map(of_user).unwrap_or_else(|| uid.to_string())
}

/// The text that engines recognise.
pub fn does_not_exist(root: &Path, id: &str) -> String {
    format!("container does not exist: {id} (in {})", root.display())
}

/// A startContainer hook failed.
#[derive(Debug)]
struct HookFailed(String);

impl std::fmt::Display for HookFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HookFailed {}

/// Reads from the container's init until it has executed its program; passes the descriptor of
/// its seccomp filter on to the agent.
///
/// # Errors
/// With the reason that it gives.
pub(crate) fn wait_for_exec(channel: &Channel, mut agent: Option<agent::Connection>) -> Result<()> {
    loop {
        match channel.receive()? {
            // The socket was closed by the exec.
            None => return Ok(()),
            Some(Message::Failed(text)) => bail!(text),
            Some(Message::HookFailed(text)) => bail!(HookFailed(text)),
            Some(Message::Listener(descriptor)) => {
                let agent = agent.take().context("channel: an unexpected seccomp listener")?;
                agent.send(&descriptor)?;
                channel.send(&Message::Delivered)?;
            }
            Some(Message::Warning(text)) => log::warning(&text),
            Some(other) => bail!("channel: unexpected {other:?}"),
        }
    }
}
