//! Nothing is left: after delete, after failures, and after the runtime itself was killed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::skip;
use crate::support::{
    HIERARCHIES, Sandbox, bind, host, marked_processes, set_namespace, wait_until,
};

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A container that uses much: all namespaces, mounts of all kinds, masks, limits, hooks.
pub fn rich(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_script(name, "sleep 101 & exec sleep 102");
    for kind in ["cgroup", "time"] {
        set_namespace(&mut sandbox.config, kind, None);
    }
    let data = sandbox.file("data/file", "x");
    sandbox.mount(bind(data.parent().unwrap(), "/data", &["rbind", "ro"]));
    sandbox.mount(bind(&data, "/one-file", &["bind"]));
    sandbox.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 100});
    sandbox.config["hooks"] =
        json!({"createRuntime": [{"path": "/bin/true"}], "poststop": [{"path": "/bin/true"}]});
    sandbox
}

#[test]
fn the_count_sees_what_it_is_to_see() {
    // A count that finds nothing would prove nothing.
    let sandbox = rich("counted");
    sandbox.run_detached();
    assert!(!marked_processes(&sandbox.marker()).is_empty(), "processes are found");
    assert!(!sandbox.cgroups().is_empty(), "cgroups are found");
    assert!(fs::read_dir(sandbox.root()).unwrap().count() > 0, "state is found");
    let found =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sandbox.expect_nothing_left()));
    assert!(found.is_err());
}

#[test]
fn after_delete() {
    let before = mounts();
    let sandbox = rich("deleted");
    for _ in 0..2 {
        sandbox.create().ok();
        sandbox.start().ok();
        sandbox.exec(&["true"]).ok();
        sandbox.kill("KILL").ok();
        sandbox.wait_for("stopped");
        sandbox.delete().ok();
        sandbox.expect_nothing_left();
    }
    assert_eq!(mounts(), before, "the host's mounts are untouched");
    let strangers: Vec<PathBuf> = HIERARCHIES
        .iter()
        .map(|hierarchy| hierarchy.join(&sandbox.cgroup()[1..]))
        .filter(|cgroup| cgroup.exists())
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn after_run() {
    let before = mounts();
    let mut sandbox = rich("run");
    sandbox.script("exit 3");
    sandbox.run().exits_with(3);
    sandbox.expect_nothing_left();
    assert_eq!(mounts(), before);
}

#[test]
fn after_failures_at_every_stage_of_create() {
    let before = mounts();
    let failing: &[(&str, &str, serde_json::Value)] = &[
        ("cgroup", "/linux/resources/memory", json!({"limit": 4096, "swap": 1})),
        ("namespace", "/linux/namespaces/1/path", json!("/nowhere")),
        ("mount", "/mounts/0/options", json!(["nonsense=1"])),
        ("mount source", "/mounts/6/source", json!("/nowhere")),
        (
            "device",
            "/linux/devices",
            json!([{"path": "/proc/nope", "type": "c", "major": 1, "minor": 3}]),
        ),
        ("sysctl", "/linux/sysctl", json!({"net.nonsense": "1"})),
        (
            "rlimit",
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 4_000_000_000u64, "hard": 4_000_000_000u64}]),
        ),
        ("hook", "/hooks/createRuntime", json!([{"path": "/bin/false"}])),
        ("inner hook", "/hooks/createContainer", json!([{"path": "/bin/false"}])),
        ("seccomp", "/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NONSENSE"})),
        ("cpuset", "/linux/resources/cpu", json!({"cpus": "4000"})),
        ("root", "/root/path", json!("nowhere")),
    ];
    for (stage, pointer, value) in failing {
        let mut sandbox = rich("stage");
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        sandbox.config.pointer_mut(parent).unwrap()[key] = value.clone();
        for subcommand in ["create", "run"] {
            let output = sandbox.bundle_call(subcommand).arg(&sandbox.id).output();
            assert_eq!(output.code, 1, "{stage}: {output:?}");
            sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
            sandbox.expect_nothing_left();
        }
        assert_eq!(mounts(), before, "{stage}");
    }
}

