//! Making the entries of `mounts`.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::symlinkat;

use super::root::{Root, TargetKind, is_folder};
use super::{copy_up, mask};
use crate::cgroup;
use crate::procfs::Proc;
use crate::spec::mount::{ATTR_RDONLY, Kind, Mount, Propagation};
use crate::sys::descriptor::Fd;
use crate::sys::mount::{
    FsContext, HERE, MountAttr, attach, bind_here, clone_tree, mount_here, set_attr, set_label,
};

/// What the mounts need to know beside the root.
pub struct Surroundings<'a> {
    /// The container's cgroup.
    pub cgroup: &'a cgroup::Location,
    /// Returns when this process is in it, which a mount of cgroups shows, and to which files are
    /// charged.
    pub in_cgroup: &'a dyn Fn() -> Result<()>,
    /// Whether the container has a cgroup namespace, so that it can't see other cgroups.
    pub cgroup_namespace: bool,
    /// Whether it has a user namespace.
    pub user_namespace: bool,
    /// The SELinux context of new filesystems.
    pub label: Option<&'a CStr>,
    /// The host's procfs.
    pub proc: &'a Proc,
}

/// A detached copy of what a bind mount shows.
///
/// # Errors
/// When the source is missing.
pub fn open_source(mount: &Mount) -> Result<Option<Fd>> {
    let Kind::Bind { source, recursive } = &mount.kind else { return Ok(None) };
    let tree = clone_tree(AT_FDCWD, source.as_path(), *recursive)
        .with_context(|| format!("{}: bind mount source {}", mount.property, source.display()))?;
    Ok(Some(tree))
}

/// Whether bind mount sources must be opened before the mount tree is cut off from the host's,
/// because what is mounted below them later has to appear here, or on the host too. Where the host
/// shares nothing they need not, and then all mounts are made in their order.
///
/// # Errors
/// When `/proc` can't be read.
pub fn any_shared(mounts: &[Mount], proc: &Proc) -> Result<bool> {
    Ok(mounts.iter().any(is_shared)
        && proc.read("self/mountinfo").context("read the mount table")?.contains(" shared:"))
}

/// Whether `mount` is to share its mounts with the host, or the host's with it.
pub fn is_shared(mount: &Mount) -> bool {
    let follows = |p: Propagation| matches!(p.flag, libc::MS_SHARED | libc::MS_SLAVE);
    matches!(mount.kind, Kind::Bind { .. }) && mount.propagation.is_some_and(follows)
}

/// Makes one mount; `source` is what [`open_source`] gave when that ran earlier. Returns a tmpfs
/// that is to become read-only ([`make_readonly`]) when all that goes into it is there: mount
/// points, and devices if it is `/dev`.
///
/// # Errors
/// Names the entry of config.json and the step.
pub fn make(
    root: &mut Root,
    mount: &Mount,
    source: Option<Fd>,
    around: &Surroundings,
) -> Result<Option<Fd>> {
    if !matches!(mount.kind, Kind::Remount { .. }) {
        root.cover(&mount.destination);
    }
    let made = match &mount.kind {
        Kind::Bind { .. } => {
            let tree = match source {
                Some(tree) => Some(tree),
                None => {
                    ensure!(mount.idmap.is_none(), "an id-mapped mount without its source");
                    open_source(mount)?
                }
            };
            bind(root, mount, &tree.context("a bind mount without a source")?).map(|()| None)
        }
        Kind::Filesystem { copy_up, .. } => {
            if *copy_up {
                // Its size is the image's choice.
                (around.in_cgroup)()?;
            }
            filesystem(root, mount, around)
        }
        Kind::Cgroup => cgroups(root, mount, around).map(|()| None),
        Kind::Remount { data, mount_only } => {
            remount(root, mount, data, *mount_only).map(|()| None)
        }
    };
    made.with_context(|| mount.property.clone())
}

/// Makes a mount of [`make`] read-only.
///
/// # Errors
/// When the kernel refuses.
pub fn make_readonly(mount: &Fd) -> Result<()> {
    let attr = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
    set_attr(mount, attr, false).context("mounts: make a tmpfs read-only")
}

/// Those of `mount`, on a tree or, `below` it too, on all that is mounted there.
fn set_attributes(tree: impl AsFd, mount: &Mount, below: bool) -> Result<()> {
    let set = |attr: MountAttr, recursive| {
        if attr == MountAttr::default() {
            return Ok(());
        }
        set_attr(&tree, attr, recursive).map_err(|errno| {
            let hint = match errno {
                Errno::EPERM => {
                    " (in a user namespace the host's ro, nosuid, nodev, noexec and atime options \
                     can't be taken off a mount)"
                }
                _ => "",
            };
            anyhow::Error::new(errno).context(format!("set the mount's options{hint}"))
        })
    };
    set(mount.recursive_attr, true)?;
    set(mount.attr, below)
}

