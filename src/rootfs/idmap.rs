//! Sources of bind mounts that the parent opens: because the container's user could not reach
//! them, or because they are to be id-mapped, which only a process with power over the
//! filesystem's own user namespace may do (mount_setattr(2), "ID-mapped mounts").

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, fstat, major, minor};
use oci_spec::runtime::LinuxNamespaceType as Ns;

use super::mounts;
use crate::procfs::Proc;
use crate::spec::mount::{ATTR_IDMAP, IdMaps, Kind, Mount};
use crate::spec::{Config, IdMapping};
use crate::sys::clone::{Forked, clone3, exit_now, wait_status};
use crate::sys::descriptor::Fd;
use crate::sys::mount::{MountAttr, clone_tree, set_attr};
use crate::userns;

/// Opens the sources that the parent has to open, id-mapped where that is asked for: by index of
/// `mounts`.
///
/// # Errors
/// Names the mount, and for a filesystem that can't be id-mapped its type.
pub fn open_sources(config: &Config, proc: &Proc) -> Result<Vec<Option<Fd>>> {
    // In a user namespace the child may not reach the sources, which a privileged parent can.
    let all = config.namespaces.get(Ns::User).is_some() && nix::unistd::geteuid().is_root();
    // A user namespace for each set of maps, however many mounts have it.
    let mut made: Vec<(&IdMaps, Fd)> = Vec::new();
    let mut sources = Vec::new();
    for mount in &config.mounts {
        let wanted = all || mount.idmap.is_some();
        if !wanted {
            sources.push(None);
            continue;
        }
        let source = match mounts::open_source(mount) {
            // Root in a user namespace only has no power over this mount namespace; the child has
            // over its own.
            Err(error) if mount.idmap.is_none() && error.downcast_ref() == Some(&Errno::EPERM) => {
                None
            }
            source => source?,
        };
        if let (Some(tree), Some(idmap)) = (&source, &mount.idmap) {
            let known = made.iter().position(|(maps, _)| *maps == &idmap.maps);
            let index = match known {
                Some(index) => index,
                None => {
                    let namespace = user_namespace(&mount.property, &idmap.maps, proc)?;
                    made.push((&idmap.maps, namespace));
                    made.len() - 1
                }
            };
            let namespace = &made[index].1;
            map(tree, namespace, idmap.recursive)
                .map_err(|errno| explain(errno, mount, namespace, idmap.recursive, proc))
                .with_context(|| mount.property.clone())?;
        }
        sources.push(source);
    }
    Ok(sources)
}

fn map(tree: &Fd, namespace: &Fd, recursive: bool) -> nix::Result<()> {
    let userns_fd = namespace.as_raw_fd() as u64;
    set_attr(tree, MountAttr { set: ATTR_IDMAP, userns_fd, ..MountAttr::default() }, recursive)
}

/// A user namespace with these maps.
fn user_namespace(property: &str, maps: &IdMaps, proc: &Proc) -> Result<Fd> {
    match maps {
        IdMaps::Listed { uid_mappings, gid_mappings } => {
            new_user_namespace(property, uid_mappings, gid_mappings, proc)
        }
        IdMaps::Namespace(path) => {
            let file = std::fs::File::open(path);
            file.map(Fd::from)
                .with_context(|| format!("linux.namespaces (user).path {}", path.display()))
        }
    }
}

/// A mount takes its maps from a user namespace, and such a one needs a process to be made: one
/// that lives until its maps are written and the namespace is held by a descriptor.
fn new_user_namespace(
    property: &str,
    uid_mappings: &[IdMapping],
    gid_mappings: &[IdMapping],
    proc: &Proc,
) -> Result<Fd> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let forked = clone3(CloneFlags::CLONE_NEWUSER, None)
        .with_context(|| format!("{property}: make a user namespace for its id maps"))?;
    let Forked::Parent { pid, pidfd } = forked else {
        drop(writer);
        // Until the parent closes its end, or is gone.
        let _ = nix::unistd::read(&reader, &mut [0]);
        exit_now(0);
    };
    let opened =
        userns::write_maps(property, uid_mappings, gid_mappings, proc, pid).and_then(|()| {
            let folder = proc.open_file(&format!("{pid}/ns"), OFlag::O_PATH | OFlag::O_DIRECTORY);
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let namespace = folder.and_then(|folder| openat(folder, "user", flags, Mode::empty()));
            namespace.with_context(|| format!("{property}: open the user namespace of its id maps"))
        });
    drop(writer);
    wait_status(pidfd.as_fd()).context("wait for the process in the user namespace")?;
    opened.map(Fd::from)
}

/// Why the kernel would not map: it does not say which mount or filesystem it minded.
fn explain(
    errno: Errno,
    mount: &Mount,
    namespace: &Fd,
    recursive: bool,
    proc: &Proc,
) -> anyhow::Error {
    let Kind::Bind { source, recursive: whole } = &mount.kind else { return anyhow!(errno) };
    let culprit = culprit(source, namespace, *whole && recursive, proc);
    let reason = match errno {
        Errno::EINVAL if culprit.is_some() => {
            ": filesystems of this type can't be id-mapped by this kernel"
        }
        Errno::EPERM => {
            ": it is id-mapped already, or CAP_SYS_ADMIN is lacking in the user namespace that it \
             belongs to"
        }
        _ => "",
    };
    let place = match culprit {
        Some((path, fstype)) => format!("the filesystem {fstype} at {}", path.display()),
        None => source.display().to_string(),
    };
    anyhow!(errno).context(format!("id-map {place}{reason}"))
}

/// The first of the mounts at and, if `below`, under `source` that can't be mapped, with its type.
fn culprit(source: &Path, namespace: &Fd, below: bool, proc: &Proc) -> Option<(PathBuf, String)> {
    let table = proc.read("self/mountinfo").ok()?;
    let real = source.canonicalize().ok()?;
    let mut candidates = vec![real.clone()];
    if below {
        let all = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
        candidates.extend(all.filter(|path| path.starts_with(&real) && *path != real));
    }
    let refused = |path: &PathBuf| {
        let tree = clone_tree(AT_FDCWD, path.as_path(), false).ok()?;
        map(&tree, namespace, false).err()?;
        fstat(&tree).ok()
    };
    let (path, stat) = candidates
        .into_iter()
        .find_map(|path| Some((refused(&path)?, path)))
        .map(|(stat, path)| (path, stat))?;
    let device = format!("{}:{}", major(stat.st_dev), minor(stat.st_dev));
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(&device))?;
    let fstype = line.split_once(" - ")?.1.split(' ').next()?;
    Some((path, fstype.to_owned()))
}

/// A path of mountinfo: spaces and the like are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| byte == b'\\');
        let code =
            code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_mountinfo() {
        assert_eq!(unescape(r"/a\040b\134"), PathBuf::from(r"/a b\"));
        assert_eq!(unescape(r"/a\9"), PathBuf::from(r"/a\9"));
    }
}