/// Everything that must hold for whatever a killed runtime left.
#[track_caller]
fn is_described_and_removable(sandbox: &Sandbox, when: &str) {
    is_described(sandbox, when);
    let deleted = sandbox.delete_forced();
    assert_eq!(deleted.code, 0, "{when}: {deleted:?}");
    sandbox.expect_nothing_left();
    // And the id is free again.
    sandbox.create().ok();
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

/// What `state` and `list` say is true, or there is nothing that they could say.
#[track_caller]
pub fn is_described(sandbox: &Sandbox, when: &str) {
    let state = sandbox.ultari(["state", &sandbox.id]);
    if state.code != 0 {
        // Before there is anything to describe it is enough to say so, and what to do.
        let said =
            state.stderr.contains("does not exist") || state.stderr.contains("delete --force");
        assert!(said, "{when}: {state:?}");
        return;
    }
    let state = state.json();
    let status = state["status"].as_str().unwrap().to_owned();
    let known = ["creating", "created", "running", "paused", "stopped"];
    assert!(known.contains(&status.as_str()), "{when}: {state}");
    let pid = state["pid"].as_i64().unwrap_or(0);
    if status == "running" || status == "created" {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // It may end by itself while we look: then the status follows.
        if stat.is_empty() || stat.contains(") Z ") {
            wait_until("the status follows", || {
                let state = sandbox.ultari(["state", &sandbox.id]);
                state.code != 0 || state.json()["status"] == "stopped"
            });
        }
    }
    let listed = sandbox.ultari(["list", "-q"]).ok();
    assert!(listed.stdout.contains(&sandbox.id), "{when}");
}

/// How long a call takes here, measured once: the moments of the kills are spread over it.
fn duration_of(sandbox: &Sandbox, subcommand: &str) -> Duration {
    let start = std::time::Instant::now();
    let arguments: &[&str] = if subcommand == "run" { &["--detach"] } else { &[] };
    sandbox.bundle_call(subcommand).args(arguments).arg(&sandbox.id).output().ok();
    let took = start.elapsed();
    sandbox.delete_forced().ok();
    took
}

const MOMENTS: u32 = 12;

#[test]
fn create_killed_at_any_moment() {
    let sandbox = rich("killcreate");
    let took = duration_of(&sandbox, "create");
    for moment in 0..MOMENTS {
        let call = sandbox.bundle_call("create").arg(&sandbox.id).spawn();
        std::thread::sleep(took * moment / MOMENTS);
        call.signal(Signal::SIGKILL);
        call.wait();
        is_described_and_removable(&sandbox, &format!("create, moment {moment} of {MOMENTS}"));
    }
}

#[test]
fn run_killed_at_any_moment() {
    let sandbox = rich("killrun");
    let took = duration_of(&sandbox, "run");
    for moment in 0..=MOMENTS {
        let call = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
        std::thread::sleep(took * moment * 3 / 2 / MOMENTS);
        call.signal(Signal::SIGKILL);
        call.wait();
        is_described_and_removable(&sandbox, &format!("run, moment {moment} of {MOMENTS}"));
    }
}

#[test]
fn start_kill_and_delete_killed_at_any_moment() {
    let sandbox = rich("killrest");
    for moment in 0..6 {
        sandbox.create().ok();
        let call = sandbox.call(["start", &sandbox.id]).spawn();
        std::thread::sleep(Duration::from_millis(moment));
        call.signal(Signal::SIGKILL);
        call.wait();
        is_described_and_removable(&sandbox, &format!("start, after {moment} ms"));
        sandbox.run_detached();
        let call = sandbox.call(["delete", "--force", &sandbox.id]).spawn();
        std::thread::sleep(Duration::from_millis(moment));
        call.signal(Signal::SIGKILL);
        call.wait();
        is_described_and_removable(&sandbox, &format!("delete, after {moment} ms"));
    }
}

#[test]
fn a_container_goes_on_when_its_run_is_killed_and_can_be_managed() {
    let sandbox = Sandbox::with_script("orphan", "exec sleep 100");
    let call = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    wait_until("it runs", || sandbox.ultari(["state", &sandbox.id]).stdout.contains("running"));
    call.signal(Signal::SIGKILL);
    call.wait().exits_with(137);
    assert_eq!(sandbox.status(), "running");
    sandbox.exec(&["true"]).ok();
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn delete_cleans_up_even_if_the_bundle_is_gone() {
    let sandbox = rich("nobundle");
    sandbox.run_detached();
    fs::remove_dir_all(sandbox.bundle()).unwrap();
    sandbox.ultari(["state", &sandbox.id]).ok();
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn delete_copes_with_damaged_state() {
    let sandbox = rich("damaged");
    sandbox.run_detached();
    let folder = sandbox.root().join(&sandbox.id);
    let pid = sandbox.pid();
    for file in fs::read_dir(&folder).unwrap().flatten() {
        if file.file_type().unwrap().is_file() {
            fs::write(file.path(), "{").unwrap();
        }
    }
    // No panic and no lie; what cannot be known is said.
    let state = sandbox.ultari(["state", &sandbox.id]);
    assert!(state.code == 1 && !state.stderr.contains("panicked"), "{state:?}");
    sandbox.ultari(["list"]);
    sandbox.delete_forced();
    // Whether its process can still be found is another matter: the test ends it.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    wait_until("the processes end", || marked_processes(&sandbox.marker()).is_empty());
    let _ = fs::remove_dir_all(&folder);
    wait_until("the cgroups can be removed", || {
        sandbox.cgroups().iter().for_each(|cgroup| drop(fs::remove_dir(cgroup)));
        sandbox.cgroups().is_empty()
    });
}

#[test]
fn a_damaged_pid_is_said_and_delete_with_force_leaves_nothing() {
    let sandbox = rich("damagedpid");
    sandbox.run_detached();
    fs::write(sandbox.root().join(&sandbox.id).join("init"), "12 3").unwrap();
    let state = sandbox.ultari(["state", &sandbox.id]);
    assert!(state.code == 1 && state.stderr.contains("init is damaged"), "{state:?}");
    let delete = sandbox.ultari(["delete", &sandbox.id]);
    assert!(delete.code == 1 && !marked_processes(&sandbox.marker()).is_empty(), "{delete:?}");
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

/// As of a file system with errors: here the file can't be removed because it is immutable.
#[test]
fn what_can_not_be_removed_is_told_and_the_id_stays_taken() {
    let sandbox = rich("immutable");
    sandbox.run_detached();
    let record = sandbox.root().join(&sandbox.id).join("state.json");
    let chattr = |flag: &str| {
        let mut call = std::process::Command::new("chattr");
        let call = host().output(call.arg(flag).arg(&record));
        call.is_ok_and(|output| output.status.success())
    };
    if !chattr("+i") {
        sandbox.delete_forced().ok();
        skip!("no immutable files in this file system");
    }
    let delete = sandbox.delete_forced();
    let create = sandbox.create();
    assert!(chattr("-i"));
    assert!(delete.code == 1 && delete.stderr.contains("state.json: EPERM"), "{delete:?}");
    assert!(create.code == 1 && create.stderr.contains("already exists"), "{create:?}");
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn a_record_of_the_root_cgroup_kills_nobody() {
    let sandbox = rich("rootcgroup");
    sandbox.run_detached();
    let file = sandbox.root().join(&sandbox.id).join("state.json");
    let whole = fs::read_to_string(&file).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&whole).unwrap();
    record["cgroup"]["path"] = serde_json::json!([]);
    fs::write(&file, record.to_string()).unwrap();
    // Neither asks for a signal to all, which would reach this test, should it be obeyed.
    for command in [&["state"][..], &["ps"], &["kill"]] {
        let refused = sandbox.ultari(command.iter().copied().chain([sandbox.id.as_str()]));
        assert!(refused.code == 1 && refused.stderr.contains("cgroup.path"), "{refused:?}");
    }
    fs::write(&file, whole).unwrap();
    sandbox.delete_forced().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn many_containers_at_the_same_time() {
    let sandboxes: Vec<Sandbox> = (0..6).map(|_| rich("parallel")).collect();
    let calls: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| sandbox.bundle_call("run").args(["--detach", &sandbox.id]).spawn())
        .collect();
    for call in calls {
        call.wait().ok();
    }
    let calls: Vec<_> = sandboxes
        .iter()
        .map(|sandbox| sandbox.call(["delete", "--force", &sandbox.id]).spawn())
        .collect();
    for call in calls {
        call.wait().ok();
    }
    for sandbox in &sandboxes {
        sandbox.expect_nothing_left();
    }
}

#[test]
fn one_id_created_twice_at_the_same_time() {
    for _ in 0..5 {
        let sandbox = Sandbox::with_script("race", "exec sleep 100");
        sandbox.write_config();
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let call = sandbox.call(["create", "--bundle"]).arg(sandbox.bundle());
                call.arg(&sandbox.id).spawn()
            })
            .collect();
        let codes: Vec<i32> = calls.into_iter().map(|call| call.wait().code).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        assert_eq!(sandbox.status(), "created");
        sandbox.start().ok();
        assert_eq!(sandbox.status(), "running");
        sandbox.delete_forced().ok();
        sandbox.expect_nothing_left();
    }
}
