//! The container's first process, and the processes of `exec`: from the clone to the program.
//!
//! Runs in the child. Everything it needs was loaded and checked before the clone and came with
//! it; everything it can't do itself the parent does, over the channel.

mod mounting;

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use oci_spec::runtime::LinuxNamespaceType as Ns;

use crate::channel::{Channel, Message};
use crate::container::{Status, state_json};
use crate::procfs::Proc;
use crate::rootfs::{self, devices, mask, mounts, root::Root};
use crate::security::seccomp;
use crate::spec::{Config, Hook, MemoryPolicy, Process, Seccomp};
use crate::state::{InitFile, Record};
use crate::sys::clone::exit_now;
use crate::sys::descriptor::{Fd, Together, close_all_but, close_put_off};
use crate::{cgroup, executable, hooks, namespace, process, seal, sys, timings};

/// Where the process waits before it becomes the program.
pub enum Gate {
    /// For the parent, which stays (`run`, `exec`).
    Channel,
    /// At a socket, for `start`; the parent opens it and goes.
    Socket(OwnedFd),
}

/// What both kinds of process need.
pub struct Common<'a> {
    /// What to run; a container without a program waits until it is deleted.
    pub process: Option<&'a Process>,
    /// The profile of its system call filter, which the parent compiles meanwhile.
    pub seccomp: Option<&'a Seccomp>,
    /// Whether it has lost the capabilities that the program must never gain.
    pub bounded: Cell<bool>,
    /// The host's procfs.
    pub proc: &'a Proc,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// `personality(2)` domain.
    pub personality: Option<u64>,
    /// Where memory comes from.
    pub memory_policy: Option<&'a MemoryPolicy>,
    /// Name of a new session keyring, if one is wanted.
    pub keyring: Option<CString>,
}

impl Common<'_> {
    fn limit_capabilities(&self) -> Result<()> {
        match self.process {
            Some(process) if !self.bounded.replace(true) => process.capabilities.apply_bounding(),
            _ => Ok(()),
        }
    }
}

/// What the first process of a container needs.
pub struct NewContainer<'a> {
    /// The checked config.json.
    pub config: &'a Config,
    /// What is on record.
    pub record: &'a Record,
    /// Bind mount sources that the parent had to open, by index of `mounts`.
    pub sources: Vec<Option<Fd>>,
    /// Its root, where that was attached in the caller's mount namespace.
    pub root: Option<Fd>,
    /// Move the root instead of `pivot_root`.
    pub no_pivot: bool,
    /// The network namespace is new, and nobody else brings its loopback interface up.
    pub loopback: bool,
    /// Holds the lock that says "not yet executed".
    pub init_file: InitFile,
    /// Where to wait.
    pub gate: Gate,
    /// The rest.
    pub common: Common<'a>,
}

/// Sets up the container and becomes its program.
pub fn new_container(mut plan: NewContainer, channel: Channel) -> ! {
    timings::enter_init();
    // Of descriptors those that matter are closed at once; all others are in `prepare`.
    std::mem::forget(Together::begin());
    // As much as it writes to.
    sys::heap::populate_again(40 << 10);
    if !pivots_unseen(&plan) {
        seal::let_go();
    }
    let gate = std::mem::replace(&mut plan.gate, Gate::Channel);
    finish(channel, |channel| {
        let console = set_up(&mut plan, channel)?;
        let hooks = &plan.config.hooks.start_container;
        let state = || own_state(&plan, Status::Created);
        let kept = vec![plan.init_file.as_fd().as_raw_fd()];
        become_program(&plan.common, channel, gate, console, kept, (hooks, &state))
    })
}

/// Joins the container whose first process is `target` and becomes the program. `root`: its root
/// folder, where that is not the root of its mount namespace; `user`: there is a user namespace
/// whose root this process is to be.
pub fn joined(
    plan: &Common,
    target: &OwnedFd,
    flags: CloneFlags,
    user: bool,
    root: Option<Fd>,
    channel: Channel,
) -> ! {
    timings::enter_init();
    std::mem::forget(Together::begin());
    finish(channel, |channel| {
        let console = join(plan, target, flags, user, root, channel)?;
        timings::step("join the namespaces");
        become_program(plan, channel, Gate::Channel, console, Vec::new(), (&[], &String::new))
    })
}

