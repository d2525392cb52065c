//! What processes do and have goes on: connections, locks, memory, filters; and the container is one
//! like any other.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use super::{
    COUNTER, CRIU, call, checkpoint, connected, count, counter, expect_to_go_on, needs_criu,
    restore, wait_for_count,
};
use crate::skip;
use crate::support::{Sandbox, host, own_namespace, wait_until};

#[test]
fn a_container_goes_on_where_it_was() {
    needs_criu!();
    let sandbox = counter("goes-on");
    let image = sandbox.dir.join("images");
    checkpoint(&sandbox, &[]).ok();
    assert!(image.join("dump.log").exists() && image.join("inventory.img").exists());
    sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
    sandbox.expect_nothing_left();
    let reached = count(&sandbox);
    let pid_file = sandbox.dir.join("pid");
    restore(&sandbox, &["--pid-file", pid_file.to_str().unwrap()]).ok();
    expect_to_go_on(&sandbox, reached);
    assert_eq!(fs::read_to_string(pid_file).unwrap(), sandbox.pid().to_string());
}

#[test]
fn a_restored_container_is_one_like_any_other() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("like-any", COUNTER);
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    sandbox.file("bundle/rootfs/etc/secret", "secret");
    sandbox.file("bundle/rootfs/etc/hidden/secret", "secret");
    let masked = sandbox.config["linux"]["maskedPaths"].as_array_mut().unwrap();
    masked.extend([json!("/etc/secret"), json!("/etc/hidden")]);
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    assert_eq!(sandbox.status(), "running");
    // Limits, masks and protection are there, seen by a program that comes later.
    let tried = sandbox.exec_attempt(&["write /proc/sys/kernel/hostname x", "count /etc/hidden"]);
    assert_eq!(tried, ["EROFS", "ok 0"]);
    sandbox.exec(&["/bin/cat", "/etc/secret"]).ok().prints("");
    sandbox.exec(&["/bin/hostname"]).ok().prints("fence");
    let mut limits = sandbox.cgroups().into_iter().map(|folder| folder.join("pids.max"));
    let limit = limits.find_map(|file| fs::read_to_string(file).ok());
    assert_eq!(limit.as_deref().map(str::trim), Some("77"));
    let own = format!("/proc/{}/ns", sandbox.pid());
    for kind in ["pid", "net", "ipc", "uts", "mnt"] {
        let link = fs::read_link(format!("{own}/{kind}")).unwrap();
        assert_ne!(link.display().to_string(), own_namespace(kind));
    }
    for cgroup in sandbox.cgroups() {
        let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        let own = sandbox.pid().to_string();
        assert!(processes.lines().any(|line| line == own), "{}", cgroup.display());
    }
    sandbox.ultari(["pause", &sandbox.id]).ok();
    assert_eq!(sandbox.status(), "paused");
    sandbox.ultari(["resume", &sandbox.id]).ok();
    sandbox.ultari(["update", "--pids-limit", "78", &sandbox.id]).ok();
    sandbox.start().fails(1, &["already running"]);
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    sandbox.expect_nothing_left();
}

#[test]
fn the_container_goes_on_if_asked_for_and_can_be_saved_again() {
    needs_criu!();
    let sandbox = counter("leave");
    let pid = sandbox.pid();
    for _ in 0..2 {
        checkpoint(&sandbox, &["--leave-running"]).ok();
        assert_eq!((sandbox.status().as_str(), sandbox.pid()), ("running", pid));
        wait_for_count(&sandbox, count(&sandbox));
    }
    sandbox.delete_forced().ok();
    restore(&sandbox, &[]).ok();
    wait_for_count(&sandbox, count(&sandbox));
    // The restored one can be saved too. What it has counted twice meanwhile is forgotten.
    fs::write(sandbox.rootfs().join("count"), "").unwrap();
    checkpoint(&sandbox, &[]).ok();
    let reached = count(&sandbox);
    restore(&sandbox, &[]).ok();
    expect_to_go_on(&sandbox, reached);
}

#[test]
fn engines_pause_first() {
    needs_criu!();
    let sandbox = counter("paused");
    sandbox.ultari(["pause", &sandbox.id]).ok();
    let work = sandbox.dir.join("work");
    // Podman says it twice.
    let flags = ["--leave-running", "--work-path", work.to_str().unwrap(), "--leave-running"];
    checkpoint(&sandbox, &flags).ok();
    assert!(work.join("dump.log").exists());
    assert_eq!(sandbox.status(), "paused");
    sandbox.ultari(["resume", &sandbox.id]).ok();
    wait_for_count(&sandbox, count(&sandbox));
    sandbox.ultari(["pause", &sandbox.id]).ok();
    checkpoint(&sandbox, &[]).ok();
    let reached = count(&sandbox);
    restore(&sandbox, &["--work-path", work.to_str().unwrap()]).ok();
    assert!(work.join("restore.log").exists());
    assert_eq!(sandbox.status(), "running");
    expect_to_go_on(&sandbox, reached);
}

#[test]
fn established_connections() {
    needs_criu!();
    let sandbox = connected("tcp");
    let output = checkpoint(&sandbox, &["--tcp-established"]);
    if output.stderr.contains("Can't get 1:16 opt: Operation not supported") {
        skip!("this criu can't save TCP sockets of kernels from 6.16 on");
    }
    output.ok();
    let reached = count(&sandbox);
    restore(&sandbox, &["--tcp-established"]).ok();
    expect_to_go_on(&sandbox, reached);
}

