//! SCMP_ACT_NOTIFY: the filter's descriptor reaches the agent whatever the filter says.

use nix::libc;
use serde_json::{Value, json};

use crate::support::{Agent, Answer, Json, Sandbox, Supervised, set_namespace};

/// A call that nothing else makes.
const CALL: libc::c_long = libc::SYS_getpriority;
const NAME: &str = "getpriority";

/// A sandbox whose profile asks an agent, and the agent.
fn notified(profile: Value) -> (Sandbox, Agent) {
    let mut sandbox = Sandbox::new("notify");
    let agent = Agent::listen(&sandbox.dir.join("agent"));
    sandbox.config["linux"]["seccomp"] = profile;
    sandbox.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
    (sandbox, agent)
}

fn notify(names: &[&str]) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]
    })
}

fn call() -> String {
    format!("syscall {CALL} 11 22")
}

/// Answers the one call of [`call`].
#[track_caller]
fn answer(supervised: &Supervised, answer: Answer) -> u32 {
    let notification = supervised.next().expect("a call");
    assert_eq!(i64::from(notification.data.nr), CALL);
    assert_eq!(notification.data.args[..2], [11, 22]);
    supervised.answer(&notification, answer);
    notification.pid
}

#[test]
fn run_reports_to_the_agent_and_the_agent_answers() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    sandbox.config["linux"]["seccomp"]["listenerMetadata"] = json!("opaque");
    sandbox.config["annotations"] = json!({"org.example": "yes"});
    sandbox.args(&["/guest", "do", &call(), "link /proc/self"]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    let supervised = agent.accept();
    let state = &supervised.state;
    assert!(state.text("/ociVersion").starts_with("1."));
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "opaque");
    assert_eq!(state["state"]["id"], json!(sandbox.id));
    assert_eq!(state["state"]["bundle"], json!(sandbox.bundle()));
    assert_eq!(state["state"]["status"], "created");
    assert_eq!(state["state"]["annotations"]["org.example"], "yes");
    assert_eq!(state["pid"], state["state"]["pid"]);
    let pid = answer(&supervised, Answer::Value(77));
    assert_eq!(i64::from(pid), state.integer("/pid"), "the pid as the runtime sees it");
    let output = running.wait().ok();
    assert_eq!(output.json(), json!(["ok 77", "ok 1"]));
    assert!(supervised.next().is_none(), "the filter ends with its last process");
}

#[test]
fn the_agents_answers_take_effect() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    for (reply, outcome) in [
        (Answer::Value(5), "ok 5"),
        (Answer::Errno(libc::EXDEV), "EXDEV"),
        // The kernel itself finds the first argument wrong.
        (Answer::Continue, "EINVAL"),
    ] {
        sandbox.args(&["/guest", "do", &call()]);
        let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
        let supervised = agent.accept();
        assert_eq!(supervised.state.get("metadata"), None);
        answer(&supervised, reply);
        assert_eq!(running.wait().ok().json(), json!([outcome]));
    }
}

#[test]
fn start_connects_and_not_create() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    let path = agent.path.clone();
    drop(agent);
    std::fs::remove_file(&path).unwrap();
    sandbox.args(&["/guest", "do", &call()]);
    let created = sandbox.create().ok();
    // Nothing has happened then: when the agent has come, it can be tried again.
    sandbox.start().fails(1, &["linux.seccomp.listenerPath", &path.display().to_string()]);
    assert_eq!(sandbox.status(), "created");
    let agent = Agent::listen(&path);
    let pid = sandbox.pid();
    let starting = sandbox.call(["start", &sandbox.id]).spawn();
    let supervised = agent.accept();
    assert_eq!(supervised.state.integer("/pid"), i64::from(pid));
    assert_eq!(supervised.state["state"]["status"], "created");
    starting.wait().ok();
    answer(&supervised, Answer::Value(3));
    sandbox.wait_for("stopped");
    assert_eq!(created.stdout_by_now().trim(), r#"["ok 3"]"#);
    sandbox.delete().ok();
}

