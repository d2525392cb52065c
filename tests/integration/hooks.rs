//! The six kinds of hooks: their order, namespaces, input, and what their failure means.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{HIERARCHIES, Json, Sandbox, own_namespace, set_namespace};

/// In the order in which they run.
const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Notes its name, mount namespace, root and stdin in the folder given.
const RECORDER: &str = r#"
    state=$(cat)
    ns=$(readlink /proc/self/ns/mnt)
    uts=$(readlink /proc/self/ns/uts)
    printf '%s\n' "{\"kind\": \"$1\", \"mnt\": \"$ns\", \"uts\": \"$uts\", \"pwd\": \"$(pwd)\", \"env\": \"$A_VARIABLE\", \
\"secret\": \"$SECRET\", \"state\": $state}" >>"$2"
"#;

/// A hook that runs the recorder. `shell` is the path of the shell where the hook runs.
fn recorder(kind: &str, shell: &str, log: &Path) -> Value {
    json!({
        "path": shell,
        "args": ["sh", "-c", RECORDER, "sh", kind, log],
        "env": ["PATH=/usr/bin:/bin", "A_VARIABLE=value"],
        "timeout": 20
    })
}

/// A container whose six hooks record themselves, one after the other.
fn recorded(script: &str) -> (Sandbox, PathBuf) {
    let mut sandbox = Sandbox::with_script("hooks", script);
    let folder = sandbox.dir.join("log");
    fs::create_dir(&folder).unwrap();
    let log = folder.join("hooks");
    // The folder has the same path inside, so that startContainer finds it too.
    sandbox.mount(crate::support::bind(&folder, &folder.display().to_string(), &["bind"]));
    for kind in KINDS {
        sandbox.config["hooks"][kind] = json!([recorder(kind, "/bin/sh", &log)]);
    }
    (sandbox, log)
}

fn read_log(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(log: &Path) -> Vec<String> {
    read_log(log).iter().map(|entry| entry.text("/kind").to_owned()).collect()
}

#[test]
fn all_kinds_run_in_their_order() {
    let (sandbox, log) = recorded("sleep 0.2");
    sandbox.create().ok();
    assert_eq!(kinds(&log), KINDS[..3]);
    sandbox.start().ok();
    assert_eq!(kinds(&log), KINDS[..5]);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    assert_eq!(kinds(&log), KINDS);
}

#[test]
fn all_kinds_run_for_run_too() {
    let (sandbox, log) = recorded("sleep 0.2");
    sandbox.run().ok();
    assert_eq!(kinds(&log), KINDS);
}

/// Shown: with init's descriptors of mounts open until the pivot, the kernel said that the target is busy.
#[test]
fn hooks_before_the_pivot_can_unmount_what_was_mounted() {
    let (mut sandbox, _) = recorded("test ! -e /one/file && test ! -e /two/file");
    let folder = sandbox.dir.join("full");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "").unwrap();
    for place in ["/one", "/two"] {
        sandbox.mount(crate::support::bind(&folder, place, &["bind"]));
    }
    let root = sandbox.rootfs();
    let root = root.display();
    let outside = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); exec nsenter --mount=/proc/$pid/ns/mnt umount";
    for (kind, script) in [
        ("createRuntime", format!("{outside} {root}/one")),
        ("createContainer", format!("exec umount {root}/two")),
    ] {
        sandbox.config["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]);
    }
    sandbox.run().ok();
}

