//! One cgroup directory: reading, writing and listing its files with as few calls as possible.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use std::os::fd::BorrowedFd;

use super::journal::{self, Journal};
use crate::sys::descriptor::Fd;

/// Where the host mounts its cgroups (cgroups(7)).
pub const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup, named relative to an open directory: either to its own, or to [`ROOT`].
///
/// cgroupfs has no symlinks and no writable names but those of cgroups, and its owner is trusted,
/// so a path of several components is as safe as a descriptor for each, and cheaper.
#[derive(Clone)]
pub(super) struct Node<'a> {
    base: BorrowedFd<'a>,
    /// Empty, or ends with a slash.
    prefix: String,
    /// The full path, for messages.
    shown: String,
    /// Takes down what is overwritten.
    journal: Option<&'a Journal>,
}

impl<'a> Node<'a> {
    /// The cgroup `path` below `root`, which is an open [`ROOT`]; `path` has no leading slash.
    pub(super) fn below(root: BorrowedFd<'a>, path: &str) -> Self {
        let separator = if path.is_empty() { "" } else { "/" };
        Self {
            base: root,
            prefix: format!("{path}{separator}"),
            shown: format!("{ROOT}{separator}{path}"),
            journal: None,
        }
    }

    /// The cgroup that `directory` is open on; `path` as in [`Node::below`], for messages.
    pub(super) fn open_on(directory: BorrowedFd<'a>, path: &str) -> Self {
        let separator = if path.is_empty() { "" } else { "/" };
        let shown = format!("{ROOT}{separator}{path}");
        Self { base: directory, prefix: String::new(), shown, journal: None }
    }

    /// The same, with a journal of what is overwritten.
    pub(super) fn recorded(self, journal: Option<&'a Journal>) -> Self {
        Self { journal, ..self }
    }

    /// The full path, for messages.
    pub(super) fn path(&self) -> &str {
        &self.shown
    }

