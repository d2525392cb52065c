//! Containers of an ordinary user: id maps, what such a user may mount and limit, delegated
//! cgroups, and root in a user namespace, as podman runs us without root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::skip;
use crate::support::user::{self, COUNT, NAME, SUBORDINATE, UID, UserNamespace};
use crate::support::{
    ConsoleSocket, HIERARCHIES, Json, Sandbox, bind, host, remove_namespace, set_namespace,
    wait_until,
};

/// Leaves a test where there can be no ordinary user.
macro_rules! need_user {
    () => {
        if let Some(reason) = user::missing() {
            skip!("{reason}");
        }
    };
}

/// Leaves a test where the set-uid programs are not installed.
macro_rules! need_helpers {
    () => {
        if let Some(reason) = user::missing_with_helpers() {
            skip!("{reason}");
        }
    };
}

/// The field of /proc/PID/status.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn the_config_of_spec_runs_as_it_is() {
    need_user!();
    let mut sandbox = Sandbox::of_user("spec", "");
    let report = sandbox.probe();
    sandbox.bare_call().arg("check").arg(sandbox.bundle()).output().ok();
    assert_eq!(report["uid_map"], json!([[0, UID, 1]]));
    assert_eq!(report["gid_map"], json!([[0, UID, 1]]));
    assert_eq!(report["pid"], 1);
    let own = crate::support::own_namespace("net");
    assert_eq!(report["namespaces"]["net"], own, "a user has no network of its own to offer");
    // Nobody gains or loses groups in a namespace made without privileges (CVE-2014-8989).
    let outcome = sandbox.attempt(&["read /proc/self/setgroups", "mkdir /sys/fs/cgroup/x"]);
    assert_eq!(outcome[0], "ok deny\n");
    assert_eq!(outcome[1], "EROFS", "the host's cgroups are not to be changed (CVE-2023-25809)");
}

