//! Symbolic links of the image, and links that a second container exchanges meanwhile:
//! CVE-2019-19921, 2021-30465, 2023-27561, 2023-28642, 2024-45310, 2026-41579, 2026-47766.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::{attacker, made_in, mounted_at, record_mounts, without_mount};
use crate::support::{Sandbox, bind, host, program, wait_until};

/// CVE-2019-19921, 2023-27561: also where the link leads to a volume.
///
/// Shown: with mount_target in place of unlinked_folder the container started.
#[test]
fn proc_and_sysfs_refuse_a_symlink() {
    for name in ["proc", "sys"] {
        for target in ["tmp", "/tmp", "/vol/fake", "../../.."] {
            let mut sandbox = Sandbox::with_script("link", "exit 0");
            let volume = sandbox.dir.join("volume");
            fs::create_dir_all(volume.join("fake")).unwrap();
            let mounts = sandbox.config["mounts"].as_array_mut().unwrap();
            mounts.insert(0, bind(&volume, "/vol", &["bind"]));
            fs::remove_dir(sandbox.rootfs().join(name)).unwrap();
            symlink(target, sandbox.rootfs().join(name)).unwrap();
            sandbox.run().fails(1, &[&format!("/{name}"), "symbolic link"]);
            sandbox.expect_nothing_left();
        }
    }
}

/// CVE-2023-28642: the link comes and goes.
///
/// Shown: with mount_target in place of unlinked_folder a procfs was at the link's target.
#[test]
fn proc_is_never_mounted_where_a_racing_link_leads() {
    let mut sandbox = Sandbox::with_script("racingproc", "exit 0");
    record_mounts(&mut sandbox);
    symlink("/tmp", sandbox.rootfs().join("other")).unwrap();
    let attacker = attacker(&sandbox.rootfs(), "proc", "other");
    let outputs: Vec<_> = (0..12).map(|_| sandbox.run()).collect();
    assert!(outputs.iter().all(|output| output.code <= 1), "{outputs:?}");
    drop(attacker);
    assert!(outputs.iter().any(|output| output.stderr.contains("symbolic link")), "no race");
    assert_eq!(mounted_at(&sandbox, &sandbox.rootfs().join("tmp")), [""; 0]);
}

/// Shown: without the check in Proc::open the runtime took the imitation.
#[test]
fn a_proc_that_is_no_procfs_is_refused() {
    let sandbox = Sandbox::with_script("fakeproc", "exit 0");
    let fake = sandbox.dir.join("proc");
    fs::create_dir_all(fake.join("self/fd")).unwrap();
    fs::copy(program(), fake.join("self/exe")).unwrap();
    let fake = fake.display();
    let script = format!(
        "exec unshare -m --propagation private sh -c 'mount --bind {fake} /proc && \
         mount -o remount,bind,ro /proc && exec \"$@\"' sh \"$@\""
    );
    let call = sandbox.bundle_call("create").arg(&sandbox.id).wrapped(&script);
    call.output().fails(1, &["/proc is not a procfs"]);
}