/// Shown: without spawn_unblocked the hooks of `run`, but for those inside, had all signals blocked.
#[test]
fn hooks_have_no_signal_blocked_and_are_ended_by_a_lost_reader() {
    let (mut sandbox, _) = recorded("true");
    let log = sandbox.dir.join("log");
    for kind in KINDS {
        let copy = log.join(kind);
        let args = json!(["cp", "/proc/self/status", copy]);
        sandbox.config["hooks"][kind] = json!([{"path": "/bin/cp", "args": args}]);
    }
    let check = || {
        for kind in KINDS {
            let text = fs::read_to_string(log.join(kind)).unwrap();
            let mask = |name| {
                let mask = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                u64::from_str_radix(mask.trim(), 16).unwrap()
            };
            assert_eq!(mask("SigBlk:"), 0, "{kind}");
            // The caller may itself ignore others.
            assert_eq!(mask("SigIgn:") & 1 << (libc::SIGPIPE - 1), 0, "{kind}");
            fs::remove_file(log.join(kind)).unwrap();
        }
    };
    sandbox.run().ok();
    check();
    sandbox.create().ok();
    sandbox.start().ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    check();
}

#[test]
fn several_of_one_kind_run_one_after_the_other() {
    let mut sandbox = Sandbox::with_script("several", "exit 0");
    let log = sandbox.dir.join("log");
    let hook = |text: &str| {
        let script = format!("sleep 0.0{}; echo {text} >>{}", 5 - text.len(), log.display());
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]})
    };
    sandbox.config["hooks"]["createRuntime"] = json!([hook("a"), hook("bb"), hook("ccc")]);
    sandbox.run().ok();
    assert_eq!(fs::read_to_string(&log).unwrap(), "a\nbb\nccc\n");
}

#[test]
fn state_on_stdin() {
    let (mut sandbox, log) = recorded("sleep 0.2");
    sandbox.config["annotations"] = json!({"org.example": "yes"});
    sandbox.run().ok();
    for entry in read_log(&log) {
        let (kind, state) = (entry.text("/kind"), &entry["state"]);
        assert_eq!(state["id"], json!(sandbox.id), "{kind}");
        assert_eq!(state["bundle"], json!(sandbox.bundle()), "{kind}");
        assert_eq!(state["annotations"]["org.example"], "yes", "{kind}");
        assert!(state.text("/ociVersion").starts_with("1."), "{kind}");
        let status = match kind {
            "createRuntime" | "createContainer" => "creating",
            "prestart" | "startContainer" => "created",
            "poststart" => "running",
            _ => "stopped",
        };
        assert_eq!(state["status"], status, "{kind}");
        // Hooks that run inside may see the container's own number of the process.
        if ["prestart", "createRuntime", "poststart"].contains(&kind) {
            assert!(state.integer("/pid") > 1, "{kind}");
        }
    }
}

#[test]
fn namespaces_of_each_kind() {
    let (mut sandbox, log) = recorded("sleep 0.2");
    set_namespace(&mut sandbox.config, "cgroup", None);
    sandbox.run().ok();
    for entry in read_log(&log) {
        let kind = entry.text("/kind");
        let in_container = ["createContainer", "startContainer"].contains(&kind);
        assert_eq!(entry["uts"] != own_namespace("uts"), in_container, "{kind}");
        assert_eq!(entry["mnt"] != own_namespace("mnt"), in_container, "{kind}");
    }
}

#[test]
fn create_container_sees_the_hosts_paths_and_start_container_the_containers() {
    let mut sandbox = Sandbox::with_script("roots", "cat /etc/from-start");
    let mark = sandbox.dir.join("from-create");
    let on_host = format!(
        "ls {0} && touch {0}/etc/from-host; touch {1}",
        sandbox.rootfs().display(),
        mark.display()
    );
    sandbox.config["hooks"] = json!({
        "createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", on_host], "env": ["PATH=/usr/bin:/bin"]}],
        "startContainer": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", "[ -e /etc/from-host ] && [ -e /guest ] && echo inside >/etc/from-start"],
            "env": ["PATH=/bin"]
        }]
    });
    sandbox.run().ok().prints("inside");
    assert!(mark.exists());
}

