//! `events` (figures, and the news that memory ran out) and `ps`.

use std::fs;

use serde_json::{Value, json};

use crate::cgroups::{has, is_v1, sleeper};
use crate::skip;
use crate::support::{HIERARCHIES, Json, Output, Sandbox, wait_until};

const MIB: u64 = 1 << 20;

#[track_caller]
fn events(sandbox: &Sandbox, flags: &[&str]) -> Output {
    sandbox.call(["events"]).args(flags).arg(&sandbox.id).output()
}

/// The figures of `events --stats`.
#[track_caller]
fn stats(sandbox: &Sandbox) -> Value {
    let output = events(sandbox, &["--stats"]).ok();
    let start = format!(r#"{{"type":"stats","id":"{}","data":{{"cpu":"#, sandbox.id);
    assert!(output.stdout.starts_with(&start), "runc's order: {}", output.stdout);
    assert_eq!(output.stdout.lines().count(), 1, "{}", output.stdout);
    output.json()["data"].take()
}

fn oom(sandbox: &Sandbox) -> String {
    format!(r#"{{"type":"oom","id":"{}"}}"#, sandbox.id)
}

#[test]
fn stats_have_the_figures_of_each_controller() {
    if !["memory", "cpu", "pids", "cpuset"].iter().all(|controller| has(controller)) {
        skip!("controllers are missing");
    }
    let sandbox = sleeper(
        "stats",
        json!({
            "memory": {"limit": 64 * MIB, "swap": 96 * MIB},
            "cpu": {"quota": 10000, "period": 50000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 20}
        }),
    );
    sandbox.run_detached();
    assert_eq!(sandbox.exec_attempt(&["burn 300"]), ["ok"]);
    sandbox.exec(&["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=8"]).ok();
    let stats = stats(&sandbox);
    let usage = &stats["cpu"]["usage"];
    assert!(usage.integer("/total") > 10_000_000, "nanoseconds: {usage}");
    assert!(usage.integer("/user") > 0 && usage.integer("/kernel") >= 0, "{usage}");
    assert!(stats.integer("/cpu/throttling/periods") > 0, "{stats}");
    assert!(stats.integer("/cpu/throttling/throttledPeriods") > 0, "{stats}");
    assert!(stats.integer("/cpu/throttling/throttledTime") > 1_000_000, "nanoseconds: {stats}");
    let memory = &stats["memory"];
    assert_eq!(memory["usage"]["limit"], 64 * MIB);
    assert!((8 * MIB..64 * MIB).contains(&memory["usage"]["usage"].as_u64().unwrap()), "{memory}");
    assert_eq!(memory["swap"]["limit"], 96 * MIB, "memory and swap together");
    assert!(memory["swap"]["usage"].as_u64() >= memory["usage"]["usage"].as_u64(), "{memory}");
    assert!(memory.integer("/cache") as u64 >= 8 * MIB, "{memory}");
    assert!(memory["raw"].as_object().unwrap().len() > 20, "{memory}");
    assert_eq!((&stats["pids"]["current"], &stats["pids"]["limit"]), (&json!(1), &json!(20)));
    assert_eq!((&stats["cpuset"]["cpus"], &stats["cpuset"]["mems"]), (&json!([0]), &json!([0])));
    assert!(stats["blkio"].is_object() && stats["intel_rdt"] == json!({}), "{stats}");
    assert!(stats.as_object().unwrap().contains_key("network_interfaces"), "{stats}");
    if is_v1("cpuacct") {
        let cpus = usage["percpu"].as_array().unwrap();
        assert!(cpus[0].as_u64().unwrap() > 10_000_000, "{usage}");
        for list in ["percpu_kernel", "percpu_user"] {
            assert_eq!(usage[list].as_array().unwrap().len(), cpus.len(), "{usage}");
        }
    }
    let pressure = HIERARCHIES.iter().map(|h| h.join(&sandbox.cgroup()[1..]).join("cpu.pressure"));
    if pressure.into_iter().any(|file| fs::read_to_string(file).is_ok()) {
        assert!(stats["cpu"]["psi"].is_object() && stats["memory"]["psi"].is_object(), "{stats}");
    }
    if has("hugetlb") && fs::exists("/sys/kernel/mm/hugepages/hugepages-2048kB").unwrap() {
        // On a hybrid host the controller of v2 is enabled for those who limit something.
        assert!(!is_v1("memory") || stats["hugetlb"] == json!({}) || is_v1("hugetlb"), "{stats}");
        let limits = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]});
        let call = sandbox.call(["update", "-r", "-", &sandbox.id]).stdin(&limits.to_string());
        call.output().ok();
        assert_eq!(self::stats(&sandbox)["hugetlb"]["2MB"], json!({"failcnt": 0}));
    }
}

