//! The root filesystem: mounts and their options, binds, devices, masks, propagation.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::support::{HIERARCHIES, Json, Sandbox, bind, hierarchy, set_namespace};

/// Whether a mount of a report has all of these options.
#[track_caller]
fn has_options(report: &Value, destination: &str, wanted: &[&str]) {
    let mount = report.mount(destination).unwrap_or_else(|| panic!("no mount at {destination}"));
    let mut options = mount.texts("/options");
    options.extend(mount.texts("/super_options"));
    for option in wanted {
        assert!(options.contains(option), "no {option} on {destination}: {options:?}");
    }
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

#[test]
fn the_default_mounts() {
    let mut sandbox = Sandbox::new("mounts");
    let report = sandbox.probe();
    for (destination, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ] {
        assert_eq!(report.mount(destination).expect(destination)["type"], kind);
    }
    has_options(&report, "/dev", &["nosuid", "mode=755", "size=65536k"]);
    has_options(&report, "/dev/pts", &["nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"]);
    has_options(&report, "/dev/shm", &["nosuid", "noexec", "nodev", "size=65536k"]);
    has_options(&report, "/sys", &["nosuid", "noexec", "nodev", "ro"]);
    let text = report["mounts"].to_string();
    let host = sandbox.dir.display().to_string();
    assert!(!text.contains(&format!("destination\":\"{host}")), "the host's mounts are gone");
}

#[test]
fn mounts_are_made_in_their_order() {
    let mut sandbox = Sandbox::with_script("order", "ls /mnt; ls /mnt/inner");
    let source = sandbox.file("source/from-bind", "").parent().unwrap().to_owned();
    fs::create_dir(source.join("inner")).unwrap();
    sandbox.mount(tmpfs("/mnt", &[])).mount(bind(&source, "/mnt", &["bind"]));
    sandbox.mount(tmpfs("/mnt/inner", &[]));
    sandbox.run().ok().prints("from-bind\ninner");
}

#[test]
fn mount_points_are_made_where_they_are_missing() {
    let mut sandbox =
        Sandbox::with_script("points", "cat /new/deep/file && stat -c %F /new/folder");
    let file = sandbox.file("a-file", "content\n");
    sandbox.mount(bind(file, "/new/deep/file", &["bind"])).mount(tmpfs("/new/folder", &[]));
    sandbox.run().ok().prints("content\ndirectory");
}

#[test]
fn bind_mount_of_a_folder_and_a_file_both_ways() {
    let mut sandbox =
        Sandbox::with_script("bind", "cat /data/in; echo out >/data/out; echo more >>/file");
    let folder = sandbox.file("data/in", "in\n").parent().unwrap().to_owned();
    let file = sandbox.file("file", "first\n");
    sandbox.mount(bind(&folder, "/data", &["bind"])).mount(bind(&file, "/file", &["bind", "rw"]));
    sandbox.run().ok().prints("in");
    assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), "out\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "first\nmore\n");
}

#[test]
fn bind_mount_source_may_be_relative_to_the_bundle() {
    let mut sandbox = Sandbox::with_script("relbind", "cat /data/in");
    fs::create_dir(sandbox.bundle().join("rootfs/src")).unwrap();
    fs::write(sandbox.rootfs().join("src/in"), "here\n").unwrap();
    sandbox.mount(bind("rootfs/src", "/data", &["bind"]));
    sandbox.run().ok().prints("here");
}

#[test]
fn read_only_bind_mounts() {
    let mut sandbox = Sandbox::new("robind");
    let folder = sandbox.file("data/in", "in\n").parent().unwrap().to_owned();
    for (destination, options) in [
        ("/a", &["bind", "ro"][..]),
        ("/b", &["rbind", "ro"]),
        ("/c", &["bind", "ro", "nosuid", "nodev", "noexec"]),
        ("/d", &["rbind", "rprivate", "ro"]),
    ] {
        sandbox.mount(bind(&folder, destination, options));
    }
    let actions = ["/a", "/b", "/c", "/d"].map(|folder| format!("open c {folder}/new"));
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    assert_eq!(sandbox.attempt(&actions), ["EROFS"; 4]);
    let report = sandbox.probe();
    has_options(&report, "/c", &["ro", "nosuid", "nodev", "noexec"]);
    assert!(!folder.join("new").exists());
}