#[test]
fn create_container_hooks_find_the_container_on_record_and_its_loopback_up() {
    let mut sandbox = Sandbox::with_script("settled", "exit 0");
    let (found, init) = (sandbox.dir.join("found"), sandbox.root().join(&sandbox.id).join("init"));
    let script = format!(
        "grep -c ' ' {} >{1}; grep -c 127.0.0.1 /proc/self/net/fib_trie >>{1}",
        init.display(),
        found.display()
    );
    sandbox.config["hooks"]["createContainer"] = json!([
        {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    ]);
    sandbox.run().ok();
    let found = fs::read_to_string(found).unwrap();
    let lines: Vec<_> = found.lines().collect();
    assert!(matches!(lines[..], ["1", up] if up != "0"), "{found:?}");
}

/// Shown: with the bounding set always limited before the wait for the cgroups the hook had the
/// container's.
#[test]
fn create_container_hooks_have_the_runtimes_capabilities() {
    let mut sandbox = Sandbox::with_script("hookcaps", "grep CapBnd /proc/self/status");
    let found = sandbox.dir.join("found");
    let script = format!("grep CapBnd /proc/self/status >{}", found.display());
    sandbox.config["hooks"]["createContainer"] = json!([
        {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    ]);
    let output = sandbox.run().ok();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("CapBnd")).unwrap();
    assert_eq!(fs::read_to_string(found).unwrap().trim(), own);
    assert_ne!(output.stdout.trim(), own);
}

#[test]
fn create_runtime_hooks_can_reach_the_containers_network_namespace() {
    // What libnetwork's prestart hook does by the pid it reads.
    let mut sandbox =
        Sandbox::with_script("net", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    let script = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/' | tr -d '\\n '); \
                  pid=$(echo $pid | grep -o '[0-9]*$'); \
                  nsenter --net=/proc/$pid/ns/net sh -c 'echo 77 >/proc/sys/net/ipv4/ip_unprivileged_port_start'";
    sandbox.config["hooks"]["prestart"] = json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("tr -d '\\n' | {{ {script}; }}")],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    }]);
    sandbox.run().ok().prints("77");
}

#[test]
fn environment_of_hooks_is_what_the_config_says() {
    let (sandbox, log) = recorded("exit 0");
    sandbox.bundle_call("run").arg(&sandbox.id).env("SECRET", "leaked").output().ok();
    for entry in read_log(&log) {
        let kind = entry.text("/kind");
        assert_eq!(entry["env"], "value", "{kind}");
        if kind != "startContainer" {
            assert_eq!(entry["secret"], "", "{kind}");
        }
    }
}

#[test]
fn hooks_without_env_get_none() {
    let mut sandbox = Sandbox::with_script("noenv", "exit 0");
    let log = sandbox.dir.join("env");
    let script = format!("/usr/bin/env >{}", log.display());
    sandbox.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    sandbox.bundle_call("run").arg(&sandbox.id).env("SECRET", "leaked").output().ok();
    assert!(!fs::read_to_string(log).unwrap().contains("SECRET"));
}

/// A hook that ends like this.
fn exits(code: i32) -> Value {
    let script = format!("echo why it failed >&2; exit {code}");
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}])
}

#[test]
fn failure_before_start_undoes_the_container_and_runs_poststop() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let (mut sandbox, log) = recorded("exit 0");
        sandbox.config["hooks"][kind] = exits(3);
        sandbox.create().fails(1, &[kind, "why it failed"]);
        assert!(kinds(&log).contains(&"poststop".to_owned()), "{kind}: {:?}", kinds(&log));
        sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
        sandbox.expect_nothing_left();
        sandbox.run().fails(1, &[kind]);
        sandbox.expect_nothing_left();
    }
}

/// runtime.md, "Lifecycle": stop the container, destroy it, run the poststop hooks.
#[track_caller]
fn expect_undone(sandbox: &Sandbox, log: &Path) {
    assert_eq!(kinds(log).iter().filter(|kind| *kind == "poststop").count(), 1);
    sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
    sandbox.expect_nothing_left();
    // As engines do after a failed start.
    sandbox.delete_forced().ok();
    assert_eq!(kinds(log).iter().filter(|kind| *kind == "poststop").count(), 1);
}

