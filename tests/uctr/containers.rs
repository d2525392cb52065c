//! The life of containers: run, stop, kill, exec, logs and what they say (S23–S73).

use std::io::{BufRead, Write};
use std::process::Stdio;

use crate::support::{Host, output, until};

#[test]
fn s23_s24_exit_status() {
    let host = Host::new();
    let run = |command: &[&str]| host.run(&["--rm"], command);
    assert_eq!(run(&["echo", "hello"]).ok().stdout, "hello\n");
    run(&["sh", "-c", "exit 7"]).fails(7, &[]);
    run(&["sh", "-c", "kill -9 $$; sleep 1"]).fails(0, &[]);
    run(&["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]).fails(143, &[]);
    run(&["no-such-program"])
        .fails(127, &["\"no-such-program\": executable file not found in $PATH"]);
    run(&["/no/such"]).fails(127, &["no such file or directory"]);
    run(&["/etc/passwd"]).fails(126, &["permission denied"]);
    host.run(&["--rm", "--no-such-flag"], &["true"]).fails(125, &["--no-such-flag"]);
    for (args, code) in [
        (&["exec", "web"][..], 1),
        (&["run"], 1),
        (&["no-such-command"], 1),
        (&["pull", "--no-such-flag", "x"], 125),
        (&["ps", "more"], 1),
        (&["logs", "--tail"], 125),
        (&["volume"], 0),
        (&["run", "--help"], 0),
    ] {
        assert_eq!(host.uctr(args).code, code, "{args:?}");
    }
    host.run(&["--rm", "--user", "nobody-here"], &["true"])
        .fails(125, &["unable to find user nobody-here"]);
    assert_eq!(host.ids(), [""; 0], "containers are left");
}

#[test]
fn s24_streams_are_kept_apart() {
    let host = Host::new();
    let said = host.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"));
    // More than pipes and sockets hold.
    let said = host.run(&["--rm"], &["sh", "-c", "seq 1 200000"]).ok();
    assert_eq!(said.stdout.lines().count(), 200_000);
    assert!(said.stdout.ends_with("\n200000\n"));
}

#[test]
fn s25_exited_containers_stay() {
    let host = Host::new();
    host.run(&["--name", "once"], &["sh", "-c", "exit 3"]).fails(3, &[]);
    let state = &host.record("once")["state"];
    assert_eq!((state["status"].as_str(), state["exit_code"].as_i64()), (Some("exited"), Some(3)));
    assert_eq!(state["pid"], 0);
    host.uctr(&["rm", "once"]).ok();
    assert_eq!(host.ids(), [""; 0]);
}

#[test]
fn s27_detached_prints_the_id() {
    let host = Host::new();
    let said = host.run(&["-d", "--name", "web"], &["sleep", "1000"]).ok();
    let id = said.stdout.trim();
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(host.status("web"), "running");
    assert_eq!(host.uctr(&["rm", "-f", "web"]).ok().stdout, "web\n");
    host.is_gone(id);
}

#[test]
fn s28_input_only_when_asked_for() {
    let host = Host::new();
    let piped = |flags: &[&str]| {
        let args = [&["run", "--rm", "--network", "none"], flags, &["busybox", "cat"]].concat();
        let mut command = host.0.command(&args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Without -i nobody takes it.
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all("x".repeat(300_000).as_bytes()));
        let said = child.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        assert!(said.status.success());
        said.stdout.len()
    };
    assert_eq!(piped(&["-i"]), 300_000);
    assert_eq!(piped(&[]), 0);
}

#[test]
fn attached_streams_can_be_chosen() {
    let host = Host::new();
    let said = host.run(&["--rm", "-a", "stderr"], &["sh", "-c", "echo out; echo err >&2"]).ok();
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", "err\n"));
    host.run(&["-a", "nope"], &["true"])
        .fails(125, &["valid streams are STDIN, STDOUT and STDERR"]);
}

#[test]
fn s42_s43_s44_create_and_start() {
    let host = Host::new();
    let created = host.uctr(&[
        "create",
        "--network",
        "none",
        "--name",
        "later",
        "busybox",
        "sh",
        "-c",
        "echo now; exit 4",
    ]);
    let id = created.ok().stdout;
    assert_eq!(id.trim().len(), 64);
    assert_eq!(host.status("later"), "created");
    assert_eq!(host.uctr(&["start", "later"]).ok().stdout, "later\n");
    assert_eq!(host.uctr(&["wait", "later"]).ok().stdout, "4\n");
    let again = host.uctr(&["start", "-a", "later"]);
    assert_eq!(again.stdout, "now\n");
    again.fails(4, &[]);
    assert_eq!(host.uctr(&["logs", "later"]).ok().stdout, "now\nnow\n");
}

#[test]
fn s46_stop() {
    let host = Host::new();
    host.service("kind", &[]);
    assert_eq!(host.uctr(&["stop", "kind"]).ok().stdout, "kind\n");
    assert_eq!(host.record("kind")["state"]["exit_code"], 0);
    host.run(&["-d", "--name", "deaf"], &["sleep", "1000"]).ok();
    host.uctr(&["stop", "-t", "0", "deaf"]).ok();
    assert_eq!(host.record("deaf")["state"]["exit_code"], 137);
    host.run(&["-d", "--init", "--name", "reaped"], &["sleep", "1000"]).ok();
    until("it runs", || host.uctr(&["exec", "reaped", "ps"]).stdout.contains("sleep 1000"));
    host.uctr(&["stop", "reaped"]).ok();
    assert_eq!(host.record("reaped")["state"]["exit_code"], 143);
    // Of the image, or of the flag.
    let script = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    host.run(&["-d", "--name", "other", "--stop-signal", "USR1"], &["sh", "-c", script]).ok();
    until("it is ready", || host.uctr(&["logs", "other"]).stdout.contains("ready"));
    host.uctr(&["stop", "other"]).ok();
    assert_eq!(host.record("other")["state"]["exit_code"], 5);
    // It is stopped already.
    assert_eq!(host.uctr(&["stop", "other"]).ok().stdout, "other\n");
}

#[test]
fn s46_init_reaps_orphans() {
    let host = Host::new();
    let script =
        "for i in 1 2 3; do (sleep 0.01 &) ; done; sleep 0.5; ps | grep -c '\\[sleep\\]'; exit 3";
    let said = host.run(&["--rm", "--init"], &["sh", "-c", script]);
    assert_eq!(said.stdout, "0\n", "{}", said.stderr);
    said.fails(3, &[]);
    host.run(&["--rm", "--init"], &["nope"]).fails(127, &[]);
}

#[test]
fn s47_kill() {
    let host = Host::new();
    let id = host.service("web", &[]);
    host.uctr(&["kill", "-s", "NOPE", "web"]).fails(1, &["Invalid signal: NOPE"]);
    assert_eq!(host.uctr(&["kill", "web"]).ok().stdout, "web\n");
    assert_eq!(host.record("web")["state"]["exit_code"], 137);
    let words = format!("container {id} is not running");
    host.uctr(&["kill", "web"]).fails(1, &[&words]);
}

#[test]
fn s48_restart_keeps_the_id() {
    let host = Host::new();
    let id = host.service("web", &[]);
    host.uctr(&["exec", "web", "touch", "/kept"]).ok();
    let pid = host.record("web")["state"]["pid"].clone();
    host.uctr(&["restart", "-t", "1", "web"]).ok();
    let record = host.record("web");
    assert_eq!(record["id"], id.as_str());
    assert_ne!(record["state"]["pid"], pid);
    host.uctr(&["exec", "web", "ls", "/kept"]).ok();
}

#[test]
fn s49_s55_pause() {
    let host = Host::new();
    host.service("web", &[]);
    host.uctr(&["unpause", "web"]).fails(1, &["is not paused"]);
    host.uctr(&["pause", "web"]).ok();
    assert_eq!(host.status("web"), "paused");
    host.uctr(&["pause", "web"]).fails(1, &["is already paused"]);
    host.uctr(&["exec", "web", "true"]).fails(1, &["is paused, unpause the container before exec"]);
    host.uctr(&["start", "web"])
        .fails(1, &["cannot start a paused container, try unpause instead"]);
    host.uctr(&["rm", "web"]).fails(1, &["You cannot remove a paused container"]);
    host.uctr(&["unpause", "web"]).ok();
    host.uctr(&["exec", "web", "true"]).ok();
    host.uctr(&["pause", "web"]).ok();
    host.uctr(&["stop", "web"]).ok();
    assert_eq!(host.record("web")["state"]["exit_code"], 0, "a paused container heard nothing");
    host.uctr(&["pause", "web"]).fails(1, &["is not running"]);
}

#[test]
fn s50_s51_s52_remove() {
    let host = Host::new();
    let id = host.service("web", &[]);
    let words = format!("You cannot remove a running container {id}");
    host.uctr(&["rm", "web"]).fails(1, &[&words]);
    host.run(&["--name", "old"], &["true"]).ok();
    let said = host.uctr(&["rm", "web", "old", "none-such"]);
    assert_eq!(said.stdout, "old\n");
    said.fails(1, &["No such container: none-such"]);
    host.uctr(&["rm", "-f", "web", "none-such"]).ok();
    host.is_gone(&id);
}

#[test]
fn s61_logs() {
    let host = Host::new();
    let script =
        "echo one; echo two >&2; printf three; sleep 0.2; echo ' and more'; sleep 0.1; echo four";
    host.run(&["--name", "talk"], &["sh", "-c", script]).ok();
    let said = host.uctr(&["logs", "talk"]).ok();
    assert_eq!(
        (said.stdout.as_str(), said.stderr.as_str()),
        ("one\nthree and more\nfour\n", "two\n")
    );
    assert_eq!(host.uctr(&["logs", "--tail", "2", "talk"]).ok().stdout, "three and more\nfour\n");
    assert_eq!(host.uctr(&["logs", "-n", "0", "talk"]).ok().stdout, "");
    let said = host.uctr(&["logs", "-t", "--tail", "2", "talk"]).ok().stdout;
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].ends_with("Z three and more"), "{said}");
    let time = lines[1].split(' ').next().unwrap();
    assert_eq!(host.uctr(&["logs", "--since", time, "talk"]).ok().stdout, "four\n");
    assert_eq!(host.uctr(&["logs", "--until", time, "--tail", "1", "talk"]).ok().stdout, "four\n");
    assert_eq!(host.uctr(&["logs", "--since", "1h", "--tail", "1", "talk"]).ok().stdout, "four\n");
    host.uctr(&["logs", "--since", "yesterday", "talk"]).fails(1, &["invalid value"]);
}

