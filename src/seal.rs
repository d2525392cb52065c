//! A read-only `/proc/self/exe` before anything of a container can see this process.
//!
//! A container that shares a PID namespace with the runtime for a moment, or whose program is a
//! link to `/proc/self/exe`, can open the runtime's own file, wait, and write to it
//! (CVE-2019-5736). So the commands that start processes run from a detached read-only copy of
//! the *mount*: no way leads from there to a writable one, and nothing is copied.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::stat::Mode;

use crate::sys;
use crate::sys::descriptor::Fd;
use crate::sys::mount::MountAttr;

const SELF: &str = "/proc/self/exe";

/// Closes this process's descriptor of the mount that the program runs from, if there is one. The
/// kernel takes the mount down when nobody has one any more, and only after that no way leads to a
/// writable one: `mount_setattr(2)` still changes a mount that is detached but whole. So all who
/// were forked meanwhile must have called this before a container's process can open their file.
///
/// Whoever is last waits for a grace period of RCU (0.1 to 0.2 ms).
pub fn let_go() {
    drop(sys::entry::take_mount());
}

/// As [`let_go`], in a mount namespace of this process alone whose mounts of the host are taken down
/// before anything of a container runs: this one becomes one of them, so that there is one wait for RCU
/// and not a second one.
pub fn let_go_with_host() {
    if let Some(mount) = sys::entry::take_mount().map(Fd::from) {
        // Any file will do that nobody reads before that. If it fails, there are two waits.
        let _ = sys::mount::attach_at(&mount, nix::fcntl::AT_FDCWD, c"/proc/version");
    }
}

/// Whether the command line asks for a command that starts a process.
pub fn wanted(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> bool {
    args.into_iter()
        .any(|arg| matches!(arg.as_ref().as_bytes(), b"run" | b"create" | b"exec" | b"restore"))
}

/// Returns when this process runs from a sealed file; else executes itself anew from one, with the
/// same `args`, the first of which is the program.
///
/// # Errors
/// When `/proc` is not mounted or neither way of sealing works.
pub fn ensure(args: &[OsString]) -> Result<()> {
    if sys::entry::has_mount() {
        return Ok(());
    }
    if is_sealed() {
        sys::process::set_name(c"ultari");
        return Ok(());
    }
    let sealed = match readonly_mount() {
        Ok(file) => file,
        // Without CAP_SYS_ADMIN no mounts can be made: a copy in memory costs more but always works.
        Err(_) => memory_copy().context("seal the runtime: copy it into memory")?.into(),
    };
    let args = c_strings(args.iter())?;
    let env = c_strings(std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    }))?;
    let errno = sys::process::execveat(&sealed, c"", &args, &env);
    bail!("seal the runtime: execute its read-only copy: {}", errno.desc())
}

fn c_strings(strings: impl Iterator<Item = impl AsRef<OsStr>>) -> Result<Vec<CString>> {
    strings.map(|s| Ok(CString::new(s.as_ref().as_bytes())?)).collect()
}

/// Both signs must be there: executed by descriptor, and from a file that can't be written. A
/// file on a read-only mount of the host alone will not do, since that may be remounted.
fn is_sealed() -> bool {
    if !sys::fs::exec_filename().to_bytes().starts_with(b"/dev/fd/") {
        return false;
    }
    let readonly_mount = nix::sys::statvfs::statvfs(SELF)
        .is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    readonly_mount || has_write_seal()
}

fn has_write_seal() -> bool {
    let Ok(file) = open(SELF, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) else {
        return false;
    };
    fcntl(&file, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| seals & SealFlag::F_SEAL_WRITE.bits() != 0)
}

fn readonly_mount() -> nix::Result<Fd> {
    let file = sys::mount::clone_tree(nix::fcntl::AT_FDCWD, SELF, false)?;
    let attr = MountAttr { set: crate::spec::mount::ATTR_RDONLY, ..MountAttr::default() };
    sys::mount::set_attr(&file, attr, false)?;
    Ok(file)
}

fn memory_copy() -> Result<OwnedFd> {
    let mut source = std::fs::File::open(SELF).context("open /proc/self/exe")?;
    let copy = sys::fs::memfd_exec(c"ultari")?;
    let mut target = std::fs::File::from(copy.as_fd().try_clone_to_owned()?);
    io::copy(&mut source, &mut target)?;
    drop(target);
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    // Executing needs that nobody, not even we, holds it open for writing.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}
