//! Making a container from what [`crate::checkpoint`] has saved.
//!
//! As in [`crate::launch`] the parent makes record and cgroup; then criu, itself in that cgroup,
//! makes the processes with all that is theirs, as children of the caller. It tells when it has
//! come to a point at which there is something to do (the caller's listener). There is no gate,
//! and nobody in the container ever holds the lock of the record: the parent lets go of it when
//! all is well.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::{Gid, fchown};

use crate::checkpoint::{self, Common, EXTERNAL_NAMESPACES, Place, STREAMS, join};
use crate::container::Container;
use crate::criu::{self, Criu, Kind, Notice};
use crate::rootfs::{self, root};
use crate::security::capabilities;
use crate::spec::mount::Kind as MountKind;
use crate::spec::{self, Config};
use crate::state::{Init, InitFile};
use crate::{console, host, launch, log, namespace, seal, sys};

/// What `restore` is told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The flags that it shares with `create` and `run`.
    pub launch: launch::Options,
    /// Those that it shares with `checkpoint`.
    pub common: Common,
    /// Another AppArmor or SELinux profile than the saved one: TYPE:NAME.
    pub lsm_profile: Option<String>,
    /// Another SELinux context of mounts than the saved one.
    pub lsm_mount_context: Option<String>,
}

/// The first process of a restored container, a child of the caller.
#[derive(Debug)]
pub struct Restored {
    /// Its pid in the caller's PID namespace.
    pub pid: i32,
    /// Names it whatever happens to the pid.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when the caller keeps it.
    pub console: Option<OwnedFd>,
}

/// Makes a container of the bundle in the absolute folder `bundle` and of a checkpoint.
///
/// # Errors
/// With criu's reason; nothing is left behind.
pub fn restore(bundle: &Path, options: &Options) -> Result<(Container, Restored)> {
    // Before there is any process of the container; nothing could be done beside it.
    seal::let_go();
    let (mut config, text) = spec::load(bundle)?;
    let id = &options.launch.id;
    checkpoint::check(&config).with_context(|| format!("cannot restore container {id}"))?;
    launch::check_terminal(config.process.as_ref(), &options.launch)?;
    if let Some(error) = host::missing(&config, &capabilities::own()?).into_iter().next() {
        return Err(error);
    }
    // Whatever leaked into the caller or its engine is not criu's either.
    sys::descriptor::cloexec_from(3).context("close inherited descriptors")?;
    config.warnings.iter().for_each(|warning| log::warning(warning));
    let proc = crate::procfs::Proc::open()?;
    let folders = options.common.open("restore.log")?;
    check_page_giver(&options.common)?;
    let (folder, record, init_file) =
        launch::put_on_record(bundle, &mut config, &text, &options.launch, &proc)?;
    let container = Container::from_parts(folder, record, proc, config);
    match make(&container, init_file, &folders, options) {
        Ok(restored) => Ok((container, restored)),
        Err(error) => {
            if let Err(leftover) = container.destroy() {
                log::warning(&format!("{leftover:#}"));
            }
            Err(error.context(format!("restore container {id}")))
        }
    }
}

/// Memory that comes when it is used comes from a program that has to be there before.
fn check_page_giver(common: &Common) -> Result<()> {
    let folder = common.work_path.as_ref().unwrap_or(&common.image_path);
    let socket = folder.join("lazy-pages.socket");
    ensure!(
        !common.lazy_pages || socket.exists(),
        "--lazy-pages: {} is not there: start it first, as criu lazy-pages --page-server --address \
         ADDRESS --port PORT --images-dir {} --work-dir {}",
        socket.display(),
        common.image_path.display(),
        folder.display(),
    );
    Ok(())
}

