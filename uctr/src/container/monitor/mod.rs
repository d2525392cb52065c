//! The monitor of a container: the parent of its first process, from the start to the end.
//!
//! It is this program executed anew, in a session and a mount namespace of its own, where the root
//! filesystem is mounted. Twice it executes itself again, so that the long wait has no memory but its
//! own: [`set_up`] makes the container with all that needs, [`watch`] waits and copies output, and
//! after the end of the program either the restart policy comes back to [`set_up`], or it is over.
//!
//! What it is told on the command line is no interface: the descriptors' numbers come from the same
//! program a moment before.

pub mod finish;
pub mod protocol;
mod spawn;
mod watch;

use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, OFlag, fcntl, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use ultari::launch::{self, Child, Options};
use ultari::sys::fs::{dup_onto, standard_stream, take_inherited};

use super::record::{Record, Status};
use super::{Container, config, links, logs};
use crate::image::layers::Layers;
use crate::network::{self, Attached, Member};
use crate::paths::Paths;
use crate::volume;
use protocol::{ATTACH, Connection, unblock};
pub use spawn::{Client, StartFailed, join, start};

/// The hidden commands: making the container, and waiting for its end.
pub const SET_UP: &str = "monitor";
/// See [`SET_UP`].
pub const WATCH: &str = "monitor-watch";

/// What a monitor is told, in this order after the command.
#[derive(Clone, Debug)]
struct Orders {
    paths: Paths,
    id: String,
    /// This program's file, which `--init` shows in the container.
    program: PathBuf,
    /// Milliseconds that the next restart has to wait.
    delay: u64,
    /// Descriptors by what they are, those that there are.
    descriptors: Vec<(String, RawFd)>,
}

impl Orders {
    fn parse(args: &[OsString]) -> Result<Self> {
        let [data, run, id, program, delay, descriptors] = args else {
            bail!("the monitor of a container is not for direct use")
        };
        let text = |arg: &OsString| arg.to_str().map(str::to_owned).context("not UTF-8");
        let mut numbers = Vec::new();
        for entry in text(descriptors)?.split(',').filter(|entry| !entry.is_empty()) {
            let (name, number) = entry.split_once('=').context("descriptor without a number")?;
            numbers.push((name.to_owned(), number.parse().context("descriptor's number")?));
        }
        Ok(Self {
            paths: Paths { data: data.into(), run: run.into() },
            id: text(id)?,
            program: program.into(),
            delay: text(delay)?.parse().context("delay")?,
            descriptors: numbers,
        })
    }

    fn arguments(&self, command: &str, descriptors: &str) -> Vec<OsString> {
        vec![
            "uctr".into(),
            command.into(),
            self.paths.data.clone().into(),
            self.paths.run.clone().into(),
            self.id.clone().into(),
            self.program.clone().into(),
            self.delay.to_string().into(),
            descriptors.into(),
        ]
    }

    /// Takes one of the descriptors that came with the exec.
    fn take(&self, name: &str) -> Result<Option<OwnedFd>> {
        let Some((_, number)) = self.descriptors.iter().find(|(other, _)| other == name) else {
            return Ok(None);
        };
        let fd = take_inherited(*number).with_context(|| format!("descriptor {name}"))?;
        Ok(Some(fd))
    }

    /// Executes this program anew with these descriptors; returns only if that fails.
    fn execute(&self, command: &str, descriptors: &[(&str, &OwnedFd)]) -> Result<()> {
        let mut list = Vec::new();
        for (name, fd) in descriptors {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).context("keep a descriptor")?;
            list.push(format!("{name}={}", fd.as_raw_fd()));
        }
        let args: Vec<CString> = self
            .arguments(command, &list.join(","))
            .into_iter()
            .map(|arg| CString::new(arg.into_vec()))
            .collect::<Result<_, _>>()?;
        let env: Vec<CString> = std::env::vars_os()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<_, _>>()?;
        // By descriptor, so that it is known to be the sealed file still.
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let program =
            open("/proc/self/exe", flags, Mode::empty()).context("open /proc/self/exe")?;
        let errno = ultari::sys::process::execveat(&program, c"", &args, &env);
        Err(errno).context("execute /proc/self/exe")
    }
}

