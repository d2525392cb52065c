//! An empty volume gets what the image has at its place.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use ultari::rootfs::root::{Root, file_type};
use xattr::FileExt;

use super::MountPoint;

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// Gives an empty volume what the image has at its place: called by the monitor with the mounted
/// root filesystem. Links of the image lead where they lead in the container.
///
/// # Errors
/// When something can't be copied.
pub fn fill(rootfs: &Path, mount: &MountPoint) -> Result<()> {
    let (true, Some(data)) = (mount.copy, mount.source.as_deref()) else { return Ok(()) };
    let context = || {
        let name = mount.name.as_deref().unwrap_or_default();
        format!("copy {} of the image into the volume {name}", mount.destination.display())
    };
    copy_into(rootfs, &mount.destination, data).with_context(context)
}

fn copy_into(rootfs: &Path, place: &Path, data: &Path) -> Result<()> {
    let volume = data.parent().context("a volume's data is in its folder")?;
    let lock = File::create(volume.join("lock")).context("make its lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    // It is there while a copy is under way: then what is in the volume is only a part.
    let mark = volume.join("filling");
    if mark.exists() {
        for entry in fs::read_dir(data)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
    } else if fs::read_dir(data)?.next().is_some() {
        return Ok(());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = Root::new(open(rootfs, flags, Mode::empty()).context("open the root filesystem")?);
    let from = match root.open(place, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        // There is nothing to copy; that a file is in the way is seen when it is mounted.
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        other => other.context("open the folder in the image")?,
    };
    File::create(&mark).context("mark the volume as being filled")?;
    let to = open(data, FOLDER, Mode::empty()).context("open the volume")?;
    let stat = fstat(&from)?;
    Copy::default().entries(from.into(), to.as_fd())?;
    let from = root.open(place, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let to = File::from(to);
    copy_xattrs(&File::from(from), &to)?;
    fchownat(&to, "", Some(owner(&stat).0), Some(owner(&stat).1), AtFlags::AT_EMPTY_PATH)?;
    nix::sys::stat::fchmod(&to, mode(&stat))?;
    fs::remove_file(&mark).context("unmark the volume")
}

fn owner(stat: &FileStat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & 0o7777)
}

/// Files with several names that were copied already: the open folder that they are in, and their
/// name there.
#[derive(Default)]
struct Copy {
    linked: HashMap<(u64, u64), (OwnedFd, std::ffi::CString)>,
}

impl Copy {
    fn entries(&mut self, from: OwnedFd, to: impl AsFd) -> Result<()> {
        let mut folder = Dir::from_fd(from).context("list the folder")?;
        let mut names = Vec::new();
        for entry in folder.iter() {
            let name = entry.context("list the folder")?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        for name in names {
            let copied = self.entry(&folder, to.as_fd(), &name);
            copied.with_context(|| name.to_string_lossy().into_owned())?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &Dir, to: impl AsFd, name: &CStr) -> Result<()> {
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let open = OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let kind = file_type(&stat);
        if kind != libc::S_IFDIR && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some((folder, first)) = self.linked.get(&key) {
                return Ok(linkat(folder, first.as_c_str(), &to, name, AtFlags::empty())?);
            }
            let folder = to.as_fd().try_clone_to_owned()?;
            self.linked.insert(key, (folder, name.to_owned()));
        }
        let mut pair = None;
        match kind {
            libc::S_IFDIR => {
                mkdirat(&to, name, Mode::S_IRWXU)?;
                let inner = openat(&to, name, FOLDER, Mode::empty())?;
                self.entries(openat(from, name, FOLDER, Mode::empty())?, inner.as_fd())?;
                pair = Some((
                    File::from(openat(from, name, FOLDER, Mode::empty())?),
                    File::from(inner),
                ));
            }
            libc::S_IFREG => {
                let mut source = File::from(openat(from, name, open, Mode::empty())?);
                let create = open | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                let mut target =
                    File::from(openat(&to, name, create, Mode::S_IRUSR | Mode::S_IWUSR)?);
                std::io::copy(&mut source, &mut target)?;
                // A file may end in a hole.
                target.set_len(source.metadata()?.size())?;
                pair = Some((source, target));
            }
            libc::S_IFLNK => symlinkat(&*readlinkat(from, name)?, &to, name)?,
            kind => mknodat(&to, name, SFlag::from_bits_truncate(kind), mode(&stat), stat.st_rdev)?,
        }
        let (uid, gid) = owner(&stat);
        fchownat(&to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        // A change of the owner takes capabilities away, so those come after.
        if let Some((source, target)) = &pair {
            copy_xattrs(source, target)?;
        }
        if kind != libc::S_IFLNK {
            fchmodat(&to, name, mode(&stat), FchmodatFlags::FollowSymlink)?;
        }
        let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        utimensat(&to, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }
}

fn copy_xattrs(from: &File, to: &File) -> Result<()> {
    for name in from.list_xattr().context("list extended attributes")? {
        if let Some(value) = from.get_xattr(&name)? {
            to.set_xattr(&name, &value).with_context(|| format!("set {}", name.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn volume(dir: &Path) -> MountPoint {
        let data = dir.join("volume/_data");
        fs::create_dir_all(&data).unwrap();
        MountPoint {
            kind: "volume".into(),
            name: Some("volume".into()),
            source: Some(data),
            destination: "/srv".into(),
            options: Vec::new(),
            copy: true,
        }
    }

    #[test]
    fn s85_first_use_copies_what_the_image_has() {
        let dir = tempfile::tempdir().unwrap();
        let mount = volume(dir.path());
        let (rootfs, data) = (dir.path().join("rootfs"), mount.source.clone().unwrap());
        fs::create_dir_all(rootfs.join("srv/sub")).unwrap();
        fs::write(rootfs.join("srv/file"), "text").unwrap();
        fs::hard_link(rootfs.join("srv/file"), rootfs.join("srv/sub/same")).unwrap();
        symlink("/etc/passwd", rootfs.join("srv/link")).unwrap();
        let folder = File::open(rootfs.join("srv/sub")).unwrap();
        nix::sys::stat::fchmod(&folder, Mode::from_bits_truncate(0o1750)).unwrap();
        xattr::set(rootfs.join("srv/file"), "user.colour", b"red").unwrap();

        fill(&rootfs, &mount).unwrap();
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "text");
        let inode = |path: &str| fs::metadata(data.join(path)).unwrap().ino();
        assert_eq!(inode("file"), inode("sub/same"));
        assert_eq!(fs::read_link(data.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::metadata(data.join("sub")).unwrap().mode() & 0o7777, 0o1750);
        assert_eq!(xattr::get(data.join("file"), "user.colour").unwrap().unwrap(), b"red");

        // The second use finds it as it was left.
        fs::write(data.join("file"), "mine").unwrap();
        fill(&rootfs, &mount).unwrap();
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "mine");
    }

    #[test]
    fn a_copy_that_was_cut_off_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let mount = volume(dir.path());
        let (rootfs, data) = (dir.path().join("rootfs"), mount.source.clone().unwrap());
        fs::create_dir_all(rootfs.join("srv")).unwrap();
        fs::write(rootfs.join("srv/file"), "text").unwrap();
        fs::create_dir_all(data.join("part")).unwrap();
        fs::write(data.join("file"), "te").unwrap();
        fs::write(dir.path().join("volume/filling"), "").unwrap();
        fill(&rootfs, &mount).unwrap();
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "text");
        assert!(!data.join("part").exists());
        assert!(!dir.path().join("volume/filling").exists());
    }

    #[test]
    fn an_image_whose_folder_is_a_link_can_not_leak_the_hosts_files() {
        let dir = tempfile::tempdir().unwrap();
        let mount = volume(dir.path());
        let rootfs = dir.path().join("rootfs");
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        fs::write(rootfs.join("etc/inside"), "").unwrap();
        symlink("/etc", rootfs.join("srv")).unwrap();
        fill(&rootfs, &mount).unwrap();
        let names: Vec<_> = fs::read_dir(mount.source.unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].as_ref().unwrap().file_name(), "inside");
    }
}
