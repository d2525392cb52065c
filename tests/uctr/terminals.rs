//! Terminals: `-t`, `attach`, detaching, signals of the terminal.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::Host;

/// A client in front of a terminal of ours.
struct Session {
    child: Child,
    master: std::fs::File,
    seen: String,
}

impl Session {
    fn new(host: &Host, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let stream = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut command = host.0.command(args);
        command.stdin(stream(&pty.slave)).stdout(stream(&pty.slave)).stderr(stream(&pty.slave));
        Self { child: command.spawn().unwrap(), master: pty.master.into(), seen: String::new() }
    }

    fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until the terminal shows the words.
    #[track_caller]
    fn expect(&mut self, words: &str) {
        while !self.seen.contains(words) {
            let mut buffer = [0; 4096];
            match self.master.read(&mut buffer) {
                Ok(length) if length > 0 => {
                    self.seen += &String::from_utf8_lossy(&buffer[..length]);
                }
                end => panic!("{end:?}, and no {words:?} in {:?}", self.seen),
            }
        }
        let end = self.seen.find(words).unwrap() + words.len();
        self.seen.drain(..end);
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn s29_s30_s31_a_shell_in_a_terminal() {
    let host = Host::new();
    let mut session =
        Session::new(&host, &["run", "--rm", "-it", "--network", "none", "busybox", "sh"]);
    session.expect("# ");
    session.send("stty size; tty; echo $TERM\n");
    session.expect("33 77");
    session.expect("/dev/pts/0");
    session.expect("xterm");
    // ^C is the shell's.
    session.send("sleep 1000\n");
    std::thread::sleep(std::time::Duration::from_millis(100));
    session.send("\x03");
    session.expect("# ");
    session.send("exit 6\n");
    assert_eq!(session.code(), Some(6));
    assert_eq!(host.ids(), [""; 0]);
}

#[test]
fn s32_s69_detach_and_attach() {
    let host = Host::new();
    let mut session =
        Session::new(&host, &["run", "-it", "--name", "box", "--network", "none", "busybox", "sh"]);
    session.expect("# ");
    session.send("A=remembered\n");
    session.expect("# ");
    session.send("\x10\x11");
    assert_eq!(session.code(), Some(0));
    assert_eq!(host.status("box"), "running");
    let mut session = Session::new(&host, &["attach", "--detach-keys", "ctrl-x,x", "box"]);
    session.send("echo $A\n");
    session.expect("remembered\r\n");
    session.send("\x18x");
    assert_eq!(session.code(), Some(0));
    let mut session = Session::new(&host, &["attach", "box"]);
    session.send("exit 3\n");
    assert_eq!(session.code(), Some(3));
    host.uctr(&["attach", "box"])
        .fails(1, &["You cannot attach to a stopped container, start it first"]);
    let mut session = Session::new(&host, &["start", "-ai", "box"]);
    session.send("exit 4\n");
    assert_eq!(session.code(), Some(4));
}

#[test]
fn s67_exec_in_a_terminal() {
    let host = Host::new();
    host.service("web", &[]);
    let mut session = Session::new(&host, &["exec", "-it", "web", "sh"]);
    session.expect("# ");
    session.send("tty; stty size\n");
    session.expect("/dev/pts/");
    session.expect("33 77");
    session.send("exit 5\n");
    assert_eq!(session.code(), Some(5));
}

#[test]
fn s26_signals_reach_the_program() {
    let host = Host::new();
    let script = "trap 'echo got; exit 130' INT; echo ready; while :; do sleep 0.05; done";
    let mut command =
        host.0.command(["run", "--rm", "--network", "none", "busybox", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut buffer = [0; 64];
    let length = out.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"ready\n");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got\n");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn s29_a_terminal_without_input() {
    let host = Host::new();
    let said = host.run(&["--rm", "-t"], &["sh", "-c", "tty; echo x"]).ok();
    assert_eq!(said.stdout, "/dev/pts/0\r\nx\r\n");
    host.run(&["-dit", "--name", "box"], &["sh"]).ok();
    let mut session = Session::new(&host, &["attach", "box"]);
    session.send("echo $((6*7))\n");
    session.expect("42");
    session.send("exit\n");
    assert_eq!(session.code(), Some(0));
}