fn set_propagation(tree: impl AsFd, propagation: Propagation) -> Result<()> {
    let attr = MountAttr { propagation: propagation.flag, ..MountAttr::default() };
    set_attr(tree, attr, propagation.recursive).context("set the mount's propagation")
}

fn bind(root: &Root, mount: &Mount, tree: &Fd) -> Result<()> {
    let kind = match is_folder(&fstat(tree).context("examine the source")?) {
        true => TargetKind::Folder,
        false => TargetKind::File,
    };
    set_attributes(tree, mount, false)?;
    // The source may have been opened where it is shared with the host.
    let propagation =
        mount.propagation.unwrap_or(Propagation { flag: libc::MS_SLAVE, recursive: true });
    set_propagation(tree, propagation)?;
    let target = root.mount_target(&mount.destination, kind)?;
    attach(tree, &target).context("attach the mount")
}

/// What the kernel refused, with the filesystem's own words about it, if it had any.
fn refused(fs: &FsContext, errno: Errno, what: String) -> anyhow::Error {
    let said = fs.complaint().filter(|said| !said.is_empty());
    let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
    anyhow::Error::new(errno).context(format!("{what}{said}"))
}

fn set_parameters(fs: &FsContext, name: &str, data: &[(CString, Option<CString>)]) -> Result<()> {
    for (key, value) in data {
        match fs.set(key, value.as_deref()) {
            Ok(()) => {}
            // Filesystems with a version counter have come to keep it always; few still take the
            // word, and mount(2) had it for all.
            Err(_) if key.as_bytes() == b"iversion" => {}
            Err(errno) => {
                let value = value.as_ref().map(|v| format!("={}", v.to_string_lossy()));
                let option = format!("{}{}", key.to_string_lossy(), value.unwrap_or_default());
                return Err(refused(fs, errno, format!("{name} refuses the option {option:?}")));
            }
        }
    }
    Ok(())
}

/// Makes a plain mount in a new `/dev` in two calls instead of the ten that configure and attach it
/// by descriptor. Whether it has: if not, for whatever reason, [`filesystem`] does it or says why not.
fn in_dev(root: &mut Root, mount: &Mount) -> bool {
    let Kind::Filesystem { fstype, source, data, copy_up: false } = &mount.kind else {
        return false;
    };
    let plain = mount.attr.set & !HERE == 0
        && mount.recursive_attr == MountAttr::default()
        && mount.propagation.is_none()
        && matches!(fstype.as_bytes(), b"tmpfs" | b"devpts" | b"mqueue");
    let Some(options) = one_line(data).filter(|_| plain) else { return false };
    root.enter_new_in_dev(&mount.destination)
        .is_some_and(|name| mount_here(fstype, source, name, mount.attr.set, &options).is_ok())
}

/// Options as mount(2) takes them, unless one has a comma in it or they are too long for its page.
fn one_line(data: &[(CString, Option<CString>)]) -> Option<CString> {
    const PAGE: usize = 4096;
    let option = |(key, value): &(CString, Option<CString>)| match value {
        Some(value) => [key.as_bytes(), value.as_bytes()].join(&b'='),
        None => key.as_bytes().to_vec(),
    };
    let options: Vec<_> = data.iter().map(option).collect();
    let fits = options.iter().all(|option| !option.contains(&b','));
    CString::new(options.join(&b',')).ok().filter(|line| fits && line.count_bytes() < PAGE)
}

