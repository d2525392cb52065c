//! The mount interface of Linux 5.2–5.12: mounts are made and configured while detached.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use nix::NixPath;

use super::descriptor::Fd;
use super::{check, check_fd};

/// What `mount_setattr(2)` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// For `MOUNT_ATTR_IDMAP`: the user namespace.
    pub userns_fd: u64,
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`: a detached copy of the mount at `path` below `dir`;
/// an empty path means `dir` itself.
///
/// # Errors
/// Those of `open_tree(2)`: `EINVAL` when the mount is unbindable or in a foreign namespace.
pub fn clone_tree<P: ?Sized + NixPath>(
    dir: impl AsFd,
    path: &P,
    recursive: bool,
) -> nix::Result<Fd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as u32;
    }
    let dir = dir.as_fd().as_raw_fd();
    path.with_nix_path(|path| {
        // SAFETY: `path` is NUL-terminated; the call returns a new descriptor.
        unsafe { check_fd(libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags)) }
            .map(Fd::from)
    })?
}

/// `move_mount(2)`: attaches the mount `from` on the file or folder `to`.
///
/// # Errors
/// Those of `move_mount(2)`: `ENOTDIR` when a folder is put on a file or the reverse.
pub fn attach(from: impl AsFd, to: impl AsFd) -> nix::Result<()> {
    const F_EMPTY_PATH: u32 = 0x04;
    const T_EMPTY_PATH: u32 = 0x40;
    // SAFETY: both paths are empty strings, both descriptors are open.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_fd().as_raw_fd(),
            c"".as_ptr(),
            to.as_fd().as_raw_fd(),
            c"".as_ptr(),
            F_EMPTY_PATH | T_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Attaches the detached mount `tree` to `name` in the folder `dir`; links are followed, so it must
/// be a folder in which only the caller or the kernel can have made any.
///
/// # Errors
/// Those of `move_mount(2)`: `ENOENT` when nothing is there, `EINVAL` when one is a folder and the
/// other not.
pub fn attach_at(
    tree: impl AsFd,
    dir: impl AsFd,
    name: &(impl NixPath + ?Sized),
) -> nix::Result<()> {
    const F_EMPTY_PATH: u32 = 0x04;
    const T_SYMLINKS: u32 = 0x10;
    name.with_nix_path(|name| {
        // SAFETY: both paths are NUL-terminated and outlive the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_fd().as_raw_fd(),
                c"".as_ptr(),
                dir.as_fd().as_raw_fd(),
                name.as_ptr(),
                F_EMPTY_PATH | T_SYMLINKS,
            )
        })
        .map(drop)
    })?
}

/// `mount(2)` with `MS_BIND`: shows `source` at `name`, both from the working directory. As
/// [`attach_at`] as to links, and in one call, without the mount namespace of its own that the
/// kernel makes for each detached tree.
///
/// # Errors
/// Those of `mount(2)`: `ENOENT` when one of them isn't there.
pub fn bind_here(
    source: &(impl NixPath + ?Sized),
    name: &(impl NixPath + ?Sized),
    recursive: bool,
) -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    mount(Some(source), name, None::<&str>, flags, None::<&str>)
}

/// `mount(2)`: a new filesystem at `name`, from the working directory; as [`bind_here`] as to links
/// and calls. `attributes`: those of `MOUNT_ATTR_*` in [`HERE`], or `MOUNT_ATTR_RDONLY`, which is then
/// that of the filesystem, too; `options` as in fstab(5).
///
/// # Errors
/// Those of `mount(2)`; what the filesystem itself has to say, only [`FsContext`] tells.
pub fn mount_here(
    fstype: &CStr,
    source: &CStr,
    name: &(impl NixPath + ?Sized),
    attributes: u64,
    options: &CStr,
) -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    // These have the same values in both interfaces.
    let flags = MsFlags::from_bits_truncate(attributes as libc::c_ulong);
    mount(Some(source), name, Some(fstype), flags, Some(options))
}

/// The attributes that mean the same to [`mount_here`] as for a mount alone.
pub const HERE: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// `mount_setattr(2)` on the mount that `mount` refers to.
///
/// # Errors
/// Those of `mount_setattr(2)`: `EINVAL` when `mount` is not a mount's root, `EPERM` when the
/// attribute is locked.
pub fn set_attr(mount: impl AsFd, attr: MountAttr, recursive: bool) -> nix::Result<()> {
    set_attr_at(mount, "", attr, recursive)
}

/// The same for what is mounted at `name` in the folder `dir`; an empty name means `dir` itself.
///
/// # Errors
/// As [`set_attr`].
pub fn set_attr_at(
    dir: impl AsFd,
    name: &(impl NixPath + ?Sized),
    attr: MountAttr,
    recursive: bool,
) -> nix::Result<()> {
    let value = [attr.set, attr.clear, attr.propagation, attr.userns_fd];
    let mut flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    name.with_nix_path(|name| {
        // SAFETY: `name` is NUL-terminated; `value` is a struct mount_attr (four u64); both outlive
        // the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                dir.as_fd().as_raw_fd(),
                name.as_ptr(),
                flags,
                value.as_ptr(),
                size_of_val(&value),
            )
        })
        .map(drop)
    })?
}

/// A filesystem being configured (`fsopen(2)`).
pub struct FsContext(Fd);

impl FsContext {
    /// # Errors
    /// `ENODEV` when the kernel has no such filesystem.
    pub fn open(fstype: &CStr) -> nix::Result<Self> {
        const FSOPEN_CLOEXEC: u32 = 1;
        // SAFETY: `fstype` is NUL-terminated; the call returns a new descriptor.
        let fd =
            unsafe { check_fd(libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC)) }?;
        Ok(Self(fd.into()))
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> nix::Result<()> {
        let ptr = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are NUL-terminated or null, as the command demands.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, ptr(key), ptr(value), 0)
        })
        .map(drop)
    }

    /// Sets the parameter `key` to `value`, or the flag `key` without one.
    ///
    /// # Errors
    /// `EINVAL` and others when the filesystem refuses it; [`FsContext::complaint`] says more.
    pub fn set(&self, key: &CStr, value: Option<&CStr>) -> nix::Result<()> {
        const FSCONFIG_SET_FLAG: u32 = 0;
        const FSCONFIG_SET_STRING: u32 = 1;
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        self.config(command, Some(key), value)
    }

    /// Makes the superblock.
    ///
    /// # Errors
    /// Whatever mounting such a filesystem can answer.
    pub fn create(&self) -> nix::Result<()> {
        const FSCONFIG_CMD_CREATE: u32 = 6;
        self.config(FSCONFIG_CMD_CREATE, None, None)
    }

    /// `fsmount(2)`: a detached mount of the filesystem, with `MOUNT_ATTR_*` `attributes`.
    ///
    /// # Errors
    /// `EPERM` when the mount would reveal more than the caller may see.
    pub fn mount(&self, attributes: u64) -> nix::Result<Fd> {
        const FSMOUNT_CLOEXEC: u32 = 1;
        // SAFETY: no pointers; returns a new descriptor.
        unsafe {
            check_fd(libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                FSMOUNT_CLOEXEC,
                attributes as u32,
            ))
        }
        .map(Fd::from)
    }

    /// `fspick(2)`: the filesystem of the mount `mount`, to be changed and then [reconfigured].
    ///
    /// [reconfigured]: FsContext::reconfigure
    ///
    /// # Errors
    /// `EINVAL` when `mount` is not a mount's root.
    pub fn pick(mount: impl AsFd) -> nix::Result<Self> {
        const FSPICK_CLOEXEC: u32 = 1;
        const FSPICK_EMPTY_PATH: u32 = 8;
        // SAFETY: the path is an empty string; the call returns a new descriptor.
        let fd = unsafe {
            check_fd(libc::syscall(
                libc::SYS_fspick,
                mount.as_fd().as_raw_fd(),
                c"".as_ptr(),
                FSPICK_CLOEXEC | FSPICK_EMPTY_PATH,
            ))
        }?;
        Ok(Self(fd.into()))
    }

    /// Changes the superblock of a context from [`FsContext::pick`].
    ///
    /// # Errors
    /// `EPERM` when it belongs to another user namespace, and what the filesystem refuses.
    pub fn reconfigure(&self) -> nix::Result<()> {
        const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
        self.config(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    /// What the filesystem itself said about the last error, if anything.
    pub fn complaint(&self) -> Option<String> {
        let mut text = [0u8; 512];
        let len = nix::unistd::read(&*self.0, &mut text).ok()?;
        let line = String::from_utf8_lossy(&text[..len]);
        Some(line.trim_start_matches("e ").trim().to_owned())
    }
}

/// Sets the SELinux context of the folder that is `mount`'s root.
///
/// # Errors
/// Those of `setxattr(2)`: `EOPNOTSUPP` without SELinux, `EINVAL` for a context that its policy
/// does not know.
pub fn set_label(mount: impl AsFd, label: &CStr) -> nix::Result<()> {
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
    let folder = nix::fcntl::openat(mount, ".", flags, nix::sys::stat::Mode::empty())?;
    let value = label.to_bytes_with_nul();
    // SAFETY: the name is NUL-terminated, and `value` is valid for the length given.
    check(
        unsafe {
            libc::fsetxattr(
                folder.as_raw_fd(),
                c"security.selinux".as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        }
        .into(),
    )
    .map(drop)
}

/// `pivot_root(".", ".")` in the current folder, then drops the old root, which lies on top of that
/// (pivot_root(2), "Notes"). Its mounts must not be shared with anybody, who would lose them too.
///
/// # Errors
/// `EINVAL` when the folder is no mount point or the root is the initramfs.
pub fn pivot_here() -> nix::Result<()> {
    // SAFETY: both paths are NUL-terminated literals.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)
}
