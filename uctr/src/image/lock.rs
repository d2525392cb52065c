//! Locks between processes: `flock(2)`, which the kernel lets go of when their holder is killed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};

/// Opens a file that is only there to be locked, and makes it if it isn't there.
pub fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    options.open(path).with_context(|| format!("open {}", path.display()))
}

/// Opens a file that its holders may remove or rename, and waits until it is ours alone.
pub fn exclusive(path: &Path) -> Result<File> {
    loop {
        let file = open(path)?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

/// As [`exclusive`], but nothing if somebody else has it.
pub fn try_exclusive(path: &Path) -> Result<Option<File>> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(is_at(&file, path)?.then_some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Whether the name still leads to what was opened by it.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok(named.ino() == ours.ino() && named.dev() == ours.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}

/// Makes a folder for root's eyes alone (layers hold set-user-ID programs with known holes), with
/// those above it.
pub fn private_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make folder {}", path.display()))
}

/// Makes what was renamed into a folder, or removed from it, outlive a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("sync {}", path.display()))
}
