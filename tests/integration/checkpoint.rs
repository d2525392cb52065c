//! `checkpoint` and `restore`: what a container has is there again, and it goes on where it was.
//!
//! They need a criu that works on this kernel: that on the PATH, or the one that `CRIU` names.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::json;

use crate::namespaces::{Holder, with_user_namespace};
use crate::skip;
use crate::support::{
    ConsoleSocket, HIERARCHIES, Json, Output, Run, Sandbox, Terminal, bind, host, marked_processes,
    own_namespace, set_namespace, wait_until,
};

static CRIU: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::var_os("CRIU").map_or("criu".into(), PathBuf::from));

/// Why these tests can't be done here.
static UNUSABLE: LazyLock<Option<String>> =
    LazyLock::new(|| match Command::new(&*CRIU).arg("check").output() {
        Err(error) => Some(format!("{}: {error}", CRIU.display())),
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Some(format!("{} check: {said}", CRIU.display()))
        }
    });

macro_rules! needs_criu {
    () => {
        if let Some(why) = &*UNUSABLE {
            skip!("{why}");
        }
    };
}

fn call(sandbox: &Sandbox, command: &str) -> Run {
    let images = sandbox.dir.join("images");
    sandbox.call(["--criu"]).arg(&*CRIU).args([command, "--image-path"]).arg(images)
}

fn checkpoint(sandbox: &Sandbox, flags: &[&str]) -> Output {
    call(sandbox, "checkpoint").args(flags).arg(&sandbox.id).output()
}

fn restore_call(sandbox: &Sandbox, flags: &[&str]) -> Run {
    call(sandbox, "restore").arg("--bundle").arg(sandbox.bundle()).args(flags).arg(&sandbox.id)
}

fn restore(sandbox: &Sandbox, flags: &[&str]) -> Output {
    restore_call(sandbox, &[&["--detach"], flags].concat()).output()
}

const COUNTER: &str = "i=0; while true; do i=$((i + 1)); echo $i >>/count; sleep 0.05; done";

/// Where the counter is.
fn count(sandbox: &Sandbox) -> u32 {
    let mut number = None;
    wait_until("it counts", || {
        number = fs::read_to_string(sandbox.rootfs().join("count"))
            .ok()
            .and_then(|text| text.lines().last()?.parse().ok());
        number.is_some()
    });
    number.unwrap()
}

fn wait_for_count(sandbox: &Sandbox, more_than: u32) {
    wait_until("it counts on", || count(sandbox) > more_than);
}

fn counter(name: &str) -> Sandbox {
    let sandbox = Sandbox::with_script(name, COUNTER);
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    sandbox
}

/// The container counts on from there, not from the beginning.
#[track_caller]
fn expect_to_go_on(sandbox: &Sandbox, from: u32) {
    wait_for_count(sandbox, from);
    let text = fs::read_to_string(sandbox.rootfs().join("count")).unwrap();
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    let follow = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    assert!(follow, "not one after the other: {numbers:?}");
}

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

/// A connection inside of the container over which numbers come.
fn connected(name: &str) -> Sandbox {
    let sandbox = Sandbox::with_script(
        name,
        "(i=0; while true; do i=$((i + 1)); echo $i; sleep 0.05; done | nc -l -p 7000) &
         sleep 0.3; nc 127.0.0.1 7000 </dev/zero | while read -r n; do echo $n >>/count; done",
    );
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    sandbox
}

