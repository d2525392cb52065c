//! Who the process is and what it may: CVE-2022-29162 and its like, CVE-2026-30892, limits.

use serde_json::{Value, json};

use crate::support::{Json, Sandbox};

fn sleeper(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    sandbox
}

#[track_caller]
fn expect_no_inheritable(report: &Value) {
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(report.text(&format!("/status/{set}")), "0000000000000000", "{set}");
    }
}

/// CVE-2022-29162, 2022-27650, 2025-27612: they would be raised by files with inheritable
/// capabilities. The caller itself has all.
///
/// Shown: with Capabilities::apply adding the permitted set to the inheritable one, and with
/// Capabilities::add adding to it, CapInh was not empty.
#[test]
fn inheritable_capabilities_come_from_the_config_only() {
    let with_all = "exec setpriv --inh-caps +chown,+kill,+setuid \"$@\"";
    let mut sandbox = Sandbox::new("inherit");
    sandbox.args(&["/guest", "report"]);
    let call = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(with_all);
    expect_no_inheritable(&call.output().ok().json());
    let sandbox = sleeper("inheritexec");
    for options in [&[][..], &["--cap", "CAP_KILL", "--cap", "CAP_CHOWN"], &["-u", "1000"]] {
        let call = sandbox.exec_call(options).args(["/guest", "report"]).wrapped(with_all);
        expect_no_inheritable(&call.output().ok().json());
    }
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/guest", "report"], "cwd": "/",
        "env": [sandbox.marker()], "capabilities": {"permitted": ["CAP_KILL"], "bounding": ["CAP_KILL"]}
    });
    let file = sandbox.file("process.json", &process.to_string());
    let call = sandbox.call(["exec", "--process"]).arg(file).arg(&sandbox.id).wrapped(with_all);
    expect_no_inheritable(&call.output().ok().json());
}

/// CVE-2026-30892: what could not be parsed became root.
///
/// Shown: with `unwrap_or(0)` in parse_user junk was root.
#[test]
fn the_user_of_exec_is_who_was_named_or_it_is_refused() {
    let sandbox = sleeper("junk");
    let all = ["x", "1000x", "-1", "1000:x", ":5", "5:", "4294967296", "1:2:3", " 1", "0x1", ""];
    for user in all {
        let output = sandbox.exec_call(&[&format!("--user={user}")]).args(["id"]).output();
        assert!(output.code != 0 && output.stdout.is_empty(), "{user:?}: {output:?}");
    }
    // The kernel takes the last number there is for "as before", which is root.
    let output = sandbox.exec_call(&["--user=4294967295"]).args(["id"]).output();
    assert!(output.code != 0 && output.stdout.is_empty(), "{output:?}");
    let id = |user: &str| {
        let call = sandbox.exec_call(&["-u", user]).args(["/guest", "report"]);
        let report = call.output().ok().json();
        (report.text("/status/Uid").to_owned(), report.text("/status/Gid").to_owned())
    };
    assert_eq!(id("1"), ("1 1 1 1".into(), "0 0 0 0".into()));
    assert_eq!(id("1000:5"), ("1000 1000 1000 1000".into(), "5 5 5 5".into()));
}

/// Shown: with errors of setrlimit, and host.rs's look ahead, ignored the container ran without
/// the limit.
#[test]
fn a_limit_above_the_hosts_is_an_error_that_names_it() {
    let mut sandbox = Sandbox::new("above");
    sandbox.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 900, "hard": 900}]);
    sandbox.args(&["/guest", "report"]);
    // Without the right to raise limits, which root has on most hosts.
    let without = "ulimit -n 800; exec setpriv --bounding-set -sys_resource \"$@\"";
    for command in ["run", "create"] {
        let call = sandbox.bundle_call(command).arg(&sandbox.id).wrapped(without);
        call.output().fails(1, &["RLIMIT_NOFILE", "900", "CAP_SYS_RESOURCE"]);
        sandbox.expect_nothing_left();
    }
    let sandbox = sleeper("aboveexec");
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/", "env": [sandbox.marker()],
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 900, "hard": 900}]
    });
    let file = sandbox.file("process.json", &process.to_string());
    let call = sandbox.call(["exec", "--process"]).arg(file).arg(&sandbox.id).wrapped(without);
    call.output().fails(255, &["RLIMIT_NOFILE", "900", "CAP_SYS_RESOURCE"]);
}
