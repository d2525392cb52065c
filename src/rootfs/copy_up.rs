//! `tmpcopyup`: a tmpfs that starts with what the image has at its place.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::root::file_type;
use crate::procfs::Proc;

/// Copies what the folder `from` holds into the folder `to`, with owners, modes and times, and
/// gives `to` those of `from`. No symbolic link is followed, and nothing is opened but folders and
/// regular files, whoever may exchange names meanwhile: to open a device can have effects, and a
/// pipe waits for its other end.
///
/// # Errors
/// Names the entry that could not be copied.
pub fn copy(from: &OwnedFd, to: &OwnedFd, proc: &Proc) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let from = openat(from, ".", flags, Mode::empty()).context("open the folder")?;
    let to = openat(to, ".", flags, Mode::empty()).context("open the new tmpfs")?;
    let stat = fstat(&from).context("examine the folder")?;
    copy_entries(from, &to, proc)?;
    // The mode of a tmpfs is what its options say; its owner is the image's.
    fchownat(&to, "", owner(&stat).0, owner(&stat).1, AtFlags::AT_EMPTY_PATH)
        .context("set the owner")
}

fn owner(stat: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn copy_entries(from: OwnedFd, to: impl AsFd, proc: &Proc) -> Result<()> {
    let mut folder = Dir::from_fd(from).context("list the folder")?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let name = entry.context("list the folder")?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    for name in names {
        copy_entry(&folder, &to, &name, proc)
            .with_context(|| name.to_string_lossy().into_owned())?;
    }
    Ok(())
}

fn copy_entry(from: &Dir, to: impl AsFd, name: &std::ffi::CStr, proc: &Proc) -> Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    let open = OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match file_type(&stat) {
        libc::S_IFDIR => {
            mkdirat(&to, name, Mode::S_IRWXU)?;
            let inner = openat(from, name, open | OFlag::O_DIRECTORY, Mode::empty())?;
            let to = openat(&to, name, open | OFlag::O_DIRECTORY, Mode::empty())?;
            copy_entries(inner, to, proc)?;
        }
        libc::S_IFREG => {
            let source = openat(from, name, open | OFlag::O_PATH, Mode::empty())?;
            let regular = file_type(&fstat(&source)?) == libc::S_IFREG;
            ensure!(regular, "somebody has put another kind of file in its place meanwhile");
            let source = proc.reopen(&source, OFlag::O_RDONLY)?;
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{RenameFlags, renameat2};
    use nix::sys::stat::{makedev, mknod};

    use super::*;

    /// Shown: with the file opened by its name some 100 of the copies had read the device.
    #[test]
    fn a_device_in_the_place_of_a_file_is_not_opened() {
        let folder = std::env::temp_dir().join(format!("ultari-copyup-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::create_dir_all(&from).unwrap();
        let (file, device) = (from.join("file"), folder.join("device"));
        fs::write(&file, "content").unwrap();
        mknod(&device, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).unwrap();
        let proc = Proc::open().unwrap();
        let done = AtomicBool::new(false);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let here = nix::fcntl::AT_FDCWD;
                    renameat2(here, &file, here, &device, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
            });
            let copy = || {
                fs::create_dir(&to).unwrap();
                let open = |path| OwnedFd::from(fs::File::open(path).unwrap());
                let copied = copy(&open(&from), &open(&to), &proc).map_err(|e| format!("{e:#}"));
                let found = fs::symlink_metadata(to.join("file")).map(|found| found.len());
                let regular = to.join("file").is_file();
                fs::remove_dir_all(&to).unwrap();
                copied.map(|()| regular.then(|| found.unwrap()))
            };
            let outcomes = (0..2000).map(|_| copy()).collect();
            done.store(true, Ordering::Relaxed);
            outcomes
        });
        let count = |wanted: Result<Option<u64>, String>| {
            outcomes.iter().filter(|outcome| **outcome == wanted).count()
        };
        let (copied, made) = (count(Ok(Some(7))), count(Ok(None)));
        assert_eq!(count(Ok(Some(0))), 0, "copies of what the device holds");
        assert!(copied > 0 && made > 0, "{copied} copied, {made} devices made: no exchange");
        fs::remove_dir_all(&folder).unwrap();
    }
}