fn make(
    container: &Container,
    init_file: InitFile,
    folders: &checkpoint::Folders,
    options: &Options,
) -> Result<Restored> {
    let record = &container.record;
    let config = container.config()?;
    let proc = container.proc();
    let (mut cgroup, warnings) = record.cgroup.create(config.resources.as_ref())?;
    warnings.iter().for_each(|warning| log::warning(warning));
    if let (Some(groups), Some(rdt)) = (&record.resctrl, &config.intel_rdt) {
        groups.create(rdt)?;
    }
    if container.folder().notify_path()?.is_none() {
        container.folder().make_notify()?;
    }
    // criu wants the root to be a mount of its own, which nothing is shared with.
    let target = container.folder().make_rootfs()?;
    let tree = root::Root::new(rootfs::attach_in_host(&config.rootfs, &target)?);
    make_mount_points(config, &tree)?;
    drop(tree);
    let mut request = request(container, config, folders, options)?;
    request.root = Some(target.display().to_string());
    let inherited = inherit(config, folders, &mut request)?;
    let group = config.namespaces.host_gid(0).filter(|gid| *gid != 0);
    let _lent = group.map(|gid| Lent::to(gid, folders)).transpose()?;
    // The saved processes had a session keyring of their own; these have that of criu.
    if let Some(name) = launch::keyring(&options.launch, &record.id)? {
        match sys::process::join_session_keyring(&name) {
            Ok(()) | Err(Errno::ENOSYS) => {}
            Err(errno) => return Err(errno).context("make a session keyring"),
        }
    }
    // criu restores that itself since version 4 only.
    let confined = config.process.as_ref().is_some_and(|process| process.no_new_privileges);
    let stdin = if options.common.shell_job { Stdio::inherit() } else { Stdio::null() };
    let criu = Criu::start_for_restore(&options.common.criu, stdin, confined)?;
    drop(inherited);
    let maker = criu.pid();
    let warnings = cgroup.start_unit(maker, config.resources.as_ref(), &record.annotations)?;
    warnings.iter().for_each(|warning| log::warning(warning));
    if let Some(uid) = launch::cgroup_owner(config, record) {
        cgroup.delegate(uid)?;
    }
    let mut restored = None;
    let mut terminal = None;
    let outcome = criu.ask(Kind::Restore, request, &folders.log(), &mut |notice, fd| {
        let Notice { script, pid } = notice;
        match script.as_str() {
            // Not earlier: it asks the kernel for things that the container may not have.
            "pre-restore" => {
                cgroup.add(maker)?;
                record.resctrl.as_ref().map_or(Ok(()), |groups| groups.add(maker))
            }
            "setup-namespaces" => launch::runtime_hooks(record, config, *pid),
            "orphan-pts-master" => take_terminal(fd, options, &mut terminal),
            // All is there, and waits for this answer.
            "post-restore" => {
                let pidfd = sys::clone::pidfd_open(*pid).context("watch the restored process")?;
                let stat = proc.stat(*pid)?.context("the restored process is gone")?;
                init_file.write(Init { pid: *pid, start_time: stat.start_time })?;
                restored = Some((*pid, pidfd));
                Ok(())
            }
            _ => Ok(()),
        }
    });
    outcome?;
    let (pid, pidfd) = restored.context("criu has not said which process it has made")?;
    container.folder().unmount_rootfs()?;
    // It may have been saved while it was paused.
    cgroup.thaw()?;
    if let Some(path) = &options.launch.pid_file {
        launch::write_pid_file(path, pid)?;
    }
    Ok(Restored { pid, pidfd, console: terminal })
}

/// What criu is told, but for the descriptors that it inherits.
fn request(
    container: &Container,
    config: &Config,
    folders: &checkpoint::Folders,
    options: &Options,
) -> Result<criu::Options> {
    let record = &container.record;
    let places = checkpoint::places(config, record, container.folder());
    let mounted = checkpoint::mount_points(container.proc(), "self")?;
    let terminal_is_own = config.process.as_ref().is_some_and(|process| process.terminal);
    Ok(criu::Options {
        rst_sibling: true,
        // Else criu would make one anew in the place of the caller's, too.
        orphan_pts_master: terminal_is_own || !options.common.shell_job,
        cg_root: vec![criu::CgroupRoot { path: record.cgroup.path() }],
        lsm_profile: options.lsm_profile.clone(),
        lsm_mount_context: options.lsm_mount_context.clone(),
        external: sources(config, &places, mounted.iter().map(|(_, path)| path.as_path())),
        ..options.common.request(folders, record)
    })
}

/// The folder of the checkpoint while the container's root may look into it by its group, which is
/// what the processes of a user namespace read their images as.
struct Lent<'a> {
    images: &'a OwnedFd,
    before: FileStat,
}

impl<'a> Lent<'a> {
    fn to(gid: u32, folders: &'a checkpoint::Folders) -> Result<Self> {
        let images = &folders.images;
        let before = fstat(images).context("--image-path")?;
        let lent = Self { images, before };
        fchown(images, None, Some(Gid::from_raw(gid)))
            .and_then(|()| fchmod(images, Mode::from_bits_truncate(before.st_mode | 0o010)))
            .with_context(|| format!("--image-path: give it to group {gid} for the restore"))?;
        Ok(lent)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let _ = fchmod(self.images, Mode::from_bits_truncate(self.before.st_mode));
        let _ = fchown(self.images, None, Some(Gid::from_raw(self.before.st_gid)));
    }
}

