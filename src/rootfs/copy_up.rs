//! `tmpcopyup`: a tmpfs that starts with what the image has at its place.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::root::file_type;

/// Copies what the folder `from` holds into the folder `to`, with owners, modes and times, and
/// gives `to` those of `from`. No symbolic link is followed.
///
/// # Errors
/// Names the entry that could not be copied.
pub fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let from = openat(from, ".", flags, Mode::empty()).context("open the folder")?;
    let to = openat(to, ".", flags, Mode::empty()).context("open the new tmpfs")?;
    let stat = fstat(&from).context("examine the folder")?;
    copy_entries(from, &to)?;
    // The mode of a tmpfs is what its options say; its owner is the image's.
    fchownat(&to, "", owner(&stat).0, owner(&stat).1, AtFlags::AT_EMPTY_PATH)
        .context("set the owner")
}

fn owner(stat: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn copy_entries(from: OwnedFd, to: impl AsFd) -> Result<()> {
    let mut folder = Dir::from_fd(from).context("list the folder")?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let name = entry.context("list the folder")?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    for name in names {
        copy_entry(&folder, &to, &name).with_context(|| name.to_string_lossy().into_owned())?;
    }
    Ok(())
}

fn copy_entry(from: &Dir, to: impl AsFd, name: &std::ffi::CStr) -> Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    let open = OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match file_type(&stat) {
        libc::S_IFDIR => {
            mkdirat(&to, name, Mode::S_IRWXU)?;
            let inner = openat(from, name, open | OFlag::O_DIRECTORY, Mode::empty())?;
            copy_entries(inner, openat(&to, name, open | OFlag::O_DIRECTORY, Mode::empty())?)?;
        }
        libc::S_IFREG => {
            let source = openat(from, name, open, Mode::empty())?;
            let create = open | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let target = openat(&to, name, create, Mode::S_IRUSR | Mode::S_IWUSR)?;
            std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target))?;
        }
        libc::S_IFLNK => symlinkat(&*readlinkat(from, name)?, &to, name)?,
        kind => mknodat(&to, name, SFlag::from_bits_truncate(kind), mode, stat.st_rdev)?,
    }
    let (uid, gid) = owner(&stat);
    fchownat(&to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if file_type(&stat) != libc::S_IFLNK {
        fchmodat(&to, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(&to, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}
