//! Writing the entries of a layer: whatever it holds, nothing outside its folder is touched.
//!
//! Every path is looked up by [`Root`], which can't be left; the last name is then only used with
//! calls that follow no link. Metadata of folders is set at the end: until then they change, and a
//! folder that forbids writing, or hands down its group, would be in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;
use ultari::rootfs::root::{Root, is_folder};

use super::Kind;
use super::archive::{Archive, Entry};
use crate::image::layers::Known;

/// Before the name of what is gone.
const WHITEOUT: &[u8] = b".wh.";
/// Before names that mean something of their own.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Nothing of lower layers is left in this folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What overlayfs has for that.
const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// Attributes that are the host's business: labels of its policy, ACLs of its server, and how
/// overlayfs finds files, which a layer could use to show what it doesn't have.
const REFUSED: [&[u8]; 4] =
    [b"security.selinux", b"system.nfs4_acl", b"trusted.overlay.", b"user.overlay."];

/// What is set on a folder at the end.
#[derive(Debug)]
enum Pending {
    /// All that its entry says.
    Entry(Box<Entry>),
    /// The times that it had before this layer changed something in it.
    Times(TimeSpec, TimeSpec),
}

/// Writes the entries of one layer.
#[derive(Debug)]
pub struct Writer {
    root: Root,
    kind: Kind,
    /// The folder that was used last, and how it was called.
    parent: Option<(PathBuf, OwnedFd)>,
    pending: BTreeMap<PathBuf, Pending>,
    /// What comes of this layer, with all folders above it; only for [`Kind::Rootfs`].
    made: BTreeSet<PathBuf>,
    known: Known,
}

impl Writer {
    /// Writes below a folder.
    pub fn new(root: Root, kind: Kind) -> Self {
        Self {
            root,
            kind,
            parent: None,
            pending: BTreeMap::new(),
            made: BTreeSet::new(),
            known: Known::default(),
        }
    }

    /// Writes all entries.
    ///
    /// # Errors
    /// Those of the archive and of the file system, with the entry's name.
    pub fn write(mut self, archive: &mut Archive<impl BufRead>) -> Result<Known> {
        while let Some(entry) = archive.next_entry()? {
            let shown = entry.path.clone();
            self.entry(entry, archive).with_context(|| format!("{shown:?}"))?;
        }
        self.finish()?;
        Ok(self.known)
    }

