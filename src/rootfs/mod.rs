//! The container's view of files: its root, mounts, devices and masks.
//!
//! Runs in the container's first process, in its new mount namespace. The order is that of the
//! functions in [`Rootfs`]: take the root, mount, make devices; then, after the hooks, mask what
//! is to be hidden and pivot. Every mount is made and configured while detached and attached by
//! descriptor.

pub mod copy_up;
pub mod devices;
pub mod idmap;
pub mod mask;
pub mod mounts;
pub mod root;

use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{AT_FDCWD, OFlag};
use oci_spec::runtime::LinuxNamespaceType;

use crate::spec::Config;
use crate::spec::mount::ATTR_RDONLY;
use crate::sys::descriptor::Fd;
use crate::sys::fs::open_path;
use crate::sys::mount::{
    MountAttr, attach, attach_at, clone_tree, pivot_here, set_attr, set_attr_at,
};
use root::Root;

/// Takes the current folder as the root filesystem: a mount of its own, in a mount tree that no
/// longer receives what it should not from the host's. The current folder survives the making of
/// the mount namespace, so that not even a root in a folder that the container's users can't
/// reach is a problem.
///
/// In a mount namespace of somebody else the folder is taken as it is: a mount made there would
/// outlive the container.
///
/// # Errors
/// Names the step.
pub fn take_current_folder(config: &Config) -> Result<Root> {
    if !config.namespaces.is_new(LinuxNamespaceType::Mount) {
        return open_path(".", OFlag::O_DIRECTORY).map(Root::new).context("open root.path");
    }
    // Mounts of the host may come in, none may go out, unless the container asked for neither.
    let private = config.rootfs_propagation.is_some_and(|p| p.flag == libc::MS_PRIVATE);
    let propagation = if private { libc::MS_PRIVATE } else { libc::MS_SLAVE };
    let attr = MountAttr { propagation, ..MountAttr::default() };
    set_attr_at(AT_FDCWD, "/", attr, true).context(
        "linux.rootfsPropagation: detach mount events from the host's (is / a mount point?)",
    )?;
    let tree = clone_tree(AT_FDCWD, ".", true).context("root.path: make a mount of it")?;
    attach_at(&tree, AT_FDCWD, ".").context("root.path: attach its mount")?;
    Ok(Root::new(tree))
}

/// Attaches the root filesystem `rootfs` to the folder `target` in the caller's own mount
/// namespace, for a container without one: the container's mounts then lie below `target` and
/// nowhere else, and go with it.
///
/// # Errors
/// Names the step.
pub fn attach_in_host(rootfs: &Path, target: &Path) -> Result<Fd> {
    let tree = clone_tree(AT_FDCWD, rootfs, true)
        .with_context(|| format!("root.path {}: make a mount of it", rootfs.display()))?;
    // Without this the container's mounts would appear wherever the root is mounted from.
    let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    set_attr(&tree, attr, true).context("root.path: detach mount events from the host's")?;
    let here =
        open_path(target, OFlag::empty()).with_context(|| format!("open {}", target.display()))?;
    attach(&tree, &here)
        .with_context(|| format!("root.path: attach its mount to {}", target.display()))?;
    Ok(tree)
}

/// Makes the root the root of this mount namespace and lets go of the host's.
///
/// # Errors
/// Names the step.
pub fn pivot(root: &Root, config: &Config, no_pivot: bool) -> Result<()> {
    nix::unistd::fchdir(root).context("root.path: change into it")?;
    if !config.namespaces.is_new(LinuxNamespaceType::Mount) {
        nix::unistd::chroot(".").context("root.path: chroot into it")?;
        nix::unistd::chdir("/").context("root.path: change into it")?;
        if config.namespaces.get(LinuxNamespaceType::Mount).is_some() {
            // The root is no mount of this container's own.
            return Ok(());
        }
    } else if no_pivot {
        let host_root = open_path("/", OFlag::O_DIRECTORY).context("open the host's root")?;
        attach(root, &host_root).context("--no-pivot: move the root filesystem onto /")?;
        nix::unistd::chroot(".").context("--no-pivot: chroot into the root filesystem")?;
        nix::unistd::chdir("/").context("--no-pivot: change into the new root")?;
    } else {
        pivot_here().context(
            "root.path: pivot_root into it (on an initramfs, where that can't work: --no-pivot)",
        )?;
    }
    let attr = MountAttr {
        set: if config.rootfs_readonly { ATTR_RDONLY } else { 0 },
        ..MountAttr::default()
    };
    if attr != MountAttr::default() {
        set_attr(root, attr, false).context("root.readonly: make the root read-only")?;
    }
    if let Some(propagation) = config.rootfs_propagation {
        let attr = MountAttr { propagation: propagation.flag, ..MountAttr::default() };
        set_attr(root, attr, propagation.recursive).context("linux.rootfsPropagation: set it")?;
    }
    Ok(())
}
