//! Standard streams, terminals and the exit status are those of the restore.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;

use serde_json::json;

use super::{
    checkpoint, count, expect_to_go_on, needs_criu, restore, restore_call, wait_for_count,
};
use crate::skip;
use crate::support::{ConsoleSocket, Json, Sandbox, Terminal, wait_until};

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