#[test]
fn exec_has_a_connection_of_its_own() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    let first = agent.accept();
    let running = sandbox.exec_call(&[]).args(["/guest", "do", &call()]).spawn();
    let second = agent.accept();
    assert_eq!(second.state["state"], {
        let mut state = first.state["state"].clone();
        state["status"] = json!("running");
        state
    });
    assert_ne!(second.state["pid"], first.state["pid"]);
    let pid = answer(&second, Answer::Value(9));
    assert_eq!(i64::from(pid), second.state.integer("/pid"));
    assert_eq!(running.wait().ok().json(), json!(["ok 9"]));
}

#[test]
fn calls_of_the_runtime_itself_may_be_notified() {
    // Between the filter and the exec nothing may depend on a call that waits for an agent who
    // has nothing to answer with yet.
    let own = [
        "write",
        "writev",
        "sendmsg",
        "sendto",
        "recvmsg",
        "read",
        "close",
        "futex",
        "mmap",
        "munmap",
        "brk",
        "madvise",
        "dup",
        "fcntl",
        "exit",
        "exit_group",
        "execve",
        "capset",
        "prctl",
        "clone",
        "clone3",
        "rt_sigprocmask",
        "sched_yield",
        "nanosleep",
        "clock_nanosleep",
        "poll",
        "wait4",
    ];
    for (no_new_privileges, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let (mut sandbox, agent) = notified(notify(&own));
        sandbox.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        sandbox.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        sandbox.args(&["/guest", "do", "link /proc/self"]);
        let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
        let calls = agent.accept().let_all_pass();
        let first = if no_new_privileges { libc::SYS_execve } else { libc::SYS_capset };
        assert_eq!(calls[0], first as i32, "{calls:?}");
        assert_eq!(running.wait().ok().json(), json!(["ok 1"]));
    }
}

#[test]
fn notify_may_be_the_default_action() {
    let (mut sandbox, agent) = notified(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    sandbox.args(&["/guest", "do", &call()]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    let calls = agent.accept().let_all_pass();
    assert!(calls.contains(&(CALL as i32)) && calls.contains(&(libc::SYS_write as i32)));
    assert_eq!(running.wait().ok().json(), json!(["EINVAL"]));
}

#[test]
fn calls_of_the_runtime_itself_may_be_fatal() {
    let mut profile = notify(&[NAME]);
    profile["syscalls"].as_array_mut().unwrap().push(json!({
        "names": ["sendmsg", "recvmsg", "sendto", "recvfrom", "dup", "sched_yield",
                  "nanosleep", "clone", "clone3", "pidfd_getfd"],
        "action": "SCMP_ACT_KILL_PROCESS"
    }));
    let (mut sandbox, agent) = notified(profile);
    sandbox.config["process"]["noNewPrivileges"] = json!(true);
    // The guest's own start and end do without them.
    sandbox.args(&["/guest", "do", &call()]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    let supervised = agent.accept();
    answer(&supervised, Answer::Value(1));
    assert_eq!(running.wait().ok().json(), json!(["ok 1"]));
}

#[test]
fn nothing_of_the_handover_is_left_in_the_program() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    sandbox.args(&["/guest", "report"]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    let _supervised = agent.accept();
    let report = running.wait().ok().json();
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"]);
    assert_eq!(report.text("/status/Threads"), "1");
    assert_eq!(report.text("/status/Seccomp_filters"), "1");
}

#[test]
fn in_a_user_namespace() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    set_namespace(&mut sandbox.config, "user", None);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    sandbox.config["linux"]["uidMappings"] = map.clone();
    sandbox.config["linux"]["gidMappings"] = map;
    sandbox.args(&["/guest", "do", &call()]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    answer(&agent.accept(), Answer::Value(4));
    assert_eq!(running.wait().ok().json(), json!(["ok 4"]));
}

#[test]
fn an_agent_that_is_not_there_fails_run_and_exec() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    let path = agent.path.clone();
    drop(agent);
    let text = path.display().to_string();
    sandbox.exec(&["/bin/true"]).fails(255, &["linux.seccomp.listenerPath", &text, "refused"]);
    sandbox.delete_forced().ok();
    sandbox.run().fails(1, &["linux.seccomp.listenerPath", &text, "refused"]);
    sandbox.expect_nothing_left();
    std::fs::remove_file(&path).unwrap();
    sandbox.run().fails(1, &["linux.seccomp.listenerPath", &text, "No such file"]);
    sandbox.expect_nothing_left();
}

#[test]
fn an_agent_that_hangs_up_fails_the_start() {
    let (mut sandbox, agent) = notified(notify(&[NAME]));
    sandbox.script("echo must not run");
    // Comes after the connection and before the filter.
    sandbox.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sleep", "args": ["sleep", "0.5"]}]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    drop(agent.connection());
    let output = running.wait().fails(1, &["linux.seccomp.listenerPath", "send"]);
    assert_eq!(output.stdout, "");
    sandbox.expect_nothing_left();
    let created = sandbox.create().ok();
    let starting = sandbox.call(["start", &sandbox.id]).spawn();
    drop(agent.connection());
    starting.wait().fails(1, &["linux.seccomp.listenerPath", "send"]);
    assert_eq!(sandbox.status(), "stopped");
    assert_eq!(created.stdout_by_now(), "");
}

#[test]
fn no_room_for_a_second_thread_is_a_clear_error() {
    let (mut sandbox, _agent) = notified(notify(&[NAME]));
    sandbox.args(&["/bin/true"]);
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 1});
    sandbox.run().fails(1, &["linux.seccomp.listenerPath", "pids.limit"]);
    sandbox.expect_nothing_left();
}

