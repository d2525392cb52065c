//! Limits: that they hold, where the cgroup is, and what is left of it.
//!
//! Written for both versions of cgroups: each limit is looked up where this host has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::skip;
use crate::support::{
    HIERARCHIES, Json, Sandbox, hierarchy, host, remove_namespace, set_namespace, wait_until,
};

/// The file of a limit: that of the v1 controller where it is mounted, else that of v2. None if
/// this host has neither.
fn limit_file(cgroup: &str, controller: &str, v1: &str, v2: &str) -> Option<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    if let Some(hierarchy) = hierarchy(controller) {
        return Some(hierarchy.join(relative).join(v1));
    }
    let v2_name = if controller == "blkio" { "io" } else { controller };
    let unified = HIERARCHIES.iter().find(|path| path.join("cgroup.controllers").exists())?;
    let offered = fs::read_to_string(unified.join("cgroup.controllers")).unwrap();
    let offered = offered.split_whitespace().any(|name| name == v2_name);
    offered.then(|| unified.join(relative).join(v2))
}

/// Whether limits of this controller can be tried here.
pub fn has(controller: &str) -> bool {
    limit_file("", controller, "", "").is_some()
}

pub fn is_v1(controller: &str) -> bool {
    hierarchy(controller).is_some()
}

/// A container that sleeps, with these `linux.resources` beside the usual ones.
pub fn sleeper(name: &str, resources: Value) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.args(&["/bin/sleep", "100"]);
    for (key, value) in resources.as_object().unwrap() {
        sandbox.config["linux"]["resources"][key] = value.clone();
    }
    sandbox
}

/// What a limit of the sandbox's container is set to.
#[track_caller]
pub fn limit(sandbox: &Sandbox, controller: &str, v1: &str, v2: &str) -> String {
    let file = limit_file(&sandbox.cgroup(), controller, v1, v2).expect(controller);
    let text =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.trim().to_owned()
}

const MIB: u64 = 1 << 20;

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
fn memory_limits_are_set() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let memory = json!({"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB});
    let sandbox = sleeper("memory", json!({"memory": memory}));
    sandbox.run_detached();
    let read = |v1, v2| limit(&sandbox, "memory", v1, v2);
    assert_eq!(read("memory.limit_in_bytes", "memory.max"), (64 * MIB).to_string());
    assert_eq!(read("memory.soft_limit_in_bytes", "memory.low"), (32 * MIB).to_string());
    // v1 counts memory and swap together, v2 swap alone.
    let swap = if is_v1("memory") { 96 * MIB } else { 32 * MIB };
    assert_eq!(read("memory.memsw.limit_in_bytes", "memory.swap.max"), swap.to_string());
}

#[test]
fn memory_beyond_the_limit_ends_the_container() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let mut sandbox = Sandbox::new("oom");
    sandbox.config["linux"]["resources"]["memory"] = json!({"limit": 40 * MIB, "swap": 40 * MIB});
    sandbox.args(&["/guest", "do", "alloc 10"]);
    sandbox.run().ok();
    sandbox.args(&["/guest", "do", "alloc 200"]);
    sandbox.run().exits_with(137);
    sandbox.expect_nothing_left();
}

#[test]
fn memory_beyond_the_limit_ends_an_exec_and_not_the_container() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let sandbox = sleeper("oomexec", json!({"memory": {"limit": 40 * MIB, "swap": 40 * MIB}}));
    sandbox.run_detached();
    sandbox.exec(&["/guest", "do", "alloc 200"]).exits_with(137);
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn an_unlimited_value_is_taken_for_no_limit() {
    if !has("memory") || !has("pids") || !has("cpu") {
        skip!("controllers are missing");
    }
    let sandbox = sleeper(
        "unlimited",
        json!({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1, "period": 100000}}),
    );
    sandbox.run_detached();
    let pids = limit(&sandbox, "pids", "pids.max", "pids.max");
    assert_eq!(pids, "max");
}

#[test]
fn a_memory_limit_that_is_too_low_to_start_is_explained() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let mut sandbox = Sandbox::with_script("tiny", "exit 0");
    sandbox.config["linux"]["resources"]["memory"] = json!({"limit": 4096, "swap": 4096});
    let output = sandbox.run();
    assert!(output.code == 1 && output.stderr.to_lowercase().contains("memory"), "{output:?}");
    sandbox.expect_nothing_left();
}

#[test]
fn pids_limit_refuses_to_fork() {
    if !has("pids") {
        skip!("no pids controller");
    }
    let mut sandbox = Sandbox::new("pids");
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 10});
    let outcome = sandbox.attempt(&["fork 50"]).remove(0);
    // The guest itself counts, and its threads if it had any.
    assert_eq!(outcome, "EAGAIN after 9");
}

