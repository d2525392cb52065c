//! Properties of config.json that few runtimes take seriously: schedulers, memory policies,
//! affinity of `exec`, and what is wrong with them.

use serde_json::{Value, json};

use crate::skip;
use crate::support::{Json, Sandbox, wait_until};

/// Expects `run` to refuse what `change` makes of the default config.
#[track_caller]
fn refuses(texts: &[&str], change: impl FnOnce(&mut Value)) {
    let mut sandbox = Sandbox::with_script("refuses", "exit 0");
    change(&mut sandbox.config);
    sandbox.run().fails(1, texts);
}

fn scheduler(name: &str, scheduler: Value) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.config["process"]["scheduler"] = scheduler;
    sandbox
}

#[test]
fn scheduler_policies() {
    // The kernel keeps no nice value with SCHED_IDLE.
    for (policy, number, nice) in
        [("SCHED_OTHER", 0, 3), ("SCHED_BATCH", 3, 3), ("SCHED_IDLE", 5, 0)]
    {
        let report = scheduler("policy", json!({"policy": policy, "nice": 3})).probe();
        assert_eq!(report.integer("/scheduler/policy"), number, "{policy}");
        assert_eq!(report.integer("/scheduler/nice"), nice, "{policy}");
    }
}

#[test]
fn realtime_schedulers() {
    for (policy, number) in [("SCHED_FIFO", 1), ("SCHED_RR", 2)] {
        let mut sandbox = scheduler("rt", json!({"policy": policy, "priority": 7}));
        sandbox.args(&["/guest", "report"]);
        let output = sandbox.run();
        if output.code == 0 {
            let report = output.json();
            assert_eq!(report.integer("/scheduler/policy"), number);
            assert_eq!(report.integer("/scheduler/priority"), 7);
        } else {
            // Real-time groups of cgroup v1: a fresh cgroup has no real-time at all.
            output.fails(1, &["process.scheduler", "EPERM", "real-time"]);
        }
    }
}

#[test]
fn deadline_scheduler_with_its_times_and_flags() {
    let (runtime, deadline, period) = (2_000_000, 50_000_000, 100_000_000);
    let mut sandbox = scheduler(
        "deadline",
        json!({
            "policy": "SCHED_DEADLINE",
            "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RECLAIM"],
            "runtime": runtime, "deadline": deadline, "period": period
        }),
    );
    let expected = json!({
        "policy": 6, "flags": 0b111, "nice": 0, "priority": 0,
        "runtime": runtime, "deadline": deadline, "period": period
    });
    assert_eq!(sandbox.probe()["scheduler"], expected);
    // The processor time is promised only once: more than there is can't be.
    sandbox.config["process"]["scheduler"]["runtime"] = json!(60_000_000);
    sandbox.run().fails(1, &["process.scheduler", "EINVAL", "runtime <= deadline"]);
}

#[test]
fn scheduler_of_exec() {
    let sandbox = Sandbox::with_script("execsched", "exec sleep 100");
    sandbox.run_detached();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/guest", "report"], "cwd": "/",
        "env": [sandbox.marker()], "scheduler": {"policy": "SCHED_BATCH", "nice": 5}
    });
    let file = sandbox.file("process.json", &process.to_string());
    let call = sandbox.call(["exec", "--process"]).arg(file).arg(&sandbox.id);
    let report = call.output().ok().json();
    assert_eq!(report.integer("/scheduler/policy"), 3);
    assert_eq!(report.integer("/scheduler/nice"), 5);
    assert_eq!(sandbox.exec(&["/guest", "report"]).ok().json().integer("/scheduler/policy"), 0);
}

