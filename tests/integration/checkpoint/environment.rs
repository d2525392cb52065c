//! What a container is in: mounts from outside, namespaces, hooks, its name and its cgroup.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{
    COUNTER, checkpoint, count, counter, expect_to_go_on, needs_criu, restore, restore_call,
    wait_for_count,
};
use crate::namespaces::{Holder, with_user_namespace};
use crate::skip;
use crate::support::{HIERARCHIES, Run, Sandbox, bind, host, set_namespace, wait_until};

#[test]
fn mounts_from_outside_come_from_where_the_new_config_says() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("mounts", COUNTER);
    let folder = |name: &str| {
        let file = sandbox.file(&format!("{name}/file"), name);
        file.parent().unwrap().to_owned()
    };
    let (first, second) = (folder("first"), folder("second"));
    let single = sandbox.file("single", "one file");
    std::os::unix::fs::symlink("tmp", sandbox.rootfs().join("link")).unwrap();
    sandbox.mount(bind(&first, "/link/with space", &["bind", "ro"]));
    sandbox.mount(bind(&single, "/etc/single", &["bind"]));
    sandbox.mount(json!({"destination": "/var/cache", "type": "tmpfs", "source": "tmpfs"}));
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    sandbox.exec(&["/guest", "do", "write /var/cache/kept text"]).ok();
    checkpoint(&sandbox, &[]).ok();
    let mounts = sandbox.config["mounts"].as_array_mut().unwrap();
    let changed = mounts.iter_mut().find(|mount| mount["destination"] == "/link/with space");
    changed.unwrap()["source"] = json!(second);
    sandbox.write_config();
    restore(&sandbox, &[]).ok();
    sandbox.exec(&["/bin/cat", "/tmp/with space/file"]).ok().prints("second");
    sandbox.exec(&["/bin/cat", "/etc/single"]).ok().prints("one file");
    sandbox.exec(&["/bin/cat", "/var/cache/kept"]).ok().prints("text");
    sandbox.exec(&["/bin/touch", "/tmp/with space/new"]).exits_with(1);
}

#[test]
fn what_is_mounted_below_a_recursive_bind_comes_along() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("rbind", COUNTER);
    let outer = sandbox.file("outer/inner/below", "hidden").parent().unwrap().to_owned();
    let inner = sandbox.file("other/file", "seen").parent().unwrap().to_owned();
    sandbox.mount(bind(outer.parent().unwrap(), "/mnt", &["rbind"]));
    sandbox.write_config();
    // In a mount namespace of the calls' own: the host's has no such mount.
    let script = format!("mount --bind {} {} && exec \"$@\"", inner.display(), outer.display());
    let private =
        |run: Run| run.wrapped(&script).wrapped("exec unshare -m --propagation private \"$@\"");
    private(sandbox.bundle_call("run").args(["-d", &sandbox.id])).output().ok();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    private(restore_call(&sandbox, &["--detach"])).output().ok();
    sandbox.exec(&["/bin/cat", "/mnt/inner/file"]).ok().prints("seen");
}

#[test]
fn a_joined_network_namespace_is_joined_again() {
    needs_criu!();
    let holder = Holder::new(&["--net"]);
    let mut sandbox = Sandbox::with_script("netns", COUNTER);
    set_namespace(&mut sandbox.config, "network", Some(&holder.path("net")));
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    let other = Holder::new(&["--net"]);
    set_namespace(&mut sandbox.config, "network", Some(&other.path("net")));
    sandbox.write_config();
    restore(&sandbox, &[]).ok();
    let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(link(sandbox.pid() as u32), link(other.pid()));
    expect_to_go_on(&sandbox, 2);
}

#[test]
fn namespaces_shared_within_a_pod_are_joined_again() {
    needs_criu!();
    let holder = Holder::new(&["--net", "--ipc", "--uts"]);
    let mut sandbox = Sandbox::with_script("pod", COUNTER);
    sandbox.config.as_object_mut().unwrap().remove("hostname");
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        set_namespace(&mut sandbox.config, kind, Some(&holder.path(file)));
    }
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    let link = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(link(sandbox.pid() as u32, kind), link(holder.pid(), kind), "{kind}");
    }
}

