//! Limits of cgroup v2, proved by exceeding them. `make test-vm` has the kernel, disk and swap area
//! that they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cgroups::{has, is_v1, limit, sleeper};
use crate::skip;
use crate::support::{HIERARCHIES, Sandbox, host, wait_until};

const MIB: u64 = 1 << 20;

/// Ends the test where the controller is not one of cgroup v2.
macro_rules! needs {
    ($controller:expr) => {
        if is_v1($controller) || !has($controller) {
            skip!("{} is no controller of cgroup v2 here", $controller);
        }
    };
}

/// The root of the cgroup v2 tree.
fn tree() -> &'static Path {
    HIERARCHIES.iter().find(|path| path.join("cgroup.controllers").exists()).unwrap()
}

/// A container that runs `guest do ACTION`, with these `linux.resources` beside the usual ones.
fn guest(name: &str, action: &str, resources: Value) -> Sandbox {
    let mut sandbox = sleeper(name, resources);
    sandbox.args(&["/guest", "do", action]);
    sandbox
}

/// The number after `key` in a file of the container's cgroup.
#[track_caller]
fn number(sandbox: &Sandbox, file: &str, key: &str) -> u64 {
    let controller = file.split('.').next().unwrap();
    let text = limit(sandbox, controller, "", file);
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == key).unwrap_or_else(|| panic!("{key}: {text}"));
    words[at + 1].parse().unwrap()
}

/// A disk that is nobody's, if there is one: its path, major and minor number. For one test at a
/// time: what one has read is in memory, and charged to it, when another one reads it.
struct Disk(PathBuf, u64, u64, MutexGuard<'static, ()>);

fn scratch_disk() -> Option<Disk> {
    static IN_USE: Mutex<()> = Mutex::new(());
    let path = PathBuf::from(std::env::var_os("ULTARI_TEST_DISK")?);
    let number = nix::sys::stat::stat(&path).unwrap().st_rdev;
    let alone = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Disk(path, nix::sys::stat::major(number), nix::sys::stat::minor(number), alone))
}

/// Gives the container the disk as /dev/disk, for reading.
fn with_disk(sandbox: &mut Sandbox, major: u64, minor: u64) {
    sandbox.config["linux"]["devices"] =
        json!([{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]);
    sandbox.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"}
    ]);
}

#[test]
fn a_container_starts_with_half_a_mebibyte() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let memory = json!({"limit": 512 << 10, "swap": 512 << 10});
    let mut sandbox = sleeper("tiny", json!({"memory": memory}));
    sandbox.args(&["/bin/true"]);
    for _ in 0..3 {
        sandbox.run().ok();
    }
}

#[test]
fn memory_above_high_is_slowed_down_and_not_killed() {
    needs!("memory");
    let high = json!({"memory.high": (32 * MIB).to_string()});
    let sandbox = guest("high", "alloc 300", json!({"unified": high}));
    sandbox.run_detached();
    wait_until("memory.high is exceeded", || number(&sandbox, "memory.events", "high") > 0);
    assert_eq!(number(&sandbox, "memory.events", "oom_kill"), 0);
    assert_eq!(sandbox.status(), "running");
}

/// How much of 20 MiB that a container has read stays in memory while another one of the same
/// parent, which is limited to 40 MiB, reads 36 MiB.
fn kept_under_pressure(major: u64, minor: u64, resources: Value) -> u64 {
    let reader = |name, resources, skip: u32, count: u32| {
        let mut sandbox: Sandbox = sleeper(name, resources);
        with_disk(&mut sandbox, major, minor);
        // What is read of a disk is kept only while somebody has it open.
        sandbox.script(&format!(
            "exec 3</dev/disk; dd bs=1M skip={skip} count={count} <&3 >/dev/null; echo done; sleep 100"
        ));
        sandbox
    };
    let mut kept = reader("kept", resources, 0, 20);
    let parent = kept.cgroup();
    kept.config["linux"]["cgroupsPath"] = json!(format!("{parent}/kept"));
    let file = |name: &str| tree().join(&parent[1..]).join(name);
    let started = kept.run_detached();
    wait_until("it has read", || started.stdout_by_now().contains("done"));
    fs::write(file("memory.max"), (40 * MIB).to_string()).unwrap();
    let mut other = reader("other", json!({}), 20, 36);
    other.config["linux"]["cgroupsPath"] = json!(format!("{parent}/other"));
    let started = other.run_detached();
    wait_until("the other has read", || started.stdout_by_now().contains("done"));
    let stat = fs::read_to_string(file("kept/memory.stat")).unwrap();
    let cached = stat.lines().find_map(|line| line.strip_prefix("file ")).unwrap();
    other.delete_forced().ok();
    kept.delete_forced().ok();
    cached.parse().unwrap()
}

