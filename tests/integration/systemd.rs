//! The systemd cgroup driver. All but the first need systemd as PID 1 and cgroup v2.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::skip;
use crate::support::{Json, Output, Run, Sandbox, host, remove_namespace, set_namespace};

const MIB: u64 = 1 << 20;

/// Ends the test where there is no systemd to talk to.
macro_rules! need_systemd {
    () => {
        if !Path::new("/run/systemd/system").exists() {
            skip!("systemd is not running here");
        }
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            skip!("no cgroup v2 alone");
        }
    };
}

/// The slice of all containers of this run: systemd keeps slices, so there is one for all.
fn slice() -> String {
    format!("ultaritest{}-inner.slice", std::process::id())
}

/// Its cgroup: by its name it lies in another.
fn slice_path() -> String {
    format!("/ultaritest{}.slice/{}", std::process::id(), slice())
}

fn sandbox(name: &str, args: &[&str]) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.args(args);
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}:test:{}", slice(), sandbox.id));
    sandbox
}

fn sleeper(name: &str, resources: Value) -> Sandbox {
    let mut sandbox = sandbox(name, &["/bin/sleep", "100"]);
    for (key, value) in resources.as_object().unwrap() {
        sandbox.config["linux"]["resources"][key] = value.clone();
    }
    sandbox
}

fn unit(sandbox: &Sandbox) -> String {
    format!("test-{}.scope", sandbox.id)
}

fn folder(sandbox: &Sandbox) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup{}/{}", slice_path(), unit(sandbox)))
}

fn call(sandbox: &Sandbox, subcommand: &str) -> Run {
    sandbox.bundle_call(subcommand).arg("--systemd-cgroup")
}

#[track_caller]
fn create(sandbox: &Sandbox) -> Output {
    call(sandbox, "create").arg(&sandbox.id).output()
}

#[track_caller]
fn run_detached(sandbox: &Sandbox) {
    call(sandbox, "run").args(["--detach", &sandbox.id]).output().ok();
}

/// What a command prints.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = host().output(command).unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn systemctl(arguments: &[&str]) -> String {
    output(Command::new("systemctl").args(arguments))
}

/// What systemd says of a unit's property.
fn shown(unit: &str, property: &str) -> String {
    systemctl(&["show", "--value", "-p", property, "--", unit])
}

/// Expects that systemd knows of no such unit, not even of a failed one.
#[track_caller]
fn expect_no_unit(sandbox: &Sandbox) {
    let pattern = format!("*{}*", sandbox.id);
    let list = || systemctl(&["list-units", "--all", "--plain", "--no-legend", &pattern]);
    assert_eq!(list(), "");
    assert!(!folder(sandbox).exists());
}

