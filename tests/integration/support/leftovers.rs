//! What a container may leave behind on the host: counted after every test.

use std::fs;
use std::path::Path;

use super::{HIERARCHIES, Sandbox, host, marked_processes};

/// Everything of a sandbox's containers that is still there: processes, mounts, cgroups, files of
/// the runtime's state folder, strangers in the bundle. Empty when all is tidy.
pub fn find(sandbox: &Sandbox) -> Vec<String> {
    host().reap_orphans();
    let mut found = Vec::new();
    for pid in marked_processes(&sandbox.marker()) {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(format!("process {pid}: {}", command.replace('\0', " ")));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = format!("{}/", sandbox.dir.display());
    found.extend(
        mounts.lines().filter(|line| line.contains(&own)).map(|line| format!("mount {line}")),
    );
    for hierarchy in HIERARCHIES.iter() {
        let cgroup = hierarchy.join(sandbox.cgroup().trim_start_matches('/'));
        find_cgroups(&cgroup, &mut found);
    }
    for path in entries(&sandbox.root()) {
        found.push(format!("state {path}"));
    }
    for path in entries(&sandbox.bundle()) {
        if !path.ends_with("/config.json") && !path.ends_with("/rootfs") {
            found.push(format!("in the bundle {path}"));
        }
    }
    found
}

fn find_cgroups(cgroup: &Path, found: &mut Vec<String>) {
    if !cgroup.exists() {
        return;
    }
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    found.push(format!("cgroup {} with processes {:?}", cgroup.display(), processes.trim()));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_cgroups(&entry.path(), found);
        }
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    all.map(|entry| entry.path().display().to_string()).collect()
}
