//! From a bundle to a container's first process that waits at its gate.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use oci_spec::runtime::LinuxNamespaceType as Ns;

use super::{Child, Options, check_terminal, keyring, limit_capabilities};
use super::{pass_descriptors, place};
use crate::cgroup::{self, Location, Unfinished};
use crate::channel::{Channel, Message};
use crate::container::{Container, Status, state_json};
use crate::init::{self, Common, Gate, NewContainer};
use crate::procfs::Proc;
use crate::resctrl::Groups;
use crate::rootfs::{self, idmap};
use crate::security::capabilities;
use crate::spec::mount::{ATTR_RDONLY, Kind};
use crate::spec::{self, Config};
use crate::state::{Folder, Init, InitFile, Record};
use crate::sys::clone::Forked;
use crate::sys::descriptor::{Together, close_put_off};
use crate::sys::fs::open_path;
use crate::{hooks, host, log, namespace, netdev, notify, seal, timings, userns};

/// Where the first process of a container that is started later waits.
struct OwnGate {
    path: PathBuf,
    socket: OwnedFd,
}

impl OwnGate {
    fn new(path: PathBuf) -> Result<OwnGate> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .context("make the gate's socket")?;
        Ok(OwnGate { path, socket })
    }

    /// It appears on disk when everything else is ready: that makes the container "created".
    fn open(&self) -> Result<()> {
        let address = UnixAddr::new(&self.path).context("address of the gate")?;
        bind(self.socket.as_raw_fd(), &address).context("make the gate")?;
        listen(&self.socket, Backlog::new(16).context("backlog")?).context("open the gate")
    }
}

/// Makes the container of the bundle in the absolute folder `bundle`, up to the point where its
/// program could be executed. `wait_at_gate`: for a later `start`, else for [`Child::start`].
///
/// # Errors
/// Names the step and the property; nothing is left behind.
pub fn create(bundle: &Path, options: &Options, wait_at_gate: bool) -> Result<(Container, Child)> {
    let together = Together::begin();
    let (mut config, text) = spec::load(bundle)?;
    timings::step("read config.json");
    check_terminal(config.process.as_ref(), options)?;
    ensure!(
        wait_at_gate || config.process.is_some(),
        "config.json has no process: such a container can be created, but not run"
    );
    let proc = Proc::open()?;
    let own = capabilities::own()?;
    if let Some(error) = host::missing(&config, &own).into_iter().next() {
        return Err(error);
    }
    if let Some(process) = &mut config.process {
        pass_descriptors(process, options)?;
        limit_capabilities(process, &config.namespaces, &own);
    }
    config.warnings.iter().for_each(|warning| log::warning(warning));
    timings::step("look what the host has");
    let (folder, record, init_file) = put_on_record(bundle, &mut config, &text, options, &proc)?;
    timings::step("reserve the id, find the place of the cgroup, write the record");
    let gate = wait_at_gate.then(|| OwnGate::new(folder.gate_path()));
    let container = Container::from_parts(folder, record, proc, config);
    let made =
        gate.transpose().and_then(|gate| make(&container, init_file, options, gate.as_ref()));
    // The lock on the file of the first process among them.
    drop(together);
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
            if let Ok(Some(alone)) = folder.lock() {
                let _ = folder.remove(&alone);
            }
            Err(error)
        }
    }
}

/// Makes what `container`'s record tells of: its cgroup and its first process, up to the gate.
fn make(
    container: &Container,
    init_file: InitFile,
    options: &Options,
    gate: Option<&OwnGate>,
) -> Result<Child> {
    let record = &container.record;
    let config = container.config()?;
    let (cgroup, unfinished) = record.cgroup.begin(config.resources.as_ref())?;
    timings::step("make the cgroup, as far as init is cloned into it");
    if let (Some(groups), Some(rdt)) = (&record.resctrl, &config.intel_rdt) {
        groups.create(rdt)?;
    }
    let plan = plan(container, init_file, options, gate)?;
    timings::step("prepare the clone");
    let (mut child, init_file) = clone_init(plan, &cgroup)?;
    timings::step("clone init into its namespaces");
    log::debug(|| format!("init of container {} is process {}", record.id, child.pid));
    match accompany(&mut child, container, (cgroup, unfinished), init_file, options, gate) {
        Ok(()) => Ok(child),
        Err(error) => Err(child.give_up(error)),
    }
}

/// All that the first process is to know.
fn plan<'a>(
    container: &'a Container,
    init_file: InitFile,
    options: &Options,
    gate: Option<&OwnGate>,
) -> Result<NewContainer<'a>> {
    let record = &container.record;
    let config = container.config()?;
    let proc = container.proc();
    let gate = match gate {
        Some(gate) => Gate::Socket(gate.socket.try_clone().context("duplicate the gate's socket")?),
        None => Gate::Channel,
    };
    let root = match config.namespaces.get(Ns::Mount) {
        Some(_) => None,
        None => {
            let target = container.folder().make_rootfs()?;
            Some(rootfs::attach_in_host(&config.rootfs, &target)?)
        }
    };
    Ok(NewContainer {
        config,
        record,
        sources: idmap::open_sources(config, proc)?,
        root,
        no_pivot: options.no_pivot,
        init_file,
        gate,
        loopback: config.namespaces.is_new(Ns::Network) && !visits_network(config),
        common: Common {
            process: config.process.as_ref(),
            seccomp: config.seccomp.as_ref(),
            bounded: Cell::new(false),
            proc,
            preserve_fds: options.preserve_fds,
            personality: config.personality,
            memory_policy: config.memory_policy.as_ref(),
            keyring: keyring(options, &record.id)?,
        },
    })
}