fn read(path: &Path) -> String {
    let text = fs::read_to_string(path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

#[test]
fn bad_cgroups_paths_are_refused_by_what_is_wrong_with_them() {
    let mut sandbox = Sandbox::new("paths");
    for path in [
        "/ultari/a",
        "a.slice:b",
        "a.slice:b:c:d",
        "a:b:c",
        "a--b.slice:c:d",
        "../a.slice:c:d",
        "a.slice:b:",
        "a.slice:b:../c",
        "a.slice:b c:d",
        "a.slice:b:other-c.slice",
    ] {
        sandbox.config["linux"]["cgroupsPath"] = json!(path);
        create(&sandbox).fails(1, &["linux.cgroupsPath: "]);
        sandbox.expect_nothing_left();
    }
    sandbox.config["linux"]["cgroupsPath"] = json!("a.slice:b:c");
    sandbox.config["annotations"] = json!({"org.systemd.property.TimeoutStopUSec": "soon"});
    create(&sandbox).fails(1, &["org.systemd.property.TimeoutStopUSec", "soon"]);
}

#[test]
fn without_systemd_the_error_says_what_to_do() {
    let sandbox = sandbox("nobus", &["/bin/true"]);
    let nowhere = "unix:path=/nowhere/bus";
    let output = call(&sandbox, "create").env("DBUS_SYSTEM_BUS_ADDRESS", nowhere);
    let output = output.arg(&sandbox.id).output();
    let cgroup2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let reason = if cgroup2 { "/nowhere/bus" } else { "cgroup v2" };
    output.fails(1, &["--systemd-cgroup", reason, "native.cgroupdriver=cgroupfs"]);
    sandbox.expect_nothing_left();
}

#[test]
fn the_scope_is_in_its_slice_and_has_the_limits_as_properties() {
    need_systemd!();
    let mut sandbox = sleeper(
        "scope",
        json!({
            "memory": {"limit": 64 * MIB, "reservation": 16 * MIB, "swap": 96 * MIB},
            "cpu": {"shares": 2048, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 50},
            "blockIO": {"weight": 100},
            "unified": {"memory.high": "50331648"}
        }),
    );
    sandbox.config["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "7"});
    create(&sandbox).ok();
    let unit = unit(&sandbox);
    for (property, value) in [
        ("ActiveState", "active"),
        ("Slice", slice().as_str()),
        ("ControlGroup", &format!("{}/{unit}", slice_path())),
        ("Transient", "yes"),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("CollectMode", "inactive-or-failed"),
        ("MemoryMax", &(64 * MIB).to_string()),
        ("MemoryLow", &(16 * MIB).to_string()),
        ("MemoryHigh", &(48 * MIB).to_string()),
        ("MemorySwapMax", &(32 * MIB).to_string()),
        ("CPUWeight", "174"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
        ("AllowedCPUs", "0"),
        ("AllowedMemoryNodes", "0"),
        ("TasksMax", "50"),
        ("IOWeight", "910"),
        ("DevicePolicy", "strict"),
        ("TimeoutStopUSec", "7s"),
    ] {
        assert_eq!(shown(&unit, property), value, "{property}");
    }
    let cgroup = folder(&sandbox);
    for (file, value) in [
        ("memory.max", (64 * MIB).to_string()),
        ("memory.high", (48 * MIB).to_string()),
        ("cpu.max", "50000 100000".into()),
        ("cpu.weight", "174".into()),
        ("cpuset.cpus", "0".into()),
        ("pids.max", "50".into()),
        ("cgroup.procs", sandbox.pid().to_string()),
    ] {
        assert_eq!(read(&cgroup.join(file)), value, "{file}");
    }
    // systemd writes what it knows once more, and nothing changes.
    systemctl(&["daemon-reload"]);
    assert_eq!(read(&cgroup.join("memory.max")), (64 * MIB).to_string());
    assert_eq!(read(&cgroup.join("cpu.max")), "50000 100000");
    // No later command needs the flag.
    sandbox.start().ok();
    assert_eq!(sandbox.status(), "running");
    sandbox.delete_forced().ok();
    expect_no_unit(&sandbox);
}

#[test]
fn limits_that_systemd_does_not_know_are_set_in_its_scope() {
    need_systemd!();
    if !read(Path::new("/sys/fs/cgroup/cgroup.controllers")).contains("hugetlb") {
        skip!("no hugetlb controller");
    }
    let sandbox = sleeper(
        "files",
        json!({
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}],
            "cpu": {"quota": 12345, "period": 100000, "burst": 5000, "idle": 1}
        }),
    );
    run_detached(&sandbox);
    let cgroup = folder(&sandbox);
    assert_eq!(read(&cgroup.join("hugetlb.2MB.max")), (4 * MIB).to_string());
    // To the microsecond, where systemd has percents.
    assert_eq!(read(&cgroup.join("cpu.max")), "12345 100000");
    assert_eq!(shown(&unit(&sandbox), "CPUQuotaPerSecUSec"), "130ms");
    assert_eq!(read(&cgroup.join("cpu.max.burst")), "5000");
    assert_eq!(read(&cgroup.join("cpu.idle")), "1");
}

#[test]
fn memory_beyond_the_limit_ends_the_container() {
    need_systemd!();
    let mut sandbox = sandbox("oom", &["/guest", "do", "alloc 10"]);
    sandbox.config["linux"]["resources"]["memory"] = json!({"limit": 40 * MIB, "swap": 40 * MIB});
    call(&sandbox, "run").arg(&sandbox.id).output().ok();
    expect_no_unit(&sandbox);
    sandbox.args(&["/guest", "do", "alloc 200"]);
    call(&sandbox, "run").arg(&sandbox.id).output().exits_with(137);
    expect_no_unit(&sandbox);
}

#[test]
fn processes_beyond_the_limit_are_refused() {
    need_systemd!();
    let mut sandbox = sandbox("pids", &["/guest", "do", "fork 4", "fork 30"]);
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 10});
    let outcome = call(&sandbox, "run").arg(&sandbox.id).output().ok().json();
    assert!(outcome[0].as_str().unwrap().starts_with("ok"), "{outcome}");
    assert!(outcome[1].as_str().unwrap().contains("EAGAIN"), "{outcome}");
}