/// What the monitor says when the program runs.
const STARTED: &str = "started";

/// The name of the lock in [`Paths::container_run`] that a monitor holds.
const LOCK: &str = "monitor.lock";

/// Whether a monitor looks after the container.
#[must_use]
pub fn is_alive(container: &Container) -> bool {
    let path = container.paths().container_run(&container.record.id).join(LOCK);
    let Ok(file) = std::fs::File::open(path) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

/// The hidden commands, if `args` (with the program's name) is one of them.
#[must_use]
pub fn hidden_command(args: &[OsString]) -> Option<u8> {
    let command = args.get(1)?.to_str()?;
    let result = match command {
        SET_UP => ultari::seal::ensure(args).and_then(|()| set_up(&args[2..])),
        WATCH => watch::run(&args[2..]),
        _ => return None,
    };
    match result {
        Ok(()) => Some(0),
        Err(error) => {
            eprintln!("uctr: monitor: {error:#}");
            Some(1)
        }
    }
}

/// Who waits for the start: standard output is their pipe.
struct Report(Option<OwnedFd>);

impl Report {
    fn take() -> Result<(Self, OwnedFd)> {
        let stdin = standard_stream(0).try_clone_to_owned().context("standard input")?;
        let stdout = standard_stream(1).try_clone_to_owned().context("standard output")?;
        null_streams()?;
        Ok((Self(Some(stdout)), stdin))
    }

    /// [`STARTED`], else the exit status and why.
    fn send(&mut self, text: &str) {
        if let Some(pipe) = self.0.take() {
            let _ = std::io::Write::write_all(&mut std::fs::File::from(pipe), text.as_bytes());
        }
    }
}

fn null_streams() -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.context("open /dev/null")?;
    for number in 0..2 {
        dup_onto(&null, number).context("leave the standard streams")?;
    }
    Ok(())
}

