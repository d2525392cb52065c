//! Every namespace type: new, joined by path, shared with the host; maps and clock offsets.

use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::support::{
    Json, Sandbox, host, own_namespace, remove_namespace, set_namespace, wait_until,
};

/// Type in config.json, name in /proc/PID/ns.
const KINDS: &[(&str, &str)] = &[
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// A process that holds namespaces of its own, which containers can join.
pub struct Holder {
    child: Child,
}

impl Holder {
    /// `flags` are options of unshare(1).
    pub fn new(flags: &[&str]) -> Holder {
        let mut command = Command::new("/usr/bin/unshare");
        command.args(flags).args(["/bin/sleep", "600"]).stdin(Stdio::null()).stdout(Stdio::null());
        let child = host().spawn(&mut command);
        let holder = Holder { child };
        wait_until("the holder sleeps", || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", holder.pid()));
            name.is_ok_and(|name| name == "sleep\n")
        });
        holder
    }

    /// The pid of the holder.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The path of a namespace, by its name in /proc/PID/ns.
    pub fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.pid())
    }

    fn inode(&self, name: &str) -> String {
        std::fs::read_link(self.path(name)).unwrap().display().to_string()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        host().forget(self.child.id());
    }
}

#[test]
fn new_namespaces_are_not_the_hosts() {
    let mut sandbox = Sandbox::new("new");
    for (kind, _) in KINDS {
        set_namespace(&mut sandbox.config, kind, None);
    }
    let report = sandbox.probe();
    for (kind, name) in KINDS {
        assert_ne!(report["namespaces"][name], own_namespace(name), "{kind}");
    }
    assert_eq!(report["namespaces"]["user"], own_namespace("user"));
    assert_eq!(report["pid"], 1);
    assert_eq!(report.texts("/interfaces"), ["lo"]);
}

#[test]
fn loopback_is_up_in_a_new_network_namespace() {
    let mut sandbox = Sandbox::with_script("lo", "cat /sys/class/net/lo/flags");
    let flags = sandbox.run().ok().stdout;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "IFF_UP");
    sandbox
        .script("echo hi | nc -l -p 7777 & n=0; until sleep 1 | nc 127.0.0.1 7777 || [ $n = 50 ]; do n=$((n+1)); done");
    sandbox.run().ok().prints("hi");
}

#[test]
fn namespaces_not_listed_are_the_hosts() {
    for (kind, name) in KINDS.iter().filter(|(kind, _)| *kind != "mount") {
        let mut sandbox = Sandbox::new("shared");
        remove_namespace(&mut sandbox.config, kind);
        if *kind == "uts" {
            // In the host's namespace it would be the host's, so it is refused there.
            sandbox.config.as_object_mut().unwrap().remove("hostname");
        }
        let report = sandbox.probe();
        assert_eq!(report["namespaces"][name], own_namespace(name), "{kind}");
    }
}

#[test]
fn each_namespace_can_be_joined_by_path() {
    let flags = ["--net", "--ipc", "--uts", "--cgroup"];
    let holder = Holder::new(&flags);
    for (kind, name) in
        KINDS.iter().filter(|(_, name)| ["net", "ipc", "uts", "cgroup"].contains(name))
    {
        let mut sandbox = Sandbox::new("join");
        set_namespace(&mut sandbox.config, kind, Some(&holder.path(name)));
        let report = sandbox.probe();
        assert_eq!(report["namespaces"][name], holder.inode(name), "{kind}");
    }
    // All at once.
    let mut sandbox = Sandbox::new("joinall");
    for (kind, name) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        set_namespace(&mut sandbox.config, kind, Some(&holder.path(name)));
    }
    let report = sandbox.probe();
    for name in ["net", "ipc", "uts"] {
        assert_eq!(report["namespaces"][name], holder.inode(name));
    }
}

