//! The record of a container on disk: a folder `ROOT/ID`, whose existence reserves the id.
//!
//! | file | what | written |
//! |---|---|---|
//! | `state.json` | bundle, cgroup, time of creation … | before anything else is made |
//! | `config.json` | the text that the container was created from | with it |
//! | `init` | pid and start time of the first process, which holds a lock on the file until it executes the program | right after the clone |
//! | `gate` | the socket at which a created container waits for `start` | when it is ready |
//! | `notify` | the folder with its socket for a service manager's news | with the record |
//! | `rootfs` | where the root of a container without a mount namespace is mounted | before the clone |
//!
//! Nothing is ever rewritten, and the status is not stored: it follows from the lock, the gate,
//! the process and the freezer. So whenever a runtime is killed, no lie is left behind.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::sys::descriptor::Fd;
use crate::{cgroup, resctrl, sys};

/// What is known of a container before it exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// `ociVersion` of its config.json.
    pub oci_version: String,
    /// Its name.
    pub id: String,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root filesystem on the host.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// User id of who created it.
    pub owner: u32,
    /// Labels of config.json.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Where its cgroup is.
    pub cgroup: cgroup::Location,
    /// Where its groups in resctrl are.
    #[serde(default)]
    pub resctrl: Option<resctrl::Groups>,
}

/// A file whose content makes no sense, and never will.
#[derive(Debug)]
pub struct Damaged(PathBuf);

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let path = self.0.display();
        write!(
            f,
            "{path} is damaged or from another version; `ultari delete --force` removes what it can"
        )
    }
}

impl Record {
    /// Reads a record. Whoever gets it kills and removes what is in the places that it names.
    fn parse(text: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(text)?;
        check_id(&record.id)?;
        record.cgroup.check()?;
        record.resctrl.as_ref().map_or(Ok(()), resctrl::Groups::check)?;
        Ok(record)
    }
}

/// Pid and start time of a container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// In the PID namespace of who created the container.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// The folder of one container.
#[derive(Debug)]
pub struct Folder {
    fd: Fd,
    path: PathBuf,
}

/// Checks a container's name: it becomes the name of a file and of a cgroup.
///
/// # Errors
/// Says what a name may look like.
pub fn check_id(id: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    ensure!(
        !id.is_empty() && id != "." && id != ".." && id.chars().all(fine),
        "container id {id:?} is invalid: use letters, digits and _ + - ."
    );
    // A file name has at most 255 bytes, and cgroup names add to it.
    ensure!(id.len() <= 240, "container id is too long: {} characters, at most 240", id.len());
    Ok(())
}

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const INIT: &str = "init";
const ROOTFS: &str = "rootfs";
const NOTIFY: &str = "notify";
/// The socket's name in the folder.
pub const GATE: &str = "gate";

impl Init {
    /// Reads what [`InitFile::write`] writes; none before it has.
    fn parse(text: &[u8]) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let numbers = || {
            let (pid, start_time) =
                str::from_utf8(text).ok()?.strip_suffix('\n')?.split_once(' ')?;
            let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
            Some(Self { pid, start_time: start_time.parse().ok()? })
        };
        numbers().context("it has no pid and start time").map(Some)
    }
}

