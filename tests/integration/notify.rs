//! What others are told of a container's process: a service manager that it is ready, an engine
//! its pidfd.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crate::support::{ConsoleSocket, PATIENCE, Run, Sandbox};

/// A service manager's socket, and a container whose program says these things one after another.
fn with_manager(name: &str, words: &[&str]) -> (Sandbox, UnixDatagram) {
    let mut sandbox = Sandbox::new(name);
    let said: String = words.iter().map(|words| format!("/guest do 'notify {words}'\n")).collect();
    sandbox.script(&format!("{said} ls -A /run/notify; sleep 100"));
    let manager = UnixDatagram::bind(sandbox.dir.join("manager.sock")).unwrap();
    manager.set_read_timeout(Some(*PATIENCE)).unwrap();
    (sandbox, manager)
}

fn managed(sandbox: &Sandbox, call: Run) -> Run {
    call.env("NOTIFY_SOCKET", sandbox.dir.join("manager.sock").to_str().unwrap())
}

fn next_message(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).expect("the service manager is told something");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn start_waits_until_the_container_is_ready_and_passes_on_only_that() {
    let (sandbox, manager) = with_manager("ready", &["STATUS=soon", "MAINPID=1 READY=1 X=y"]);
    managed(&sandbox, sandbox.bundle_call("create").arg(&sandbox.id)).output().ok();
    managed(&sandbox, sandbox.call(["start", &sandbox.id])).output().ok();
    assert_eq!(next_message(&manager), format!("MAINPID={}\nREADY=1", sandbox.pid()));
    manager.set_nonblocking(true).unwrap();
    manager.recv(&mut [0; 16]).unwrap_err();
}

#[test]
fn run_tells_it_detached_or_not() {
    let (sandbox, manager) = with_manager("detached", &["READY=1"]);
    managed(&sandbox, sandbox.bundle_call("run").args(["-d", &sandbox.id])).output().ok();
    assert_eq!(next_message(&manager), format!("MAINPID={}\nREADY=1", sandbox.pid()));
    drop(sandbox);
    let (sandbox, manager) = with_manager("attached", &["READY=1"]);
    let running = managed(&sandbox, sandbox.bundle_call("run").arg(&sandbox.id)).spawn();
    assert_eq!(next_message(&manager), format!("MAINPID={}\nREADY=1", sandbox.pid()));
    sandbox.kill("KILL").ok();
    let output = running.wait().exits_with(137);
    assert_eq!(output.stdout, "[\"ok\"]\nnotify.sock\n");
    sandbox.expect_nothing_left();
}

#[test]
fn a_container_that_ends_without_a_word_keeps_nobody_waiting() {
    let (mut sandbox, _manager) = with_manager("silent", &[]);
    sandbox.script("echo x > /run/notify/file && exit 1; exit 0");
    managed(&sandbox, sandbox.bundle_call("run").args(["-d", &sandbox.id])).output().ok();
    sandbox.wait_for("stopped");
}

#[test]
fn without_a_service_manager_there_is_no_socket() {
    let mut sandbox = Sandbox::with_script("unmanaged", "echo \"<$NOTIFY_SOCKET>\"");
    sandbox.config["process"]["env"].as_array_mut().unwrap().push("NOTIFY_SOCKET=/own".into());
    sandbox.run().ok().prints("</own>");
}

#[test]
fn pidfd_socket_gets_a_pidfd_of_the_process() {
    let sandbox = Sandbox::with_script("pidfd", "sleep 100");
    let socket = ConsoleSocket::listen(sandbox.dir.join("pidfd.sock"));
    let call = sandbox.bundle_call("create").arg("--pidfd-socket").arg(&socket.path);
    call.arg(&sandbox.id).output().ok();
    let pid_of = |fd: &std::os::fd::OwnedFd| {
        let text =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
        line.expect("a pidfd").trim().parse::<i32>().unwrap()
    };
    assert_eq!(pid_of(&socket.receive_fd()), sandbox.pid());
    sandbox.start().ok();
    let path = socket.path.to_str().unwrap().to_owned();
    let file = sandbox.dir.join("exec.pid");
    let options = ["-d", "--pidfd-socket", &path, "--pid-file", file.to_str().unwrap()];
    sandbox.exec_call(&options).args(["/bin/sleep", "100"]).output().ok();
    let pid = std::fs::read_to_string(&file).unwrap();
    assert_eq!(pid_of(&socket.receive_fd()).to_string(), pid);
    let call = sandbox.exec_call(&["-d", "--pidfd-socket", "/no/such/socket"]);
    call.args(["/bin/sleep", "100"]).output().fails(255, &["--pidfd-socket", "/no/such/socket"]);
}
