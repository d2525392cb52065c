//! Device nodes and links in `/dev` (runtime-spec config-linux.md, "Default Devices"; runtime-linux.md,
//! "Dev symbolic links").

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::root::{Root, TargetKind, file_type};
use crate::spec::Device;
use crate::sys::descriptor::Fd;
use crate::sys::mount::{attach, clone_tree};

const DEFAULT: [(&str, (u32, u32)); 6] = [
    ("null", (1, 3)),
    ("zero", (1, 5)),
    ("full", (1, 7)),
    ("random", (1, 8)),
    ("urandom", (1, 9)),
    ("tty", (5, 0)),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Makes the default devices, those of `linux.devices`, and the links of `/dev`. Where device
/// nodes can't be made (`bind`: in a user namespace) the host's are shown.
///
/// # Errors
/// Names the device.
pub fn make_all(root: &Root, devices: &[Device], bind: bool) -> Result<()> {
    let dev = root.dev().context("/dev")?;
    for (name, number) in DEFAULT {
        let path = PathBuf::from(format!("/dev/{name}"));
        if devices.iter().any(|device| device.path == path) {
            continue;
        }
        let device = Device { path, kind: libc::S_IFCHR, number, mode: 0o666, uid: 0, gid: 0 };
        make(root, &dev, name, &device, bind)?;
    }
    for device in devices {
        // The terminal's own multiplexer is a link to that of the container's devpts.
        if device.path == Path::new("/dev/ptmx") {
            continue;
        }
        let (parent, name) = root.parent(&device.path)?;
        let name = name.to_str().context("linux.devices: path is not UTF-8")?;
        make(root, &parent, name, device, bind)
            .with_context(|| format!("linux.devices ({})", device.path.display()))?;
    }
    for (name, target) in LINKS {
        link(&dev, name, target)?;
    }
    replace_ptmx(&dev)
}

/// The paths of the devices that [`make_all`] makes, in the container.
pub fn paths(devices: &[Device]) -> impl Iterator<Item = PathBuf> {
    let default = DEFAULT.iter().map(|(name, _)| PathBuf::from(format!("/dev/{name}")));
    default.chain(devices.iter().map(|device| device.path.clone()))
}

fn link(dev: &Fd, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("link /dev/{name} to {target}")),
    }
}

/// An image may have a node of the host's multiplexer there.
fn replace_ptmx(dev: &Fd) -> Result<()> {
    match symlinkat("pts/ptmx", dev, "ptmx") {
        Err(Errno::EEXIST) => {
            let stat = fstatat(dev, "ptmx", AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if file_type(&stat) == libc::S_IFLNK {
                return Ok(());
            }
            nix::unistd::unlinkat(dev, "ptmx", nix::unistd::UnlinkatFlags::NoRemoveDir)
                .context("replace /dev/ptmx")?;
            link(dev, "ptmx", "pts/ptmx")
        }
        other => other.context("link /dev/ptmx to pts/ptmx"),
    }
}

fn make(root: &Root, parent: &Fd, name: &str, device: &Device, bind: bool) -> Result<()> {
    let path = device.path.display();
    let number = makedev(device.number.0.into(), device.number.1.into());
    if bind && device.kind != libc::S_IFIFO {
        return bind_from_host(root, device);
    }
    let kind = SFlag::from_bits_truncate(device.kind);
    match mknodat(parent, name, kind, Mode::from_bits_truncate(device.mode), number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let there = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let same = file_type(&there) == device.kind
                && (device.kind == libc::S_IFIFO || there.st_rdev == number);
            ensure!(same, "{path} is there already and is another kind of file or device");
        }
        // No right to make nodes: inside somebody else's container, say.
        Err(Errno::EPERM) if device.kind != libc::S_IFIFO => return bind_from_host(root, device),
        Err(errno) => return Err(errno).with_context(|| format!("make the device {path}")),
    }
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .with_context(|| format!("give {path} its owner"))?;
    }
    Ok(())
}

fn bind_from_host(root: &Root, device: &Device) -> Result<()> {
    let path = device.path.as_path();
    let tree = clone_tree(AT_FDCWD, path, false)
        .with_context(|| format!("show the host's {} (none can be made)", path.display()))?;
    let stat = fstat(&tree)?;
    ensure!(
        file_type(&stat) == device.kind
            && stat.st_rdev == makedev(device.number.0.into(), device.number.1.into()),
        "the host's {} is another device, and device nodes can't be made in a user namespace",
        path.display()
    );
    let target = root.mount_target(path, TargetKind::File)?;
    attach(&tree, &target).with_context(|| format!("attach {}", path.display()))
}

/// Shows the container's terminal as `/dev/console`. `tty` is a descriptor that came by ioctl:
/// a path could have been exchanged for another file (CVE-2025-52565).
///
/// # Errors
/// When `/dev/console` can't be made.
pub fn show_console(root: &Root, tty: impl AsFd) -> Result<()> {
    let tree = clone_tree(tty, "", false).context("make a mount of the terminal")?;
    let target = root.mount_target(Path::new("/dev/console"), TargetKind::File)?;
    attach(&tree, &target).context("attach the terminal at /dev/console")
}

/// The master of a new pseudo-terminal of the container's own devpts.
///
/// # Errors
/// When none is mounted.
pub fn open_ptmx(root: &Root) -> Result<Fd> {
    let help = "process.terminal: open /dev/pts/ptmx in the container \
                (is a devpts mounted at /dev/pts in mounts?)";
    let pts = root.open(Path::new("/dev/pts"), OFlag::O_PATH | OFlag::O_DIRECTORY).context(help)?;
    let kind = nix::sys::statfs::fstatfs(&pts).context(help)?.filesystem_type();
    ensure!(kind == nix::sys::statfs::DEVPTS_SUPER_MAGIC, "{help}");
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    openat(&pts, "ptmx", flags, Mode::empty()).map(Fd::from).context(help)
}
