//! `linux.maskedPaths` and `linux.readonlyPaths`.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsRawFd;
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
    FsContext, MountAttr, attach, attach_at, bind_here, clone_tree, mount_here, set_attr,
    set_attr_at,
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

/// Covers each path that exists: files with `null`, folders with an empty read-only tmpfs, which those
/// of the kernel's interfaces share. Its SELinux context is `label`. `own_mounts`: /proc is still that of the
/// host, by which the kernel finds `null`. In a mount namespace that others have made it may be anything.
///
/// # Errors
/// Names the path.
pub fn mask(
    root: &Root,
    paths: &[PathBuf],
    null: &Fd,
    own_mounts: bool,
    label: Option<&CStr>,
) -> Result<()> {
    let mut cover = Cover { root, null, label, empty: None };
    for path in paths {
        if let Some((mount, name)) = root.interface_entry(path).filter(|_| own_mounts)
            && cover.entry(mount, name).is_ok()
        {
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
    root: &'a Root,
    null: &'a Fd,
    label: Option<&'a CStr>,
    /// A folder that is covered.
    empty: Option<PathBuf>,
}

impl Cover<'_> {
    fn target(&self, target: &Fd) -> Result<()> {
        match is_folder(&fstat(target)?) {
            true => Ok(attach(empty_folder(self.label)?, target)?),
            false => Ok(attach(clone_tree(self.null, "", false)?, target)?),
        }
    }

    /// The same by name, for an entry of a procfs or sysfs that is the container's own: nobody else can
    /// exchange names there. It is looked at first: a mount that the kernel makes in vain costs a grace
    /// period of RCU.
    fn entry(&mut self, mount: &Fd, name: &OsStr) -> Result<()> {
        let stat = match fstatat(mount, name, AtFlags::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        self.root.enter(mount)?;
        match (&self.empty, self.label) {
            _ if !is_folder(&stat) => bind_here(&link_to(self.null), name, false)?,
            (Some(empty), _) => bind_here(empty.as_path(), name, false)?,
            (None, label) => {
                match label {
                    Some(label) => attach_at(empty_folder(Some(label))?, mount, name)?,
                    None => mount_here(c"tmpfs", c"tmpfs", name, CLOSED, c"nr_inodes=1")?,
                }
                // By this path there is now what it is covered with.
                self.empty = Some(link_to(mount).join(name));
            }
        }
        Ok(())
    }
}

/// The path by which the kernel finds what `fd` is a descriptor of.
fn link_to(fd: &Fd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

const CLOSED: u64 = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;

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
    fs.mount(CLOSED)
}

/// Makes each path that exists, with all below it, read-only.
///
/// # Errors
/// Names the path.
pub fn make_readonly(root: &Root, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        // By name where that is safe, as with masks.
        let protect_entry = |(mount, name): (&Fd, &OsStr)| -> nix::Result<()> {
            root.enter(mount)?;
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

const READ_ONLY: MountAttr = MountAttr { set: ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };

fn existing(root: &Root, path: &std::path::Path, property: &str) -> Result<Option<Fd>> {
    match root.open_interface(path, OFlag::O_PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("{property}: open {}", path.display())),
    }
}