fn set_up(args: &[OsString]) -> Result<()> {
    let orders = Orders::parse(args)?;
    ultari::sys::process::set_name(c"uctr");
    let lock = orders.take("lock")?;
    let restarted = lock.is_some();
    let (mut report, stdin) = Report::take()?;
    let client = (!restarted && is_socket(&stdin)).then(|| Connection::over(stdin));
    let run = orders.paths.container_run(&orders.id);
    std::fs::create_dir_all(&run).with_context(|| format!("make {}", run.display()))?;
    let lock = match lock {
        Some(lock) => lock,
        None => match take_lock(&orders, &run)? {
            Some(lock) => lock,
            None => {
                report.send(STARTED);
                return Ok(());
            }
        },
    };
    let mut container =
        Container::read(&orders.paths, &orders.id)?.context("the container is gone")?;
    let outcome = make(&orders, &mut container, restarted, client.as_ref());
    match outcome {
        Ok(running) => {
            report.send(STARTED);
            running.watch(&orders, lock, client)
        }
        Err(error) => {
            let failed = finish::failed_start(&mut container, &error, restarted);
            report.send(&format!("{} {}", failed.code, failed.text));
            drop(lock);
            Ok(())
        }
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    let kind = |stat: nix::sys::stat::FileStat| stat.st_mode & libc::S_IFMT;
    nix::sys::stat::fstat(fd).is_ok_and(|stat| kind(stat) == libc::S_IFSOCK)
}

/// None when the container runs already. The one before may still be tidying up.
fn take_lock(orders: &Orders, run: &Path) -> Result<Option<OwnedFd>> {
    let path = run.join(LOCK);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let mut options = std::fs::File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).with_context(|| format!("open {}", path.display()))?;
        let kept = file.try_clone().context("duplicate the lock")?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // The lock belongs to the open file, which `kept` keeps.
                std::mem::forget(lock);
                return Ok(Some(kept.into()));
            }
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, errno)) => return Err(errno).context("lock the container"),
        }
        let container = Container::read(&orders.paths, &orders.id)?;
        let status = container.map(|container| container.record.state.status);
        if matches!(status, Some(Status::Running | Status::Paused | Status::Restarting)) {
            return Ok(None);
        }
        if std::time::Instant::now() > until {
            bail!("another process is busy with this container");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A container whose program runs, and all that its monitor needs of it.
struct Running {
    pidfd: OwnedFd,
    listener: OwnedFd,
    /// The container's ends of these are closed here.
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    console: Option<OwnedFd>,
}

impl Running {
    /// Executes this program anew for the long wait.
    fn watch(self, orders: &Orders, lock: OwnedFd, client: Option<Connection>) -> Result<()> {
        let client = client.map(Connection::into_fd);
        let all = [
            ("pid", Some(&self.pidfd)),
            ("listener", Some(&self.listener)),
            ("stdin", self.stdin.as_ref()),
            ("stdout", self.stdout.as_ref()),
            ("stderr", self.stderr.as_ref()),
            ("console", self.console.as_ref()),
            ("lock", Some(&lock)),
            ("client", client.as_ref()),
        ];
        let there: Vec<_> = all.into_iter().filter_map(|(name, fd)| Some((name, fd?))).collect();
        orders.execute(WATCH, &there)
    }
}

fn make(
    orders: &Orders,
    container: &mut Container,
    restarted: bool,
    client: Option<&Connection>,
) -> Result<Running> {
    let paths = &orders.paths;
    if !restarted {
        // A start that was killed may have left something.
        finish::free(container)?;
        nix::unistd::chdir("/").context("change into /")?;
        mount_rootfs(container)?;
    }
    let bundle = container.folder();
    let rootfs = bundle.join("rootfs");
    for mount in &container.record.mounts {
        if mount.copy {
            volume::fill(&rootfs, mount)
                .with_context(|| format!("fill {}", mount.destination.display()))?;
        }
    }
    let links = links::find_all(container)?;
    write_config(orders, container, &links)?;
    let listener = protocol::listen_in(&paths.container_run(&container.record.id))?;
    let streams = Streams::new(&container.record)?;
    let options =
        Options { root: paths.runtime(), id: container.record.id.clone(), ..Options::default() };
    streams.put_on()?;
    let created = launch::create(&bundle, &options, false);
    null_streams()?;
    let (runtime, mut child) = created?;
    let started = (|| {
        let attached = join_networks(container, &child)?;
        if !container.record.host_config.network_mode.starts_with("container:") {
            config::files::write(&bundle, &container.record, &attached, &links.hosts)?;
        }
        let console = child.console.take();
        if let Some(console) = &console {
            set_first_size(client, console);
        }
        child.start(&runtime)?;
        container.change(|record| {
            ensure!(record.state.status != Status::Removing, "it is being removed");
            record.network = attached;
            record.state.status = Status::Running;
            record.state.pid = child.pid;
            record.state.exit_code = 0;
            record.state.oom_killed = false;
            record.state.error.clear();
            record.state.started_at = Some(Timestamp::now());
            record.state.finished_at = None;
            Ok(())
        })?;
        Ok(console)
    })();
    match started {
        Ok(console) => {
            let (stdin, stdout, stderr) = streams.ours()?;
            Ok(Running { pidfd: child.pidfd, listener, stdin, stdout, stderr, console })
        }
        Err(error) => {
            if let Err(leftover) = runtime.destroy() {
                eprintln!("uctr: {leftover:#}");
            }
            Err(error)
        }
    }
}

/// Mounts the layers where nobody else sees it: nothing is left of it after a SIGKILL.
fn mount_rootfs(container: &Container) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (is this root?)")?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
        .context("leave the host's mounts alone")?;
    container.mount()
}

impl Container {
    /// Mounts its layers and what it changed at `rootfs` in its folder, in the caller's mount
    /// namespace, which should be its own.
    ///
    /// # Errors
    /// Those of overlayfs.
    pub fn mount(&self) -> Result<()> {
        let folder = self.folder();
        let [upper, work, rootfs] = ["upper", "work", "rootfs"].map(|name| folder.join(name));
        for path in [&upper, &work, &rootfs] {
            match std::fs::create_dir(path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("make {}", path.display()));
                }
                _ => {}
            }
        }
        Layers::open(self.paths())?.mount(&self.record.layers, &upper, &work, &rootfs)
    }
}

