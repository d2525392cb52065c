//! The life of containers: run, stop, kill, exec, logs and what they say (S23–S73).

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Output, Sandbox, add, link, output};

/// A sandbox with busybox, whose containers have no network.
pub struct Host(pub Sandbox);

impl Host {
    pub fn new() -> Self {
        Self(Sandbox::new().with_busybox())
    }

    pub fn uctr(&self, args: &[&str]) -> Output {
        self.0.uctr(args)
    }

    /// `uctr run --network none FLAGS busybox COMMAND`
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        let args = [&["run", "--network", "none"], flags, &["busybox"], command].concat();
        self.uctr(&args)
    }

    /// What a shell in a container says.
    pub fn shell(&self, flags: &[&str], script: &str) -> String {
        self.run(&[&["--rm"], flags].concat(), &["sh", "-c", script]).ok().stdout
    }

    /// `run -d --name NAME` of a program that goes on; ended by TERM with 0.
    pub fn service(&self, name: &str, flags: &[&str]) -> String {
        let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
        let flags = [&["-d", "--name", name], flags].concat();
        let id = self.run(&flags, &["sh", "-c", script]).ok().stdout.trim().to_owned();
        self.until(|| self.uctr(&["logs", name]).stdout.contains("ready"));
        id
    }

    #[track_caller]
    pub fn until(&self, condition: impl Fn() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("it does not come about");
    }

    pub fn folder(&self, id: &str) -> PathBuf {
        self.0.dir.path().join("data/containers").join(id)
    }

    /// What is on record of the container whose name or ID this is.
    pub fn record(&self, name: &str) -> Value {
        let folder = self.0.dir.path().join("data/containers");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let Ok(text) = std::fs::read(entry.unwrap().path().join("record.json")) else {
                continue;
            };
            let record: Value = serde_json::from_slice(&text).unwrap();
            if record["name"] == name || record["id"] == name {
                found.push(record);
            }
        }
        assert_eq!(found.len(), 1, "containers {name}");
        found.remove(0)
    }

    pub fn status(&self, name: &str) -> String {
        self.record(name)["state"]["status"].as_str().unwrap().to_owned()
    }

    /// The IDs of all containers.
    pub fn ids(&self) -> Vec<String> {
        let folder = self.0.dir.path().join("data/containers");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.len() == 64).collect()
    }

    /// Nothing of the container is left.
    #[track_caller]
    pub fn is_gone(&self, id: &str) {
        let run = self.0.dir.path().join("run");
        for path in [self.folder(id), run.join("containers").join(id), run.join("runtime").join(id)]
        {
            assert!(!path.exists(), "{} is left", path.display());
        }
        for controller in ["memory", "pids", "unified", "."] {
            let path = format!("/sys/fs/cgroup/{controller}/ultari/{id}");
            assert!(!std::path::Path::new(&path).exists(), "{path} is left");
        }
    }
}

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
        let text = "x".repeat(300_000);
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        let said = child.wait_with_output().unwrap();
        assert!(said.status.success());
        said.stdout.len()
    };
    assert_eq!(piped(&["-i"]), 300_000);
    assert_eq!(piped(&[]), 0);
}

#[test]
fn s33_defaults_of_a_container() {
    let host = Host::new();
    let said =
        host.run(&["--name", "who"], &["sh", "-c", "id -u; hostname; pwd; echo $HOME; echo $PATH"]);
    let said = said.ok().stdout;
    let lines: Vec<_> = said.lines().collect();
    let id = host.record("who")["id"].as_str().unwrap().to_owned();
    assert_eq!(lines, ["0", &id[..12], "/", "/root", "/bin"]);
    let hosts = host.shell(&[], "cat /etc/hosts; cat /etc/hostname; df -k /dev/shm | tail -1");
    assert!(hosts.contains("127.0.0.1\tlocalhost"), "{hosts}");
    assert!(hosts.contains("65536"), "shm is not of 64 MiB: {hosts}");
    let caps = host.shell(&[], "grep CapEff /proc/self/status");
    assert!(caps.contains("00000000a80425fb"), "not docker's capabilities: {caps}");
    let seccomp = host.shell(&[], "grep Seccomp: /proc/self/status");
    assert!(seccomp.contains('2'), "{seccomp}");
    let masked = host.shell(&[], "cat /proc/keys /proc/timer_list | wc -c; echo x > /proc/sys/kernel/domainname || echo denied");
    assert_eq!(masked, "0\ndenied\n");
}

#[test]
fn s34_names() {
    let host = Host::new();
    let id = host.service("web", &[]);
    let conflict =
        format!("Conflict. The container name \"/web\" is already in use by container \"{id}\"");
    host.run(&["--name", "web"], &["true"]).fails(125, &[&conflict]);
    host.run(&["--name", "a/b"], &["true"]).fails(125, &["Invalid container name (a/b)"]);
    assert_eq!(host.ids().len(), 1);
}

