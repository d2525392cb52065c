//! Where a container's cgroup is, what is paused with it, whose it is, and what is left of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::{MIB, limit_file, sleeper};
use crate::skip;
use crate::support::{
    HIERARCHIES, Json, Sandbox, hierarchy, host, remove_namespace, set_namespace, wait_until,
};

#[test]
fn the_process_is_in_its_cgroup_of_every_hierarchy() {
    let sandbox = sleeper("where", json!({}));
    sandbox.run_detached();
    let text = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    let own = sandbox.cgroup();
    assert!(text.lines().all(|line| line.ends_with(&format!(":{own}"))), "{text}");
    assert_eq!(sandbox.cgroups().len(), HIERARCHIES.len());
    sandbox.delete_forced().ok();
    assert!(sandbox.cgroups().is_empty());
}

#[test]
fn report_has_the_cgroups_of_v1_and_v2() {
    let mut sandbox = Sandbox::new("seen");
    let own = sandbox.cgroup();
    let report = sandbox.probe();
    let cgroups = report.texts("/cgroups");
    assert!(cgroups.iter().all(|line| line.ends_with(&own)), "{cgroups:?}");
}

/// Moves the program into a cgroup below ours before it starts: where a relative path or none
/// begins is up to the runtime, and must not be where the machine keeps the tests.
fn from_own_cgroup(sandbox: &Sandbox) -> (String, Vec<PathBuf>) {
    let mut script = String::new();
    let mut folders = Vec::new();
    for hierarchy in HIERARCHIES.iter() {
        let folder = hierarchy.join(format!("{}-caller", &sandbox.cgroup()[1..]));
        fs::create_dir_all(&folder).unwrap();
        prepare_cpuset(hierarchy, &folder);
        script.push_str(&format!("echo $$ >{}/cgroup.procs; ", folder.display()));
        folders.push(folder);
    }
    script.push_str("exec \"$@\"");
    (script, folders)
}

/// On v1 a cpuset is empty at first, and takes no process then.
fn prepare_cpuset(hierarchy: &Path, folder: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !hierarchy.join(file).exists() || hierarchy.join("cgroup.controllers").exists() {
            continue;
        }
        let value = fs::read_to_string(hierarchy.join(file)).unwrap();
        for folder in [folder.parent().unwrap(), folder] {
            if fs::read_to_string(folder.join(file)).unwrap().trim().is_empty() {
                fs::write(folder.join(file), &value).unwrap();
            }
        }
    }
}

/// The cgroups of a process in all hierarchies.
fn cgroups_of(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut found = Vec::new();
    for hierarchy in HIERARCHIES.iter() {
        for line in text.lines() {
            let folder = hierarchy.join(line.rsplit(':').next().unwrap().trim_start_matches('/'));
            let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            if procs.lines().any(|line| line == pid.to_string()) && !found.contains(&folder) {
                found.push(folder);
            }
        }
    }
    found
}

#[test]
fn cgroups_path_that_is_relative_or_absent() {
    let relative = format!("{}/relative", &host().cgroup[1..]);
    for path in [None, Some(&relative)] {
        let mut sandbox = sleeper("place", json!({"memory": {"limit": 64 * MIB}}));
        match path {
            Some(path) => {
                sandbox.config["linux"]["cgroupsPath"] = json!(format!("{path}/{}", sandbox.id))
            }
            None => drop(sandbox.config["linux"].as_object_mut().unwrap().remove("cgroupsPath")),
        }
        let (script, callers) = from_own_cgroup(&sandbox);
        let call = sandbox.bundle_call("run").args(["--detach", &sandbox.id]);
        call.wrapped(&script).output().ok();
        let cgroups = cgroups_of(sandbox.pid());
        assert_eq!(cgroups.len(), HIERARCHIES.len(), "{cgroups:?}");
        for cgroup in &cgroups {
            assert!(!callers.contains(cgroup), "not in the caller's: {cgroup:?}");
            assert!(!HIERARCHIES.contains(cgroup), "not in the root: {cgroup:?}");
            if let Some(path) = path {
                assert!(cgroup.to_str().unwrap().contains(path), "{cgroup:?}");
            }
        }
        // Another caller, such as an engine after its restart, finds it all the same.
        sandbox.ultari(["pause", &sandbox.id]).ok();
        sandbox.ultari(["resume", &sandbox.id]).ok();
        sandbox.exec(&["true"]).ok();
        sandbox.delete_forced().ok();
        for cgroup in cgroups {
            assert!(!cgroup.exists(), "left behind: {cgroup:?}");
        }
        for caller in callers {
            fs::remove_dir(&caller).unwrap_or_else(|error| panic!("{caller:?}: {error}"));
        }
    }
}

