//! What fails says why and leaves nothing, or the container as it was; what can't be done is refused.

use std::fs;

use serde_json::json;

use super::{COUNTER, checkpoint, connected, count, counter, needs_criu, restore, wait_for_count};
use crate::support::{Sandbox, bind, marked_processes};

#[test]
fn a_failed_checkpoint_leaves_the_container_as_it_was_and_says_why() {
    needs_criu!();
    let sandbox = connected("failed-dump");
    let pid = sandbox.pid();
    let log = sandbox.dir.join("images/dump.log");
    checkpoint(&sandbox, &[]).fails(1, &["tcp", "--tcp-established", log.to_str().unwrap()]);
    assert_eq!((sandbox.status().as_str(), sandbox.pid()), ("running", pid));
    wait_for_count(&sandbox, count(&sandbox));
}

#[test]
fn a_failing_hook_fails_the_restore_and_leaves_nothing() {
    needs_criu!();
    let mut sandbox = counter("hook-fails");
    checkpoint(&sandbox, &[]).ok();
    let script = json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]);
    sandbox.config["hooks"]["createRuntime"] = script;
    sandbox.write_config();
    restore(&sandbox, &[]).fails(1, &["hooks.createRuntime[0]", "exit status 3: no"]);
    sandbox.expect_nothing_left();
}

#[test]
fn a_failed_restore_leaves_nothing_and_says_why() {
    needs_criu!();
    let sandbox = counter("failed-restore");
    checkpoint(&sandbox, &[]).ok();
    let images = sandbox.dir.join("images");
    fs::write(images.join("pstree.img"), "not an image").unwrap();
    let log = images.join("restore.log");
    restore(&sandbox, &[]).fails(1, &["restore container", log.to_str().unwrap()]);
    sandbox.expect_nothing_left();
    fs::write(images.join("descriptors.json"), "[").unwrap();
    restore(&sandbox, &[]).fails(1, &["--image-path", "descriptors.json is damaged"]);
    sandbox.expect_nothing_left();
    fs::remove_dir_all(&images).unwrap();
    restore(&sandbox, &[]).fails(1, &["--image-path", "No such file or directory"]);
    sandbox.expect_nothing_left();
    assert!(marked_processes(&sandbox.marker()).is_empty());
}

#[test]
fn an_id_that_is_taken_is_refused() {
    needs_criu!();
    let sandbox = counter("taken");
    checkpoint(&sandbox, &["--leave-running"]).ok();
    restore(&sandbox, &[]).fails(1, &["already exists"]);
    wait_for_count(&sandbox, count(&sandbox));
}

// What follows needs no criu that works.

#[test]
fn only_what_runs_can_be_saved() {
    let sandbox = Sandbox::with_script("created", "true");
    checkpoint(&sandbox, &[]).fails(1, &["does not exist"]);
    sandbox.create().ok();
    checkpoint(&sandbox, &[]).fails(1, &["container not running", "created"]);
    assert_eq!(sandbox.status(), "created");
    assert!(!sandbox.dir.join("images").exists());
}

#[test]
fn flags_of_lazy_pages_that_make_no_sense() {
    let sandbox = Sandbox::with_script("no-lazy", "sleep 100");
    sandbox.run_detached();
    let lazy = ["--lazy-pages", "--page-server", "127.0.0.1:1"];
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--lazy-pages"], &["--lazy-pages", "--page-server", "ADDRESS:PORT"]),
        (&["--status-fd", "1"], &["--status-fd", "--lazy-pages"]),
        (&["--page-server", "x"], &["--page-server \"x\"", "ADDRESS:PORT"]),
        (&[&lazy[..], &["--pre-dump"]].concat(), &["--lazy-pages", "--pre-dump"]),
        (&[&lazy[..], &["--status-fd", "99"]].concat(), &["--status-fd 99", "EBADF"]),
        (&[&lazy[..], &["--status-fd", "0"]].concat(), &["--status-fd 0", "not open for writing"]),
    ];
    for (flags, texts) in cases {
        checkpoint(&sandbox, flags).fails(1, texts);
    }
    assert_eq!(sandbox.status(), "running");
    sandbox.delete_forced().ok();
    fs::create_dir_all(sandbox.dir.join("images")).unwrap();
    let texts = ["--lazy-pages", "images/lazy-pages.socket", "criu lazy-pages --page-server"];
    restore(&sandbox, &["--lazy-pages"]).fails(1, &texts);
    sandbox.expect_nothing_left();
}

#[test]
fn what_would_be_lost_is_refused_by_name() {
    let mut sandbox = Sandbox::with_script("refused", "sleep 100");
    let source = sandbox.file("data/file", "x").parent().unwrap().to_owned();
    let mut mount = bind(source, "/mnt", &["bind", "idmap"]);
    for maps in ["uidMappings", "gidMappings"] {
        mount[maps] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    }
    sandbox.mount(mount);
    sandbox.run_detached();
    checkpoint(&sandbox, &[]).fails(1, &["cannot checkpoint", "mounts[", "id-mapped"]);
    assert_eq!(sandbox.status(), "running");
    sandbox.delete_forced().ok();
    restore(&sandbox, &[]).fails(1, &["cannot restore", "mounts[", "id-mapped"]);
    sandbox.expect_nothing_left();
}

#[test]
fn a_criu_that_is_missing_or_fails_is_named_and_the_container_goes_on() {
    let sandbox = Sandbox::with_script("no-criu", COUNTER);
    sandbox.run_detached();
    let with = |criu: &str| {
        let call = sandbox.call(["--criu", criu, "checkpoint", "--image-path"]);
        call.arg(sandbox.dir.join("images")).arg(&sandbox.id).output()
    };
    with("/nowhere/criu").fails(1, &["/nowhere/criu", "--criu"]);
    let broken =
        sandbox.file("criu", "#!/bin/sh\necho 'Error (criu/vdso.c:1): no vDSO' >&2\nexit 1\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&broken, mode).unwrap();
    with(broken.to_str().unwrap()).fails(1, &["checkpoint container", "no vDSO"]);
    with("/bin/false").fails(1, &["checkpoint container", "exit status: 1"]);
    wait_for_count(&sandbox, count(&sandbox));
    sandbox.delete_forced().ok();
    let call = sandbox.call(["--criu", broken.to_str().unwrap(), "restore", "--image-path"]);
    let call = call.arg(sandbox.dir.join("images")).arg("--bundle").arg(sandbox.bundle());
    call.arg(&sandbox.id).output().fails(1, &["restore container", "no vDSO"]);
    sandbox.expect_nothing_left();
}

#[test]
fn engines_probe_by_asking_for_help() {
    let sandbox = Sandbox::new("probe");
    for command in ["checkpoint", "restore"] {
        let help = sandbox.ultari([command, "--help"]).ok().stdout;
        assert!(help.contains("--image-path") && help.contains("--tcp-established"), "{help}");
    }
}
