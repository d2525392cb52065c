//! `exec`: a further process in a running container, from flags or a process.json.

use std::fs;

use serde_json::{Value, json};

use crate::skip;
use crate::support::{ConsoleSocket, Json, Sandbox, host, set_namespace, wait_until};

/// A container that sleeps, started.
fn sleeper(name: &str) -> Sandbox {
    sleeper_with(name, |_| {})
}

fn sleeper_with(name: &str, change: impl FnOnce(&mut Value)) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.args(&["/bin/sleep", "100"]);
    change(&mut sandbox.config);
    sandbox.run_detached();
    sandbox
}

/// The guest's report by `exec` with these options.
#[track_caller]
fn probe(sandbox: &Sandbox, options: &[&str]) -> Value {
    sandbox.exec_call(options).args(["/guest", "report"]).output().ok().json()
}

/// A process.json as engines write them.
fn process(sandbox: &Sandbox, args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin", sandbox.marker()],
        "cwd": "/"
    })
}

#[track_caller]
fn exec_process(sandbox: &Sandbox, options: &[&str], process: &Value) -> crate::support::Output {
    let file = sandbox.file("process.json", &process.to_string());
    let call = sandbox.call(["exec"]).args(options).arg("--process").arg(file);
    call.arg(&sandbox.id).output()
}

#[test]
fn output_and_exit_codes() {
    let sandbox = sleeper("codes");
    sandbox.exec(&["echo", "hi"]).ok().prints("hi");
    for code in [0, 1, 3, 126, 127, 255] {
        sandbox.exec(&["sh", "-c", &format!("exit {code}")]).exits_with(code);
    }
    sandbox.exec(&["sh", "-c", "kill -9 $$"]).exits_with(137);
    sandbox.exec(&["sh", "-c", "kill -TERM $$"]).exits_with(143);
    let output = sandbox.exec(&["sh", "-c", "echo bad >&2"]).ok();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", "bad\n"));
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn stdin_is_the_callers() {
    let sandbox = sleeper("stdin");
    let output = sandbox.exec_call(&[]).args(["cat"]).stdin("through\n").output();
    output.ok().prints("through");
}

#[test]
fn dashes_after_the_id_belong_to_the_program() {
    let sandbox = sleeper("dashes");
    sandbox.exec(&["echo", "--tty", "-d", "--user", "x"]).ok().prints("--tty -d --user x");
    sandbox.exec(&["ls", "-d", "/etc"]).ok().prints("/etc");
}

#[test]
fn joins_all_namespaces_and_the_cgroup() {
    let sandbox = sleeper_with("joins", |config| set_namespace(config, "cgroup", None));
    let report = probe(&sandbox, &[]);
    let pid = sandbox.pid();
    for name in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        let inode = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(report["namespaces"][name], inode.display().to_string(), "{name}");
    }
    sandbox.exec_call(&["--detach"]).args(["sleep", "101"]).output().ok();
    let init = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let listed = sandbox.ultari(["ps", "-f", "json", &sandbox.id]).ok().json();
    let pids: Vec<i64> = listed.as_array().unwrap().iter().filter_map(Value::as_i64).collect();
    assert_eq!(pids.len(), 2, "both are in the container's cgroup");
    for pid in pids {
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(), init);
    }
}

#[test]
fn joins_the_user_and_time_namespaces() {
    let sandbox = sleeper_with("userns", |config| {
        set_namespace(config, "user", None);
        let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    let report = probe(&sandbox, &["--user", "7:8"]);
    let inode = fs::read_link(format!("/proc/{}/ns/user", sandbox.pid())).unwrap();
    assert_eq!(report["namespaces"]["user"], inode.display().to_string());
    assert_eq!(report["status"]["Uid"], "7 7 7 7");
    let sandbox = sleeper_with("timens", |config| {
        set_namespace(config, "time", None);
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1000000}});
    });
    let inode = fs::read_link(format!("/proc/{}/ns/time", sandbox.pid())).unwrap();
    assert_eq!(probe(&sandbox, &[])["namespaces"]["time"], inode.display().to_string());
}