fn filesystem(root: &mut Root, mount: &Mount, around: &Surroundings) -> Result<Option<Fd>> {
    let Kind::Filesystem { fstype, source, data, copy_up } = &mount.kind else { return Ok(None) };
    let label = around.label;
    if label.is_none() && in_dev(root, mount) {
        return Ok(None);
    }
    if !is_own(fstype.as_bytes()) {
        // Relative paths in options (overlay's) start at the root.
        root.enter(&*root).context("change into the root")?;
    }
    let name = fstype.to_string_lossy();
    // The kernel's own interfaces must be where everybody expects them.
    let target = match fstype.as_bytes() {
        b"proc" | b"sysfs" => root.unlinked_folder(&mount.destination)?,
        _ => root.mount_target(&mount.destination, TargetKind::Folder)?,
    };
    let fs = FsContext::open(fstype).map_err(|errno| {
        let hint = match errno {
            Errno::EPERM => forbidden(fstype.as_bytes()),
            _ => ": is this filesystem known to the kernel?",
        };
        anyhow::Error::new(errno).context(format!("type {name:?}{hint}"))
    })?;
    let refused = |errno, what: String| match errno {
        Errno::EPERM => refused(&fs, errno, what + forbidden(fstype.as_bytes())),
        _ => refused(&fs, errno, what),
    };
    fs.set(c"source", Some(source)).map_err(|errno| refused(errno, format!("source of {name}")))?;
    if mount.attr.set & ATTR_RDONLY != 0 && !is_pseudo(fstype.as_bytes()) {
        fs.set(c"ro", None).map_err(|errno| refused(errno, format!("{name}: option ro")))?;
    }
    set_parameters(&fs, &name, data)?;
    // A context among the mount's own options is meant for it alone.
    let label = label.filter(|_| !data.iter().any(|(key, _)| key.as_bytes() == b"context"));
    if let Some(label) = label.filter(|_| takes_label(fstype.as_bytes())) {
        fs.set(c"context", Some(label))
            .map_err(|errno| refused(errno, format!("linux.mountLabel: {name} refuses it")))?;
    }
    fs.create().map_err(|errno| refused(errno, format!("make the {name} filesystem")))?;
    let late_readonly = fstype.as_bytes() == b"tmpfs" && mount.attr.set & ATTR_RDONLY != 0;
    let now = if late_readonly { mount.attr.set & !ATTR_RDONLY } else { mount.attr.set };
    let tree = fs.mount(now).map_err(|errno| refused(errno, format!("mount the {name}")))?;
    if *copy_up {
        copy_up::copy(&target, &tree, around.proc)
            .context("option tmpcopyup: copy the image's content")?;
    }
    if let Some(label) = label.filter(|_| fstype.as_bytes() == b"mqueue") {
        set_label(&tree, label).context("linux.mountLabel: label the mqueue")?;
    }
    if mount.recursive_attr != MountAttr::default() {
        set_attr(&tree, mount.recursive_attr, true).context("set the mount's options")?;
    }
    attach(&tree, &target).context("attach the mount")?;
    mount.propagation.map_or(Ok(()), |propagation| set_propagation(&tree, propagation))?;
    let late = match late_readonly {
        true => Some(tree.try_clone().context("duplicate a mount's descriptor")?.into()),
        false => None,
    };
    match fstype.as_bytes() {
        b"proc" | b"sysfs" => root.add_interface(&mount.destination, tree),
        b"tmpfs" => root.add_tmpfs(&mount.destination, tree),
        _ => {}
    }
    Ok(late)
}

/// What to do where the kernel lets a user namespace mount a filesystem only if other namespaces
/// belong to it too.
fn forbidden(fstype: &[u8]) -> &'static str {
    match fstype {
        b"sysfs" => {
            ": a user namespace needs a network namespace of its own for it, and an outer sysfs \
             that nothing is mounted over; else bind-mount the host's /sys (see ultari spec \
             --rootless)"
        }
        b"proc" => {
            ": a user namespace needs a PID namespace of its own for it, and an outer procfs that \
             nothing is mounted over; else bind-mount the outer /proc"
        }
        b"mqueue" => {
            ": a user namespace needs an IPC namespace of its own for it; else bind-mount the \
             host's /dev/mqueue"
        }
        _ => ": who is root in a user namespace only may not mount it",
    }
}

/// Filesystems without a device, where read-only is a matter of the mount alone: their
/// superblock may be shared with the host's.
fn is_pseudo(fstype: &[u8]) -> bool {
    is_own(fstype) || fstype == b"overlay"
}

/// Filesystems of the kernel's own, none of whose options is a path.
fn is_own(fstype: &[u8]) -> bool {
    matches!(fstype, b"proc" | b"sysfs" | b"tmpfs" | b"devpts" | b"mqueue")
}

/// Whether SELinux lets a mount of this filesystem say the label of its files: those of the
/// kernel's interfaces come from the policy, and the queues of a namespace have one superblock
/// that is there already.
fn takes_label(fstype: &[u8]) -> bool {
    !matches!(fstype, b"proc" | b"sysfs" | b"mqueue")
}

fn remount(
    root: &Root,
    mount: &Mount,
    data: &[(CString, Option<CString>)],
    mount_only: bool,
) -> Result<()> {
    let target = root.open(&mount.destination, OFlag::O_PATH).context("open the destination")?;
    if !data.is_empty() {
        reconfigure(&target, data).context("option remount")?;
    }
    set_attributes(&target, mount, false)?;
    let writable = mount.attr.clear & ATTR_RDONLY != 0 && !mount_only;
    let readonly = |flags: FsFlags| flags.contains(FsFlags::ST_RDONLY);
    if writable && readonly(fstatvfs(&target).context("examine the mount")?.flags()) {
        // The mount no longer is, so the filesystem itself must be.
        reconfigure(&target, &[(c"rw".into(), None)]).context("option remount")?;
    }
    mount.propagation.map_or(Ok(()), |propagation| set_propagation(&target, propagation))
}

