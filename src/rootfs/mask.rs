//! `linux.maskedPaths` and `linux.readonlyPaths`.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{fstat, fstatat, makedev};

use super::root::{Root, file_type, is_folder};
use crate::spec::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};
use crate::sys::descriptor::Fd;
use crate::sys::fs::open_path;
use crate::sys::mount::{
    FsContext, MountAttr, attach, attach_at, bind_here, clone_tree, set_attr, set_attr_at,
};

/// The host's `/dev/null`: opened before the container's root is in sight and checked to be that
/// very device, since a masked file would else show whatever the container put there
/// (CVE-2025-31133).
///
/// # Errors
/// When it is something else.
pub fn open_null() -> Result<Fd> {
    let null = open_path("/dev/null", OFlag::O_NOFOLLOW).context("open /dev/null")?;
    let stat = fstat(&null).context("examine /dev/null")?;
    ensure!(
        file_type(&stat) == libc::S_IFCHR && stat.st_rdev == makedev(1, 3),
        "the host's /dev/null is not the null device"
    );
    Ok(null)
}

/// Covers each path that exists: files with `null`, folders with one empty read-only tmpfs that
/// all of them share and which has the SELinux context `label`.
///
/// # Errors
/// Names the path.
pub fn mask(root: &Root, paths: &[PathBuf], null: &Fd, label: Option<&CStr>) -> Result<()> {
    let mut cover = Cover { null, label, empty: None };
    for path in paths {
        let covered = match root.interface_entry(path) {
            Some((mount, name)) => cover.entry(mount, name),
            None => Err(Errno::EAGAIN.into()),
        };
        if covered.is_ok() {
            continue;
        }
        let Some(target) = existing(root, path, "linux.maskedPaths")? else { continue };
        cover
            .target(&target)
            .with_context(|| format!("linux.maskedPaths: cover {}", path.display()))?;
    }
    Ok(())
}

/// What paths are covered with.
struct Cover<'a> {
    null: &'a Fd,
    label: Option<&'a CStr>,
    /// The tmpfs; attached already, copies of it are what is attached next.
    empty: Option<Fd>,
}

impl Cover<'_> {
    fn target(&mut self, target: &Fd) -> Result<()> {
        match is_folder(&fstat(target)?) {
            true => self.folder(|tree| attach(tree, target)),
            false => Ok(attach(clone_tree(self.null, "", false)?, target)?),
        }
    }

    /// The same by name, for an entry of a procfs or sysfs that is the container's own: nobody
    /// else can exchange names there.
    fn entry(&mut self, mount: &Fd, name: &OsStr) -> Result<()> {
        match fstatat(mount, name, AtFlags::empty()) {
            Ok(stat) if is_folder(&stat) => self.folder(|tree| attach_at(tree, mount, name)),
            Ok(_) => Ok(attach_at(clone_tree(self.null, "", false)?, mount, name)?),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The same filesystem may be attached many times, a mount only once; and older kernels (before
    /// Linux 6.15) make no copy of one that isn't attached.
    fn folder(&mut self, attach: impl Fn(&Fd) -> nix::Result<()>) -> Result<()> {
        if let Some(empty) = &self.empty {
            return Ok(attach(&clone_tree(empty, "", false)?)?);
        }
        let empty = empty_folder(self.label).context("make an empty tmpfs")?;
        attach(&empty)?;
        self.empty = Some(empty);
        Ok(())
    }
}

/// A detached tmpfs in which nothing can be made.
///
/// # Errors
/// Those of the mount calls.
pub fn empty_folder(label: Option<&CStr>) -> nix::Result<Fd> {
    let fs = FsContext::open(c"tmpfs")?;
    fs.set(c"nr_inodes", Some(c"1"))?;
    if let Some(label) = label {
        fs.set(c"context", Some(label))?;
    }
    fs.create()?;
    fs.mount(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
}

/// Makes each path that exists, with all below it, read-only.
///
/// # Errors
/// Names the path.
pub fn make_readonly(root: &Root, paths: &[PathBuf]) -> Result<()> {
    let mut here = Here::default();
    for path in paths {
        // By name where that is safe, as with masks.
        let protect_entry = |(mount, name): (&Fd, &OsStr)| -> nix::Result<()> {
            here.enter(mount)?;
            bind_here(name, name, true)?;
            set_attr_at(mount, name, READ_ONLY, true)
        };
        if let Some(Ok(()) | Err(Errno::ENOENT)) = root.interface_entry(path).map(protect_entry) {
            continue;
        }
        let Some(target) = existing(root, path, "linux.readonlyPaths")? else { continue };
        let protect = || -> nix::Result<()> {
            let tree = clone_tree(&target, "", true)?;
            set_attr(&tree, READ_ONLY, true)?;
            attach(&tree, &target)
        };
        protect().with_context(|| format!("linux.readonlyPaths: protect {}", path.display()))?;
    }
    Ok(())
}

/// The folder that the process is in, to enter each once.
#[derive(Default)]
struct Here(Option<RawFd>);

impl Here {
    fn enter(&mut self, folder: &Fd) -> nix::Result<()> {
        if self.0.replace(folder.as_raw_fd()) == Some(folder.as_raw_fd()) {
            return Ok(());
        }
        nix::unistd::fchdir(folder)
    }
}

const READ_ONLY: MountAttr = MountAttr { set: ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };

fn existing(root: &Root, path: &std::path::Path, property: &str) -> Result<Option<Fd>> {
    match root.open_interface(path, OFlag::O_PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("{property}: open {}", path.display())),
    }
}
