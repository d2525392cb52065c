//! Containers without a mount namespace of their own: their mounts are made in the caller's, and
//! end with them.

use serde_json::json;

use crate::namespaces::Holder;
use crate::support::{Sandbox, bind, own_namespace, remove_namespace, set_namespace};

fn in_the_hosts(name: &str, script: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_script(name, script);
    remove_namespace(&mut sandbox.config, "mount");
    sandbox
}

/// Lines of the host's mount table that belong to the sandbox.
fn mounts(sandbox: &Sandbox) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = format!("{}/", sandbox.dir.display());
    table.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect()
}

#[test]
fn mounts_are_made_below_the_state_folder_and_end_with_the_container() {
    let mut sandbox = in_the_hosts("hostmnt", "exec sleep 100");
    let kept = sandbox.file("data/kept", "still here\n");
    sandbox.mount(bind(kept.parent().unwrap(), "/data", &["rbind", "rw"]));
    sandbox.run_detached();
    let namespace = format!("/proc/{}/ns/mnt", sandbox.pid());
    let namespace = std::fs::read_link(namespace).unwrap().display().to_string();
    assert_eq!(json!(namespace), own_namespace("mnt"));

    let top = format!(" {}/{}/rootfs", sandbox.root().display(), sandbox.id);
    let made = mounts(&sandbox);
    assert!(made.iter().any(|line| line.contains(&format!("{top} "))), "{made:#?}");
    assert!(made.iter().any(|line| line.contains(&format!("{top}/data "))), "{made:#?}");
    for line in &made {
        assert!(line.contains(&top), "outside of the state folder: {line}");
        assert!(!line.contains(" shared:"), "goes on elsewhere: {line}");
    }

    let output = sandbox.exec(&["/bin/sh", "-c", "cat /data/kept; ls -d /guest /dev/null"]);
    output.ok().prints("still here\n/dev/null\n/guest");
    sandbox.kill("KILL").ok();
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    assert_eq!(mounts(&sandbox), [""; 0]);
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "still here\n");
    sandbox.expect_nothing_left();
}

#[test]
fn a_readonly_root_is_readonly_for_the_container_alone() {
    let mut sandbox = in_the_hosts("hostro", "touch /new && echo written");
    sandbox.config["root"]["readonly"] = json!(true);
    sandbox.run().fails(1, &["Read-only file system"]);
    assert!(std::fs::write(sandbox.rootfs().join("new"), "").is_ok());
    sandbox.expect_nothing_left();
}

#[test]
fn nothing_stays_mounted_after_a_failed_create() {
    let mut sandbox = in_the_hosts("hostfail", "true");
    sandbox.mount(bind("/nowhere/at/all", "/x", &["bind"]));
    sandbox.create().fails(1, &["/nowhere/at/all"]);
    assert_eq!(mounts(&sandbox), [""; 0]);
    sandbox.expect_nothing_left();
}

#[test]
fn exec_enters_the_root_of_a_container_in_a_joined_mount_namespace() {
    let holder = Holder::new(&["--mount"]);
    let mut sandbox = Sandbox::with_script("mntjoin", "exec sleep 100");
    set_namespace(&mut sandbox.config, "mount", Some(&holder.path("mnt")));
    sandbox.config["mounts"] = json!([]);
    for paths in ["maskedPaths", "readonlyPaths"] {
        sandbox.config["linux"][paths] = json!([]);
    }
    sandbox.run_detached();
    sandbox.exec(&["/bin/sh", "-c", "pwd; ls -d /guest"]).ok().prints("/\n/guest");
}

#[test]
fn a_user_namespace_needs_a_mount_namespace_too() {
    let mut sandbox = in_the_hosts("hostuser", "true");
    set_namespace(&mut sandbox.config, "user", None);
    for maps in ["uidMappings", "gidMappings"] {
        sandbox.config["linux"][maps] =
            json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    }
    sandbox.create().fails(1, &["linux.namespaces", "user namespace", "mount"]);
    sandbox.expect_nothing_left();
}
