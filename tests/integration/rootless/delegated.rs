//! Cgroups: without one only limits fail, and in one that was delegated they hold.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{need_helpers, need_user};
use crate::support::user::{self, SUBORDINATE, UID};
use crate::support::{HIERARCHIES, Sandbox, host, wait_until};

#[test]
fn containers_of_root_do_not_stand_in_the_way() {
    need_user!();
    let sandbox = Sandbox::of_user("besides", "true");
    // Where root's containers without a linux.cgroupsPath are.
    let parents: Vec<_> = HIERARCHIES.iter().map(|path| path.join("ultari")).collect();
    let of_root = |parent: &PathBuf| parent.join(format!("of-root-{}", sandbox.id));
    parents.iter().for_each(|parent| fs::create_dir_all(of_root(parent)).unwrap());
    let output = sandbox.run();
    for parent in &parents {
        fs::remove_dir(of_root(parent)).unwrap();
        let _ = fs::remove_dir(parent);
    }
    output.ok();
}

#[test]
fn without_a_cgroup_only_limits_fail() {
    need_user!();
    let mut sandbox = Sandbox::of_user("limits", "true");
    sandbox.config["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    assert_eq!(sandbox.run().ok().stderr, "", "not even a warning, as runc has it");
    let told = sandbox.bundle_call("run").args(["--debug", &sandbox.id]).output().ok();
    assert!(told.stderr.contains("no cgroup for the container"), "{}", told.stderr);
    for (resources, property, controller) in [
        (json!({"memory": {"limit": 9_999_999}}), "linux.resources.memory.limit", "\"memory\""),
        (json!({"pids": {"limit": 99}}), "linux.resources.pids.limit", "\"pids\""),
        (json!({"cpu": {"quota": 5000}}), "linux.resources.cpu.quota", "\"cpu\""),
    ] {
        sandbox.config["linux"]["resources"] = resources;
        let how = match HIERARCHIES.len() {
            1 => "Delegate=yes",
            _ => "linux.cgroupsPath",
        };
        sandbox.run().fails(1, &[property, controller, how]);
        let checked = sandbox.bare_call().arg("check").arg(sandbox.bundle()).output();
        assert!(checked.exits_with(1).stdout.contains("may not make cgroups"));
    }
    sandbox.config["linux"].as_object_mut().unwrap().remove("resources");
    sandbox.script("sleep 100").run_detached();
    sandbox.ultari(["pause", &sandbox.id]).fails(1, &["cannot pause", "no cgroup of its own"]);
}

/// A cgroup of the user's in every hierarchy, removed at the end; the wrapper for calls from it.
struct Delegated {
    folders: Vec<PathBuf>,
    name: String,
}

impl Delegated {
    fn new(name: &str) -> Delegated {
        let name = format!("{}/{name}-delegated", host().cgroup);
        let mut folders = Vec::new();
        for hierarchy in HIERARCHIES.iter() {
            let folder = hierarchy.join(&name[1..]);
            let unified = HIERARCHIES.len() == 1;
            fs::create_dir_all(folder.join(if unified { "caller" } else { "" })).unwrap();
            let mut parent = hierarchy.clone();
            for component in Path::new(&name[1..]).components() {
                if unified {
                    fs::write(parent.join("cgroup.subtree_control"), "+pids +memory").unwrap();
                }
                let from = parent.clone();
                parent.push(component);
                // Without them a cpuset of v1 takes no process.
                for file in ["cpuset.cpus", "cpuset.mems"].map(Path::new) {
                    if !unified && from.join(file).exists() {
                        let _ = fs::write(parent.join(file), fs::read(from.join(file)).unwrap());
                    }
                }
            }
            give(&folder);
            if unified {
                give(&folder.join("caller"));
            }
            folders.push(folder);
        }
        Delegated { folders, name }
    }

    /// Calls come from a cgroup in it: on v2 that decides what may be moved where.
    fn wrapper(&self) -> String {
        let v2 = self.folders.iter().find(|folder| folder.join("cgroup.events").exists());
        let v2 = v2.expect("a v2 hierarchy");
        let own = if self.folders.len() == 1 { v2.join("caller") } else { v2.clone() };
        let own = own.display();
        format!("echo $$ >{own}/cgroup.procs && exec {} \"$@\"", user::as_user().display())
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for folder in &self.folders {
            let _ = fs::remove_dir(folder.join("caller"));
            wait_until("the cgroup is empty", || fs::remove_dir(folder).is_ok());
        }
    }
}

/// To the user, with the files that the kernel says are safe to give.
fn give(folder: &Path) {
    chown(folder, Some(UID), Some(UID)).unwrap();
    for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
        let _ = chown(folder.join(file), Some(UID), Some(UID));
    }
}

#[test]
fn in_a_delegated_cgroup_limits_hold() {
    need_helpers!();
    let delegated = Delegated::new("limited");
    let mut sandbox = Sandbox::of_user("limited", "sleep 100");
    // Root in the container is nobody whom cgroup v1 would let the caller move.
    let maps = json!([{"containerID": 0, "hostID": SUBORDINATE, "size": 10}]);
    sandbox.config["linux"]["uidMappings"] = maps.clone();
    sandbox.config["linux"]["gidMappings"] = maps;
    sandbox.give_rootfs(SUBORDINATE);
    sandbox.wrapper = Some(delegated.wrapper());
    sandbox.config["linux"]["resources"] = json!({
        "pids": {"limit": 8},
        "memory": {"limit": 64 << 20},
        "devices": [{"allow": false, "access": "rwm"}]
    });
    if HIERARCHIES.len() > 1 {
        sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}/c", delegated.name));
    }
    sandbox.write_config();
    sandbox.bare_call().arg("check").arg(sandbox.bundle()).output().ok();
    sandbox.run_detached();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    assert!(cgroup.contains(&delegated.name), "{cgroup}");
    let forked = sandbox.exec_attempt(&["fork 20"]);
    assert!(forked[0].starts_with("EAGAIN"), "{forked:?}");
    sandbox.ultari(["pause", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "paused");
    sandbox.ultari(["resume", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "running");
    sandbox.exec(&["/guest", "do", "alloc 100"]).exits_with(137);
    sandbox.ultari(["kill", "--all", &sandbox.id, "KILL"]).ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    drop(sandbox);
    for folder in &delegated.folders {
        let below = fs::read_dir(folder).unwrap().flatten();
        let left = below.filter(|entry| entry.file_type().unwrap().is_dir());
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert!(left.is_empty() || left == ["caller"], "{left:?}");
    }
}
