//! CVE-2025-31133 and races of masked and read-only paths.

use std::fs;
use std::os::unix::fs::symlink;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use super::{attacker, without_mount};
use crate::support::{Sandbox, bind, set_namespace};

/// CVE-2025-31133: a mask bound the container's own /dev/null, which led elsewhere.
///
/// Shown: with open_null taking /dev/null from the root, the mask showed "secret".
#[test]
fn masks_survive_an_image_that_replaces_dev_null() {
    let mut sandbox = Sandbox::new("fakenull");
    without_mount(&mut sandbox, "/dev");
    let dev = sandbox.dir.join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/etc/secret", dev.join("null")).unwrap();
    // A volume at /dev: the runtime makes no devices there.
    sandbox.mount(bind(&dev, "/dev", &["bind"]));
    fs::write(sandbox.rootfs().join("etc/secret"), "secret").unwrap();
    fs::write(sandbox.rootfs().join("etc/masked"), "masked").unwrap();
    sandbox.config["linux"]["maskedPaths"] = json!(["/etc/masked"]);
    assert_eq!(sandbox.attempt(&["stat /etc/masked"])[0][..10], *"ok c 1:3 m");
    assert_eq!(sandbox.attempt(&["read /etc/masked"]), ["ok "]);
}

/// Shown: without the check of its number in open_null the container started.
#[test]
fn a_null_device_of_the_host_that_is_none_is_refused() {
    let sandbox = Sandbox::with_script("hostnull", "exit 0");
    let file = sandbox.file("null", "secret");
    let script = format!(
        "exec unshare -m --propagation private sh -c 'mount --bind {} /dev/null && exec \"$@\"' sh \"$@\"",
        file.display()
    );
    let call = sandbox.bundle_call("create").arg(&sandbox.id).wrapped(&script);
    call.output().fails(1, &["/dev/null is not the null device"]);
}

/// Shown: with openat2 in root.rs without its RESOLVE flags the links led to the host, where there
/// was nothing to mask, and the container read "secret".
#[test]
fn masks_follow_links_inside_of_the_root_only() {
    let mut sandbox = Sandbox::new("masklink");
    let outside = sandbox.dir.join("outside");
    let inside = sandbox.rootfs().join(outside.strip_prefix("/").unwrap());
    fs::create_dir_all(&inside).unwrap();
    fs::write(inside.join("file"), "secret").unwrap();
    symlink(&outside, sandbox.rootfs().join("link")).unwrap();
    sandbox.config["linux"]["maskedPaths"] = json!(["/link/file"]);
    sandbox.config["linux"]["readonlyPaths"] = json!(["/link"]);
    let outcomes = sandbox.attempt(&["read /link/file", "open c /link/new"]);
    assert_eq!(outcomes, ["ok ", "EROFS"]);
}

/// A second container that has the root as a volume takes /proc away while it is to be masked.
///
/// Shown: with masks looked up from the root alone (`self.open` alone in Root::open_interface) /proc/keys
/// could be read, or /proc/sys be written, in one of the first rounds.
#[test]
fn masks_of_proc_hold_although_its_name_is_exchanged_meanwhile() {
    let mut sandbox = Sandbox::new("maskrace");
    let (proc, other) = (sandbox.rootfs().join("proc"), sandbox.rootfs().join("other"));
    symlink("/tmp", &other).unwrap();
    sandbox.args(&["/guest", "do", "stat /proc/keys", "open w /proc/sys/kernel/hostname"]);
    let attacker = attacker(&sandbox.rootfs(), "proc", "other");
    let mut made = 0;
    for _ in 0..40 {
        let created = sandbox.create();
        attacker.ultari(["pause", &attacker.id]).ok();
        if created.code == 0 {
            made += 1;
            if proc.is_symlink() {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &proc, AT_FDCWD, &other, flags).unwrap();
            }
            sandbox.start().ok();
            sandbox.wait_for("stopped");
            let seen = created.stdout_by_now();
            assert!(seen.contains(r#"["ok c 1:3 "#) && seen.contains("EROFS"), "{seen}");
            sandbox.delete().ok();
        }
        attacker.ultari(["resume", &attacker.id]).ok();
        if made == 8 {
            break;
        }
    }
    assert!(made > 0, "never was /proc in its place when it was to be mounted");
}

/// In a mount namespace that somebody else has made, /proc is whatever they like.
///
/// Shown: with mask always told that the mounts are its own, /proc/keys was the other image's file.
#[test]
fn masks_in_a_joined_mount_namespace_are_not_of_its_proc() {
    let (mut first, mut second) = (Sandbox::new("maskfirst"), Sandbox::new("masksecond"));
    without_mount(&mut first, "/proc");
    for list in ["maskedPaths", "readonlyPaths"] {
        first.config["linux"][list] = json!([]);
    }
    let fake = first.rootfs().join("proc/self/fd");
    fs::create_dir_all(&fake).unwrap();
    for number in 3..60 {
        fs::write(fake.join(number.to_string()), "secret").unwrap();
    }
    // The same path means the second one's root there.
    let root = second.rootfs();
    first.mount(bind(&root, &root.display().to_string(), &["bind"]));
    first.args(&["/bin/sleep", "100"]);
    first.run_detached();
    let path = format!("/proc/{}/ns/mnt", first.pid());
    set_namespace(&mut second.config, "mount", Some(&path));
    second.config["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    second.config["linux"]["readonlyPaths"] = json!([]);
    second.config["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/acpi", "/proc/fs"]);
    let outcomes = second.attempt(&["stat /proc/keys", "read /proc/keys", "open c /proc/fs/x"]);
    assert_eq!(outcomes[0][..10], *"ok c 1:3 m");
    assert_eq!(outcomes[1..], ["ok ", "EROFS"]);
}
