//! `update`: limits of a container that runs, each proved where the kernel shows it, and what a
//! refused change leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::cgroups::{disk, extra_device, has, is_v1, limit, sleeper};
use crate::skip;
use crate::support::{Output, Sandbox, wait_until};

const MIB: u64 = 1 << 20;

#[track_caller]
fn update(sandbox: &Sandbox, flags: &[&str]) -> Output {
    sandbox.call(["update"]).args(flags).arg(&sandbox.id).output()
}

/// `update --resources -`, as containerd calls it.
#[track_caller]
fn update_json(sandbox: &Sandbox, resources: &Value) -> Output {
    let call = sandbox.call(["update", "--resources", "-", &sandbox.id]);
    call.stdin(&resources.to_string()).output()
}

fn running(name: &str, resources: Value) -> Sandbox {
    let sandbox = sleeper(name, resources);
    sandbox.run_detached();
    sandbox
}

/// All settings of the container's cgroups: the files that can be written, but for counters that
/// go their own way.
fn settings(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let counters = [
        "cgroup.",
        "tasks",
        "max_usage",
        "failcnt",
        "force_empty",
        "reset_stats",
        "peak",
        "pressure",
        "memory.reclaim",
        "oom_control",
        "notify_on_release",
        "cpuacct.usage",
    ];
    let mut found = BTreeMap::new();
    for cgroup in sandbox.cgroups() {
        for entry in fs::read_dir(&cgroup).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let writable = entry.metadata().unwrap().permissions().mode() & 0o200 != 0;
            // On v2 an empty list stands for the parent's, and can't be emptied again.
            let shown = cgroup.join(format!("{name}.effective"));
            let path = if shown.exists() { shown } else { entry.path() };
            if (writable || name == "devices.list") && !counters.iter().any(|c| name.contains(c)) {
                let text = fs::read_to_string(path).unwrap_or_default();
                found.insert(entry.path().display().to_string(), text);
            }
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

fn memory_limit(sandbox: &Sandbox) -> String {
    limit(sandbox, "memory", "memory.limit_in_bytes", "memory.max")
}

fn swap_limit(sandbox: &Sandbox) -> String {
    limit(sandbox, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
}

#[test]
fn memory_limits_change_in_both_directions() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let sandbox = running("memory", json!({"memory": {"limit": 40 * MIB, "swap": 40 * MIB}}));
    let allocate = || sandbox.exec(&["/guest", "do", "alloc 100"]).code;
    assert_eq!(allocate(), 137);
    // Beyond the old limit of memory and swap together.
    update(&sandbox, &["--memory", "200M", "--memory-swap", "200m"]).ok();
    assert_eq!(allocate(), 0);
    update(&sandbox, &["--memory=41943040", "--memory-swap=41943040"]).ok();
    assert_eq!(allocate(), 137);
    update(&sandbox, &["--memory", "-1"]).ok();
    assert_eq!(allocate(), 0);
    update(&sandbox, &["--memory-reservation", "24MiB"]).ok();
    let reservation = limit(&sandbox, "memory", "memory.soft_limit_in_bytes", "memory.low");
    assert_eq!(reservation, (24 * MIB).to_string());
}

#[test]
fn a_swap_limit_alone_counts_from_the_present_memory_limit() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let sandbox = running("swap", json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}));
    update(&sandbox, &["--memory-swap", "96m"]).ok();
    // v1 counts memory and swap together, v2 swap alone.
    let swap = if is_v1("memory") { 96 * MIB } else { 32 * MIB };
    assert_eq!(swap_limit(&sandbox), swap.to_string());
    assert_eq!(memory_limit(&sandbox), (64 * MIB).to_string());
    update(&sandbox, &["--memory-swap", "32m"])
        .fails(1, &["linux.resources.memory.swap", "can't be less"]);
    assert_eq!(swap_limit(&sandbox), swap.to_string());
    update(&sandbox, &["--memory-swap=-1"]).ok();
    assert_ne!(swap_limit(&sandbox), swap.to_string());
    update(&sandbox, &["--memory", "-1"]).ok();
    update(&sandbox, &["--memory-swap", "96m"])
        .fails(1, &["linux.resources.memory.swap", "linux.resources.memory.limit"]);
}

