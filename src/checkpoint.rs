//! Saving a running container to files, from which [`crate::restore`] makes it again.
//!
//! criu does the work. What it must be told is what of the container comes from outside: criu saves
//! a reference there instead of the thing, and the restore has to say what it refers to then. The
//! names of these references, and the file with those of the standard streams, are runc's.
//!
//! | from outside | name |
//! |---|---|
//! | a bind mount, a cgroup of v1, a device shown in a user namespace | its destination in config.json |
//! | a masked file | `/dev/null` |
//! | a joined network or PID namespace | `extRootNetNS`, `extRootPidNS` |
//! | a standard stream | `pipe:[INODE]`, `file[MOUNT:INODE]` |

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::write;
use oci_spec::runtime::LinuxNamespaceType as Ns;

use crate::container::{Container, Status};
use crate::criu::{self, Criu, Kind, Log};
use crate::procfs::Proc;
use crate::rootfs::devices;
use crate::security::seccomp::agent;
use crate::spec::Config;
use crate::spec::mount::Kind as MountKind;
use crate::state::{Folder, Record};
use crate::sys::fs::{Resolve, openat2};
use crate::{cgroup, notify, userns};

/// The file in which the names of the standard streams are kept, beside criu's.
pub(crate) const STREAMS: &str = "descriptors.json";
const NULL: &str = "/dev/null";

/// What criu does about cgroups (criu(8), `--manage-cgroups`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Nothing.
    Ignore,
    /// Restores properties of cgroups that it had to make.
    #[default]
    Soft,
    /// Restores all properties.
    Full,
    /// Restores all properties, and insists on making the cgroups.
    Strict,
}

/// What both commands are told beside the container.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// The program criu.
    pub criu: PathBuf,
    /// The folder of the checkpoint.
    pub image_path: PathBuf,
    /// The folder of criu's log; that of the checkpoint if none is given.
    pub work_path: Option<PathBuf>,
    /// Open TCP connections too.
    pub tcp_established: bool,
    /// Unix sockets too whose other end is outside.
    pub ext_unix_sk: bool,
    /// Also with the caller's own terminal.
    pub shell_job: bool,
    /// File locks too.
    pub file_locks: bool,
    /// Punch out of older images what is in newer ones.
    pub auto_dedup: bool,
    /// What to do about cgroups.
    pub cgroups_mode: CgroupsMode,
    /// Leave the network namespace empty.
    pub empty_network: bool,
    /// Memory stays where it is until the restored container uses it.
    pub lazy_pages: bool,
}

/// What `checkpoint` is told.
#[derive(Debug, Default)]
pub struct Options {
    /// The flags that it shares with `restore`.
    pub common: Common,
    /// An earlier checkpoint, as a path relative to the folder of this one.
    pub parent_path: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// Memory only; the container goes on.
    pub pre_dump: bool,
    /// TCP connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files that were removed while they are open get a name again.
    pub link_remap: bool,
    /// Address and port at which somebody takes the pages; with lazy pages at which criu gives them.
    pub page_server: Option<(String, u16)>,
    /// Where a NUL byte is written as soon as lazy pages can be had.
    pub status: Option<OwnedFd>,
}

/// The two folders, and what criu is told with either command.
pub(crate) struct Folders {
    pub images: OwnedFd,
    work: Option<OwnedFd>,
    log: PathBuf,
}

impl Common {
    /// Opens the folders; `log` is the name of criu's log there.
    ///
    /// # Errors
    /// When one is missing.
    pub(crate) fn open(&self, log: &str) -> Result<Folders> {
        let open_folder = |flag: &str, path: &Path| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(path, flags, Mode::empty()).with_context(|| format!("{flag} {}", path.display()))
        };
        let images = open_folder("--image-path", &self.image_path)?;
        let work = self.work_path.as_deref().map(|path| open_folder("--work-path", path));
        let log = self.work_path.as_ref().unwrap_or(&self.image_path).join(log);
        Ok(Folders { images, work: work.transpose()?, log })
    }

    /// What these flags mean to criu.
    pub(crate) fn request(&self, folders: &Folders, record: &Record) -> criu::Options {
        let log = folders.log.file_name().unwrap_or_default();
        // A file with options that overrule ours, where runc has it too.
        let config_file = record.annotations.get("org.criu.config");
        let config_file = config_file.map_or("/etc/criu/runc.conf", String::as_str);
        criu::Options {
            images_dir_fd: folders.images.as_raw_fd(),
            work_dir_fd: folders.work.as_ref().map(AsRawFd::as_raw_fd),
            log_level: 4,
            log_file: log.to_string_lossy().into_owned(),
            notify_scripts: true,
            evasive_devices: true,
            orphan_pts_master: true,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            lazy_pages: self.lazy_pages,
            auto_dedup: self.auto_dedup,
            manage_cgroups_mode: Some(match self.cgroups_mode {
                CgroupsMode::Ignore => 0,
                CgroupsMode::Soft => 3,
                CgroupsMode::Full => 4,
                CgroupsMode::Strict => 5,
            }),
            empty_ns: match self.empty_network {
                true => CloneFlags::CLONE_NEWNET.bits() as u32,
                false => 0,
            },
            config_file: Some(config_file.to_owned()),
            ..criu::Options::default()
        }
    }
}