fn reconfigure(target: &Fd, data: &[(CString, Option<CString>)]) -> Result<()> {
    let fs = FsContext::pick(target).context("take the filesystem (is it a mount point?)")?;
    set_parameters(&fs, "the filesystem", data)?;
    fs.reconfigure().map_err(|errno| refused(&fs, errno, "change the filesystem".to_owned()))
}

fn cgroups(root: &Root, mount: &Mount, around: &Surroundings) -> Result<()> {
    let target = root.unlinked_folder(&mount.destination)?;
    if around.cgroup.is_unified() {
        (around.in_cgroup)()?;
        return unified_cgroups(mount, &target, around);
    }
    // A tmpfs with one folder for each hierarchy, each showing the container's own cgroup.
    let fs = FsContext::open(c"tmpfs").context("make a tmpfs for the cgroup hierarchies")?;
    fs.set(c"source", Some(c"cgroup")).context("tmpfs: source")?;
    fs.set(c"mode", Some(c"755")).context("tmpfs: mode")?;
    if let Some(label) = around.label {
        fs.set(c"context", Some(label)).context("linux.mountLabel: tmpfs refuses it")?;
    }
    fs.create().context("make a tmpfs for the cgroup hierarchies")?;
    let readonly = mount.attr.set & ATTR_RDONLY;
    let top = fs.mount(mount.attr.set & !readonly).context("mount it")?;
    attach(&top, &target).context("attach the mount")?;
    for (name, _) in around.cgroup.v1_paths() {
        mkdirat(&top, name, Mode::from_bits_truncate(0o755))
            .with_context(|| format!("make the folder of {name}"))?;
    }
    (around.in_cgroup)()?;
    root.enter_other(&top).context("change into it")?;
    for (name, path) in around.cgroup.v1_paths() {
        let show = || -> Result<()> {
            let shown = match bind_here(path.as_path(), name, false) {
                // A container without a cgroup of its own is in the caller's.
                Err(Errno::ENOENT | Errno::EACCES) => {
                    bind_here(cgroup::own_v1_path(name).as_path(), name, false)
                }
                shown => shown,
            };
            shown.with_context(|| path.display().to_string())?;
            // Programs look for each controller of a shared hierarchy by its own name.
            for controller in name.split(',').filter(|controller| *controller != name) {
                symlinkat(name, &top, controller)?;
            }
            Ok(())
        };
        show().with_context(|| format!("show the cgroup of {name}"))?;
    }
    set_attributes(&top, mount, true)
}

fn unified_cgroups(mount: &Mount, target: &Fd, around: &Surroundings) -> Result<()> {
    let tree = if around.cgroup_namespace {
        let fs = FsContext::open(c"cgroup2").context("open cgroup2")?;
        fs.set(c"source", Some(c"cgroup")).context("cgroup2: source")?;
        fs.create().and_then(|()| fs.mount(mount.attr.set))
    } else {
        Err(Errno::EPERM)
    };
    let tree = match tree {
        Ok(tree) => tree,
        Err(Errno::EPERM | Errno::EBUSY) => {
            let tree = bind_cgroups(around)?;
            set_attributes(&tree, mount, false)?;
            tree
        }
        Err(errno) => bail!(anyhow::Error::new(errno).context("mount cgroup2")),
    };
    attach(&tree, target).context("attach the mount")?;
    mount.propagation.map_or(Ok(()), |propagation| set_propagation(&tree, propagation))
}

/// The host's cgroup tree, for a container without a cgroup namespace. Of a user without privileges
/// only the container's own part: the container's root is that user, who may change more of it
/// (CVE-2023-25809). Where there is no such part, nothing is shown.
fn bind_cgroups(around: &Surroundings) -> Result<Fd> {
    let source = match around.user_namespace || cgroup::unprivileged() {
        true => around.cgroup.unified_path(),
        false => cgroup::ROOT.into(),
    };
    match clone_tree(AT_FDCWD, source.as_path(), true) {
        Err(Errno::ENOENT) => mask::empty_folder(around.label).context("make an empty tmpfs"),
        tree => tree.with_context(|| format!("bind {}", source.display())),
    }
}

/// Whether the container's `/dev` is the host's own, in which nothing may be made.
pub fn has_host_dev(mounts: &[Mount]) -> bool {
    let is_dev = |mount: &&Mount| mount.destination == Path::new("/dev");
    mounts.iter().rfind(is_dev).is_some_and(|mount| matches!(mount.kind, Kind::Bind { .. }))
}