#[test]
fn a_failed_checkpoint_leaves_the_container_as_it_was_and_says_why() {
    needs_criu!();
    let sandbox = connected("failed-dump");
    let pid = sandbox.pid();
    let log = sandbox.dir.join("images/dump.log");
    checkpoint(&sandbox, &[]).fails(1, &["tcp", "--tcp-established", log.to_str().unwrap()]);
    assert_eq!((sandbox.status().as_str(), sandbox.pid()), ("running", pid));
    wait_for_count(&sandbox, count(&sandbox));
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

#[test]
fn memory_can_go_to_a_page_server() {
    needs_criu!();
    let sandbox = counter("pages");
    let images = sandbox.dir.join("images");
    fs::create_dir(&images).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let mut server = Command::new(&*CRIU);
    server.args(["page-server", "--address", "127.0.0.1", "--port", &port, "--images-dir"]);
    let mut server = host().spawn(server.arg(&images));
    wait_until("it listens", || {
        let listening = format!(":{:04X} 00000000:0000 0A", port.parse::<u16>().unwrap());
        fs::read_to_string("/proc/net/tcp").unwrap().contains(&listening)
    });
    checkpoint(&sandbox, &["--page-server", &format!("127.0.0.1:{port}")]).ok();
    assert!(server.wait().unwrap().success());
    host().forget(server.id());
    let reached = count(&sandbox);
    restore(&sandbox, &[]).ok();
    expect_to_go_on(&sandbox, reached);
}

#[test]
fn standard_streams_are_those_of_the_restore() {
    needs_criu!();
    let sandbox = Sandbox::with_script(
        "streams",
        "i=0; while true; do i=$((i + 1)); echo line $i; echo $i >>/count; sleep 0.05; done",
    );
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let script = format!("exec \"$@\" >/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
    let run = sandbox.bundle_call("run").args(["--detach", &sandbox.id]);
    run.wrapped(&script).output().ok();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    drop(writer);
    let mut before = String::new();
    fs::File::from(reader).read_to_string(&mut before).unwrap();
    assert!(before.starts_with("line 1\nline 2\n"), "{before}");
    let reached = count(&sandbox);

    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let script = format!("exec \"$@\" >/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
    restore_call(&sandbox, &["--detach"]).wrapped(&script).output().ok();
    drop(writer);
    wait_for_count(&sandbox, reached);
    sandbox.kill("KILL").ok();
    let mut after = String::new();
    fs::File::from(reader).read_to_string(&mut after).unwrap();
    assert!(after.contains(&format!("line {}\n", reached + 1)), "{after}");
    assert!(!after.contains("line 1\n"), "{after}");
}

#[test]
fn files_as_standard_streams_are_those_of_the_restore_too() {
    needs_criu!();
    let sandbox = Sandbox::with_script("files", "sleep 1.5; echo 1 >>/count; cat /go; echo said");
    nix::unistd::mkfifo(&sandbox.rootfs().join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output = sandbox.run_detached();
    checkpoint(&sandbox, &[]).ok();
    let running = restore_call(&sandbox, &[]).spawn();
    wait_for_count(&sandbox, 0);
    fs::write(sandbox.rootfs().join("go"), "").unwrap();
    assert_eq!(running.wait().ok().stdout, "said\n");
    assert_eq!(output.stdout, "");
}

#[test]
fn in_the_foreground_the_exit_status_is_the_programs() {
    needs_criu!();
    let sandbox =
        Sandbox::with_script("foreground", "trap 'exit 9' TERM; while true; do sleep 0.05; done");
    sandbox.run_detached();
    checkpoint(&sandbox, &[]).ok();
    let running = restore_call(&sandbox, &[]).spawn();
    wait_until("it is restored", || {
        let state = sandbox.ultari(["state", &sandbox.id]);
        state.code == 0 && state.json().text("/status") == "running"
    });
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().exits_with(9);
    sandbox.expect_nothing_left();
}

fn with_terminal(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_script(
        name,
        "stty -echo; echo ready; while read -r n; do echo got $n $(tty); done",
    );
    sandbox.config["process"]["terminal"] = json!(true);
    sandbox
}

#[test]
fn a_terminal_comes_anew_over_the_console_socket() {
    needs_criu!();
    let sandbox = with_terminal("terminal");
    let socket = ConsoleSocket::listen(sandbox.dir.join("s1"));
    let path = socket.path.to_str().unwrap();
    sandbox
        .bundle_call("run")
        .args(["--detach", "--console-socket", path, &sandbox.id])
        .output()
        .ok();
    let mut terminal = socket.receive();
    terminal.expect("ready");
    checkpoint(&sandbox, &[]).ok();
    drop(terminal);
    restore(&sandbox, &[]).fails(1, &["process.terminal", "--console-socket"]);
    let socket = ConsoleSocket::listen(sandbox.dir.join("s2"));
    restore(&sandbox, &["--console-socket", socket.path.to_str().unwrap()]).ok();
    let mut terminal = socket.receive();
    terminal.send("words\n");
    terminal.expect("got words /dev/pts/0");
    sandbox.exec(&["/bin/stat", "-c", "%t:%T", "/dev/console"]).ok();
    drop(terminal);
}

#[test]
fn a_terminal_in_the_foreground_is_the_callers() {
    needs_criu!();
    let sandbox = with_terminal("relayed");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("ready");
    checkpoint(&sandbox, &[]).ok();
    running.wait().exits_with(137);
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = restore_call(&sandbox, &[]).terminal(slave).spawn();
    terminal.send("more\n");
    terminal.expect("got more /dev/pts/0");
    sandbox.kill("KILL").ok();
    running.wait().exits_with(137);
}

#[test]
fn the_callers_own_terminal_is_a_shell_job() {
    needs_criu!();
    let sandbox = Sandbox::with_script(
        "shell-job",
        "echo ready; i=0; while true; do i=$((i + 1)); echo on; echo $i >>/count; sleep 0.05; done",
    );
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("ready");
    checkpoint(&sandbox, &[]).fails(1, &["checkpoint container", "dump.log"]);
    wait_for_count(&sandbox, count(&sandbox));
    let output = checkpoint(&sandbox, &["--shell-job"]);
    if output.stderr.contains("Can't lookup mount=") {
        skip!("this criu can't save a terminal that is not in the container (4.1 can)");
    }
    output.ok();
    running.wait().exits_with(137);
    let reached = count(&sandbox);
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = restore_call(&sandbox, &["--shell-job"]).terminal(slave).spawn();
    terminal.expect("on\r\n");
    expect_to_go_on(&sandbox, reached);
    sandbox.kill("KILL").ok();
    running.wait().exits_with(137);
}

#[test]
fn mounts_from_outside_come_from_where_the_new_config_says() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("mounts", COUNTER);
    let folder = |name: &str| {
        let file = sandbox.file(&format!("{name}/file"), name);
        file.parent().unwrap().to_owned()
    };
    let (first, second) = (folder("first"), folder("second"));
    let single = sandbox.file("single", "one file");
    std::os::unix::fs::symlink("tmp", sandbox.rootfs().join("link")).unwrap();
    sandbox.mount(bind(&first, "/link/with space", &["bind", "ro"]));
    sandbox.mount(bind(&single, "/etc/single", &["bind"]));
    sandbox.mount(json!({"destination": "/var/cache", "type": "tmpfs", "source": "tmpfs"}));
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    sandbox.exec(&["/guest", "do", "write /var/cache/kept text"]).ok();
    checkpoint(&sandbox, &[]).ok();
    let mounts = sandbox.config["mounts"].as_array_mut().unwrap();
    let changed = mounts.iter_mut().find(|mount| mount["destination"] == "/link/with space");
    changed.unwrap()["source"] = json!(second);
    sandbox.write_config();
    restore(&sandbox, &[]).ok();
    sandbox.exec(&["/bin/cat", "/tmp/with space/file"]).ok().prints("second");
    sandbox.exec(&["/bin/cat", "/etc/single"]).ok().prints("one file");
    sandbox.exec(&["/bin/cat", "/var/cache/kept"]).ok().prints("text");
    sandbox.exec(&["/bin/touch", "/tmp/with space/new"]).exits_with(1);
}

#[test]
fn what_is_mounted_below_a_recursive_bind_comes_along() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("rbind", COUNTER);
    let outer = sandbox.file("outer/inner/below", "hidden").parent().unwrap().to_owned();
    let inner = sandbox.file("other/file", "seen").parent().unwrap().to_owned();
    sandbox.mount(bind(outer.parent().unwrap(), "/mnt", &["rbind"]));
    sandbox.write_config();
    // In a mount namespace of the calls' own: the host's has no such mount.
    let script = format!("mount --bind {} {} && exec \"$@\"", inner.display(), outer.display());
    let private =
        |run: Run| run.wrapped(&script).wrapped("exec unshare -m --propagation private \"$@\"");
    private(sandbox.bundle_call("run").args(["-d", &sandbox.id])).output().ok();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    private(restore_call(&sandbox, &["--detach"])).output().ok();
    sandbox.exec(&["/bin/cat", "/mnt/inner/file"]).ok().prints("seen");
}

#[test]
fn a_joined_network_namespace_is_joined_again() {
    needs_criu!();
    let holder = Holder::new(&["--net"]);
    let mut sandbox = Sandbox::with_script("netns", COUNTER);
    set_namespace(&mut sandbox.config, "network", Some(&holder.path("net")));
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    let other = Holder::new(&["--net"]);
    set_namespace(&mut sandbox.config, "network", Some(&other.path("net")));
    sandbox.write_config();
    restore(&sandbox, &[]).ok();
    let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(link(sandbox.pid() as u32), link(other.pid()));
    expect_to_go_on(&sandbox, 2);
}

#[test]
fn namespaces_shared_within_a_pod_are_joined_again() {
    needs_criu!();
    let holder = Holder::new(&["--net", "--ipc", "--uts"]);
    let mut sandbox = Sandbox::with_script("pod", COUNTER);
    sandbox.config.as_object_mut().unwrap().remove("hostname");
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        set_namespace(&mut sandbox.config, kind, Some(&holder.path(file)));
    }
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    let link = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(link(sandbox.pid() as u32, kind), link(holder.pid(), kind), "{kind}");
    }
}