impl Folders {
    pub(crate) fn log(&self) -> Log {
        Log::new(self.log.clone())
    }
}

/// Says no to containers of which a part would be lost, by the property that asks for it.
///
/// # Errors
/// At the first such property.
pub(crate) fn check(config: &Config) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root() && !userns::is_inside(),
        "checkpoint and restore need the host's root: criu does"
    );
    ensure!(
        config.namespaces.is_new(Ns::Mount),
        "linux.namespaces (mount): without a mount namespace of its own a container's mounts can't \
         be told from the host's"
    );
    for kind in [Ns::User, Ns::Cgroup, Ns::Time] {
        ensure!(
            config.namespaces.get(kind).is_none_or(|namespace| namespace.path.is_none()),
            "linux.namespaces ({}): criu can't restore into a namespace that was joined",
            crate::spec::namespace::word(kind)
        );
    }
    if let Some(mount) = config.mounts.iter().find(|mount| mount.idmap.is_some()) {
        bail!("{}: criu can't save id-mapped mounts", mount.property);
    }
    ensure!(
        agent::Listener::wanted(config.seccomp.as_ref())?.is_none(),
        "linux.seccomp: criu can't save a filter with SCMP_ACT_NOTIFY, whose agent it doesn't know"
    );
    ensure!(config.net_devices.is_empty(), "linux.netDevices: criu can't save devices of the host");
    ensure!(
        config.memory_policy.is_none(),
        "linux.memoryPolicy: criu does not save where memory comes from"
    );
    Ok(())
}

/// A place in the container that has something mounted on it.
pub(crate) struct Place {
    /// In the container, as config.json says it.
    pub destination: PathBuf,
    /// The name of what comes from outside, and where that is on the host.
    pub outside: Option<(PathBuf, PathBuf)>,
}

/// What config.json has mounted, in order.
pub(crate) fn places(config: &Config, record: &Record, folder: &Folder) -> Vec<Place> {
    let mut places = Vec::new();
    let mut add = |destination: &Path, outside: Option<(PathBuf, PathBuf)>| {
        places.push(Place { destination: destination.to_owned(), outside });
    };
    let itself = |path: &Path, source: &Path| Some((path.to_owned(), source.to_owned()));
    let cgroup_namespace = config.namespaces.get(Ns::Cgroup).is_some();
    for mount in &config.mounts {
        let path = mount.destination.as_path();
        match &mount.kind {
            MountKind::Remount { .. } => {}
            MountKind::Bind { source, .. } => add(path, itself(path, source)),
            MountKind::Filesystem { .. } => add(path, None),
            MountKind::Cgroup if record.cgroup.is_unified() && !cgroup_namespace => {
                add(path, itself(path, Path::new(cgroup::ROOT)));
            }
            MountKind::Cgroup => {
                add(path, None);
                for (name, source) in record.cgroup.v1_paths() {
                    let path = path.join(name);
                    add(&path, itself(&path, &source));
                }
            }
        }
    }
    if config.namespaces.get(Ns::User).is_some() {
        for path in devices::paths(&config.devices) {
            add(&path, itself(&path, &path));
        }
    }
    add(Path::new(notify::DESTINATION), itself(Path::new(notify::DESTINATION), &folder.notify()));
    for path in &config.masked_paths {
        add(path, itself(Path::new(NULL), Path::new(NULL)));
    }
    places
}