#[test]
fn protected_memory_is_not_reclaimed() {
    needs!("memory");
    let Some(Disk(_, major, minor, _alone)) = scratch_disk() else { skip!("no disk to read from") };
    let unprotected = kept_under_pressure(major, minor, json!({}));
    assert!(unprotected < 18 * MIB, "no pressure: {unprotected}");
    for resources in [
        json!({"memory": {"reservation": 30 * MIB}}),
        json!({"unified": {"memory.min": (30 * MIB).to_string()}}),
    ] {
        // The protection of a reservation gives way where the kernel finds nothing else at once.
        let mut tries = (0..5).map(|_| kept_under_pressure(major, minor, resources.clone()));
        assert!(tries.any(|kept| kept > 19 * MIB), "{resources}: not kept in five tries");
    }
}

/// A swap area in use, until it is dropped.
struct Swap(PathBuf);

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = host().output(Command::new("swapoff").arg(&self.0));
    }
}

#[test]
fn swap_is_limited_on_its_own() {
    needs!("memory");
    let Some(area) = std::env::var_os("ULTARI_TEST_SWAP") else { skip!("no swap area to use") };
    assert!(host().output(Command::new("swapon").arg(&area)).unwrap().status.success());
    let _swap = Swap(area.into());
    for (swap, action, code) in
        [(40, "alloc 32", 0), (40, "alloc 64", 137), (24, "alloc 32", 137), (-1, "alloc 64", 0)]
    {
        let swap = if swap < 0 { -1 } else { swap * MIB as i64 };
        let memory = json!({"limit": 24 * MIB, "swap": swap});
        guest("swap", action, json!({"memory": memory})).run().exits_with(code);
    }
}

#[test]
fn a_cpu_quota_is_what_is_had_of_each_period() {
    needs!("cpu");
    let (quota, period) = (25_000, 100_000);
    let cpu = json!({"quota": quota, "period": period});
    let sandbox = guest("quota", "burn 100000", json!({"cpu": cpu}));
    sandbox.run_detached();
    wait_until("30 periods are over", || number(&sandbox, "cpu.stat", "nr_periods") >= 30);
    let stat = limit(&sandbox, "cpu", "", "cpu.stat");
    let of = |key: &str| -> u64 {
        let found = stat.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        found.trim().parse().unwrap()
    };
    // One period more than is counted may have begun; a timer's tick may go beyond each quota.
    let allowed = (of("nr_periods") + 1) * quota * 13 / 10;
    assert!(of("usage_usec") <= allowed, "{stat}");
    assert!(of("nr_throttled") >= 5 && of("throttled_usec") > 0, "{stat}");
}

/// What two containers that both want all of one processor get of it, in microseconds.
fn share_a_processor(first: Value, second: Value) -> (u64, u64) {
    let sandboxes = [first, second].map(|mut cpu| {
        cpu["cpus"] = json!("0");
        let sandbox = guest("share", "burn 100000", json!({"cpu": cpu}));
        sandbox.run_detached();
        sandbox
    });
    let usage = || [0, 1].map(|index| number(&sandboxes[index], "cpu.stat", "usage_usec"));
    let before = usage();
    let mut had = [0; 2];
    wait_until("there is a second to divide", || {
        let now = usage();
        had = [now[0] - before[0], now[1] - before[1]];
        had[0] + had[1] > 1_000_000
    });
    (had[0], had[1])
}

#[test]
fn cpu_shares_divide_a_processor() {
    needs!("cpu");
    needs!("cpuset");
    // Weights of 373 and 36: see docs/cgroups.md.
    let (more, less) = share_a_processor(json!({"shares": 4096}), json!({"shares": 341}));
    assert!(more > 4 * less, "{more} and {less} microseconds");
    assert!(less > 0, "the smaller share is one, too");
}

#[test]
fn an_idle_cgroup_gets_what_others_leave() {
    needs!("cpu");
    needs!("cpuset");
    let (usual, idle) = share_a_processor(json!({}), json!({"idle": 1}));
    assert!(usual > 10 * idle, "{usual} and {idle} microseconds");
}

