//! The file system of a container, as seen from inside, whether it runs or not.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{OFlag, open};
use nix::libc::MOUNT_ATTR_RDONLY;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use ultari::rootfs::root::{Root, TargetKind};
use ultari::sys::mount::{MountAttr, attach, clone_tree, set_attr};

use super::{Container, Lock, monitor};

/// How long a container that is started or ended at this moment is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open root filesystem. Whatever links are in there, nothing that is looked up by it is outside.
#[derive(Debug)]
pub struct Files {
    root: OwnedFd,
    /// Keeps a container that doesn't run from being started: its layers are mounted here.
    _lock: Option<Lock>,
}

impl Files {
    /// Opens what the container's processes see; without processes its layers and volumes are
    /// mounted in a mount namespace of the caller's own, which this makes.
    ///
    /// # Errors
    /// When the container is gone, or its layers can't be mounted.
    pub fn open(container: &Container) -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        let lock = loop {
            if let Some(files) = Self::of_process(container)? {
                return Ok(files);
            }
            let lock = container.lock()?;
            // Two mounts of the same layers at once would not see each other's changes.
            if !monitor::is_alive(container) && Self::of_process(container)?.is_none() {
                break lock;
            }
            drop(lock);
            ensure!(
                Instant::now() < until,
                "container {} is about to start, to restart or to end: try again",
                container.short_id()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        own_namespace()?;
        container.mount()?;
        let rootfs = container.folder().join("rootfs");
        let root = Root::new(open_folder(&rootfs)?);
        for point in &container.record.mounts {
            // What was mounted from is gone, or was a tmpfs.
            let Some(source) = point.source.as_ref().filter(|source| source.exists()) else {
                continue;
            };
            let kind = if source.is_dir() { TargetKind::Folder } else { TargetKind::File };
            let context =
                || format!("mount {} at {}", source.display(), point.destination.display());
            let target = root.mount_target(&point.destination, kind).with_context(context)?;
            let from = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                .with_context(context)?;
            let tree = clone_tree(&from, "", true).with_context(context)?;
            if point.options.iter().any(|option| option == "ro") {
                let read_only = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
                set_attr(&tree, read_only, true).with_context(context)?;
            }
            attach(&tree, &target).with_context(context)?;
        }
        Ok(Self { root: open_folder(&rootfs)?, _lock: Some(lock) })
    }

    fn of_process(container: &Container) -> Result<Option<Self>> {
        let now = Container::read(container.paths(), &container.record.id)?;
        let container = now.as_ref().unwrap_or(container);
        let state = container.state();
        if !state.status.is_alive() || state.pid <= 0 {
            return Ok(None);
        }
        let path = PathBuf::from(format!("/proc/{}/root", state.pid));
        let root = open_folder(&path);
        // If it has ended since, that may be another process.
        let now = container.state();
        if !now.status.is_alive() || now.pid != state.pid {
            return Ok(None);
        }
        Ok(Some(Self { root: root?, _lock: None }))
    }

    /// By which paths are looked up.
    ///
    /// # Errors
    /// When no more files can be opened.
    pub fn root(&self) -> Result<Root> {
        Ok(Root::new(self.root.try_clone().context("duplicate a descriptor")?))
    }
}

/// Leaves the host's mounts alone from here on.
///
/// # Errors
/// Without the right to do that.
pub fn own_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("leave the host's mounts alone")
}

fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}