/// The mount points of `/proc/PROCESS/mountinfo` (proc_pid_mountinfo(5)), from their namespace's
/// root, with the number of each mount.
pub(crate) fn mount_points(proc: &Proc, process: &str) -> Result<Vec<(String, PathBuf)>> {
    let text = proc.read(&format!("{process}/mountinfo"));
    let text = text.with_context(|| format!("read /proc/{process}/mountinfo"))?;
    let parse = |line: &str| {
        let mut fields = line.split(' ');
        let (id, path) = (fields.next()?, fields.nth(3)?);
        Some((id.to_owned(), unescape(path).into()))
    };
    Ok(text.lines().filter_map(parse).collect())
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte.into());
                plain.push_str(&part[3..]);
            }
            None => plain.push_str(part),
        }
    }
    plain
}

/// Tells criu which mounts of process `pid` come from outside.
fn external_mounts(
    places: &[Place],
    mounted: &[(String, PathBuf)],
    root: &OwnedFd,
) -> Result<Vec<String>> {
    // Where links in the container have led each of them.
    let mut found = Vec::new();
    for place in places {
        let flags = OFlag::O_PATH;
        let Ok(file) = openat2(root, relative(&place.destination), flags, 0, Resolve::IN_ROOT)
        else {
            continue;
        };
        let file = File::from(file);
        let step = || format!("examine {} in the container", place.destination.display());
        let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let masks_folder = matches!(&place.outside, Some((name, _)) if name == Path::new(NULL))
            && file.metadata().with_context(step)?.is_dir();
        let outside = place.outside.as_ref().filter(|_| !masks_folder);
        found.push((real.with_context(step)?, outside));
    }
    let mut external = Vec::new();
    for (_, point) in mounted {
        let above = found.iter().filter(|(path, _)| point.starts_with(path));
        // The innermost; of several on one place the last.
        let Some((path, Some((name, _)))) = above.max_by_key(|(path, _)| path.components().count())
        else {
            continue;
        };
        let below = point.strip_prefix(path).unwrap_or(Path::new(""));
        external.push(format!("mnt[{}]:{}", point.display(), join(name, below).display()));
    }
    Ok(external)
}