#[test]
fn spec_asks_for_nothing_that_a_user_may_not_have() {
    need_user!();
    let config = Sandbox::of_user("asks", "").config.clone();
    let kinds: Vec<&str> = config["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace.text("/type"))
        .collect();
    assert!(kinds.contains(&"user") && !kinds.contains(&"network"), "{kinds:?}");
    assert!(config["linux"].get("resources").is_none());
    assert_eq!(
        config["linux"]["uidMappings"],
        json!([{"containerID": 0, "hostID": UID, "size": 1}])
    );
    let mount = |destination: &str| {
        let mounts = config["mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["destination"] == destination).unwrap().clone()
    };
    assert!(!mount("/dev/pts").texts("/options").contains(&"gid=5"));
    assert_eq!(
        (mount("/sys").text("/source"), mount("/sys").texts("/options")[0]),
        ("/sys", "rbind")
    );
    assert!(mount("/sys/fs/cgroup").texts("/options").contains(&"ro"));
    assert!(mount("/proc").get("options").is_none(), "no null, which other runtimes may refuse");
}

#[test]
fn all_commands_of_a_life_work_for_the_user() {
    need_user!();
    let script = "trap 'echo told' USR1; sleep 100 & wait; sleep 100";
    let sandbox = Sandbox::of_user("life", script);
    let created = sandbox.create().ok();
    assert_eq!(created.stderr, "");
    assert_eq!(sandbox.state().text("/owner"), NAME);
    assert_eq!(sandbox.status(), "created");
    sandbox.start().ok();
    let pid = sandbox.pid();
    wait_until("both run", || {
        sandbox
            .ultari(["ps", "--format", "json", &sandbox.id])
            .ok()
            .json()
            .as_array()
            .unwrap()
            .len()
            == 2
    });
    let table = sandbox.ultari(["ps", &sandbox.id]).ok().stdout;
    assert!(table.contains("sleep 100"), "{table}");
    let inside = sandbox.exec(&["/guest", "report"]).ok().json();
    for (name, link) in inside["namespaces"].as_object().unwrap() {
        if !name.ends_with("for_children") {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            assert_eq!(*link, json!(theirs), "{name}");
        }
    }
    assert_eq!(inside.text("/status/Uid"), "0 0 0 0");
    let bits = u64::from_str_radix(inside.text("/status/CapEff"), 16).unwrap();
    assert_eq!(bits, 1 << 5 | 1 << 10 | 1 << 29, "those of config.json");
    sandbox.ultari(["kill", "--all", &sandbox.id, "USR1"]).ok();
    wait_until("the signal arrives", || created.stdout_by_now().contains("told"));
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
}

#[test]
fn processes_of_others_are_not_the_containers() {
    need_user!();
    let one = Sandbox::of_user("one", "sleep 100");
    let mut two = Sandbox::of_user("two", "sleep 100");
    // Without a PID namespace processes are told by their mount namespace.
    remove_namespace(&mut two.config, "pid");
    two.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc");
    two.mount(bind("/proc", "/proc", &["rbind"]));
    for sandbox in [&one, &two] {
        sandbox.run_detached();
    }
    for sandbox in [&one, &two] {
        let seen = sandbox.ultari(["ps", "--format", "json", &sandbox.id]).ok().json();
        assert_eq!(seen, json!([sandbox.pid()]));
    }
    two.ultari(["kill", "--all", &two.id, "KILL"]).ok();
    two.wait_for("stopped");
    assert_eq!(one.status(), "running");
}

#[test]
fn a_terminal_without_a_group_for_it() {
    need_user!();
    let mut sandbox = Sandbox::of_user("tty", "tty; stty size");
    sandbox.config["process"]["terminal"] = json!(true);
    sandbox.config["process"]["consoleSize"] = json!({"height": 11, "width": 22});
    let socket = ConsoleSocket::listen(sandbox.dir.join("tty"));
    let call = sandbox.bundle_call("run").args(["--detach", "--console-socket"]).arg(&socket.path);
    call.arg(&sandbox.id).output().ok();
    let text = socket.receive().read_to_end();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["/dev/pts/0", "11", "22"]);
}

#[test]
fn ranges_are_mapped_by_the_helpers() {
    need_helpers!();
    let mut sandbox = Sandbox::of_user("ranges", "sleep 100");
    sandbox.map_range();
    sandbox.config["process"]["user"] = json!({"uid": 1000, "gid": 7, "additionalGids": [8]});
    sandbox.run_detached();
    let pid = sandbox.pid();
    assert_eq!(status(pid, "Uid:"), (SUBORDINATE + 999).to_string());
    assert_eq!(status(pid, "Groups:"), (SUBORDINATE + 7).to_string());
    let report = sandbox.exec_call(&["--user", "1:2"]).args(["/guest", "report"]).output();
    let report = report.ok().json();
    assert_eq!(report["uid_map"], json!([[0, UID, 1], [1, SUBORDINATE, COUNT]]));
    assert_eq!(report["gid_map"], report["uid_map"]);
    assert_eq!(report.text("/status/Uid"), "1 1 1 1");
    assert_eq!(report.text("/status/Gid"), "2 2 2 2");
    sandbox
        .exec_call(&["--user", "65537"])
        .args(["/bin/true"])
        .output()
        .fails(255, &["process.user.uid: become user 65537", "linux.uidMappings"]);
}

#[test]
fn the_containers_root_may_be_a_subordinate_id() {
    need_helpers!();
    let mut sandbox = Sandbox::of_user("subordinate", "echo made >/tmp/file; sleep 100");
    let maps = json!([{"containerID": 0, "hostID": SUBORDINATE, "size": 10}]);
    sandbox.config["linux"]["uidMappings"] = maps.clone();
    sandbox.config["linux"]["gidMappings"] = maps;
    sandbox.config["process"]["oomScoreAdj"] = json!(300);
    sandbox.give_rootfs(SUBORDINATE);
    sandbox.run_detached();
    let pid = sandbox.pid();
    assert_eq!(status(pid, "Uid:"), SUBORDINATE.to_string());
    let score = |path: String| fs::read_to_string(path).unwrap().trim().to_owned();
    assert_eq!(score(format!("/proc/{pid}/oom_score_adj")), "300");
    wait_until("the file is there", || sandbox.rootfs().join("tmp/file").exists());
    let file = fs::metadata(sandbox.rootfs().join("tmp/file")).unwrap();
    assert_eq!(file.uid(), SUBORDINATE);
    sandbox.exec(&["cat", "/proc/self/oom_score_adj"]).ok().prints("300");
}

#[test]
fn missing_helpers_are_named_with_their_package() {
    need_user!();
    let mut sandbox = Sandbox::of_user("helperless", "true");
    sandbox.map_range();
    let empty = sandbox.dir.join("calls");
    let path = |wrapper: &str| format!("{wrapper} env PATH={} \"$@\"", empty.display());
    sandbox.wrapper = Some(path(&format!("exec {}", user::as_user().display())));
    sandbox.run().fails(
        1,
        &["linux.uidMappings", "newuidmap is needed", "not on the PATH", "apt install uidmap"],
    );
    let checked = sandbox.bare_call().arg("check").arg(sandbox.bundle()).output().exits_with(1);
    assert!(checked.stdout.contains("newuidmap"), "{}", checked.stdout);
}

#[test]
fn refused_ranges_are_told_in_the_words_of_etc_subuid() {
    need_helpers!();
    let mut sandbox = Sandbox::of_user("refused", "true");
    sandbox.map_range();
    for (property, file) in [("uidMappings", "/etc/subuid"), ("gidMappings", "/etc/subgid")] {
        let old = sandbox.config["linux"][property].clone();
        sandbox.config["linux"][property][1]["hostID"] = json!(3_000_000);
        let line = format!("\"{NAME}:3000000:{COUNT}\"");
        sandbox.run().fails(1, &[&format!("linux.{property}"), "not allowed", file, &line]);
        sandbox.config["linux"][property] = old;
    }
    sandbox.wrapper =
        Some(format!("exec {} setpriv --no-new-privs \"$@\"", user::as_user().display()));
    sandbox.run().fails(1, &["linux.uidMappings: newuidmap refuses", "no_new_privs"]);
}

#[test]
fn what_a_user_may_not_have_is_refused_by_name() {
    need_user!();
    let mut sandbox = Sandbox::of_user("refusals", "true");
    let original = sandbox.config.clone();
    let no_user = |config: &mut Value| {
        remove_namespace(config, "user");
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    };
    type Change<'a> = &'a dyn Fn(&mut Value);
    let changes: [(Change, &[&str]); 9] = [
        (&no_user, &["linux.namespaces", "{\"type\": \"user\"}", "spec --rootless"]),
        (
            &|config| config["linux"]["uidMappings"][0]["containerID"] = json!(5),
            &["linux.uidMappings: containerID 0 must be mapped"],
        ),
        (
            &|config| config["process"]["user"]["additionalGids"] = json!([5]),
            &["process.user.additionalGids", "newgidmap"],
        ),
        (&|config| config["process"]["user"]["uid"] = json!(5), &["process.user.uid"]),
        (
            &|config| {
                config["mounts"][5] =
                    json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
            },
            &["mounts[5] (/sys)", "network namespace", "bind-mount"],
        ),
        (&|config| remove_namespace(config, "ipc"), &["(/dev/mqueue)", "IPC namespace"]),
        (&|config| remove_namespace(config, "pid"), &["(/proc)", "PID namespace"]),
        (&|config| config["process"]["oomScoreAdj"] = json!(-1000), &["process.oomScoreAdj"]),
        (
            &|config| config["linux"]["cgroupsPath"] = json!("/ultari-not-ours/x"),
            &["linux.cgroupsPath", "EACCES", "delegated"],
        ),
    ];
    for (change, texts) in changes {
        sandbox.config = original.clone();
        change(&mut sandbox.config);
        sandbox.run().fails(1, texts);
    }
}

#[test]
fn the_hosts_mount_options_stay() {
    need_user!();
    let mut sandbox = Sandbox::of_user("locked", "true");
    sandbox.wrapper = Some(format!(
        "exec unshare --mount --propagation private sh -c \
         'mount -t tmpfs -o nosuid,nodev locked /mnt && exec {} \"$@\"' sh \"$@\"",
        user::as_user().display()
    ));
    sandbox.mount(bind("/mnt", "/mnt", &["bind", "ro", "nosuid"]));
    sandbox.run().ok();
    let last = sandbox.config["mounts"].as_array().unwrap().len() - 1;
    sandbox.config["mounts"][last] = bind("/mnt", "/mnt", &["bind", "suid", "dev"]);
    sandbox.run().fails(1, &["(/mnt)", "can't be taken off"]);
}

#[test]
fn root_in_a_user_namespace_needs_none_for_the_container() {
    need_helpers!();
    let namespace = UserNamespace::new();
    let mut sandbox = Sandbox::of_user("nested", "sleep 100");
    let mut nested = sandbox.config.clone();
    sandbox.wrapper = Some(namespace.wrapper());
    remove_namespace(&mut sandbox.config, "user");
    let linux = sandbox.config["linux"].as_object_mut().unwrap();
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    linux.insert(
        "devices".into(),
        json!([{"path": "/dev/full", "type": "c", "major": 1, "minor": 7}]),
    );
    linux.insert("sysctl".into(), json!({"kernel.msgmax": "4321"}));
    sandbox.config["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    sandbox.run_detached();
    let pid = sandbox.pid();
    assert_eq!(status(pid, "Uid:"), (SUBORDINATE + 4).to_string());
    let report = sandbox.exec(&["/guest", "report", "read /proc/sys/kernel/msgmax"]).ok().json();
    assert_eq!(report.text("/status/Groups"), "7");
    assert_eq!(report.texts("/actions"), ["ok 4321\n"]);
    let seen = sandbox.ultari(["ps", "--format", "json", &sandbox.id]).ok().json();
    assert_eq!(seen, json!([pid]));
    sandbox.delete_forced().ok();
    // Ids of its own user namespace it may map further, and no others.
    let maps = json!([{"containerID": 0, "hostID": 10, "size": 10}]);
    nested["linux"]["uidMappings"] = maps.clone();
    nested["linux"]["gidMappings"] = maps;
    sandbox.config = nested;
    sandbox.give_rootfs(SUBORDINATE + 9);
    sandbox.run_detached();
    assert_eq!(status(sandbox.pid(), "Uid:"), (SUBORDINATE + 9).to_string());
    sandbox.exec(&["cat", "/proc/self/uid_map"]).ok();
    sandbox.delete_forced().ok();
    sandbox.config["linux"]["uidMappings"][0]["hostID"] = json!(70000);
    sandbox.run().fails(1, &["linux.uidMappings", "/proc/self/uid_map"]);
}

#[test]
fn root_in_a_user_namespace_keeps_records_where_its_user_does() {
    need_helpers!();
    let namespace = UserNamespace::new();
    let mut sandbox = Sandbox::of_user("records", "true");
    remove_namespace(&mut sandbox.config, "user");
    for maps in ["uidMappings", "gidMappings"] {
        sandbox.config["linux"].as_object_mut().unwrap().remove(maps);
    }
    sandbox.write_config();
    sandbox.wrapper = Some(namespace.wrapper());
    let run = |user: &str| {
        let call =
            sandbox.bare_call().env("XDG_RUNTIME_DIR", &sandbox.root().display().to_string());
        let call = call.env("USER", user).args(["run", "--bundle"]).arg(sandbox.bundle());
        call.arg(&sandbox.id).output()
    };
    run(NAME).ok();
    fs::remove_dir(sandbox.root().join("ultari")).unwrap();
    run("root").fails(1, &["/run/ultari"]);
}

#[test]
fn a_network_of_its_own_comes_with_its_sysctls_and_sysfs() {
    need_user!();
    let mut sandbox = Sandbox::of_user("net", "");
    set_namespace(&mut sandbox.config, "network", None);
    sandbox.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "81"});
    sandbox.config["mounts"][5] =
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]});
    sandbox.config["mounts"].as_array_mut().unwrap().pop();
    let report = sandbox.probe();
    assert_eq!(report.texts("/interfaces"), ["lo"]);
    let read = sandbox.attempt(&["read /proc/sys/net/ipv4/ip_unprivileged_port_start"]);
    assert_eq!(read, ["ok 81\n"]);
}

