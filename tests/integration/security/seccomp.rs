//! Filters that other runtimes loaded too early, with no_new_privs, or with EPERM for new calls.

use nix::libc;
use serde_json::{Value, json};

use crate::support::{Json, Sandbox};

fn with_profile(profile: Value) -> Sandbox {
    let mut sandbox = Sandbox::new("filter");
    sandbox.config["linux"]["seccomp"] = profile;
    sandbox
}

/// Shown: with no_new_privs set whenever there is a filter NoNewPrivs was 1.
#[test]
fn no_new_privileges_stays_false() {
    // The filter is loaded with the help of capabilities then, not of no_new_privs.
    let mut sandbox = with_profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]
    }));
    sandbox.config["process"]["noNewPrivileges"] = json!(false);
    for uid in [0, 1000] {
        sandbox.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        let report = sandbox.probe();
        assert_eq!(report.text("/status/NoNewPrivs"), "0");
        assert_eq!(report.text("/status/Seccomp"), "2");
    }
}

/// Shown: with the filter loaded in init::prepare the runtime could not go on.
#[test]
fn the_runtimes_own_calls_come_before_the_filter() {
    // Only what happens between loading the filter and exec has to be allowed.
    let mut sandbox = with_profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["getcwd", "mount", "pivot_root", "umount2", "setns", "unshare", "keyctl", "chown",
                "fchown", "setgroups", "setresuid", "setresgid", "capset", "sethostname", "socketpair",
                "accept4", "close_range", "recvmsg"],
            "action": "SCMP_ACT_ERRNO"
        }]
    }));
    let call = format!("syscall {} 0", libc::SYS_unshare);
    for uid in [1000, 0] {
        sandbox.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        assert_eq!(sandbox.attempt(&[&call]), ["EPERM"]);
    }
    sandbox.args(&["/guest", "do", &call]);
    let created = sandbox.create().ok();
    sandbox.start().ok();
    sandbox.wait_for("stopped");
    assert_eq!(created.stdout_by_now().trim(), r#"["EPERM"]"#);
}

/// Shown: with `hides_newer` always false the new call was EPERM.
#[test]
fn calls_newer_than_the_profile_are_enosys() {
    // A C library tries new calls and falls back at ENOSYS; EPERM would break it.
    let mut sandbox = with_profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": crate::seccomp::NEEDED, "action": "SCMP_ACT_ALLOW"}]
    }));
    let newest = format!("syscall {}", libc::SYS_openat2 + 60);
    let outcomes = sandbox.attempt(&[&format!("syscall {}", libc::SYS_sync), &newest]);
    assert_eq!(outcomes, ["EPERM", "ENOSYS"]);
}