#[test]
fn missing_parents_are_made_with_their_controllers() {
    let mut sandbox =
        sleeper("parents", json!({"memory": {"limit": 64 * MIB}, "cpu": {"cpus": "0"}}));
    let path = format!("{}/a/b", sandbox.cgroup());
    sandbox.config["linux"]["cgroupsPath"] = json!(path);
    sandbox.run_detached();
    if let Some(file) = limit_file(&path, "memory", "memory.limit_in_bytes", "memory.max") {
        assert_eq!(fs::read_to_string(file).unwrap().trim(), (64 * MIB).to_string());
    }
    sandbox.delete_forced().ok();
    // The container's own is gone; the parents that were made for it as well.
    assert!(sandbox.cgroups().is_empty(), "{:?}", sandbox.cgroups());
}

#[test]
fn a_writable_cgroup_of_its_own_belongs_to_the_containers_user() {
    if HIERARCHIES
        .iter()
        .any(|hierarchy| hierarchy.join("cgroup.procs").exists() && hierarchy.ends_with("memory"))
    {
        skip!("on cgroup v1 it stays the caller's: giving it away would not be safe");
    }
    for (options, made) in [(json!(["nosuid"]), "ok"), (json!(["ro"]), "EROFS")] {
        let mut sandbox = Sandbox::new("owner");
        crate::namespaces::with_user_namespace(&mut sandbox);
        set_namespace(&mut sandbox.config, "cgroup", None);
        sandbox.mount(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options
        }));
        let outcomes = sandbox.attempt(&[
            "mkdir /sys/fs/cgroup/below",
            "open w /sys/fs/cgroup/cgroup.subtree_control",
            "open w /sys/fs/cgroup/memory.max",
        ]);
        assert_eq!(outcomes[0], made, "{outcomes:?}");
        assert_eq!(outcomes[1] == "ok", made == "ok", "{outcomes:?}");
        // Its own limits are not the container's to change.
        assert!(["EACCES", "EROFS"].contains(&outcomes[2].as_str()), "{outcomes:?}");
    }
}

#[test]
fn a_shared_parent_goes_with_the_last_container_in_it() {
    let parent = format!("{}/shared-{}", host().cgroup, std::process::id());
    let sandboxes = ["first", "second"].map(|name| {
        let mut sandbox = sleeper(name, json!({}));
        sandbox.config["linux"]["cgroupsPath"] = json!(format!("{parent}/{}", sandbox.id));
        sandbox.run_detached();
        sandbox
    });
    let left = || HIERARCHIES.iter().filter(|h| h.join(&parent[1..]).exists()).count();
    // The one that made it goes first.
    sandboxes[0].delete_forced().ok();
    assert_eq!(left(), HIERARCHIES.len());
    sandboxes[1].delete_forced().ok();
    assert_eq!(left(), 0);
}

#[test]
fn only_what_was_made_is_removed() {
    let mut sandbox = sleeper("foreign", json!({}));
    let path = format!("{}/made/leaf", sandbox.cgroup());
    sandbox.config["linux"]["cgroupsPath"] = json!(path);
    let mut kept = Vec::new();
    for hierarchy in HIERARCHIES.iter() {
        let folder = hierarchy.join(&sandbox.cgroup()[1..]);
        fs::create_dir_all(folder.join("neighbour")).unwrap();
        prepare_cpuset(hierarchy, &folder);
        kept.push(folder);
    }
    sandbox.run_detached();
    sandbox.delete_forced().ok();
    for folder in &kept {
        assert!(folder.join("neighbour").exists(), "not ours to remove: {folder:?}");
        assert!(!folder.join("made/leaf").exists(), "ours to remove: {folder:?}");
        let _ = fs::remove_dir(folder.join("made"));
        fs::remove_dir(folder.join("neighbour")).unwrap();
        fs::remove_dir(folder).unwrap();
    }
}

