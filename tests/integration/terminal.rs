//! Terminals: `run` in a real one, and the console socket of engines.

use std::fs;

use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use serde_json::json;

use crate::support::{ConsoleSocket, Json, Sandbox, Terminal, host, wait_until};

fn with_terminal(name: &str, script: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_script(name, script);
    sandbox.config["process"]["terminal"] = json!(true);
    sandbox
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// The settings that raw mode changes.
fn settings(terminal: &Terminal) -> Termios {
    tcgetattr(terminal.fd()).unwrap()
}

#[test]
fn run_in_a_terminal() {
    let script = "tty; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; read line; echo \"got $line\"; exit 5";
    let sandbox = with_terminal("tty", script);
    let (mut terminal, slave) = Terminal::open(33, 99);
    let before = settings(&terminal);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    let seen = terminal.expect("all");
    assert!(seen.contains("/dev/pts/") || seen.contains("/dev/console"), "{seen:?}");
    assert!(seen.contains("33 99"), "{seen:?}");
    let flags = settings(&terminal).local_flags;
    assert!(!flags.intersects(LocalFlags::ICANON | LocalFlags::ISIG), "raw: {flags:?}");
    terminal.send("hello\r");
    terminal.expect("got hello");
    running.wait().exits_with(5);
    assert!(settings(&terminal) == before, "restored afterwards");
}

#[test]
fn lines_end_as_on_any_terminal() {
    let sandbox = with_terminal("lines", "echo one; echo two");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    running.wait().ok();
    let seen = terminal.expect("two\r\n");
    assert!(seen.contains("one\r\ntwo\r\n") && !seen.contains("\r\r"), "{seen:?}");
}

#[test]
fn all_output_arrives_before_the_end() {
    let sandbox = with_terminal("flood", "seq 1 20000; echo end");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    let seen = terminal.expect("end\r\n");
    running.wait().ok();
    let numbers = seen.lines().filter(|line| line.trim().parse::<u32>().is_ok()).count();
    assert_eq!(numbers, 20000);
}

#[test]
fn a_new_size_is_passed_on() {
    let script = "trap 'stty size' WINCH; echo ready; while true; do sleep 0.05; done";
    let sandbox = with_terminal("resize", script);
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("ready");
    tcsetwinsize(terminal.fd(), size(50, 120)).unwrap();
    terminal.expect("50 120");
    sandbox.kill("KILL").ok();
    running.wait().exits_with(137);
}

#[test]
fn interrupt_goes_to_the_container() {
    let script = "trap 'echo interrupted; exit 3' INT; echo ready; while true; do sleep 0.05; done";
    let sandbox = with_terminal("interrupt", script);
    let (mut terminal, slave) = Terminal::open(24, 80);
    let before = settings(&terminal);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("ready");
    terminal.send("\x03");
    terminal.expect("interrupted");
    running.wait().exits_with(3);
    assert!(settings(&terminal) == before);
}

#[test]
fn the_terminal_is_the_controlling_one() {
    let sandbox =
        with_terminal("controlling", "echo through >/dev/tty; ps -o pid,sid,tty | head -n 3");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("through");
    running.wait().ok();
}

#[test]
fn terminal_is_restored_after_the_container_was_killed() {
    let sandbox = with_terminal("restored", "echo ready; sleep 100");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let before = settings(&terminal);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("ready");
    sandbox.kill("KILL").ok();
    running.wait().exits_with(137);
    assert!(settings(&terminal) == before);
}

#[test]
fn terminal_is_restored_after_a_failed_start() {
    let mut sandbox = with_terminal("failed", "");
    sandbox.args(&["/nowhere/program"]);
    let (mut terminal, slave) = Terminal::open(24, 80);
    let before = settings(&terminal);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    running.wait().exits_with(1);
    assert!(settings(&terminal) == before);
    let seen = terminal.expect("no such file or directory");
    assert!(seen.contains("/nowhere/program"), "{seen:?}");
}

#[test]
fn terminal_is_restored_when_run_is_terminated() {
    let sandbox =
        with_terminal("term", "trap 'exit 4' TERM; echo ready; while true; do sleep 0.05; done");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let before = settings(&terminal);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("ready");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().exits_with(4);
    assert!(settings(&terminal) == before);
}

#[test]
fn exec_in_a_terminal() {
    let mut sandbox = Sandbox::new("exectty");
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    let (mut terminal, slave) = Terminal::open(21, 81);
    let before = settings(&terminal);
    let call =
        sandbox.exec_call(&["--tty"]).args(["sh", "-c", "tty; stty size; read line; exit 8"]);
    let running = call.terminal(slave).spawn();
    terminal.expect("21 81");
    terminal.send("x\r");
    running.wait().exits_with(8);
    assert!(settings(&terminal) == before);
}

#[test]
fn console_socket_of_create() {
    let script = "tty; stty size; read line; echo \"got $line\"; exit 6";
    let mut sandbox = with_terminal("console", script);
    sandbox.config["process"]["consoleSize"] = json!({"height": 31, "width": 91});
    let socket = ConsoleSocket::listen(sandbox.dir.join("console.sock"));
    let call = sandbox.bundle_call("create").arg("--console-socket").arg(&socket.path);
    call.arg(&sandbox.id).output().ok();
    let mut terminal = socket.receive();
    let now = tcgetwinsize(terminal.fd()).unwrap();
    assert_eq!((now.ws_row, now.ws_col), (31, 91));
    sandbox.start().ok();
    let seen = terminal.expect("31 91");
    assert!(seen.contains("/dev/pts/0") || seen.contains("/dev/console"), "{seen:?}");
    terminal.clear();
    terminal.send("hello\n");
    terminal.expect("got hello");
    let pid = sandbox.ultari(["list", "-f", "json"]).ok().json()[0]["pid"].as_i64().unwrap();
    if pid > 0 {
        assert_eq!(host().exit_code_of_orphan(pid as i32), 6);
    }
    sandbox.wait_for("stopped");
    terminal.read_to_end();
}

#[test]
fn console_socket_of_run_detached() {
    let sandbox = with_terminal("consolerun", "echo up; exec sleep 100");
    let socket = ConsoleSocket::listen(sandbox.dir.join("console.sock"));
    let call = sandbox.bundle_call("run").args(["--detach", "--console-socket"]).arg(&socket.path);
    call.arg(&sandbox.id).output().ok();
    socket.receive().expect("up");
}

#[test]
fn console_device_is_the_containers_terminal() {
    let sandbox = with_terminal("condev", "echo by console >/dev/console; stat -c %F /dev/console");
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("by console");
    terminal.expect("character special file");
    running.wait().ok();
}

#[test]
fn the_terminal_belongs_to_the_user() {
    let mut sandbox = with_terminal("owner", "stat -c '%u:%a:' $(tty)");
    sandbox.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let (mut terminal, slave) = Terminal::open(24, 80);
    let running = sandbox.bundle_call("run").arg(&sandbox.id).terminal(slave).spawn();
    terminal.expect("1000:");
    running.wait().ok();
}

#[test]
fn terminal_without_a_place_for_it_is_an_error() {
    let sandbox = with_terminal("noplace", "true");
    sandbox.create().fails(1, &["console"]);
    sandbox.expect_nothing_left();
    let output = sandbox.bundle_call("run").args(["--detach", &sandbox.id]).output();
    output.fails(1, &["console"]);
    sandbox.expect_nothing_left();
}

#[test]
fn console_socket_without_a_terminal_is_an_error() {
    let sandbox = Sandbox::with_script("nottty", "true");
    let socket = ConsoleSocket::listen(sandbox.dir.join("console.sock"));
    let call = sandbox.bundle_call("create").arg("--console-socket").arg(&socket.path);
    call.arg(&sandbox.id).output().fails(1, &["console"]);
    sandbox.expect_nothing_left();
}

#[test]
fn console_socket_that_nobody_listens_on() {
    let sandbox = with_terminal("deaf", "true");
    let path = sandbox.dir.join("missing.sock");
    let call = sandbox.bundle_call("create").arg("--console-socket").arg(&path);
    call.arg(&sandbox.id).output().fails(1, &["missing.sock"]);
    sandbox.expect_nothing_left();
}

#[test]
fn without_a_terminal_the_callers_descriptors_are_used() {
    let mut sandbox = Sandbox::new("noterm");
    let report = sandbox.probe();
    assert_eq!(report["tty"], json!([null, null, null]));
}

#[test]
fn detached_run_does_not_keep_the_terminal() {
    let sandbox = Sandbox::with_script("leaves", "exec sleep 100");
    let (terminal, slave) = Terminal::open(24, 80);
    let before = settings(&terminal);
    let call = sandbox.bundle_call("run").args(["--detach", &sandbox.id]);
    call.terminal(slave).spawn().wait().ok();
    assert!(settings(&terminal) == before);
    wait_until("it runs", || sandbox.status() == "running");
    let own = fs::read_to_string(format!("/proc/{}/stat", sandbox.pid())).unwrap();
    let fields: Vec<&str> = own.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[4], "0", "tty_nr: a session of its own, without a controlling terminal");
    let _ = sandbox.state().text("/status");
}