#[test]
fn s35_names_are_given() {
    let host = Host::new();
    let first = host.uctr(&["create", "busybox"]).ok().stdout;
    let second = host.uctr(&["create", "busybox"]).ok().stdout;
    let name = |id: &str| host.record(id.trim())["name"].as_str().unwrap().to_owned();
    assert!(name(&first).contains('_') && name(&second).contains('_'));
    assert_ne!(name(&first), name(&second));
}

#[test]
fn s37_environment() {
    let host = Host::new();
    let file = host.0.dir.path().join("env");
    std::fs::write(&file, "# a comment\nB=from file\nC=3\n").unwrap();
    let flags =
        ["-e", "A=1", "-e", "C=4", "--env-file", file.to_str().unwrap(), "-e", "DOCKER_CONFIG"];
    let said = host.shell(&flags, "echo $A,$B,$C; test -n \"$DOCKER_CONFIG\" && echo there");
    assert_eq!(said, "1,from file,4\nthere\n");
}

#[test]
fn s38_s105_entrypoints() {
    let host = Host::new();
    host.0.image("entry", &["ENTRYPOINT [\"echo\", \"entry\"]", "CMD [\"cmd\"]"], |_| {});
    let run = |flags: &[&str], command: &[&str]| {
        let args = [&["run", "--rm", "--network", "none"], flags, &["entry"], command].concat();
        host.uctr(&args)
    };
    assert_eq!(run(&[], &[]).ok().stdout, "entry cmd\n");
    assert_eq!(run(&[], &["mine"]).ok().stdout, "entry mine\n");
    assert_eq!(run(&["--entrypoint", "echo"], &[]).ok().stdout, "\n");
    assert_eq!(run(&["--entrypoint", "echo"], &["x"]).ok().stdout, "x\n");
    run(&["--entrypoint", "nope"], &["x"]).fails(127, &["executable file not found"]);
}

#[test]
fn s39_s40_s41_limits() {
    let host = Host::new();
    let said = host.shell(
        &["--cpus", ".5", "--memory", "100m", "--pids-limit", "20", "--cpu-shares", "512"],
        "cd /sys/fs/cgroup; if [ -d memory ]; then cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us \
         memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares; else \
         cat cpu.max memory.max pids.max; fi",
    );
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[..4], ["50000", "100000", "104857600", "20"], "{said}");
    host.run(&["--cpus", "10000"], &["true"]).fails(125, &["range of CPUs is from 0.01 to"]);
    host.run(&["--memory", "1m"], &["true"]).fails(125, &["Minimum memory limit allowed is 6MB"]);
    assert_eq!(host.ids(), [""; 0]);
}

#[test]
fn s40_out_of_memory() {
    let host = Host::new();
    let said = host.run(&["--name", "fat", "-m", "20m"], &["sh", "-c", "exec tail /dev/zero"]);
    said.fails(137, &[]);
    assert_eq!(host.record("fat")["state"]["oom_killed"], true);
    host.run(&["--name", "thin"], &["true"]).ok();
    assert_eq!(host.record("thin")["state"]["oom_killed"], false);
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
    host.until(|| host.uctr(&["exec", "reaped", "ps"]).stdout.contains("sleep 1000"));
    host.uctr(&["stop", "reaped"]).ok();
    assert_eq!(host.record("reaped")["state"]["exit_code"], 143);
    // Of the image, or of the flag.
    let script = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    host.run(&["-d", "--name", "other", "--stop-signal", "USR1"], &["sh", "-c", script]).ok();
    host.until(|| host.uctr(&["logs", "other"]).stdout.contains("ready"));
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
    host.until(|| exec(&["web", "cat", "/tmp/done"]).stdout == "done\n");
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
    host.until(|| host.status("thrice") == "exited");
    assert_eq!(host.record("thrice")["restart_count"], 2);
    assert_eq!(host.uctr(&["logs", "thrice"]).ok().stdout, "run\nrun\nrun\n");
    host.run(&["-d", "--name", "fine", "--restart", "on-failure"], &["true"]).ok();
    host.until(|| host.status("fine") == "exited");
    assert_eq!(host.record("fine")["restart_count"], 0);
    // It is left alone when somebody stops it, running or waiting.
    host.run(&["-d", "--name", "always", "--restart", "always"], &["sh", "-c", "echo run"]).ok();
    host.until(|| host.record("always")["restart_count"].as_u64().unwrap() >= 3);
    host.uctr(&["stop", "always"]).ok();
    assert_eq!(host.status("always"), "exited");
    host.uctr(&["rm", "always"]).ok();
    host.run(&["--restart", "always", "--rm"], &["true"])
        .fails(125, &["cannot specify both --restart and --rm"]);
    host.run(&["--restart", "never"], &["true"]).fails(125, &["invalid restart policy"]);
}