#[test]
fn devices_are_the_hosts() {
    need_user!();
    let mut sandbox = Sandbox::of_user("devices", "");
    sandbox.config["linux"]["devices"] = json!([
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600}
    ]);
    let seen = sandbox.attempt(&["stat /dev/zero", "open rw /dev/null", "stat /dev/pipe"]);
    assert!(seen[0].starts_with("ok c 1:5"), "{seen:?}");
    assert_eq!(seen[1], "ok");
    assert!(seen[2].starts_with("ok p"), "{seen:?}");
    sandbox.config["linux"]["devices"] =
        json!([{"path": "/dev/nothing", "type": "c", "major": 1, "minor": 3}]);
    sandbox.run().fails(1, &["linux.devices (/dev/nothing)", "none can be made"]);
}

#[test]
fn hooks_have_the_users_rights_and_no_more() {
    need_user!();
    let mut sandbox = Sandbox::of_user("hooks", "true");
    let seen = sandbox.root().join("seen");
    let hook = |name: &str| {
        let script = format!("id -u >>{}; echo {name} >>{0}", seen.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    sandbox.config["hooks"] = json!({
        "createRuntime": hook("runtime"),
        "createContainer": hook("container"),
        "poststop": hook("poststop"),
    });
    sandbox.run().ok();
    let text = fs::read_to_string(&seen).unwrap();
    fs::remove_file(&seen).unwrap();
    // The second one runs in the container's user namespace.
    let wanted = [&UID.to_string(), "runtime", "0", "container", &UID.to_string(), "poststop"];
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
}

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

#[test]
fn another_users_containers_are_out_of_reach() {
    need_user!();
    let sandbox = Sandbox::of_user("mine", "sleep 100");
    sandbox.run_detached();
    fs::set_permissions(sandbox.root(), fs::Permissions::from_mode(0o700)).unwrap();
    let stranger = format!("exec setpriv --reuid {} --regid {0} --clear-groups \"$@\"", UID + 1);
    let mut other = Sandbox::new("theirs");
    other.program = sandbox.program.clone();
    for command in ["state", "start", "kill", "delete", "pause", "ps"] {
        let call = other.bare_call().arg("--root").arg(sandbox.root()).args([command, &sandbox.id]);
        call.wrapped(&stranger).output().fails(1, &["EACCES", "another user's"]);
    }
    // Root is no stranger anywhere.
    let call = other.bare_call().arg("--root").arg(sandbox.root());
    call.args(["exec", &sandbox.id, "cat", "/proc/self/uid_map"]).output().ok();
}

#[test]
fn records_are_in_the_users_runtime_folder() {
    need_user!();
    let mut sandbox = Sandbox::of_user("xdg", "true");
    sandbox.write_config();
    let folder = sandbox.root();
    let wrapper = sandbox.wrapper.clone().unwrap();
    let call = |sandbox: &Sandbox| {
        sandbox.bare_call().args(["run", "--bundle"]).arg(sandbox.bundle()).arg(&sandbox.id)
    };
    call(&sandbox).env("XDG_RUNTIME_DIR", &folder.display().to_string()).output().ok();
    let made = fs::metadata(folder.join("ultari")).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (UID, 0o1700), "not to be tidied away");
    fs::remove_dir(folder.join("ultari")).unwrap();
    sandbox.wrapper = Some(format!("unset XDG_RUNTIME_DIR; {wrapper}"));
    let usual = format!("/run/user/{UID}/ultari");
    call(&sandbox).output().fails(1, &[&usual, "--root", "XDG_RUNTIME_DIR"]);
}

/// So Podman without root calls us: as root of its user namespace, and without USER.
#[test]
fn root_of_a_user_namespace_has_the_users_records() {
    let sandbox = Sandbox::new("nsroot");
    for (user, place) in [
        ("env -u USER", "/run/user/1/ultari"),
        ("env USER=ann", "/run/user/1/ultari"),
        ("env USER=root", "/run/ultari"),
    ] {
        let call =
            sandbox.bare_call().env("XDG_RUNTIME_DIR", "/run/user/1").args(["state", "none"]);
        let wrapper = format!("exec unshare --user --map-root-user {user} \"$@\"");
        call.wrapped(&wrapper).output().fails(1, &[&format!("(in {place})")]);
    }
    let call = sandbox.bare_call().env("XDG_RUNTIME_DIR", "/run/user/1").args(["state", "none"]);
    call.wrapped("exec env -u USER \"$@\"").output().fails(1, &["(in /run/ultari)"]);
}

#[test]
fn switched_off_user_namespaces_are_told_with_the_sysctl() {
    need_user!();
    let mut sandbox = Sandbox::of_user("off", "true");
    // The limit is that of the caller's own user namespace.
    sandbox.wrapper = Some(format!(
        "exec {} unshare --user --map-root-user sh -c \
         'echo 0 >/proc/sys/user/max_user_namespaces; exec \"$@\"' sh \"$@\"",
        user::as_user().display()
    ));
    for property in ["uidMappings", "gidMappings"] {
        sandbox.config["linux"][property][0]["hostID"] = json!(0);
    }
    sandbox.run().fails(1, &["clone3", "user.max_user_namespaces=0"]);
    sandbox.wrapper = Some(format!("exec {} \"$@\"", user::as_user().display()));
}

#[test]
fn a_pod_shares_the_namespaces_of_its_first_container() {
    need_user!();
    let first = {
        let mut first = Sandbox::of_user("pod", "sleep 100");
        set_namespace(&mut first.config, "network", None);
        first
    };
    first.run_detached();
    let pid = first.pid();
    let mut second = Sandbox::of_user("member", "sleep 100");
    let linux = second.config["linux"].as_object_mut().unwrap();
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    let shared = [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("pid", "pid")];
    for (kind, name) in shared {
        set_namespace(&mut second.config, kind, Some(&format!("/proc/{pid}/ns/{name}")));
    }
    second.config["process"]["oomScoreAdj"] = json!(200);
    second.run_detached();
    for (_, name) in shared {
        let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(link(second.pid()), link(pid), "{name}");
    }
    let seen = second.exec(&["cat", "/proc/self/oom_score_adj"]).ok();
    assert_eq!(seen.stdout.trim(), "200");
    let own = second.ultari(["ps", "--format", "json", &second.id]).ok().json();
    assert_eq!(own, json!([second.pid()]), "not the first one's");
    second.delete_forced().ok();
    assert_eq!(first.status(), "running");
}