    fn entry(&mut self, entry: Entry, archive: &mut Archive<impl BufRead>) -> Result<()> {
        let path = inside(&entry.path)?;
        let Some(name) = path.file_name() else {
            ensure!(entry.kind == EntryType::Directory, "the root must be a folder");
            self.pending.insert(path, Pending::Entry(Box::new(entry)));
            return Ok(());
        };
        if self.kind != Kind::Plain && name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&path, name);
        }
        self.known.entries += 1;
        self.known.size += entry.stored;
        let folder = self.enter(&path)?;
        match entry.kind {
            EntryType::Regular => self.file(&folder, &path, name, &entry, archive)?,
            EntryType::Directory => self.folder(&folder, &path, name)?,
            EntryType::Link => {
                let link = inside(&entry.link).context("hard link")?;
                let target = link.file_name().context("hard link to the root")?;
                let from = self.root.open(parent_of(&link), folder_flags()).with_context(|| {
                    format!("open the folder of {link:?}, which is to be linked")
                })?;
                self.make(&folder, &path, name, || {
                    linkat(&from, target, &folder, name, AtFlags::empty())
                })
                .with_context(|| format!("link to {link:?}"))?;
            }
            EntryType::Symlink => {
                self.make(&folder, &path, name, || symlinkat(&*entry.link, &folder, name))?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let (kind, device) = match entry.kind {
                    EntryType::Fifo => (SFlag::S_IFIFO, 0),
                    EntryType::Char => (SFlag::S_IFCHR, number(entry.device)),
                    _ => (SFlag::S_IFBLK, number(entry.device)),
                };
                let mode = Mode::from_bits_truncate(0o600);
                self.make(&folder, &path, name, || mknodat(&folder, name, kind, mode, device))
                    .context("make a device")?;
            }
            other => bail!("is of the unknown type {:?}", other.as_byte() as char),
        }
        match entry.kind {
            EntryType::Directory => {
                self.pending.insert(path.clone(), Pending::Entry(Box::new(entry)));
            }
            EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => {
                set_metadata_at(&folder, name, &entry)?;
            }
            // A hard link's are those of its file, which was written with them.
            _ => {}
        }
        self.parent = Some((parent_of(&path).to_owned(), folder));
        self.note(path);
        Ok(())
    }

    /// Takes the folder that `path` is in out of the cache, or opens it.
    fn enter(&mut self, path: &Path) -> Result<OwnedFd> {
        let parent = parent_of(path);
        if let Some((_, folder)) = self.parent.take_if(|(cached, _)| cached == parent) {
            return Ok(folder);
        }
        let folder = self.root.folder(parent).context("open the folder that it is in")?;
        if self.kind == Kind::Rootfs && !self.pending.contains_key(parent) {
            let found = nix::sys::stat::fstat(&folder).context("look at its folder")?;
            self.pending.insert(parent.to_owned(), times_of(&found));
        }
        Ok(folder.into())
    }

    fn file(
        &mut self,
        folder: &OwnedFd,
        path: &Path,
        name: &OsStr,
        entry: &Entry,
        archive: &mut Archive<impl BufRead>,
    ) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let file = self.make(folder, path, name, || openat(folder, name, flags, mode))?;
        let mut file = File::from(file);
        match &entry.sparse {
            None => archive.copy(entry.stored, &mut file)?,
            Some((size, extents)) => {
                file.set_len(*size).context("set its size")?;
                for (offset, length) in extents {
                    archive.copy(*length, &mut At { file: &file, offset: *offset })?;
                }
            }
        }
        fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .context("set its owner")?;
        // The owner's change takes set-user-ID and capabilities away, so those come after it.
        fchmod(&file, Mode::from_bits_truncate(entry.mode)).context("set its mode")?;
        for (key, value) in wanted(&entry.xattrs) {
            let set = xattr::FileExt::set_xattr(&file, key, value);
            ignore_unsupported(set).with_context(|| format!("set {key:?}"))?;
        }
        let time = time_of(entry);
        futimens(&file, &time, &time).context("set its time")
    }

    fn folder(&mut self, parent: &OwnedFd, path: &Path, name: &OsStr) -> Result<()> {
        let mode = Mode::from_bits_truncate(0o700);
        match mkdirat(parent, name, mode) {
            Err(Errno::EEXIST) => {}
            other => return other.context("make folder"),
        }
        let found = stat(parent, name)?.context("it was there, and is gone")?;
        if is_folder(&found) {
            return Ok(());
        }
        ensure!(self.kind != Kind::Plain, "cannot overwrite non-directory with directory");
        let was_whiteout = self.kind == Kind::Overlay && is_whiteout(&found);
        self.clear(parent, path, name, &found)?;
        mkdirat(parent, name, mode).context("make folder")?;
        if was_whiteout {
            set_xattr_at(parent, name, OsStr::new(OVERLAY_OPAQUE), b"y")?;
        }
        Ok(())
    }

    /// Makes something at a name; what is there, of lower layers or an earlier entry, gives way.
    fn make<T>(
        &mut self,
        folder: &OwnedFd,
        path: &Path,
        name: &OsStr,
        make: impl Fn() -> nix::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EEXIST) => {
                if let Some(found) = stat(folder, name)? {
                    ensure!(
                        self.kind != Kind::Plain || !is_folder(&found),
                        "cannot overwrite directory with non-directory"
                    );
                    self.clear(folder, path, name, &found)?;
                }
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Removes what is at a name, and all that is known of it.
    fn clear(
        &mut self,
        folder: &OwnedFd,
        path: &Path,
        name: &OsStr,
        found: &FileStat,
    ) -> Result<()> {
        self.parent = None;
        if !is_folder(found) {
            return unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)
                .context("remove what is there");
        }
        // It follows no link, and whoever could exchange the folder can't see it yet.
        std::fs::remove_dir_all(by_descriptor(folder.as_fd(), name))
            .context("remove what is there")?;
        let below = |known: &&PathBuf| known.starts_with(path);
        let from = || path.to_owned()..;
        while let Some(gone) = self.made.range(from()).next().filter(below).cloned() {
            self.made.remove(&gone);
        }
        while let Some(gone) =
            self.pending.range(from()).map(|(k, _)| k).next().filter(below).cloned()
        {
            self.pending.remove(&gone);
        }
        Ok(())
    }

    /// As [`Self::enter`] for a name that is gone: nothing if there is no folder that could have
    /// it. Some tools also say so of what was in a folder that is now a file.
    fn enter_for_whiteout(&mut self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.root.open(parent_of(path), folder_flags()) {
            Err(Errno::ENOTDIR) => Ok(None),
            Err(Errno::ENOENT) if self.kind == Kind::Rootfs => Ok(None),
            _ => self.enter(path).map(Some),
        }
    }

    fn whiteout(&mut self, path: &Path, name: &OsStr) -> Result<()> {
        let gone = &name.as_bytes()[WHITEOUT.len()..];
        if name.as_bytes() == OPAQUE {
            let parent = parent_of(path).to_owned();
            let Some(folder) = self.enter_for_whiteout(path)? else { return Ok(()) };
            match self.kind {
                Kind::Overlay => {
                    let place = by_descriptor(folder.as_fd(), OsStr::new(""));
                    xattr::set(&place, OVERLAY_OPAQUE, b"y").context("set its opaque flag")?;
                }
                Kind::Rootfs | Kind::Plain => self.prune(&folder, &parent)?,
            }
            self.parent = Some((parent, folder));
            return Ok(());
        }
        if name.as_bytes().starts_with(WHITEOUT_META) {
            // aufs kept its own records so.
            return Ok(());
        }
        ensure!(
            !matches!(gone, b"" | b"." | b".."),
            "says that a name is gone which no file can have"
        );
        let gone = OsStr::from_bytes(gone);
        let path = parent_of(path).join(gone);
        let Some(folder) = self.enter_for_whiteout(&path)? else { return Ok(()) };
        let found = stat(&folder, gone)?;
        match (self.kind, found) {
            (Kind::Overlay, None) => {
                let none = Mode::empty();
                mknodat(&folder, gone, SFlag::S_IFCHR, none, 0).context("make a whiteout")?;
            }
            // An entry of this layer stays; only what lower ones have in that folder is gone.
            (Kind::Overlay, Some(found)) if is_folder(&found) => {
                set_xattr_at(&folder, gone, OsStr::new(OVERLAY_OPAQUE), b"y")?;
            }
            (Kind::Rootfs, Some(found)) if !self.made.contains(&path) => {
                self.clear(&folder, &path, gone, &found)?;
            }
            (Kind::Rootfs, Some(found)) if is_folder(&found) => {
                let inner =
                    openat(&folder, gone, folder_flags() | OFlag::O_NOFOLLOW, Mode::empty())
                        .context("open folder")?;
                self.prune(&inner, &path)?;
            }
            _ => {}
        }
        self.parent = Some((parent_of(&path).to_owned(), folder));
        Ok(())
    }

    /// Removes what lower layers have in a folder.
    fn prune(&mut self, folder: &OwnedFd, path: &Path) -> Result<()> {
        for name in names(folder)? {
            let inner = path.join(&name);
            let Some(found) = stat(folder, &name)? else { continue };
            if !self.made.contains(&inner) {
                self.clear(folder, &inner, &name, &found)?;
            } else if is_folder(&found) {
                let flags = folder_flags() | OFlag::O_NOFOLLOW;
                let below = openat(folder, &*name, flags, Mode::empty()).context("open folder")?;
                self.prune(&below, &inner)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, path: PathBuf) {
        if self.kind == Kind::Rootfs {
            let mut above = path.parent();
            while let Some(path) = above.filter(|path| !self.made.contains(*path)) {
                self.made.insert(path.to_owned());
                above = path.parent();
            }
            self.made.insert(path);
        }
    }

    /// Sets what had to wait, the innermost folders first.
    fn finish(&mut self) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        for (path, pending) in std::mem::take(&mut self.pending).into_iter().rev() {
            let folder = match self.root.open(&path, flags) {
                Ok(folder) => folder,
                // A later entry put something else there.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                Err(errno) => {
                    return Err(errno).with_context(|| format!("open {path:?}"));
                }
            };
            match pending {
                Pending::Times(atime, mtime) => futimens(&folder, &atime, &mtime)?,
                Pending::Entry(entry) => {
                    set_folder(&folder, &entry, self.kind).with_context(|| format!("{path:?}"))?
                }
            }
        }
        Ok(())
    }
}

