//! What a user may have and what is refused: id maps and their helpers, mounts, devices, namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::{need_helpers, need_user, status};
use crate::support::user::{self, COUNT, NAME, SUBORDINATE, UID};
use crate::support::{Json, Sandbox, bind, remove_namespace, set_namespace, wait_until};

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