#[test]
fn the_network_may_be_left_empty() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("empty-ns", COUNTER);
    let log = sandbox.dir.join("hooks");
    let hook = |kind: &str| {
        let script = format!("echo {kind} $(grep -o '\"pid\":[0-9]*') >>{}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        sandbox.config["hooks"][kind] = hook(kind);
    }
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &["--empty-ns", "network"]).ok();
    fs::write(&log, "").unwrap();
    restore(&sandbox, &["--empty-ns", "network"]).ok();
    // An engine's hook puts the network in at the restore.
    let pid = sandbox.pid();
    let hooks = fs::read_to_string(&log).unwrap();
    assert_eq!(hooks, format!("prestart \"pid\":{pid}\ncreateRuntime \"pid\":{pid}\n"));
}

#[test]
fn a_failing_hook_fails_the_restore_and_leaves_nothing() {
    needs_criu!();
    let mut sandbox = counter("hook-fails");
    checkpoint(&sandbox, &[]).ok();
    let script = json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]);
    sandbox.config["hooks"]["createRuntime"] = script;
    sandbox.write_config();
    restore(&sandbox, &[]).fails(1, &["hooks.createRuntime[0]", "exit status 3: no"]);
    sandbox.expect_nothing_left();
}

#[test]
fn another_name_and_another_cgroup() {
    needs_criu!();
    let mut sandbox = counter("rename");
    checkpoint(&sandbox, &[]).ok();
    let reached = count(&sandbox);
    let old = sandbox.id.clone();
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("{}/other", sandbox.cgroup()));
    sandbox.write_config();
    sandbox.id = format!("{old}-b");
    restore(&sandbox, &[]).ok();
    expect_to_go_on(&sandbox, reached);
    let text = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    for line in text.lines().filter(|line| line.contains("ultari-test")) {
        assert!(line.ends_with(&format!("/{old}/other")), "{text}");
    }
    assert!(text.contains("/other"), "{text}");
    sandbox.delete_forced().ok();
    for hierarchy in HIERARCHIES.iter() {
        let left = hierarchy.join(&sandbox.cgroup()[1..]).parent().unwrap().join(&old);
        assert!(!left.exists(), "{}", left.display());
    }
    sandbox.id = old;
}

