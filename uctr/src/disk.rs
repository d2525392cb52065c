//! Files that are replaced as a whole, and how much room folders take.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The beginning of the names of files that are about to replace another one.
const NEW: &str = ".new";

/// Writes a value as JSON to a file, which others see as it was or as it is then. The folder has to
/// be there; whoever is killed meanwhile leaves a hidden file in it, see [`remove_unfinished`].
///
/// # Errors
/// When it can't be written.
pub fn replace(path: &Path, value: &impl Serialize) -> Result<()> {
    let context = || format!("write {}", path.display());
    let text = serde_json::to_vec(value).with_context(context)?;
    let folder = path.parent().with_context(context)?;
    let mut file =
        tempfile::Builder::new().prefix(NEW).tempfile_in(folder).with_context(context)?;
    file.write_all(&text).with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

/// Removes what callers of [`replace`] who were killed have left in a folder, while nobody else can
/// be in one. A folder that isn't there is as good.
///
/// # Errors
/// When such a file can't be removed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    let context = || format!("tidy up {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.with_context(context)?,
    };
    for entry in entries {
        let entry = entry.with_context(context)?;
        if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
            fs::remove_file(entry.path()).with_context(context)?;
        }
    }
    Ok(())
}

/// The bytes of all files below a folder, those with several names counted once; 0 if there is no
/// such folder. What is removed meanwhile is not counted.
///
/// # Errors
/// When a folder can't be read.
pub fn folder_size(folder: &Path) -> Result<u64> {
    let mut seen = HashSet::new();
    let mut size = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let context = || format!("read {}", folder.display());
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.with_context(context)?,
        };
        for entry in entries {
            let entry = entry.with_context(context)?;
            let found = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.with_context(context)?,
            };
            if found.is_dir() {
                folders.push(entry.path());
            } else if found.nlink() < 2 || seen.insert((found.dev(), found.ino())) {
                size += found.len();
            }
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), [0; 1000]).unwrap();
        fs::hard_link(dir.path().join("a/b"), dir.path().join("c")).unwrap();
        fs::write(dir.path().join("d"), [0; 10]).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("e")).unwrap();
        assert_eq!(folder_size(dir.path()).unwrap(), 1014);
        assert_eq!(folder_size(&dir.path().join("missing")).unwrap(), 0);
    }
}
