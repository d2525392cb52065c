//! The process as config.json's `process` describes it: seen by the guest from inside.

use serde_json::{Value, json};

use crate::skip;
use crate::support::{Json, Sandbox};

/// A capability set of a report: the bits of /proc/self/status.
fn capabilities(report: &Value, set: &str) -> u64 {
    u64::from_str_radix(report.text(&format!("/status/{set}")), 16).unwrap()
}

#[test]
fn user_group_and_additional_groups() {
    let mut sandbox = Sandbox::new("user");
    sandbox.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7000]});
    let report = sandbox.probe();
    assert_eq!(report["status"]["Uid"], "1000 1000 1000 1000");
    assert_eq!(report["status"]["Gid"], "1001 1001 1001 1001");
    let mut groups: Vec<&str> = report.text("/status/Groups").split(' ').collect();
    groups.retain(|group| *group != "1001");
    groups.sort();
    assert_eq!(groups, ["5", "7000"]);
}

#[test]
fn groups_of_the_caller_are_not_inherited() {
    let mut sandbox = Sandbox::new("groups");
    sandbox.args(&["/guest", "report"]);
    let wrapper = "exec setpriv --groups 4,20,27 \"$@\"";
    let report = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(wrapper).output().ok().json();
    let groups = report.text("/status/Groups");
    assert!(groups.is_empty() || groups == "0", "{groups}");
}

#[test]
fn umask() {
    let mut sandbox = Sandbox::new("umask");
    assert_eq!(sandbox.probe().integer("/umask"), 0o22, "the default");
    sandbox.config["process"]["user"]["umask"] = json!(0o77);
    assert_eq!(sandbox.probe().integer("/umask"), 0o77);
    sandbox.config["process"]["user"]["umask"] = json!(0);
    assert_eq!(sandbox.probe().integer("/umask"), 0);
}

#[test]
fn cwd() {
    let mut sandbox = Sandbox::new("cwd");
    sandbox.config["process"]["cwd"] = json!("/tmp");
    assert_eq!(sandbox.probe()["cwd"], "/tmp");
}

#[test]
fn cwd_that_is_missing() {
    let mut sandbox = Sandbox::new("nocwd");
    sandbox.config["process"]["cwd"] = json!("/brand/new");
    // runc makes it; so engines rely on a WORKDIR that the image lacks.
    assert_eq!(sandbox.probe()["cwd"], "/brand/new");
}

#[test]
fn cwd_that_the_user_may_not_enter() {
    use std::os::unix::fs::PermissionsExt;
    let mut sandbox = Sandbox::new("private");
    let private = sandbox.rootfs().join("root");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
    sandbox.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    sandbox.config["process"]["cwd"] = json!("/root");
    // Root without privileges of its own is no exception, but the runtime's chdir as root is.
    sandbox.args(&["/bin/true"]);
    let output = sandbox.run();
    assert!(output.code == 0 || output.stderr.contains("/root"), "{output:?}");
}

#[test]
fn env_is_that_of_the_config_and_nothing_else() {
    let mut sandbox = Sandbox::new("env");
    let marker = sandbox.marker();
    sandbox.config["process"]["env"] =
        json!(["PATH=/bin", "A=1", "B=x=y", "EMPTY=", "A=2", marker]);
    sandbox.args(&["/guest", "report"]);
    let call = sandbox.bundle_call("run").arg(&sandbox.id).env("SECRET", "of the host");
    let report = call.output().ok().json();
    let mut env = report.texts("/env");
    // Which of two same names counts is what matters, and whether HOME is added.
    assert!(!env.iter().any(|entry| entry.starts_with("SECRET")), "{env:?}");
    assert_eq!(env.iter().rfind(|entry| entry.starts_with("A=")), Some(&"A=2"));
    env.retain(|entry| !entry.starts_with("A=") && !entry.starts_with("HOME="));
    assert_eq!(env, ["PATH=/bin", "B=x=y", "EMPTY=", &marker]);
}

#[test]
fn home_is_that_of_the_user_unless_given() {
    let mut sandbox = Sandbox::new("home");
    assert!(sandbox.probe().texts("/env").contains(&"HOME=/root"));
    sandbox.config["process"]["env"].as_array_mut().unwrap().push(json!("HOME=/elsewhere"));
    let report = sandbox.probe();
    let homes: Vec<&str> =
        report.texts("/env").into_iter().filter(|entry| entry.starts_with("HOME=")).collect();
    assert_eq!(homes, ["HOME=/elsewhere"]);
}

