//! The parent's side of `create`, `run` and `exec`: from the bundle to a process that waits at
//! its gate, and past it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use oci_spec::runtime::LinuxNamespaceType as Ns;

use crate::cgroup::{Door, Location};
use crate::channel::{Channel, Message};
use crate::container::{Container, Status, state_json, wait_for_exec};
use crate::init::{self, Common, Gate, NewContainer};
use crate::procfs::Proc;
use crate::resctrl::Groups;
use crate::rootfs::{self, idmap};
use crate::security::seccomp;
use crate::spec::mount::{ATTR_RDONLY, Kind};
use crate::spec::{self, Config, Namespaces, Process};
use crate::state::{Folder, Init, InitFile, Record};
use crate::sys::clone::Forked;
use crate::{
    cgroup, console, hooks, host, log, namespace, netdev, notify, process, sys, timings, userns,
};

/// What the command line says beside the bundle.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder of all containers' records.
    pub root: PathBuf,
    /// The container's name.
    pub id: String,
    /// A file to write the pid to.
    pub pid_file: Option<PathBuf>,
    /// A socket that takes the terminal's master side.
    pub console_socket: Option<PathBuf>,
    /// Move the root filesystem instead of `pivot_root`.
    pub no_pivot: bool,
    /// Stay in the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// A socket that takes a pidfd of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// Cgroups below the container's for a process of `exec`, as [`cgroup::Cgroup::enter`] has them.
    pub cgroups: Vec<String>,
    /// How many of them are sockets that systemd opened for the program (sd_listen_fds(3)).
    pub listen_fds: u32,
    /// The caller goes away before the program ends.
    pub detach: bool,
    /// Have systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// The caller does nothing between the making of the process and [`Child::start`].
    pub start_at_once: bool,
}

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
    first: bool,
    /// It has been told to start already.
    started: bool,
    channel: Channel,
}

impl Child {
    /// Lets it execute its program as a process of `container`.
    ///
    /// # Errors
    /// With the reason for which it could not.
    pub fn start(&self, container: &Container) -> Result<()> {
        let (status, init) = match self.first {
            true => (Status::Created, self.pid),
            false => container.status()?,
        };
        let agent = container.connect_agent(status, init, self.pid)?;
        if !self.started {
            self.channel.send(&Message::Start)?;
        }
        wait_for_exec(&self.channel, agent)?;
        if self.first {
            container.folder().wait_for_exec();
        }
        timings::step("wait until init has become the program");
        Ok(())
    }

    /// Tells it to start before it is ready, which saves it a wait: if nobody has anything to do
    /// between the two that could fail, or that the program may not overtake.
    fn start_at_once(
        &mut self,
        config: &Config,
        process: &Process,
        options: &Options,
    ) -> Result<()> {
        let hooks = &config.hooks;
        let nothing_between = options.pid_file.is_none()
            && options.pidfd_socket.is_none()
            && !process.terminal
            && hooks.prestart.is_empty()
            && hooks.create_runtime.is_empty()
            && !notify::is_wanted()
            && config.seccomp.as_ref().and_then(seccomp::agent::Listener::of).is_none();
        if options.start_at_once && nothing_between {
            self.channel.send(&Message::Start)?;
            self.started = true;
        }
        Ok(())
    }