#[test]
fn cgroups_that_the_container_made_are_removed_too() {
    let mut sandbox = sleeper("inner", json!({}));
    remove_namespace(&mut sandbox.config, "pid");
    sandbox.run_detached();
    for cgroup in sandbox.cgroups() {
        fs::create_dir_all(cgroup.join("inner/most")).unwrap();
    }
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    assert!(sandbox.cgroups().is_empty());
}

#[test]
fn two_containers_in_one_parent() {
    let parent = format!("{}/shared-parent", host().cgroup);
    let mut sandboxes: Vec<Sandbox> = (0..2).map(|_| sleeper("shared", json!({}))).collect();
    for sandbox in &mut sandboxes {
        sandbox.config["linux"]["cgroupsPath"] = json!(format!("{parent}/{}", sandbox.id));
        sandbox.run_detached();
    }
    let second = sandboxes.pop().unwrap();
    sandboxes.pop().unwrap().delete_forced().ok();
    assert_eq!(second.status(), "running");
    second.exec(&["true"]).ok();
    second.delete_forced().ok();
    for hierarchy in HIERARCHIES.iter() {
        // runc leaves the parent; either is fine as long as it is empty.
        let _ = fs::remove_dir(hierarchy.join(&parent[1..]));
        assert!(!hierarchy.join(&parent[1..]).exists());
    }
}

#[test]
fn systemd_driver_works_or_says_that_it_does_not() {
    let mut sandbox = sleeper("systemd", json!({}));
    sandbox.config["linux"]["cgroupsPath"] =
        json!(format!("system.slice:ultari-test:{}", sandbox.id));
    sandbox.write_config();
    let call = sandbox.call(["--systemd-cgroup", "create", "--bundle"]).arg(sandbox.bundle());
    let output = call.arg(&sandbox.id).output();
    if output.code != 0 {
        output.fails(1, &["systemd"]);
    }
    let _ = sandbox.call(["--systemd-cgroup", "delete", "--force", &sandbox.id]).output();
    sandbox.expect_nothing_left();
}

#[test]
fn pause_reaches_processes_of_exec_as_well() {
    let sandbox = sleeper("freeze", json!({}));
    sandbox.run_detached();
    let running = sandbox
        .exec_call(&[])
        .args(["sh", "-c", "while true; do echo x; sleep 0.01; done"])
        .spawn();
    wait_until("it writes", || !running.stdout().is_empty());
    sandbox.ultari(["pause", &sandbox.id]).ok();
    let before = running.stdout().len();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(running.stdout().len(), before);
    sandbox.delete_forced().ok();
    running.wait().exits_with(137);
}

#[test]
fn a_frozen_parent_is_an_error_and_no_hang() {
    let Some(freezer) = hierarchy("freezer") else { skip!("cgroup v1 only") };
    let mut sandbox = sleeper("ice", json!({}));
    let parent = freezer.join(&sandbox.cgroup()[1..]);
    fs::create_dir_all(&parent).unwrap();
    fs::write(parent.join("freezer.state"), "FROZEN").unwrap();
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}/in", sandbox.cgroup()));
    let call = sandbox.bundle_call("create").arg(&sandbox.id).spawn();
    let mut call = call;
    for _ in 0..400 {
        if !call.is_running() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let hung = call.is_running();
    fs::write(parent.join("freezer.state"), "THAWED").unwrap();
    let output = call.wait();
    let _ = sandbox.delete_forced();
    let _ = fs::remove_dir(parent.join("in"));
    fs::remove_dir(&parent).unwrap();
    assert!(!hung, "create hung in a frozen cgroup");
    output.fails(1, &["frozen"]);
}

#[test]
fn a_cgroup_in_use_is_refused_and_left_alone() {
    let first = sleeper("inuse", json!({}));
    first.run_detached();
    let mut second = sleeper("late", json!({}));
    second.config["linux"]["cgroupsPath"] = first.config["linux"]["cgroupsPath"].clone();
    // Without a PID namespace of its own, a container's end is that of all in its cgroup.
    remove_namespace(&mut second.config, "pid");
    second.create().fails(1, &["linux.cgroupsPath", "not empty"]);
    second.delete_forced().ok();
    assert_eq!(first.status(), "running");
    second.expect_nothing_left();
}
