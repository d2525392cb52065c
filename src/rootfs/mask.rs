//! `linux.maskedPaths` and `linux.readonlyPaths`.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, makedev};

use super::root::{Root, file_type, is_folder};
use crate::spec::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};
use crate::sys::mount::{FsContext, MountAttr, attach, clone_tree, set_attr};

/// The host's `/dev/null`: opened before the container's root is in sight and checked to be that
/// very device, since a masked file would else show whatever the container put there
/// (CVE-2025-31133).
///
/// # Errors
/// When it is something else.
pub fn open_null() -> Result<OwnedFd> {
    let null =
        open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
            .context("open /dev/null")?;
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
pub fn mask(root: &Root, paths: &[PathBuf], null: &OwnedFd, label: Option<&CStr>) -> Result<()> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = existing(root, path, "linux.maskedPaths")? else { continue };
        let cover = || -> Result<()> {
            if !is_folder(&fstat(&target)?) {
                return Ok(attach(clone_tree(null, "", false)?, &target)?);
            }
            // The same filesystem may be attached many times, a mount only once.
            let tree = match &empty {
                Some(tree) => clone_tree(tree, "", false)?,
                None => {
                    let tree = empty_folder(label).context("make an empty tmpfs")?;
                    attach(&tree, &target)?;
                    empty = Some(tree);
                    return Ok(());
                }
            };
            Ok(attach(tree, &target)?)
        };
        let mut cover = cover;
        cover().with_context(|| format!("linux.maskedPaths: cover {}", path.display()))?;
    }
    Ok(())
}

/// A detached tmpfs in which nothing can be made.
///
/// # Errors
/// Those of the mount calls.
pub fn empty_folder(label: Option<&CStr>) -> nix::Result<OwnedFd> {
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
    for path in paths {
        let Some(target) = existing(root, path, "linux.readonlyPaths")? else { continue };
        let protect = || -> nix::Result<()> {
            let tree = clone_tree(&target, "", true)?;
            set_attr(&tree, MountAttr { set: ATTR_RDONLY, ..MountAttr::default() }, true)?;
            attach(&tree, &target)
        };
        protect().with_context(|| format!("linux.readonlyPaths: protect {}", path.display()))?;
    }
    Ok(())
}

fn existing(root: &Root, path: &std::path::Path, property: &str) -> Result<Option<OwnedFd>> {
    match root.open_interface(path, OFlag::O_PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("{property}: open {}", path.display())),
    }
}
