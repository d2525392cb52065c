//! Cgroups below a container's, which it has made itself: where `exec` puts a process.

use super::Cgroup;
use crate::procfs::Proc;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Component, Path};

impl Cgroup {
    /// Means cgroups below the container's from now on: each of `paths` is `[CONTROLLER,…:]PATH`, the
    /// controllers being those of cgroup v1, and all hierarchies without (runc-exec(8), `--cgroup`).
    ///
    /// # Errors
    /// When there is no such cgroup, or no such controller.
    pub fn enter(&mut self, paths: &[String]) -> Result<()> {
        for text in paths {
            let (controllers, path) = match text.split_once(':') {
                Some((controllers, path)) => (Some(controllers), path),
                None => (None, text.as_str()),
            };
            let below = below(path).with_context(|| format!("--cgroup {text:?}"))?;
            let mut found = false;
            for hierarchy in self.hierarchies().to_vec() {
                let meant = match controllers {
                    Some(names) => names.split(',').any(|name| hierarchy.has_v1_controller(name)),
                    None => true,
                };
                if meant {
                    found = true;
                    self.inside.insert(hierarchy.directory.clone(), below.clone());
                    let node = self.node(&hierarchy);
                    ensure!(
                        node.exists(""),
                        "--cgroup {text:?}: there is no cgroup {} (it is not made by exec)",
                        node.path()
                    );
                }
            }
            ensure!(found, "--cgroup {text:?}: this container has no such cgroup v1 controller");
        }
        self.open_leaf().context("--cgroup: open the cgroup")
    }

    /// Means the cgroup that process `pid` of the container is in: its own can't hold processes
    /// when the container has divided it on cgroup v2 (kernel: admin-guide/cgroup-v2.rst, "No
    /// Internal Process Constraint").
    ///
    /// # Errors
    /// When the process is gone, or not in the container's cgroup.
    pub fn follow(&mut self, pid: libc::pid_t, proc: &Proc) -> Result<()> {
        let text = proc.read(&format!("{pid}/cgroup")).context("exec: where is the container?")?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let Some(below) = path.strip_prefix(&self.shown()) else {
            bail!(
                "exec: process {pid} has left the container's cgroup {} for {path}",
                self.shown()
            );
        };
        if let Some(hierarchy) = self.unified_hierarchy() {
            let directory = hierarchy.directory.clone();
            self.inside.insert(directory, below.trim_matches('/').to_owned());
        }
        self.open_leaf().with_context(|| format!("exec: open the cgroup {path}"))
    }
}

/// A path in the container's cgroup, which its leading slash stands for.
fn below(path: &str) -> Result<String> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_string_lossy()),
            _ => bail!("it must stay in the container's cgroup: write it without \"..\""),
        }
    }
    Ok(names.join("/"))
}
