//! What is told of containers, and tidying up (S36, S53–S78).

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Host, output};

#[test]
fn s56_ps_lists_with_docker_s_columns() {
    let host = Host::new();
    assert_eq!(
        host.says(&["ps"]),
        "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    );
    let id = host.start("web", &[], "true");
    host.ended("gone", &[], 3);
    host.says(&["create", "--network", "none", "--name", "new", "busybox"]);
    let list = host.says(&["ps"]);
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[1].starts_with(&format!("{}   busybox   \"sh -c true\\n", &id[..12])), "{list}");
    assert!(lines[1].contains(" Up "), "{list}");
    // Cells are under their titles.
    let column = lines[0].find("NAMES").unwrap();
    let cells: String = lines[1].chars().skip(column).collect();
    assert_eq!(cells, "web");
    let all = host.says(&["container", "ls", "-a"]);
    for words in ["Exited (3) ", " Created ", " Up "] {
        assert!(all.contains(words), "{all}");
    }
    assert_eq!(host.says(&["ps", "-q"]), format!("{}\n", &id[..12]));
    assert_eq!(host.says(&["ps", "-q", "--no-trunc"]), format!("{id}\n"));
    assert_eq!(host.says(&["ps", "-aq"]).lines().count(), 3);
    assert!(host.says(&["ps", "--no-trunc"]).contains("exec sleep 1000\""));
    assert_eq!(host.names(&["-l"]), ["new"]);
    assert_eq!(host.names(&["-n", "2"]), ["gone", "new"]);
    host.says(&["pause", "web"]);
    assert!(host.says(&["ps"]).contains("(Paused)"));
    host.says(&["unpause", "web"]);
    assert!(!host.says(&["ps"]).contains("(Paused)"));
}

#[test]
fn s59_ps_takes_templates() {
    let host = Host::new();
    let id = host.start("web", &["--label", "a.role=front"], "true");
    let format = |format: &str| host.says(&["ps", "--format", format]);
    assert_eq!(format("table{{.Names}}\\t{{.Image}}"), "NAMES     IMAGE\nweb       busybox\n");
    assert_eq!(
        format("{{.ID}}: {{.Labels}} {{.Label \"a.role\"}}"),
        format!("{}: a.role=front front\n", &id[..12])
    );
    assert_eq!(format("{{if eq .State \"running\"}}{{upper .Names}}{{end}}"), "WEB\n");
    let json: Value = serde_json::from_str(&format("json")).unwrap();
    assert_eq!(json["Names"], "web");
    assert_eq!(json["State"], "running");
    host.uctr(&["ps", "--format", "{{.Foo}}"]).fails(1, &["Foo"]);
    host.uctr(&["ps", "--format", "{{.Names"]).fails(1, &["template parsing error"]);
    let size = host.says(&["ps", "-s", "--format", "{{.Size}}"]);
    assert!(size.contains("(virtual ") && size.contains("MB)"), "{size}");
}

