//! The holes that other runtimes had, attacked as they were: by a hostile image, a process that
//! races inside, a hostile process.json. docs/security.md has the table.
//!
//! `Shown:` at a test tells what was taken out of the runtime once to see the test fail.

mod cgroups;
mod console;
mod descriptors;
mod identity;
mod links;
mod masks;
mod proc_writes;
mod runtime_file;
mod seccomp;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use crate::support::{Sandbox, bind, wait_until};

/// A second container, which has `folder` as a volume and makes two names in it change places all
/// the time.
fn attacker(folder: &Path, one: &str, other: &str) -> Sandbox {
    let mut attacker = Sandbox::new("attacker");
    attacker.mount(bind(folder, "/mnt", &["bind"]));
    attacker.args(&["/guest", "do", &format!("exchange /mnt/{one} /mnt/{other}")]);
    attacker.run_detached();
    let inode = || fs::symlink_metadata(folder.join(one)).map(|found| found.ino());
    let before = inode().unwrap();
    wait_until("the attacker is at work", || inode().is_ok_and(|now| now != before));
    attacker
}

/// Has the mount table, as the container's init sees it when all mounts are made, written into a
/// file for [`mounted_at`]: what was mounted outside of the root is gone after the pivot.
fn record_mounts(sandbox: &mut Sandbox) {
    let file = sandbox.dir.join("mounted");
    let script = format!("cat /proc/self/mountinfo >>{}", file.display());
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    sandbox.config["hooks"] = json!({"createContainer": [hook]});
}

/// The mounts at or below `place` in what [`record_mounts`] wrote down.
fn mounted_at(sandbox: &Sandbox, place: &Path) -> Vec<String> {
    let text = fs::read_to_string(sandbox.dir.join("mounted")).unwrap_or_default();
    let below = |line: &&str| {
        line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(place))
    };
    text.lines().filter(below).map(str::to_owned).collect()
}

/// What lies in a folder in which nothing may have been made.
fn made_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Takes the mounts at and below `place` out of config.json: the image's own is there then.
fn without_mount(sandbox: &mut Sandbox, place: &str) {
    let mounts = sandbox.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !Path::new(mount["destination"].as_str().unwrap()).starts_with(place));
}