/// CVE-2021-30465, 2024-45310: a folder of a shared volume changes places with a link.
///
/// Shown: with openat2 in root.rs without its RESOLVE flags files were made in the host's folder,
/// and mounted there.
#[test]
fn a_racing_exchange_leads_no_mount_outside() {
    let mut sandbox = Sandbox::with_script("racing", "exit 0");
    record_mounts(&mut sandbox);
    let (outside, volume) = (sandbox.dir.join("outside"), sandbox.dir.join("volume"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(volume.join("real")).unwrap();
    symlink(&outside, volume.join("evil")).unwrap();
    let data = sandbox.file("data/file", "bound");
    sandbox.mount(bind(&volume, "/vol", &["bind"]));
    for number in 0..4 {
        sandbox.mount(bind(data.parent().unwrap(), &format!("/vol/real/d{number}"), &["bind"]));
        sandbox.mount(bind(&data, &format!("/vol/real/a/f{number}"), &["bind"]));
        sandbox.mount(json!({
            "destination": format!("/vol/real/b/{number}"), "type": "tmpfs", "source": "t"
        }));
    }
    sandbox.config["process"]["cwd"] = json!("/vol/real/cwd");
    let attacker = attacker(&volume, "real", "evil");
    let mut runs = 0;
    // One in ten finds its way through all mounts, so that there is something to see.
    wait_until("the hook has seen mounts", || {
        let output = sandbox.run();
        assert!(output.code <= 1, "{output:?}");
        assert_eq!(made_in(&outside), [""; 0], "made outside of the rootfs");
        runs += 1;
        runs >= 15 && !mounted_at(&sandbox, &sandbox.rootfs()).is_empty()
    });
    drop(attacker);
    assert_eq!(mounted_at(&sandbox, &outside), [""; 0]);
}

/// CVE-2026-41579, 2026-47766: whatever the runtime makes in the root goes by an image's links.
///
/// Shown: with openat2 in root.rs without its RESOLVE flags, and Root::resolve not following,
/// devices, mount points and the working directory were made in the host's folder.
#[test]
fn nothing_is_made_where_links_of_the_image_lead() {
    let mut sandbox = Sandbox::with_script("devlink", "exit 0");
    let outside = sandbox.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    without_mount(&mut sandbox, "/dev");
    fs::remove_dir(sandbox.rootfs().join("dev")).unwrap();
    symlink(&outside, sandbox.rootfs().join("dev")).unwrap();
    symlink(&outside, sandbox.rootfs().join("link")).unwrap();
    let data = sandbox.file("data/file", "bound");
    sandbox.mount(bind(&data, "/link/sub/file", &["bind"]));
    sandbox.mount(bind(data.parent().unwrap(), "/dev/folder", &["bind"]));
    sandbox.config["process"]["cwd"] = json!("/link/cwd");
    sandbox.config["linux"]["devices"] = json!([
        {"path": "/link/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/link/more/pipe", "type": "p"}
    ]);
    record_mounts(&mut sandbox);
    // In the rootfs the links lead to a place of their own.
    sandbox.run().ok();
    assert_eq!(made_in(&outside), [""; 0]);
    assert_eq!(mounted_at(&sandbox, &outside), [""; 0]);
}

/// Shown: with openat2 in root.rs without its RESOLVE flags the file was made outside.
#[test]
fn mount_on_a_symlink_that_points_out_of_the_rootfs() {
    // Resolved inside the rootfs it is harmless; what must not happen is a mount outside.
    for (link, target) in [("link", "absolute"), ("up", "../../..")] {
        let mut sandbox = Sandbox::with_script("escape", &format!("cat /{link}/escaped"));
        let outside = sandbox.dir.join("outside");
        fs::create_dir(&outside).unwrap();
        let target = if target == "absolute" { outside.clone() } else { target.into() };
        symlink(target, sandbox.rootfs().join(link)).unwrap();
        let file = sandbox.file("file", "bound\n");
        sandbox.mount(bind(file, &format!("/{link}/escaped"), &["bind"]));
        let output = sandbox.run();
        // An error is as good as a mount at the place inside that the link leads to.
        if output.code != 0 || output.stdout != "bound\n" {
            output.fails(1, &["mounts"]);
        }
        assert_eq!(made_in(&outside), [""; 0], "created outside of the rootfs");
        assert!(!sandbox.dir.join("escaped").exists());
        assert!(!host().base.join("escaped").exists());
        sandbox.expect_nothing_left();
    }
}

/// Shown: without the closing of the old root (umount2 in sys::mount::pivot_here) the mount table
/// still had the host's root.
#[test]
fn the_hosts_root_is_not_to_be_had_by_chroot_tricks() {
    let mut sandbox = Sandbox::new("chroot");
    let report = sandbox.probe();
    let mounts = report["mounts"].as_array().unwrap();
    assert_eq!(mounts.iter().filter(|mount| mount["destination"] == "/").count(), 1, "{mounts:?}");
    // The old root is gone, not only hidden: `..` of the root is the root.
    sandbox.script(
        "mkdir -p /tmp/c; chroot /tmp/c /bin/true 2>/dev/null; cd /; cd ../../../..; ls -d guest; \
         [ -e /../../../../etc/debian_version ] && echo out",
    );
    assert_eq!(sandbox.run().stdout, "guest\n");
}

/// Shown: without CLONE_NEWPID in namespace::clone_flags the host's processes were there.
#[test]
fn host_processes_are_out_of_reach() {
    let mut sandbox = Sandbox::new("reach");
    let own = std::process::id();
    let outcomes = sandbox.attempt(&[&format!("link /proc/{own}/exe"), "link /proc/1/root"]);
    assert_eq!(outcomes, ["ENOENT", "ok /"]);
}
