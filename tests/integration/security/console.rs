//! CVE-2025-52565: what is shown as /dev/console was exchanged for another file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use super::{attacker, made_in, mounted_at, record_mounts, without_mount};
use crate::skip;
use crate::support::{ConsoleSocket, Output, Sandbox};

/// A container with a terminal and with the image's own /dev, but for a devpts.
fn sandbox(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    let mounts = sandbox.config["mounts"].clone();
    without_mount(&mut sandbox, "/dev");
    let devpts = |mount: &&Value| mount["type"] == "devpts";
    sandbox.mount(mounts.as_array().unwrap().iter().find(devpts).unwrap().clone());
    sandbox.config["process"]["terminal"] = json!(true);
    sandbox
}

/// `create` with a console socket.
fn create(sandbox: &Sandbox, number: usize) -> (Output, ConsoleSocket) {
    let socket = ConsoleSocket::listen(sandbox.dir.join(format!("s{number}")));
    let call = sandbox.bundle_call("create").arg("--console-socket").arg(&socket.path);
    (call.arg(&sandbox.id).output(), socket)
}

/// Shown: with openat2 in root.rs without its RESOLVE flags the terminal was mounted on the host's
/// file.
#[test]
fn a_console_that_is_a_link_leads_nowhere_outside() {
    let mut sandbox = sandbox("conlink");
    let outside = sandbox.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "host's").unwrap();
    symlink(outside.join("file"), sandbox.rootfs().join("dev/console")).unwrap();
    record_mounts(&mut sandbox);
    let (created, _socket) = create(&sandbox, 0);
    created.ok();
    assert_eq!(made_in(&outside), ["file"]);
    assert_eq!(mounted_at(&sandbox, &outside), [""; 0]);
}

/// Shown: without the check for devpts in open_ptmx the image's file was opened, and said "not a
/// terminal" only afterwards.
#[test]
fn a_multiplexer_made_by_the_image_is_refused() {
    let mut sandbox = sandbox("fakeptmx");
    without_mount(&mut sandbox, "/dev/pts");
    fs::create_dir(sandbox.rootfs().join("dev/pts")).unwrap();
    fs::write(sandbox.rootfs().join("dev/pts/ptmx"), "").unwrap();
    create(&sandbox, 0).0.fails(1, &["is a devpts mounted"]);
}

/// A second container makes /dev/pts change places with a folder in which `0` is a link.
///
/// Shown: with the other side opened as the path /dev/pts/0 in the root, the file that the link
/// leads to was mounted at /dev/console.
#[test]
fn the_console_is_the_terminal_whatever_is_at_its_path() {
    if !Path::new("/usr/bin/strace").exists() {
        skip!("strace is not installed");
    }
    let mut sandbox = sandbox("conrace");
    let dev = sandbox.rootfs().join("dev");
    fs::create_dir(dev.join("pts")).unwrap();
    fs::create_dir(dev.join("evil")).unwrap();
    fs::create_dir(dev.join("both")).unwrap();
    symlink("/etc/passwd", dev.join("evil/0")).unwrap();
    record_mounts(&mut sandbox);
    let attacker = attacker(&dev, "pts", "evil");
    let mut made = 0;
    // Slowed down where the other side is opened, so that the attacker has its chance there.
    let slow =
        "exec strace -D -f -qq -o /dev/null --trace=ioctl --inject=ioctl:delay_exit=3000 \"$@\"";
    sandbox.wrapper = Some(slow.into());
    for number in 0..25 {
        let (created, _socket) = create(&sandbox, number);
        if created.code == 0 {
            made += 1;
        }
        sandbox.delete_forced().ok();
    }
    sandbox.wrapper = None;
    drop(attacker);
    assert!(made > 0, "never was a terminal to be had");
    let shown = mounted_at(&sandbox, &dev.join("console"));
    assert!(shown.len() >= made, "the hook did see the mounts");
    for mount in shown {
        assert!(mount.contains(" - devpts "), "{mount}");
    }
}
