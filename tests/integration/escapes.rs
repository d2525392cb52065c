//! Ways out of a container that were real holes in other runtimes, tried from outside and inside.
//! More of them stand with what they concern: leaked descriptors in `process` and `exec`, symlinks
//! in `bad_input` and `filesystem`, capabilities in `process`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::json;

use crate::support::{Sandbox, bind, program, remove_namespace};

/// The program under test, byte for byte.
fn image() -> Vec<u8> {
    fs::read(program()).unwrap()
}

#[test]
fn the_runtime_is_not_overwritten_by_its_container() {
    // CVE-2019-5736: the container opens /proc/PID/exe of the runtime's process that is about to
    // become its own, and writes to the file as soon as nobody runs it any more.
    let mut sandbox = Sandbox::new("overwrite");
    // If it does, then not to the program that all the other tests use.
    let copy = sandbox.dir.join("runtime");
    fs::copy(program(), &copy).unwrap();
    sandbox.program = copy.clone();
    for set in ["bounding", "permitted", "effective"] {
        let names = &mut sandbox.config["process"]["capabilities"][set];
        names.as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
    }
    sandbox.args(&["/guest", "do", "catch 1500"]);
    let created = sandbox.create().ok();
    sandbox.start().ok();
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(1200) {
        // The runtime's own file as the program keeps it open for longer.
        sandbox.exec(&["/proc/self/exe", "--help"]);
        sandbox.exec(&["/bin/true"]);
    }
    sandbox.wait_for("stopped");
    assert!(fs::read(&copy).unwrap() == image(), "the container has changed the runtime");
    let wanted = json!(["ok caught true, wrote to []"]).to_string();
    assert_eq!(created.stdout_by_now().trim(), wanted, "it did get hold of it");
}

#[test]
fn the_runtime_as_the_containers_program_changes_nothing() {
    let before = image();
    for program in ["/proc/self/exe", "/link", "/script"] {
        let mut sandbox = Sandbox::new("selfexe");
        symlink("/proc/self/exe", sandbox.rootfs().join("link")).unwrap();
        let script = sandbox.rootfs().join("script");
        fs::write(&script, "#!/proc/self/exe\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, mode).unwrap();
        sandbox.args(&[program]);
        sandbox.run();
        sandbox.expect_nothing_left();
    }
    assert!(image() == before);
}

#[test]
fn host_processes_are_out_of_reach() {
    let mut sandbox = Sandbox::new("reach");
    let own = std::process::id();
    let outcomes = sandbox.attempt(&[
        &format!("link /proc/{own}/exe"),
        "link /proc/1/root",
        "count /proc/1/map_files",
    ]);
    assert_eq!(outcomes[0], "ENOENT");
    assert_eq!(outcomes[1], "ok /");
}

#[test]
fn the_hosts_root_is_not_to_be_had_by_chroot_tricks() {
    let mut sandbox = Sandbox::with_script(
        "chroot",
        "mkdir -p /tmp/c; cd /; exec /bin/busybox chroot /tmp/c /bin/true 2>/dev/null; true",
    );
    sandbox.run();
    // The old root is gone, not only hidden: `..` of the root is the root.
    sandbox.script(
        "cd /; cd ../../../..; ls -d guest; [ -e /../../../../etc/debian_version ] && echo out",
    );
    let output = sandbox.run();
    assert_eq!(output.stdout, "guest\n");
}

#[test]
fn a_bind_mount_over_proc_does_not_catch_the_runtimes_writes() {
    // CVE-2025-52881: sysctl and label writes went to whatever was at /proc then.
    let mut sandbox = Sandbox::with_script("fakeproc", "exit 0");
    let trap = sandbox.file("trap/sys/net/ipv4/ip_unprivileged_port_start", "untouched");
    let folder = trap.ancestors().nth(4).unwrap().to_owned();
    let mut mounts = vec![bind(&folder, "/proc", &["bind"])];
    mounts.extend(sandbox.config["mounts"].as_array().unwrap().iter().skip(1).cloned());
    sandbox.config["mounts"] = json!(mounts);
    sandbox.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "5"});
    sandbox.config["linux"]["maskedPaths"] = json!([]);
    sandbox.config["linux"]["readonlyPaths"] = json!([]);
    sandbox.run();
    assert_eq!(fs::read_to_string(&trap).unwrap(), "untouched");
}