#[test]
fn is_like_the_containers_own_process_by_default() {
    let sandbox = sleeper_with("likeness", |config| {
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5]});
        config["process"]["cwd"] = json!("/tmp");
        config["process"]["oomScoreAdj"] = json!(300);
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100}]);
        config["process"]["capabilities"] =
            json!({"bounding": ["CAP_KILL"], "effective": [], "permitted": []});
        config["process"]["env"].as_array_mut().unwrap().push(json!("OF=the config"));
    });
    let report = probe(&sandbox, &[]);
    assert_eq!(report["status"]["Uid"], "1000 1000 1000 1000");
    assert_eq!(report["cwd"], "/tmp");
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!([100, 100]));
    assert_eq!(report["status"]["NoNewPrivs"], "1");
    assert_eq!(report["status"]["CapBnd"], "0000000000000020");
    assert_eq!(report["oom_score_adj"], 300);
    assert!(report.texts("/env").contains(&"OF=the config"));
}

#[test]
fn flags_change_the_process() {
    let sandbox =
        sleeper_with("flags", |config| config["process"]["noNewPrivileges"] = json!(false));
    let report = probe(&sandbox, &["--user", "1000:1001"]);
    assert_eq!(report["status"]["Uid"], "1000 1000 1000 1000");
    assert_eq!(report["status"]["Gid"], "1001 1001 1001 1001");
    let report = probe(&sandbox, &["-u", "1000"]);
    assert_eq!(report["status"]["Uid"], "1000 1000 1000 1000");
    let report = probe(&sandbox, &["--additional-gids", "7", "--additional-gids", "9"]);
    let groups = report.text("/status/Groups").to_owned();
    assert!(
        groups.split(' ').any(|group| group == "7") && groups.split(' ').any(|group| group == "9"),
        "{groups}"
    );
    assert_eq!(probe(&sandbox, &["--cwd", "/tmp"])["cwd"], "/tmp");
    let report = probe(&sandbox, &["--env", "A=1", "-e", "B=2 3"]);
    let env = report.texts("/env");
    assert!(
        env.contains(&"A=1") && env.contains(&"B=2 3") && env.contains(&"PATH=/bin:/usr/bin"),
        "{env:?}"
    );
    assert_eq!(probe(&sandbox, &[])["status"]["NoNewPrivs"], "0");
    assert_eq!(probe(&sandbox, &["--no-new-privs"])["status"]["NoNewPrivs"], "1");
    let bounding = |options: &[&str]| {
        u64::from_str_radix(probe(&sandbox, options).text("/status/CapBnd"), 16).unwrap()
    };
    let added = bounding(&["--cap", "CAP_SYS_PTRACE", "-c", "CAP_SYS_ADMIN"]);
    assert_eq!(added, bounding(&[]) | 1 << 19 | 1 << 21);
}

#[test]
fn an_env_given_twice_has_the_last_value() {
    let sandbox = sleeper("lastenv");
    let output = sandbox.exec_call(&["-e", "A=1", "-e", "A=2", "-e", "PATH=/bin:/x"]);
    output.args(["sh", "-c", "echo $A $PATH"]).output().ok().prints("2 /bin:/x");
}

#[test]
fn unknown_capability_by_flag() {
    let sandbox = sleeper("nocap");
    let output = sandbox.exec_call(&["--cap", "CAP_TIME_TRAVEL"]).args(["true"]).output();
    assert!(output.stderr.contains("CAP_TIME_TRAVEL"), "an error or a warning: {output:?}");
}