#[test]
fn without_a_limit_there_is_none_in_the_figures() {
    let sandbox = sleeper("unlimited", json!({}));
    sandbox.run_detached();
    let stats = stats(&sandbox);
    assert!(stats["pids"].get("limit").is_none(), "{stats}");
    if !is_v1("memory") {
        assert_eq!(stats["memory"]["usage"]["limit"], u64::MAX);
    }
}

#[test]
fn figures_come_again_and_again_until_the_container_ends() {
    let sandbox = sleeper("interval", json!({}));
    sandbox.run_detached();
    let mut running = sandbox.call(["events", "--interval", "20ms", &sandbox.id]).spawn();
    wait_until("three lines came", || running.stdout().lines().count() >= 3);
    sandbox.ultari(["pause", &sandbox.id]).ok();
    let before = running.stdout().lines().count();
    wait_until("a paused container has figures too", || {
        running.stdout().lines().count() > before + 1
    });
    assert!(running.is_running());
    sandbox.delete_forced().ok();
    let output = running.wait().ok();
    assert_eq!(output.stderr, "");
    for line in output.stdout.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["type"], "stats", "its end is not for want of memory: {line}");
        assert!(event.integer("/data/pids/current") > 0, "{line}");
    }
}

#[test]
fn want_of_memory_is_told_and_the_container_goes_on() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let sandbox = sleeper("oom", json!({"memory": {"limit": 40 * MIB, "swap": 40 * MIB}}));
    sandbox.run_detached();
    // Killed before anybody watched: that is no news.
    sandbox.exec(&["/guest", "do", "alloc 200"]).exits_with(137);
    let mut running = sandbox.call(["events", "--interval=20ms", &sandbox.id]).spawn();
    wait_until("it watches", || !running.stdout().is_empty());
    assert!(!running.stdout().contains("oom\""), "{}", running.stdout());
    let line = oom(&sandbox);
    let count = |text: &str| text.lines().filter(|other| *other == line).count();
    for round in 1..=2 {
        sandbox.exec(&["/guest", "do", "alloc 200"]).exits_with(137);
        wait_until("it is told", || count(&running.stdout()) >= round);
    }
    assert!(running.is_running());
    assert_eq!(sandbox.status(), "running");
    sandbox.kill("KILL").ok();
    let output = running.wait().ok();
    assert_eq!(count(&output.stdout), 2, "one event a time: {}", output.stdout);
}

#[test]
fn want_of_memory_that_ends_the_container_is_told() {
    if !has("memory") {
        skip!("no memory controller");
    }
    let mut sandbox = Sandbox::new("oomend");
    sandbox.config["linux"]["resources"]["memory"] = json!({"limit": 40 * MIB, "swap": 40 * MIB});
    sandbox.args(&["/guest", "do", "alloc 200"]);
    sandbox.create().ok();
    let running = sandbox.call(["events", "--interval", "20ms", &sandbox.id]).spawn();
    wait_until("it watches", || !running.stdout().is_empty());
    sandbox.start().ok();
    let output = running.wait().ok();
    // Figures may come between the news and the end.
    assert_eq!(output.stdout.lines().filter(|line| *line == oom(&sandbox)).count(), 1);
}

