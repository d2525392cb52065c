//! Limits and device rules, proved by exceeding them.

use super::*;

#[test]
fn the_pids_limit_refuses_a_fork() {
    let test = "pids";
    if !offers(test, "pids", "pids") {
        return;
    }
    let place = Place::new(test);
    let script = "sleep 100 & sleep 100 & sleep 100 & sleep 100 & kill $!";
    let mut cgroup = place.create(r#"{"pids": {"limit": 3}}"#);
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "3");
    assert!(!run(&cgroup, script).success(), "the fourth of three processes was allowed");
    cgroup.kill().unwrap();
    cgroup.apply(&resources(r#"{"pids": {"limit": -1}}"#)).unwrap();
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "max");
    assert!(run(&cgroup, script).success());
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn the_memory_limit_ends_who_exceeds_it() {
    let test = "memory";
    if !offers(test, "memory", "memory") {
        return;
    }
    let place = Place::new(test);
    let mut cgroup = place.create(r#"{"memory": {"limit": 16777216, "swap": 16777216}}"#);
    let script = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    assert_eq!(run(&cgroup, script).signal(), Some(libc::SIGKILL), "64 MiB were had within 16 MiB");
    cgroup.apply(&resources(r#"{"memory": {"limit": 268435456, "swap": 268435456}}"#)).unwrap();
    assert!(run(&cgroup, script).success(), "the limit was not raised");
    cgroup
        .apply(&resources(
            r#"{"memory": {"limit": 33554432, "swap": 67108864, "reservation": 8388608}}"#,
        ))
        .unwrap();
    assert_eq!(value(&cgroup, "memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(value(&cgroup, "memory", "memory.soft_limit_in_bytes", "memory.low"), "8388608");
    let (v1_swap, v2_swap) = ("memory.memsw.limit_in_bytes", "memory.swap.max");
    let swap = if cgroup.v1_node("memory").is_some() { "67108864" } else { "33554432" };
    assert_eq!(value(&cgroup, "memory", v1_swap, v2_swap), swap);
    cgroup.apply(&resources(r#"{"memory": {"limit": -1}}"#)).unwrap();
    assert!(run(&cgroup, script).success(), "the limit was not taken away");
    let error = cgroup.apply(&resources(r#"{"memory": {"swap": 1000000}}"#)).unwrap_err();
    assert!(format!("{error:#}").contains("linux.resources.memory.swap"), "{error:#}");
    cgroup.remove().unwrap();
}

#[test]
fn the_cpu_quota_throttles() {
    let test = "cpu";
    if !offers(test, "cpu", "cpu") {
        return;
    }
    let place = Place::new(test);
    let mut cgroup = place.create(r#"{"cpu": {"shares": 512, "quota": 10000, "period": 50000}}"#);
    let shares = value(&cgroup, "cpu", "cpu.shares", "cpu.weight");
    assert_eq!(shares, if cgroup.v1_node("cpu").is_some() { "512" } else { "59" });
    let mut child = shell(&cgroup, "while :; do :; done");
    eventually("the busy loop is throttled", || {
        let stat = value(&cgroup, "cpu", "cpu.stat", "cpu.stat");
        stat.lines()
            .any(|line| line.strip_prefix("nr_throttled ").is_some_and(|count| count != "0"))
    });
    // The period alone leaves the quota, zeros leave everything, as docker's update sends them.
    cgroup.apply(&resources(r#"{"cpu": {"period": 100000, "quota": 0, "shares": 0}, "memory": {"limit": 0, "swap": 0}, "blockIO": {"weight": 0}}"#)).unwrap();
    let now = (
        value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max"),
        value(&cgroup, "cpu", "cpu.cfs_period_us", "cpu.max"),
    );
    let expected = if cgroup.v1_node("cpu").is_some() {
        ("10000", "100000")
    } else {
        ("10000 100000", "10000 100000")
    };
    assert_eq!((now.0.as_str(), now.1.as_str()), expected);
    cgroup.apply(&resources(r#"{"cpu": {"quota": 200000, "burst": 150000}}"#)).unwrap();
    assert_eq!(value(&cgroup, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"), "150000");
    cgroup.apply(&resources(r#"{"cpu": {"quota": -1, "burst": 0}}"#)).unwrap();
    cgroup.apply(&resources(r#"{"cpu": {"shares": 1024, "idle": 1}}"#)).unwrap();
    cgroup.apply(&resources(r#"{"cpu": {"shares": 2048, "idle": 0}}"#)).unwrap();
    assert_eq!(
        value(&cgroup, "cpu", "cpu.shares", "cpu.weight"),
        if cgroup.v1_node("cpu").is_some() { "2048" } else { "174" }
    );
    cgroup.kill().unwrap();
    child.wait().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn a_cpuset_binds_to_its_cpu() {
    let test = "cpuset";
    if !offers(test, "cpuset", "cpuset") {
        return;
    }
    let place = Place::new(test);
    let cgroup = place.create(r#"{"cpu": {"cpus": "0", "mems": "0"}}"#);
    assert!(run(&cgroup, r#"grep -qE '^Cpus_allowed_list:\s+0$' /proc/self/status"#).success());
    let error =
        place.locate("d").create(Some(&resources(r#"{"cpu": {"cpus": "4000"}}"#))).err().unwrap();
    assert!(format!("{error:#}").contains("linux.resources.cpu.cpus"), "{error:#}");
    // The second container of a parent inherits what the first one needed.
    let (other, _) = place.locate("e").create(None).unwrap();
    assert!(run(&other, "true").success());
    other.remove().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn devices_are_denied_unless_a_rule_allows_them() {
    let test = "devices";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let directory = std::env::temp_dir().join(&place.name);
    std::fs::create_dir(&directory).unwrap();
    let node = directory.join("kmsg");
    // 1:11 is /dev/kmsg, which root may read everywhere else.
    let made = Command::new("mknod").arg(&node).args(["c", "1", "11"]).status().unwrap();
    assert!(made.success());
    let node = node.display();
    let open = format!("exec 3<{node}");
    assert!(
        Command::new("/bin/sh").args(["-c", &open]).status().unwrap().success(),
        "opens without a cgroup"
    );
    let mut cgroup = place.create(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#);
    assert!(
        run(&cgroup, "exec 3<>/dev/null; head -c1 /dev/zero; head -c1 /dev/urandom").success(),
        "default devices"
    );
    assert!(
        run(&cgroup, &format!("mknod {node}2 c 1 11 && rm {node}2")).success(),
        "making a node"
    );
    assert!(!run(&cgroup, &open).success(), "denied");
    let read = r#"{"devices": [{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]}"#;
    cgroup.apply(&resources(read)).unwrap();
    assert!(run(&cgroup, &open).success(), "allowed for reading");
    assert!(!run(&cgroup, &format!("exec 3<>{node}")).success(), "not for writing");
    cgroup.apply(&resources(r#"{"memory": {"limit": 0}}"#)).unwrap();
    assert!(run(&cgroup, &open).success(), "an update without device rules leaves them");
    cgroup.apply(&resources(r#"{"devices": [{"allow": false}]}"#)).unwrap();
    assert!(!run(&cgroup, &open).success(), "denied again");
    cgroup.apply(&resources(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#)).unwrap();
    assert!(run(&cgroup, &format!("exec 3<>{node}")).success(), "all devices");
    cgroup.apply(&resources(r#"{"devices": [{"allow": false}]}"#)).unwrap();
    assert!(!run(&cgroup, &open).success(), "denied once more");
    cgroup.remove().unwrap();
    let (cgroup, _) = place.locate("c").create(None).unwrap();
    assert!(!run(&cgroup, &open).success(), "denied without any rules");
    cgroup.remove().unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn our_device_program_replaces_itself_and_leaves_others_alone() {
    let test = "bpf";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let (mut cgroup, _) = place.locate("c").create(None).unwrap();
    let Some(leaf) = cgroup.unified().filter(|_| cgroup.v1_node("devices").is_none()) else {
        return skipped(test, "devices are a v1 controller here");
    };
    let directory = leaf.open_directory().unwrap();
    let other = crate::sys::bpf::load_device_program(
        &devices::Policy::new(&[]).unwrap().program(),
        "someone_else",
    )
    .unwrap();
    crate::sys::bpf::attach_device_program(directory.as_fd(), other.as_fd(), None).unwrap();
    let attached = || crate::sys::bpf::attached_device_programs(directory.as_fd()).unwrap();
    let before = attached();
    assert_eq!(before.len(), 2);
    cgroup
        .apply(&resources(
            r#"{"devices": [{"allow": true, "type": "c", "major": 9, "access": "r"}]}"#,
        ))
        .unwrap();
    let after = attached();
    assert_eq!((after.len(), after[1]), (2, before[1]));
    assert_ne!(after[0], before[0]);
    cgroup.apply(&resources(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#)).unwrap();
    assert_eq!(attached(), [before[1]]);
    cgroup.remove().unwrap();
}

#[test]
fn a_limit_that_cannot_be_had_is_an_error_and_leaves_nothing() {
    let test = "refused";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let v2_only = place.locate("c").open().unwrap().v1_nodes().next().is_none();
    let mut cases = vec![
        (r#"{"memory": {"limit": 1000000, "swap": 999}}"#, "linux.resources.memory.swap"),
        (
            r#"{"cpu": {"shares": 1024}, "network": {"classID": 7}}"#,
            "linux.resources.network.classID",
        ),
        (
            r#"{"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}"#,
            "linux.resources.hugepageLimits",
        ),
        (r#"{"rdma": {"mlx5_7": {"hcaHandles": 1}}}"#, "linux.resources.rdma"),
        (r#"{"blockIO": {"leafWeight": 500}}"#, "linux.resources.blockIO.leafWeight"),
        (
            r#"{"devices": [{"allow": true, "type": "c", "access": "x"}]}"#,
            "linux.resources.devices[0].access",
        ),
        (r#"{"unified": {"../cgroup.procs": "1"}}"#, "linux.resources.unified"),
        (r#"{"unified": {"nothing.max": "1"}}"#, "linux.resources.unified"),
        (r#"{"cpu": {"realtimeRuntime": 950000}}"#, "linux.resources.cpu.realtimeRuntime"),
    ];
    if v2_only {
        cases.push((r#"{"memory": {"swappiness": 10}}"#, "linux.resources.memory.swappiness"));
        cases.push((
            r#"{"memory": {"disableOOMKiller": true}}"#,
            "linux.resources.memory.disableOOMKiller",
        ));
    }
    for (json, property) in cases {
        let error = place.locate("c").create(Some(&resources(json))).err().expect(json);
        let error = format!("{error:#}");
        // Where a controller is missing altogether, an earlier property of the case may say so.
        assert!(
            error.contains(property) || error.contains("needs the cgroup controller"),
            "{json}: {error}"
        );
        assert_eq!(place.left(), Vec::<PathBuf>::new(), "{json}");
    }
}

#[test]
fn what_engines_send_for_nothing_is_nothing() {
    let test = "no_op";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let json = r#"{"devices": [{"allow": false, "access": "rwm"}], "blockIO": {"weight": 0, "weightDevice": []}, "memory": {"limit": 0, "swap": 0, "reservation": 0, "disableOOMKiller": false},
        "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "", "realtimeRuntime": 0}, "network": {"classID": 0, "priorities": []}, "hugepageLimits": [], "rdma": {}, "unified": {}}"#;
    let (mut cgroup, warnings) = place.locate("c").create(Some(&resources(json))).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let warnings = cgroup.apply(&resources(r#"{"memory": {"kernel": 1048576}}"#)).unwrap();
    assert!(warnings[0].contains("linux.resources.memory.kernel"), "{warnings:?}");
    cgroup.remove().unwrap();
}

/// A disk that can be read, as its name and number.
fn disk() -> Option<(String, String, String)> {
    let disks = std::fs::read_dir("/sys/block").ok()?;
    disks.flatten().find_map(|disk| {
        let name = disk.file_name().into_string().ok()?;
        let number = std::fs::read_to_string(disk.path().join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        let real = !["loop", "ram", "zram", "dm-", "md"].iter().any(|kind| name.starts_with(kind));
        let there = Path::new("/dev").join(&name).exists();
        (real && there).then(|| (name, major.to_owned(), minor.to_owned()))
    })
}

#[test]
fn a_throttled_disk_is_read_slowly() {
    let test = "block_io";
    if !offers(test, "blkio", "io") {
        return;
    }
    let Some((name, major, minor)) = disk() else {
        return skipped(test, "no disk to read from");
    };
    if let Err(error) = std::fs::File::open(Path::new("/dev").join(&name)) {
        return skipped(
            test,
            &format!("/dev/{name} can't be read without a cgroup either: {error}"),
        );
    }
    let place = Place::new(test);
    let device = format!(r#""major": {major}, "minor": {minor}"#);
    let mut cgroup = place.create(&format!(
        r#"{{"blockIO": {{"weight": 500, "throttleReadBpsDevice": [{{{device}, "rate": 1048576}}], "throttleWriteIOPSDevice": [{{{device}, "rate": 100}}]}},
            "devices": [{{"allow": true, "type": "b", {device}, "access": "r"}}]}}"#
    ));
    let read = format!("exec dd if=/dev/{name} of=/dev/null bs=64k count=24 iflag=direct");
    let timed = |cgroup: &Cgroup| {
        let start = Instant::now();
        run(cgroup, &read).success().then(|| start.elapsed())
    };
    let slow = timed(&cgroup).expect("the disk is allowed for reading");
    assert!(slow > Duration::from_millis(900), "1.5 MiB at 1 MiB/s were read in {slow:?}");
    let (v1, v2) = ("blkio.throttle.read_bps_device", "io.max");
    assert!(value(&cgroup, "blkio", v1, v2).contains("1048576"));
    let lift = format!(r#"{{"blockIO": {{"throttleReadBpsDevice": [{{{device}, "rate": 0}}]}}}}"#);
    cgroup.apply(&resources(&lift)).unwrap();
    assert!(!value(&cgroup, "blkio", v1, v2).contains("1048576"));
    let bad = r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 1}]}}"#;
    let error = cgroup.apply(&resources(bad)).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("throttleReadBpsDevice[0]") && error.contains("no such device"),
        "{error}"
    );
    cgroup.remove().unwrap();
}

#[test]
fn huge_pages_are_limited_where_the_controller_is() {
    let test = "hugetlb";
    if !offers(test, "hugetlb", "hugetlb") {
        return;
    }
    let place = Place::new(test);
    let cgroup = place.create(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#);
    assert_eq!(
        value(&cgroup, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"),
        "4194304"
    );
    assert_eq!(
        value(&cgroup, "hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max"),
        "4194304"
    );
    cgroup.remove().unwrap();
}

#[test]
fn unified_files_are_written_as_they_are() {
    let test = "unified";
    if !offers(test, "-", "memory") {
        return;
    }
    let place = Place::new(test);
    let cgroup = place.create(r#"{"unified": {"memory.high": "50331648", "pids.max": "77"}}"#);
    let leaf = cgroup.unified().unwrap();
    assert_eq!(
        (leaf.text("memory.high").unwrap(), leaf.text("pids.max").unwrap()),
        ("50331648".into(), "77".into())
    );
    cgroup.remove().unwrap();
}