#[test]
fn process_json_is_the_whole_process() {
    let sandbox = sleeper("processjson");
    let mut process = process(&sandbox, &["/guest", "report"]);
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5], "umask": 0o77});
    process["cwd"] = json!("/tmp");
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}]);
    process["noNewPrivileges"] = json!(true);
    process["oomScoreAdj"] = json!(400);
    process["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]
    });
    let report = exec_process(&sandbox, &[], &process).ok().json();
    assert_eq!(report["status"]["Uid"], "1000 1000 1000 1000");
    assert_eq!(report["status"]["Gid"], "1001 1001 1001 1001");
    assert!(report.text("/status/Groups").split(' ').any(|group| group == "5"));
    assert_eq!(report["umask"], 0o77);
    assert_eq!(report["cwd"], "/tmp");
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!([50, 60]));
    assert_eq!(report["status"]["NoNewPrivs"], "1");
    assert_eq!(report["oom_score_adj"], 400);
    assert_eq!(report["status"]["CapBnd"], "0000000000000021");
    assert_eq!(report["status"]["CapEff"], "0000000000000020");
    assert_eq!(report["status"]["CapAmb"], "0000000000000020");
    assert_eq!(report["status"]["CapInh"], "0000000000000020");
    let mut env = report.texts("/env");
    env.retain(|entry| !entry.starts_with("HOME="));
    assert_eq!(env, ["PATH=/bin", &sandbox.marker()], "not the container's");
}

#[test]
fn process_json_without_capabilities_and_privileges() {
    let sandbox = sleeper("nocaps");
    let process = process(&sandbox, &["/guest", "report"]);
    let report = exec_process(&sandbox, &[], &process).ok().json();
    assert_eq!(report["status"]["CapInh"], "0000000000000000");
    assert_eq!(report["status"]["CapAmb"], "0000000000000000");
    assert_eq!(report["status"]["NoNewPrivs"], "0", "what it leaves out is not the container's");
}

