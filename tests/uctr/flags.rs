//! What a container is given: the defaults, what its image says, and what flags change (S33–S41,
//! S97–S99, S105).

use serde_json::json;

use crate::support::{Host, add, link};

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
fn limits_by_their_other_names() {
    let host = Host::new();
    let flags = ["--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-cpus", "0"];
    let more = ["--cpuset-mems", "0", "-m", "64m", "--memory-reservation", "50m"];
    let read = "cd /sys/fs/cgroup; if [ -d memory ]; then cat cpu/cpu.cfs_quota_us \
                cpu/cpu.cfs_period_us cpuset/cpuset.cpus cpuset/cpuset.mems \
                memory/memory.soft_limit_in_bytes; else cat cpu.max cpuset.cpus cpuset.mems \
                memory.low; fi";
    let said = host.shell(&[&flags[..], &more[..]].concat(), read);
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words, ["25000", "50000", "0", "0", "52428800"]);
    host.run(&["-m", "64m", "--memory-swap", "32m"], &["true"])
        .fails(125, &["Minimum memoryswap limit should be larger than memory limit"]);
    host.run(&["-m", "64m", "--memory-reservation", "65m"], &["true"])
        .fails(125, &["Minimum memory limit can not be less than memory reservation limit"]);
    host.service("web", &["--cpus", "1"]);
    host.says(&["update", "--cpuset-cpus", "0", "--memory-reservation", "50m", "web"]);
    let said = host.says(&["exec", "web", "sh", "-c", read]);
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[..3], ["100000", "100000", "0"]);
    assert_eq!(words.last(), Some(&"52428800"));
}

#[test]
fn names_labels_and_what_stops_it() {
    let host = Host::new();
    let domain = host.shell(&["--domainname", "x.example"], "cat /proc/sys/kernel/domainname");
    assert_eq!(domain, "x.example\n");
    for option in ["--dns-option", "--dns-opt"] {
        let said = host.shell(&[option, "ndots:3"], "cat /etc/resolv.conf");
        assert!(said.contains("options ndots:3\n"), "{said}");
    }
    let file = host.path("labels");
    std::fs::write(&file, "# a comment\none=1\n\ntwo=2 words\nthree\n").unwrap();
    let flags = ["--label-file", file.to_str().unwrap(), "-l", "two=mine", "--stop-timeout", "7"];
    host.service("web", &[&flags[..], &["--stop-signal", "USR1"]].concat());
    let config = &host.inspect("web")["Config"];
    let labels = &config["Labels"];
    assert_eq!((&labels["one"], &labels["two"]), (&json!("1"), &json!("mine")));
    assert_eq!(labels["three"], "");
    assert_eq!((&config["StopTimeout"], &config["StopSignal"]), (&json!(7), &json!("USR1")));
    host.run(&["--label-file", "/nowhere/file"], &["true"]).fails(125, &["/nowhere/file"]);
    // USR1 is nothing that its script knows.
    host.says(&["stop", "--signal", "TERM", "web"]);
    assert_eq!(host.inspect("web")["State"]["ExitCode"], 0);
}

#[test]
fn a_container_without_a_log() {
    let host = Host::new();
    let flags = ["--name", "quiet", "--log-driver", "none"];
    assert_eq!(host.run(&flags, &["echo", "hello"]).ok().stdout, "hello\n");
    host.uctr(&["logs", "quiet"]).fails(1, &["configured logging driver does not support reading"]);
    assert!(!host.folder(&host.ids()[0]).join("log.json").exists());
    host.run(&["--log-driver", "syslog"], &["true"]).fails(125, &["syslog"]);
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
fn cgroup_parent_is_used() {
    let host = Host::new();
    let parent = format!("/ultari-test-{}", std::process::id());
    let said = host.run(
        &["--rm", "--cgroupns", "host", "--cgroup-parent", &parent],
        &["cat", "/proc/self/cgroup"],
    );
    assert!(said.ok().stdout.contains(&format!("{parent}/")));
}