impl Folder {
    /// Reserves `id` below `root`, which is made when missing.
    ///
    /// # Errors
    /// When the id is taken.
    pub fn create(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let path = root.join(id);
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        let made = match builder.create(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut parents = DirBuilder::new();
                // The sticky bit keeps the folder from being tidied away (XDG Base Directory
                // Specification, "Environment variables").
                parents.mode(0o1700).recursive(true).create(root).with_context(|| {
                    format!(
                        "make the folder of the containers' records, {} (--root or \
                         XDG_RUNTIME_DIR name another)",
                        root.display()
                    )
                })?;
                builder.create(&path)
            }
            other => other,
        };
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists: {id} (in {})", root.display())
            }
            other => other.with_context(|| format!("make the state folder {}", path.display()))?,
        }
        Self::at(path)?.context("the state folder vanished")
    }

    /// The folder of the existing container `id`, or none.
    ///
    /// # Errors
    /// For an impossible id, or when the folder can't be opened.
    pub fn open(root: &Path, id: &str) -> Result<Option<Self>> {
        check_id(id)?;
        Self::at(root.join(id))
    }

    fn at(path: PathBuf) -> Result<Option<Self>> {
        match sys::fs::open_path(&path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::EACCES) => Err(Errno::EACCES).with_context(|| {
                format!(
                    "look for the container in {}: its containers are another user's; act as \
                     that user or as root",
                    path.parent().unwrap_or(&path).display()
                )
            }),
            Err(errno) => Err(errno).with_context(|| format!("open {}", path.display())),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, name: &str, flags: OFlag) -> nix::Result<Fd> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        openat(&self.fd, name, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, mode).map(Fd::from)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file = match self.file(name, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.with_context(|| format!("open {}", self.path.join(name).display()))?,
        };
        let text = file.read_to_end(usize::MAX);
        text.map(Some).with_context(|| format!("read {}", self.path.join(name).display()))
    }

    /// Writes the text of config.json and the record, which is there whole or not at all.
    ///
    /// # Errors
    /// When the disk is full or the like.
    pub fn write(&self, record: &Record, config: &[u8]) -> Result<()> {
        let record = serde_json::to_vec(record).context("render the record")?;
        let temporary = ".new";
        let write = |name, text: &[u8]| -> Result<()> {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let written = self.file(name, flags).and_then(|file| file.write_all(text));
            written.with_context(|| format!("write {}", self.path.join(name).display()))
        };
        write(CONFIG, config)?;
        write(temporary, &record)?;
        // With it the container counts as known.
        renameat(&self.fd, temporary, &self.fd, STATE)
            .with_context(|| format!("write {}", self.path.join(STATE).display()))
    }

    /// The record; none when the runtime was killed before it wrote it.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn record(&self) -> Result<Option<Record>> {
        let Some(text) = self.read(STATE)? else { return Ok(None) };
        Record::parse(&text).with_context(|| self.damaged(STATE)).map(Some)
    }

    fn damaged(&self, name: &str) -> Damaged {
        Damaged(self.path.join(name))
    }

    /// The text of config.json as it was at creation.
    ///
    /// # Errors
    /// When it is not there.
    pub fn config(&self) -> Result<Vec<u8>> {
        self.read(CONFIG)?
            .with_context(|| format!("{} is missing", self.path.join(CONFIG).display()))
    }

    /// Keeps others who ask for the same from changing or removing the container, until it is
    /// dropped. None if somebody has removed the folder meanwhile.
    ///
    /// # Errors
    /// When the folder can't be opened.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let step = || format!("lock {}", self.path.display());
        let file = match self.file(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.with_context(step)?,
        };
        file.lock(false, true).with_context(step)?;
        Ok((!self.is_gone()).then_some(Lock(file)))
    }

    /// Makes and locks the file of the first process. The lock belongs to the open file, which
    /// that process inherits and loses when it executes the program.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn create_init(&self) -> Result<InitFile> {
        // It appears locked: whoever finds it unlocked, or puts one there first, deletes the container.
        let temporary = ".init";
        let make = || -> nix::Result<Fd> {
            let file = self.file(temporary, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
            file.lock(false, true)?;
            sys::fs::rename_to_new(&self.fd, temporary, INIT)?;
            Ok(file)
        };
        make().map(InitFile).with_context(|| format!("make {}", self.path.join(INIT).display()))
    }

    /// The first process, if on record, and whether it (or who makes it) still holds the lock.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn init(&self) -> Result<(Option<Init>, bool)> {
        let file = match self.file(INIT, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Ok((None, false)),
            other => other.with_context(|| format!("open {}", self.path.join(INIT).display()))?,
        };
        let locked = is_locked(&file);
        let text = file
            .read_to_end(usize::MAX)
            .with_context(|| format!("read {}", self.path.join(INIT).display()))?;
        let init = Init::parse(&text).with_context(|| self.damaged(INIT))?;
        Ok((init, locked))
    }

    /// Waits until the first process has closed the file by its exec. That comes a moment before or
    /// after the end of its channel, so that only together they tell that all others see it run.
    pub fn wait_for_exec(&self) {
        // It runs by now; that we can't wait for others to know is no failure.
        let Ok(file) = self.file(INIT, OFlag::O_RDONLY) else { return };
        let _ = file.lock(true, true);
    }

    /// Whether the gate is there.
    ///
    /// # Errors
    /// When the folder can't be searched.
    pub fn has_gate(&self) -> Result<bool> {
        match self.file(GATE, OFlag::O_PATH) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno).context("look for the gate"),
        }
    }

    /// A path to the gate that fits in a socket address however long the folder's path is.
    pub fn gate_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{GATE}", self.fd.as_fd().as_raw_fd()).into()
    }

    /// Makes the folder for the socket of [`crate::notify`].
    ///
    /// # Errors
    /// When it can't be made.
    pub fn make_notify(&self) -> Result<PathBuf> {
        let path = self.notify();
        let made = DirBuilder::new().mode(0o755).create(&path);
        made.with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// The path of that folder, which there may be none of.
    pub fn notify(&self) -> PathBuf {
        self.path.join(NOTIFY)
    }

    /// A short path to that folder; none if there is none.
    ///
    /// # Errors
    /// When this can't be told.
    pub fn notify_path(&self) -> Result<Option<PathBuf>> {
        match self.file(NOTIFY, OFlag::O_PATH) {
            Ok(_) => Ok(Some(format!("/proc/self/fd/{}/{NOTIFY}", self.fd.as_raw_fd()).into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).context("look for the notify folder"),
        }
    }

    /// Makes the folder on which the root of a container without a mount namespace is mounted, in
    /// the caller's. Here nobody else mounts: what is to be unmounted in the end is certain.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn make_rootfs(&self) -> Result<PathBuf> {
        let path = self.path.join(ROOTFS);
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Unmounts what [`Folder::make_rootfs`] was for, with all that is mounted below it.
    ///
    /// # Errors
    /// When something is still mounted there.
    pub fn unmount_rootfs(&self) -> Result<()> {
        let path = self.path.join(ROOTFS);
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match umount2(&path, flags) {
            // A runtime that was killed had not mounted it, or had unmounted it already.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => {
                return Err(errno).with_context(|| format!("unmount {}", path.display()));
            }
        }
        // Refused by the kernel for as long as anything is mounted there.
        std::fs::remove_dir(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Whether somebody has removed the folder; another may be at its path then.
    pub fn is_gone(&self) -> bool {
        fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Keeps whoever is to create the container from starting a first process. False while
    /// somebody is at it, or that process waits at the gate: it has to be ended first.
    pub fn bar(&self) -> bool {
        // Who comes later finds the file there, and gives up.
        match self.file(INIT, OFlag::O_RDONLY | OFlag::O_CREAT) {
            Ok(file) => !is_locked(&file),
            Err(_) => true,
        }
    }

    /// Removes the folder and all in it, freeing the id. The caller has barred it, or made it.
    ///
    /// # Errors
    /// When something in it can't be removed.
    pub fn remove(&self, alone: &Lock) -> Result<()> {
        // Nothing may be removed through a mount.
        self.unmount_rootfs()?;
        self.remove_unmounted(alone)
    }

    /// The same where nothing is mounted in it.
    ///
    /// # Errors
    /// When something in it can't be removed.
    pub fn remove_unmounted(&self, _alone: &Lock) -> Result<()> {
        let context = || format!("remove {}", self.path.display());
        // The record goes first: without it the rest is nobody's. What bars the folder goes last.
        for name in [STATE, CONFIG, INIT] {
            match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("{}: {name}", context()));
                }
            }
        }
        let inside = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        loop {
            match std::fs::remove_dir(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                other => return ignore_missing(other).with_context(context),
            }
            // Who made the folder may have come the moment that it was not barred: it is theirs.
            if !self.bar() || !matches!(self.record(), Ok(None)) {
                return Ok(());
            }
            for entry in std::fs::read_dir(&inside).with_context(context)?.flatten() {
                let removed = match entry.file_type() {
                    _ if entry.file_name() == INIT => Ok(()),
                    Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(entry.path()),
                    _ => std::fs::remove_file(entry.path()),
                };
                ignore_missing(removed).with_context(context)?;
            }
            let _ = unlinkat(&self.fd, INIT, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Whether somebody has the file of the first process locked.
fn is_locked(file: &Fd) -> bool {
    file.lock(true, false) == Err(Errno::EWOULDBLOCK)
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Held by who alone may change or remove a container ([`Folder::lock`]).
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Fd);

/// The open, locked `init` file.
#[derive(Debug)]
pub struct InitFile(Fd);

impl AsFd for InitFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl InitFile {
    /// Puts the process on record.
    ///
    /// # Errors
    /// When the disk is full or the like.
    pub fn write(&self, init: Init) -> Result<()> {
        let text = format!("{} {}\n", init.pid, init.start_time);
        self.0.write_all(text.as_bytes()).context("write the init's pid to its state file")
    }
}

/// The names of all containers below `root`, sorted.
///
/// # Errors
/// When `root` can't be read; a missing one holds none.
pub fn ids(root: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read the state root {}", root.display()))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("read {}", root.display()))?.file_name();
        ids.extend(name.into_string().ok().filter(|id| check_id(id).is_ok()));
    }
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_paths_are_refused() {
        for id in ["", ".", "..", "../x", "a/b", "a b", "ü", "a\n"] {
            check_id(id).unwrap_err();
        }
        check_id(&"x".repeat(241)).unwrap_err();
        for id in ["a", "A.b-c_d+1", "...", &"x".repeat(240)] {
            check_id(id).unwrap();
        }
    }

    #[test]
    fn records_that_name_foreign_places_are_damaged() {
        let record = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut record = serde_json::json!({
                "ociVersion": "1.3.0", "id": "c", "bundle": "/b", "rootfs": "/b/r",
                "created": "", "owner": 0,
                "cgroup": {"path": ["ultari", "c"], "optional": true, "hierarchies": [
                    {"directory": "memory", "version": "v1", "existing": 1}]},
                "resctrl": {"root": "/r", "control": "/r/c", "own": true, "monitoring": null}
            });
            change(&mut record);
            Record::parse(record.to_string().as_bytes())
        };
        record(&|_| ()).unwrap();
        let set = |pointer: &str, value: serde_json::Value| {
            record(&|record| *record.pointer_mut(pointer).unwrap() = value.clone())
        };
        for (pointer, value) in [
            ("/id", "../c".into()),
            // Would be every process of the host.
            ("/cgroup/path", serde_json::json!([])),
            ("/cgroup/path/1", "..".into()),
            ("/cgroup/path/1", "".into()),
            ("/cgroup/path/0", "a/b".into()),
            ("/cgroup/path/0", "a\0".into()),
            ("/cgroup/hierarchies", serde_json::json!([])),
            ("/cgroup/hierarchies/0/directory", "../memory".into()),
            ("/cgroup/hierarchies/0/directory", "..".into()),
            ("/cgroup/hierarchies/0/existing", 3.into()),
            ("/resctrl/control", "/etc".into()),
            ("/resctrl/control", "/r/../etc".into()),
            ("/resctrl/monitoring", "/etc".into()),
        ] {
            assert!(set(pointer, value.clone()).is_err(), "{pointer}: {value}");
        }
        Record::parse(b"{\"id\":").unwrap_err();
    }

    #[test]
    fn a_damaged_pid_is_an_error_and_not_the_end_of_the_process() {
        assert_eq!(Init::parse(b"").unwrap(), None);
        let init = Init::parse(b"12 345\n").unwrap();
        assert_eq!(init, Some(Init { pid: 12, start_time: 345 }));
        for text in ["{", "12", "12 ", "12 34", "0 1\n", "-1 1\n", "99999999999 1\n", "1 2 3\n"] {
            Init::parse(text.as_bytes()).unwrap_err();
        }
        Init::parse(b"\xff 1\n").unwrap_err();
    }

    #[test]
    fn an_id_can_be_taken_once() {
        let root = std::env::temp_dir().join(format!("ultari-state-{}", std::process::id()));
        let folder = Folder::create(&root, "a").unwrap();
        let error = Folder::create(&root, "a").unwrap_err();
        assert!(error.to_string().contains("already exists"), "{error:#}");
        let init = folder.create_init().unwrap();
        assert_eq!(folder.init().unwrap(), (None, true));
        init.write(Init { pid: 7, start_time: 9 }).unwrap();
        drop(init);
        assert_eq!(folder.init().unwrap(), (Some(Init { pid: 7, start_time: 9 }), false));
        assert_eq!(ids(&root).unwrap(), ["a"]);
        folder.remove(&folder.lock().unwrap().unwrap()).unwrap();
        assert!(Folder::open(&root, "a").unwrap().is_none());
        std::fs::remove_dir(&root).unwrap();
    }
}