    /// The cgroup `name` in this one.
    pub(super) fn child(&self, name: &str) -> Node<'a> {
        Node {
            base: self.base,
            prefix: format!("{}{name}/", self.prefix),
            shown: format!("{}/{name}", self.shown),
            journal: self.journal,
        }
    }

    pub(super) fn open(&self, file: &str, flags: OFlag) -> nix::Result<Fd> {
        let path = format!("{}{file}", self.prefix);
        openat(self.base, path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty()).map(Fd::from)
    }

    /// Opens the directory itself.
    pub(super) fn open_directory(&self) -> nix::Result<Fd> {
        self.open(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// One write(2), which is what the kernel parses as one setting.
    pub(super) fn write(&self, file: &str, value: &str) -> nix::Result<()> {
        if self.journal.is_some_and(Journal::is_trial) {
            return Ok(());
        }
        self.write_to(&self.open(file, OFlag::O_WRONLY)?, file, value)
    }

    /// The same for a file that is open already.
    pub(super) fn write_to(&self, fd: &Fd, file: &str, value: &str) -> nix::Result<()> {
        let undo = self.journal.map(|journal| (journal, journal::undo_of(self, file, value)));
        write_all(fd, value)?;
        if let Some((journal, steps)) = undo {
            journal.push(steps);
        }
        Ok(())
    }

    /// A file that holds one setting, as text without the newline at its end. The kernel hands
    /// these out in one read(2).
    pub(super) fn read(&self, file: &str) -> nix::Result<String> {
        let fd = match self.open(file, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) if self.journal.is_some_and(Journal::is_trial) => {
                return Ok(String::new());
            }
            fd => fd?,
        };
        let mut buffer = [0u8; 4096];
        loop {
            match read(&fd, &mut buffer) {
                Err(Errno::EINTR) => continue,
                result => {
                    return result.map(|count| {
                        String::from_utf8_lossy(&buffer[..count]).trim_end().to_owned()
                    });
                }
            }
        }
    }

    /// A file of any length, such as a list of processes.
    pub(super) fn read_long(&self, file: &str) -> nix::Result<String> {
        let fd = self.open(file, OFlag::O_RDONLY)?;
        let mut text = Vec::new();
        let mut chunk = [0u8; 4096];
        loop {
            match read(&fd, &mut chunk) {
                Ok(0) => return Ok(String::from_utf8_lossy(&text).into_owned()),
                Ok(count) => text.extend_from_slice(&chunk[..count]),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
        }
    }

    /// As [`Node::read`], with an error that names the file.
    pub(super) fn text(&self, file: &str) -> Result<String> {
        self.read(file).with_context(|| format!("cannot read {}/{file}", self.shown))
    }

    /// Applies a limit: writes the value of a property of config.json.
    pub(super) fn set(&self, property: &str, file: &str, value: &str) -> Result<()> {
        self.write(file, value).map_err(|errno| self.refused(property, file, value, errno))
    }

    /// Why the kernel did not take `value`, in words that lead on.
    pub(super) fn refused(
        &self,
        property: &str,
        file: &str,
        value: &str,
        errno: Errno,
    ) -> anyhow::Error {
        let hint = match errno {
            Errno::ENOENT => {
                "; this kernel or this cgroup has no such file, so the limit can't be set here: remove the property, or use a kernel that has it"
            }
            Errno::EACCES | Errno::EPERM | Errno::EROFS => {
                "; the cgroup is not ours to change: run as root or in a delegated cgroup"
            }
            Errno::EINVAL | Errno::ERANGE => {
                "; the kernel does not accept this value here: compare it with the limits of the parent cgroup and the file's documentation"
            }
            Errno::EBUSY => {
                "; the cgroup uses more than this, or is in use in a way that forbids the change"
            }
            Errno::ENODEV | Errno::ENXIO => {
                "; there is no such device, or it does not support this"
            }
            _ => "",
        };
        anyhow::Error::new(errno)
            .context(format!("{property}: cannot write {value:?} to {}/{file}{hint}", self.shown))
    }

    pub(super) fn exists(&self, file: &str) -> bool {
        self.accessible(file, nix::unistd::AccessFlags::F_OK)
    }

    /// Whether cgroups may be made in it.
    pub(super) fn is_writable(&self) -> bool {
        self.accessible("", nix::unistd::AccessFlags::W_OK)
    }

    fn accessible(&self, file: &str, how: nix::unistd::AccessFlags) -> bool {
        let path = format!("{}{file}", self.prefix);
        let at = nix::fcntl::AtFlags::empty();
        match nix::unistd::faccessat(self.base, path.as_str(), how, at) {
            // Whatever else keeps us from looking, it is no reason to leave it lying about.
            Err(errno) if how.is_empty() => !matches!(errno, Errno::ENOENT | Errno::ENOTDIR),
            outcome => outcome.is_ok(),
        }
    }

    /// Makes the cgroup. One that is to hold those of containers (`parent`) is marked as ours, so
    /// that the last of several containers to leave it can tell and remove it: by the sticky bit,
    /// which nothing else uses here.
    pub(super) fn mkdir(&self, parent: bool) -> nix::Result<()> {
        let mark = if parent { Mode::S_ISVTX } else { Mode::empty() };
        let mode = Mode::from_bits_truncate(0o755) | mark;
        nix::sys::stat::mkdirat(self.base, self.prefix.as_str(), mode)
    }

    /// Only for nodes made by [`Node::below`] or [`Node::child`].
    pub(super) fn rmdir(&self) -> nix::Result<()> {
        nix::unistd::unlinkat(
            self.base,
            self.prefix.as_str(),
            nix::unistd::UnlinkatFlags::RemoveDir,
        )
    }

    /// The cgroups in this one; none when it is gone.
    pub(super) fn children(&self) -> nix::Result<Vec<Node<'a>>> {
        let directory = match self.open_directory() {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        };
        let mut children = Vec::new();
        for entry in nix::dir::Dir::from_fd(directory.into())? {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed while we were reading.
                Err(Errno::ENOENT | Errno::ENODEV) => break,
                Err(errno) => return Err(errno),
            };
            let name = entry.file_name().to_string_lossy();
            if entry.file_type() == Some(nix::dir::Type::Directory) && name != "." && name != ".." {
                children.push(self.child(&name));
            }
        }
        Ok(children)
    }
}

/// Whether a cgroup was made by [`Node::mkdir`] as a parent.
pub(super) fn is_marked(cgroup: &nix::sys::stat::FileStat) -> bool {
    cgroup.st_mode & libc::S_ISVTX != 0
}

/// One write(2), again only if a signal came in between.
pub(super) fn write_all(fd: &Fd, value: &str) -> nix::Result<()> {
    loop {
        match write(fd, value.as_bytes()) {
            Err(Errno::EINTR) => continue,
            result => return result.map(drop),
        }
    }
}