#[test]
fn bind_mounts_take_submounts_along_only_when_recursive() {
    let mut sandbox = Sandbox::new("rbind");
    let folder = sandbox.file("data/in", "").parent().unwrap().to_owned();
    fs::create_dir(folder.join("sub")).unwrap();
    sandbox.mount(bind(&folder, "/plain", &["bind"]));
    sandbox.mount(bind(&folder, "/whole", &["rbind"]));
    sandbox.mount(bind(&folder, "/ro", &["rbind", "ro"]));
    sandbox.mount(bind(&folder, "/rro", &["rbind", "rro"]));
    sandbox.args(&[
        "/guest",
        "do",
        "count /plain/sub",
        "count /whole/sub",
        "open c /ro/sub/x",
        "open c /rro/sub/x",
    ]);
    // The submount is made in a mount namespace of the runtime's own, not on the host.
    let script = format!(
        "exec unshare -m --propagation private sh -c \
         'mount -t tmpfs t {0}/sub && touch {0}/sub/there && exec \"$@\"' sh \"$@\"",
        folder.display()
    );
    let output = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output().ok();
    assert_eq!(output.json(), json!(["ok 0", "ok 1", "ok", "EROFS"]));
}

#[test]
fn mounts_that_an_engine_made_in_the_rootfs_come_along() {
    let mut sandbox = Sandbox::new("premounted");
    sandbox.args(&["/guest", "do", "count /mnt"]);
    let script = format!(
        "exec unshare -m --propagation private sh -c \
         'mount -t tmpfs t {0}/mnt && touch {0}/mnt/there && exec \"$@\"' sh \"$@\"",
        sandbox.rootfs().display()
    );
    let output = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output().ok();
    assert_eq!(output.json(), json!(["ok 1"]));
}

#[test]
fn a_bind_mount_shows_what_is_mounted_on_the_source() {
    let mut sandbox = Sandbox::new("locked");
    let folder = sandbox.file("data/in", "").parent().unwrap().to_owned();
    sandbox.mount(bind(&folder, "/data", &["bind"]));
    sandbox.args(&["/guest", "report"]);
    let script = format!(
        "exec unshare -m --propagation private sh -c \
         'mount -t tmpfs -o nosuid,noexec,nodev t {0} && exec \"$@\"' sh \"$@\"",
        folder.display()
    );
    let report = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output().ok().json();
    assert_eq!(report.mount("/data").unwrap()["type"], "tmpfs");
}

#[test]
fn mount_flags() {
    let mut sandbox = Sandbox::new("flags");
    let all: &[(&str, &[&str], &[&str])] = &[
        ("/m/a", &["ro"], &["ro"]),
        ("/m/b", &["nosuid", "nodev", "noexec"], &["nosuid", "nodev", "noexec"]),
        ("/m/c", &["noatime"], &["noatime"]),
        ("/m/d", &["nodiratime", "relatime"], &["nodiratime", "relatime"]),
        ("/m/e", &["sync", "dirsync"], &["sync", "dirsync"]),
        ("/m/f", &["defaults", "rw", "suid", "exec", "dev"], &["rw"]),
        (
            "/m/g",
            &["size=1m", "mode=700", "nr_inodes=100"],
            &["size=1024k", "mode=700", "nr_inodes=100"],
        ),
        ("/m/h", &["ro", "rw"], &["rw"]),
        ("/m/i", &["nosymfollow"], &["nosymfollow"]),
        (
            "/m/j",
            &["lazytime", "silent", "async", "atime", "diratime", "loud", "nolazytime"],
            &["rw"],
        ),
        ("/m/k", &["strictatime"], &["rw"]),
        ("/m/l", &["nostrictatime", "norelatime", "noiversion", "nomand"], &["rw"]),
    ];
    for (destination, options, _) in all {
        sandbox.mount(tmpfs(destination, options));
    }
    let report = sandbox.probe();
    for (destination, _, wanted) in all {
        has_options(&report, destination, wanted);
    }
    let strict = report.mount("/m/k").unwrap().texts("/options");
    assert!(!strict.contains(&"relatime") && !strict.contains(&"noatime"), "{strict:?}");
}