#[test]
fn devices_are_those_of_the_rules() {
    need_systemd!();
    let mut sandbox = sandbox(
        "devices",
        &[
            "/guest",
            "do",
            "mknod /dev/yes c 10 229",
            "open rw /dev/yes",
            "mknod /dev/no c 10 228",
            "open rw /dev/no",
            "open rw /dev/null",
        ],
    );
    sandbox.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    ]);
    let outcome = call(&sandbox, "run").arg(&sandbox.id).output().ok().json();
    // Whether the kernel has a driver is another question.
    assert_ne!(outcome[1], "EPERM", "{outcome}");
    assert_eq!(outcome[3], "EPERM", "{outcome}");
    assert!(outcome[4].as_str().unwrap().starts_with("ok"), "{outcome}");
}

#[test]
fn exec_pause_resume_and_kill_reach_the_scope() {
    need_systemd!();
    let sandbox = sleeper("life", json!({}));
    run_detached(&sandbox);
    let text = sandbox.exec(&["cat", "/proc/self/cgroup"]).ok().stdout;
    assert!(text.trim().ends_with(&unit(&sandbox)), "{text}");
    sandbox.ultari(["pause", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "paused");
    assert_eq!(read(&folder(&sandbox).join("cgroup.freeze")), "1");
    sandbox.ultari(["resume", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "running");
    sandbox.ultari(["pause", &sandbox.id]).ok();
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    expect_no_unit(&sandbox);
    sandbox.expect_nothing_left();
}

#[test]
fn a_container_with_its_own_cgroup_namespace_sees_its_scope_as_root() {
    need_systemd!();
    let mut sandbox =
        sandbox("namespace", &["/bin/cat", "/proc/self/cgroup", "/sys/fs/cgroup/pids.max"]);
    set_namespace(&mut sandbox.config, "cgroup", None);
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    sandbox.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
    call(&sandbox, "run").arg(&sandbox.id).output().ok().prints("0::/\n77");
}

#[test]
fn two_containers_share_a_slice_and_not_their_ends() {
    need_systemd!();
    let first = sleeper("first", json!({}));
    let second = sleeper("second", json!({}));
    run_detached(&first);
    run_detached(&second);
    first.delete_forced().ok();
    expect_no_unit(&first);
    assert_eq!(shown(&unit(&second), "ActiveState"), "active");
    assert_eq!(second.status(), "running");
    second.delete_forced().ok();
    expect_no_unit(&second);
}

#[test]
fn a_unit_of_that_name_is_neither_taken_nor_stopped() {
    need_systemd!();
    let first = sleeper("owner", json!({}));
    run_detached(&first);
    let mut second = sleeper("thief", json!({}));
    second.config["linux"]["cgroupsPath"] = first.config["linux"]["cgroupsPath"].clone();
    // Without a PID namespace all that is in the cgroup would be killed.
    remove_namespace(&mut second.config, "pid");
    create(&second).fails(1, &[&unit(&first), "linux.cgroupsPath"]);
    second.expect_nothing_left();
    assert_eq!(first.status(), "running");
    assert_eq!(shown(&unit(&first), "ActiveState"), "active");
}

#[test]
fn a_failed_create_leaves_no_unit() {
    need_systemd!();
    for (pointer, value) in [
        ("/mounts/0/options", json!(["nonsense=1"])),
        ("/linux/resources/unified", json!({"memory.nonsense": "1"})),
        ("/linux/resources/cpu", json!({"cpus": "4000"})),
        ("/hooks", json!({"createRuntime": [{"path": "/bin/false"}]})),
        ("/annotations", json!({"org.systemd.property.Nonsense": "1"})),
    ] {
        let mut sandbox = sleeper("failed", json!({}));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        sandbox.config.pointer_mut(parent).unwrap()[key] = value;
        for subcommand in ["create", "run"] {
            let output = call(&sandbox, subcommand).arg(&sandbox.id).output();
            assert_eq!(output.code, 1, "{pointer}: {output:?}");
            sandbox.expect_nothing_left();
            expect_no_unit(&sandbox);
        }
    }
}

#[test]
fn a_runtime_killed_at_any_moment_leaves_what_delete_removes() {
    need_systemd!();
    let sandbox = sleeper("killed", json!({"pids": {"limit": 50}}));
    let start = std::time::Instant::now();
    create(&sandbox).ok();
    let took = start.elapsed();
    sandbox.delete_forced().ok();
    for moment in 0..10 {
        let running = call(&sandbox, "create").arg(&sandbox.id).spawn();
        std::thread::sleep(took * moment / 10);
        running.signal(Signal::SIGKILL);
        running.wait();
        let deleted = sandbox.delete_forced();
        assert_eq!(deleted.code, 0, "moment {moment}: {deleted:?}");
        sandbox.expect_nothing_left();
        expect_no_unit(&sandbox);
    }
    // And the id is free again.
    create(&sandbox).ok();
}

#[test]
fn update_reaches_the_unit_and_the_files() {
    need_systemd!();
    let sandbox = sleeper("update", json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}}));
    run_detached(&sandbox);
    let limits = sandbox.file(
        "limits.json",
        r#"{"memory": {"limit": 33554432}, "pids": {"limit": 20}, "cpu": {"quota": 20000, "period": 50000}}"#,
    );
    sandbox.call(["update", "--resources"]).arg(limits).arg(&sandbox.id).output().ok();
    let unit = unit(&sandbox);
    assert_eq!(shown(&unit, "MemoryMax"), (32 * MIB).to_string());
    assert_eq!(shown(&unit, "TasksMax"), "20");
    assert_eq!(shown(&unit, "CPUQuotaPerSecUSec"), "400ms");
    let cgroup = folder(&sandbox);
    assert_eq!(read(&cgroup.join("memory.max")), (32 * MIB).to_string());
    assert_eq!(read(&cgroup.join("cpu.max")), "20000 50000");
    sandbox.exec(&["/guest", "do", "alloc 200"]).exits_with(137);
    // A refused change leaves everything.
    let limits = sandbox.file("wrong.json", r#"{"pids": {"limit": 7}, "cpu": {"cpus": "4000"}}"#);
    let refused = sandbox.call(["update", "--resources"]).arg(limits).arg(&sandbox.id).output();
    refused.fails(1, &["cpus"]);
    assert_eq!(shown(&unit, "TasksMax"), "20");
    assert_eq!(read(&cgroup.join("pids.max")), "20");
    systemctl(&["daemon-reload"]);
    assert_eq!(read(&cgroup.join("pids.max")), "20");
}

