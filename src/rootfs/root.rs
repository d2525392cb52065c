//! The only resolver of paths inside a container's root.
//!
//! A container image may hold any symbolic link, and a process of another container that shares a
//! volume may exchange them while we look. So a path is never joined to the root's path as text:
//! every look-up starts at the root's descriptor, can't leave it (`RESOLVE_IN_ROOT`), and what is
//! created or mounted on is reached without following any link (`RESOLVE_NO_SYMLINKS`); links of
//! the path are resolved first, by reading them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, mknodat};
use nix::unistd::symlinkat;

use crate::sys::descriptor::Fd;
use crate::sys::fs::{Resolve, openat2};

/// As many links as the kernel itself follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

const DEV: &str = "/dev";

/// The root of a container's filesystem.
#[derive(Debug)]
pub struct Root {
    fd: Fd,
    /// Mounts of the kernel's interfaces by their place, the latest last.
    interfaces: Vec<(PathBuf, Fd)>,
    /// The tmpfs that was just mounted at `/dev`: nearly all that goes there is new.
    dev: RefCell<Option<Arc<Fd>>>,
    /// The number of a descriptor from above whose folder is the working directory.
    here: Cell<Option<RawFd>>,
}

/// What a mount target must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A folder.
    Folder,
    /// Anything but a folder.
    File,
}

impl Root {
    /// The root that the folder `fd` is.
    pub fn new(fd: impl Into<Fd>) -> Self {
        let fd = fd.into();
        Self { fd, interfaces: Vec::new(), dev: RefCell::default(), here: Cell::default() }
    }

    /// Notes that `mount`, a procfs or sysfs, was attached at `place`.
    pub fn add_interface(&mut self, place: &Path, mount: Fd) {
        self.interfaces.push((place.to_owned(), mount));
    }

    /// Notes that `mount`, a tmpfs, was attached at `place`.
    pub fn add_tmpfs(&mut self, place: &Path, mount: Fd) {
        if place == Path::new(DEV) {
            self.dev = Some(Arc::new(mount)).into();
        }
    }

    /// Notes that something is to be mounted at `place`, over whatever was there.
    pub fn cover(&mut self, place: &Path) {
        // It may be written with `..`. To note one thing less is always right.
        let place = Path::new("/").join(lexically_clean(place));
        let noted = self.interfaces.len();
        self.interfaces.retain(|(covered, _)| !covered.starts_with(&place));
        let dev = Path::new(DEV).starts_with(&place).then(|| self.dev.take()).flatten();
        if dev.is_some() || self.interfaces.len() < noted {
            // The number may become that of another folder.
            self.here.take();
        }
    }

    /// Changes into `folder`, a descriptor that is noted here, if that was not the last one.
    ///
    /// # Errors
    /// Those of `fchdir(2)`.
    pub fn enter(&self, folder: impl AsFd) -> nix::Result<()> {
        let folder = folder.as_fd();
        let number = Some(folder.as_raw_fd());
        if self.here.take() != number {
            nix::unistd::fchdir(folder)?;
        }
        self.here.set(number);
        Ok(())
    }

    /// The same for any other folder.
    ///
    /// # Errors
    /// Those of `fchdir(2)`.
    pub fn enter_other(&self, folder: &Fd) -> nix::Result<()> {
        self.here.take();
        nix::unistd::fchdir(folder)
    }