#[test]
fn s61_logs_are_followed() {
    let host = Host::new();
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done";
    host.run(&["-d", "--name", "talk"], &["sh", "-c", script]).ok();
    assert_eq!(host.uctr(&["logs", "-f", "talk"]).ok().stdout, "1\n2\n3\n4\n5\n");
}

#[test]
fn s61_logs_are_limited() {
    let host = Host::new();
    let flags = ["--name", "talk", "--log-opt", "max-size=10k", "--log-opt", "max-file=2"];
    host.run(&flags, &["sh", "-c", "for i in $(seq 1 200); do seq 1 20; sleep 0.005; done"]).ok();
    let folder = host.folder(host.record("talk")["id"].as_str().unwrap());
    let files = ["container.log", "container.log.1"].map(|name| folder.join(name));
    for file in &files {
        let size = file.metadata().unwrap().len();
        assert!(size > 0 && size < 40_000, "{} has {size} bytes", file.display());
    }
    assert!(!folder.join("container.log.2").exists());
    assert!(host.uctr(&["logs", "talk"]).ok().stdout.ends_with("\n20\n"));
    host.run(&["--log-opt", "max-size=x"], &["true"]).fails(125, &["max-size"]);
    host.run(&["--log-driver", "syslog"], &["true"]).fails(125, &["syslog", "not supported"]);
}