#[test]
fn a_burst_is_saved_up_while_idle() {
    needs!("cpu");
    let cpu = json!({"quota": 20000, "period": 100000, "burst": 20000});
    let mut sandbox = sleeper("burst", json!({"cpu": cpu}));
    sandbox.script(
        "while true; do sleep 0.5; i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; done",
    );
    sandbox.run_detached();
    wait_until("a burst is used", || number(&sandbox, "cpu.stat", "nr_bursts") > 0);
}

/// The bytes and the number of reads that the container's cgroup did from a disk.
fn reads(sandbox: &Sandbox, major: u64, minor: u64) -> (u64, u64) {
    let text = limit(sandbox, "io", "", "io.stat");
    let device = format!("{major}:{minor} ");
    let line = text.lines().find(|line| line.starts_with(&device)).unwrap_or_default();
    let value = |key: &str| {
        let found = line.split(' ').find_map(|word| word.strip_prefix(key));
        found.map_or(0, |number| number.parse().unwrap())
    };
    (value("rbytes="), value("rios="))
}

#[test]
fn reads_of_a_disk_are_limited_in_number() {
    needs!("io");
    let Some(Disk(_, major, minor, _alone)) = scratch_disk() else { skip!("no disk to read from") };
    let rate = 50;
    let limit = json!([{"major": major, "minor": minor, "rate": rate}]);
    let block_io = json!({"throttleReadIOPSDevice": limit});
    let mut sandbox = guest("iops", "read-direct /dev/disk 100000", json!({"blockIO": block_io}));
    with_disk(&mut sandbox, major, minor);
    sandbox.run_detached();
    wait_until("it reads", || reads(&sandbox, major, minor).1 > 0);
    let (start, (_, before)) = (Instant::now(), reads(&sandbox, major, minor));
    std::thread::sleep(Duration::from_secs(3));
    let done = reads(&sandbox, major, minor).1 - before;
    // The time is that before the last look, so a slow machine can only have read less.
    let allowed = start.elapsed().as_secs_f64() * f64::from(rate) * 1.5 + f64::from(rate);
    assert!(done > 0 && (done as f64) < allowed, "{done} reads");
}

/// The scheduler that a disk had before, given back in the end.
struct Scheduler(PathBuf, String);

impl Drop for Scheduler {
    fn drop(&mut self) {
        fs::write(&self.0, &self.1).unwrap();
    }
}

#[test]
fn weights_divide_a_disk() {
    needs!("io");
    let Some(Disk(path, major, minor, _alone)) = scratch_disk() else {
        skip!("no disk to read from")
    };
    let file = Path::new("/sys/block").join(path.file_name().unwrap()).join("queue/scheduler");
    if fs::write(&file, "bfq").is_err() {
        skip!("the kernel has no BFQ scheduler");
    }
    let _scheduler = Scheduler(file, "none".to_owned());
    let sandboxes = [800, 50].map(|weight| {
        let mut sandbox = guest(
            "weight",
            "read-direct /dev/disk 1000000",
            json!({"blockIO": {"weight": weight}}),
        );
        with_disk(&mut sandbox, major, minor);
        sandbox.run_detached();
        assert_eq!(limit(&sandbox, "io", "", "io.bfq.weight"), format!("default {weight}"));
        sandbox
    });
    let read = || [0, 1].map(|index| reads(&sandboxes[index], major, minor).1);
    let window = |_| {
        let before = read();
        let mut had = [0; 2];
        wait_until("there is something to divide", || {
            let now = read();
            had = [now[0] - before[0], now[1] - before[1]];
            had[0] + had[1] > 500
        });
        had
    };
    // On a busy machine one of the two may for some time not always have a request ready.
    let windows: Vec<[u64; 2]> = (0..5).map(window).collect();
    let [heavy, light] = [0, 1].map(|index| windows.iter().map(|had| had[index]).sum::<u64>());
    assert!(heavy > 2 * light, "{windows:?}");
}