/// Runs the child's life and reports its failure to whoever waits for it by then; never returns
/// into the parent's code.
fn finish(mut channel: Channel, life: impl FnOnce(&mut Channel) -> Result<Infallible>) -> ! {
    let error = match life(&mut channel) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = channel.send(&Message::Failed(format!("{error:#}")));
    exit_now(1)
}

fn set_up(plan: &mut NewContainer, channel: &Channel) -> Result<Option<OwnedFd>> {
    let config = plan.config;
    unblock_signals()?;
    // Devices and folders get the modes asked for, not what the caller's mask leaves of them.
    let mask = sys::process::umask(0);
    let user = config.namespaces.get(Ns::User).is_some();
    if user {
        // It is nobody until its maps are written.
        match channel.next()? {
            Message::Mapped(door) => cgroup::enter(&door)?,
            other => bail!("channel: expected Mapped, got {other:?}"),
        }
    }
    if plan.record.cgroup.is_unit() {
        // systemd makes the cgroup only now, and nothing is to be done outside of it.
        mounting::take_place(channel)?;
    }
    if user {
        become_root()?;
    }
    start_session(&plan.common)?;
    let joined = config.namespaces.get(Ns::Mount).and_then(|ns| ns.path.as_ref());
    joined.map_or(Ok(()), |path| namespace::join(Ns::Mount, path))?;
    if joined.is_some() || !user {
        enter_rootfs(config)?;
    }
    if plan.loopback {
        sys::net::control_socket()
            .and_then(|socket| sys::net::loopback_up(&socket))
            .context("linux.namespaces (network): bring its loopback up")?;
    }
    let null = mask::open_null()?;
    set_names(config)?;
    timings::step("start a session, set the names");
    let (root, hidden) = mounting::mount_all(plan, channel, &null)?;
    if let Some(process) = plan.common.process.filter(|process| process.cwd != Path::new("/")) {
        // Engines leave it to the runtime to make a working directory that the image lacks.
        root.folder(&process.cwd).context("process.cwd")?;
    }
    let console = set_up_console(plan, &root, channel)?;
    timings::step("make the working directory and the console");
    run_hooks_before_pivot(plan, channel, mask)?;
    timings::step("wait for hooks before the pivot");
    if !hidden {
        mounting::hide(&root, config, &null)?;
    }
    if pivots_unseen(plan) {
        // Only now: what is mounted until then may be a copy of the host's mounts.
        seal::let_go_with_host();
    }
    rootfs::pivot(&root, config, plan.no_pivot)?;
    apply_sysctl(config, plan.common.proc)?;
    timings::step("pivot into the root, set sysctls");
    Ok(console)
}

/// Whether the host's mounts are taken down before anything but this program has seen them in the new
/// mount namespace, and soon.
fn pivots_unseen(plan: &NewContainer) -> bool {
    plan.config.namespaces.is_new(Ns::Mount)
        && !plan.no_pivot
        && !plan.config.hooks.any_before_pivot()
}

/// The program inherits what is blocked; nothing is to be.
fn unblock_signals() -> Result<()> {
    SigSet::empty().thread_set_mask().context("unblock signals")
}

/// Waits for the word to go on. What the caller ignores is no longer ignored then: the program would
/// inherit that. Returns the filter of `seccomp`.
fn wait_for_start(channel: &Channel, seccomp: Option<&Seccomp>) -> Result<Option<seccomp::Filter>> {
    let Message::Start { ignored, filter } = channel.next()? else {
        bail!("channel: expected Start")
    };
    for signal in (1..=64).filter(|signal| ignored & 1 << (signal - 1) != 0) {
        sys::clone::reset_signal(signal);
    }
    let filter = seccomp.map(|seccomp| match seccomp::Filter::from_bytes(&filter, seccomp)? {
        Some(filter) => Ok(filter),
        None => seccomp::compile(seccomp.profile()?),
    });
    filter.transpose()
}

/// Changes into the root filesystem.
///
/// # Errors
/// When it is not there.
pub fn enter_rootfs(config: &Config) -> Result<()> {
    nix::unistd::chdir(&config.rootfs)
        .with_context(|| format!("root.path: change into {}", config.rootfs.display()))
}