#[test]
fn s66_s67_s68_exec() {
    let host = Host::new();
    let id = host.service("web", &["-e", "A=1", "-w", "/tmp"]);
    let exec = |args: &[&str]| host.uctr(&[&["exec"], args].concat());
    assert_eq!(exec(&["web", "sh", "-c", "echo $A; pwd"]).ok().stdout, "1\n/tmp\n");
    exec(&["web", "sh", "-c", "exit 9"]).fails(9, &[]);
    exec(&["web", "nope"]).fails(127, &["executable file not found"]);
    exec(&["web", "/etc/passwd"]).fails(126, &["permission denied"]);
    let said = exec(&[
        "-u",
        "ann",
        "-w",
        "/etc",
        "-e",
        "A=2",
        "web",
        "sh",
        "-c",
        "id; pwd; echo $A $HOME",
    ]);
    assert_eq!(
        said.ok().stdout,
        "uid=1000(ann) gid=1000(ann) groups=44(video)\n/etc\n2 /home/ann\n"
    );
    exec(&["-u", "bob", "web", "true"]).fails(1, &["unable to find user bob"]);
    let caps = exec(&["--privileged", "web", "grep", "CapEff", "/proc/self/status"]).ok().stdout;
    assert!(!caps.contains("a80425fb"), "{caps}");
    let ps = exec(&["web", "ps"]).ok().stdout;
    assert!(
        ps.lines().any(|line| line.trim().starts_with("1 root") && line.contains("trap")),
        "{ps}"
    );
    assert!(exec(&["web", "cat", "/etc/hosts"]).ok().stdout.contains("localhost"));
    // It goes on by itself.
    exec(&["-d", "web", "sh", "-c", "sleep 0.1; echo done > /tmp/done"]).ok();
    until("it is done", || exec(&["web", "cat", "/tmp/done"]).stdout == "done\n");
    let mut command = host.0.command(["exec", "-i", "web", "wc", "-c"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[b'x'; 200_000]).unwrap();
    let said = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "200000");
    // The host's own files are not to be seen through the streams.
    let out = std::fs::File::create(host.0.dir.path().join("out")).unwrap();
    let mut command = host.0.command([
        "exec",
        "web",
        "sh",
        "-c",
        "readlink /proc/self/fd/0; readlink /proc/self/fd/1",
    ]);
    assert!(command.stdout(out).status().unwrap().success());
    let said = std::fs::read_to_string(host.0.dir.path().join("out")).unwrap();
    assert!(said.contains("pipe:") && !said.contains("uctr-test"), "{said}");
    host.uctr(&["stop", "web"]).ok();
    exec(&["web", "true"]).fails(1, &[&format!("Container {id} is not running")]);
}