#[test]
fn only_a_container_that_runs_has_events() {
    let sandbox = sleeper("ended", json!({}));
    sandbox.run_detached();
    for (interval, words) in [
        ("0", "greater than 0"),
        ("0s", "greater than 0"),
        ("5", "--interval"),
        ("x", "--interval"),
        ("1q", "--interval"),
    ] {
        events(&sandbox, &["--interval", interval]).fails(1, &[words]);
    }
    events(&sandbox, &["--stats", "--interval", "1h1m30.5s"]).ok();
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    let text = format!("container with id {} is not running", sandbox.id);
    events(&sandbox, &[]).fails(1, &[&text]);
    events(&sandbox, &["--stats"]).fails(1, &[&text]);
}

#[test]
fn an_interval_beyond_all_time_is_for_ever() {
    let sandbox = sleeper("forever", json!({}));
    sandbox.run_detached();
    let running = sandbox.call(["events", "--interval", "9999999999years", &sandbox.id]).spawn();
    sandbox.kill("KILL").ok();
    let output = running.wait();
    // Either the events were being watched, or the container was gone before.
    assert!(output.code == 0 || output.stderr.contains("is not running"), "{output:?}");
    assert_eq!(output.stdout, "");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let sandbox = sleeper("head", json!({}));
    sandbox.run_detached();
    let call = sandbox.call(["events", "--interval", "10ms", &sandbox.id]);
    let script = "{ \"$@\"; echo \"status $?\" >&2; } | head -n 1";
    let output = call.wrapped(script).output().ok();
    assert_eq!(output.stdout.lines().count(), 1);
    assert_eq!(output.stderr, "status 0\n");
}

#[test]
fn ps_passes_what_follows_the_name_on() {
    let sandbox = sleeper("psflags", json!({}));
    sandbox.run_detached();
    let pid = sandbox.pid().to_string();
    let titles = |output: &Output| -> Vec<String> {
        let title = output.stdout.lines().next().unwrap();
        title.split_whitespace().map(str::to_owned).collect()
    };
    let table = sandbox.ultari(["ps", &sandbox.id]).ok();
    assert_eq!(titles(&table), ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert_eq!(table.stdout.lines().count(), 2, "{}", table.stdout);
    let table = sandbox.ultari(["ps", &sandbox.id, "-e", "-x"]).ok();
    assert_eq!(titles(&table), ["PID", "TTY", "STAT", "TIME", "COMMAND"]);
    // Where they have the same letter as one of ours, too.
    let table = sandbox.ultari(["ps", &sandbox.id, "-e", "-f"]).ok();
    assert_eq!(titles(&table)[..3], ["UID", "PID", "PPID"]);
    assert!(table.stdout.lines().nth(1).unwrap().contains(&pid), "{}", table.stdout);
    let listed = sandbox.ultari(["ps", "-f", "json", &sandbox.id, "-ef"]).ok().json();
    assert_eq!(listed, json!([sandbox.pid()]));
    sandbox.ultari(["ps", &sandbox.id, "-o", "comm"]).fails(1, &["PID"]);
    sandbox.ultari(["ps", &sandbox.id, "--nonsense"]).exits_with(1).says(&["ps --nonsense"]);
    sandbox.ultari(["ps", "-f", "yaml", &sandbox.id]).exits_with(1).says(&["yaml"]);
    sandbox.ultari(["ps"]).exits_with(1);
}

#[test]
fn ps_of_a_stopped_container_is_empty() {
    let sandbox = sleeper("psend", json!({}));
    sandbox.run_detached();
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    assert_eq!(sandbox.ultari(["ps", &sandbox.id]).ok().stdout.lines().count(), 1);
    assert_eq!(sandbox.ultari(["ps", "--format=json", &sandbox.id]).ok().json(), json!([]));
}