#[test]
fn noexec_and_nodev_hold() {
    let mut sandbox = Sandbox::new("hold");
    sandbox.mount(json!({
        "destination": "/noexec", "type": "tmpfs", "source": "t", "options": ["noexec", "tmpcopyup"]
    }));
    sandbox.mount(tmpfs("/nodev", &["nodev"]));
    fs::create_dir(sandbox.rootfs().join("noexec")).unwrap();
    fs::copy(sandbox.rootfs().join("guest"), sandbox.rootfs().join("noexec/guest")).unwrap();
    let outcomes =
        sandbox.attempt(&["exec /noexec/guest", "mknod /nodev/null c 1 3", "open r /nodev/null"]);
    assert_eq!(outcomes, ["EACCES", "ok", "EACCES"]);
}

#[test]
fn tmpcopyup_keeps_what_was_there() {
    let mut sandbox = Sandbox::with_script(
        "copyup",
        "cat /etc/keep/a; readlink /etc/keep/l; stat -c %a /etc/keep/a; rm /etc/keep/a",
    );
    let keep = sandbox.rootfs().join("etc/keep");
    fs::create_dir(&keep).unwrap();
    fs::write(keep.join("a"), "kept\n").unwrap();
    fs::set_permissions(keep.join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("/host/target", keep.join("l")).unwrap();
    sandbox.mount(tmpfs("/etc/keep", &["tmpcopyup"]));
    sandbox.run().ok().prints("kept\n/host/target\n640");
    assert!(keep.join("a").exists(), "the container only saw a copy");
}

#[test]
fn default_devices_and_symlinks() {
    let mut sandbox = Sandbox::new("devices");
    let outcomes = sandbox.attempt(&[
        "stat /dev/null",
        "stat /dev/zero",
        "stat /dev/full",
        "stat /dev/random",
        "stat /dev/urandom",
        "stat /dev/tty",
        "link /dev/fd",
        "link /dev/stdin",
        "link /dev/stdout",
        "link /dev/stderr",
        "link /dev/ptmx",
        "open rw /dev/null",
        "open r /dev/urandom",
        "open rw /dev/ptmx",
        "stat /dev/console",
    ]);
    let device = |number: &str| format!("ok c {number} mode=666 uid=0 gid=0");
    assert_eq!(outcomes[..6], ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"].map(device));
    let links =
        ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"];
    assert_eq!(
        outcomes[6..10],
        links[..4].iter().map(|link| format!("ok {link}")).collect::<Vec<_>>()
    );
    assert!(outcomes[10] == "ok pts/ptmx" || outcomes[10] == "ok /dev/pts/ptmx", "{outcomes:?}");
    assert_eq!(outcomes[11..14], ["ok", "ok", "ok"]);
    assert_eq!(outcomes[14], "ENOENT", "there is a console only with a terminal");
}

#[test]
fn devices_of_the_config() {
    let mut sandbox = Sandbox::new("extra");
    sandbox.config["linux"]["devices"] = json!([
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/deep/block", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/opt/outside", "type": "u", "major": 1, "minor": 3}
    ]);
    let outcomes = sandbox.attempt(&[
        "stat /dev/mine",
        "stat /dev/deep/block",
        "stat /dev/pipe",
        "stat /opt/outside",
    ]);
    assert_eq!(outcomes[0], "ok c 1:5 mode=640 uid=7 gid=8");
    assert_eq!(outcomes[1], "ok b 7:0 mode=600 uid=0 gid=0");
    assert!(outcomes[2].starts_with("ok p 0:0 mode=622"), "{outcomes:?}");
    assert!(outcomes[3].starts_with("ok c 1:3"), "{outcomes:?}");
}

#[test]
fn read_only_root() {
    let mut sandbox = Sandbox::new("readonly");
    sandbox.config["root"]["readonly"] = json!(true);
    sandbox.mount(tmpfs("/tmp", &[]));
    let outcomes = sandbox.attempt(&[
        "open c /new",
        "mkdir /etc/new",
        "open w /etc/passwd",
        "open c /tmp/new",
        "open c /dev/new",
    ]);
    assert_eq!(outcomes, ["EROFS", "EROFS", "EROFS", "ok", "ok"]);
}

#[test]
fn writable_root() {
    let mut sandbox = Sandbox::new("writable");
    assert_eq!(sandbox.attempt(&["open c /new"]), ["ok"]);
    assert!(sandbox.rootfs().join("new").exists());
}

#[test]
fn masked_paths_show_nothing() {
    let mut sandbox = Sandbox::new("masked");
    fs::write(sandbox.rootfs().join("etc/secret"), "secret").unwrap();
    sandbox.config["linux"]["maskedPaths"] =
        json!(["/proc/kcore", "/proc/keys", "/sys/firmware", "/etc/secret", "/root", "/not/there"]);
    fs::write(sandbox.rootfs().join("root/file"), "secret").unwrap();
    let outcomes = sandbox.attempt(&[
        "read /proc/keys",
        "read /etc/secret",
        "count /root",
        "count /sys/firmware",
        "open c /root/new",
        "stat /not",
    ]);
    assert_eq!(outcomes[..4], ["ok ", "ok ", "ok 0", "ok 0"]);
    assert!(["EROFS", "EACCES"].contains(&outcomes[4].as_str()), "{outcomes:?}");
    assert_eq!(outcomes[5], "ENOENT");
}

/// While its cgroups are made, a container hides what has nothing to do with the last mount.
#[test]
fn what_is_above_or_below_the_last_mount_is_masked_after_it() {
    for masked in ["/sys/fs", "/sys/fs/cgroup"] {
        let mut sandbox = Sandbox::new("overmount");
        let destination = "/sys/fs/cgroup";
        let cgroups = json!({"destination": destination, "type": "cgroup", "options": ["ro"]});
        sandbox.mount(cgroups);
        sandbox.config["linux"]["maskedPaths"] = json!(["/proc/keys", masked]);
        let outcomes = sandbox.attempt(&["read /proc/keys", &format!("count {masked}")]);
        assert_eq!(outcomes, ["ok ", "ok 0"], "{masked}");
    }
}

#[test]
fn read_only_paths_can_be_read_but_not_written() {
    let mut sandbox = Sandbox::new("ropaths");
    sandbox.config["linux"]["readonlyPaths"] =
        json!(["/proc/sys", "/etc/passwd", "/root", "/not/there"]);
    let outcomes = sandbox.attempt(&[
        "open r /proc/sys/kernel/hostname",
        "open w /proc/sys/kernel/hostname",
        "open r /etc/passwd",
        "open w /etc/passwd",
        "open c /root/new",
        "open c /etc/other",
    ]);
    assert_eq!(outcomes, ["ok", "EROFS", "ok", "EROFS", "EROFS", "ok"]);
}

#[test]
fn sysfs_is_read_only_as_asked() {
    let mut sandbox = Sandbox::new("sysfs");
    assert_eq!(
        sandbox.attempt(&["open w /sys/kernel/uevent_seqnum", "open w /sys/kernel/profiling"])[1],
        "EROFS"
    );
}

#[test]
fn rootfs_propagation_reaches_the_container_as_asked() {
    for (wanted, kind) in [
        ("private", ""),
        ("rprivate", ""),
        ("slave", "master:"),
        ("rslave", "master:"),
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        let mut sandbox = Sandbox::new("propagation");
        sandbox.config["linux"]["rootfsPropagation"] = json!(wanted);
        sandbox.args(&["/guest", "report"]);
        // The host's root is private: a shared mount of our own is needed for slaves to follow.
        let script = format!(
            "exec unshare -m --propagation private sh -c \
             'mount --bind {0} {0} && mount --make-shared {0} && exec \"$@\"' sh \"$@\"",
            sandbox.bundle().display()
        );
        let call = sandbox.bundle_call("run").arg(&sandbox.id);
        let report = call.wrapped(&script).output().ok().json();
        let propagation = report.mount("/").unwrap().texts("/propagation").join(" ");
        if kind.is_empty() {
            assert_eq!(propagation, "", "{wanted}");
        } else {
            assert!(propagation.contains(kind), "{wanted}: {propagation}");
        }
    }
}

#[test]
fn mounts_in_the_container_do_not_reach_the_host() {
    let mut sandbox = Sandbox::new("inside");
    sandbox.mount(tmpfs("/mnt", &[]));
    let script = format!(
        "exec unshare -m --propagation private sh -c 'mount --bind {0} {0} && mount --make-shared {0} && \
         \"$@\"; grep -c {0}/rootfs/ /proc/self/mountinfo >&2' sh \"$@\"",
        sandbox.bundle().display()
    );
    let output = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output();
    assert_eq!(
        output.stderr.trim(),
        "0",
        "no mount of the container is left in the runtime's namespace"
    );
}

#[test]
fn propagation_of_a_single_mount() {
    let mut sandbox = Sandbox::new("propagated");
    let folder = sandbox.file("data/in", "").parent().unwrap().to_owned();
    let wanted = [
        ("/shared", "rshared", "shared:"),
        ("/slave", "rslave", "master:"),
        ("/private", "rprivate", ""),
    ];
    for (destination, option, _) in wanted {
        sandbox.mount(bind(&folder, destination, &["rbind", option]));
    }
    sandbox.args(&["/guest", "report"]);
    let script = format!(
        "exec unshare -m --propagation private sh -c \
         'mount --bind {0} {0} && mount --make-shared {0} && exec \"$@\"' sh \"$@\"",
        folder.display()
    );
    let report = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output().ok().json();
    for (destination, _, kind) in wanted {
        let propagation = report.mount(destination).unwrap().texts("/propagation").join(" ");
        assert!(propagation.contains(kind), "{destination}: {propagation}");
        assert!(!kind.is_empty() || propagation.is_empty(), "{destination}: {propagation}");
    }
}

#[test]
fn cgroup_mount_shows_the_containers_own_cgroup() {
    let mut sandbox = Sandbox::new("cgroupfs");
    // On v2 the container's own is all there is only in a cgroup namespace, as with the peers.
    set_namespace(&mut sandbox.config, "cgroup", None);
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]
    }));
    let v1 = hierarchy("memory").is_some();
    let procs =
        if v1 { "/sys/fs/cgroup/memory/cgroup.procs" } else { "/sys/fs/cgroup/cgroup.procs" };
    let outcomes = sandbox.attempt(&[
        &format!("read {procs}"),
        &format!("open w {procs}"),
        "mkdir /sys/fs/cgroup/new",
        "mkdir /sys/fs/cgroup/memory/new",
    ]);
    assert_eq!(outcomes[0], "ok 1\n", "only the container's own processes");
    assert_eq!(outcomes[1], "EROFS");
    assert_eq!(outcomes[2], "EROFS");
    assert!(!v1 || outcomes[3] == "EROFS", "{outcomes:?}");
    if v1 {
        let report = sandbox.probe();
        for controller in ["memory", "cpu", "pids", "devices", "freezer"] {
            let path = format!("/sys/fs/cgroup/{controller}");
            if HIERARCHIES.iter().any(|hierarchy| hierarchy.ends_with(controller)) {
                assert!(report.mount(&path).is_some(), "{path} is missing");
            }
        }
    }
}