#[test]
fn s73_short_ids() {
    let host = Host::new();
    let mut ids: Vec<String> = Vec::new();
    // Two that begin alike.
    let (short, id) = loop {
        let id = host
            .uctr(&["create", "--network", "none", "busybox", "true"])
            .ok()
            .stdout
            .trim()
            .to_owned();
        if let Some(other) = ids.iter().find(|other| other[..1] == id[..1]) {
            break (other[..1].to_owned(), id);
        }
        ids.push(id);
    };
    host.uctr(&["start", &short]).fails(1, &["Multiple IDs found with provided prefix"]);
    host.uctr(&["start", &id[..12]]).ok();
    host.uctr(&["start", "no-such"]).fails(1, &["No such container: no-such"]);
}

#[test]
fn restart_policies() {
    let host = Host::new();
    let count = "echo run; exit 1";
    host.run(&["-d", "--name", "thrice", "--restart", "on-failure:2"], &["sh", "-c", count]).ok();
    assert!(host.uctr(&["wait", "thrice"]).ok().stdout.trim() == "1");
    until("it has ended for good", || host.status("thrice") == "exited");
    assert_eq!(host.record("thrice")["restart_count"], 2);
    assert_eq!(host.uctr(&["logs", "thrice"]).ok().stdout, "run\nrun\nrun\n");
    host.run(&["-d", "--name", "fine", "--restart", "on-failure"], &["true"]).ok();
    until("it has ended", || host.status("fine") == "exited");
    assert_eq!(host.record("fine")["restart_count"], 0);
    // It is left alone when somebody stops it, running or waiting.
    host.run(&["-d", "--name", "always", "--restart", "always"], &["sh", "-c", "echo run"]).ok();
    until("it goes on", || host.record("always")["restart_count"].as_u64().unwrap() >= 3);
    host.uctr(&["stop", "always"]).ok();
    assert_eq!(host.status("always"), "exited");
    host.uctr(&["rm", "always"]).ok();
    host.run(&["--restart", "always", "--rm"], &["true"])
        .fails(125, &["cannot specify both --restart and --rm"]);
    host.run(&["--restart", "never"], &["true"]).fails(125, &["invalid restart policy"]);
}

#[test]
fn the_terminal_must_be_one() {
    let host = Host::new();
    let said =
        output(&mut host.0.command(["run", "--rm", "-it", "--network", "none", "busybox", "sh"]));
    said.fails(1, &["the input device is not a TTY"]);
    assert_eq!(host.ids(), [""; 0]);
}