fn become_root() -> Result<()> {
    sys::process::setgid(0).context("linux.gidMappings: become group 0 of the user namespace")?;
    sys::process::setuid(0).context("linux.uidMappings: become user 0 of the user namespace")
}

fn start_session(plan: &Common) -> Result<()> {
    nix::unistd::setsid().context("start a session")?;
    if let Some(name) = &plan.keyring {
        match sys::process::join_session_keyring(name) {
            // A kernel without keyrings has none to hide; over quota the caller's is hidden too.
            Ok(()) | Err(nix::errno::Errno::ENOSYS) => {}
            Err(errno) => {
                return Err(errno).context(
                    "make a session keyring (--no-new-keyring does without; \
                     kernel.keys.maxkeys limits their number)",
                );
            }
        }
    }
    Ok(())
}

fn set_names(config: &Config) -> Result<()> {
    if let Some(name) = &config.hostname {
        nix::unistd::sethostname(name).with_context(|| format!("hostname: set {name:?}"))?;
    }
    if let Some(name) = &config.domainname {
        sys::process::setdomainname(name).with_context(|| format!("domainname: set {name:?}"))?;
    }
    Ok(())
}

fn set_up_console(plan: &NewContainer, root: &Root, channel: &Channel) -> Result<Option<OwnedFd>> {
    let Some(process) = plan.common.process.filter(|process| process.terminal) else {
        return Ok(None);
    };
    let tty = open_console(process, root, channel)?;
    if !mounts::has_host_dev(&plan.config.mounts) {
        devices::show_console(root, &tty)?;
    }
    Ok(Some(tty))
}

fn open_console(process: &Process, root: &Root, channel: &Channel) -> Result<OwnedFd> {
    let master = devices::open_ptmx(root)?;
    let tty = sys::tty::open_peer(&master).context("process.terminal: open its other side")?;
    if let Some(size) = process.console_size {
        sys::tty::set_window_size(&master, size).context("process.consoleSize")?;
    }
    channel.send(&Message::Console(master.into()))?;
    Ok(tty)
}

/// The state as hooks inside of the container see it: with its own pid.
fn own_state(plan: &NewContainer, status: Status) -> String {
    state_json(plan.record, status, nix::unistd::getpid().as_raw()).to_string()
}

/// `mask`: the caller's, which createContainer hooks have like those of the runtime.
fn run_hooks_before_pivot(plan: &NewContainer, channel: &Channel, mask: u32) -> Result<()> {
    let hooks = &plan.config.hooks;
    if hooks.any_before_pivot() {
        // They may unmount what nobody has open.
        close_put_off();
    }
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        channel.send(&Message::Mounted)?;
        channel.expect(&Message::HooksDone)?;
    }
    if hooks.create_container.is_empty() {
        return Ok(());
    }
    let state = own_state(plan, Status::Creating);
    sys::process::umask(mask);
    hooks::run_all("createContainer", &hooks.create_container, &state, &plan.record.bundle)?;
    sys::process::umask(0);
    Ok(())
}

fn apply_sysctl(config: &Config, proc: &Proc) -> Result<()> {
    for (path, value) in &config.sysctl {
        let name = path.replace('/', ".");
        proc.write(&format!("sys/{path}"), value)
            .with_context(|| format!("linux.sysctl: set {name} to {value:?}"))?;
    }
    Ok(())
}

fn join(
    plan: &Common,
    target: &OwnedFd,
    flags: CloneFlags,
    user: bool,
    root: Option<Fd>,
    channel: &Channel,
) -> Result<Option<OwnedFd>> {
    unblock_signals()?;
    mounting::take_place(channel)?;
    if !flags.is_empty() {
        setns(target, flags).context("exec: join the container's namespaces")?;
    }
    if let Some(root) = root {
        nix::unistd::fchdir(&root).context("exec: change into the container's root")?;
        nix::unistd::chroot(".").context("exec: chroot into the container's root")?;
    }
    if user {
        become_root()?;
    }
    match plan.process.and_then(|process| process.exec_affinity.as_ref()) {
        Some(cpus) => process::apply_affinity(cpus)?,
        // The launcher's binding to processors is not the container's.
        None => drop(sys::process::reset_affinity()),
    }
    start_session(plan)?;
    let Some(process) = plan.process.filter(|process| process.terminal) else { return Ok(None) };
    let root = sys::fs::open_path("/", nix::fcntl::OFlag::empty()).context("open /")?;
    open_console(process, &Root::new(root), channel).map(Some)
}

