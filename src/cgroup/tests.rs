//! The kernel's side of it: limits are proved by exceeding them. These need root, and run on
//! whatever the host has: v2, v1 or both. What can't be tried is printed as SKIPPED with the
//! reason. All cgroups are below `/ultari-unit-PID-…`.

use super::*;
use oci_spec::runtime::LinuxResources;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// Prints why a test proves nothing here.
fn skipped(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

fn is_root(test: &str) -> bool {
    let root = !unprivileged();
    if !root {
        skipped(test, "needs root");
    }
    root
}

/// A place for one test, removed with all in it even if the test fails.
struct Place {
    name: String,
}

impl Place {
    fn new(test: &str) -> Self {
        Self {
            name: format!("ultari-unit-{}-{test}", std::process::id()),
        }
    }

    fn locate(&self, below: &str) -> Location {
        let path = format!("/{}/{below}", self.name);
        Location::locate(Some(Path::new(&path)), "unused").unwrap()
    }

    fn create(&self, json: &str) -> Cgroup {
        self.locate("c").create(Some(&resources(json))).unwrap().0
    }

    /// The directories of this test that exist, in any hierarchy.
    fn left(&self) -> Vec<PathBuf> {
        let places = self
            .locate("c")
            .paths()
            .map(|(_, path)| path.parent().unwrap().to_owned())
            .collect::<Vec<_>>();
        places.into_iter().filter(|path| path.exists()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(root) = open_root() {
            let mut location = self.locate("c");
            location.path.pop();
            location
                .hierarchies
                .iter_mut()
                .for_each(|hierarchy| hierarchy.existing = 0);
            let mut cgroup = Cgroup::handle(&location, root);
            let _ = cgroup.open_leaf();
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
    }
}

/// Whether a controller is there at all, on either version.
fn has(cgroup: &Cgroup, test: &str, v1: &str, v2: &str) -> bool {
    let offered = cgroup
        .unified_hierarchy()
        .map(|one| cgroup.node_at(one, 0).text("cgroup.controllers").unwrap());
    let there = cgroup.v1_node(v1).is_some()
        || offered.is_some_and(|all| all.split(' ').any(|name| name == v2));
    if !there {
        skipped(test, &format!("no {v2} controller on this host"));
    }
    there
}

fn offers(test: &str, v1: &str, v2: &str) -> bool {
    is_root(test) && has(&Place::new(test).locate("c").open().unwrap(), test, v1, v2)
}

/// A shell in the cgroup that goes on once it is there.
fn shell(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read -r go\n{script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cgroup.add(child.id() as i32).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

fn run(cgroup: &Cgroup, script: &str) -> ExitStatus {
    shell(cgroup, script).wait().unwrap()
}

fn value(cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
    match cgroup.v1_node(controller) {
        Some(node) => node.text(v1).unwrap(),
        None => cgroup.unified().unwrap().text(v2).unwrap(),
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_cgroup_is_made_in_every_hierarchy_and_removed_without_a_trace() {
    let test = "made_and_removed";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let location = place.locate("a/b/c");
    let (cgroup, warnings) = location.create(None).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    for (_, path) in location.paths() {
        assert!(path.join("cgroup.procs").exists(), "{path:?}");
    }
    let mut child = shell(&cgroup, "sleep 1000");
    assert!(cgroup.processes().unwrap().contains(&(child.id() as i32)));
    cgroup.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
    cgroup.remove().expect("removing what is gone");
    cgroup.kill().expect("killing what is gone");
    assert_eq!(
        location.open().unwrap().processes().unwrap(),
        Vec::<i32>::new()
    );
    assert!(cgroup.add(1).is_err(), "joining what is gone");
}

#[test]
fn the_pids_limit_refuses_a_fork() {
    let test = "pids";
    if !offers(test, "pids", "pids") {
        return;
    }
    let place = Place::new(test);
    let script = "sleep 100 & sleep 100 & sleep 100 & sleep 100 & kill $!";
    let cgroup = place.create(r#"{"pids": {"limit": 3}}"#);
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "3");
    assert!(
        !run(&cgroup, script).success(),
        "the fourth of three processes was allowed"
    );
    cgroup.kill().unwrap();
    cgroup
        .apply(&resources(r#"{"pids": {"limit": -1}}"#))
        .unwrap();
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
    let cgroup = place.create(r#"{"memory": {"limit": 16777216, "swap": 16777216}}"#);
    let script = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    assert_eq!(
        run(&cgroup, script).signal(),
        Some(libc::SIGKILL),
        "64 MiB were had within 16 MiB"
    );
    cgroup
        .apply(&resources(
            r#"{"memory": {"limit": 268435456, "swap": 268435456}}"#,
        ))
        .unwrap();
    assert!(run(&cgroup, script).success(), "the limit was not raised");
    cgroup
        .apply(&resources(
            r#"{"memory": {"limit": 33554432, "swap": 67108864, "reservation": 8388608}}"#,
        ))
        .unwrap();
    assert_eq!(
        value(&cgroup, "memory", "memory.limit_in_bytes", "memory.max"),
        "33554432"
    );
    assert_eq!(
        value(
            &cgroup,
            "memory",
            "memory.soft_limit_in_bytes",
            "memory.low"
        ),
        "8388608"
    );
    let (v1_swap, v2_swap) = ("memory.memsw.limit_in_bytes", "memory.swap.max");
    let swap = if cgroup.v1_node("memory").is_some() {
        "67108864"
    } else {
        "33554432"
    };
    assert_eq!(value(&cgroup, "memory", v1_swap, v2_swap), swap);
    cgroup
        .apply(&resources(r#"{"memory": {"limit": -1}}"#))
        .unwrap();
    assert!(
        run(&cgroup, script).success(),
        "the limit was not taken away"
    );
    let error = cgroup
        .apply(&resources(r#"{"memory": {"swap": 1000000}}"#))
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("linux.resources.memory.swap"),
        "{error:#}"
    );
    cgroup.remove().unwrap();
}

#[test]
fn the_cpu_quota_throttles() {
    let test = "cpu";
    if !offers(test, "cpu", "cpu") {
        return;
    }
    let place = Place::new(test);
    let cgroup = place.create(r#"{"cpu": {"shares": 512, "quota": 10000, "period": 50000}}"#);
    let shares = value(&cgroup, "cpu", "cpu.shares", "cpu.weight");
    assert_eq!(
        shares,
        if cgroup.v1_node("cpu").is_some() {
            "512"
        } else {
            "59"
        }
    );
    let mut child = shell(&cgroup, "while :; do :; done");
    eventually("the busy loop is throttled", || {
        let stat = value(&cgroup, "cpu", "cpu.stat", "cpu.stat");
        stat.lines().any(|line| {
            line.strip_prefix("nr_throttled ")
                .is_some_and(|count| count != "0")
        })
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
    cgroup
        .apply(&resources(r#"{"cpu": {"quota": 200000, "burst": 150000}}"#))
        .unwrap();
    assert_eq!(
        value(&cgroup, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"),
        "150000"
    );
    cgroup
        .apply(&resources(r#"{"cpu": {"quota": -1, "burst": 0}}"#))
        .unwrap();
    cgroup
        .apply(&resources(r#"{"cpu": {"shares": 1024, "idle": 1}}"#))
        .unwrap();
    cgroup
        .apply(&resources(r#"{"cpu": {"shares": 2048, "idle": 0}}"#))
        .unwrap();
    assert_eq!(
        value(&cgroup, "cpu", "cpu.shares", "cpu.weight"),
        if cgroup.v1_node("cpu").is_some() {
            "2048"
        } else {
            "174"
        }
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
    assert!(
        run(
            &cgroup,
            r#"grep -qE '^Cpus_allowed_list:\s+0$' /proc/self/status"#
        )
        .success()
    );
    let error = place
        .locate("d")
        .create(Some(&resources(r#"{"cpu": {"cpus": "4000"}}"#)))
        .err()
        .unwrap();
    assert!(
        format!("{error:#}").contains("linux.resources.cpu.cpus"),
        "{error:#}"
    );
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
    let made = Command::new("mknod")
        .arg(&node)
        .args(["c", "1", "11"])
        .status()
        .unwrap();
    assert!(made.success());
    let node = node.display();
    let open = format!("exec 3<{node}");
    assert!(
        Command::new("/bin/sh")
            .args(["-c", &open])
            .status()
            .unwrap()
            .success(),
        "opens without a cgroup"
    );
    let cgroup = place.create(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#);
    assert!(
        run(
            &cgroup,
            "exec 3<>/dev/null; head -c1 /dev/zero; head -c1 /dev/urandom"
        )
        .success(),
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
    assert!(
        !run(&cgroup, &format!("exec 3<>{node}")).success(),
        "not for writing"
    );
    cgroup
        .apply(&resources(r#"{"memory": {"limit": 0}}"#))
        .unwrap();
    assert!(
        run(&cgroup, &open).success(),
        "an update without device rules leaves them"
    );
    cgroup
        .apply(&resources(r#"{"devices": [{"allow": false}]}"#))
        .unwrap();
    assert!(!run(&cgroup, &open).success(), "denied again");
    cgroup
        .apply(&resources(
            r#"{"devices": [{"allow": true, "access": "rwm"}]}"#,
        ))
        .unwrap();
    assert!(
        run(&cgroup, &format!("exec 3<>{node}")).success(),
        "all devices"
    );
    cgroup
        .apply(&resources(r#"{"devices": [{"allow": false}]}"#))
        .unwrap();
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
    let (cgroup, _) = place.locate("c").create(None).unwrap();
    let Some(leaf) = cgroup
        .unified()
        .filter(|_| cgroup.v1_node("devices").is_none())
    else {
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
    cgroup
        .apply(&resources(
            r#"{"devices": [{"allow": true, "access": "rwm"}]}"#,
        ))
        .unwrap();
    assert_eq!(attached(), [before[1]]);
    cgroup.remove().unwrap();
}

#[test]
fn a_frozen_container_stands_still_and_can_be_thawed_and_killed() {
    let test = "freeze";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let (cgroup, _) = place.locate("c").create(None).unwrap();
    let log = std::env::temp_dir().join(&place.name);
    let mut child = shell(
        &cgroup,
        &format!("while :; do echo >> {}; done", log.display()),
    );
    let size = || std::fs::metadata(&log).map_or(0, |data| data.len());
    let moves = |from: u64| size() > from;
    eventually("it runs", || moves(0));
    assert!(!cgroup.frozen().unwrap());
    cgroup.freeze().unwrap();
    assert!(cgroup.frozen().unwrap());
    let then = size();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(size(), then, "it moves while frozen");
    let error = place.locate("c/inner").create(None).err().unwrap();
    assert!(format!("{error:#}").contains("frozen"), "{error:#}");
    cgroup.thaw().unwrap();
    assert!(!cgroup.frozen().unwrap());
    eventually("it runs again", || moves(then));
    cgroup.freeze().unwrap();
    cgroup.signal_all(libc::SIGUSR1).unwrap();
    assert!(cgroup.frozen().unwrap(), "a signal does not thaw");
    cgroup.thaw().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGUSR1));
    let mut child = shell(&cgroup, "sleep 1000");
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    cgroup.remove().unwrap();
    std::fs::remove_file(&log).unwrap();
}

#[test]
fn a_cgroup_in_use_is_refused_with_the_number_of_its_processes() {
    let test = "in_use";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let (cgroup, _) = place.locate("c").create(None).unwrap();
    let mut child = shell(&cgroup, "sleep 1000 & wait");
    eventually("two processes", || cgroup.processes().unwrap().len() == 2);
    let error = place.locate("c").create(None).err().unwrap();
    assert!(
        format!("{error:#}").contains("not empty: 2 process(es)"),
        "{error:#}"
    );
    assert_eq!(
        cgroup.processes().unwrap().len(),
        2,
        "the refusal left it alone"
    );
    cgroup.kill().unwrap();
    child.wait().unwrap();
    // Empty, it is taken over, and stays when the second container goes.
    let (second, _) = {
        eventually("empty", || cgroup.processes().unwrap().is_empty());
        place.locate("c").create(None).unwrap()
    };
    second.remove().unwrap();
    assert!(!place.left().is_empty());
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn processes_of_sub_cgroups_are_found_killed_and_removed_with_them() {
    let test = "nested";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let location = place.locate("c");
    let (cgroup, _) = location.create(None).unwrap();
    let inner = place.locate("c/x/y").create(None).unwrap().0;
    let mut child = shell(&inner, "sleep 1000");
    assert_eq!(cgroup.processes().unwrap(), [child.id() as i32]);
    // As a later command would: from the record alone.
    let text = serde_json::to_string(&location).unwrap();
    let again = serde_json::from_str::<Location>(&text).unwrap();
    assert_eq!(again, location);
    let again = again.open().unwrap();
    again.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    again.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_half_made_cgroup_is_removed_from_its_record() {
    let test = "half_made";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let location = place.locate("p/c");
    // As if the runtime had been killed after its first mkdir calls.
    let first = location.paths().next().unwrap().1;
    std::fs::create_dir_all(first.parent().unwrap()).unwrap();
    let cgroup = location.open().unwrap();
    assert!(!cgroup.frozen().unwrap());
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_limit_that_cannot_be_had_is_an_error_and_leaves_nothing() {
    let test = "refused";
    if !is_root(test) {
        return;
    }
    let place = Place::new(test);
    let v2_only = place
        .locate("c")
        .open()
        .unwrap()
        .v1_nodes()
        .next()
        .is_none();
    let mut cases = vec![
        (
            r#"{"memory": {"limit": 1000000, "swap": 999}}"#,
            "linux.resources.memory.swap",
        ),
        (
            r#"{"cpu": {"shares": 1024}, "network": {"classID": 7}}"#,
            "linux.resources.network.classID",
        ),
        (
            r#"{"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}"#,
            "linux.resources.hugepageLimits",
        ),
        (
            r#"{"rdma": {"mlx5_7": {"hcaHandles": 1}}}"#,
            "linux.resources.rdma",
        ),
        (
            r#"{"blockIO": {"leafWeight": 500}}"#,
            "linux.resources.blockIO.leafWeight",
        ),
        (
            r#"{"devices": [{"allow": true, "type": "c", "access": "x"}]}"#,
            "linux.resources.devices[0].access",
        ),
        (
            r#"{"unified": {"../cgroup.procs": "1"}}"#,
            "linux.resources.unified",
        ),
        (
            r#"{"unified": {"nothing.max": "1"}}"#,
            "linux.resources.unified",
        ),
        (
            r#"{"cpu": {"realtimeRuntime": 950000}}"#,
            "linux.resources.cpu.realtimeRuntime",
        ),
    ];
    if v2_only {
        cases.push((
            r#"{"memory": {"swappiness": 10}}"#,
            "linux.resources.memory.swappiness",
        ));
        cases.push((
            r#"{"memory": {"disableOOMKiller": true}}"#,
            "linux.resources.memory.disableOOMKiller",
        ));
    }
    for (json, property) in cases {
        let error = place
            .locate("c")
            .create(Some(&resources(json)))
            .err()
            .expect(json);
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
    let (cgroup, warnings) = place.locate("c").create(Some(&resources(json))).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let warnings = cgroup
        .apply(&resources(r#"{"memory": {"kernel": 1048576}}"#))
        .unwrap();
    assert!(
        warnings[0].contains("linux.resources.memory.kernel"),
        "{warnings:?}"
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
        value(
            &cgroup,
            "hugetlb",
            "hugetlb.2MB.limit_in_bytes",
            "hugetlb.2MB.max"
        ),
        "4194304"
    );
    assert_eq!(
        value(
            &cgroup,
            "hugetlb",
            "hugetlb.2MB.rsvd.limit_in_bytes",
            "hugetlb.2MB.rsvd.max"
        ),
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
        (
            leaf.text("memory.high").unwrap(),
            leaf.text("pids.max").unwrap()
        ),
        ("50331648".into(), "77".into())
    );
    cgroup.remove().unwrap();
}

#[test]
fn a_parent_with_processes_is_named_when_a_limit_needs_it() {
    let test = "busy_parent";
    if !offers(test, "-", "memory") {
        return;
    }
    let place = Place::new(test);
    let parent = place.locate("p").create(None).unwrap().0;
    let mut child = shell(&parent, "sleep 1000");
    let error = place
        .locate("p/c")
        .create(Some(&resources(r#"{"memory": {"limit": 16777216}}"#)))
        .err()
        .unwrap();
    let error = format!("{error:#}");
    assert!(
        error.contains("linux.resources.memory.limit") && error.contains("holds processes itself"),
        "{error}"
    );
    let (without, _) = place.locate("p/c").create(None).unwrap();
    without.remove().unwrap();
    let threaded = Place::new("threaded");
    let directory = Path::new(ROOT).join(&threaded.name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("cgroup.type"), "threaded").unwrap();
    let error = threaded.locate("c").create(None).err().unwrap();
    assert!(
        format!("{error:#}").contains("a threaded cgroup"),
        "{error:#}"
    );
    assert_eq!(
        std::fs::read_dir(&directory)
            .unwrap()
            .filter(|one| one.as_ref().unwrap().path().is_dir())
            .count(),
        0
    );
    parent.kill().unwrap();
    child.wait().unwrap();
    parent.remove().unwrap();
}

#[test]
fn paths_that_lead_out_or_nowhere_are_errors() {
    for bad in ["/a/../b", "..", "../x", "/", "./.", "/a\nb"] {
        let error = components(Path::new(bad)).unwrap_err().to_string();
        assert!(error.starts_with("linux.cgroupsPath"), "{bad}: {error}");
    }
    assert_eq!(
        components(Path::new("/docker/./x//y/")).unwrap(),
        ["docker", "x", "y"]
    );
    assert_eq!(
        components(Path::new("relative/x")).unwrap(),
        ["relative", "x"]
    );
}

#[test]
fn a_co_mounted_hierarchy_serves_each_of_its_controllers() {
    let one = Hierarchy {
        directory: "cpu,cpuacct".into(),
        version: Version::V1,
        existing: 0,
    };
    assert!(
        one.has_v1_controller("cpu")
            && one.has_v1_controller("cpuacct")
            && !one.has_v1_controller("cpuset")
    );
    assert_eq!(one.path(&["a".into(), "b".into()], 2), "cpu,cpuacct/a/b");
    let unified = Hierarchy {
        directory: String::new(),
        version: Version::V2,
        existing: 0,
    };
    assert_eq!(
        (
            unified.path(&["a".into(), "b".into()], 1),
            unified.path(&[], 0)
        ),
        ("a".into(), String::new())
    );
}

/// The time for one container's worth of calls, to look at by hand:
/// `cargo test --release cgroup::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let place = Place::new("cost");
    let json = r#"{"devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 67108864}, "cpu": {"shares": 1024}, "pids": {"limit": 100}}"#;
    let resources = resources(json);
    let (keep, _) = place.locate("keep").create(None).unwrap();
    let mut steps = [Duration::ZERO; 5];
    for _ in 0..20 {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = Instant::now();
        let mut lap = |step: usize| {
            steps[step] += last.elapsed();
            last = Instant::now();
        };
        let location = place.locate("c");
        lap(0);
        let (cgroup, _) = location.create(Some(&resources)).unwrap();
        lap(1);
        cgroup.add(child.id() as i32).unwrap();
        lap(2);
        location.open().unwrap().kill().unwrap();
        child.wait().unwrap();
        lap(3);
        cgroup.remove().unwrap();
        lap(4);
    }
    keep.remove().unwrap();
    let names = ["locate", "create", "add", "kill+wait", "remove"];
    names
        .iter()
        .zip(steps)
        .for_each(|(name, time)| eprintln!("{name}: {:?}", time / 20));
}