#[test]
fn masks_survive_an_image_that_replaces_dev_null() {
    // CVE-2025-31133: a mask bound the container's own /dev/null, which led elsewhere.
    let mut sandbox = Sandbox::new("fakenull");
    let outside = sandbox.file("outside", "host's");
    sandbox.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    symlink("/etc/secret", sandbox.rootfs().join("dev/null")).unwrap();
    fs::write(sandbox.rootfs().join("etc/secret"), "secret").unwrap();
    fs::write(sandbox.rootfs().join("etc/masked"), "masked").unwrap();
    sandbox.config["linux"]["maskedPaths"] = json!(["/etc/masked"]);
    sandbox.args(&["/guest", "do", "read /etc/masked"]);
    let output = sandbox.run();
    assert!(output.code != 0 || output.json() == json!(["ok "]), "{output:?}");
    assert_eq!(fs::read_to_string(outside).unwrap(), "host's");
}

#[test]
fn a_racing_rename_does_not_lead_a_mount_outside() {
    // CVE-2021-30465: a folder exchanged for a symlink between the check and the mount.
    let mut sandbox = Sandbox::with_script("race", "exit 0");
    let outside = sandbox.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    let (real, link): (PathBuf, PathBuf) =
        (sandbox.rootfs().join("real"), sandbox.rootfs().join("swap"));
    fs::create_dir(&real).unwrap();
    symlink(&outside, sandbox.rootfs().join("evil")).unwrap();
    symlink("real", &link).unwrap();
    let source = sandbox.file("data/file", "bound");
    for number in 0..4 {
        sandbox.mount(bind(source.parent().unwrap(), &format!("/swap/in-{number}"), &["bind"]));
    }
    let rootfs = sandbox.rootfs();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let names = [rootfs.join("swap"), rootfs.join("spare")];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for target in ["evil", "real"] {
                    let _ = fs::remove_file(&names[1]);
                    let _ = symlink(target, &names[1]);
                    let _ = fs::rename(&names[1], &names[0]);
                }
            }
        });
        for _ in 0..15 {
            let output = sandbox.run();
            assert!(output.code == 0 || output.code == 1, "{output:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let made: Vec<_> = fs::read_dir(&outside).unwrap().flatten().collect();
    assert!(made.is_empty(), "made outside of the rootfs: {made:?}");
}

#[test]
fn the_hosts_cgroups_are_not_writable() {
    // CVE-2023-25809, and containers with the host's PID namespace.
    let mut sandbox = Sandbox::new("cgroupfs");
    remove_namespace(&mut sandbox.config, "pid");
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]
    }));
    let outcomes = sandbox.attempt(&[
        "mkdir /sys/fs/cgroup/pids/x",
        "mkdir /sys/fs/cgroup/x",
        "mkdir /sys/fs/cgroup/unified/x",
    ]);
    assert!(outcomes.iter().all(|outcome| outcome != "ok"), "{outcomes:?}");
}

#[test]
fn a_pipe_or_device_in_place_of_passwd_holds_nobody_up() {
    // The runtime reads it for HOME, in every exec too.
    let mut sandbox = Sandbox::with_script("passwd", "echo $HOME");
    let env = sandbox.config["process"]["env"].as_array_mut().unwrap();
    env.retain(|entry| !entry.as_str().unwrap().starts_with("HOME="));
    let passwd = sandbox.rootfs().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
    sandbox.run().ok().prints("/");
    fs::remove_file(&passwd).unwrap();
    symlink("/dev/zero", &passwd).unwrap();
    sandbox.run().ok().prints("/");
}