/// Takes the master side of the terminal that criu has made anew, or passes it on to the engine.
fn take_terminal(
    fd: Option<OwnedFd>,
    options: &Options,
    terminal: &mut Option<OwnedFd>,
) -> Result<()> {
    let master = fd.context("criu has sent no terminal")?;
    match &options.launch.console_socket {
        Some(path) => console::hand_over("--console-socket", path, b"/dev/ptmx", &master),
        None => {
            console::copy_window_size(&master);
            *terminal = Some(master);
            Ok(())
        }
    }
}

/// criu makes mounts, but not what they are mounted on. What lies in another mount comes with it.
fn make_mount_points(config: &Config, tree: &root::Root) -> Result<()> {
    for mount in &config.mounts {
        let path = &mount.destination;
        let inside = |other: &spec::Mount| {
            other.destination != *path && path.starts_with(&other.destination)
        };
        if config.mounts.iter().any(inside) {
            continue;
        }
        let kind = match &mount.kind {
            MountKind::Bind { source, .. } if !source.is_dir() => root::TargetKind::File,
            _ => root::TargetKind::Folder,
        };
        tree.mount_target(path, kind).with_context(|| mount.property.clone())?;
    }
    Ok(())
}

/// Tells criu where on this host the mounts from outside come from.
fn sources<'a>(
    config: &Config,
    places: &[Place],
    mounted: impl Iterator<Item = &'a Path> + Clone,
) -> Vec<String> {
    let mut external = Vec::new();
    let mut add = |name: &Path, source: &Path| {
        let entry = format!("mnt[{}]:{}", name.display(), source.display());
        if !external.contains(&entry) {
            external.push(entry);
        }
    };
    for (name, source) in places.iter().filter_map(|place| place.outside.as_ref()) {
        add(name, source);
        // What was mounted below it has come with it.
        for point in mounted.clone() {
            if let Ok(rest) = point.strip_prefix(source)
                && rest != Path::new("")
            {
                add(&join(name, rest), point);
            }
        }
    }
    for path in &config.readonly_paths {
        let above = config.mounts.iter().filter(|mount| path.starts_with(&mount.destination));
        let innermost = above.max_by_key(|mount| mount.destination.components().count());
        let Some(mount) = innermost else { continue };
        if let MountKind::Bind { source, .. } = &mount.kind
            && let Ok(rest) = path.strip_prefix(&mount.destination)
        {
            add(path, &join(source, rest));
        }
    }
    external
}

/// Opens what the processes keep of the outside: namespaces and standard streams. The descriptors
/// are to be open until criu was started.
fn inherit(
    config: &Config,
    folders: &checkpoint::Folders,
    request: &mut criu::Options,
) -> Result<Vec<OwnedFd>> {
    let mut kept = Vec::new();
    let mut keep = |key: String, fd: OwnedFd, request: &mut criu::Options| {
        request.inherit_fd.push(criu::InheritFd { key, fd: fd.as_raw_fd() });
        kept.push(fd);
    };
    for (kind, path) in config.namespaces.joined() {
        if let Some((_, _, key)) = EXTERNAL_NAMESPACES.iter().find(|entry| entry.0 == kind) {
            let file = criu::for_criu(namespace::open(kind, path)?)?;
            keep((*key).to_owned(), file, request);
            continue;
        }
        let ns = spec::namespace::word(kind).to_owned();
        let ns_file = path.display().to_string();
        request.join_ns.push(criu::JoinNamespace { ns, ns_file });
    }
    for (number, name) in streams(folders)?.into_iter().enumerate() {
        let stream = || criu::for_criu(sys::fs::standard_stream(number as i32));
        if let Some(known) = name.strip_prefix('f').filter(|name| name.starts_with("ile[")) {
            // criu looks for the name without its first character at first, where a path has its
            // slash, and takes the descriptor as it is then. By the whole name it would open the
            // file anew, and insist on its old size.
            keep(known.to_owned(), stream()?, request);
            keep(name, stream()?, request);
        } else if name.starts_with("pipe:[") {
            keep(name, stream()?, request);
        }
    }
    Ok(kept)
}

/// The names that the standard streams were saved by. Two of them may be one.
fn streams(folders: &checkpoint::Folders) -> Result<Vec<String>> {
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let mode = nix::sys::stat::Mode::empty();
    let file = match nix::fcntl::openat(&folders.images, STREAMS, flags, mode) {
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        other => other.with_context(|| format!("--image-path: open {STREAMS}"))?,
    };
    let names: Vec<String> = serde_json::from_reader(std::fs::File::from(file))
        .with_context(|| format!("--image-path: {STREAMS} is damaged"))?;
    ensure!(names.len() <= 3, "--image-path: {STREAMS} is damaged: more than three names");
    Ok(names)
}
