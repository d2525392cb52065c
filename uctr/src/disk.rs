//! How much room folders take.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

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
