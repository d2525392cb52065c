//! `tmpcopyup`: a tmpfs that starts with what the image has at its place.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, mkdirat, mknodat,
    utimensat,
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

/// All that is taken of an entry is taken from one descriptor of it: the content of one file with the
/// owner and set-user-ID bit of another would be a way to become root.
fn copy_entry(from: &Dir, to: impl AsFd, name: &std::ffi::CStr, proc: &Proc) -> Result<()> {
    let open = OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let entry = openat(from, name, open | OFlag::O_PATH, Mode::empty())?;
    let stat = fstat(&entry)?;
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    match file_type(&stat) {
        libc::S_IFDIR => {
            mkdirat(&to, name, Mode::S_IRWXU)?;
            let to = openat(&to, name, open | OFlag::O_DIRECTORY, Mode::empty())?;
            copy_entries(proc.reopen(&entry, OFlag::O_DIRECTORY)?, to, proc)?;
        }
        libc::S_IFREG => {
            let source = proc.reopen(&entry, OFlag::O_RDONLY)?;
            let create = open | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let target = openat(&to, name, create, Mode::S_IRUSR | Mode::S_IWUSR)?;
            std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target))?;
        }
        libc::S_IFLNK => symlinkat(&*readlinkat(&entry, "")?, &to, name)?,
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
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use nix::sys::stat::{makedev, mknod};

    use super::*;

    /// What came of a copy.
    #[derive(Clone, Debug, PartialEq)]
    enum Copied {
        File { content: String, mode: u32 },
        Device,
    }

    fn file(path: &Path, content: &str, mode: u32) -> Copied {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        Copied::File { content: content.into(), mode }
    }

    /// Copies a folder again and again, in which `one` and `other` make a name that is exchanged all
    /// the while; each copy must be one of the two, and both must come.
    fn copy_while_exchanged(
        test: &str,
        one: impl Fn(&Path) -> Copied,
        other: impl Fn(&Path) -> Copied,
    ) {
        let folder = std::env::temp_dir().join(format!("ultari-{test}-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::create_dir_all(&from).unwrap();
        let (inside, outside): (PathBuf, PathBuf) = (from.join("entry"), folder.join("entry"));
        let wanted = [one(&inside), other(&outside)];
        let proc = Proc::open().unwrap();
        let copy = || {
            fs::create_dir(&to).unwrap();
            let open = |path| OwnedFd::from(fs::File::open(path).unwrap());
            copy(&open(&from), &open(&to), &proc).unwrap();
            let entry = to.join("entry");
            let stat = fs::symlink_metadata(&entry).unwrap();
            let copied = match stat.file_type().is_char_device() {
                true => Copied::Device,
                false => Copied::File {
                    content: fs::read_to_string(&entry).unwrap(),
                    mode: stat.permissions().mode() & 0o7777,
                },
            };
            fs::remove_dir_all(&to).unwrap();
            copied
        };
        let done = AtomicBool::new(false);
        let found: Vec<_> = std::thread::scope(|scope| {
            scope.spawn(|| {
                let flags = RenameFlags::RENAME_EXCHANGE;
                while !done.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, &inside, AT_FDCWD, &outside, flags).unwrap();
                }
            });
            let found = (0..2000).map(|_| copy()).collect();
            done.store(true, Ordering::Relaxed);
            found
        });
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found.iter().find(|copied| !wanted.contains(copied)), None);
        assert!(wanted.iter().all(|wanted| found.contains(wanted)), "no exchange");
    }

    /// Shown: with the file opened by its name some 100 of the copies had read the device.
    #[test]
    fn a_device_in_the_place_of_a_file_is_not_opened() {
        let device = |path: &Path| {
            mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).unwrap();
            Copied::Device
        };
        copy_while_exchanged("copyup", |path| file(path, "content", 0o600), device);
    }

    /// Shown: with the mode from a look at the name before it was opened, copies of the other file had
    /// the set-user-ID bit.
    #[test]
    fn content_and_mode_are_of_one_file() {
        let root = |path: &Path| file(path, "root's", 0o4755);
        copy_while_exchanged("copymode", root, |path| file(path, "somebody's", 0o644));
    }
}