#[test]
fn failure_of_start_container_undoes_the_container_and_runs_poststop() {
    let (mut sandbox, log) = recorded("echo must not run");
    sandbox.config["hooks"]["startContainer"] = exits(3);
    let created = sandbox.create().ok();
    sandbox.start().fails(1, &["startContainer", "why it failed"]);
    assert_eq!(created.stdout_by_now(), "");
    assert!(!kinds(&log).contains(&"poststart".to_owned()));
    expect_undone(&sandbox, &log);
    sandbox.run().fails(1, &["startContainer", "why it failed"]);
    sandbox.expect_nothing_left();
    assert_eq!(kinds(&log).iter().filter(|kind| *kind == "poststop").count(), 2);
}

#[test]
fn failure_of_poststart_undoes_the_container_and_runs_poststop() {
    let (mut sandbox, log) = recorded("exec sleep 100");
    sandbox.config["hooks"]["poststart"] = exits(3);
    sandbox.create().ok();
    sandbox.start().fails(1, &["poststart", "why it failed"]);
    expect_undone(&sandbox, &log);
    sandbox.run().fails(1, &["poststart"]);
    sandbox.expect_nothing_left();
    assert_eq!(kinds(&log).iter().filter(|kind| *kind == "poststop").count(), 2);
}

#[test]
fn the_first_failure_keeps_later_hooks_from_running() {
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let (mut sandbox, log) = recorded("exit 0");
        let list = sandbox.config["hooks"][kind].as_array_mut().unwrap();
        list.insert(0, exits(3)[0].clone());
        sandbox.run().fails(1, &[&format!("hooks.{kind}[0]")]);
        let mut expected: Vec<&str> = KINDS.iter().copied().take_while(|k| *k != kind).collect();
        expected.push("poststop");
        assert_eq!(kinds(&log), expected);
    }
}

#[test]
fn poststop_runs_when_the_container_is_gone() {
    let mut sandbox = Sandbox::with_script("gone", "exit 0");
    let mark = sandbox.dir.join("mark");
    let cgroups = HIERARCHIES.iter().map(|hierarchy| hierarchy.join(&sandbox.cgroup()[1..]));
    let paths: Vec<String> = cgroups
        .chain([sandbox.root().join(&sandbox.id)])
        .map(|path| path.display().to_string())
        .collect();
    // Prints those that are still there.
    let script = format!("ls -d {} >{} 2>/dev/null; :", paths.join(" "), mark.display());
    sandbox.config["hooks"]["poststop"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]);
    sandbox.run().ok();
    assert_eq!(fs::read_to_string(&mark).unwrap(), "");
}

#[test]
fn hooks_of_the_runtime_run_in_the_bundle_and_start_container_in_the_root() {
    let (sandbox, log) = recorded("sleep 0.2");
    sandbox.run().ok();
    for entry in read_log(&log) {
        let kind = entry.text("/kind");
        let inside = kind == "startContainer";
        let folder = if inside { PathBuf::from("/") } else { sandbox.bundle() };
        assert_eq!(entry["pwd"], json!(folder), "{kind}");
    }
}