#[test]
fn pid_namespace_of_another_container_can_be_joined() {
    let first = Sandbox::with_script("first", "exec sleep 100");
    first.run_detached();
    let path = format!("/proc/{}/ns/pid", first.pid());
    let mut second = Sandbox::new("second");
    set_namespace(&mut second.config, "pid", Some(&path));
    second.script("ps -o pid,args");
    let output = second.run().ok();
    assert!(output.stdout.contains("sleep 100"), "{}", output.stdout);
    let report = second.probe();
    assert_eq!(
        report["namespaces"]["pid"],
        std::fs::read_link(&path).unwrap().display().to_string()
    );
    assert_ne!(report["pid"], 1);
    assert_eq!(first.status(), "running");
}

#[test]
fn processes_left_in_a_joined_pid_namespace_end_with_their_container() {
    let first = Sandbox::with_script("host", "exec sleep 100");
    first.run_detached();
    let mut second = Sandbox::with_script("guest", "sleep 101 & sleep 102 & exit 4");
    set_namespace(&mut second.config, "pid", Some(&format!("/proc/{}/ns/pid", first.pid())));
    second.run().exits_with(4);
    second.expect_nothing_left();
    assert_eq!(first.status(), "running");
}

#[test]
fn mount_namespace_can_be_joined() {
    let first = Sandbox::with_script("mntfirst", "exec sleep 100");
    first.run_detached();
    let path = format!("/proc/{}/ns/mnt", first.pid());
    let mut second = Sandbox::new("mntsecond");
    set_namespace(&mut second.config, "mount", Some(&path));
    // Its /proc shows the first container's PID namespace.
    set_namespace(&mut second.config, "pid", Some(&path.replace("mnt", "pid")));
    // The rootfs is prepared already: nothing is to be mounted there again.
    second.config["mounts"] = json!([]);
    for list in ["maskedPaths", "readonlyPaths"] {
        second.config["linux"].as_object_mut().unwrap().remove(list);
    }
    second.args(&["/guest", "report"]);
    second.config["root"]["path"] = json!("/");
    let output = second.run();
    if output.code == 0 {
        let inode = std::fs::read_link(&path).unwrap().display().to_string();
        assert_eq!(output.json()["namespaces"]["mnt"], inode);
    } else {
        // Refusing is runc's way as well, as long as it says what and why.
        output.fails(1, &["mount"]);
    }
    assert_eq!(first.status(), "running");
}

#[test]
fn time_offsets() {
    let mut sandbox =
        Sandbox::with_script("time", "cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets");
    set_namespace(&mut sandbox.config, "time", None);
    sandbox.config["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1000000, "nanosecs": 5}, "monotonic": {"secs": 2000000}});
    let output = sandbox.run().ok();
    let uptime: u64 = output.stdout.lines().next().unwrap().parse().unwrap();
    assert!((1_000_000..2_000_000).contains(&uptime), "{uptime}");
    let words: Vec<&str> = output.stdout.split_whitespace().skip(1).collect();
    assert_eq!(words, ["monotonic", "2000000", "0", "boottime", "1000000", "5"]);
}

#[test]
fn time_offsets_need_a_time_namespace() {
    let mut sandbox = Sandbox::with_script("notime", "exit 0");
    sandbox.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1000}});
    sandbox.run().fails(1, &["time"]);
}

/// Maps 65536 ids from 100000 on, to whom the rootfs belongs.
pub fn with_user_namespace(sandbox: &mut Sandbox) {
    set_namespace(&mut sandbox.config, "user", None);
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    sandbox.config["linux"]["uidMappings"] = map.clone();
    sandbox.config["linux"]["gidMappings"] = map;
    for path in ["", "dev", "etc", "mnt", "proc", "sys", "tmp"] {
        chown(sandbox.rootfs().join(path), Some(100000), Some(100000)).unwrap();
    }
}