#[test]
fn a_scope_of_systemd_is_made_again() {
    needs_criu!();
    let systemd = Path::new("/run/systemd/system").exists();
    if !systemd || !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        skip!("no systemd, or no cgroup v2 alone");
    }
    let mut sandbox = Sandbox::with_script("scope", COUNTER);
    sandbox.config["linux"]["cgroupsPath"] = json!(format!("system.slice:test:{}", sandbox.id));
    sandbox.config["linux"]["resources"]["pids"] = json!({"limit": 77});
    sandbox.bundle_call("run").args(["-d", "--systemd-cgroup", &sandbox.id]).output().ok();
    wait_for_count(&sandbox, 2);
    checkpoint(&sandbox, &[]).ok();
    let reached = count(&sandbox);
    restore(&sandbox, &["--systemd-cgroup"]).ok();
    expect_to_go_on(&sandbox, reached);
    let unit = format!("test-{}.scope", sandbox.id);
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    assert_eq!(cgroup.trim(), format!("0::/system.slice/{unit}"));
    let limit = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/{unit}/pids.max"));
    assert_eq!(limit.unwrap().trim(), "77");
    let shown = Command::new("systemctl").args(["is-active", &unit]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "active");
}

#[test]
fn a_cgroup_namespace_and_a_view_of_the_cgroups() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script("cgroupns", COUNTER);
    set_namespace(&mut sandbox.config, "cgroup", None);
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]
    }));
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    let view = |sandbox: &Sandbox| {
        let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max \
                      /sys/fs/cgroup/pids.max 2>/dev/null";
        sandbox.exec(&["/bin/sh", "-c", script]).stdout
    };
    let before = view(&sandbox);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    assert_eq!(view(&sandbox), before);
}