/// An ordinary user of this host: number and home.
fn user() -> Option<(u32, String)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid = fields[2].parse().ok().filter(|uid| (1000..60000).contains(uid))?;
        Some((uid, fields[5].to_owned()))
    })
}

/// A bundle that an ordinary user can run, and what has a program run as that user: see
/// [`Run::wrapped`]. None with the reason if nobody has a systemd here.
fn for_user(name: &str) -> Result<(Sandbox, u32, String), String> {
    let (uid, home) = user().ok_or("no ordinary user here")?;
    let mut start = Command::new("systemctl");
    let mut started = host().spawn(start.args(["start", &format!("user@{uid}.service")]));
    let done = started.wait().unwrap();
    host().forget(started.id());
    let folder = format!("/run/user/{uid}");
    if !done.success() || !Path::new(&folder).join("bus").exists() {
        return Err(format!("user {uid} can have no systemd of their own here"));
    }
    let mut sandbox = Sandbox::new(name);
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("user.slice:test:{}", sandbox.id));
    sandbox.config["linux"]["resources"] =
        json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}, "pids": {"limit": 30}});
    for mount in sandbox.config["mounts"].as_array_mut().unwrap() {
        // The group of terminals is not mapped.
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    fs::create_dir(sandbox.root()).unwrap();
    chown(sandbox.root(), Some(uid), Some(uid)).unwrap();
    let as_user = format!(
        "set -- setpriv --reuid {uid} --regid {uid} --clear-groups env HOME={home} \
         XDG_RUNTIME_DIR={folder} DBUS_SESSION_BUS_ADDRESS=unix:path={folder}/bus"
    );
    Ok((sandbox, uid, as_user))
}