#[test]
fn wrong_schedulers_are_refused_by_property() {
    for (value, texts) in [
        (json!({"policy": "SCHED_FAST"}), &["process.scheduler.policy", "SCHED_FAST"][..]),
        (json!({"policy": "SCHED_ISO"}), &["process.scheduler", "SCHED_ISO"]),
        (json!({"policy": "SCHED_OTHER", "nice": 20}), &["process.scheduler.nice", "20"]),
        (json!({"policy": "SCHED_FIFO", "priority": 100}), &["process.scheduler.priority", "100"]),
        (json!({"policy": "SCHED_OTHER", "runtime": 5}), &["process.scheduler.runtime"]),
        (json!({"policy": "SCHED_OTHER", "flags": ["FLAG"]}), &["process.scheduler.flags[0]"]),
    ] {
        refuses(texts, |config| config["process"]["scheduler"] = value);
    }
}

#[test]
fn memory_policy_of_create_and_exec() {
    // include/uapi/linux/mempolicy.h
    for (policy, mode, nodes) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), 2, 1),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}), 3, 1),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), 1, 1),
        (json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}), 5, 1),
        (json!({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"}), 6, 1),
        (json!({"mode": "MPOL_LOCAL"}), 4, 0),
        (json!({"mode": "MPOL_DEFAULT"}), 0, 0),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0-0", "flags": ["MPOL_F_STATIC_NODES"]}),
            2 | 1 << 15,
            1,
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0,0", "flags": ["MPOL_F_RELATIVE_NODES"]}),
            2 | 1 << 14,
            1,
        ),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}),
            2 | 1 << 13,
            1,
        ),
    ] {
        let mut sandbox = Sandbox::with_script("mempolicy", "/guest report; exec sleep 100");
        sandbox.config["linux"]["memoryPolicy"] = policy.clone();
        let expected = json!({"mode": mode, "nodes": nodes});
        sandbox.args(&["/bin/sh", "-c", "exec sleep 100"]);
        sandbox.run_detached();
        let report = sandbox.exec(&["/guest", "report"]).ok().json();
        assert_eq!(report["memory_policy"], expected, "exec: {policy}");
        sandbox.delete_forced().ok();
        assert_eq!(sandbox.probe()["memory_policy"], expected, "{policy}");
    }
}

#[test]
fn memory_policy_is_the_kernels_in_numa_maps() {
    let mut sandbox = Sandbox::with_script("numamaps", "cat /proc/self/numa_maps");
    sandbox.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    let output = sandbox.run().ok();
    assert!(output.stdout.lines().any(|line| line.contains(" bind:0 ")), "{}", output.stdout);
}

#[test]
fn wrong_memory_policies_are_refused_by_property() {
    for (value, texts) in [
        (json!({"mode": "MPOL_MINE"}), &["linux.memoryPolicy.mode", "MPOL_MINE"][..]),
        (json!({"nodes": "0"}), &["linux.memoryPolicy", "mode"]),
        (json!({"mode": "MPOL_BIND"}), &["linux.memoryPolicy.nodes", "MPOL_BIND"]),
        (json!({"mode": "MPOL_LOCAL", "nodes": "0"}), &["linux.memoryPolicy.nodes"]),
        (json!({"mode": "MPOL_BIND", "nodes": "0-x"}), &["linux.memoryPolicy.nodes", "0-x"]),
        // More than this machine has; the kernel's own answer.
        (json!({"mode": "MPOL_BIND", "nodes": "999"}), &["linux.memoryPolicy", "999", "EINVAL"]),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_ODD"]}),
            &["linux.memoryPolicy.flags[0]", "MPOL_F_ODD"],
        ),
    ] {
        refuses(texts, |config| config["linux"]["memoryPolicy"] = value);
    }
}

/// Runs the guest by `exec` with this `execCPUAffinity`; what processors it has.
#[track_caller]
fn exec_on(sandbox: &Sandbox, affinity: &Value) -> crate::support::Output {
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/guest", "report"], "cwd": "/",
        "env": [sandbox.marker()], "execCPUAffinity": affinity
    });
    let file = sandbox.file("process.json", &process.to_string());
    sandbox.call(["exec", "--process"]).arg(file).arg(&sandbox.id).output()
}