#[test]
fn s60_ps_takes_filters() {
    let host = Host::new();
    let id = host.start("web", &["--label", "role=front", "-v", "data:/data"], "true");
    host.ended("job1", &["--label", "role=back"], 0);
    host.ended("job2", &[], 7);
    let filtered = |filter: &str| host.names(&["-a", "-f", filter]);
    assert_eq!(filtered("name=job"), ["job1", "job2"]);
    assert_eq!(filtered("name=^/?web$"), ["web"]);
    assert_eq!(filtered(&format!("id={}", &id[..6])), ["web"]);
    assert_eq!(filtered("status=exited"), ["job1", "job2"]);
    assert_eq!(filtered("label=role"), ["job1", "web"]);
    assert_eq!(filtered("label=role=back"), ["job1"]);
    assert_eq!(filtered("exited=7"), ["job2"]);
    assert_eq!(filtered("ancestor=busybox"), ["job1", "job2", "web"]);
    assert_eq!(filtered("ancestor=other"), [""; 0]);
    assert_eq!(filtered("volume=data"), ["web"]);
    assert_eq!(filtered("volume=/data"), ["web"]);
    assert_eq!(filtered("network=none"), ["job1", "job2", "web"]);
    assert_eq!(filtered("before=job2"), ["job1", "web"]);
    assert_eq!(filtered("since=job1"), ["job2"]);
    // A state is looked for among all; several of a name are alternatives, several names conditions.
    assert_eq!(host.names(&["-f", "status=exited"]), ["job1", "job2"]);
    assert_eq!(host.names(&["-a", "-f", "name=web", "-f", "name=job1"]), ["job1", "web"]);
    assert_eq!(host.names(&["-a", "-f", "name=job", "-f", "label=role=back"]), ["job1"]);
    host.uctr(&["ps", "-f", "foo=bar"]).fails(1, &["invalid filter 'foo'"]);
    host.uctr(&["ps", "-f", "status=asleep"]).fails(1, &["invalid filter 'status=asleep'"]);
    host.uctr(&["ps", "-f", "name=("]).fails(1, &["invalid filter"]);
}

