//! Removing a container's cgroup.

use super::node::Node;
use super::processes::{all_below, wait_for_event};
use super::{Cgroup, Hierarchy, Version, unprivileged};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long killed processes may take to leave the cgroup.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Cgroup {
    /// Removes the cgroup, those below it, and the parents that this runtime made and that are empty.
    ///
    /// Killed processes get a moment to leave. A cgroup that existed before the container stays.
    /// What is gone already is fine, so it can be called again, and it goes on after an error and
    /// reports all of them together.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        let mut errors = Vec::new();
        if let Some(unit) = &self.location.systemd {
            match unit.stop() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        for hierarchy in self.hierarchies() {
            if let Err(error) = self.remove_from(hierarchy, deadline) {
                errors.push(format!("{error:#}"));
            }
        }
        if !errors.is_empty() {
            bail!("cannot remove the container's cgroup {}: {}", self.shown(), errors.join("; "));
        }
        Ok(())
    }

    fn remove_from(&self, hierarchy: &Hierarchy, deadline: Instant) -> Result<()> {
        let depth = self.location.path.len();
        let leaf = self.node(hierarchy);
        if hierarchy.existing == depth {
            for child in leaf.children()? {
                remove_tree(&child, hierarchy.version, deadline)?;
            }
            return Ok(());
        }
        remove_tree(&leaf, hierarchy.version, deadline)?;
        // Those made for this container, or for an earlier one that is gone.
        for depth in (hierarchy.existing + 1..depth).rev() {
            let parent = self.node_at(hierarchy, depth);
            match parent.rmdir() {
                Ok(()) | Err(Errno::ENOENT) => {}
                // Another container may be in it by now; it stays then, and all above it.
                Err(Errno::EBUSY | Errno::ENOTEMPTY) => break,
                // Another user's, who has containers too.
                Err(Errno::EACCES | Errno::EPERM) if unprivileged() => break,
                Err(errno) => {
                    return Err(errno).with_context(|| format!("cannot remove {}", parent.path()));
                }
            }
        }
        Ok(())
    }
}

/// Removes a cgroup and all below it, when its processes have left.
fn remove_tree(node: &Node, version: Version, deadline: Instant) -> Result<()> {
    match node.rmdir() {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EBUSY) => {}
        // A read-only mount says so of what does not exist, too.
        Err(_) if !node.exists("") => return Ok(()),
        Err(errno) => {
            return Err(anyhow::Error::new(errno).context(format!("cannot remove {}", node.path())));
        }
    }
    if version == Version::V2
        && node.exists("cgroup.events")
        && !wait_for_event(node, "populated 0", deadline)?
    {
        return Err(occupied(node));
    }
    // Deepest first.
    let mut nodes = vec![node.clone()];
    let mut next = 0;
    while next < nodes.len() {
        let children = nodes[next].children()?;
        nodes.extend(children);
        next += 1;
    }
    nodes.iter().rev().try_for_each(|node| remove_one(node, deadline))
}

/// Removes a cgroup without others in it. The kernel may find it busy for a moment after the last
/// process has left.
fn remove_one(node: &Node, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        match node.rmdir() {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(Errno::EBUSY) => return Err(occupied(node)),
            Err(errno) => {
                return Err(
                    anyhow::Error::new(errno).context(format!("cannot remove {}", node.path()))
                );
            }
        }
    }
}

fn occupied(node: &Node) -> anyhow::Error {
    let pids = all_below(node).unwrap_or_default();
    anyhow::Error::new(Errno::EBUSY).context(format!(
        "{} still has {} process(es) {pids:?} after {TIMEOUT:?}: end them, then delete again",
        node.path(),
        pids.len()
    ))
}