#[test]
fn cpu_quota_is_set_and_throttles() {
    if !has("cpu") {
        skip!("no cpu controller");
    }
    let cpu = json!({"quota": 20000, "period": 100000, "shares": 512});
    let sandbox = sleeper("quota", json!({"cpu": cpu}));
    sandbox.run_detached();
    if is_v1("cpu") {
        assert_eq!(limit(&sandbox, "cpu", "cpu.cfs_quota_us", ""), "20000");
        assert_eq!(limit(&sandbox, "cpu", "cpu.cfs_period_us", ""), "100000");
        assert_eq!(limit(&sandbox, "cpu", "cpu.shares", ""), "512");
    } else {
        assert_eq!(limit(&sandbox, "cpu", "", "cpu.max"), "20000 100000");
        let weight: u64 = limit(&sandbox, "cpu", "", "cpu.weight").parse().unwrap();
        assert!((1..100).contains(&weight), "512 shares are less than the default: {weight}");
    }
    assert_eq!(sandbox.exec_attempt(&["burn 500"]), ["ok"]);
    let stat = limit(&sandbox, "cpu", "cpu.stat", "cpu.stat");
    let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap();
    assert!(throttled.parse::<u64>().unwrap() >= 2, "{stat}");
}

#[test]
fn cpuset_is_set_and_holds() {
    if !has("cpuset") {
        skip!("no cpuset controller");
    }
    let mut sandbox = Sandbox::new("cpuset");
    sandbox.config["linux"]["resources"]["cpu"] = json!({"cpus": "0", "mems": "0"});
    let report = sandbox.probe();
    assert_eq!(report.text("/status/Cpus_allowed_list"), "0");
    assert_eq!(report.text("/status/Mems_allowed_list"), "0");
    sandbox.config["linux"]["resources"]["cpu"] = json!({"cpus": "4000"});
    sandbox.run().fails(1, &["cpus"]);
    sandbox.expect_nothing_left();
}

#[test]
fn cpu_burst_and_idle() {
    if !has("cpu") {
        skip!("no cpu controller");
    }
    let cpu = json!({"quota": 20000, "period": 100000, "burst": 10000});
    let sandbox = sleeper("burst", json!({"cpu": cpu}));
    sandbox.run_detached();
    assert_eq!(limit(&sandbox, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"), "10000");
    sandbox.delete_forced().ok();
    let sandbox = sleeper("idle", json!({"cpu": {"idle": 1}}));
    sandbox.run_detached();
    assert_eq!(limit(&sandbox, "cpu", "cpu.idle", "cpu.idle"), "1");
}

/// A character device that is not among the default ones, and opens without further rights.
pub fn extra_device() -> Option<u32> {
    let misc = fs::read_to_string("/proc/misc").unwrap();
    let fuse = misc.lines().find(|line| line.ends_with(" fuse"))?;
    fuse.split_whitespace().next()?.parse().ok()
}

#[test]
fn devices_are_denied_unless_allowed() {
    let Some(minor) = extra_device() else { skip!("no /dev/fuse to try") };
    let mut sandbox = Sandbox::new("devices");
    let make = format!("mknod /tmp/device c 10 {minor}");
    let actions = [
        &make,
        "open r /tmp/device",
        "open w /tmp/device",
        "open rw /dev/null",
        "open r /dev/urandom",
    ];
    let outcomes = sandbox.attempt(&actions);
    assert_eq!(outcomes[1..], ["EPERM", "EPERM", "ok", "ok"], "{outcomes:?}");
    fs::remove_file(sandbox.rootfs().join("tmp/device")).unwrap();
    // Read and make, but not write.
    sandbox.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": minor, "access": "rm"}
    ]);
    let outcomes = sandbox.attempt(&actions);
    assert_eq!(outcomes, ["ok", "ok", "EPERM", "ok", "ok"]);
    fs::remove_file(sandbox.rootfs().join("tmp/device")).unwrap();
    // Everything, as of a privileged container.
    sandbox.config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    assert_eq!(sandbox.attempt(&actions), ["ok"; 5]);
}

