//! CVE-2025-52881: what the runtime writes to /proc arrives in another file.

use std::fs;

use serde_json::json;

use crate::skip;
use crate::support::{Sandbox, bind, wait_until};

/// Shown: with apply_sysctl writing to the path /proc/sys/… the kernel did not get the value.
#[test]
fn a_bind_mount_over_proc_does_not_catch_sysctls() {
    let mut sandbox = Sandbox::new("sysctltrap");
    let name = "net/ipv4/ip_unprivileged_port_start";
    let trap = sandbox.file(&format!("trap/sys/{name}"), "untouched");
    let folder = sandbox.dir.join("trap");
    let mounts = sandbox.config["mounts"].as_array_mut().unwrap();
    mounts.push(bind(&folder, "/proc", &["bind"]));
    mounts.push(json!({"destination": "/mnt", "type": "proc", "source": "proc"}));
    // They would keep the trap from being written to.
    sandbox.config["linux"]["readonlyPaths"] = json!([]);
    sandbox.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "5"});
    assert_eq!(sandbox.attempt(&[&format!("read /mnt/sys/{name}")]), ["ok 5\n"]);
    assert_eq!(fs::read_to_string(&trap).unwrap(), "untouched");
}

/// Shown: with apply_labels writing to the path /proc/self/attr/… the traps had the label.
#[test]
fn a_bind_mount_over_proc_does_not_catch_labels() {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|enabled| enabled.starts_with('Y')) {
        skip!("AppArmor is not enabled here");
    }
    let mut sandbox = Sandbox::with_script("labeltrap", "cat /mnt/self/attr/apparmor/current");
    let traps = [
        sandbox.file("trap/self/attr/apparmor/exec", "untouched"),
        sandbox.file("trap/self/attr/exec", "untouched"),
    ];
    let folder = sandbox.dir.join("trap");
    let mounts = sandbox.config["mounts"].as_array_mut().unwrap();
    mounts.push(bind(&folder, "/proc", &["bind"]));
    mounts.push(json!({"destination": "/mnt", "type": "proc", "source": "proc"}));
    sandbox.config["process"]["apparmorProfile"] = json!("unconfined");
    sandbox.run().ok().prints("unconfined");
    for trap in traps {
        assert_eq!(fs::read_to_string(&trap).unwrap(), "untouched");
    }
}

/// A process inside mounts its own files over /proc while `exec` comes in.
///
/// Shown: with the child of exec writing its OOM score to the path /proc/self/oom_score_adj
/// after it joined, the trap had it.
#[test]
fn mounts_made_inside_do_not_catch_what_exec_writes() {
    let mut sandbox = Sandbox::new("racingmounts");
    for set in ["bounding", "permitted", "effective"] {
        let names = &mut sandbox.config["process"]["capabilities"][set];
        names.as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let trap = sandbox.file("bundle/rootfs/trap/self/oom_score_adj", "untouched");
    sandbox.file("bundle/rootfs/trap/self/attr/exec", "untouched");
    sandbox.script("while :; do mount -o bind /trap /proc; : >/mounted; umount /proc; done");
    sandbox.run_detached();
    wait_until("it mounts", || sandbox.rootfs().join("mounted").exists());
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/bin/sleep", "100"], "cwd": "/",
        "env": [sandbox.marker()], "oomScoreAdj": 777
    });
    let file = sandbox.file("process.json", &process.to_string());
    for turn in 0..10 {
        let pid_file = sandbox.dir.join(format!("pid-{turn}"));
        let call = sandbox.call(["exec", "--detach", "--process"]).arg(&file).arg("--pid-file");
        call.arg(&pid_file).arg(&sandbox.id).output().ok();
        let pid = fs::read_to_string(pid_file).unwrap();
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", pid.trim())).unwrap();
        assert_eq!(score.trim(), "777");
    }
    assert_eq!(fs::read_to_string(&trap).unwrap(), "untouched");
}