#[test]
fn memory_in_use_is_not_taken_away() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let sandbox = running("inuse", json!({"memory": {"limit": 60 * MIB, "swap": 60 * MIB}}));
    sandbox.exec(&["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=40"]).ok();
    // v1 refuses it anyway, v2 only when it is asked to; else it would kill.
    let memory = json!({"limit": 20 * MIB, "swap": 60 * MIB, "checkBeforeUpdate": true});
    update_json(&sandbox, &json!({"memory": memory, "pids": {"limit": 77}}))
        .fails(1, &["linux.resources.memory.limit", "in use"]);
    assert_eq!(memory_limit(&sandbox), (60 * MIB).to_string());
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn the_pids_limit_changes() {
    if !has("pids") {
        skip!("no pids controller");
    }
    let sandbox = running("pids", json!({}));
    let fork = || sandbox.exec_attempt(&["fork 20"]).remove(0);
    assert_eq!(fork(), "ok 20");
    update(&sandbox, &["--pids-limit", "10"]).ok();
    // The container's init and the guest count too.
    assert_eq!(fork(), "EAGAIN after 8");
    update(&sandbox, &["--pids-limit", "-1"]).ok();
    assert_eq!(fork(), "ok 20");
    update(&sandbox, &["--pids-limit", "0"]).ok();
    assert_eq!(limit(&sandbox, "pids", "pids.max", "pids.max"), "1");
}