#[test]
fn s62_inspect_shows_containers() {
    let host = Host::new();
    let flags =
        ["-e", "A=b", "-v", "data:/data:ro", "--memory", "64m", "--label", "x=y", "-w", "/tmp"];
    let id = host.start("web", &flags, "true");
    let web = host.inspect("web");
    assert_eq!(web["Id"], id.as_str());
    assert_eq!(web["Name"], "/web");
    assert_eq!(web["Path"], "sh");
    assert_eq!(web["State"]["Status"], "running");
    assert_eq!(web["State"]["Running"], true);
    let pid = web["State"]["Pid"].as_i64().unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n");
    assert!(web["Image"].as_str().unwrap().starts_with("sha256:"));
    assert!(web["Config"]["Env"].as_array().unwrap().contains(&"A=b".into()));
    assert_eq!(web["Config"]["Labels"]["x"], "y");
    assert_eq!(web["Config"]["WorkingDir"], "/tmp");
    assert_eq!(web["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(web["HostConfig"]["NetworkMode"], "none");
    assert_eq!(web["Mounts"][0]["Type"], "volume");
    assert_eq!(web["Mounts"][0]["Name"], "data");
    assert_eq!(web["Mounts"][0]["Destination"], "/data");
    assert_eq!(web["Mounts"][0]["RW"], false);
    assert!(web["NetworkSettings"]["Networks"].get("none").is_some());
    for path in ["ResolvConfPath", "HostnamePath", "HostsPath"] {
        assert!(fs::exists(web[path].as_str().unwrap()).unwrap(), "{path}");
    }
    assert_eq!(
        host.says(&["inspect", "-f", "{{.State.Status}} {{.HostConfig.Memory}}", "web"]),
        "running 67108864\n"
    );
    assert_eq!(host.says(&["inspect", "-f", "{{json .Config.Cmd}}", "web"]).lines().count(), 1);
    assert!(host.inspect("web").get("SizeRw").is_none());
    let sized: Value = serde_json::from_str(&host.says(&["inspect", "-s", "web"])).unwrap();
    assert!(sized[0]["SizeRootFs"].as_u64().unwrap() > 500_000);
    host.says(&["kill", "web"]);
    let ended = host.inspect(&id[..12]);
    assert_eq!(ended["State"]["Status"], "exited");
    assert_eq!(ended["State"]["ExitCode"], 137);
    assert_eq!(ended["State"]["Pid"], 0);
    assert_ne!(ended["State"]["FinishedAt"], "0001-01-01T00:00:00Z");
}

#[test]
fn s62_inspect_finds_objects_of_all_kinds() {
    let host = Host::new();
    host.says(&["create", "--network", "none", "--name", "web", "-v", "data:/data", "busybox"]);
    let image = host.inspect("busybox");
    assert_eq!(image["RepoTags"][0], "busybox:latest");
    assert_eq!(host.inspect("data")["Mountpoint"], host.at("data/volumes/data/_data"));
    let id = image["Id"].as_str().unwrap();
    assert_eq!(host.inspect(&id["sha256:".len()..][..8])["Id"], id);
    let both = host.says(&["inspect", "-f", "{{.Id}}", "web", "busybox"]);
    assert_eq!(both.lines().count(), 2);
    let missing = host.uctr(&["inspect", "nope"]).fails(1, &["Error: No such object: nope"]);
    assert_eq!(missing.stdout, "[]\n");
    let some = host.uctr(&["inspect", "web", "nope"]).fails(1, &["No such object: nope"]);
    assert!(some.stdout.contains("\"Name\": \"/web\""));
    host.uctr(&["inspect", "--type", "image", "web"]).fails(1, &["No such image: web"]);
    host.uctr(&["inspect", "--type", "container", "busybox"])
        .fails(1, &["No such container: busybox"]);
    host.uctr(&["inspect", "--type", "thing", "web"]).fails(1, &["not a valid value for --type"]);
    host.uctr(&["container", "inspect", "busybox"]).fails(1, &["No such container: busybox"]);
    host.uctr(&["inspect", "Not/A valid:name"]).fails(1, &["No such object"]);
    host.uctr(&["inspect", "-f", "{{.Nope}}", "web"]).fails(1, &["Nope"]);
}

#[test]
fn s62_s63_what_a_network_has_is_shown() {
    let host = Host::new();
    let server = "echo hello >/index.html; httpd -f -p 80 -h / &";
    let args =
        ["run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "--expose", "90", "busybox"];
    host.says(&[&args[..], &["sh", "-c", &format!("{server} exec sleep 1000")]].concat());
    let web = host.inspect("web");
    let network = &web["NetworkSettings"];
    let address = network["IPAddress"].as_str().unwrap();
    assert_eq!(network["Networks"]["bridge"]["IPAddress"], address);
    assert_eq!(network["Ports"]["80/tcp"][0]["HostPort"], "8080");
    assert_eq!(network["Ports"]["90/tcp"], Value::Null);
    let ports = host.says(&["ps", "--format", "{{.Ports}} {{.Networks}}"]);
    assert_eq!(ports, "127.0.0.1:8080->80/tcp, 90/tcp bridge\n");
    for (filter, found) in
        [("publish=80", 1), ("publish=81", 0), ("expose=90/tcp", 1), ("network=bridge", 1)]
    {
        assert_eq!(host.names(&["-f", filter]).len(), found, "{filter}");
    }
    let bridge = host.inspect("bridge");
    assert_eq!(bridge["Driver"], "bridge");
    assert_eq!(bridge["Containers"][web["Id"].as_str().unwrap()]["Name"], "web");
    let fetch = "wget -q -O - http://localhost:8080/ || sleep 0.1";
    let answer = output(std::process::Command::new("busybox").args([
        "sh",
        "-c",
        &format!("for i in 1 2 3 4 5 6 7 8 9; do {fetch} && exit; done"),
    ]));
    assert_eq!(answer.stdout, "hello\n");
    let traffic = host.says(&["stats", "--no-stream", "--format", "{{.NetIO}}"]);
    assert!(!traffic.contains("0B / 0B"), "{traffic}");
    host.says(&["network", "create", "unused"]);
    host.says(&["kill", "web"]);
    assert_eq!(host.inspect("web")["NetworkSettings"]["IPAddress"], "");
    let pruned = host.says(&["system", "prune", "-f"]);
    assert!(pruned.contains("Deleted Networks:\nunused\n"), "{pruned}");
    host.uctr(&["inspect", "unused"]).fails(1, &["No such object: unused"]);
}

#[test]
fn s64_top_shows_processes_with_the_host_s_pids() {
    let host = Host::new();
    host.start("web", &[], "sleep 2000 &");
    let top = host.says(&["top", "web"]);
    let lines: Vec<&str> = top.lines().collect();
    assert!(lines[0].starts_with("UID                 PID"), "{top}");
    assert_eq!(lines.len(), 3, "{top}");
    assert!(top.contains("sleep 1000") && top.contains("sleep 2000"), "{top}");
    let pid = host.inspect("web")["State"]["Pid"].to_string();
    let pids = host.says(&["top", "web", "-eo", "pid,comm"]);
    assert!(pids.lines().any(|line| line.split_whitespace().next() == Some(&pid)), "{pids}");
    host.uctr(&["top", "web", "-eo", "comm"]).fails(1, &["Couldn't find PID field in ps output"]);
    host.ended("gone", &[], 0);
    host.uctr(&["top", "gone"]).fails(1, &["is not running"]);
    host.uctr(&["top", "nope"]).fails(1, &["No such container: nope"]);
}

#[test]
fn s63_stats_tell_what_is_used() {
    let host = Host::new();
    host.start("web", &["--memory", "64m"], "while :; do :; done &");
    host.ended("gone", &[], 0);
    let stats = host.says(&["stats", "--no-stream"]);
    assert!(stats.starts_with("CONTAINER ID   NAME      CPU %"), "{stats}");
    assert_eq!(stats.lines().count(), 2);
    let format = "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.PIDs}}";
    let line = host.says(&["stats", "--no-stream", "--format", format, "web"]);
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], "web");
    assert!(words[1].strip_suffix('%').unwrap().parse::<f64>().unwrap() > 1.0, "{line}");
    assert_eq!(words[4], "64MiB");
    assert_eq!(words[5], "2");
    assert_eq!(host.says(&["stats", "-a", "--no-stream"]).lines().count(), 3);
    host.uctr(&["stats", "--no-stream", "nope"]).fails(1, &["No such container: nope"]);
}

#[test]
fn s65_diff_tells_what_changed() {
    let host = Host::new();
    host.0.image("base", &[], |archive| {
        for file in ["srv/kept", "srv/changed", "srv/gone", "old/a", "old/b"] {
            crate::support::add(archive, tar::EntryType::Regular, file, 0o644, b"x");
        }
    });
    let script = "echo y >/srv/changed; rm /srv/gone; mkdir /srv/new; touch /srv/new/file; \
                  rm -r /old; mkdir /old; touch /old/a /old/c; rm /bin/wget";
    host.says(&["run", "--network", "none", "--name", "web", "base", "sh", "-c", script]);
    assert_eq!(
        host.says(&["diff", "web"]),
        "C /bin\nD /bin/wget\nC /old\nC /old/a\nD /old/b\nA /old/c\nC /srv\nC /srv/changed\n\
         D /srv/gone\nA /srv/new\nA /srv/new/file\n"
    );
    host.says(&["create", "--network", "none", "--name", "new", "base", "sh"]);
    assert_eq!(host.says(&["diff", "new"]), "");
}

#[test]
fn s36_rename() {
    let host = Host::new();
    host.ended("one", &[], 0);
    let two = host.ended("two", &[], 0);
    assert_eq!(host.says(&["rename", "one", "three"]), "");
    assert_eq!(host.names(&["-a"]), ["three", "two"]);
    host.uctr(&["rename", "three", "two"])
        .fails(1, &["Conflict. The container name \"/two\"", &two]);
    host.uctr(&["rename", "three", "three"]).fails(1, &["same name"]);
    host.uctr(&["rename", "three", "a b"]).fails(1, &["Invalid container name"]);
    host.uctr(&["rename", "one", "four"]).fails(1, &["No such container: one"]);
}

#[test]
fn s53_container_prune_asks_and_takes_what_does_not_run() {
    let host = Host::new();
    host.start("web", &[], "true");
    let gone = host.ended("gone", &["--label", "a=b"], 0);
    host.ended("other", &[], 0);
    let asked = host.says(&["container", "prune"]);
    assert!(asked.contains("WARNING! This will remove all stopped containers."), "{asked}");
    assert_eq!(host.names(&["-a"]).len(), 3);
    let pruned = host.says(&["container", "prune", "-f", "--filter", "label=a"]);
    assert!(pruned.contains(&format!("Deleted Containers:\n{gone}\n")), "{pruned}");
    assert!(pruned.contains("Total reclaimed space: 0B"), "{pruned}");
    let mut yes = host.0.command(["container", "prune"]);
    let mut child = yes.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"y\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(host.names(&["-a"]), ["web"]);
}

#[test]
fn s54_system_prune_and_df() {
    let host = Host::new();
    host.start("web", &["-v", "data:/data", "-v", "/anonymous"], "head -c 5000 /dev/zero >/file");
    host.ended("gone", &["-v", "/anonymous"], 0);
    host.0.image("unused", &["LABEL x=y"], |_| {});
    let lines = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let df = host.says(&["system", "df"]);
    let cells = lines(&df);
    assert_eq!(cells[0], ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    assert_eq!(cells[1][..3], ["Images", "2", "1"]);
    assert_eq!(cells[2], ["Containers", "2", "1", "5kB", "0B", "(0%)"]);
    assert_eq!(cells[3][..4], ["Local", "Volumes", "3", "3"]);
    let verbose = host.says(&["system", "df", "-v"]);
    for words in ["Images space usage:", "Containers space usage:", "Local Volumes space usage:"] {
        assert!(verbose.contains(words), "{verbose}");
    }
    let asked = host.says(&["system", "prune"]);
    assert!(asked.contains("- all stopped containers"), "{asked}");
    assert!(asked.contains("- all dangling images"), "{asked}");
    let pruned = host.says(&["system", "prune", "-af", "--volumes"]);
    for words in [
        "Deleted Containers:",
        "Deleted Volumes:",
        "untagged: unused:latest",
        "Total reclaimed space:",
    ] {
        assert!(pruned.contains(words), "{pruned}");
    }
    assert_eq!(host.names(&["-a"]), ["web"]);
    assert_eq!(host.says(&["images", "--format", "{{.Repository}}"]), "busybox\n");
    // One is used, the other has a name.
    assert_eq!(lines(&host.says(&["system", "df"]))[3][..3], ["Local", "Volumes", "2"]);
}

#[test]
fn s77_version_and_info() {
    let host = Host::new();
    host.ended("gone", &[], 0);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(host.says(&["-v"]), format!("uctr {version}\n"));
    assert!(host.says(&["version"]).contains(&format!("Version:    {version}\n")));
    assert_eq!(host.says(&["version", "--format", "{{.Server.Version}}"]), format!("{version}\n"));
    let info = host.says(&["info"]);
    assert!(
        info.contains("Containers: 1\n Running: 0\n Paused: 0\n Stopped: 1\nImages: 1\n"),
        "{info}"
    );
    assert!(info.contains("Storage Driver: overlay2\n"), "{info}");
    let json: Value = serde_json::from_str(&host.says(&["system", "info", "-f", "json"])).unwrap();
    assert_eq!(json["ContainersStopped"], 1);
    assert_eq!(json["DockerRootDir"], host.at("data"));
}

#[test]
fn s78_grouped_commands_are_there() {
    let host = Host::new();
    for group in ["container", "image", "volume", "network", "system"] {
        let help = host.says(&[group, "--help"]);
        assert!(help.contains("Commands:"), "{help}");
    }
    let help = output(&mut host.0.command(["container", "--help"])).ok().stdout;
    for command in ["ls", "inspect", "top", "stats", "cp", "diff", "commit", "rename", "prune"] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command}: {help}"
        );
    }
}
