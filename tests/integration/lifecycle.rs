//! create, start, state, kill, delete, run, list, ps, pause, resume: what engines build upon.

use std::fs;
use std::path::Path;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Json, Sandbox, host, program, wait_until};

#[test]
fn create_start_state_kill_delete() {
    let sandbox = Sandbox::with_script("life", "echo started; exec sleep 100");
    let created = sandbox.create().ok();
    assert_eq!(sandbox.status(), "created");
    assert_eq!(created.stdout_by_now(), "", "the program must not run before start");
    let pid = sandbox.pid();
    sandbox.start().ok();
    assert_eq!(sandbox.status(), "running");
    assert_eq!(sandbox.pid(), pid, "the same process is init from create on");
    wait_until("the program has started", || created.stdout_by_now() == "started\n");
    sandbox.kill("KILL").ok();
    assert_eq!(host().exit_code_of_orphan(pid), 137);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
    sandbox.expect_nothing_left();
}

/// Of what the runtime needed to make the container, 300 KiB, not much is held.
#[test]
fn who_waits_for_the_start_holds_little_memory() {
    let mut sandbox = Sandbox::with_script("little", "exit 7");
    let profile = include_str!("../data/configs/docker28-run-rm-echo.json");
    let profile: Value = serde_json::from_str(profile).unwrap();
    // Which keeps its relocated pointers.
    let program = fs::read(program()).unwrap();
    let glibc = program.windows(13).any(|text| text == b"GNU C Library");
    let more = if glibc { 64 } else { 0 };
    for seccomp in [Value::Null, profile["linux"]["seccomp"].clone()] {
        sandbox.config["linux"]["seccomp"] = seccomp;
        sandbox.create().ok();
        let rollup = format!("/proc/{}/smaps_rollup", sandbox.pid());
        let anonymous = || -> u32 {
            let text = fs::read_to_string(&rollup).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
        };
        wait_until("it has little memory", || anonymous() <= 160 + more);
        let pid = sandbox.pid();
        sandbox.start().ok();
        assert_eq!(host().exit_code_of_orphan(pid), 7);
        sandbox.delete().ok();
    }
}

#[test]
fn state_has_the_properties_of_the_spec() {
    let mut sandbox = Sandbox::with_script("state", "sleep 100");
    sandbox.config["annotations"] = json!({"org.example.key": "value"});
    sandbox.create().ok();
    let state = sandbox.state();
    assert!(state.text("/ociVersion").starts_with("1."));
    assert_eq!(state["id"], json!(sandbox.id));
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], json!(sandbox.bundle()));
    assert_eq!(state["annotations"]["org.example.key"], "value");
    let pid = state.integer("/pid");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    sandbox.start().ok();
    sandbox.kill("9").ok();
    sandbox.wait_for("stopped");
    // The spec wants no pid, or 0, of what has no process.
    assert_eq!(sandbox.state().get("pid").and_then(Value::as_i64).unwrap_or(0), 0);
}

#[test]
fn bundle_is_the_current_folder_by_default() {
    let sandbox = Sandbox::with_script("cwd", "echo here");
    sandbox.write_config();
    let output = sandbox.call(["run", &sandbox.id]).cwd(sandbox.bundle()).output();
    output.ok().prints("here");
}

#[test]
fn bundle_path_may_be_relative_and_state_has_it_absolute() {
    let sandbox = Sandbox::with_script("relative", "sleep 100");
    sandbox.write_config();
    let call = sandbox.call(["create", "-b", "bundle", &sandbox.id]).cwd(&sandbox.dir);
    call.output().ok();
    assert_eq!(sandbox.state()["bundle"], json!(sandbox.bundle()));
}

#[test]
fn exit_code_of_run_is_that_of_the_program() {
    for code in [0, 1, 7, 255] {
        let sandbox = Sandbox::with_script("exit", &format!("exit {code}"));
        sandbox.run().exits_with(code);
        sandbox.expect_nothing_left();
    }
}

#[test]
fn exit_code_of_run_is_128_and_the_signal() {
    let sandbox = Sandbox::with_script("signal", "exec sleep 100");
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    wait_until("it runs", || sandbox.ultari(["state", &sandbox.id]).stdout.contains("running"));
    // The kernel drops signals without a handler for the first process of a PID namespace.
    sandbox.kill("TERM").ok();
    sandbox.kill("KILL").ok();
    running.wait().exits_with(137);
    sandbox.expect_nothing_left();
}

