//! `--timings`.

use std::fs;

use serde_json::Value;

use crate::support::Sandbox;

#[test]
fn a_run_tells_where_its_time_went() {
    let sandbox = Sandbox::with_script("timings", "sleep 0.3");
    let run = sandbox.bundle_call("run").arg("--timings").arg(&sandbox.id).output().ok();
    assert_eq!(run.stdout, "");
    let steps: Vec<(f64, f64, &str)> = run.stderr.lines().filter_map(step).collect();
    let took = |name: &str| {
        let (_, took, _) = steps.iter().find(|(.., step)| *step == name).unwrap_or_else(|| {
            panic!("no step {name:?}: {}", run.stderr);
        });
        *took
    };
    // What the program itself did is certain.
    assert!(took("the program runs") >= 290.0, "{}", run.stderr);
    assert!(took("mount /proc") < took("the program runs"));
    took("clone init into its namespaces");
    took("pivot into the root, set sysctls");
    took("remove the cgroup and the record");
    // Each process' steps follow on each other.
    let [runtime, init] = ["the runtime (ms)", "the container's init (ms)"].map(|lane| {
        let lines = run.stderr.lines().skip_while(|line| !line.ends_with(lane)).skip(1);
        lines.map_while(step).collect::<Vec<_>>()
    });
    for lane in [runtime, init] {
        assert!(lane.len() > 5, "{}", run.stderr);
        for pair in lane.windows(2) {
            let [(at, took, _), (next, ..)] = pair else { unreachable!() };
            assert!((at + took - next).abs() < 0.01, "{pair:?}");
        }
    }
}

/// A line of the report: when (ms), how long, what.
fn step(line: &str) -> Option<(f64, f64, &str)> {
    let line = line.trim_start();
    let (at, rest) = line.split_once(' ')?;
    let (took, name) = rest.trim_start().split_once("  ")?;
    Some((at.parse().ok()?, took.parse().ok()?, name))
}

#[test]
fn files_are_written_as_their_names_say() {
    let sandbox = Sandbox::with_script("timings-files", "true");
    let run = |name: &str| {
        let file = sandbox.dir.join(name);
        let flag = format!("--timings={}", file.display());
        assert_eq!(sandbox.bundle_call("run").arg(flag).arg(&sandbox.id).output().ok().stderr, "");
        fs::read_to_string(file).unwrap()
    };
    let trace: Value = serde_json::from_str(&run("a.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "mount /proc" && event["tid"] == 1));
    let svg = run("a.svg");
    assert!(svg.starts_with("<svg") && svg.contains(">mount /proc "), "{svg}");
    assert!(run("a.txt").contains("  mount /proc\n"));
    let flag = "--timings=/nonexistent/a.svg";
    let output = sandbox.bundle_call("run").arg(flag).arg(&sandbox.id).output();
    output.fails(1, &["--timings", "/nonexistent/a.svg"]);
    sandbox.expect_nothing_left();
}

#[test]
fn create_and_exec_are_timed_and_a_variable_asks_for_it_too() {
    let sandbox = Sandbox::with_script("timings-exec", "sleep 100");
    let call = sandbox.bundle_call("create").arg(&sandbox.id).env("ULTARI_TIMINGS", "1");
    let create = call.output().ok().stderr;
    assert!(create.contains("wait until init is ready") && create.contains("mount /proc"));
    let start = sandbox.call(["start"]).arg(&sandbox.id).env("ULTARI_TIMINGS", "1").output().ok();
    assert_eq!(start.stderr, "");
    let exec = sandbox.call(["exec", "--timings"]).args([&sandbox.id, "/bin/true"]).output().ok();
    assert!(exec.stderr.contains("join the namespaces"), "{}", exec.stderr);
    sandbox.delete_forced().ok();
}

#[test]
fn nothing_is_said_unless_asked_for() {
    let sandbox = Sandbox::with_script("timings-off", "true");
    let call = sandbox.bundle_call("run").arg(&sandbox.id).env("ULTARI_TIMINGS", "0");
    assert_eq!(call.output().ok().stderr, "");
}