#[test]
fn update_changes_limits() {
    let host = Host::new();
    host.service("web", &["-m", "100m"]);
    host.uctr(&[
        "update",
        "-m",
        "64m",
        "--cpus",
        "1",
        "--pids-limit",
        "30",
        "--restart",
        "always",
        "web",
    ])
    .ok();
    let read = "cd /sys/fs/cgroup; if [ -d memory ]; then cat memory/memory.limit_in_bytes \
                pids/pids.max; else cat memory.max pids.max; fi";
    assert_eq!(host.uctr(&["exec", "web", "sh", "-c", read]).ok().stdout, "67108864\n30\n");
    let record = host.record("web");
    assert_eq!(record["host_config"]["Memory"], 67_108_864);
    assert_eq!(record["host_config"]["RestartPolicy"]["Name"], "always");
    host.uctr(&["update", "-m", "1m", "web"]).fails(1, &["Minimum memory limit"]);
}

#[test]
fn flags_reach_the_container() {
    let host = Host::new();
    assert_eq!(host.shell(&["-u", "ann"], "id -un; id -G"), "ann\n1000 44\n");
    assert_eq!(host.shell(&["-w", "/a/new/place"], "pwd"), "/a/new/place\n");
    assert_eq!(host.shell(&["--hostname", "box"], "hostname; cat /etc/hostname"), "box\nbox\n");
    assert!(
        host.shell(&["--add-host", "db:10.9.8.7"], "cat /etc/hosts").contains("10.9.8.7\tdb\n")
    );
    let dns =
        host.shell(&["--dns", "10.1.1.1", "--dns-search", "x.example"], "cat /etc/resolv.conf");
    assert_eq!(
        dns.lines().take(2).collect::<Vec<_>>(),
        ["nameserver 10.1.1.1", "search x.example"]
    );
    assert_eq!(host.shell(&["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn"), "100\n200\n");
    assert_eq!(
        host.shell(&["--sysctl", "net.ipv4.ip_forward=1"], "cat /proc/sys/net/ipv4/ip_forward"),
        "1\n"
    );
    assert!(host.shell(&["--shm-size", "8m"], "df -k /dev/shm | tail -1").contains("8192"));
    host.run(&["--rm", "--read-only"], &["touch", "/x"]).fails(1, &["Read-only file system"]);
    host.shell(&["--read-only", "--tmpfs", "/scratch"], "touch /scratch/x");
    host.run(&["--rm", "--cap-drop", "ALL"], &["chown", "1", "/tmp"]).fails(1, &["not permitted"]);
    let caps = host
        .shell(&["--cap-add", "NET_ADMIN", "--cap-drop", "all"], "grep CapEff /proc/self/status");
    assert!(caps.contains("0000000000001000"), "{caps}");
    assert!(
        host.shell(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status")
            .contains('1')
    );
    assert!(
        host.shell(&["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status")
            .contains('0')
    );
    let devices = host.shell(&["--device", "/dev/fuse:/dev/mine:rw"], "ls -l /dev/mine");
    assert!(devices.starts_with('c') && devices.contains("229"), "{devices}");
    assert_eq!(host.shell(&["--group-add", "7"], "id -G"), "0 7\n");
    assert!(
        host.shell(&["--privileged"], "ls /dev | wc -l; mount -t tmpfs none /tmp && echo mounted")
            .contains("mounted")
    );
    assert_eq!(host.shell(&["--oom-score-adj", "300"], "cat /proc/self/oom_score_adj"), "300\n");
}

#[test]
fn modes_share_namespaces() {
    let host = Host::new();
    host.service("web", &[]);
    let here = |kind: &str| {
        std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap().display().to_string()
    };
    let pid = host.record("web")["state"]["pid"].as_i64().unwrap();
    let there = |kind: &str| {
        std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
    };
    let namespace = |flags: &[&str], kind: &str| {
        let path = format!("/proc/self/ns/{kind}");
        let args = [&["run", "--rm"], flags, &["busybox", "readlink", &path]].concat();
        host.uctr(&args).ok().stdout.trim().to_owned()
    };
    assert_eq!(namespace(&["--network", "host"], "net"), here("net"));
    assert_eq!(namespace(&["--network", "container:web"], "net"), there("net"));
    assert_eq!(namespace(&["--network", "none", "--pid", "container:web"], "pid"), there("pid"));
    assert_eq!(namespace(&["--network", "none", "--ipc", "host"], "ipc"), here("ipc"));
    assert_eq!(namespace(&["--network", "none", "--uts", "host"], "uts"), here("uts"));
    assert_ne!(namespace(&["--network", "none"], "net"), here("net"));
    host.uctr(&["run", "--rm", "--network", "container:nope", "busybox", "true"])
        .fails(125, &["No such container: nope"]);
    host.uctr(&["run", "--rm", "--network", "none", "--pid", "nope", "busybox", "true"])
        .fails(125, &["--pid"]);
}

#[test]
fn volumes_come_and_go() {
    let host = Host::new();
    let folder = host.0.dir.path().join("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a"), "from the host\n").unwrap();
    let bind = format!("{}:/mnt:ro", folder.display());
    assert_eq!(
        host.shell(&["-v", &bind], "cat /mnt/a; touch /mnt/b 2>/dev/null || echo ro"),
        "from the host\nro\n"
    );
    host.shell(&["-v", "data:/data"], "echo kept > /data/x");
    assert_eq!(host.shell(&["-v", "data:/data"], "cat /data/x"), "kept\n");
    // Those without a name go with their container.
    let volumes = host.0.dir.path().join("data/volumes");
    let count = || std::fs::read_dir(&volumes).unwrap().count();
    assert_eq!(count(), 1);
    host.run(&["--name", "anon", "-v", "/scratch"], &["touch", "/scratch/x"]).ok();
    assert_eq!(count(), 2);
    assert_eq!(host.shell(&["--volumes-from", "anon"], "ls /scratch"), "x\n");
    assert_eq!(count(), 2, "it is still another container's");
    host.uctr(&["rm", "-v", "anon"]).ok();
    assert_eq!(count(), 1);
}

#[test]
fn cidfile_is_written_once() {
    let host = Host::new();
    let file = host.0.dir.path().join("cid");
    let name = file.to_str().unwrap();
    host.run(&["--cidfile", name], &["true"]).ok();
    assert_eq!(host.ids(), [std::fs::read_to_string(&file).unwrap()]);
    host.run(&["--cidfile", name], &["true"]).fails(125, &["container ID file found"]);
}

#[test]
fn hostile_images_see_nothing_of_the_host() {
    let host = Host::new();
    host.0.image("evil", &["WORKDIR /w", "USER ann"], |archive| {
        // Links that lead out, in place of what is read and mounted on.
        for (path, target) in [("etc/shadow-link", "/etc/shadow"), ("w", "../../../../tmp")] {
            link(archive, path, target);
        }
        add(
            archive,
            tar::EntryType::Regular,
            "etc/group",
            0o644,
            b"bad\n::::\nvideo:x:99999999999:ann\n",
        );
    });
    let said = host.uctr(&["run", "--rm", "--network", "none", "evil", "sh", "-c", "id -u; pwd"]);
    assert_eq!(said.ok().stdout, "1000\n/tmp\n");
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

/// CVE-2019-5736: a container must not be able to write to the program that runs it.
#[test]
fn cve_2019_5736_the_program_is_sealed() {
    let host = Host::new();
    let id = host.service("web", &[]);
    let mut command = host.0.command(["exec", "web", "sh", "-c", "echo up; sleep 1000"]);
    let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut buffer = [0; 3];
    std::io::Read::read_exact(&mut client.stdout.take().unwrap(), &mut buffer).unwrap();
    for pid in [crate::crashes::monitor(&id).unwrap().as_raw() as u32, client.id()] {
        let file = std::fs::File::open(format!("/proc/{pid}/exe")).unwrap();
        let flags = nix::sys::statvfs::fstatvfs(&file).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "process {pid}");
    }
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn s97_s99_links() {
    let host = Host::new();
    let run = |args: &[&str]| host.uctr(&[&["run"], args].concat());
    run(&["-d", "--name", "web3", "--expose", "80", "-e", "KEY=v", "busybox", "sleep", "1000"])
        .ok();
    let script = "echo $APACHE_PORT_80_TCP_PORT $APACHE_PORT_80_TCP_PROTO $APACHE_ENV_KEY; \
                  ping -c 1 -W 5 apache > /dev/null && echo reached";
    let said = run(&["--rm", "--link", "web3:apache", "busybox", "sh", "-c", script]);
    assert_eq!(said.ok().stdout, "80 tcp v\nreached\n");
    run(&["--rm", "--link", "nope", "busybox", "true"])
        .fails(125, &["could not get container for nope"]);
    host.uctr(&["stop", "-t", "0", "web3"]).ok();
    run(&["--rm", "--link", "web3", "busybox", "true"])
        .fails(125, &["Cannot link to a non running container: /web3 AS /"]);
    host.uctr(&["rm", "web3"]).ok();
    assert_eq!(host.ids(), [""; 0]);
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
fn cgroup_parent_is_used() {
    let host = Host::new();
    let parent = format!("/ultari-test-{}", std::process::id());
    let said = host.run(
        &["--rm", "--cgroupns", "host", "--cgroup-parent", &parent],
        &["cat", "/proc/self/cgroup"],
    );
    assert!(said.ok().stdout.contains(&format!("{parent}/")));
}