#[test]
fn signals_end_a_container_in_the_hosts_pid_namespace() {
    for (signal, code) in [("TERM", 143), ("ABRT", 134), ("HUP", 129)] {
        let mut sandbox = Sandbox::with_script("hostpid", "exec sleep 100");
        crate::support::remove_namespace(&mut sandbox.config, "pid");
        let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
        wait_until("it runs", || sandbox.ultari(["state", &sandbox.id]).stdout.contains("running"));
        sandbox.kill(signal).ok();
        running.wait().exits_with(code);
        sandbox.expect_nothing_left();
    }
}

#[test]
fn run_forwards_signals() {
    let mut sandbox = Sandbox::new("forward");
    sandbox.args(&["/guest", "signals"]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    wait_until("the guest is ready", || running.stdout().contains("ready"));
    for (signal, name) in
        [(Signal::SIGUSR1, "SIGUSR1"), (Signal::SIGHUP, "SIGHUP"), (Signal::SIGINT, "SIGINT")]
    {
        running.signal(signal);
        wait_until("the guest has the signal", || running.stdout().contains(name));
    }
    running.signal(Signal::SIGTERM);
    running.wait().exits_with(42);
}

#[test]
fn run_forwards_the_first_real_time_signal() {
    let script = "trap 'exit 34' 34; echo ready; while :; do sleep 0.05; done";
    let sandbox = Sandbox::with_script("real-time", script);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    wait_until("the shell is ready", || running.stdout().contains("ready"));
    let kill = ["-c", &format!("kill -34 {}", running.pid())];
    let kill = host().output(std::process::Command::new("sh").args(kill)).unwrap();
    assert!(kill.status.success(), "{kill:?}");
    running.wait().exits_with(34);
}

#[test]
fn kill_takes_names_and_numbers() {
    let mut sandbox = Sandbox::new("kill");
    sandbox.args(&["/guest", "signals"]);
    let created = sandbox.create().ok();
    sandbox.start().ok();
    wait_until("the guest is ready", || created.stdout_by_now().contains("ready"));
    let pid = sandbox.pid();
    for (given, name) in
        [("USR1", "SIGUSR1"), ("SIGUSR2", "SIGUSR2"), ("1", "SIGHUP"), ("int", "SIGINT")]
    {
        sandbox.kill(given).ok();
        wait_until(name, || created.stdout_by_now().contains(name));
    }
    // TERM is the default.
    sandbox.ultari(["kill", &sandbox.id]).ok();
    assert_eq!(host().exit_code_of_orphan(pid), 42);
    sandbox.wait_for("stopped");
    sandbox.kill("KILL").fails(1, &["container not running"]);
}

#[test]
fn kill_refuses_an_unknown_signal() {
    let sandbox = Sandbox::with_script("nosignal", "exec sleep 100");
    sandbox.run_detached();
    for signal in ["FOO", "SIGFOO", "99", "-1"] {
        let mut call = sandbox.call(["kill", &sandbox.id]);
        call = if signal.starts_with('-') { call.arg("--") } else { call };
        call.arg(signal).output().fails(1, &[]);
    }
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn kill_works_before_start() {
    let sandbox = Sandbox::with_script("early", "exec sleep 100");
    sandbox.create().ok();
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.start().exits_with(1);
    sandbox.delete().ok();
}

#[test]
fn kill_all_reaches_every_process() {
    let mut sandbox = Sandbox::with_script("all", "sleep 101 & sleep 102 & exec sleep 103");
    // With a PID namespace of its own the kernel would end the others with init.
    crate::support::remove_namespace(&mut sandbox.config, "pid");
    sandbox.run_detached();
    let count = || {
        let listed = sandbox.ultari(["ps", "--format", "json", &sandbox.id]).ok().json();
        listed.as_array().unwrap().len()
    };
    wait_until("all three are there", || count() == 3);
    sandbox.ultari(["kill", "--all", &sandbox.id, "KILL"]).ok();
    sandbox.wait_for("stopped");
    wait_until("none is left", || crate::support::marked_processes(&sandbox.marker()).is_empty());
    sandbox.delete().ok();
}

#[test]
fn delete_ends_all_processes_of_a_container_in_the_hosts_pid_namespace() {
    let mut sandbox = Sandbox::with_script("strays", "sleep 101 & sleep 102 & exit 3");
    crate::support::remove_namespace(&mut sandbox.config, "pid");
    sandbox.run().exits_with(3);
    sandbox.expect_nothing_left();
    sandbox.script("sleep 101 & exec sleep 102");
    sandbox.run_detached();
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn delete_of_a_created_container_ends_it() {
    // The spec would refuse it; engines rely on runc's way.
    let sandbox = Sandbox::with_script("undone", "exec sleep 100");
    sandbox.create().ok();
    sandbox.delete().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn delete_refuses_a_running_container_unless_forced() {
    let sandbox = Sandbox::with_script("busy", "exec sleep 100");
    sandbox.run_detached();
    sandbox.delete().fails(1, &[&sandbox.id, "running"]);
    assert_eq!(sandbox.status(), "running");
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn delete_of_a_paused_container_needs_force() {
    let sandbox = Sandbox::with_script("frozen", "exec sleep 100");
    sandbox.run_detached();
    sandbox.ultari(["pause", &sandbox.id]).ok();
    sandbox.delete().fails(1, &["paused"]);
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn delete_of_a_traced_container_names_the_tracer() {
    // A dead process is there until its tracer has noticed, and a PID namespace until all are gone.
    let sandbox = Sandbox::with_script("traced", "sleep 100 & exec sleep 100");
    sandbox.run_detached();
    let mut traced: Vec<i64> = Vec::new();
    wait_until("both run", || {
        let pids = sandbox.ultari(["ps", "-f", "json", &sandbox.id]).ok().json();
        traced = pids.as_array().unwrap().iter().map(|pid| pid.as_i64().unwrap()).collect();
        traced.len() == 2
    });
    let traced: Vec<_> = traced.into_iter().map(|pid| Pid::from_raw(pid as i32)).collect();
    for &pid in &traced {
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    }
    let tracer = format!("process {} (", nix::unistd::gettid());
    sandbox.delete_forced().ok().says(&["warning", "SIGKILL", &tracer, "traces it"]);
    for pid in traced.into_iter().rev() {
        nix::sys::wait::waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    }
    sandbox.expect_nothing_left();
}

#[test]
fn delete_of_an_unknown_container() {
    let sandbox = Sandbox::new("unknown");
    sandbox.delete().fails(1, &["does not exist"]);
    let output = sandbox.delete_forced().ok();
    assert_eq!(output.stderr, "", "containerd calls it after each delete: no noise");
}

#[test]
fn every_command_says_that_an_unknown_container_does_not_exist() {
    let sandbox = Sandbox::new("nobody");
    for command in ["state", "start", "kill", "ps", "pause", "resume", "delete", "update", "events"]
    {
        sandbox.ultari([command, "nobody"]).fails(1, &["does not exist"]);
    }
    let output = sandbox.ultari(["exec", "nobody", "/bin/true"]);
    assert!(output.code == 255, "exec fails as runc's: {}", output.code);
    output.says(&["does not exist"]);
}

#[test]
fn run_detached_returns_and_leaves_the_container() {
    let sandbox = Sandbox::with_script("detached", "echo up; exec sleep 100");
    let output = sandbox.run_detached();
    wait_until("its output arrives", || output.stdout_by_now() == "up\n");
    assert_eq!(sandbox.status(), "running");
    let pid = sandbox.pid();
    sandbox.kill("KILL").ok();
    assert_eq!(host().exit_code_of_orphan(pid), 137);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
}

#[test]
fn run_removes_the_container_unless_told_to_keep_it() {
    let sandbox = Sandbox::with_script("keep", "exit 5");
    sandbox.bundle_call("run").args(["--keep", &sandbox.id]).output().exits_with(5);
    assert_eq!(sandbox.status(), "stopped");
    sandbox.delete().ok();
    sandbox.run().exits_with(5);
    sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
}

#[test]
fn pid_file_has_the_pid_and_nothing_else() {
    let sandbox = Sandbox::with_script("pidfile", "exec sleep 100");
    let file = sandbox.dir.join("pid");
    sandbox.bundle_call("create").arg("--pid-file").arg(&file).arg(&sandbox.id).output().ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), sandbox.pid().to_string());
    sandbox.delete().ok();
    let file = sandbox.dir.join("pid2");
    let call = sandbox.bundle_call("run").arg("-d").arg("--pid-file").arg(&file);
    call.arg(&sandbox.id).output().ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), sandbox.pid().to_string());
}

#[test]
fn stdin_stdout_and_stderr_are_the_callers() {
    let sandbox = Sandbox::with_script("stdio", "read line; echo \"got $line\"; echo bad >&2");
    let output = sandbox.bundle_call("run").arg(&sandbox.id).stdin("a line\n").output().ok();
    assert_eq!(output.stdout, "got a line\n");
    assert_eq!(output.stderr, "bad\n");
}

#[test]
fn list_shows_all_containers_in_each_format() {
    let sandbox = Sandbox::with_script("list", "exec sleep 100");
    sandbox.ultari(["list"]).ok();
    sandbox.ultari(["list", "--quiet"]).ok().prints("");
    let empty = sandbox.ultari(["list", "--format", "json"]).ok().json();
    assert!(empty.is_null() || empty == json!([]), "{empty}");
    sandbox.create().ok();
    sandbox.start().ok();
    sandbox.ultari(["list", "-q"]).ok().prints(&sandbox.id);
    let table = sandbox.ultari(["list"]).ok().stdout;
    let (header, row) = table.trim_end().split_once('\n').unwrap();
    let columns: Vec<&str> = header.split_whitespace().collect();
    assert_eq!(columns, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let cells: Vec<&str> = row.split_whitespace().collect();
    let pid = sandbox.pid().to_string();
    let bundle = sandbox.bundle().display().to_string();
    assert_eq!(cells[..4], [&sandbox.id, &pid, "running", &bundle]);
    assert_eq!(cells[5], "root");
    let listed = sandbox.ultari(["list", "-f", "json"]).ok().json();
    assert_eq!(listed[0]["id"], json!(sandbox.id));
    assert_eq!(listed[0]["status"], "running");
    assert_eq!(listed[0]["pid"], json!(sandbox.pid()));
    assert_eq!(listed[0]["bundle"], json!(sandbox.bundle()));
    assert!(listed[0].text("/created").contains('T'));
}

#[test]
fn list_shows_stopped_containers_too() {
    let sandbox = Sandbox::with_script("ended", "exit 0");
    sandbox.run_detached();
    sandbox.wait_for("stopped");
    let listed = sandbox.ultari(["list", "-f", "json"]).ok().json();
    assert_eq!(listed[0]["status"], "stopped");
}

#[test]
fn ps_shows_the_processes() {
    let sandbox = Sandbox::with_script("ps", "sleep 101 & exec sleep 102");
    sandbox.run_detached();
    let pids = || sandbox.ultari(["ps", "-f", "json", &sandbox.id]).ok().json();
    wait_until("both are there", || pids().as_array().unwrap().len() == 2);
    assert!(pids().as_array().unwrap().contains(&json!(sandbox.pid())));
    let table = sandbox.ultari(["ps", &sandbox.id]).ok().stdout;
    assert!(table.lines().next().unwrap().contains("PID"), "{table}");
    assert!(table.contains("sleep 101") && table.contains("sleep 102"), "{table}");
    assert!(!table.contains("sleep 103"));
    // Options after the id are ps's own.
    let table = sandbox.ultari(["ps", &sandbox.id, "-o", "pid,comm"]).ok().stdout;
    assert!(table.contains(&sandbox.pid().to_string()), "{table}");
    assert_eq!(
        table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["PID", "COMMAND"]
    );
}

#[test]
fn pause_stops_and_resume_goes_on() {
    let script = "i=0; while true; do i=$((i + 1)); echo $i; sleep 0.01; done";
    let sandbox = Sandbox::with_script("pause", script);
    let created = sandbox.create().ok();
    sandbox.start().ok();
    let length = || created.stdout_by_now().len();
    wait_until("it counts", || length() > 10);
    sandbox.ultari(["pause", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "paused");
    let before = length();
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(length(), before, "a paused container must not run on");
    sandbox.ultari(["pause", &sandbox.id]).fails(1, &[]);
    sandbox.ultari(["resume", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "running");
    wait_until("it counts again", || length() > before);
    sandbox.ultari(["resume", &sandbox.id]).fails(1, &["not paused"]);
}

#[test]
fn pause_of_a_stopped_container_is_an_error() {
    let sandbox = Sandbox::with_script("gone", "exit 0");
    sandbox.run_detached();
    sandbox.wait_for("stopped");
    sandbox.ultari(["pause", &sandbox.id]).fails(1, &["not running"]);
    sandbox.start().fails(1, &[]);
}

#[test]
fn kill_ends_a_paused_container() {
    let sandbox = Sandbox::with_script("icekill", "exec sleep 100");
    sandbox.run_detached();
    sandbox.ultari(["pause", &sandbox.id]).ok();
    sandbox.kill("KILL").ok();
    sandbox.ultari(["resume", &sandbox.id]);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
}

#[test]
fn start_twice_is_an_error_and_harmless() {
    let sandbox = Sandbox::with_script("twice", "exec sleep 100");
    sandbox.create().ok();
    sandbox.start().ok();
    sandbox.start().fails(1, &["running"]);
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn containers_under_another_root_are_not_seen() {
    let sandbox = Sandbox::with_script("roots", "exec sleep 100");
    sandbox.create().ok();
    let other = sandbox.dir.join("other-root");
    let output = sandbox.bare_call().arg("--root").arg(&other).args(["list", "-q"]).output();
    output.ok().prints("");
    let output = sandbox.bare_call().arg(format!("--root={}", other.display()));
    output.args(["state", &sandbox.id]).output().fails(1, &["does not exist"]);
}

#[test]
fn several_containers_of_one_bundle() {
    let mut sandbox = Sandbox::with_script("several", "exec sleep 100");
    // Each in a cgroup of its own below that of the test.
    let own = sandbox.cgroup();
    let ids: Vec<String> = (0..3).map(|number| format!("{}.{number}", sandbox.id)).collect();
    for id in &ids {
        sandbox.config["linux"]["cgroupsPath"] = json!(format!("{own}.{id}"));
        sandbox.bundle_call("run").args(["-d", id]).output().ok();
    }
    let mut listed: Vec<String> =
        sandbox.ultari(["list", "-q"]).ok().stdout.lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, ids);
    for id in &ids {
        sandbox.ultari(["delete", "-f", id]).ok();
    }
    sandbox.ultari(["list", "-q"]).ok().prints("");
}

#[test]
fn logs_go_where_they_are_told_to() {
    let sandbox = Sandbox::with_script("logs", "exit 0");
    let log = sandbox.dir.join("log.json");
    let call = sandbox.call(["--log"]).arg(&log).args(["--log-format", "json"]);
    call.args(["state", "nobody"]).output().exits_with(1);
    let lines: Vec<Value> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let error = lines.iter().rfind(|line| line["level"] == "error").expect("a line of level error");
    assert!(error.text("/msg").contains("does not exist"));
    assert!(error.text("/time").contains('T'), "RFC 3339: {error}");
    // A second call appends.
    let call = sandbox.call([format!("--log={}", log.display()), "--log-format=json".into()]);
    call.args(["state", "nobody"]).output().exits_with(1);
    assert!(fs::read_to_string(&log).unwrap().lines().count() > lines.len());
    // Text is the default.
    let text = sandbox.dir.join("log.txt");
    sandbox.call(["--log"]).arg(&text).args(["state", "nobody"]).output().exits_with(1);
    let text = fs::read_to_string(&text).unwrap();
    assert!(text.contains("does not exist") && !text.starts_with('{'), "{text}");
}

/// The exec closes the gate and gives up the lock, one shortly after the other.
#[test]
fn what_has_started_is_never_called_created_again() {
    let sandbox = Sandbox::with_script("started", "exec sleep 100");
    for _ in 0..20 {
        sandbox.create().ok();
        sandbox.start().ok();
        assert_eq!(sandbox.status(), "running");
        sandbox.delete_forced().ok();
        sandbox.run_detached().ok();
        assert_eq!(sandbox.status(), "running");
        sandbox.delete_forced().ok();
    }
}

#[test]
fn debug_logs_more() {
    let sandbox = Sandbox::with_script("debug", "exit 0");
    let log = sandbox.dir.join("log.json");
    sandbox.write_config();
    let call = sandbox.call(["--debug", "--log"]).arg(&log).args(["--log-format", "json"]);
    call.args(["run", "-b"]).arg(sandbox.bundle()).arg(&sandbox.id).output().ok();
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().any(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["level"] == "debug"
    }));
}
