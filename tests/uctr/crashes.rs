//! Processes of `uctr` that are killed: what is told is true, and everything can be removed.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Host, until};

/// The monitor of a container, which runs. While it executes itself anew it has no command line.
pub fn monitor(id: &str) -> Pid {
    let mut pid = None;
    until("there is a monitor", || {
        pid = find_monitor(id);
        pid.is_some()
    });
    pid.unwrap()
}

/// The process whose command line has the container's ID, if there is one just now.
fn find_monitor(id: &str) -> Option<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw).find(
        |pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.nth(1).is_some_and(|word| word.starts_with(b"monitor"))
                && words.any(|word| word == id.as_bytes())
        },
    )
}

fn kill_monitor(id: &str) {
    kill(monitor(id), Signal::SIGKILL).unwrap();
    until("the monitor is gone", || find_monitor(id).is_none());
}

#[test]
fn a_container_outlives_its_monitor() {
    let host = Host::new();
    let id = host.service("web", &[]);
    kill_monitor(&id);
    host.uctr(&["exec", "web", "true"]).ok();
    host.uctr(&["rm", "web"]).fails(1, &["You cannot remove a running container"]);
    host.uctr(&["attach", "web"]).fails(1, &["monitor"]);
    host.uctr(&["stop", "-t", "1", "web"]).ok();
    assert_eq!(host.status("web"), "exited");
    host.uctr(&["start", "web"]).ok();
    assert_eq!(host.status("web"), "running");
    kill_monitor(&id);
    host.uctr(&["rm", "-f", "web"]).ok();
    host.is_gone(&id);
}

#[test]
fn a_container_that_died_with_its_monitor_is_found_dead() {
    let host = Host::new();
    let id = host.service("web", &[]);
    let pid = host.record("web")["state"]["pid"].as_i64().unwrap();
    kill_monitor(&id);
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    assert_eq!(host.uctr(&["wait", "web"]).ok().stdout, "255\n");
    assert_eq!(host.status("web"), "exited");
    host.uctr(&["exec", "web", "true"]).fails(1, &["is not running"]);
    host.uctr(&["start", "web"]).ok();
    host.uctr(&["exec", "web", "true"]).ok();
    host.uctr(&["rm", "-f", "web"]).ok();
    host.is_gone(&id);
}

#[test]
fn the_client_may_be_killed() {
    let host = Host::new();
    let args = [
        "run",
        "--network",
        "none",
        "--name",
        "web",
        "busybox",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ];
    let mut client = host.0.command(args).stdout(Stdio::piped()).spawn().unwrap();
    until("it is up", || host.uctr(&["logs", "web"]).stdout.contains("up"));
    client.kill().unwrap();
    client.wait().unwrap();
    host.uctr(&["exec", "web", "true"]).ok();
    let id = host.record("web")["id"].as_str().unwrap().to_owned();
    host.uctr(&["rm", "-f", "web"]).ok();
    host.is_gone(&id);
}

/// At whatever moment the monitor is killed, the container can be removed and nothing is left.
#[test]
fn a_start_may_be_killed_at_any_moment() {
    let host = Host::new();
    for delay in (0..40).step_by(4) {
        let id =
            host.uctr(&["create", "--network", "none", "busybox", "sleep", "1000"]).ok().stdout;
        let id = id.trim();
        let mut client = host.0.command(["start", id]);
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        if let Some(pid) = find_monitor(id) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        client.wait().unwrap();
        let status = host.status(id);
        assert!(matches!(status.as_str(), "created" | "running" | "exited"), "{status}");
        host.uctr(&["rm", "-f", id]).ok();
        host.is_gone(id);
    }
}

/// An `rm` that was killed is gone on with by the next.
#[test]
fn a_removal_may_be_killed() {
    let host = Host::new();
    for delay in [0, 1, 2, 4, 8, 16] {
        let id = host.uctr(&["create", "--network", "none", "busybox", "true"]).ok().stdout;
        let id = id.trim();
        host.uctr(&["start", id]).ok();
        host.uctr(&["wait", id]).ok();
        let mut removal = host.0.command(["rm", id]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        removal.kill().unwrap();
        removal.wait().unwrap();
        if host.ids().iter().any(|other| other == id) {
            host.uctr(&["start", id]);
            host.uctr(&["rm", "-f", id]).ok();
        }
        host.is_gone(id);
    }
}

/// A client that is killed while the program takes none of its input leaves the monitor idle.
#[test]
fn a_monitor_does_not_spin() {
    let host = Host::new();
    let args = ["run", "-i", "--network", "none", "--name", "deaf", "busybox", "sleep", "1000"];
    let mut client = host.0.command(args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        while input.write_all(&[b'x'; 65536]).is_ok() {}
    });
    until("it runs", || host.ids().len() == 1 && host.status("deaf") == "running");
    let id = host.record("deaf")["id"].as_str().unwrap().to_owned();
    let pid = monitor(&id);
    // The pipe and the sockets fill.
    std::thread::sleep(std::time::Duration::from_millis(500));
    client.kill().unwrap();
    client.wait().unwrap();
    writer.join().unwrap();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(ticks() - before <= 5, "the monitor used {} of 50 ticks", ticks() - before);
    host.uctr(&["rm", "-f", "deaf"]).ok();
}