fn write_config(orders: &Orders, container: &Container, links: &links::Links) -> Result<()> {
    let bundle = container.folder();
    let record = &container.record;
    let mut files = bundle.clone();
    if let Some(other) = record.host_config.network_mode.strip_prefix("container:") {
        files = orders.paths.container(other);
    } else {
        // They are mounted now, and get their addresses later.
        config::files::write(&bundle, record, &Attached::default(), &links.hosts)?;
    }
    let pid_of = |id: &str| running_pid(&orders.paths, id);
    let around = config::Surroundings {
        rootfs: &bundle.join("rootfs"),
        files: &files,
        program: &orders.program,
        pid_of: &pid_of,
        link_env: &links.env,
    };
    let spec = config::make(record, &around)?;
    let path = bundle.join("config.json");
    std::fs::write(&path, spec.to_string()).with_context(|| format!("write {}", path.display()))
}

fn running_pid(paths: &Paths, id: &str) -> Result<i32> {
    let other = super::find(paths, id)?;
    let state = other.state();
    if !state.status.is_alive() {
        bail!("cannot join namespaces of a non running container: {id}");
    }
    Ok(state.pid)
}

fn join_networks(container: &Container, child: &Child) -> Result<Attached> {
    let record = &container.record;
    if record.wishes.is_empty() {
        return Ok(Attached::default());
    }
    let path = format!("/proc/{}/ns/net", child.pid);
    let namespace = std::fs::File::open(&path).with_context(|| format!("open {path}"))?;
    let member = Member {
        id: &record.id,
        name: &record.name,
        namespace: std::os::fd::AsFd::as_fd(&namespace),
        wishes: &record.wishes,
        ports: &record.ports,
        dns: &record.host_config.dns,
    };
    network::attach(container.paths(), &member)
}

/// The size of the terminal in front of which the container is started, so that its program finds
/// it there.
fn set_first_size(client: Option<&Connection>, console: &OwnedFd) {
    use nix::sys::socket::{MsgFlags, recv};
    let Some(client) = client else { return };
    let fd = std::os::fd::AsFd::as_fd(client).as_raw_fd();
    let mut buffer = [0; 16];
    // The loop takes it.
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    if let Ok(6) = recv(fd, &mut buffer, peek)
        && buffer[0] == ATTACH
        && let Some(size) = protocol::parse_size(&buffer[2..6])
    {
        let _ = ultari::sys::tty::set_window_size(console, size);
    }
}

/// The program's standard streams, where they are no terminal.
#[derive(Default)]
struct Streams {
    /// Ours and the program's, of the input, the output and the errors.
    pipes: [Option<(OwnedFd, OwnedFd)>; 3],
}

impl Streams {
    fn new(record: &Record) -> Result<Self> {
        if record.config.tty {
            return Ok(Self::default());
        }
        let pipe = || pipe2(OFlag::O_CLOEXEC).context("make a pipe");
        let input = match record.config.open_stdin {
            true => {
                let (read, write) = pipe()?;
                Some((write, read))
            }
            false => None,
        };
        Ok(Self { pipes: [input, Some(pipe()?), Some(pipe()?)] })
    }

    /// Makes them this process' own for the moment in which it makes the program's process.
    fn put_on(&self) -> Result<()> {
        for (number, pipe) in self.pipes.iter().enumerate() {
            if let Some((_, theirs)) = pipe {
                dup_onto(theirs, number as RawFd).context("pass a standard stream")?;
            }
        }
        Ok(())
    }

    /// Our ends; the program's are closed.
    fn ours(self) -> Result<(Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>)> {
        let [stdin, stdout, stderr] = self.pipes.map(|pipe| pipe.map(|(ours, _)| ours));
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            unblock(fd)?;
        }
        Ok((stdin, stdout, stderr))
    }
}

/// `--log-opt`, checked when the container was made.
fn log_limits(record: &Record) -> logs::Limits {
    let options = &record.host_config.log_config.config;
    let size = options.get("max-size").and_then(|size| super::parse_size(size).ok()).unwrap_or(0);
    let files = options.get("max-file").and_then(|files| files.parse().ok()).unwrap_or(1);
    logs::Limits { size: size.max(0) as u64, files }
}