/// `Path::join` makes a trailing slash of an empty rest.
pub(crate) fn join(path: &Path, rest: &Path) -> PathBuf {
    path.components().chain(rest.components()).collect()
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Names the standard streams of process `pid` that come from outside.
fn streams(pid: i32, mounted: &[(String, PathBuf)], proc: &Proc) -> Result<Vec<String>> {
    let name = |number: i32| -> Result<String> {
        let path = format!("/proc/{pid}/fd/{number}");
        let Ok(link) = std::fs::read_link(&path) else { return Ok(String::new()) };
        let file = std::fs::metadata(&path).with_context(|| path.clone())?;
        let info = proc.read(&format!("{pid}/fdinfo/{number}")).context("read its fdinfo")?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default();
        let mount = mount.trim();
        let kind = file.file_type();
        // A terminal is criu's own business.
        let plain = kind.is_file() || (kind.is_char_device() && link == Path::new(NULL));
        if plain && !mounted.iter().any(|(id, _)| id == mount) {
            let mount: u32 = mount.parse().context("mnt_id of its fdinfo")?;
            return Ok(format!("file[{mount:x}:{:x}]", file.ino()));
        }
        Ok(link.to_string_lossy().into_owned())
    };
    (0..3).map(|number| name(number).context("the container's standard streams")).collect()
}

impl Container {
    /// Saves it; without `leave_running` nothing of it is left after that.
    ///
    /// # Errors
    /// With criu's reason; the container goes on as it was then.
    pub fn checkpoint(&self, options: &Options) -> Result<()> {
        let id = &self.record.id;
        let config = self.config()?;
        check(config).with_context(|| format!("cannot checkpoint container {id}"))?;
        let lock = self.lock()?;
        let (status, pid) = self.status()?;
        ensure!(
            matches!(status, Status::Running | Status::Paused),
            "cannot checkpoint container {id}: container not running ({})",
            status.word()
        );
        let common = &options.common;
        make_folder("--image-path", &common.image_path)?;
        if let Some(path) = &common.work_path {
            make_folder("--work-path", path)?;
        }
        check_parent(options)?;
        if options.pre_dump || common.lazy_pages {
            check_features(options)?;
        }
        let folders = common.open("dump.log")?;
        let mut request = common.request(&folders, &self.record);
        request.pid = pid;
        request.leave_running = options.leave_running;
        request.tcp_skip_in_flight = options.tcp_skip_in_flight;
        request.link_remap = options.link_remap;
        request.track_mem = options.pre_dump;
        request.parent_img = options.parent_path.as_ref().map(|p| p.display().to_string());
        request.page_server = (options.page_server.as_ref()).map(|(address, port)| {
            criu::PageServer { address: address.clone(), port: (*port).into() }
        });
        request.freeze_cgroup = self.record.cgroup.freezer().map(|path| path.display().to_string());
        self.name_external(config, pid, &folders, &mut request)?;
        let kind = if options.pre_dump { Kind::PreDump } else { Kind::Dump };
        let asked = Criu::start(&common.criu)?;
        let outcome = asked.ask(kind, request, &folders.log(), &mut |notice, _| match (
            notice.script.as_str(),
            &options.status,
        ) {
            ("status-ready", Some(fd)) => write(fd, b"\0").map(drop).context("--status-fd"),
            _ => Ok(()),
        });
        outcome.with_context(|| format!("checkpoint container {id}"))?;
        if options.leave_running || options.pre_dump {
            return Ok(());
        }
        drop(lock);
        self.destroy()
    }

    /// Says what of the container comes from outside.
    fn name_external(
        &self,
        config: &Config,
        pid: i32,
        folders: &Folders,
        request: &mut criu::Options,
    ) -> Result<()> {
        let mounted = mount_points(self.proc(), &pid.to_string())?;
        let path = format!("/proc/{pid}/root");
        let root = crate::sys::fs::open_path(path.as_str(), OFlag::O_DIRECTORY)
            .with_context(|| path.clone())?;
        let places = places(config, &self.record, self.folder());
        request.external = external_mounts(&places, &mounted, &root)?;
        for (kind, file, name) in EXTERNAL_NAMESPACES {
            if config.namespaces.get(kind).is_some_and(|namespace| namespace.path.is_some()) {
                let path = format!("/proc/{pid}/ns/{file}");
                let inode = std::fs::metadata(&path).context(path)?.ino();
                request.external.push(format!("{file}[{inode}]:{name}"));
            }
        }
        let streams = streams(pid, &mounted, self.proc())?;
        request.external.extend(streams.iter().filter(|name| name.starts_with("file[")).cloned());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(&folders.images, STREAMS, flags, Mode::S_IRUSR);
        let file = File::from(file.with_context(|| format!("--image-path: make {STREAMS}"))?);
        serde_json::to_writer(file, &streams)
            .with_context(|| format!("--image-path: write {STREAMS}"))
    }
}

/// The kinds of namespaces that may stay outside, their files in `/proc/PID/ns` and their names.
pub(crate) const EXTERNAL_NAMESPACES: [(Ns, &str, &str); 2] =
    [(Ns::Network, "net", "extRootNetNS"), (Ns::Pid, "pid", "extRootPidNS")];

/// The images hold the container's memory: they are its owner's alone.
fn make_folder(flag: &str, path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("{flag}: make {}", path.display()))
}

/// What not every kernel and criu can do.
fn check_features(options: &Options) -> Result<()> {
    let features = Criu::start(&options.common.criu)?.features()?;
    ensure!(
        !options.pre_dump || features.mem_track,
        "--pre-dump: this kernel or criu can't tell which memory has changed (soft-dirty bits)"
    );
    ensure!(
        !options.common.lazy_pages || features.lazy_pages,
        "--lazy-pages: this kernel or criu can't supply memory on demand (userfaultfd)"
    );
    Ok(())
}

fn check_parent(options: &Options) -> Result<()> {
    let Some(parent) = &options.parent_path else { return Ok(()) };
    let shown = parent.display();
    ensure!(
        parent.is_relative(),
        "--parent-path {shown}: must be relative to the folder of --image-path"
    );
    let folder = options.common.image_path.join(parent);
    let found = std::fs::metadata(&folder).with_context(|| format!("--parent-path {shown}"))?;
    ensure!(found.is_dir(), "--parent-path {shown}: {} is not a folder", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_mount_table_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape("/plain"), "/plain");
    }

    #[test]
    fn joining_nothing_changes_nothing() {
        assert_eq!(join(Path::new("/a"), Path::new("")), Path::new("/a"));
        assert_eq!(join(Path::new("/a"), Path::new("b/c")), Path::new("/a/b/c"));
    }
}
