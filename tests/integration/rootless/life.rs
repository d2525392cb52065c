//! The config of `spec`, the commands of a container's life, its terminal and hooks, pods, and the
//! user's records.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use super::need_user;
use crate::support::user::{NAME, UID};
use crate::support::{
    ConsoleSocket, Json, Sandbox, bind, own_namespace, remove_namespace, set_namespace, wait_until,
};

#[test]
fn the_config_of_spec_runs_as_it_is() {
    need_user!();
    let mut sandbox = Sandbox::of_user("spec", "");
    let report = sandbox.probe();
    sandbox.bare_call().arg("check").arg(sandbox.bundle()).output().ok();
    assert_eq!(report["uid_map"], json!([[0, UID, 1]]));
    assert_eq!(report["gid_map"], json!([[0, UID, 1]]));
    assert_eq!(report["pid"], 1);
    let own = own_namespace("net");
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