#[test]
fn hooks_of_create_have_the_callers_umask() {
    let mut sandbox = Sandbox::with_script("umask", "umask");
    for kind in ["createRuntime", "createContainer"] {
        let script = format!("umask >{}", sandbox.dir.join(kind).display());
        sandbox.config["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    }
    sandbox.config["process"]["user"]["umask"] = json!(0o77);
    let run = sandbox.bundle_call("run").arg(&sandbox.id);
    run.wrapped("umask 027; exec \"$@\"").output().ok().prints("0077");
    for kind in ["createRuntime", "createContainer"] {
        assert_eq!(fs::read_to_string(sandbox.dir.join(kind)).unwrap().trim(), "0027", "{kind}");
    }
}

#[test]
fn pids_in_the_state_are_those_of_the_namespace_where_the_hook_runs() {
    let (sandbox, log) = recorded("sleep 0.2");
    sandbox.create().ok();
    let pid = i64::from(sandbox.pid());
    sandbox.start().ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    for entry in read_log(&log) {
        let expected = match entry.text("/kind") {
            "createContainer" | "startContainer" => 1,
            "poststop" => 0,
            _ => pid,
        };
        assert_eq!(entry["state"].integer("/pid"), expected, "{}", entry.text("/kind"));
    }
}

#[test]
fn hooks_without_args_have_their_path_as_their_name() {
    let mut sandbox = Sandbox::with_script("noargs", "exit 0");
    let mark = sandbox.dir.join("mark");
    let script = format!("#!/bin/sh\necho $# $0 >{}\n", mark.display());
    let hook = sandbox.file("hook", &script);
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.config["hooks"]["createRuntime"] = json!([{"path": hook}]);
    sandbox.run().ok();
    assert_eq!(fs::read_to_string(&mark).unwrap(), format!("0 {}\n", hook.display()));
}

#[test]
fn bad_hooks_are_refused_by_name() {
    for (hook, text) in [
        (json!({"path": "bin/true"}), "hooks.poststop[0].path"),
        (json!({"path": "/bin/true", "timeout": 0}), "hooks.poststop[0].timeout"),
        (json!({"path": "/bin/true", "timeout": -1}), "hooks.poststop[0].timeout"),
    ] {
        let mut sandbox = Sandbox::with_script("bad-hook", "echo must not run");
        sandbox.config["hooks"]["poststop"] = json!([hook]);
        assert_eq!(sandbox.run().fails(1, &[text]).stdout, "");
    }
}

#[test]
fn failure_of_poststop_is_a_warning_and_the_others_still_run() {
    let mut sandbox = Sandbox::with_script("poststop", "exit 0");
    let mark = sandbox.dir.join("mark");
    let second = json!({"path": "/usr/bin/touch", "args": ["touch", mark]});
    let mut hooks = exits(3);
    hooks.as_array_mut().unwrap().push(second);
    sandbox.config["hooks"]["poststop"] = hooks;
    sandbox.run_detached();
    sandbox.wait_for("stopped");
    let output = sandbox.delete().ok();
    output.says(&["poststop"]);
    assert!(mark.exists(), "one failure does not keep the next from running");
    sandbox.expect_nothing_left();
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let mut sandbox = Sandbox::with_script("slow", "exit 0");
    // More state than a pipe holds, and the hook does not read it.
    sandbox.config["annotations"] = json!({"large": "x".repeat(200_000)});
    sandbox.config["hooks"]["createRuntime"] = json!([{
        "path": "/bin/sleep", "args": ["sleep", "91"], "env": [sandbox.marker()], "timeout": 1
    }]);
    let start = std::time::Instant::now();
    sandbox.run().fails(1, &["createRuntime", "1"]);
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
    sandbox.expect_nothing_left();
}

#[test]
fn a_hook_ended_by_a_signal_has_failed() {
    let mut sandbox = Sandbox::with_script("sig", "exit 0");
    sandbox.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}]);
    sandbox.run().fails(1, &["createRuntime"]);
}

#[test]
fn a_hook_that_does_not_read_its_stdin() {
    let mut sandbox = Sandbox::with_script("nostdin", "echo fine");
    sandbox.config["annotations"] = json!({"large": "x".repeat(200_000)});
    sandbox.config["hooks"]["createRuntime"] = json!([{"path": "/bin/true"}]);
    sandbox.run().ok().prints("fine");
}

#[test]
fn a_missing_start_container_hook_is_an_error() {
    let mut sandbox = Sandbox::with_script("missing", "echo must not run");
    sandbox.config["hooks"]["startContainer"] = json!([{"path": "/nowhere/hook"}]);
    let output = sandbox.run().fails(1, &["/nowhere/hook"]);
    assert_eq!(output.stdout, "");
    sandbox.expect_nothing_left();
}