#[test]
fn detached() {
    let sandbox = sleeper("detached");
    let file = sandbox.dir.join("pid");
    let call = sandbox.call(["exec", "--detach", "--pid-file"]).arg(&file).arg(&sandbox.id);
    let output = call.args(["sh", "-c", "echo up; sleep 0.1; exit 9"]).output().ok();
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    assert_eq!(host().exit_code_of_orphan(pid), 9);
    assert_eq!(output.stdout_by_now(), "up\n");
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn detached_process_is_seen_and_ends_with_the_container() {
    let sandbox = sleeper("ends");
    let file = sandbox.dir.join("pid");
    let call = sandbox.call(["exec", "-d", "--pid-file"]).arg(&file).arg(&sandbox.id);
    call.args(["sleep", "101"]).output().ok();
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    sandbox.kill("KILL").ok();
    assert_eq!(host().exit_code_of_orphan(pid), 137);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn signals_are_forwarded() {
    let sandbox = sleeper("forward");
    let running = sandbox.exec_call(&[]).args(["/guest", "signals"]).spawn();
    wait_until("the guest is ready", || running.stdout().contains("ready"));
    running.signal(nix::sys::signal::Signal::SIGUSR1);
    wait_until("the guest has it", || running.stdout().contains("SIGUSR1"));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().exits_with(42);
}

#[test]
fn foreground_exec_does_not_wait_for_strays() {
    let sandbox = sleeper("strays");
    sandbox.exec(&["sh", "-c", "sleep 101 & exit 6"]).exits_with(6);
}

#[test]
fn preserved_descriptors() {
    let sandbox = sleeper("preserve");
    let wrapper = "exec 3</etc/passwd 4</etc/group 5</etc/hostname; exec \"$@\"";
    let call = sandbox.exec_call(&["--preserve-fds", "2"]).args(["/guest", "report"]);
    let report = call.wrapped(wrapper).output().ok().json();
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2", "3", "4"]);
}

#[test]
fn runs_the_containers_root_even_if_it_is_read_only() {
    let sandbox = sleeper_with("roroot", |config| config["root"]["readonly"] = json!(true));
    assert_eq!(
        sandbox.exec_attempt(&["open c /new", "open w /proc/sys/kernel/hostname"]),
        ["EROFS", "EROFS"]
    );
}

#[test]
fn masks_hold_for_exec() {
    let sandbox = sleeper("masks");
    assert_eq!(sandbox.exec_attempt(&["read /proc/keys", "count /sys/firmware"]), ["ok ", "ok 0"]);
}

#[test]
fn into_a_paused_container() {
    let sandbox = sleeper("paused");
    sandbox.ultari(["pause", &sandbox.id]).ok();
    sandbox.exec(&["true"]).fails(255, &["paused"]);
    let running = sandbox.exec_call(&["--ignore-paused"]).args(["echo", "thawed"]).spawn();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(running.stdout(), "", "it is frozen like the others");
    sandbox.ultari(["resume", &sandbox.id]).ok();
    running.wait().ok().prints("thawed");
}

#[test]
fn into_a_created_container() {
    let mut sandbox = Sandbox::new("created");
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.create().ok();
    sandbox.exec(&["echo", "early"]).ok().prints("early");
    sandbox.start().ok();
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn into_a_stopped_container() {
    let sandbox = sleeper("stopped");
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    // runc says "cannot exec a container that has stopped".
    let output = sandbox.exec(&["true"]).exits_with(255);
    assert!(
        output.stderr.contains("stopped") || output.stderr.contains("not running"),
        "{output:?}"
    );
}

#[test]
fn without_a_program() {
    let sandbox = sleeper("noprogram");
    let output = sandbox.exec(&[]);
    assert!(output.code != 0 && !output.stderr.is_empty(), "{output:?}");
}

#[test]
fn with_a_terminal_by_console_socket() {
    let sandbox = sleeper("socket");
    let socket = ConsoleSocket::listen(sandbox.dir.join("console.sock"));
    let mut process =
        process(&sandbox, &["sh", "-c", "tty; stty size; read line; echo \"got $line\""]);
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 11, "width": 77});
    let path = socket.path.display().to_string();
    let file = sandbox.dir.join("pid");
    let options =
        ["--detach", "--console-socket", &path, "--pid-file", &file.display().to_string()];
    exec_process(&sandbox, &options, &process).ok();
    let mut terminal = socket.receive();
    let seen = terminal.expect("\n");
    assert!(seen.contains("/dev/pts/"), "{seen:?}");
    terminal.expect("11 77");
    terminal.send("hello\n");
    terminal.expect("got hello");
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    assert_eq!(host().exit_code_of_orphan(pid), 0);
}

#[test]
fn a_terminal_without_a_place_for_it_is_an_error() {
    let sandbox = sleeper("noplace");
    let output = sandbox.exec_call(&["--tty", "--detach"]).args(["true"]).output();
    assert!(output.code != 0 && output.stderr.contains("console"), "{output:?}");
    // And the reverse.
    let socket = ConsoleSocket::listen(sandbox.dir.join("console.sock"));
    let path = socket.path.display().to_string();
    let output =
        sandbox.exec_call(&["--detach", "--console-socket", &path]).args(["true"]).output();
    assert!(output.code != 0 && output.stderr.contains("console"), "{output:?}");
}

#[test]
fn many_at_the_same_time() {
    let sandbox = sleeper("many");
    let running: Vec<_> = (0..8)
        .map(|number| {
            let script = format!("sleep 0.05; exit {number}");
            sandbox.exec_call(&[]).args(["sh", "-c", &script]).spawn()
        })
        .collect();
    for (number, call) in running.into_iter().enumerate() {
        call.wait().exits_with(number as i32);
    }
}

#[test]
fn apparmor_profile_on_a_host_without_apparmor() {
    if std::path::Path::new("/sys/module/apparmor/parameters/enabled").exists() {
        skip!("this host has AppArmor");
    }
    let sandbox = sleeper("apparmor");
    let output = sandbox.exec_call(&["--apparmor", "docker-default"]).args(["true"]).output();
    // A fence that can't be put up must not be forgotten silently.
    assert!(output.code != 0 && output.stderr.to_lowercase().contains("apparmor"), "{output:?}");
}
