//! The crash matrix: each system call of each command is hit once, by SIGKILL and by errors. Whatever
//! comes of it, `state` tells the truth afterwards and `delete --force` leaves nothing.
//!
//! There are many thousand points; `CRASH_MATRIX=N` takes every Nth (`make crash-matrix`: all).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::leftovers::{is_described, rich};
use crate::skip;
use crate::support::{PATIENCE, Run, Sandbox};

/// A sample that `make test` has time for; where all is slow, a smaller one.
fn default_step() -> usize {
    if *PATIENCE > Duration::from_secs(20) { 499 } else { 61 }
}

const FAULTS: [&str; 5] =
    ["signal=KILL", "error=ENOMEM", "error=EINTR", "error=EIO", "error=EPERM"];

/// Calls whose errors mean what an injected one doesn't: no process comes back from the first three,
/// close(2) releases the descriptor whatever it returns, while an injected error skips it, and without
/// brk(2) the container's program has a fault in its libc, which never ends a traced first process.
const NO_ERRORS: [&str; 5] = ["exit", "exit_group", "rt_sigreturn", "close", "brk"];

/// One command: what it needs before, and its call.
struct Command {
    prepare: fn(&Sandbox),
    call: fn(&Sandbox) -> Run,
    /// Also the processes that it starts: the container's first as long as it is the runtime.
    follow: bool,
}

fn traced(command: &Command, sandbox: &Sandbox, options: &str) -> Run {
    let follow = if command.follow { "-f" } else { "" };
    // With -D the tracer is the child, and so the exit status the program's own.
    let line = format!("exec strace -D -qq {follow} {options} \"$@\"");
    (command.call)(sandbox).wrapped(&line)
}

/// How often the busiest process makes each call.
fn calls(command: &Command, sandbox: &Sandbox) -> BTreeMap<String, usize> {
    let log = sandbox.dir.join("trace");
    (command.prepare)(sandbox);
    traced(command, sandbox, &format!("-ff -o {}", log.display())).output();
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
    let mut most = BTreeMap::new();
    for entry in std::fs::read_dir(&sandbox.dir).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("trace") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for name in text.lines().filter_map(|line| Some(line.split_once('(')?.0)) {
            let word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            *counts.entry(name.to_owned()).or_default() += usize::from(word);
        }
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            let known = most.entry(name).or_insert(0);
            *known = count.max(*known);
        }
    }
    most
}

fn try_all(name: &str, command: &Command) {
    let step = std::env::var("CRASH_MATRIX").ok().and_then(|text| text.parse().ok());
    let step: usize = step.unwrap_or_else(default_step);
    let mut sandbox = rich(name);
    if command.follow {
        sandbox.script("exit 0");
    }
    let mut points = Vec::new();
    for (call, count) in calls(command, &sandbox) {
        for fault in FAULTS {
            if fault == FAULTS[0] || !NO_ERRORS.contains(&call.as_str()) {
                points.extend((1..=count).map(|when| (call.clone(), fault, when)));
            }
        }
    }
    assert!(points.len() > 100, "{name}: only {} points", points.len());
    let chosen: Vec<_> = points.iter().step_by(step).collect();
    for (call, fault, when) in &chosen {
        let point = format!("{name}: {fault} at {call} number {when}");
        // Shown when the test fails.
        println!("{point}");
        (command.prepare)(&sandbox);
        let options = format!("-o /dev/null --trace={call} --inject={call}:{fault}:when={when}");
        let output = traced(command, &sandbox, &options).output();
        // The standard library's own start may give up that way; nothing exists by then.
        assert!(!output.stderr.contains("panicked at src/"), "{point}: {output:?}");
        is_described(&sandbox, &point);
        let deleted = sandbox.delete_forced();
        assert_eq!(deleted.code, 0, "{point}: {deleted:?}");
        sandbox.expect_nothing_left();
    }
    eprintln!(
        "crash matrix: {name}: {} of {} points tried, nothing left",
        chosen.len(),
        points.len()
    );
}

macro_rules! commands {
    ($($name:ident: $prepare:expr, $call:expr, $follow:expr;)*) => {$(
        #[test]
        fn $name() {
            if !Path::new("/usr/bin/strace").exists() {
                skip!("strace is not installed");
            }
            let command = Command { prepare: $prepare, call: $call, follow: $follow };
            try_all(concat!("crash-", stringify!($name)), &command);
        }
    )*};
}

commands! {
    create: |_| {}, |sandbox| sandbox.bundle_call("create").arg(&sandbox.id), false;
    run: |_| {}, |sandbox| sandbox.bundle_call("run").arg(&sandbox.id), true;
    start: |sandbox| drop(sandbox.create().ok()), |sandbox| sandbox.call(["start", &sandbox.id]), false;
    exec: |sandbox| drop(sandbox.run_detached()),
        |sandbox| sandbox.exec_call(&[]).arg("/bin/true"), true;
    pause: |sandbox| drop(sandbox.run_detached()), |sandbox| sandbox.call(["pause", &sandbox.id]), false;
    resume: |sandbox| { sandbox.run_detached(); sandbox.ultari(["pause", &sandbox.id]).ok(); },
        |sandbox| sandbox.call(["resume", &sandbox.id]), false;
    kill: |sandbox| drop(sandbox.run_detached()),
        |sandbox| sandbox.call(["kill", &sandbox.id, "KILL"]), false;
    update: |sandbox| drop(sandbox.run_detached()),
        |sandbox| sandbox.call(["update", "--memory", "64m", "--pids-limit", "9", &sandbox.id]), false;
    delete: |sandbox| drop(sandbox.create().ok()), |sandbox| sandbox.call(["delete", &sandbox.id]), false;
    delete_force: |sandbox| drop(sandbox.run_detached()),
        |sandbox| sandbox.call(["delete", "--force", &sandbox.id]), false;
}