#[test]
fn exec_cpu_affinity() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        skip!("needs two processors");
    }
    let mut sandbox = Sandbox::with_script("execcpu", "exec sleep 100");
    // Not for the container's first process.
    sandbox.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    sandbox.run_detached();
    let allowed = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        list.unwrap().trim().to_owned()
    };
    assert_ne!(allowed(sandbox.pid()), "1");
    for (affinity, list) in [
        (json!({"final": "1"}), "1"),
        (json!({"initial": "1", "final": "0"}), "0"),
        (json!({"initial": "", "final": "0-1"}), "0-1"),
        // Known to the kernel; those that are not there don't count.
        (json!({"final": "1,9"}), "1"),
    ] {
        let report = exec_on(&sandbox, &affinity).ok().json();
        assert_eq!(report.text("/status/Cpus_allowed_list"), list, "{affinity}");
    }
    // Without a process.json it is config.json's; the runtime is the one on the initial ones.
    let running = sandbox.exec_call(&[]).args(["sleep", "100"]).spawn();
    let initial = || allowed(running.pid()) == "0";
    wait_until("the runtime is on processor 0", initial);
    let report = sandbox.exec(&["/guest", "report"]).ok().json();
    assert_eq!(report.text("/status/Cpus_allowed_list"), "1");
}

#[test]
fn wrong_cpu_lists_are_refused_by_property() {
    for (name, list) in [("initial", "a"), ("final", "3-1"), ("final", "0,,1"), ("initial", "-1")] {
        let property = format!("process.execCPUAffinity.{name}");
        refuses(&[&property, list], |config| {
            config["process"]["execCPUAffinity"] = json!({name: list});
        });
    }
    let sandbox = Sandbox::with_script("wrongcpu", "exec sleep 100");
    sandbox.run_detached();
    exec_on(&sandbox, &json!({"final": "x"})).fails(255, &["process.execCPUAffinity.final", "x"]);
    for name in ["initial", "final"] {
        let property = format!("process.execCPUAffinity.{name}");
        exec_on(&sandbox, &json!({name: "8000"})).fails(255, &[&property, "EINVAL"]);
    }
}

#[test]
fn pids_without_a_limit_are_not_limited() {
    let mut sandbox = Sandbox::new("nolimit");
    sandbox.config["linux"]["resources"]["pids"] = json!({});
    assert_eq!(sandbox.attempt(&["fork 4"]), ["ok 4"]);
}

#[test]
fn personality_flags_are_refused() {
    refuses(&["linux.personality.flags"], |config| {
        config["linux"]["personality"] = json!({"domain": "LINUX", "flags": ["NO_RANDOMIZE"]});
    });
    refuses(&["linux.personality.domain", "SOLARIS"], |config| {
        config["linux"]["personality"] = json!({"domain": "SOLARIS"});
    });
}

#[test]
fn the_id_that_means_no_change_is_refused() {
    // Given to the kernel it would leave the process root.
    let last = u32::MAX;
    for property in ["uid", "gid"] {
        refuses(&[&format!("process.user.{property}")], |config| {
            config["process"]["user"][property] = json!(last);
        });
    }
    refuses(&["process.user.additionalGids"], |config| {
        config["process"]["user"]["additionalGids"] = json!([last]);
    });
    refuses(&["process.user.umask"], |config| config["process"]["user"]["umask"] = json!(0o1000));
    let sandbox = Sandbox::with_script("execmax", "exec sleep 100");
    sandbox.run_detached();
    for user in [format!("{last}"), format!("0:{last}")] {
        sandbox.exec_call(&["--user", &user]).args(["/bin/true"]).output().fails(255, &["user"]);
    }
}

#[test]
fn console_size_without_a_terminal_is_ignored() {
    let mut sandbox = Sandbox::with_script("consize", "exit 0");
    sandbox.config["process"]["consoleSize"] = json!({"height": 70000, "width": 1});
    sandbox.run().ok();
    sandbox.config["process"]["terminal"] = json!(true);
    sandbox.run().fails(1, &["process.consoleSize.height", "70000"]);
}
