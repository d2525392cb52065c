//! CVE-2023-25809 and cgroup paths that climb out.

use std::path::Path;

use serde_json::json;

use crate::support::{HIERARCHIES, Sandbox, hierarchy, host, remove_namespace, set_namespace};

/// The container's files below /sys/fs/cgroup in which the cgroups of a tree begin.
fn tops() -> Vec<String> {
    let names = ["pids", "memory", "devices"];
    let v1 = names.iter().filter(|name| Path::new("/sys/fs/cgroup").join(name).exists());
    let all: Vec<String> = v1.map(|name| format!("/sys/fs/cgroup/{name}")).collect();
    if all.is_empty() { vec!["/sys/fs/cgroup".into()] } else { all }
}

/// Shown: with the cgroup mount's `ro` ignored (set_attributes without attr) mkdir was "ok".
#[test]
fn the_hosts_cgroups_are_not_writable() {
    let mut sandbox = Sandbox::new("cgroupfs");
    remove_namespace(&mut sandbox.config, "pid");
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"]
    }));
    for top in tops() {
        assert_eq!(sandbox.attempt(&[&format!("mkdir {top}/x")]), ["EROFS"], "{top}");
    }
}

/// CVE-2023-25809: without a cgroup namespace, and writable.
///
/// Shown: with the cgroup mount showing the hierarchies' roots (v1_paths, and bind_cgroups on v2)
/// the container saw the cgroups of others.
#[test]
fn without_a_cgroup_namespace_nothing_but_the_own_cgroup_is_shown() {
    let mut sandbox = Sandbox::new("owncgroup");
    set_namespace(&mut sandbox.config, "user", None);
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    sandbox.config["linux"]["uidMappings"] = ids.clone();
    sandbox.config["linux"]["gidMappings"] = ids;
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]
    }));
    let name = &host().cgroup;
    for top in tops() {
        let folder = format!("{top}{name}");
        let wanted = format!("read {top}/cgroup.procs");
        let outcomes = sandbox.attempt(&[&format!("count {folder}"), &wanted]);
        assert_eq!(outcomes[0], "ENOENT", "the trees of others are in sight");
        assert!(outcomes[1].starts_with("ok "), "{outcomes:?}");
    }
}

/// Shown: without the look at `..` in cgroup::Location the container ran in a cgroup beside ours.
#[test]
fn cgroups_path_may_not_leave_its_place() {
    let own = &host().cgroup;
    let climbing = ["/../ultari-escape", "/a/../../b", "../x", "/./x/..", "a/.."].map(String::from);
    for path in climbing.into_iter().chain([format!("{own}/a/../../ultari-escape")]) {
        let mut sandbox = Sandbox::with_script("cgescape", "exit 0");
        sandbox.config["linux"]["cgroupsPath"] = json!(path);
        for command in ["create", "run"] {
            let output = sandbox.bundle_call(command).arg(&sandbox.id).output();
            output.fails(1, &["cgroupsPath", ".."]);
            sandbox.expect_nothing_left();
        }
        let escaped = |folder: &&std::path::PathBuf| folder.join("ultari-escape").exists();
        assert_eq!(HIERARCHIES.iter().filter(escaped).count(), 0);
    }
    if let Some(memory) = hierarchy("memory") {
        assert!(!memory.join("../ultari-escape").exists());
    }
}
