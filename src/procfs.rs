//! The one handle on procfs that everything goes through.
//!
//! A path below `/proc` can be a symbolic link or another filesystem by the time it is opened
//! (CVE-2019-19921, CVE-2025-52881). The handle is opened once on the host's `/proc`, before any
//! container can have touched it, and is checked to be procfs; look-ups can't leave it. It stays
//! good after `pivot_root`: `self` is the process that asks, and `sys/net`, `sys/kernel` show the
//! namespaces of the process that asks.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::descriptor::Fd;
use crate::sys::fs::{Resolve, open_path, openat2};

/// A checked descriptor of `/proc`.
#[derive(Debug)]
pub struct Proc(Fd);

impl Proc {
    /// Opens the host's `/proc`.
    ///
    /// # Errors
    /// When nothing, or something else, is mounted there.
    pub fn open() -> Result<Self> {
        let fd = open_path("/proc", OFlag::O_DIRECTORY).context("open /proc")?;
        let kind = fstatfs(&fd).context("examine /proc")?.filesystem_type();
        if kind != PROC_SUPER_MAGIC {
            bail!("/proc is not a procfs; mount one (mount -t proc proc /proc)");
        }
        Ok(Self(fd))
    }

    /// Opens `path` (relative to `/proc`), never leaving this procfs.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_file(&self, path: &str, flags: OFlag) -> nix::Result<Fd> {
        let resolve = Resolve::BENEATH | Resolve::NO_XDEV | Resolve::NO_MAGICLINKS;
        openat2(&self.0, path, flags, 0, resolve)
    }

    /// Opens what `file` is a descriptor of once more, with other `flags`: the very same object.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn reopen(&self, file: impl AsFd, flags: OFlag) -> nix::Result<OwnedFd> {
        let own = self.open_file("self/fd", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let number = file.as_fd().as_raw_fd().to_string();
        openat(own, number.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// Writes `value` to the file `path`, in one system call if the kernel takes it all at once.
    ///
    /// # Errors
    /// Those of open and write.
    pub fn write(&self, path: &str, value: &str) -> nix::Result<()> {
        let file = self.open_file(path, OFlag::O_WRONLY)?;
        file.write_all(value.as_bytes())
    }

    /// The text of the file `path`.
    ///
    /// # Errors
    /// Those of open and read.
    pub fn read(&self, path: &str) -> nix::Result<String> {
        let text = self.open_file(path, OFlag::O_RDONLY)?.read_to_end(usize::MAX)?;
        String::from_utf8(text).map_err(|_| Errno::EILSEQ)
    }

    /// The same for a file that tells of one process: the kernel hands it out in one piece.
    fn read_at_once(&self, path: &str) -> nix::Result<String> {
        let text = self.open_file(path, OFlag::O_RDONLY)?.read_at_once()?;
        String::from_utf8(text).map_err(|_| Errno::EILSEQ)
    }

    /// The signals that the calling process ignores; bit n is signal n + 1 (proc_pid_status(5)).
    ///
    /// # Errors
    /// Those of open and read.
    pub fn ignored_signals(&self) -> nix::Result<u64> {
        let mask = self.status("self", "SigIgn:")?;
        Ok(mask.and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0))
    }

    /// Who traces process `pid` (ptrace(2)), with the name of its program, as `513 (criu)`; none
    /// for a process that nobody traces or that is gone. A process may call itself what it likes.
    pub fn tracer(&self, pid: i32) -> Option<String> {
        let tracer = self.status(&pid.to_string(), "TracerPid:").ok()??;
        let name = self.status(&tracer, "Name:").ok()??;
        Some(format!("{tracer} ({})", name.escape_debug()))
    }

    /// What follows `name` in `pid`'s `status` file.
    fn status(&self, pid: &str, name: &str) -> nix::Result<Option<String>> {
        let text = self.read_at_once(&format!("{pid}/status"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(value.map(|value| value.trim().to_owned()))
    }

    /// The numbers of all processes.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let folder = self.open_file(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let mut folder = nix::dir::Dir::from_fd(folder.context("open /proc")?.into())?;
        let entries = folder.iter().collect::<nix::Result<Vec<_>>>().context("list /proc")?;
        Ok(entries
            .iter()
            .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
            .collect())
    }

    /// What names the namespace `kind` (`pid`, `mnt` …) of process `pid`, as `pid:[4026531836]`;
    /// none for a process that is gone or that the caller may not look at.
    pub fn namespace(&self, pid: i32, kind: &str) -> Option<OsString> {
        nix::fcntl::readlinkat(&self.0, format!("{pid}/ns/{kind}").as_str()).ok()
    }

    /// State letter and start time (clock ticks since boot) of process `pid` (proc_pid_stat(5));
    /// none when there is no such process.
    ///
    /// # Errors
    /// When the file can't be read or makes no sense.
    pub fn stat(&self, pid: i32) -> Result<Option<ProcessStat>> {
        let text = match self.read_at_once(&format!("{pid}/stat")) {
            Ok(text) => text,
            Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("read /proc/{pid}/stat")),
        };
        let parsed = parse_stat(&text).with_context(|| format!("/proc/{pid}/stat: {text:?}"))?;
        Ok(Some(parsed))
    }
}

/// What tells one process from a later one with the same pid, and whether it still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// `R`, `S`, `Z` …
    pub state: char,
    /// Clock ticks since boot.
    pub start_time: u64,
}

fn parse_stat(text: &str) -> Option<ProcessStat> {
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(ProcessStat { state, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = parse_stat("7 (a) b (c)) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 5");
        assert_eq!(stat, Some(ProcessStat { state: 'Z', start_time: 99 }));
    }

    #[test]
    fn own_process_is_found_and_others_are_not() {
        let proc = Proc::open().unwrap();
        assert!(proc.stat(std::process::id() as i32).unwrap().is_some());
        assert_eq!(proc.stat(i32::MAX).unwrap(), None);
    }

    #[test]
    fn look_ups_cannot_leave_procfs() {
        let proc = Proc::open().unwrap();
        assert!(proc.open_file("self/root/etc", OFlag::O_RDONLY).is_err());
        assert!(proc.open_file("../etc", OFlag::O_RDONLY).is_err());
    }
}