/// Expects the container, made by `call`, in a scope of the user's systemd, with its limits; returns
/// its cgroup.
#[track_caller]
fn expect_users_scope(sandbox: &Sandbox, uid: u32, call: impl Fn(Run) -> Output) -> PathBuf {
    call(sandbox.bundle_call("run").args(["--systemd-cgroup", "--detach", &sandbox.id])).ok();
    let state = call(sandbox.call(["state", &sandbox.id])).ok().json();
    let text = read(Path::new(&format!("/proc/{}/cgroup", state.integer("/pid"))));
    let unit = unit(sandbox);
    let own = format!("/user@{uid}.service/user.slice/{unit}");
    assert!(text.ends_with(&own), "{text}");
    let cgroup = Path::new("/sys/fs/cgroup").join(text.trim_start_matches("0::/"));
    assert_eq!(read(&cgroup.join("memory.max")), (64 * MIB).to_string());
    assert_eq!(read(&cgroup.join("pids.max")), "30");
    call(sandbox.call(["update", "--pids-limit", "25", &sandbox.id])).ok();
    assert_eq!(read(&cgroup.join("pids.max")), "25");
    call(sandbox.call(["pause", &sandbox.id])).ok();
    call(sandbox.call(["resume", &sandbox.id])).ok();
    cgroup
}

#[track_caller]
fn expect_gone(sandbox: &Sandbox, cgroup: &Path, call: impl Fn(Run) -> Output) {
    call(sandbox.call(["delete", "--force", &sandbox.id])).ok();
    assert!(!cgroup.exists());
    sandbox.expect_nothing_left();
}

#[test]
fn a_user_has_the_scope_from_their_own_systemd() {
    need_systemd!();
    let (mut sandbox, uid, as_user) = match for_user("user") {
        Ok(all) => all,
        Err(reason) => skip!("{reason}"),
    };
    set_namespace(&mut sandbox.config, "user", None);
    let linux = &mut sandbox.config["linux"];
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    let call = |run: Run| run.wrapped(&format!("{as_user} \"$@\"; exec \"$@\"")).output();
    let cgroup = expect_users_scope(&sandbox, uid, call);
    let exec = call(sandbox.exec_call(&[]).args(["cat", "/proc/self/cgroup"])).ok();
    assert!(exec.stdout.trim().ends_with(&unit(&sandbox)), "{}", exec.stdout);
    call(sandbox.exec_call(&[]).args(["/guest", "do", "alloc 200"])).exits_with(137);
    expect_gone(&sandbox, &cgroup, call);
}

#[test]
fn in_a_user_namespace_the_bus_knows_the_user_of_the_host() {
    need_systemd!();
    let (sandbox, uid, as_user) = match for_user("userns") {
        Ok(all) => all,
        Err(reason) => skip!("{reason}"),
    };
    // An engine without root has become root of a namespace before it calls us.
    let enter = "unshare --user --map-root-user";
    let call = |run: Run| run.wrapped(&format!("{as_user} {enter} \"$@\"; exec \"$@\"")).output();
    let cgroup = expect_users_scope(&sandbox, uid, call);
    expect_gone(&sandbox, &cgroup, call);
}

#[test]
fn a_slice_can_be_the_containers_own() {
    need_systemd!();
    let mut sandbox = sleeper("slice", json!({"pids": {"limit": 40}}));
    let own = slice().replace(".slice", "-own.slice");
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}::{own}", slice()));
    run_detached(&sandbox);
    let cgroup = PathBuf::from(format!("/sys/fs/cgroup{}/{own}", slice_path()));
    assert_eq!(read(&cgroup.join("cgroup.procs")), sandbox.pid().to_string());
    assert_eq!(read(&cgroup.join("pids.max")), "40");
    assert_eq!(shown(&own, "TasksMax"), "40");
    sandbox.exec(&["true"]).ok();
    sandbox.delete_forced().ok();
    assert!(!cgroup.exists());
    assert_eq!(systemctl(&["list-units", "--all", "--plain", "--no-legend", &own]), "");
}
