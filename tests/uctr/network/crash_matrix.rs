//! The crash matrix of networks: each system call that a command makes, those of the monitor and of
//! its helpers included, is where SIGKILL hits it once. Whatever comes of it, the container can be
//! removed, and the host is as it was before.
//!
//! There are some thousand points; `CRASH_MATRIX=N` takes every Nth (`make crash-matrix`: all).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::hosts::Host;
use crate::support::comes_about;

/// A sample that `make test` has time for.
const STEP: usize = 211;

/// What the container needs before, and the call that is hit.
struct Case {
    prepare: &'static [&'static [&'static str]],
    call: &'static [&'static str],
}

const CREATE: &[&str] = &[
    "create",
    "--name",
    "web",
    "--network",
    "net1",
    "--network-alias",
    "a",
    "-p",
    "8080:80",
    "web",
];
const RUN: &[&str] = &["run", "-d", "--name", "web", "-p", "8080:80", "web"];

/// Starts `uctr` under strace(1), which stays as long as anything of it runs.
fn traced(host: &Host, options: &[&str], call: &[&str]) -> Child {
    let uctr = host.0.command(call);
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq"]).args(options).arg(uctr.get_program()).args(uctr.get_args());
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// How often the busiest process makes each call.
fn calls(host: &Host, case: &Case) -> BTreeMap<String, usize> {
    let folder = host.0.dir.path().join("trace");
    std::fs::create_dir(&folder).unwrap();
    case.prepare.iter().for_each(|args| drop(host.says(args)));
    let file = folder.join("of");
    traced(host, &["-ff", "-o", file.to_str().unwrap()], case.call).wait().unwrap();
    // The monitor, which is traced too, waits for the container.
    host.uctr(&["rm", "-f", "web"]).ok();
    let mut most = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for name in text.lines().filter_map(|line| Some(line.split_once('(')?.0)) {
            *counts.entry(name).or_default() += 1;
        }
        for (name, count) in counts {
            let known = most.entry(name.to_owned()).or_insert(0);
            *known = count.max(*known);
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    most
}

fn try_all(name: &str, case: &Case) {
    if !Path::new("/usr/bin/strace").exists() {
        println!("skipped {name}: strace is not installed");
        return;
    }
    let step = std::env::var("CRASH_MATRIX").ok().and_then(|text| text.parse().ok());
    let host = Host::new();
    host.says(&["network", "create", "net1"]);
    let before = host.traces();
    let calls = calls(&host, case);
    let points: Vec<_> =
        calls.iter().flat_map(|(call, count)| (1..=*count).map(move |when| (call, when))).collect();
    assert!(points.len() > 300, "{name}: only {} points", points.len());
    let chosen: Vec<_> = points.iter().step_by(step.unwrap_or(STEP)).collect();
    for (call, when) in &chosen {
        // Shown when the test fails.
        println!("{name}: SIGKILL at {call} number {when}");
        case.prepare.iter().for_each(|args| drop(host.says(args)));
        let id = host.says(&["ps", "-aq", "--no-trunc"]);
        let fault = format!("--inject={call}:signal=KILL:when={when}");
        let trace = format!("--trace={call}");
        traced(&host, &["-o", "/dev/null", &trace, &fault], case.call).wait().unwrap();
        // What was removed is not there to be removed.
        if !host.says(&["ps", "-aq"]).is_empty() {
            host.uctr(&["rm", "-f", "web"]).ok();
        }
        host.0.is_gone(&id);
        // The next one on a network tidies up what the last has left.
        host.says(&["run", "--rm", "web", "true"]);
        if !comes_about(|| host.traces() == before) {
            assert_eq!(host.traces(), before);
        }
    }
    println!("crash matrix: {name}: {} of {} points tried", chosen.len(), points.len());
}

macro_rules! cases {
    ($($name:ident: $prepare:expr, $call:expr;)*) => {$(
        #[test]
        fn $name() {
            try_all(stringify!($name), &Case { prepare: $prepare, call: $call });
        }
    )*};
}

cases! {
    start_on_a_network: &[CREATE], &["start", "web"];
    stop_on_a_network: &[RUN], &["stop", "-t", "0", "web"];
    rm_on_a_network: &[RUN], &["rm", "-f", "web"];
    connect: &[RUN], &["network", "connect", "net1", "web"];
    disconnect: &[RUN, &["network", "connect", "net1", "web"]],
        &["network", "disconnect", "bridge", "web"];
}