    /// A noted procfs or sysfs, and the name in it that `path` is, if it is one.
    pub fn interface_entry<'a>(&self, path: &'a Path) -> Option<(&Fd, &'a OsStr)> {
        let (parent, name) = (path.parent()?, path.file_name()?);
        let (_, mount) = self.interfaces.iter().find(|(place, _)| place == parent)?;
        Some((mount, name))
    }

    /// As [`Root::open`]; what lies in a noted procfs or sysfs is taken from there. Their names
    /// may have been exchanged since by a container that shares the root as a volume, and what can't
    /// be found can't be masked.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_interface(&self, path: &Path, flags: OFlag) -> nix::Result<Fd> {
        let resolve = Resolve::IN_ROOT | Resolve::NO_MAGICLINKS;
        let climbs = path.components().any(|part| part == Component::ParentDir);
        for (place, mount) in self.interfaces.iter().filter(|_| !climbs) {
            if let Ok(rest) = path.strip_prefix(place) {
                return openat2(mount, relative(rest), flags, 0, resolve);
            }
        }
        self.open(path, flags)
    }

    /// Opens an existing `path` with `flags`; symbolic links lead where they lead in the container.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open(&self, path: &Path, flags: OFlag) -> nix::Result<Fd> {
        let resolve = Resolve::IN_ROOT | Resolve::NO_MAGICLINKS;
        openat2(&self.fd, relative(path), flags, 0, resolve)
    }

    fn open_plain(&self, path: &Path, flags: OFlag) -> nix::Result<Fd> {
        let resolve = Resolve::IN_ROOT | Resolve::NO_MAGICLINKS | Resolve::NO_SYMLINKS;
        openat2(&self.fd, relative(path), flags, 0, resolve)
    }

    /// The file or folder at `path` as an `O_PATH` descriptor to mount on, made when missing.
    ///
    /// # Errors
    /// When a link leads out of the root, or what is there is of the other kind.
    pub fn mount_target(&self, path: &Path, kind: TargetKind) -> Result<Fd> {
        if let Some(target) = self.new_in_dev(path, kind) {
            return Ok(target);
        }
        if kind == TargetKind::Folder
            && let Ok(target) = self.open_plain(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
        {
            return Ok(target);
        }
        let target = match self.open_plain(path, OFlag::O_PATH) {
            Ok(target) => target,
            Err(Errno::ENOENT) => self.create(path, kind)?,
            Err(Errno::ELOOP) => {
                // It may lead to where /dev is, and cover it.
                self.dev.take();
                self.here.take();
                let real = self.resolve(path)?;
                match self.open_plain(&real, OFlag::O_PATH) {
                    Err(Errno::ENOENT) => self.create(&real, kind)?,
                    other => other.with_context(|| format!("open {}", real.display()))?,
                }
            }
            Err(errno) => return Err(errno).with_context(|| format!("open {}", path.display())),
        };
        let is_folder = is_folder(&fstat(&target)?);
        match (kind, is_folder) {
            (TargetKind::Folder, false) => bail!(
                "{} in the container is a file, but a folder is to be mounted there",
                path.display()
            ),
            (TargetKind::File, true) => bail!(
                "{} in the container is a folder, but a file is to be mounted there",
                path.display()
            ),
            _ => Ok(target),
        }
    }

    /// Makes `path`, if it is a name in a new `/dev` that is not there yet.
    fn new_in_dev(&self, path: &Path, kind: TargetKind) -> Option<Fd> {
        let dev = self.dev.borrow();
        let (dev, name) = (dev.as_ref()?, name_in_dev(path)?);
        match kind {
            TargetKind::Folder => mkdirat(dev, name, mode(0o755)),
            TargetKind::File => mknodat(dev, name, SFlag::S_IFREG, mode(0o644), 0),
        }
        .ok()?;
        let resolve = Resolve::NO_SYMLINKS | Resolve::BENEATH;
        openat2(dev, name, OFlag::O_PATH, 0, resolve).ok()
    }

    /// Makes a folder at `path`, if it is a name in a new `/dev` that is not there yet, and goes to
    /// that `/dev`: nobody else can exchange this name, so it may be mounted on by name. A mount
    /// elsewhere has the working directory where it was left.
    pub fn enter_new_in_dev<'a>(&mut self, path: &'a Path) -> Option<&'a OsStr> {
        let (dev, name) = (self.dev.get_mut().as_ref()?, name_in_dev(path)?);
        let dev = Arc::clone(dev);
        mkdirat(&*dev, name, mode(0o755)).ok()?;
        self.enter(&*dev).ok()?;
        Some(name)
    }

    /// Like [`Root::mount_target`] for a folder that no link may lead to: a `/proc` that is a
    /// link would put the kernel's interface somewhere else (CVE-2019-19921).
    ///
    /// # Errors
    /// Also when any part of `path` is a symbolic link.
    pub fn unlinked_folder(&self, path: &Path) -> Result<Fd> {
        let link = || format!("{}: a symbolic link here could redirect it", path.display());
        let folder = match self.open_plain(path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => self.create(path, TargetKind::Folder)?,
            Err(Errno::ELOOP) => return Err(anyhow!(Errno::ELOOP)).with_context(link),
            other => other.with_context(|| format!("open {}", path.display()))?,
        };
        Ok(folder)
    }

    /// Makes `path`, which has no symbolic links in it, and the folders above it.
    fn create(&self, path: &Path, kind: TargetKind) -> Result<Fd> {
        let path = lexically_clean(path);
        let (parent, name) = split(&path)?;
        let parent = self.folder(parent)?;
        let context = || format!("make {} in the container's root filesystem", path.display());
        match kind {
            TargetKind::Folder => exists_ok(mkdirat(&parent, name, mode(0o755))),
            TargetKind::File => exists_ok(mknodat(&parent, name, SFlag::S_IFREG, mode(0o644), 0)),
        }
        .with_context(context)?;
        let resolve = Resolve::NO_SYMLINKS | Resolve::BENEATH;
        openat2(&parent, name, OFlag::O_PATH, 0, resolve).with_context(context)
    }

    /// The folder of devices, made when missing.
    ///
    /// # Errors
    /// As [`Root::folder`].
    pub fn dev(&self) -> Result<Arc<Fd>> {
        match &*self.dev.borrow() {
            Some(dev) => Ok(Arc::clone(dev)),
            None => self.folder(Path::new(DEV)).map(Arc::new),
        }
    }

    /// The folder at `path`, made with its parents when missing; links are followed in the root.
    ///
    /// # Errors
    /// When something on the way is no folder, or a link leads out of the root.
    pub fn folder(&self, path: &Path) -> Result<Fd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Ok(folder) => return Ok(folder),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("open {}", path.display())),
        }
        let real = self.resolve(path)?;
        let mut folder = Fd::from(self.fd.try_clone().context("duplicate the root's descriptor")?);
        for name in real.components().filter_map(normal) {
            let resolve = Resolve::NO_SYMLINKS | Resolve::BENEATH;
            let next = match openat2(&folder, name, flags, 0, resolve) {
                Err(Errno::ENOENT) => {
                    exists_ok(mkdirat(&folder, name, mode(0o755)))
                        .with_context(|| format!("make folder {}", real.display()))?;
                    openat2(&folder, name, flags, 0, resolve)
                }
                other => other,
            };
            folder = next.with_context(|| format!("open {}", real.display()))?;
        }
        Ok(folder)
    }

    /// The folder that holds `path`, made when missing, and the last name of `path`.
    ///
    /// # Errors
    /// As [`Root::folder`].
    pub fn parent<'a>(&self, path: &'a Path) -> Result<(Fd, &'a OsStr)> {
        let (parent, name) = split(path)?;
        Ok((self.folder(parent)?, name))
    }

    /// Makes the symbolic link `path` to `target` unless something is there already.
    ///
    /// # Errors
    /// Those of `symlinkat(2)` but `EEXIST`.
    pub fn symlink(&self, target: &str, path: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        exists_ok(symlinkat(target, &parent, name))
            .with_context(|| format!("make the link {} to {target}", path.display()))
    }

    /// `path` with every symbolic link in it replaced by what it says, as seen from the root.
    /// What does not exist stays as it is. This only reads: whoever uses the result must still
    /// open it without following links.
    fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let mut rest: VecDeque<OsString> = parts(path);
        let mut real = PathBuf::new();
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == "/" {
                real.clear();
            } else if part == ".." {
                ensure!(
                    real.pop(),
                    "{}: a symbolic link in the container's root filesystem points out of it",
                    path.display()
                );
            } else {
                real.push(&part);
                let Some(target) = self.link_target(&real)? else { continue };
                links += 1;
                ensure!(links <= MAX_LINKS, "{}: too many symbolic links", path.display());
                real.pop();
                for part in parts(Path::new(&target)).into_iter().rev() {
                    rest.push_front(part);
                }
            }
        }
        Ok(real)
    }

    fn link_target(&self, path: &Path) -> Result<Option<OsString>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let resolve = Resolve::IN_ROOT | Resolve::NO_MAGICLINKS;
        let file = match openat2(&self.fd, relative(path), flags, 0, resolve) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("open {}", path.display())),
        };
        if file_type(&fstat(&file)?) != libc::S_IFLNK {
            return Ok(None);
        }
        let target = readlinkat(&file, "").with_context(|| format!("read {}", path.display()))?;
        Ok(Some(target))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn name_in_dev(path: &Path) -> Option<&OsStr> {
    path.file_name().filter(|_| path.parent() == Some(Path::new(DEV)))
}