#[test]
fn args_are_passed_as_they_are() {
    let mut sandbox = Sandbox::new("args");
    sandbox.args(&["/guest", "report", "", "a b", "$HOME", "\u{2603}", "new\nline"]);
    let report = sandbox.run().ok().json();
    assert_eq!(
        report.texts("/args"),
        ["/guest", "report", "", "a b", "$HOME", "\u{2603}", "new\nline"]
    );
}

#[test]
fn the_program_is_looked_up_in_the_containers_path() {
    let mut sandbox = Sandbox::new("path");
    sandbox.config["process"]["env"] = json!(["PATH=/nowhere:/usr/tools:/bin", sandbox.marker()]);
    std::fs::create_dir_all(sandbox.rootfs().join("usr/tools")).unwrap();
    std::fs::hard_link(sandbox.rootfs().join("guest"), sandbox.rootfs().join("usr/tools/looker"))
        .unwrap();
    sandbox.args(&["looker", "report"]);
    assert_eq!(sandbox.run().ok().json().texts("/args")[0], "looker");
}

#[test]
fn the_five_capability_sets() {
    let mut sandbox = Sandbox::new("caps");
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, KILL 5, SETGID 6, SETUID 7, NET_RAW 13
    sandbox.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SETUID"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN", "CAP_NET_RAW"],
        "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
        "ambient": ["CAP_NET_RAW"]
    });
    // Not as root: the kernel gives root's programs all of the bounding set at exec.
    sandbox.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let report = sandbox.probe();
    assert_eq!(capabilities(&report, "CapBnd"), 1 | 1 << 5 | 1 << 7 | 1 << 13);
    assert_eq!(capabilities(&report, "CapInh"), 1 << 5 | 1 << 13);
    assert_eq!(capabilities(&report, "CapAmb"), 1 << 13);
    // What is not ambient is lost at the exec of a program without file capabilities.
    assert_eq!(capabilities(&report, "CapPrm"), 1 << 13);
    assert_eq!(capabilities(&report, "CapEff"), 1 << 13);
    sandbox.config["process"]["user"] = json!({"uid": 0, "gid": 0});
    let report = sandbox.probe();
    assert_eq!(capabilities(&report, "CapEff"), 1 | 1 << 5 | 1 << 13, "noNewPrivileges: no gain");
    sandbox.config["process"]["noNewPrivileges"] = json!(false);
    let report = sandbox.probe();
    assert_eq!(capabilities(&report, "CapEff"), 1 | 1 << 5 | 1 << 7 | 1 << 13);
}

#[test]
fn no_capabilities_means_none() {
    let mut sandbox = Sandbox::new("nocaps");
    sandbox.config["process"]["capabilities"] = json!({});
    let report = sandbox.probe();
    for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(capabilities(&report, set), 0, "{set}");
    }
}

#[test]
fn no_new_privileges_as_asked_for() {
    for wanted in [true, false] {
        let mut sandbox = Sandbox::new("nnp");
        sandbox.config["process"]["noNewPrivileges"] = json!(wanted);
        assert_eq!(sandbox.probe().text("/status/NoNewPrivs"), if wanted { "1" } else { "0" });
    }
}

#[test]
fn rlimits() {
    let mut sandbox = Sandbox::new("rlimits");
    sandbox.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 22},
        {"type": "RLIMIT_CPU", "soft": 100, "hard": 100}
    ]);
    let limits = sandbox.probe()["rlimits"].clone();
    assert_eq!(limits["RLIMIT_NOFILE"], json!([100, 200]));
    assert_eq!(limits["RLIMIT_CORE"], json!([0, 0]));
    assert_eq!(limits["RLIMIT_STACK"], json!([1 << 20, 1 << 22]));
    assert_eq!(limits["RLIMIT_CPU"], json!([100, 100]));
}

#[test]
fn rlimits_that_are_not_set_are_the_callers() {
    let mut sandbox = Sandbox::new("limits");
    sandbox.args(&["/guest", "report"]);
    let call = sandbox.bundle_call("run").arg(&sandbox.id);
    let report = call.wrapped("ulimit -n 777; exec \"$@\"").output().ok().json();
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!([777, 777]));
}

#[test]
fn oom_score_adj() {
    let mut sandbox = Sandbox::new("oom");
    sandbox.config["process"]["oomScoreAdj"] = json!(321);
    assert_eq!(sandbox.probe().integer("/oom_score_adj"), 321);
    // Absent: the caller's.
    sandbox.config["process"].as_object_mut().unwrap().remove("oomScoreAdj");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(sandbox.probe().integer("/oom_score_adj").to_string(), own.trim());
}

#[test]
fn init_is_a_session_leader() {
    let mut sandbox = Sandbox::new("session");
    let report = sandbox.probe();
    assert_eq!(report["pid"], 1);
    assert_eq!(report["sid"], 1);
    assert_eq!(report["pgid"], 1);
}