#[test]
fn file_locks() {
    needs_criu!();
    let mut sandbox = Sandbox::new("locks");
    sandbox.args(&["/guest", "do", "lock /lock", "write /count 1", "wait"]);
    sandbox.run_detached();
    wait_for_count(&sandbox, 0);
    checkpoint(&sandbox, &[]).fails(1, &["--file-locks"]);
    assert_eq!(sandbox.exec_attempt(&["lock /lock"]), ["operation would block"]);
    checkpoint(&sandbox, &["--file-locks"]).ok();
    restore(&sandbox, &["--file-locks"]).ok();
    assert_eq!(sandbox.exec_attempt(&["lock /lock"]), ["operation would block"]);
}

#[test]
fn memory_can_be_saved_in_advance() {
    needs_criu!();
    let sandbox = counter("pre-dump");
    let images = sandbox.dir.join("images");
    let output = checkpoint(&sandbox, &["--pre-dump"]);
    if output.stderr.contains("soft-dirty") {
        output.fails(1, &["--pre-dump"]);
        skip!("this kernel can't tell which memory has changed");
    }
    output.ok();
    assert_eq!(sandbox.status(), "running");
    fs::rename(&images, sandbox.dir.join("before")).unwrap();
    checkpoint(&sandbox, &["--parent-path", "/nowhere"]).fails(1, &["--parent-path", "relative"]);
    checkpoint(&sandbox, &["--parent-path", "../gone"]).fails(1, &["--parent-path ../gone"]);
    checkpoint(&sandbox, &["--parent-path", "../before"]).ok();
    assert_eq!(fs::read_link(images.join("parent")).unwrap(), PathBuf::from("../before"));
    let reached = count(&sandbox);
    restore(&sandbox, &[]).ok();
    expect_to_go_on(&sandbox, reached);
}

/// A port of the loopback device that nobody listens at.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn memory_can_go_to_a_page_server() {
    needs_criu!();
    let sandbox = counter("pages");
    let images = sandbox.dir.join("images");
    fs::create_dir(&images).unwrap();
    let address = free_address();
    let (_, port) = address.split_once(':').unwrap();
    let mut server = Command::new(&*CRIU);
    server.args(["page-server", "--address", "127.0.0.1", "--port", port, "--images-dir"]);
    let mut server = host().spawn(server.arg(&images));
    wait_until("it listens", || {
        let listening = format!(":{:04X} 00000000:0000 0A", port.parse::<u16>().unwrap());
        fs::read_to_string("/proc/net/tcp").unwrap().contains(&listening)
    });
    checkpoint(&sandbox, &["--page-server", &address]).ok();
    assert!(server.wait().unwrap().success());
    host().forget(server.id());
    let reached = count(&sandbox);
    restore(&sandbox, &[]).ok();
    expect_to_go_on(&sandbox, reached);
}

#[test]
fn memory_can_stay_behind_until_it_is_used() {
    needs_criu!();
    let from = counter("lazy-from");
    let mut to = Sandbox::new("lazy-to");
    to.config["root"]["path"] = json!(from.rootfs());
    to.write_config();
    let images = from.dir.join("images");
    let address = free_address();
    let status = from.dir.join("status");
    nix::unistd::mkfifo(&status, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let flags = ["--lazy-pages", "--page-server", &address, "--status-fd", "7"];
    let script = format!("exec \"$@\" 7>{}", status.display());
    let call = call(&from, "checkpoint").args(flags).arg(&from.id);
    let mut saving = call.wrapped(&script).spawn();
    let mut told = [1; 2];
    let length = fs::File::open(status).unwrap().read(&mut told).unwrap();
    if length == 0 {
        let output = saving.wait().ok();
        panic!("it has ended and told nothing: {}", output.stderr);
    }
    assert_eq!(told[..length], [0]);
    assert!(images.join("inventory.img").exists());
    assert!(saving.is_running(), "its memory was given to nobody yet");
    // While it waits the container exists, and stands still.
    assert_eq!(from.status(), "running");
    let reached = count(&from);
    let (host_part, port) = address.split_once(':').unwrap();
    let mut daemon = Command::new(&*CRIU);
    daemon.args(["lazy-pages", "--page-server", "--address", host_part, "--port", port]);
    let mut daemon = host().spawn(daemon.arg("--images-dir").arg(&images));
    wait_until("it listens", || images.join("lazy-pages.socket").exists());
    let call = to.call(["--criu"]).arg(&*CRIU).args(["restore", "--detach", "--lazy-pages"]);
    let call = call.arg("--image-path").arg(&images).arg("--bundle").arg(to.bundle());
    call.arg(&to.id).output().ok();
    saving.wait().ok();
    assert!(daemon.wait().unwrap().success());
    host().forget(daemon.id());
    from.ultari(["state", &from.id]).fails(1, &["does not exist"]);
    assert_eq!(to.status(), "running");
    expect_to_go_on(&from, reached);
    to.delete_forced().ok();
}

#[test]
fn a_filter_of_system_calls_is_there_again() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script(
        "seccomp",
        "while true; do mkdir /tmp/made 2>&1 && echo bad >>/count || echo 1 >>/count; sleep 0.05; done",
    );
    sandbox.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]
    });
    sandbox.run_detached();
    wait_for_count(&sandbox, 0);
    checkpoint(&sandbox, &[]).ok();
    fs::remove_file(sandbox.rootfs().join("count")).unwrap();
    restore(&sandbox, &[]).ok();
    wait_for_count(&sandbox, 0);
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(!sandbox.rootfs().join("tmp/made").exists());
}