#[test]
fn mqueue_belongs_to_the_containers_ipc_namespace() {
    let mut sandbox = Sandbox::new("mqueue");
    assert_eq!(sandbox.attempt(&["count /dev/mqueue", "open c /dev/mqueue/q"]), ["ok 0", "ok"]);
    assert_eq!(sandbox.attempt(&["count /dev/mqueue"]), ["ok 0"], "a new one for each container");
}

#[test]
fn devpts_is_the_containers_own() {
    let mut sandbox = Sandbox::new("devpts");
    assert_eq!(sandbox.attempt(&["count /dev/pts"]), ["ok 1"], "only ptmx");
}

#[test]
fn no_pivot_runs_by_chroot() {
    let sandbox =
        Sandbox::with_script("nopivot", "cat /etc/passwd | head -n 1; ls / | grep -c guest");
    let output = sandbox.bundle_call("run").args(["--no-pivot", &sandbox.id]).output().ok();
    assert_eq!(output.stdout, "root:x:0:0:root:/root:/bin/sh\n1\n");
}

#[test]
fn root_path_may_be_absolute() {
    let mut sandbox = Sandbox::with_script("absolute", "echo fine");
    sandbox.config["root"]["path"] = json!(sandbox.rootfs());
    sandbox.run().ok().prints("fine");
}

#[test]
fn overlay_mount_as_of_a_container_builder() {
    let mut sandbox = Sandbox::with_script("overlay", "cat /mnt/low; echo up >/mnt/new");
    let lower = sandbox.file("lower/low", "low\n").parent().unwrap().to_owned();
    let (upper, work) = (sandbox.dir.join("upper"), sandbox.dir.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let options = [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)]
        .map(|(name, path)| format!("{name}={}", path.display()));
    sandbox.mount(
        json!({"destination": "/mnt", "type": "overlay", "source": "overlay", "options": options}),
    );
    sandbox.run().ok().prints("low");
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "up\n");
}