    /// Ends and reaps it after `error`. If it had failed first, its own words say more than what
    /// the parent saw of that.
    fn give_up(&self, error: anyhow::Error) -> anyhow::Error {
        let hung_up = error.downcast_ref::<Errno>() == Some(&Errno::EPIPE);
        let ended = hung_up || hooks::ends_within(&self.pidfd, Duration::ZERO);
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
    fn converse(&mut self, options: &Options, mounted: &dyn Fn() -> Result<()>) -> Result<()> {
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

/// Checks that a terminal has somebody to hold its other side.
pub(crate) fn check_terminal(process: Option<&Process>, options: &Options) -> Result<()> {
    let terminal = process.is_some_and(|process| process.terminal);
    let socket = options.console_socket.is_some();
    ensure!(
        !terminal || socket || !options.detach,
        "process.terminal: nobody would hold the terminal of a detached container; give \
         --console-socket, or set it to false"
    );
    ensure!(
        terminal || !socket,
        "--console-socket: there is no terminal to pass (process.terminal is false)"
    );
    Ok(())
}

/// Compiles the filter early, so that its errors come before anything is made. Engines' profiles
/// name calls of every architecture and of newer kernels: what there is to say of those is for
/// whoever looks at the log, or runs this by hand.
fn compile(config: &Config) -> Result<Option<seccomp::Filter>> {
    let Some(seccomp) = &config.seccomp else { return Ok(None) };
    let filter = seccomp::compile(seccomp)?;
    for warning in &filter.warnings {
        log::quiet_warning(warning);
    }
    Ok(Some(filter))
}

/// Checks the descriptors to pass, and tells the program of those from systemd.
fn pass_descriptors(process: &mut Process, options: &Options) -> Result<()> {
    let last = options.preserve_fds.checked_add(2).filter(|last| *last < 1 << 20);
    let last = last.context("--preserve-fds: too many")?;
    for fd in 3..=last as i32 {
        ensure!(
            sys::fs::is_inherited(fd),
            "--preserve-fds {}: descriptor {fd} is not open",
            options.preserve_fds - options.listen_fds
        );
    }
    // Everything else that leaked into the caller or its engine is not even for hooks.
    sys::fs::cloexec_from(3 + options.preserve_fds).context("close inherited descriptors")?;
    if options.listen_fds > 0 {
        process.env.push(CString::new(format!("LISTEN_FDS={}", options.listen_fds))?);
        process.env.push(c"LISTEN_PID=1".into());
        if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
            process.env.push(CString::new(format!("LISTEN_FDNAMES={names}"))?);
        }
    }
    Ok(())
}

/// Takes away the capabilities that are not there to be given. In a user namespace all are.
fn limit_capabilities(process: &mut Process, namespaces: &Namespaces) -> Result<()> {
    if namespaces.get(Ns::User).is_some() {
        return Ok(());
    }
    let missing = process.capabilities.limit_to_available()?;
    if !missing.is_empty() {
        let names = missing.join(", ");
        log::warning(&format!("process.capabilities: not available here: {names}"));
    }
    Ok(())
}

pub(crate) fn keyring(options: &Options, id: &str) -> Result<Option<CString>> {
    match options.no_new_keyring {
        true => Ok(None),
        false => Ok(Some(CString::new(format!("_ses.{id}"))?)),
    }
}

/// Makes the container of the bundle in the absolute folder `bundle`, up to the point where its
/// program could be executed. `wait_at_gate`: for a later `start`, else for [`Child::start`].
///
/// # Errors
/// Names the step and the property; nothing is left behind.
pub fn create(bundle: &Path, options: &Options, wait_at_gate: bool) -> Result<(Container, Child)> {
    let (mut config, text) = spec::load(bundle)?;
    timings::step("read config.json");
    check_terminal(config.process.as_ref(), options)?;
    ensure!(
        wait_at_gate || config.process.is_some(),
        "config.json has no process: such a container can be created, but not run"
    );
    if let Some(error) = host::missing(&config).into_iter().next() {
        return Err(error);
    }
    if let Some(process) = &mut config.process {
        pass_descriptors(process, options)?;
        limit_capabilities(process, &config.namespaces)?;
    }
    config.warnings.iter().for_each(|warning| log::warning(warning));
    let filter = compile(&config)?;
    let proc = Proc::open()?;
    timings::step("look what the host has; compile the system call filter");
    let (folder, record, init_file) = put_on_record(bundle, &mut config, &text, options, &proc)?;
    timings::step("reserve the id, find the place of the cgroup, write the record");
    let gate = folder.gate_path();
    let container = Container::from_parts(folder, record, proc, config);
    let made = make(&container, filter, init_file, options, wait_at_gate.then_some(&gate));
    match made {
        Ok(child) => Ok((container, child)),
        Err(error) => {
            if let Err(leftover) = container.destroy() {
                log::warning(&format!("{leftover:#}"));
            }
            Err(userns::explain_failure(error, &container.config()?.namespaces))
        }
    }
}

/// Reserves the id, and writes down what is about to be made and where.
pub(crate) fn put_on_record(
    bundle: &Path,
    config: &mut Config,
    text: &[u8],
    options: &Options,
    proc: &Proc,
) -> Result<(Folder, Record, InitFile)> {
    let id = &options.id;
    let folder = Folder::create(&options.root, id)?;
    let recorded = (|| {
        let init_file = folder.create_init()?;
        let path = config.cgroups_path.as_deref();
        let record = Record {
            oci_version: config.oci_version.clone(),
            id: id.clone(),
            bundle: bundle.to_owned(),
            rootfs: config.rootfs.clone(),
            created: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
            owner: nix::unistd::geteuid().as_raw(),
            annotations: config.annotations.clone(),
            cgroup: match options.systemd_cgroup {
                true => Location::locate_unit(path, id, bundle, &config.annotations)?,
                false => Location::locate(path, id)?,
            },
            resctrl: match &config.intel_rdt {
                Some(rdt) => Some(Groups::locate(rdt, id, proc)?),
                None => None,
            },
        };
        folder.write(&record, text)?;
        notify::add_to(config, &folder)?;
        Ok((record, init_file))
    })();
    match recorded {
        Ok((record, init_file)) => Ok((folder, record, init_file)),
        Err(error) => {
            let _ = folder.remove();
            Err(error)
        }
    }
}

fn make(
    container: &Container,
    filter: Option<seccomp::Filter>,
    init_file: InitFile,
    options: &Options,
    gate: Option<&PathBuf>,
) -> Result<Child> {
    let record = &container.record;
    let config = container.config()?;
    let proc = container.proc();
    let (mut cgroup, warnings) = record.cgroup.create(config.resources.as_ref())?;
    warnings.iter().for_each(|warning| log::warning(warning));
    timings::step("make the cgroup, set its limits");
    if let (Some(groups), Some(rdt)) = (&record.resctrl, &config.intel_rdt) {
        groups.create(rdt)?;
    }
    let gate_socket = match gate {
        Some(_) => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let made = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
            Some(made.context("make the gate's socket")?)
        }
        None => None,
    };
    let child_gate = match &gate_socket {
        Some(socket) => Gate::Socket(socket.try_clone().context("duplicate the gate's socket")?),
        None => Gate::Channel,
    };
    let root = match config.namespaces.get(Ns::Mount) {
        Some(_) => None,
        None => {
            let target = container.folder().make_rootfs()?;
            Some(rootfs::attach_in_host(&config.rootfs, &target)?)
        }
    };
    let plan = NewContainer {
        config,
        record,
        sources: idmap::open_sources(config, proc)?,
        root,
        no_pivot: options.no_pivot,
        init_file,
        gate: child_gate,
        common: Common {
            process: config.process.as_ref(),
            filter,
            proc,
            preserve_fds: options.preserve_fds,
            personality: config.personality,
            memory_policy: config.memory_policy.as_ref(),
            door: cgroup.door()?,
            keyring: keyring(options, &record.id)?,
        },
    };
    timings::step("prepare the clone");
    let (mut child, init_file) = clone_init(plan, &cgroup)?;
    timings::step("clone init into its namespaces");
    let outcome = (|| {
        log::debug(|| format!("init of container {} is process {}", record.id, child.pid));
        let new_user = config.namespaces.is_new(Ns::User);
        if new_user {
            let maps = &config.namespaces;
            let (uids, gids) = (&maps.uid_mappings, &maps.gid_mappings);
            userns::write_maps("linux", uids, gids, proc, child.pid)?;
        }
        place_first(&child, &mut cgroup, record, config, proc)?;
        timings::step("let systemd and resctrl have init");
        if new_user {
            // From now on it may be another user's process, which one without privileges can't place.
            child.channel.send(&Message::Mapped)?;
        }
        let stat = proc.stat(child.pid)?.context("the container's init is gone")?;
        init_file.write(Init { pid: child.pid, start_time: stat.start_time })?;
        drop(init_file);
        netdev::move_all(&config.net_devices, child.pid, &child.pidfd)?;
        child.channel.send(&Message::Placed)?;
        if let (None, Some(process)) = (gate, &config.process) {
            child.start_at_once(config, process, options)?;
        }
        timings::step("put init on record");
        let pid = child.pid;
        child.converse(options, &|| runtime_hooks(record, config, pid))?;
        timings::step("wait until init is ready");
        match (gate, gate_socket) {
            (Some(path), Some(socket)) => open_gate(&child, path, &socket),
            _ => Ok(()),
        }
    })();
    match outcome {
        Ok(()) => Ok(child),
        Err(error) => Err(child.give_up(error)),
    }
}

/// Clones the first process. The caller's working directory and namespaces are the child's for
/// that moment.
fn clone_init(plan: NewContainer, cgroup: &cgroup::Cgroup) -> Result<(Child, InitFile)> {
    let config = plan.config;
    let namespaces = &config.namespaces;
    let here = nix::fcntl::open(
        ".",
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .context("open the working directory")?;
    nix::unistd::chdir(&config.rootfs)
        .with_context(|| format!("root.path: change into {}", config.rootfs.display()))?;
    let (channel, theirs) = Channel::pair()?;
    match namespace::fork(namespaces, cgroup, plan.common.process, plan.common.proc)? {
        Forked::Child => {
            drop(channel);
            init::new_container(plan, theirs)
        }
        Forked::Parent { pid, pidfd } => {
            let child = Child { pid, pidfd, console: None, first: true, started: false, channel };
            match nix::unistd::fchdir(&here).context("return to the working directory") {
                Ok(()) => Ok((child, plan.init_file)),
                Err(error) => Err(child.give_up(error)),
            }
        }
    }
}

/// Who is to own the container's cgroup instead of the caller: the container's user, where it gets
/// a cgroup namespace and a writable view of cgroup v2 (config-linux.md, "Cgroup ownership"). On v1
/// that would not be safe.
pub(crate) fn cgroup_owner(config: &Config, record: &Record) -> Option<u32> {
    let writable = |mount: &spec::Mount| {
        let attributes = mount.attr.set | mount.recursive_attr.set;
        matches!(mount.kind, Kind::Cgroup) && attributes & ATTR_RDONLY == 0
    };
    let wanted = record.cgroup.is_unified()
        && config.namespaces.is_new(Ns::Cgroup)
        && config.mounts.iter().any(writable);
    let uid = config.process.as_ref().map_or(0, |process| process.user.uid);
    config.namespaces.host_uid(uid).filter(|uid| wanted && *uid != 0)
}

/// As [`place`], for the first process: only around it can systemd make the cgroup.
fn place_first(
    child: &Child,
    cgroup: &mut cgroup::Cgroup,
    record: &Record,
    config: &Config,
    proc: &Proc,
) -> Result<()> {
    let resources = config.resources.as_ref();
    let warnings = cgroup.start_unit(child.pid, resources, &record.annotations)?;
    warnings.iter().for_each(|warning| log::warning(warning));
    if let Some(uid) = cgroup_owner(config, record) {
        cgroup.delegate(uid)?;
    }
    place(child, cgroup, record, config.process.as_ref(), proc)
}

/// What only the parent may do to the child: its cgroups and resctrl groups, its rank for the OOM killer.
fn place(
    child: &Child,
    cgroup: &cgroup::Cgroup,
    record: &Record,
    process: Option<&Process>,
    proc: &Proc,
) -> Result<()> {
    if !cgroup.is_joined_by_clone() {
        cgroup.add(child.pid)?;
    }
    if let Some(groups) = &record.resctrl {
        groups.add(child.pid)?;
    }
    process::set_oom_score(process, &child.pid.to_string(), proc)
}

pub(crate) fn runtime_hooks(record: &Record, config: &Config, pid: i32) -> Result<()> {
    // These were part of `start` once, and are still told so (runtime.md, "Lifecycle": their step
    // is after the one that is called creating).
    let state = state_json(record, Status::Created, pid).to_string();
    hooks::run_all("prestart", &config.hooks.prestart, &state, &record.bundle)?;
    let state = state_json(record, Status::Creating, pid).to_string();
    hooks::run_all("createRuntime", &config.hooks.create_runtime, &state, &record.bundle)
}

/// The gate appears on disk when everything else is ready: that makes the container "created".
fn open_gate(child: &Child, path: &Path, socket: &OwnedFd) -> Result<()> {
    let address = UnixAddr::new(path).context("address of the gate")?;
    bind(socket.as_raw_fd(), &address).context("make the gate")?;
    listen(socket, Backlog::new(16).context("backlog")?).context("open the gate")?;
    child.channel.send(&Message::Start)
}

/// The root folder of the process `pid`, which `pidfd` is a descriptor of.
fn own_root(pidfd: &OwnedFd, pid: i32) -> Result<OwnedFd> {
    use nix::fcntl::OFlag;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let path = format!("/proc/{pid}/root");
    let root = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())
        .with_context(|| format!("exec: open {path}"))?;
    // Only now is it certain that the number still meant this process.
    sys::clone::pidfd_send_signal(pidfd.as_fd(), 0).context("exec: the container has ended")?;
    Ok(root)
}

/// Starts a further process in `container`, up to the point where its program could be executed.
/// The caller stays on the processors of `process.execCPUAffinity.initial`, if there are any.
///
/// # Errors
/// When the container does not run, or the step and property that failed.
pub fn exec(container: &Container, process: &mut Process, options: &Options) -> Result<Child> {
    check_terminal(Some(process), options)?;
    pass_descriptors(process, options)?;
    let id = &container.record.id;
    let config = container.config()?;
    limit_capabilities(process, &config.namespaces)?;
    let process = &*process;
    if let Some(error) = host::missing_for(process).into_iter().next() {
        return Err(error);
    }
    let mut cgroup = container.record.cgroup.open()?.or_without();
    if !options.cgroups.is_empty() {
        cgroup.enter(&options.cgroups)?;
    }
    let (target, init_pid) = container
        .init_pidfd()?
        .with_context(|| format!("cannot exec in container {id}: it is stopped"))?;
    let proc = container.proc();
    let mut plan = Common {
        process: Some(process),
        filter: compile(config)?,
        proc,
        preserve_fds: options.preserve_fds,
        personality: config.personality,
        memory_policy: config.memory_policy.as_ref(),
        door: Door::default(),
        keyring: keyring(options, id)?,
    };
    let root = match config.namespaces.is_new(Ns::Mount) {
        true => None,
        false => Some(own_root(&target, init_pid)?),
    };
    if let Some(cpus) = process.exec_affinity.as_ref().and_then(|cpus| cpus.initial.as_ref()) {
        sys::process::set_affinity(cpus).context(
            "process.execCPUAffinity.initial: may the runtime run on any of these processors?",
        )?;
    }
    timings::step("look at the container, compile the system call filter");
    let (channel, theirs) = Channel::pair()?;
    let mut fork = |cgroup: &cgroup::Cgroup| {
        plan.door = cgroup.door()?;
        namespace::fork_into(&target, &config.namespaces, cgroup, process, proc)
    };
    let (forked, left) = match fork(&cgroup) {
        Err(error) if error.downcast_ref() == Some(&Errno::EBUSY) && options.cgroups.is_empty() => {
            cgroup.follow(init_pid, proc)?;
            fork(&cgroup)?
        }
        forked => forked?,
    };
    let mut child = match forked {
        Forked::Child => {
            drop(channel);
            // The container's processes see this one as soon as it is in their PID namespace.
            let _ = sys::process::set_dumpable(false);
            let user = config.namespaces.get(Ns::User).is_some();
            init::joined(&plan, &target, left, user, root, theirs)
        }
        Forked::Parent { pid, pidfd } => {
            Child { pid, pidfd, console: None, first: false, started: false, channel }
        }
    };
    drop(theirs);
    timings::step("clone the process");
    let outcome = place(&child, &cgroup, &container.record, Some(process), proc)
        .and_then(|()| child.channel.send(&Message::Placed))
        .and_then(|()| child.start_at_once(config, process, options))
        .and_then(|()| child.converse(options, &|| Ok(())));
    timings::step("put it into the cgroup, wait until it is ready");
    match outcome {
        Ok(()) => Ok(child),
        Err(error) => Err(child.give_up(error)),
    }
}