#[test]
fn cpu_limits_change_one_by_one() {
    if !has("cpu") {
        skip!("no cpu controller");
    }
    let sandbox = running("cpu", json!({}));
    let max = || match is_v1("cpu") {
        true => format!(
            "{} {}",
            limit(&sandbox, "cpu", "cpu.cfs_quota_us", "").replace("-1", "max"),
            limit(&sandbox, "cpu", "cpu.cfs_period_us", "")
        ),
        false => limit(&sandbox, "cpu", "", "cpu.max"),
    };
    let weight = || limit(&sandbox, "cpu", "cpu.shares", "cpu.weight");
    let throttled = || {
        let stat = limit(&sandbox, "cpu", "cpu.stat", "cpu.stat");
        let count = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap();
        count.parse::<u64>().unwrap()
    };
    assert_eq!(throttled(), 0);
    update(&sandbox, &["--cpu-period", "50000"]).ok();
    assert_eq!(max(), "max 50000");
    update(&sandbox, &["--cpu-quota", "10000"]).ok();
    assert_eq!(max(), "10000 50000");
    assert_eq!(sandbox.exec_attempt(&["burn 500"]), ["ok"]);
    assert!(throttled() > 0);
    update(&sandbox, &["--cpu-burst", "5000"]).ok();
    assert_eq!(limit(&sandbox, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"), "5000");
    update(&sandbox, &["--cpu-burst", "0"]).ok();
    assert_eq!(limit(&sandbox, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"), "0");
    update(&sandbox, &["--cpu-quota", "-1"]).ok();
    assert_eq!(max(), "max 50000");
    update(&sandbox, &["--cpu-share", "2048"]).ok();
    assert_eq!(weight(), if is_v1("cpu") { "2048" } else { "174" });
    update(&sandbox, &["--cpu-idle", "1"]).ok();
    assert_eq!(limit(&sandbox, "cpu", "cpu.idle", "cpu.idle"), "1");
    update(&sandbox, &["--cpu-idle=0", "--cpu-share=512"]).ok();
    assert_eq!(limit(&sandbox, "cpu", "cpu.idle", "cpu.idle"), "0");
    assert_eq!(weight(), if is_v1("cpu") { "512" } else { "59" });
    let realtime = update(&sandbox, &["--cpu-rt-period", "900000", "--cpu-rt-runtime", "1"]);
    // Only where the parents have realtime time to give, which by default they have not.
    if realtime.code != 0 {
        realtime.fails(1, &["linux.resources.cpu.realtime"]);
    }
}

#[test]
fn processes_move_to_the_cpus_of_an_update() {
    if !has("cpuset") {
        skip!("no cpuset controller");
    }
    let sandbox = running("cpuset", json!({}));
    let status = fs::read_to_string("/proc/self/status").unwrap();
    if !status.lines().any(|line| line.starts_with("Cpus_allowed_list:") && line.contains("1")) {
        skip!("one CPU only");
    }
    let allowed = || {
        let status = fs::read_to_string(format!("/proc/{}/status", sandbox.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    for cpu in ["1", "0"] {
        update(&sandbox, &["--cpuset-cpus", cpu, "--cpuset-mems", "0"]).ok();
        assert_eq!(allowed(), cpu);
    }
    update(&sandbox, &["--cpuset-cpus", "4000"]).fails(1, &["linux.resources.cpu.cpus"]);
    assert_eq!(allowed(), "0");
}

#[test]
fn block_io_limits_change_and_are_lifted() {
    let Some(number) = disk() else { skip!("no disk to limit") };
    if !has("blkio") {
        skip!("no blkio or io controller");
    }
    let sandbox = running("io", json!({}));
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let read = || limit(&sandbox, "blkio", "blkio.throttle.read_bps_device", "io.max");
    if is_v1("blkio")
        && !sandbox.cgroups().iter().any(|c| c.join("blkio.throttle.read_bps_device").exists())
    {
        skip!("no I/O throttling in this kernel");
    }
    let set = |rate: u64, pids: i64| {
        let list = json!([{"major": major, "minor": minor, "rate": rate}]);
        update_json(
            &sandbox,
            &json!({"blockIO": {"throttleReadBpsDevice": list}, "pids": {"limit": pids},
                    "hugepageLimits": if pids == 0 { json!([{"pageSize": "x", "limit": 1}]) } else { json!([]) }}),
        )
    };
    let shown = |rate: u64| match is_v1("blkio") {
        true => format!("{number} {rate}"),
        false => format!("{number} rbps={rate} wbps=max riops=max wiops=max"),
    };
    assert_eq!(read(), "");
    set(1 << 20, 0).exits_with(1);
    assert_eq!(read(), "", "a limit that was new is gone after a refused update");
    set(1 << 20, 9).ok();
    assert_eq!(read(), shown(1 << 20));
    set(2 << 20, 0).exits_with(1);
    assert_eq!(read(), shown(1 << 20), "a limit that was changed is back after a refused update");
    set(0, 9).ok();
    assert_eq!(read(), "");
    let weight = update(&sandbox, &["--blkio-weight", "300"]);
    if weight.code != 0 {
        // Neither BFQ nor io.cost in this kernel.
        weight.fails(1, &["linux.resources.blockIO.weight", "no such file"]);
    } else {
        let files = ["blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"];
        let files = sandbox.cgroups().into_iter().flat_map(|dir| files.map(|file| dir.join(file)));
        let weights: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
        // io.cost's weights go to 10000.
        let set = |text: &String| ["300\n", "default 300\n", "default 2930\n"].contains(&&**text);
        assert!(weights.iter().any(set), "{weights:?}");
    }
    update(&sandbox, &["--blkio-weight", "1001"]).fails(1, &["linux.resources.blockIO.weight"]);
}

#[test]
fn huge_pages_are_limited_later_too() {
    if !has("hugetlb") || !fs::exists("/sys/kernel/mm/hugepages/hugepages-2048kB").unwrap() {
        skip!("no hugetlb controller, or no pages of 2 MiB");
    }
    let sandbox = running("huge", json!({}));
    let limits = json!([{"pageSize": "2MB", "limit": 4 * MIB}]);
    update_json(&sandbox, &json!({"hugepageLimits": limits})).ok();
    let file = limit(&sandbox, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
    assert_eq!(file, (4 * MIB).to_string());
}

#[test]
fn device_rules_change_for_a_running_container() {
    let Some(minor) = extra_device() else { skip!("no /dev/fuse to try") };
    let mut sandbox = sleeper("devices", json!({}));
    sandbox.config["linux"]["devices"] = json!([
        {"path": "/dev/fence", "type": "c", "major": 10, "minor": minor, "fileMode": 438}
    ]);
    sandbox.run_detached();
    let open = |path: &str| sandbox.exec_attempt(&[&format!("open rw {path}")]).remove(0);
    let none = json!({"allow": false, "access": "rwm"});
    let one = json!({"allow": true, "type": "c", "major": 10, "minor": minor, "access": "rw"});
    assert_eq!((open("/dev/fence"), open("/dev/null")), ("EPERM".into(), "ok".into()));
    update_json(&sandbox, &json!({"devices": [none, one]})).ok();
    assert_eq!((open("/dev/fence"), open("/dev/null")), ("ok".into(), "ok".into()));
    // Without rules of its own an update leaves those that there are.
    update(&sandbox, &["--pids-limit", "100"]).ok();
    assert_eq!(open("/dev/fence"), "ok");
    update_json(&sandbox, &json!({"devices": [none]})).ok();
    assert_eq!((open("/dev/fence"), open("/dev/null")), ("EPERM".into(), "ok".into()));
    update_json(&sandbox, &json!({"devices": [{"allow": true, "access": "rwm"}]})).ok();
    assert_eq!(open("/dev/fence"), "ok");
}

#[test]
fn device_rules_change_without_a_gap() {
    let Some(minor) = extra_device() else { skip!("no /dev/fuse to try") };
    let mut sandbox = Sandbox::with_script(
        "gap",
        "while true; do true </dev/null || echo refused; true </dev/fence && echo allowed; done 2>/tmp/err",
    );
    sandbox.config["linux"]["devices"] = json!([
        {"path": "/dev/fence", "type": "c", "major": 10, "minor": minor, "fileMode": 438}
    ]);
    let output = sandbox.run_detached();
    let none = json!({"allow": false, "access": "rwm"});
    let other = json!({"allow": true, "type": "c", "major": 10, "minor": 235, "access": "rw"});
    for round in 0..20 {
        let rules = if round % 2 == 0 { json!([none, other]) } else { json!([none]) };
        update_json(&sandbox, &json!({"devices": rules})).ok();
    }
    assert_eq!(output.stdout_by_now(), "");
    let fence = json!({"allow": true, "type": "c", "major": 10, "minor": minor, "access": "rw"});
    update_json(&sandbox, &json!({"devices": [none, fence]})).ok();
    wait_until("it goes on trying", || output.stdout_by_now().contains("allowed"));
    assert!(!output.stdout_by_now().contains("refused"));
}

#[test]
fn updates_at_the_same_time_wait_for_each_other() {
    if !has("memory") || !has("pids") {
        skip!("controllers are missing");
    }
    let sandbox = running("together", json!({"memory": {"limit": 64 * MIB, "swap": -1}}));
    let bad = json!({"memory": {"limit": 96 * MIB}, "cpu": {"mems": "900"}}).to_string();
    for limit in [70 * MIB, 80 * MIB] {
        let refused: Vec<_> = (0..3)
            .map(|_| sandbox.call(["update", "-r", "-", &sandbox.id]).stdin(&bad).spawn())
            .collect();
        update(&sandbox, &["--memory", &limit.to_string()]).ok();
        for call in refused {
            call.wait().fails(1, &["linux.resources.cpu.mems"]);
        }
        assert_eq!(memory_limit(&sandbox), limit.to_string());
    }
}

#[test]
fn files_of_cgroup_v2_are_written_as_they_are() {
    let sandbox = running("unified", json!({}));
    let change = json!({"unified": {"memory.high": "104857600"}});
    if is_v1("memory") {
        update_json(&sandbox, &change).fails(1, &["linux.resources.unified", "cgroup v1"]);
    } else {
        update_json(&sandbox, &change).ok();
        assert_eq!(limit(&sandbox, "memory", "", "memory.high"), "104857600");
    }
}

/// What docker 20.10 sends for `--cpu-shares 512`, then `--memory 100m --memory-swap 200m --cpus 0.5
/// --pids-limit 50 --cpuset-cpus 0`, then `--pids-limit -1`: zeros for all that was not named.
const DOCKER: [&str; 3] = [
    r#"{"memory":{"limit":0,"reservation":0,"kernel":0},"cpu":{"shares":512,"quota":0,"period":0},"blockIO":{"weight":0}}"#,
    r#"{"memory":{"limit":104857600,"reservation":0,"swap":209715200,"kernel":0},"cpu":{"shares":0,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":50},"blockIO":{"weight":0}}"#,
    r#"{"memory":{"limit":0,"reservation":0,"kernel":0},"cpu":{"shares":0,"quota":0,"period":0},"pids":{"limit":-1},"blockIO":{"weight":0}}"#,
];

#[test]
fn updates_of_docker_change_what_its_user_named() {
    if !["memory", "cpu", "cpuset", "pids"].iter().all(|controller| has(controller)) {
        skip!("controllers are missing");
    }
    let memory = json!({"limit": 64 * MIB, "swap": 128 * MIB});
    let sandbox = running("docker", json!({"memory": memory}));
    let shown = || {
        let quota = limit(&sandbox, "cpu", "cpu.cfs_quota_us", "cpu.max");
        [
            memory_limit(&sandbox),
            swap_limit(&sandbox),
            limit(&sandbox, "cpu", "cpu.shares", "cpu.weight"),
            quota.replace("-1", "max").split(' ').next().unwrap().to_owned(),
            limit(&sandbox, "cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective"),
            limit(&sandbox, "pids", "pids.max", "pids.max"),
        ]
    };
    let [_, _, _, _, cpus, _] = shown();
    // v1 counts memory and swap together, v2 swap alone.
    let swap = |swap: u64, limit: u64| if is_v1("memory") { swap } else { swap - limit };
    let swaps = [swap(128 * MIB, 64 * MIB), swap(200 * MIB, 100 * MIB)].map(|s| s.to_string());
    let weight = if is_v1("cpu") { "512" } else { "59" };
    for (text, expected) in DOCKER.iter().zip([
        ["67108864", &swaps[0], weight, "max", &cpus, "max"],
        ["104857600", &swaps[1], weight, "50000", "0", "50"],
        ["104857600", &swaps[1], weight, "50000", "0", "max"],
    ]) {
        let call = sandbox.call(["update", "--resources", "-", &sandbox.id]).stdin(text);
        assert_eq!(call.output().ok().stderr, "");
        assert_eq!(shown(), expected, "after {text}");
    }
}

#[test]
fn zeros_leave_limits_alone() {
    if !has("memory") || !has("cpu") || !has("pids") {
        skip!("controllers are missing");
    }
    let sandbox = running(
        "zeros",
        json!({
            "memory": {"limit": 64 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000},
            "pids": {"limit": 50}
        }),
    );
    let before = settings(&sandbox);
    let docker = |limit: u64| {
        json!({
            "memory": {"limit": limit, "reservation": 0, "kernel": 0},
            "cpu": {"shares": 0, "quota": 0, "period": 0},
            "blockIO": {"weight": 0}
        })
    };
    assert_eq!(update_json(&sandbox, &docker(0)).ok().stderr, "");
    assert_eq!(settings(&sandbox), before);
    let all = json!({
        "memory": {"limit": 0, "swap": 0, "reservation": 0, "kernel": 0, "kernelTCP": 0},
        "cpu": {"shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0, "realtimePeriod": 0,
                "cpus": "", "mems": ""},
        "blockIO": {"weight": 0, "leafWeight": 0},
        "pids": {}, "devices": [], "hugepageLimits": null
    });
    update_json(&sandbox, &all).ok();
    let zeros =
        ["--memory=0", "--memory-swap=0", "--cpu-period=0", "--cpu-quota=0", "--cpu-share=0"];
    update(&sandbox, &zeros).ok();
    update(&sandbox, &["--cpuset-cpus", "", "--memory", "", "--blkio-weight", "0"]).ok();
    update(&sandbox, &[]).ok();
    assert_eq!(settings(&sandbox), before);
    // Later versions of containerd write the flag in one word.
    let call = sandbox.call(["update", "--resources=-", &sandbox.id]);
    call.stdin(&docker(96 * MIB).to_string()).output().ok();
    let changed: Vec<String> = settings(&sandbox)
        .into_iter()
        .filter(|(path, text)| before[path] != *text)
        .map(|(path, _)| path.rsplit('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(changed, [if is_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" }]);
}

#[test]
fn a_refused_change_leaves_all_limits_as_they_were() {
    if !["memory", "cpu", "cpuset", "pids"].iter().all(|controller| has(controller)) {
        skip!("controllers are missing");
    }
    let sandbox = running(
        "refused",
        json!({
            "memory": {"limit": 64 * MIB, "swap": 64 * MIB},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 1000},
            "devices": [{"allow": false, "access": "rwm"},
                        {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"}]
        }),
    );
    let before = settings(&sandbox);
    let good = json!({
        "memory": {"limit": 96 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB},
        "cpu": {"shares": 1024, "quota": 90000, "period": 200000, "burst": 2000, "cpus": "0"},
        "pids": {"limit": 30}
    });
    let nested = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "access": "rwm"},
        {"allow": false, "type": "c", "major": 10, "minor": 7, "access": "rwm"}
    ]);
    let mut cases = vec![
        ("/memory/swap", json!(10 * MIB), "linux.resources.memory.swap"),
        ("/cpu/quota", json!(5), "linux.resources.cpu"),
        ("/cpu/cpus", json!("4000"), "linux.resources.cpu.cpus"),
        ("/cpu/mems", json!("900"), "linux.resources.cpu.mems"),
        ("/blockIO", json!({"weight": 5000}), "linux.resources.blockIO.weight"),
        ("/hugepageLimits", json!([{"pageSize": "3XB", "limit": 1}]), "hugepageLimits"),
        ("/devices", json!([{"allow": true, "type": "z", "access": "r"}]), "devices"),
    ];
    if is_v1("devices") {
        cases.push(("/devices", nested, "linux.resources.devices"));
    }
    if !is_v1("memory") {
        let files = json!({"memory.high": "50000000", "memory.min": "1000000", "pids.max": "x"});
        cases.push(("/unified", files, "linux.resources.unified[\"pids.max\"]"));
    }
    for (place, bad, words) in cases {
        let mut resources = good.clone();
        match place[1..].split_once('/') {
            Some((object, name)) => resources[object][name] = bad,
            None => resources[&place[1..]] = bad,
        }
        let output = update_json(&sandbox, &resources).fails(1, &[words]);
        assert!(!output.stderr.contains("put back"), "{}", output.stderr);
        let mut after = settings(&sandbox);
        // A controller that was enabled for this update stays so, without limits.
        after.retain(|path, _| before.contains_key(path));
        assert_eq!(after, before, "after {place}: {}", output.stderr);
    }
    update_json(&sandbox, &good).ok();
    assert_ne!(settings(&sandbox), before);
}

#[test]
fn created_and_paused_containers_are_updated_and_stopped_ones_are_not() {
    if !has("pids") {
        skip!("no pids controller");
    }
    let sandbox = sleeper("status", json!({}));
    let pids = || limit(&sandbox, "pids", "pids.max", "pids.max");
    sandbox.create().ok();
    update(&sandbox, &["--pids-limit", "30"]).ok();
    assert_eq!((sandbox.status().as_str(), pids().as_str()), ("created", "30"));
    sandbox.start().ok();
    sandbox.ultari(["pause", &sandbox.id]).ok();
    update(&sandbox, &["--pids-limit", "40", "--memory", "100m"]).ok();
    assert_eq!((sandbox.status().as_str(), pids().as_str()), ("paused", "40"));
    sandbox.ultari(["resume", &sandbox.id]).ok();
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    update(&sandbox, &["--pids-limit", "50"]).fails(1, &["container not running"]);
}

#[test]
fn resources_come_from_a_file_too() {
    if !has("pids") {
        skip!("no pids controller");
    }
    let sandbox = running("file", json!({}));
    let file = sandbox.file("limits.json", r#"{"pids": {"limit": 33}}"#);
    let file = file.to_str().unwrap();
    update(&sandbox, &["-r", file]).ok();
    assert_eq!(limit(&sandbox, "pids", "pids.max", "pids.max"), "33");
    // As with runc, the other flags do not count then.
    update(&sandbox, &["-r", file, "--pids-limit", "44"]).ok();
    assert_eq!(limit(&sandbox, "pids", "pids.max", "pids.max"), "33");
    update(&sandbox, &["-r", "/nonexistent"]).fails(1, &["--resources", "/nonexistent"]);
}

#[test]
fn wrong_values_name_their_place_and_change_nothing() {
    let sandbox = running("wrong", json!({}));
    let before = settings(&sandbox);
    for (text, words) in [
        ("", &["--resources", "not valid JSON"][..]),
        ("{", &["not valid JSON"]),
        ("[]", &["--resources"]),
        ("null", &["--resources"]),
        (r#"{"memory": {"limit": "64m"}}"#, &["memory.limit", "string"]),
        (r#"{"memory": {"limit": 1e30}}"#, &["memory.limit"]),
        (r#"{"memory": []}"#, &["memory", "must be an object"]),
        (r#"{"pids": {"limit": "many"}}"#, &["pids.limit"]),
        (r#"{"cpu": {"shares": -1}}"#, &["cpu.shares"]),
    ] {
        let call = sandbox.call(["update", "-r", "-", &sandbox.id]);
        call.stdin(text).output().fails(1, words);
    }
    for (flag, value) in [
        ("--memory", "lots"),
        ("--memory", "-2"),
        ("--memory-swap", "1x"),
        ("--memory-reservation", "1.2.3m"),
    ] {
        update(&sandbox, &[flag, value]).fails(1, &[&flag[2..], value, "invalid value"]);
    }
    for (flag, value) in [("--cpu-quota", "1.5"), ("--pids-limit", "x"), ("--cpu-share", "-1")] {
        update(&sandbox, &[flag, value]).exits_with(1).says(&[flag]);
    }
    assert_eq!(settings(&sandbox), before);
    let typo = update_json(&sandbox, &json!({"memory": {"limits": 5}, "cpus": {}})).ok();
    typo.says(&["memory.limits", "cpus", "unknown"]);
    let kernel = update(&sandbox, &["--kernel-memory", "50m"]).ok();
    kernel.says(&["linux.resources.memory.kernel", "ignored"]);
    assert_eq!(settings(&sandbox), before);
}

#[test]
fn shares_of_caches_need_a_group() {
    let sandbox = running("rdt", json!({}));
    update(&sandbox, &["--l3-cache-schema", "L3:0=f"]).fails(1, &["linux.intelRdt"]);
    update(&sandbox, &["--mem-bw-schema", "L3:0=f"]).fails(1, &["linux.intelRdt.memBwSchema"]);
}