/// Whether the parent goes into init's new network namespace, to bring its loopback up: where it has
/// rights over both that and its own, to come back.
fn visits_network(config: &Config) -> bool {
    config.namespaces.is_new(Ns::Network)
        && config.namespaces.get(Ns::User).is_none()
        && !userns::is_inside()
}

/// The parent's share of setting up the first process, from its clone until it is ready.
fn accompany(
    child: &mut Child,
    container: &Container,
    (mut cgroup, unfinished): (cgroup::Cgroup, Unfinished),
    init_file: InitFile,
    options: &Options,
    gate: Option<&OwnGate>,
) -> Result<()> {
    let record = &container.record;
    let config = container.config()?;
    let proc = container.proc();
    let pid = child.pid;
    if config.namespaces.is_new(Ns::User) {
        let maps = &config.namespaces;
        userns::write_maps("linux", &maps.uid_mappings, &maps.gid_mappings, proc, pid)?;
    }
    let resources = config.resources.as_ref();
    let (unrestricted, warnings) = cgroup.complete(unfinished, resources)?;
    warnings.iter().for_each(|warning| log::warning(warning));
    timings::step("make the rest of the cgroup, set its limits");
    place_first(child, &mut cgroup, record, config, proc)?;
    timings::step("let systemd and resctrl have init");
    let mut door = cgroup.door()?;
    if config.namespaces.get(Ns::User).is_some() {
        // From now on it may be another user's process, which one without privileges can't place.
        child.channel.send(&Message::Mapped(std::mem::take(&mut door)))?;
    }
    netdev::move_all(&config.net_devices, pid, &child.pidfd)?;
    let placed = Message::Placed(door);
    let rest = || -> Result<()> {
        if let Some(unrestricted) = unrestricted {
            cgroup.restrict_devices(&unrestricted, resources)?;
        }
        let stat = proc.stat(pid)?.context("the container's init is gone")?;
        init_file.write(Init { pid, start_time: stat.start_time })?;
        drop(init_file);
        match visits_network(config) {
            true => netdev::loopback_up(&child.pidfd),
            false => Ok(()),
        }
    };
    match config.hooks.create_container.is_empty() {
        // Init can go on meanwhile.
        true => child.channel.send(&placed).and_then(|()| rest())?,
        // They come after all that, and may unmount what nobody has open.
        false => {
            rest()?;
            close_put_off();
            child.channel.send(&placed)?;
        }
    }
    timings::step("put init on record, set the device rules, bring lo up");
    // Before the program may look around; init has enough to do meanwhile.
    seal::let_go();
    drop((cgroup, placed));
    close_put_off();
    timings::step("let go of the seal and of files");
    child.compile_filter(config, options)?;
    if let (None, Some(process)) = (gate, &config.process) {
        child.start_at_once(config, process, options, proc)?;
    }
    child.converse(options, &|| runtime_hooks(record, config, pid))?;
    timings::step("wait until init is ready");
    match gate {
        Some(gate) => {
            gate.open()?;
            child.say_start(proc)
        }
        None => Ok(()),
    }
}

/// Clones the first process. The caller's namespaces are the child's for that moment, and, where that has
/// another user, who may not get there, its working directory is the root filesystem.
fn clone_init(plan: NewContainer, cgroup: &cgroup::Cgroup) -> Result<(Child, InitFile)> {
    let config = plan.config;
    let namespaces = &config.namespaces;
    let mut here = None;
    if namespaces.get(Ns::User).is_some() {
        let open = open_path(".", nix::fcntl::OFlag::empty());
        here = Some(open.context("open the working directory")?);
        init::enter_rootfs(config)?;
    }
    let (channel, theirs) = Channel::pair()?;
    if !namespaces.is_new(Ns::Pid) {
        // Whoever is in that PID namespace sees init at once.
        seal::let_go();
    }
    match namespace::fork(namespaces, cgroup, plan.common.process, plan.common.proc)? {
        Forked::Child => {
            drop(channel);
            init::new_container(plan, theirs)
        }
        Forked::Parent { pid, pidfd } => {
            let child = Child::new(pid, pidfd, true, channel);
            let back = here.map_or(Ok(()), nix::unistd::fchdir);
            match back.context("return to the working directory") {
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

pub(crate) fn runtime_hooks(record: &Record, config: &Config, pid: i32) -> Result<()> {
    // These were part of `start` once, and are still told so (runtime.md, "Lifecycle": their step
    // is after the one that is called creating).
    let state = state_json(record, Status::Created, pid).to_string();
    hooks::run_all("prestart", &config.hooks.prestart, &state, &record.bundle)?;
    let state = state_json(record, Status::Creating, pid).to_string();
    hooks::run_all("createRuntime", &config.hooks.create_runtime, &state, &record.bundle)
}
