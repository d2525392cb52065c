//! Limits: that they hold, where the cgroup is, and what is left of it.
//!
//! Written for both versions of cgroups: each limit is looked up where this host has it.

mod controllers;
mod tree;

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{HIERARCHIES, Sandbox, hierarchy};

const MIB: u64 = 1 << 20;

/// The file of a limit: that of the v1 controller where it is mounted, else that of v2. None if
/// this host has neither.
fn limit_file(cgroup: &str, controller: &str, v1: &str, v2: &str) -> Option<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    if let Some(hierarchy) = hierarchy(controller) {
        return Some(hierarchy.join(relative).join(v1));
    }
    let v2_name = if controller == "blkio" { "io" } else { controller };
    let unified = HIERARCHIES.iter().find(|path| path.join("cgroup.controllers").exists())?;
    let offered = fs::read_to_string(unified.join("cgroup.controllers")).unwrap();
    let offered = offered.split_whitespace().any(|name| name == v2_name);
    offered.then(|| unified.join(relative).join(v2))
}

/// Whether limits of this controller can be tried here.
pub fn has(controller: &str) -> bool {
    limit_file("", controller, "", "").is_some()
}

pub fn is_v1(controller: &str) -> bool {
    hierarchy(controller).is_some()
}

/// A container that sleeps, with these `linux.resources` beside the usual ones.
pub fn sleeper(name: &str, resources: Value) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.args(&["/bin/sleep", "100"]);
    for (key, value) in resources.as_object().unwrap() {
        sandbox.config["linux"]["resources"][key] = value.clone();
    }
    sandbox
}

/// What a limit of the sandbox's container is set to.
#[track_caller]
pub fn limit(sandbox: &Sandbox, controller: &str, v1: &str, v2: &str) -> String {
    let file = limit_file(&sandbox.cgroup(), controller, v1, v2).expect(controller);
    let text =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.trim().to_owned()
}

/// A character device that is not among the default ones, and opens without further rights.
pub fn extra_device() -> Option<u32> {
    let misc = fs::read_to_string("/proc/misc").unwrap();
    let fuse = misc.lines().find(|line| line.ends_with(" fuse"))?;
    fuse.split_whitespace().next()?.parse().ok()
}

/// Major and minor number of a whole disk, as throttling wants it.
pub fn disk() -> Option<String> {
    let all = || fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let of_kind = |kind| all().find(|entry| entry.file_name().to_string_lossy().starts_with(kind));
    let disk = ["vd", "sd", "nvme", "loop"].into_iter().find_map(of_kind)?;
    Some(fs::read_to_string(disk.path().join("dev")).unwrap().trim().to_owned())
}
