//! The mounted cgroup trees, and how much of a path there is in each.

use super::node::{self, ROOT};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;

/// The directory of v2 on a hybrid host, as systemd names it.
pub(super) const UNIFIED: &str = "unified";

/// The version of a hierarchy's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted cgroup tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hierarchy {
    /// Its directory in /sys/fs/cgroup: names of v1 controllers joined by commas, the name of a
    /// named hierarchy, `unified`, or nothing on a v2 host.
    pub directory: String,
    pub version: Version,
    /// How many leading components of the path are not ours to remove: they existed before, and the
    /// last of them was not made for containers ([`node::Node::mkdir`]).
    pub existing: usize,
    /// How many leading components existed when the place was found.
    #[serde(skip)]
    pub present: usize,
}

impl Hierarchy {
    pub fn new(directory: String, version: Version) -> Self {
        Self { directory, version, existing: 0, present: 0 }
    }

    /// Finds out what of `path` exists, and what of that is not ours; returns the device number of the
    /// last part of it.
    pub fn look_up(&mut self, root: BorrowedFd, path: &[String]) -> Result<u64> {
        let mut device = None;
        for depth in 1..=path.len() {
            let Some(stat) = self.stat(root, path, depth)? else { break };
            self.present = depth;
            if depth == path.len() || !node::is_marked(&stat) {
                self.existing = depth;
            }
            device = Some(stat.st_dev);
        }
        match device {
            Some(device) => Ok(device),
            None => Ok(self.stat(root, path, 0)?.map_or(0, |stat| stat.st_dev)),
        }
    }

    fn stat(&self, root: BorrowedFd, path: &[String], depth: usize) -> Result<Option<FileStat>> {
        let at = self.path(path, depth);
        let at = if at.is_empty() { "." } else { at.as_str() };
        match fstatat(root, at, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) if depth > 0 => Ok(None),
            Err(errno) => {
                Err(errno).with_context(|| format!("linux.cgroupsPath: cannot look up {ROOT}/{at}"))
            }
        }
    }

    pub fn has_v1_controller(&self, name: &str) -> bool {
        self.version == Version::V1
            && self.directory.split(',').any(|controller| controller == name)
    }

    /// The first `depth` components of `path` in this hierarchy, relative to [`ROOT`].
    pub fn path(&self, components: &[String], depth: usize) -> String {
        let mut path = self.directory.clone();
        for component in &components[..depth] {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(component);
        }
        path
    }
}

/// The hierarchies of a legacy or hybrid host: the directories in /sys/fs/cgroup that are mounts.
/// Symlinks are second names of hierarchies with several controllers.
pub(super) fn mounted_hierarchies(root: BorrowedFd, path: &[String]) -> Result<Vec<Hierarchy>> {
    let own_device = fstat(root).with_context(|| format!("cannot stat {ROOT}"))?.st_dev;
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(ROOT).with_context(|| format!("cannot list {ROOT}"))? {
        let entry = entry.with_context(|| format!("cannot list {ROOT}"))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    let mut hierarchies = Vec::with_capacity(names.len());
    for directory in names {
        let version = if directory == UNIFIED { Version::V2 } else { Version::V1 };
        let mut hierarchy = Hierarchy::new(directory, version);
        // A mere directory that nothing is mounted on belongs to the file system of the root.
        if hierarchy.look_up(root, path)? != own_device {
            hierarchies.push(hierarchy);
        }
    }
    ensure!(
        !hierarchies.is_empty(),
        "no cgroups here: nothing is mounted in {ROOT}: mount cgroup2 on it"
    );
    Ok(hierarchies)
}
