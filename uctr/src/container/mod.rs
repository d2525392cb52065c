//! Containers: their records, how their config.json comes about, and the monitor of each.

pub mod attach;
pub mod changes;
pub mod config;
pub mod exec;
pub mod files;
pub mod lifecycle;
pub mod links;
pub mod logs;
pub mod make;
pub mod monitor;
pub mod names;
pub mod parse;
mod reaper;
pub mod record;
pub mod update;

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use ultari::container::Status as RuntimeStatus;

use crate::disk;
use crate::paths::Paths;
pub use parse::{parse_signal, parse_size};
use record::{Record, State, Status};

/// A container that is on record.
#[derive(Clone, Debug)]
pub struct Container {
    /// As it was when it was read.
    pub record: Record,
    paths: Paths,
}

/// The lock of a container's record.
pub type Lock = Flock<File>;

/// There is no such container.
#[derive(Debug)]
pub struct NotFound(pub String);

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "No such container: {}", self.0)
    }
}

impl std::error::Error for NotFound {}

/// All containers, the youngest first. A folder without a record is one that is being made, or what
/// is left of one, and is passed over.
///
/// # Errors
/// When the folder can't be read, or a record is damaged.
pub fn list(paths: &Paths) -> Result<Vec<Container>> {
    let mut found = Vec::new();
    for id in ids(paths)? {
        match Container::read(paths, &id)? {
            Some(container) => found.push(container),
            // Its record is the last that goes. Whoever removed the container was killed then.
            None => drop(std::fs::remove_dir(paths.container(&id))),
        }
    }
    found.sort_by_key(|container: &Container| std::cmp::Reverse(container.record.created));
    Ok(found)
}

fn ids(paths: &Paths) -> Result<Vec<String>> {
    let folder = paths.containers();
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("read {}", folder.display()))?.file_name();
        ids.extend(name.to_str().filter(|name| is_id(name)).map(str::to_owned));
    }
    Ok(ids)
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The container of a whole ID, a name, or the beginning of an ID, in this order as with docker.
///
/// # Errors
/// [`NotFound`]; or when several IDs begin so.
pub fn find(paths: &Paths, name: &str) -> Result<Container> {
    if is_id(name)
        && let Some(container) = Container::read(paths, name)?
    {
        return Ok(container);
    }
    let all = list(paths)?;
    let bare = name.strip_prefix('/').unwrap_or(name);
    if let Some(container) = all.iter().find(|container| container.record.name == bare) {
        return Ok(container.clone());
    }
    let mut begin = all.into_iter().filter(|c| !name.is_empty() && c.record.id.starts_with(name));
    match (begin.next(), begin.next()) {
        (Some(container), None) => Ok(container),
        (Some(_), Some(_)) => bail!("Multiple IDs found with provided prefix: {name}"),
        _ => Err(NotFound(name.into()).into()),
    }
}

impl Container {
    /// The container of a whole ID; none if there is none (any more, or yet).
    ///
    /// # Errors
    /// When its record can't be read.
    pub fn read(paths: &Paths, id: &str) -> Result<Option<Self>> {
        let path = paths.container(id).join("record.json");
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        let record = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged or from another version", path.display()))?;
        Ok(Some(Self { record, paths: paths.clone() }))
    }

    /// Where everything of it is.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.paths.container(&self.record.id)
    }

    /// The first 12 digits of its ID.
    #[must_use]
    pub fn short_id(&self) -> &str {
        &self.record.id[..12]
    }

    /// The state of this moment: what is on record, set right by what the kernel says. A container
    /// whose monitor was killed is found dead or alive so.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state = self.record.state.clone();
        if !matches!(state.status, Status::Running | Status::Paused | Status::Restarting) {
            return state;
        }
        let now = ultari::container::Container::open(&self.paths.runtime(), &self.record.id)
            .and_then(|container| container.status());
        match now {
            Ok((RuntimeStatus::Paused, pid)) => (state.status, state.pid) = (Status::Paused, pid),
            Ok((RuntimeStatus::Running, pid)) => (state.status, state.pid) = (Status::Running, pid),
            _ if state.status == Status::Restarting => {}
            // It is about to say how it ended.
            _ if monitor::is_alive(self) => {}
            _ => {
                // Its monitor would have said how it ended: nobody knows any more.
                (state.status, state.pid, state.exit_code) = (Status::Exited, 0, 255);
            }
        }
        state
    }

    /// Takes the lock of the record.
    ///
    /// # Errors
    /// When the container is gone.
    pub fn lock(&self) -> Result<Lock> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let path = self.folder().join("lock");
        let file = match options.open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(NotFound(self.record.id.clone()).into());
            }
            other => other.with_context(|| format!("open {}", path.display()))?,
        };
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("lock {}", path.display()))
    }

    /// Reads the record anew under its lock, lets it be changed, and writes it.
    ///
    /// # Errors
    /// When the container is gone meanwhile, what `change` says, or when it can't be written.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut Record) -> Result<T>) -> Result<T> {
        let _lock = self.lock()?;
        let Some(now) = Self::read(&self.paths, &self.record.id)? else {
            return Err(NotFound(self.record.id.clone()).into());
        };
        self.record = now.record;
        let result = change(&mut self.record)?;
        self.write_to(&self.folder())?;
        Ok(result)
    }

    fn write_to(&self, folder: &Path) -> Result<()> {
        disk::replace(&folder.join("record.json"), &self.record)
    }

    /// Makes the folder and the record of a new container, for a caller that holds [`names::lock`].
    ///
    /// # Errors
    /// When nothing can be written.
    fn create(paths: &Paths, record: Record) -> Result<Self> {
        ensure!(is_id(&record.id), "{:?} is no ID of a container", record.id);
        // It appears with its record or not at all; what a killed one has left is replaced.
        let new = paths.containers().join("new");
        let context = || format!("make {}", new.display());
        if new.exists() {
            std::fs::remove_dir_all(&new).with_context(context)?;
        }
        DirBuilder::new().mode(0o710).create(&new).with_context(context)?;
        let container = Self { record, paths: paths.clone() };
        container.write_to(&new)?;
        std::fs::rename(&new, container.folder()).with_context(context)?;
        Ok(container)
    }
}

/// The processes that this program starts itself: monitors, and the reaper of `--init`.
#[must_use]
pub fn hidden_command(args: &[std::ffi::OsString]) -> Option<u8> {
    monitor::hidden_command(args).or_else(|| reaper::hidden_command(args))
}