#[test]
fn the_network_may_be_left_empty() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("empty-ns", COUNTER);
    let log = sandbox.dir.join("hooks");
    let hook = |kind: &str| {
        let script = format!("echo {kind} $(grep -o '\"pid\":[0-9]*') >>{}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        sandbox.config["hooks"][kind] = hook(kind);
    }
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &["--empty-ns", "network"]).ok();
    fs::write(&log, "").unwrap();
    restore(&sandbox, &["--empty-ns", "network"]).ok();
    // An engine's hook puts the network in at the restore.
    let pid = sandbox.pid();
    let hooks = fs::read_to_string(&log).unwrap();
    assert_eq!(hooks, format!("prestart \"pid\":{pid}\ncreateRuntime \"pid\":{pid}\n"));
}

#[test]
fn another_name_and_another_cgroup() {
    needs_criu!();
    let mut sandbox = counter("rename");
    checkpoint(&sandbox, &[]).ok();
    let reached = count(&sandbox);
    let old = sandbox.id.clone();
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}/other", sandbox.cgroup()));
    sandbox.write_config();
    sandbox.id = format!("{old}-b");
    restore(&sandbox, &[]).ok();
    expect_to_go_on(&sandbox, reached);
    let text = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    for line in text.lines().filter(|line| line.contains("ultari-test")) {
        assert!(line.ends_with(&format!("/{old}/other")), "{text}");
    }
    assert!(text.contains("/other"), "{text}");
    sandbox.delete_forced().ok();
    for hierarchy in HIERARCHIES.iter() {
        let left = hierarchy.join(&sandbox.cgroup()[1..]).parent().unwrap().join(&old);
        assert!(!left.exists(), "{}", left.display());
    }
    sandbox.id = old;
}

#[test]
fn a_scope_of_systemd_is_made_again() {
    needs_criu!();
    let systemd = Path::new("/run/systemd/system").exists();
    if !systemd || !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        skip!("no systemd, or no cgroup v2 alone");
    }
    let mut sandbox = Sandbox::with_script("scope", COUNTER);
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("system.slice:test:{}", sandbox.id));
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    sandbox.bundle_call("run").args(["-d", "--systemd-cgroup", &sandbox.id]).output().ok();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    let reached = count(&sandbox);
    restore(&sandbox, &["--systemd-cgroup"]).ok();
    expect_to_go_on(&sandbox, reached);
    let unit = format!("test-{}.scope", sandbox.id);
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    assert_eq!(cgroup.trim(), format!("0::/system.slice/{unit}"));
    let limit = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/{unit}/pids.max"));
    assert_eq!(limit.unwrap().trim(), "77");
    let mut call = Command::new("systemctl");
    let shown = host().output(call.args(["is-active", &unit])).unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "active");
}

#[test]
fn a_cgroup_namespace_and_a_view_of_the_cgroups() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("cgroupns", COUNTER);
    set_namespace(&mut sandbox.config, "cgroup", None);
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]
    }));
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    let view = |sandbox: &Sandbox| {
        let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max \
                      /sys/fs/cgroup/pids.max 2>/dev/null";
        sandbox.exec(&["/bin/sh", "-c", script]).stdout
    };
    let before = view(&sandbox);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    assert_eq!(view(&sandbox), before);
}

#[test]
fn a_user_namespace_with_its_maps() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script(
        "userns",
        "i=0; while true; do i=$((i + 1)); echo $i >>/tmp/count; sleep 0.05; done",
    );
    with_user_namespace(&mut sandbox);
    sandbox.run_detached();
    let count = |sandbox: &Sandbox| {
        let text = sandbox.exec(&["/bin/tail", "-n", "1", "/tmp/count"]).stdout;
        text.trim().parse::<u32>().unwrap_or(0)
    };
    wait_until("it counts", || count(&sandbox) > 2);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", sandbox.pid())).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>()[..2], ["0", "100000"]);
    let before = count(&sandbox);
    wait_until("it counts on", || count(&sandbox) > before);
}