/// `openat2` takes `.` for the root itself.
fn relative(path: &Path) -> &Path {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component| match component {
        Component::RootDir => Some(OsString::from("/")),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Normal(name) => Some(name.to_owned()),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

fn normal(component: Component<'_>) -> Option<&OsStr> {
    match component {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

/// Without a leading `/`, without `.` and `..`, which can't climb above the root.
#[must_use]
pub fn lexically_clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    let name = path.file_name().with_context(|| format!("{}: has no last name", path.display()))?;
    Ok((path.parent().unwrap_or(Path::new("/")), name))
}

fn exists_ok(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

/// The type bits of a file's mode (`S_IF…`).
pub fn file_type(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// Whether a file is a folder.
pub fn is_folder(stat: &FileStat) -> bool {
    file_type(stat) == libc::S_IFDIR
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::open;
    use std::os::unix::fs::symlink;

    struct Fixture(PathBuf);

    impl Fixture {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("ultari-root-{}-{name}", std::process::id()));
            std::fs::create_dir_all(path.join("root/inside")).unwrap();
            std::fs::create_dir_all(path.join("outside")).unwrap();
            Self(path)
        }

        fn root(&self) -> Root {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            Root::new(open(&self.0.join("root"), flags, Mode::empty()).unwrap())
        }

        fn link(&self, target: &str, name: &str) {
            symlink(target, self.0.join("root").join(name)).unwrap();
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn missing_targets_are_made_below_the_root() {
        let fixture = Fixture::new("made");
        let root = fixture.root();
        root.mount_target(Path::new("/a/b/c"), TargetKind::Folder).unwrap();
        root.mount_target(Path::new("/a/file"), TargetKind::File).unwrap();
        assert!(fixture.0.join("root/a/b/c").is_dir());
        assert!(fixture.0.join("root/a/file").is_file());
        root.mount_target(Path::new("/a/file"), TargetKind::Folder).unwrap_err();
    }

    #[test]
    fn absolute_links_stay_inside() {
        let fixture = Fixture::new("absolute");
        fixture.link("/run", "var");
        fixture.root().mount_target(Path::new("/var/x"), TargetKind::Folder).unwrap();
        assert!(fixture.0.join("root/run/x").is_dir());
    }

    #[test]
    fn links_that_climb_out_are_refused() {
        let fixture = Fixture::new("climb");
        fixture.link("../outside", "evil");
        for path in ["/evil", "/evil/x"] {
            let error =
                fixture.root().mount_target(Path::new(path), TargetKind::Folder).unwrap_err();
            assert!(format!("{error:#}").contains("points out of it"), "{error:#}");
        }
        assert_eq!(std::fs::read_dir(fixture.0.join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn link_loops_end() {
        let fixture = Fixture::new("loop");
        fixture.link("b", "a");
        fixture.link("a", "b");
        fixture.root().mount_target(Path::new("/a/x"), TargetKind::Folder).unwrap_err();
    }

    #[test]
    fn a_linked_proc_is_refused() {
        let fixture = Fixture::new("proc");
        fixture.link("inside", "proc");
        fixture.root().unlinked_folder(Path::new("/proc")).unwrap_err();
        fixture.root().unlinked_folder(Path::new("/sys")).unwrap();
    }
}
