//! Limits are set and hold, controller by controller; those that can't be set are named.

use std::fs;

use serde_json::json;

use super::{MIB, disk, extra_device, has, is_v1, limit, limit_file, sleeper};
use crate::skip;
use crate::support::{Json, Sandbox};

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

/// How much there is to copy is the image's choice, and the runtime is who copies.
#[test]
fn what_is_copied_from_the_image_counts_as_the_containers_memory() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let mut sandbox = Sandbox::with_script("copied", "exit 0");
    sandbox.mount(json!({
        "destination": "/opt", "type": "tmpfs", "source": "t", "options": ["tmpcopyup"]
    }));
    std::fs::create_dir_all(sandbox.rootfs().join("opt")).unwrap();
    let file = sandbox.rootfs().join("opt/file");
    sandbox.config["linux"]["resources"]["memory"] = json!({"limit": 40 * MIB, "swap": 40 * MIB});
    std::fs::write(&file, vec![1; 10 << 20]).unwrap();
    sandbox.run().ok();
    std::fs::write(&file, vec![1; 80 << 20]).unwrap();
    let output = sandbox.run();
    assert!(output.code == 1 && output.stderr.contains("memory"), "{output:?}");
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
