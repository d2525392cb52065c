//! CVE-2024-21626 and what else of the caller could come along: descriptors, environment.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::{Json, Output, Run, Sandbox};

/// Leaks folders of the host, as engines do.
const LEAKING: &str = "exec 3</etc 4</ 5</proc 6</tmp 7</etc/passwd 8</ 9</dev; exec \"$@\"";

/// More than the runtime itself ever has open.
const NUMBERS: std::ops::Range<i32> = 3..40;

/// The ways in which a working directory can mean a descriptor, the last one by the image.
fn working_directories(sandbox: &Sandbox) -> Vec<String> {
    let mut all = Vec::new();
    for number in NUMBERS {
        symlink(format!("/proc/self/fd/{number}"), sandbox.rootfs().join(format!("l{number}")))
            .unwrap();
        all.push(format!("/proc/self/fd/{number}"));
        all.push(format!("/proc/self/fd/{number}/../.."));
        all.push(format!("/l{number}"));
    }
    all
}

/// It was refused, or led to a folder of the container's own; never to one of the host.
#[track_caller]
fn expect_inside(output: &Output, cwd: &str) {
    let report = output.stdout.lines().next().unwrap_or_default();
    assert!(output.code != 0, "{cwd} led somewhere: {report}");
    assert!(output.stdout.is_empty(), "{cwd}: the program was started: {output:?}");
}

/// Shown: without check_cwd and with cloexec_from and close_all_but doing nothing, numbers led to the host's folders.
#[test]
fn no_number_is_a_way_to_the_host_for_run() {
    let mut sandbox = Sandbox::with_script("leakcwd", "pwd; ls");
    for cwd in working_directories(&sandbox) {
        sandbox.config["process"]["cwd"] = json!(cwd);
        let call = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(LEAKING);
        expect_inside(&call.output(), &cwd);
    }
    sandbox.expect_nothing_left();
}

/// Shown: without check_cwd and with cloexec_from and close_all_but doing nothing, numbers led to the host's folders.
#[test]
fn no_number_is_a_way_to_the_host_for_exec() {
    let mut sandbox = Sandbox::with_script("leakexec", "exec sleep 1000");
    // The first process of the container has nothing open that a link could mean.
    sandbox.config["process"]["cwd"] = json!("/tmp");
    sandbox.run_detached();
    for cwd in working_directories(&sandbox) {
        let call = sandbox.exec_call(&["--cwd", &cwd]).args(["sh", "-c", "pwd; ls"]);
        expect_inside(&call.wrapped(LEAKING).output(), &cwd);
    }
}

#[track_caller]
fn expect_only_standard(report: &Value) {
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"]);
    let leaked = |entry: &&str| entry.starts_with("SECRET") || entry.starts_with("LISTEN");
    assert!(!report.texts("/env").iter().any(leaked), "{report}");
}

/// With descriptors open, a secret in the environment, and sockets meant for another process.
fn leaking(call: Run) -> Run {
    call.env("SECRET", "of the host").env("LISTEN_PID", "1").env("LISTEN_FDS", "2").wrapped(LEAKING)
}

/// Shown: with cloexec_from and close_all_but doing nothing 3 to 9 were open; with the runtime's environment added
/// in process::exec SECRET was there; without the look at LISTEN_PID 3 and 4 were passed.
#[test]
fn the_program_inherits_nothing_that_it_was_not_given() {
    let mut sandbox = Sandbox::new("inherits");
    sandbox.args(&["/guest", "report"]);
    expect_only_standard(
        &leaking(sandbox.bundle_call("run").arg(&sandbox.id)).output().ok().json(),
    );
    let created = leaking(sandbox.bundle_call("create").arg(&sandbox.id)).output().ok();
    leaking(sandbox.call(["start", &sandbox.id])).output().ok();
    sandbox.wait_for("stopped");
    expect_only_standard(&serde_json::from_str(&created.stdout_by_now()).unwrap());
    sandbox.delete().ok();
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    let call = leaking(sandbox.exec_call(&[]).args(["/guest", "report"]));
    expect_only_standard(&call.output().ok().json());
}

/// Shown: with init's close_all_but only marking them close-on-exec, folders of the host were open.
#[test]
fn who_waits_for_its_start_has_nothing_of_the_host_open() {
    let sandbox = Sandbox::new("waits");
    sandbox.bundle_call("create").arg(&sandbox.id).wrapped(LEAKING).output().ok();
    let folder = format!("/proc/{}/fd", sandbox.pid());
    for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
        let target = std::fs::read_link(entry.path()).unwrap();
        let fine = target.ends_with(format!("{}/init", sandbox.id))
            || target.to_string_lossy().starts_with("socket:")
            || ["0", "1", "2"].iter().any(|standard| entry.file_name() == *standard);
        assert!(fine, "{:?} is {}", entry.file_name(), target.display());
    }
}

/// Shown: with listen_fds answering 0 the descriptor was closed.
#[test]
fn listen_fds_are_passed_as_systemd_has_it() {
    let mut sandbox = Sandbox::new("listen");
    sandbox.args(&["/guest", "report"]);
    let wrapper = "exec 3</etc/passwd 4</etc/group; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$@\"";
    let call = sandbox.bundle_call("run").arg(&sandbox.id);
    let report = call.wrapped(wrapper).output().ok().json();
    assert_eq!(report["fds"].as_object().unwrap().keys().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    let env = report.texts("/env");
    for entry in ["LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=web"] {
        assert!(env.contains(&entry), "{env:?}");
    }
}

/// Shown: with File::open in place of executable::head the runtime waited for the pipe's writer.
#[test]
fn a_pipe_or_device_in_place_of_passwd_holds_nobody_up() {
    // The runtime reads it for HOME, in every exec too.
    let mut sandbox = Sandbox::with_script("passwd", "echo $HOME");
    let env = sandbox.config["process"]["env"].as_array_mut().unwrap();
    env.retain(|entry| !entry.as_str().unwrap().starts_with("HOME="));
    let passwd = sandbox.rootfs().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
    sandbox.run().ok().prints("/");
    std::fs::remove_file(&passwd).unwrap();
    symlink("/dev/zero", &passwd).unwrap();
    sandbox.run().ok().prints("/");
}