#[test]
fn long_paths_and_long_metadata_arrive() {
    let mut sandbox = Sandbox::new("notify-long");
    let folder = sandbox.dir.join("f".repeat(100)).join("g".repeat(100));
    std::fs::create_dir_all(&folder).unwrap();
    let short = sandbox.dir.join("s");
    let agent = Agent::listen(&short);
    let path = folder.join("agent");
    std::fs::rename(&short, &path).unwrap();
    let metadata = "m".repeat(300_000);
    sandbox.config["linux"]["seccomp"] = notify(&[NAME]);
    sandbox.config["linux"]["seccomp"]["listenerPath"] = json!(path);
    sandbox.config["linux"]["seccomp"]["listenerMetadata"] = json!(metadata);
    sandbox.args(&["/guest", "do", &call()]);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    let supervised = agent.accept();
    assert_eq!(supervised.state["metadata"], json!(metadata));
    answer(&supervised, Answer::Value(2));
    running.wait().ok();
}

#[test]
fn the_path_is_ignored_without_notify() {
    let mut sandbox = Sandbox::with_script("notify-none", "echo runs");
    sandbox.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere", "listenerMetadata": "x"});
    sandbox.run().ok().prints("runs");
}

#[test]
fn a_signal_interrupts_a_waiting_call_unless_the_flag_forbids_it() {
    for (flags, waits) in
        [(json!([]), false), (json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), true)]
    {
        let (mut sandbox, agent) = notified(notify(&[NAME]));
        sandbox.config["linux"]["seccomp"]["flags"] = flags;
        sandbox.args(&["/guest", "do", &format!("interruptible {CALL}")]);
        let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
        let supervised = agent.accept();
        let notification = supervised.next().unwrap();
        let pid = nix::unistd::Pid::from_raw(notification.pid as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(supervised.waits(&notification), waits);
        supervised.answer(&notification, Answer::Value(6));
        let outcome = if waits { "ok 6" } else { "EINTR" };
        assert_eq!(running.wait().ok().json(), json!([outcome]));
    }
}