#[test]
fn signals_are_at_their_defaults() {
    let mut sandbox = Sandbox::new("sigmask");
    // 34 is one that C libraries other than the guest's keep for themselves.
    let wrapper = "trap '' PIPE HUP USR1 34; exec \"$@\"";
    sandbox.args(&["/guest", "report"]);
    let call = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(wrapper);
    let report = call.output().ok().json();
    assert_eq!(report.text("/status/SigBlk"), "0000000000000000");
    // The guest's own language runtime ignores SIGPIPE (13); 32 and 33 are the C library's own.
    let ignored = u64::from_str_radix(report.text("/status/SigIgn"), 16).unwrap();
    let not_ours = 1 << 12 | 1 << 31 | 1 << 32;
    assert_eq!(ignored & !not_ours, 0, "{ignored:x}");
}

#[test]
fn preserved_descriptors_and_no_others() {
    let mut sandbox = Sandbox::new("keepfds");
    sandbox.args(&["/guest", "report"]);
    let wrapper = "exec 3</etc/passwd 4</etc/group 5</etc/hostname 6</; exec \"$@\"";
    let call = sandbox.bundle_call("run").args(["--preserve-fds", "2", &sandbox.id]);
    let report = call.wrapped(wrapper).output().ok().json();
    let fds = report["fds"].as_object().unwrap();
    assert_eq!(fds.keys().collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    assert!(fds["3"].as_str().unwrap().ends_with("/etc/passwd"), "{fds:?}");
    assert!(fds["4"].as_str().unwrap().ends_with("/etc/group"), "{fds:?}");
}

#[test]
fn preserving_a_descriptor_that_is_not_open_is_an_error() {
    let sandbox = Sandbox::with_script("nofd", "exit 0");
    let call = sandbox.bundle_call("run").args(["--preserve-fds", "2", &sandbox.id]);
    let output = call.wrapped("exec 3</etc/passwd 4<&-; exec \"$@\"").output();
    output.fails(1, &["4"]);
}

#[test]
fn cpu_affinity_of_the_caller_is_not_inherited() {
    let allowed = std::thread::available_parallelism().unwrap().get();
    if allowed < 2 {
        skip!("needs two processors");
    }
    let mut sandbox = Sandbox::new("affinity");
    sandbox.args(&["/guest", "report"]);
    let call = sandbox.bundle_call("run").arg(&sandbox.id);
    let report = call.wrapped("exec taskset -c 0 \"$@\"").output().ok().json();
    let own = std::fs::read_to_string("/sys/fs/cgroup/cpuset/cpuset.cpus").unwrap_or_default();
    let list = report.text("/status/Cpus_allowed_list");
    assert_ne!(list, "0", "the launcher's affinity is not the container's");
    assert!(own.is_empty() || list == own.trim(), "{list} is not {own}");
}

#[test]
fn scheduler_and_io_priority() {
    let mut sandbox = Sandbox::with_script("sched", "cat /proc/self/stat");
    sandbox.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    let output = sandbox.run().ok();
    let fields: Vec<&str> = output.stdout.rsplit(')').next().unwrap().split_whitespace().collect();
    // proc_pid_stat(5): nice is field 19, policy field 41; the first two are cut off.
    assert_eq!(fields[19 - 3], "7");
    assert_eq!(fields[41 - 3], "3", "SCHED_BATCH");
}

#[test]
fn personality() {
    let mut sandbox = Sandbox::with_script("pers", "uname -m");
    sandbox.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    sandbox.run().ok().prints(machine);
    sandbox.config["linux"]["personality"] = json!({"domain": "LINUX"});
    let machine = std::env::consts::ARCH;
    sandbox.run().ok().prints(machine);
}

#[test]
fn no_new_keyring_keeps_the_session_keyring() {
    // keyctl(KEYCTL_GET_KEYRING_ID = 0, KEY_SPEC_SESSION_KEYRING = -3, create = 0)
    let action = format!("syscall {} 0 {} 0", nix::libc::SYS_keyctl, (-3i32) as u32);
    let mut sandbox = Sandbox::new("keyring");
    sandbox.args(&["/guest", "do", &action]);
    let keyring = |extra: &[&str]| {
        let call = sandbox.bundle_call("run").args(extra).arg(&sandbox.id);
        call.output().ok().stdout
    };
    let kept = keyring(&["--no-new-keyring"]);
    assert_eq!(keyring(&["--no-new-keyring"]), kept);
    assert_ne!(keyring(&[]), kept, "a container has a session keyring of its own");
}