#[test]
fn a_user_namespace_with_its_maps() {
    needs_criu!();
    let mut sandbox = Sandbox::with_script(
        "userns",
        "i=0; while true; do i=$((i + 1)); echo $i >>/tmp/count; sleep 0.05; done",
    );
    with_user_namespace(&mut sandbox);
    sandbox.run_detached();
    let count = |sandbox: &Sandbox| {
        let text = sandbox.exec(&["/bin/tail", "-n", "1", "/tmp/count"]).stdout;
        text.trim().parse::<u32>().unwrap_or(0)
    };
    wait_until("it counts", || count(&sandbox) > 2);
    checkpoint(&sandbox, &[]).ok();
    restore(&sandbox, &[]).ok();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", sandbox.pid())).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>()[..2], ["0", "100000"]);
    let before = count(&sandbox);
    wait_until("it counts on", || count(&sandbox) > before);
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

#[test]
fn a_failed_restore_leaves_nothing_and_says_why() {
    needs_criu!();
    let sandbox = counter("failed-restore");
    checkpoint(&sandbox, &[]).ok();
    let images = sandbox.dir.join("images");
    fs::write(images.join("pstree.img"), "not an image").unwrap();
    let log = images.join("restore.log");
    restore(&sandbox, &[]).fails(1, &["restore container", log.to_str().unwrap()]);
    sandbox.expect_nothing_left();
    fs::write(images.join("descriptors.json"), "[").unwrap();
    restore(&sandbox, &[]).fails(1, &["--image-path", "descriptors.json is damaged"]);
    sandbox.expect_nothing_left();
    fs::remove_dir_all(&images).unwrap();
    restore(&sandbox, &[]).fails(1, &["--image-path", "No such file or directory"]);
    sandbox.expect_nothing_left();
    assert!(marked_processes(&sandbox.marker()).is_empty());
}

#[test]
fn an_id_that_is_taken_is_refused() {
    needs_criu!();
    let sandbox = counter("taken");
    checkpoint(&sandbox, &["--leave-running"]).ok();
    restore(&sandbox, &[]).fails(1, &["already exists"]);
    wait_for_count(&sandbox, count(&sandbox));
}

// What follows needs no criu that works.

#[test]
fn only_what_runs_can_be_saved() {
    let sandbox = Sandbox::with_script("created", "true");
    checkpoint(&sandbox, &[]).fails(1, &["does not exist"]);
    sandbox.create().ok();
    checkpoint(&sandbox, &[]).fails(1, &["container not running", "created"]);
    assert_eq!(sandbox.status(), "created");
    assert!(!sandbox.dir.join("images").exists());
}

#[test]
fn lazy_pages_are_refused() {
    let sandbox = Sandbox::with_script("lazy", "sleep 100");
    sandbox.run_detached();
    checkpoint(&sandbox, &["--lazy-pages"]).fails(1, &["--lazy-pages", "not supported"]);
    checkpoint(&sandbox, &["--status-fd", "1"]).fails(1, &["--status-fd", "--lazy-pages"]);
    checkpoint(&sandbox, &["--page-server", "x"])
        .fails(1, &["--page-server \"x\"", "ADDRESS:PORT"]);
    assert_eq!(sandbox.status(), "running");
    sandbox.delete_forced().ok();
    restore(&sandbox, &["--lazy-pages"]).fails(1, &["--lazy-pages", "not supported"]);
}

#[test]
fn what_would_be_lost_is_refused_by_name() {
    let mut sandbox = Sandbox::with_script("refused", "sleep 100");
    let source = sandbox.file("data/file", "x").parent().unwrap().to_owned();
    let mut mount = bind(source, "/mnt", &["bind", "idmap"]);
    for maps in ["uidMappings", "gidMappings"] {
        mount[maps] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    }
    sandbox.mount(mount);
    sandbox.run_detached();
    checkpoint(&sandbox, &[]).fails(1, &["cannot checkpoint", "mounts[", "id-mapped"]);
    assert_eq!(sandbox.status(), "running");
    sandbox.delete_forced().ok();
    restore(&sandbox, &[]).fails(1, &["cannot restore", "mounts[", "id-mapped"]);
    sandbox.expect_nothing_left();
}

#[test]
fn a_criu_that_is_missing_or_fails_is_named_and_the_container_goes_on() {
    let sandbox = Sandbox::with_script("no-criu", COUNTER);
    sandbox.run_detached();
    let with = |criu: &str| {
        let call = sandbox.call(["--criu", criu, "checkpoint", "--image-path"]);
        call.arg(sandbox.dir.join("images")).arg(&sandbox.id).output()
    };
    with("/nowhere/criu").fails(1, &["/nowhere/criu", "--criu"]);
    let broken =
        sandbox.file("criu", "#!/bin/sh\necho 'Error (criu/vdso.c:1): no vDSO' >&2\nexit 1\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&broken, mode).unwrap();
    with(broken.to_str().unwrap()).fails(1, &["checkpoint container", "no vDSO"]);
    with("/bin/false").fails(1, &["checkpoint container", "exit status: 1"]);
    wait_for_count(&sandbox, count(&sandbox));
    sandbox.delete_forced().ok();
    let call = sandbox.call(["--criu", broken.to_str().unwrap(), "restore", "--image-path"]);
    let call = call.arg(sandbox.dir.join("images")).arg("--bundle").arg(sandbox.bundle());
    call.arg(&sandbox.id).output().fails(1, &["restore container", "no vDSO"]);
    sandbox.expect_nothing_left();
}

#[test]
fn engines_probe_by_asking_for_help() {
    let sandbox = Sandbox::new("probe");
    for command in ["checkpoint", "restore"] {
        let help = sandbox.ultari([command, "--help"]).ok().stdout;
        assert!(help.contains("--image-path") && help.contains("--tcp-established"), "{help}");
    }
}