#[test]
fn user_namespace_with_maps() {
    let mut sandbox = Sandbox::new("userns");
    with_user_namespace(&mut sandbox);
    let report = sandbox.probe();
    assert_ne!(report["namespaces"]["user"], own_namespace("user"));
    assert_eq!(report["uid_map"], json!([[0, 100000, 65536]]));
    assert_eq!(report["gid_map"], json!([[0, 100000, 65536]]));
    assert_eq!(report["status"]["Uid"], "0 0 0 0");
    let outcomes = sandbox.attempt(&[
        "mkdir /tmp/made",
        "open rw /dev/null",
        "stat /dev/null",
        "chown /tmp/made 7",
    ]);
    assert_eq!(outcomes[0], "ok");
    assert_eq!(outcomes[1], "ok", "devices are bound where they can't be made");
    assert!(outcomes[2].starts_with("ok c 1:3"), "{outcomes:?}");
    assert_eq!(outcomes[3], "ok");
    let made = std::fs::metadata(sandbox.rootfs().join("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100007, 100007));
}

#[test]
fn user_namespace_brings_capabilities_that_the_caller_lacks() {
    let mut sandbox = Sandbox::new("usercaps");
    with_user_namespace(&mut sandbox);
    let set = json!(["CAP_SYS_RESOURCE", "CAP_KILL"]);
    sandbox.config["process"]["capabilities"] =
        json!({"bounding": set, "effective": set, "permitted": set});
    let report = sandbox.probe();
    for name in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(report["status"][name], "0000000001000020", "{name}");
    }
}

#[test]
fn user_namespace_with_several_maps_and_a_user_in_it() {
    let mut sandbox = Sandbox::new("maps");
    with_user_namespace(&mut sandbox);
    let map = json!([
        {"containerID": 0, "hostID": 100000, "size": 1000},
        {"containerID": 1000, "hostID": 0, "size": 1}
    ]);
    sandbox.config["linux"]["uidMappings"] = map.clone();
    sandbox.config["linux"]["gidMappings"] = map;
    sandbox.config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5]});
    let report = sandbox.probe();
    assert_eq!(report["uid_map"], json!([[0, 100000, 1000], [1000, 0, 1]]));
    assert_eq!(report["status"]["Uid"], "1000 1000 1000 1000");
}

#[test]
fn user_namespace_can_be_joined() {
    let first = {
        let mut sandbox = Sandbox::with_script("ufirst", "exec sleep 100");
        with_user_namespace(&mut sandbox);
        sandbox.run_detached();
        sandbox
    };
    let pid = first.pid();
    let mut second = Sandbox::new("usecond");
    with_user_namespace(&mut second);
    for list in ["uidMappings", "gidMappings"] {
        second.config["linux"].as_object_mut().unwrap().remove(list);
    }
    set_namespace(&mut second.config, "user", Some(&format!("/proc/{pid}/ns/user")));
    set_namespace(&mut second.config, "network", Some(&format!("/proc/{pid}/ns/net")));
    let report = second.probe();
    for name in ["user", "net"] {
        let inode = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(report["namespaces"][name], inode.display().to_string());
    }
    assert_eq!(report["uid_map"], json!([[0, 100000, 65536]]));
}

#[test]
fn user_namespace_without_maps_is_an_error() {
    let mut sandbox = Sandbox::with_script("nomaps", "exit 0");
    set_namespace(&mut sandbox.config, "user", None);
    sandbox.run().fails(1, &["ap"]);
}

#[test]
fn a_user_that_is_not_mapped_is_an_error() {
    let mut sandbox = Sandbox::with_script("unmapped", "exit 0");
    with_user_namespace(&mut sandbox);
    sandbox.config["process"]["user"] = json!({"uid": 70000, "gid": 70000});
    let output = sandbox.run();
    assert!(output.code == 1 && output.stderr.contains("70000"), "{output:?}");
}

#[test]
fn cgroup_namespace_shows_the_container_at_the_root() {
    let mut sandbox = Sandbox::new("cgroupns");
    set_namespace(&mut sandbox.config, "cgroup", None);
    let report = sandbox.probe();
    let cgroups = report.texts("/cgroups");
    assert!(cgroups.iter().all(|line| line.ends_with(":/")), "{cgroups:?}");
}