fn set_folder(folder: &OwnedFd, entry: &Entry, kind: Kind) -> Result<()> {
    fchown(folder, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .context("set its owner")?;
    fchmod(folder, Mode::from_bits_truncate(entry.mode)).context("set its mode")?;
    let place = by_descriptor(folder.as_fd(), OsStr::new(""));
    if kind == Kind::Rootfs {
        // It may be one of a lower layer.
        for key in xattr::list(&place).into_iter().flatten().filter(|key| !is_refused(key)) {
            ignore_unsupported(xattr::remove(&place, &key))
                .with_context(|| format!("remove {key:?}"))?;
        }
    }
    for (key, value) in wanted(&entry.xattrs) {
        ignore_unsupported(xattr::set(&place, key, value))
            .with_context(|| format!("set {key:?}"))?;
    }
    let time = time_of(entry);
    futimens(folder, &time, &time).context("set its time")
}

/// Of what can't be opened.
fn set_metadata_at(folder: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<()> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(folder, name, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)), flags)
        .context("set its owner")?;
    if entry.kind != EntryType::Symlink {
        // In a container that runs it may have been exchanged for a link.
        let flags = nix::sys::stat::FchmodatFlags::NoFollowSymlink;
        fchmodat(folder, name, Mode::from_bits_truncate(entry.mode), flags)
            .context("set its mode")?;
    }
    for (key, value) in wanted(&entry.xattrs) {
        set_xattr_at(folder, name, key, value)?;
    }
    let time = time_of(entry);
    utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink).context("set its time")
}