#[test]
fn device_rules_count_in_their_order() {
    let Some(minor) = extra_device() else { skip!("no /dev/fuse to try") };
    let mut sandbox = Sandbox::new("order");
    let device = |allow: bool, access: &str| json!({"allow": allow, "type": "c", "major": 10, "minor": minor, "access": access});
    let all = json!({"allow": false, "access": "rwm"});
    let actions =
        [&format!("mknod /tmp/device c 10 {minor}"), "open r /tmp/device", "open w /tmp/device"];
    sandbox.config["linux"]["resources"]["devices"] =
        json!([all, device(true, "rwm"), device(false, "w")]);
    assert_eq!(sandbox.attempt(&actions), ["ok", "ok", "EPERM"]);
    fs::remove_file(sandbox.rootfs().join("tmp/device")).unwrap();
    sandbox.config["linux"]["resources"]["devices"] = json!([device(true, "rwm"), all]);
    assert_eq!(sandbox.attempt(&actions)[1..], ["EPERM", "EPERM"]);
}

/// Major and minor number of a whole disk, as throttling wants it.
pub fn disk() -> Option<String> {
    let all = || fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let of_kind = |kind| all().find(|entry| entry.file_name().to_string_lossy().starts_with(kind));
    let disk = ["vd", "sd", "nvme", "loop"].into_iter().find_map(of_kind)?;
    Some(fs::read_to_string(disk.path().join("dev")).unwrap().trim().to_owned())
}

#[test]
fn block_io_limits_are_set() {
    let Some(file) = limit_file("", "blkio", "blkio.throttle.read_bps_device", "") else {
        skip!("no blkio or io controller");
    };
    if is_v1("blkio") && !file.exists() {
        skip!("no I/O throttling in this kernel");
    }
    let Some(number) = disk() else { skip!("no disk to limit") };
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let block_io = json!({
        "throttleReadBpsDevice": rate(1 << 20), "throttleWriteBpsDevice": rate(2 << 20),
        "throttleReadIOPSDevice": rate(100), "throttleWriteIOPSDevice": rate(200)
    });
    let sandbox = sleeper("blockio", json!({"blockIO": block_io}));
    sandbox.run_detached();
    if is_v1("blkio") {
        let read = |file| limit(&sandbox, "blkio", file, "");
        assert_eq!(read("blkio.throttle.read_bps_device"), format!("{number} 1048576"));
        assert_eq!(read("blkio.throttle.write_bps_device"), format!("{number} 2097152"));
        assert_eq!(read("blkio.throttle.read_iops_device"), format!("{number} 100"));
        assert_eq!(read("blkio.throttle.write_iops_device"), format!("{number} 200"));
    } else {
        let line = limit(&sandbox, "io", "", "io.max");
        assert_eq!(line, format!("{number} rbps=1048576 wbps=2097152 riops=100 wiops=200"));
    }
}

#[test]
fn unified_properties_on_a_host_with_v1_are_an_error_or_set() {
    let sandbox = sleeper("unified", json!({"unified": {"memory.high": "100000000"}}));
    let output = sandbox.bundle_call("run").args(["-d", &sandbox.id]).output();
    if is_v1("memory") {
        let output = output.exits_with(1);
        assert!(
            output.stderr.contains("unified") || output.stderr.contains("memory.high"),
            "{output:?}"
        );
        sandbox.expect_nothing_left();
    } else {
        output.ok();
        assert_eq!(limit(&sandbox, "memory", "", "memory.high"), "99999744");
    }
}

#[test]
fn a_limit_without_its_controller_is_an_error_that_names_both() {
    for (controller, property, resources) in [
        ("rdma", "rdma", json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}})),
        ("net_cls", "classID", json!({"network": {"classID": 1048577}})),
        (
            "net_prio",
            "priorities",
            json!({"network": {"priorities": [{"name": "lo", "priority": 5}]}}),
        ),
    ] {
        if has(controller) {
            continue;
        }
        let sandbox = sleeper("missing", resources);
        sandbox.create().fails(1, &[property, controller]);
        sandbox.expect_nothing_left();
    }
}

#[test]
fn values_that_the_kernel_refuses_name_the_property() {
    for (controller, resources, name) in [
        ("cpu", json!({"cpu": {"quota": 5, "period": 100000}}), "quota"),
        ("cpu", json!({"cpu": {"period": 5, "quota": 5000}}), "period"),
        ("memory", json!({"memory": {"limit": 100 * MIB, "swap": 50 * MIB}}), "swap"),
        ("cpuset", json!({"cpu": {"mems": "900"}}), "mems"),
    ] {
        if !has(controller) {
            continue;
        }
        let sandbox = sleeper("refused", resources);
        sandbox.create().fails(1, &[name]);
        sandbox.expect_nothing_left();
    }
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
fn report_has_the_cgroups_of_v1_and_v2() {
    let mut sandbox = Sandbox::new("seen");
    let own = sandbox.cgroup();
    let report = sandbox.probe();
    let cgroups = report.texts("/cgroups");
    assert!(cgroups.iter().all(|line| line.ends_with(&own)), "{cgroups:?}");
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