/// The last part, the same for every process: identity, gate, filter, exec. `kept`: descriptors that
/// stay open until then, beside those of `channel` and `gate`.
fn become_program(
    plan: &Common,
    channel: &mut Channel,
    gate: Gate,
    console: Option<OwnedFd>,
    mut kept: Vec<RawFd>,
    (start_hooks, state): (&[Hook], &dyn Fn() -> String),
) -> Result<Infallible> {
    kept.push(channel.as_fd().as_raw_fd());
    if let Gate::Socket(socket) = &gate {
        kept.push(socket.as_raw_fd());
    }
    prepare(plan, console, kept)?;
    // A process with deadlines may not fork, as hooks have to.
    let (early, late) = match start_hooks.is_empty() {
        true => (plan.process, None),
        false => (None, plan.process),
    };
    early.map_or(Ok(()), process::apply_scheduler)?;
    // Podman takes its exit codes 126 and 127 from the error of create, not from that of start.
    plan.process.map_or(Ok(()), |process| executable::check(&process.args[0], &process.env))?;
    timings::step("limits, user, look for the program");
    channel.send(&Message::Ready)?;
    let filter = wait_for_start(channel, plan.seccomp)?;
    timings::step("wait for the start");
    if let Gate::Socket(socket) = gate {
        // From now on errors interest whoever comes to the gate; the parent is gone.
        *channel = wait_at_gate(&socket)?;
    }
    let Some(process) = plan.process else { exit_now(0) };
    if !start_hooks.is_empty()
        && let Err(error) = hooks::run_all("startContainer", start_hooks, &state(), Path::new("/"))
    {
        let _ = channel.send(&Message::HookFailed(format!("{error:#}")));
        exit_now(1);
    }
    late.map_or(Ok(()), process::apply_scheduler)?;
    Err(process::exec(process, filter.as_ref(), channel))
}

fn prepare(plan: &Common, console: Option<OwnedFd>, kept: Vec<RawFd>) -> Result<()> {
    if let Some(tty) = console {
        sys::tty::make_controlling(&tty).context("process.terminal: control it")?;
        for number in 0..3 {
            sys::fs::dup_onto(&tty, number).context("process.terminal: use it")?;
        }
    }
    if let Some(domain) = plan.personality {
        sys::process::set_personality(domain).context("linux.personality.domain: set it")?;
    }
    if let Some(policy) = plan.memory_policy {
        process::apply_memory_policy(policy)?;
    }
    if let Some(process) = plan.process {
        process::apply_labels(process, plan.proc)?;
    }
    // With whatever leaked into the caller or its engine: no path may lead to one of the host's from
    // here on (CVE-2024-21626).
    let first = 3 + plan.preserve_fds as RawFd;
    close_all_but(first, kept).context("close descriptors of the host")?;
    let Some(process) = plan.process else { return Ok(()) };
    process::apply_limits(process)?;
    // As root first, for folders that only root may search; else as the user, for those of
    // network filesystems that distrust root.
    let early = process::enter_cwd(&process.cwd);
    process::own_stdio(process.user.uid);
    // Needs CAP_SETPCAP, which goes with the user.
    plan.limit_capabilities()?;
    process::take_identity(process)?;
    match early {
        Ok(()) => Ok(()),
        Err(_) => process::enter_cwd(&process.cwd),
    }
}

fn wait_at_gate(socket: &OwnedFd) -> Result<Channel> {
    loop {
        // It may be long until somebody comes. If this fails, accept waits, and has its own words.
        let _ = sys::wait::poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)]);
        let connection = sys::fs::accept(socket.as_raw_fd()).context("wait at the gate")?;
        let channel = Channel::over(connection);
        // Else somebody looked in, or a start was killed before it said its word. (The log is closed by now.)
        if let Ok(Some(Message::Start { .. })) = channel.receive() {
            return Ok(channel);
        }
    }
}
