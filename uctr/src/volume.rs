//! Volumes and mounts: `-v`, `--mount`, `--tmpfs`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// What is mounted where in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// The volume's name, if it is one.
    pub name: Option<String>,
    /// On the host.
    pub source: Option<PathBuf>,
    /// In the container.
    pub destination: PathBuf,
    /// As config.json has them (`ro`, `rslave`, `size=…`).
    pub options: Vec<String>,
    /// An empty volume gets what the image has there.
    pub copy: bool,
}

/// Works out all mounts of a container, and makes the volumes that are not there yet.
///
/// # Errors
/// In docker's words: a missing source of `--mount type=bind`, a path that isn't absolute, the same
/// destination twice …
pub fn resolve(
    _paths: &Paths,
    _container: &str,
    _volume_flags: &[String],
    _mount_flags: &[String],
    _tmpfs_flags: &[String],
    _image_volumes: &[String],
) -> Result<Vec<MountPoint>> {
    todo!()
}

/// Gives an empty volume what the image has at its place: called by the monitor with the mounted
/// root filesystem.
///
/// # Errors
/// When something can't be copied.
pub fn fill(_rootfs: &Path, _mount: &MountPoint) -> Result<()> {
    todo!()
}