#[test]
fn huge_pages_beyond_the_limit_are_refused() {
    needs!("hugetlb");
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.map_or(0, |free| free.trim().parse::<u64>().unwrap()) < 4 {
        skip!("no huge pages are reserved on this host");
    }
    let limits = json!([{"pageSize": "2MB", "limit": 4 * MIB}]);
    let mut sandbox = sleeper("huge", json!({"hugepageLimits": limits}));
    assert_eq!(sandbox.attempt(&["huge-pages 2", "huge-pages 3"]), ["ok", "ENOMEM"]);
    // Without a reservation it is the fault that is refused, by SIGBUS.
    sandbox.args(&["/guest", "do", "unreserved-huge-pages 2"]);
    sandbox.run().ok();
    sandbox.args(&["/guest", "do", "unreserved-huge-pages 3"]);
    sandbox.run().exits_with(128 + 7);
}

#[test]
fn every_parent_passes_all_controllers_down() {
    needs!("memory");
    let mut sandbox = sleeper("down", json!({}));
    let path = format!("{}/a/b/c", sandbox.cgroup());
    sandbox.config["linux"]["cgroupsPath"] = json!(path);
    sandbox.run_detached();
    let offered = fs::read_to_string(tree().join("cgroup.controllers")).unwrap();
    let mut parent = tree().join(&path[1..]);
    while parent != tree() {
        parent.pop();
        let enabled = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, offered, "{}", parent.display());
    }
}

#[test]
fn a_parent_that_can_have_no_limited_children_is_named() {
    needs!("memory");
    let mut sandbox = sleeper("parent", json!({"memory": {"limit": 64 * MIB}}));
    let parent = tree().join(&sandbox.cgroup()[1..]);
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}/in", sandbox.cgroup()));
    fs::create_dir_all(&parent).unwrap();
    let mut process = host().spawn(Command::new("sleep").arg("100"));
    fs::write(parent.join("cgroup.procs"), process.id().to_string()).unwrap();
    sandbox.create().fails(1, &["linux.resources.memory.limit", "holds processes itself"]);
    process.kill().unwrap();
    process.wait().unwrap();
    host().forget(process.id());
    fs::remove_dir(&parent).unwrap();

    fs::create_dir_all(parent.join("threads")).unwrap();
    fs::write(parent.join("threads/cgroup.type"), "threaded").unwrap();
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}/threads/in", sandbox.cgroup()));
    sandbox.create().fails(1, &["linux.cgroupsPath", "threaded"]);
    fs::remove_dir(parent.join("threads")).unwrap();
    fs::remove_dir(&parent).unwrap();
    sandbox.expect_nothing_left();
}

#[test]
fn init_is_never_outside_its_cgroup() {
    needs!("pids");
    if !Path::new("/usr/bin/strace").exists() {
        skip!("strace is not installed");
    }
    let sandbox = sleeper("inside", json!({}));
    let trace = sandbox.dir.join("trace");
    let script =
        format!("exec /usr/bin/strace -qq -e trace=clone3,write -o {} \"$@\"", trace.display());
    let call = sandbox.bundle_call("create").arg(&sandbox.id);
    call.wrapped(&script).output().ok();
    let calls = fs::read_to_string(&trace).unwrap();
    let made: Vec<&str> = calls.lines().filter(|line| line.contains("CLONE_NEWPID")).collect();
    assert!(made.len() == 1 && made[0].contains("CLONE_INTO_CGROUP"), "{calls}");
    let pid = sandbox.pid();
    let moved = calls.lines().any(|line| line.contains(&format!("\"{pid}\"")));
    assert!(!moved, "it was moved into a cgroup afterwards: {calls}");
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup.trim(), format!("0::{}", sandbox.cgroup()));
}

#[test]
fn a_container_that_forks_all_the_time_is_killed_at_once() {
    needs!("pids");
    for command in ["kill", "delete"] {
        let mut sandbox = sleeper("storm", json!({"pids": {"limit": 50}}));
        // Without a PID namespace no end of a first process ends the others.
        crate::support::remove_namespace(&mut sandbox.config, "pid");
        sandbox.script("storm() { storm & storm & sleep 0.2; storm; }; storm 2>/dev/null");
        sandbox.run_detached();
        wait_until("the limit is reached", || number(&sandbox, "pids.events", "max") > 0);
        match command {
            "kill" => sandbox.ultari(["kill", "--all", &sandbox.id, "KILL"]).ok(),
            _ => sandbox.delete_forced().ok(),
        };
        let populated = || {
            sandbox.cgroups().iter().any(|cgroup| {
                let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
                events.contains("populated 1")
            })
        };
        wait_until("all have ended", || {
            host().reap_orphans();
            !populated()
        });
    }
}
