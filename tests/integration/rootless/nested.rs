//! Root in a user namespace: what it needs no further one for, and where its records are.

use std::fs;

use serde_json::json;

use super::{need_helpers, status};
use crate::support::user::{NAME, SUBORDINATE, UserNamespace};
use crate::support::{Json, Sandbox, remove_namespace, set_namespace};

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

/// Who comes from a network namespace of somebody else's can't come back to it.
#[test]
fn loopback_is_up_in_a_network_namespace_made_from_one_of_others() {
    need_helpers!();
    let namespace = UserNamespace::new();
    let mut sandbox = Sandbox::of_user("looped", "cat /proc/net/fib_trie");
    sandbox.wrapper = Some(namespace.wrapper());
    remove_namespace(&mut sandbox.config, "user");
    for maps in ["uidMappings", "gidMappings"] {
        sandbox.config["linux"].as_object_mut().unwrap().remove(maps);
    }
    set_namespace(&mut sandbox.config, "network", None);
    assert!(sandbox.run().ok().stdout.contains("127.0.0.1"));
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