#[test]
fn output_that_nobody_takes_keeps_no_signal_from_the_program() {
    let host = Host::new();
    let script = "trap 'exit 7' TERM; yes & wait $!";
    let args = ["run", "--network", "none", "--name", "full", "busybox", "sh", "-c", script];
    let mut child = host.0.command(args).stdout(Stdio::piped()).spawn().unwrap();
    // By now all buffers up to here are full.
    let written = || host.uctr(&["logs", "full"]).stdout.len();
    let mut before = 0;
    loop {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = written();
        if std::mem::replace(&mut before, now) == now && now > 65_536 {
            break;
        }
    }
    let client = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(client, nix::sys::signal::Signal::SIGTERM).unwrap();
    until("the program ends with 7", || host.record("full")["state"]["exit_code"] == 7);
    drop(child.stdout.take());
    child.wait().unwrap();
}

#[test]
fn a_closed_output_ends_the_client_only() {
    let host = Host::new();
    let mut command =
        host.0.command(["run", "--network", "none", "--name", "loud", "busybox", "yes"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(host.status("loud"), "running");
    host.uctr(&["rm", "-f", "loud"]).ok();
}

/// A client that is told not to pass signals ends by them, and the container goes on.
#[test]
fn signals_and_input_are_not_passed_if_so_wished() {
    let host = Host::new();
    let run = ["run", "--network", "none", "--name", "web", "--sig-proxy=false", "busybox"];
    let script = ["sh", "-c", "trap 'exit 3' TERM; while :; do echo up; sleep 0.05; done"];
    // Whom its output reaches is attached.
    let start = |args: &[&str]| {
        let mut command = host.0.command(args);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = std::io::BufReader::new(client.stdout.take().unwrap());
        let mut said = String::new();
        output.read_line(&mut said).unwrap();
        assert_eq!(said, "up\n");
        (client, output)
    };
    let run = [&run[..], &script[..]].concat();
    let attach = ["attach", "--sig-proxy=false", "--no-stdin", "web"];
    for args in [&run[..], &attach[..]] {
        let (mut client, _output) = start(args);
        if args == attach {
            // Its input has ended, and that is nothing to the client.
            drop(client.stdin.take());
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(client.try_wait().unwrap().is_none());
        }
        let pid = nix::unistd::Pid::from_raw(client.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(client.wait().unwrap().code(), Some(143));
        assert_eq!(host.status("web"), "running");
    }
    let (mut client, _output) = start(&["attach", "web"]);
    let pid = nix::unistd::Pid::from_raw(client.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(3));
    assert_eq!(host.status("web"), "exited");
}

/// Who takes no output of `exec` keeps neither input nor signals from the program.
#[test]
fn an_output_that_nobody_takes_holds_nothing_else_up() {
    let host = Host::new();
    host.service("web", &[]);
    let mut command = host.0.command(["exec", "-i", "web", "sh", "-c", "yes & exec cat >/got"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Until the pipes are full.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"hello\n").unwrap();
    until("its input arrives", || host.says(&["exec", "web", "cat", "/got"]).contains("hello"));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let term = || nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    term();
    until("the program has ended", || {
        !host.says(&["exec", "web", "ps"]).lines().any(|line| line.ends_with(" cat"))
    });
    // What it has said is still not taken; the second one is for the client.
    assert!(child.try_wait().unwrap().is_none());
    term();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    // Nor does what it leaves behind, which never stops, keep the client.
    host.says(&["exec", "web", "sh", "-c", "yes & sleep 0.1"]);
    host.uctr(&["rm", "-f", "web"]).ok();
}

/// CVE-2019-5736: a container must not be able to write to the program that runs it.
#[test]
fn cve_2019_5736_the_program_is_sealed() {
    let host = Host::new();
    let id = host.service("web", &[]);
    let mut command = host.0.command(["exec", "web", "sh", "-c", "echo up; sleep 1000"]);
    let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut buffer = [0; 3];
    std::io::Read::read_exact(&mut client.stdout.take().unwrap(), &mut buffer).unwrap();
    for pid in [crate::crashes::monitor(&id).as_raw() as u32, client.id()] {
        let file = std::fs::File::open(format!("/proc/{pid}/exe")).unwrap();
        let flags = nix::sys::statvfs::fstatvfs(&file).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "process {pid}");
    }
    client.kill().unwrap();
    client.wait().unwrap();
}