fn set_xattr_at(folder: &OwnedFd, name: &OsStr, key: &OsStr, value: &[u8]) -> Result<()> {
    ignore_unsupported(xattr::set(by_descriptor(folder.as_fd(), name), key, value))
        .with_context(|| format!("set {key:?}"))
}

fn wanted(xattrs: &[(OsString, Vec<u8>)]) -> impl Iterator<Item = (&OsStr, &[u8])> {
    let all = xattrs.iter().map(|(key, value)| (key.as_os_str(), value.as_slice()));
    all.filter(|(key, _)| !is_refused(key))
}

fn is_refused(key: &OsStr) -> bool {
    REFUSED.iter().any(|refused| key.as_bytes().starts_with(refused))
}

/// Not every file system has every kind of attribute, and engines go on without.
fn ignore_unsupported(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// A path by which calls that take no descriptor find something in an open folder.
fn by_descriptor(folder: BorrowedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)
}

fn stat(folder: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).context("look at what is there"),
    }
}

fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

fn names(folder: &OwnedFd) -> Result<Vec<OsString>> {
    let place = by_descriptor(folder.as_fd(), OsStr::new(""));
    let read = || std::fs::read_dir(&place)?.map(|entry| Ok(entry?.file_name())).collect();
    let names: std::io::Result<Vec<OsString>> = read();
    names.context("read folder")
}

fn folder_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY
}

fn number((major, minor): (u32, u32)) -> libc::dev_t {
    makedev(major.into(), minor.into())
}

fn time_of(entry: &Entry) -> TimeSpec {
    TimeSpec::new(entry.mtime.0, entry.mtime.1)
}

fn times_of(found: &FileStat) -> Pending {
    Pending::Times(
        TimeSpec::new(found.st_atime, found.st_atime_nsec),
        TimeSpec::new(found.st_mtime, found.st_mtime_nsec),
    )
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// A name of the archive as one below the root, without `.`; an absolute one means the same.
fn inside(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => bail!("{path:?}: a name with .. could lead out"),
            _ => {}
        }
    }
    Ok(clean)
}

/// Writes at a place of a file.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write_at(bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
