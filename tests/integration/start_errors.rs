//! Each way in which the program cannot be executed: the message says what is wrong and where,
//! in words from which Docker takes its exit codes 126 and 127.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;

use crate::support::Sandbox;

/// Texts that make Docker and Podman exit with 127; they are case-sensitive.
const NOT_FOUND: [&str; 2] = ["executable file not found", "no such file or directory"];
/// The text that makes them exit with 126.
const DENIED: &str = "permission denied";

fn executable(sandbox: &Sandbox, name: &str, content: impl AsRef<[u8]>) {
    let path = sandbox.rootfs().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Both ways of starting must fail with these texts in one line, `start` at start.
#[track_caller]
fn fails_to_start(sandbox: &Sandbox, texts: &[&str]) -> String {
    let ran = sandbox.run().fails(1, texts);
    sandbox.expect_nothing_left();
    let created = sandbox.create();
    // runc refuses what it can see already at create; either way it must not be silent.
    let output = if created.code == 0 { sandbox.start() } else { created };
    output.fails(1, texts);
    let _ = sandbox.delete_forced();
    sandbox.expect_nothing_left();
    ran.stderr
}

#[test]
fn not_found_in_path() {
    let mut sandbox = Sandbox::new("path");
    sandbox.args(&["frobnicate"]);
    fails_to_start(&sandbox, &["frobnicate", NOT_FOUND[0], "PATH"]);
}

#[test]
fn not_found_without_any_path() {
    let mut sandbox = Sandbox::new("nopath");
    sandbox.config["process"]["env"] = json!([sandbox.marker()]);
    sandbox.args(&["frobnicate"]);
    fails_to_start(&sandbox, &["frobnicate", NOT_FOUND[0]]);
}

#[test]
fn absolute_path_that_is_missing() {
    let mut sandbox = Sandbox::new("absolute");
    sandbox.args(&["/opt/frobnicate"]);
    fails_to_start(&sandbox, &["/opt/frobnicate", NOT_FOUND[1]]);
}

#[test]
fn relative_path_is_taken_from_the_cwd() {
    let mut sandbox = Sandbox::new("relative");
    executable(&sandbox, "opt/tool", "#!/bin/sh\necho from the tool\n");
    sandbox.config["process"]["cwd"] = json!("/opt");
    sandbox.args(&["./tool"]);
    sandbox.run().ok().prints("from the tool");
    sandbox.args(&["./missing"]);
    fails_to_start(&sandbox, &["./missing", NOT_FOUND[1]]);
}

#[test]
fn not_executable() {
    let mut sandbox = Sandbox::new("mode");
    fs::write(sandbox.rootfs().join("opt-script"), "#!/bin/sh\n").unwrap();
    sandbox.args(&["/opt-script"]);
    fails_to_start(&sandbox, &["/opt-script", DENIED]);
}

#[test]
fn not_executable_for_this_user() {
    let mut sandbox = Sandbox::new("usermode");
    executable(&sandbox, "opt/root-only", "#!/bin/sh\n");
    let path = sandbox.rootfs().join("opt/root-only");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    sandbox.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    sandbox.config["process"]["capabilities"] = json!({});
    sandbox.args(&["/opt/root-only"]);
    fails_to_start(&sandbox, &["/opt/root-only", DENIED]);
}

#[test]
fn a_folder() {
    let mut sandbox = Sandbox::new("folder");
    sandbox.args(&["/etc"]);
    fails_to_start(&sandbox, &["/etc", DENIED]);
}

#[test]
fn a_file_in_place_of_a_folder() {
    let mut sandbox = Sandbox::new("notdir");
    sandbox.args(&["/etc/passwd/tool"]);
    fails_to_start(&sandbox, &["/etc/passwd/tool"]);
}

#[test]
fn exec_format_error() {
    let mut sandbox = Sandbox::new("format");
    executable(&sandbox, "opt/no-shebang", "echo I have no first line\n");
    sandbox.args(&["/opt/no-shebang"]);
    let text = fails_to_start(&sandbox, &["/opt/no-shebang", "exec format error"]);
    assert!(text.contains("#!"), "the way out is to be named: {text}");
}

#[test]
fn empty_file() {
    let mut sandbox = Sandbox::new("empty");
    executable(&sandbox, "opt/empty", "");
    sandbox.args(&["/opt/empty"]);
    fails_to_start(&sandbox, &["/opt/empty", "exec format error"]);
}

#[test]
fn missing_interpreter_of_a_script_is_named() {
    let mut sandbox = Sandbox::new("shebang");
    executable(&sandbox, "opt/script", "#!/usr/bin/python4 -u\nprint(1)\n");
    sandbox.args(&["/opt/script"]);
    fails_to_start(&sandbox, &["/opt/script", "/usr/bin/python4", NOT_FOUND[1]]);
}

#[test]
fn carriage_return_in_a_shebang_is_pointed_out() {
    let mut sandbox = Sandbox::new("crlf");
    executable(&sandbox, "opt/script", "#!/bin/sh\r\necho hi\r\n");
    sandbox.args(&["/opt/script"]);
    let text = fails_to_start(&sandbox, &["/opt/script", "/bin/sh", NOT_FOUND[1]]);
    assert!(text.contains("\\r") || text.contains("CRLF") || text.contains("carriage"), "{text}");
}

#[test]
fn interpreter_that_is_not_executable() {
    let mut sandbox = Sandbox::new("interp");
    fs::write(sandbox.rootfs().join("opt-interpreter"), "x").unwrap();
    executable(&sandbox, "opt/script", "#!/opt-interpreter\n");
    sandbox.args(&["/opt/script"]);
    fails_to_start(&sandbox, &["/opt-interpreter", DENIED]);
}

/// The beginning of an ELF file for another machine, or with an interpreter: see elf(5).
fn elf(class: u8, machine: u16, interpreter: Option<&str>) -> Vec<u8> {
    let mut image = vec![0u8; 64];
    image[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
    image[16..18].copy_from_slice(&2u16.to_le_bytes());
    image[18..20].copy_from_slice(&machine.to_le_bytes());
    image[20..24].copy_from_slice(&1u32.to_le_bytes());
    let count = u16::from(interpreter.is_some());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[52..54].copy_from_slice(&64u16.to_le_bytes());
    image[54..56].copy_from_slice(&56u16.to_le_bytes());
    image[56..58].copy_from_slice(&count.to_le_bytes());
    if let Some(interpreter) = interpreter {
        let size = interpreter.len() as u64 + 1;
        let mut header = vec![0u8; 56];
        header[..4].copy_from_slice(&3u32.to_le_bytes());
        header[4..8].copy_from_slice(&4u32.to_le_bytes());
        header[8..16].copy_from_slice(&120u64.to_le_bytes());
        header[32..40].copy_from_slice(&size.to_le_bytes());
        header[40..48].copy_from_slice(&size.to_le_bytes());
        image.extend(header);
        image.extend(interpreter.bytes());
        image.push(0);
    }
    image
}

/// `e_machine` of this machine and of others.
const OWN: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
const OTHER: (u16, &str) =
    if cfg!(target_arch = "x86_64") { (183, "aarch64") } else { (62, "x86_64") };

#[test]
fn missing_interpreter_of_an_elf_file_is_named() {
    let mut sandbox = Sandbox::new("elf");
    executable(&sandbox, "opt/dynamic", elf(2, OWN, Some("/lib/ld-musl-nowhere.so.1")));
    sandbox.args(&["/opt/dynamic"]);
    fails_to_start(&sandbox, &["/opt/dynamic", "/lib/ld-musl-nowhere.so.1", NOT_FOUND[1]]);
}

#[test]
fn missing_interpreter_of_a_real_program_is_named() {
    let program = Path::new("/usr/bin/env");
    let mut sandbox = Sandbox::new("real");
    executable(&sandbox, "opt/real", fs::read(program).unwrap());
    sandbox.args(&["/opt/real"]);
    fails_to_start(&sandbox, &["/opt/real", "/ld-linux", NOT_FOUND[1]]);
}

#[test]
fn wrong_architecture_is_named() {
    let mut sandbox = Sandbox::new("arch");
    executable(&sandbox, "opt/foreign", elf(2, OTHER.0, None));
    sandbox.args(&["/opt/foreign"]);
    let text = fails_to_start(&sandbox, &["/opt/foreign", "exec format error"]);
    let names = [OTHER.1, "arm64", "amd64", "AArch64"];
    assert!(names.iter().any(|name| text.contains(name)), "which architecture? {text}");
}

#[test]
fn truncated_elf_file() {
    let mut sandbox = Sandbox::new("cut");
    executable(&sandbox, "opt/cut", &elf(2, OWN, None)[..20]);
    sandbox.args(&["/opt/cut"]);
    fails_to_start(&sandbox, &["/opt/cut", "exec format error"]);
}

#[test]
fn symlinks_of_the_container_are_followed_inside_it() {
    let mut sandbox = Sandbox::with_script("symlink", "exit 0");
    symlink("/bin/busybox", sandbox.rootfs().join("usr/bin/absolute")).unwrap();
    symlink("/opt/nowhere", sandbox.rootfs().join("usr/bin/dangling")).unwrap();
    symlink("loop", sandbox.rootfs().join("usr/bin/loop")).unwrap();
    sandbox.args(&["/usr/bin/absolute", "echo", "linked"]);
    sandbox.run();
    sandbox.args(&["/usr/bin/dangling"]);
    fails_to_start(&sandbox, &["/usr/bin/dangling", NOT_FOUND[1]]);
    sandbox.args(&["/usr/bin/loop"]);
    fails_to_start(&sandbox, &["/usr/bin/loop"]);
}

#[test]
fn noexec_mount() {
    let mut sandbox = Sandbox::new("noexec");
    fs::create_dir(sandbox.rootfs().join("opt")).unwrap();
    fs::copy(sandbox.rootfs().join("guest"), sandbox.rootfs().join("opt/guest")).unwrap();
    sandbox.mount(json!({
        "destination": "/opt", "type": "tmpfs", "source": "t", "options": ["noexec", "tmpcopyup"]
    }));
    sandbox.args(&["/opt/guest", "report"]);
    fails_to_start(&sandbox, &["/opt/guest", DENIED]);
}

/// Podman takes its exit codes from the error of create; that of start it doesn't read.
#[test]
fn a_program_that_is_missing_or_forbidden_is_refused_at_create() {
    let mut sandbox = Sandbox::new("create");
    sandbox.args(&["frobnicate"]);
    sandbox.create().fails(1, &["frobnicate", NOT_FOUND[0]]);
    sandbox.args(&["/opt/frobnicate"]);
    sandbox.create().fails(1, &["/opt/frobnicate", NOT_FOUND[1]]);
    sandbox.args(&["/etc/passwd"]);
    sandbox.create().fails(1, &["/etc/passwd", DENIED]);
    sandbox.expect_nothing_left();
}

#[test]
fn the_same_texts_from_exec() {
    let sandbox = Sandbox::with_script("execs", "exec sleep 100");
    fs::write(sandbox.rootfs().join("etc/plain"), "x").unwrap();
    executable(&sandbox, "opt/script", "#!/usr/bin/python4\n");
    executable(&sandbox, "opt/text", "echo hi\n");
    executable(&sandbox, "opt/dynamic", elf(2, OWN, Some("/lib/ld-nowhere.so")));
    sandbox.run_detached();
    for (program, texts) in [
        ("frobnicate", [NOT_FOUND[0], "frobnicate"]),
        ("/opt/frobnicate", [NOT_FOUND[1], "/opt/frobnicate"]),
        ("/etc", [DENIED, "/etc"]),
        ("/etc/plain", [DENIED, "/etc/plain"]),
        ("/opt/script", [NOT_FOUND[1], "/usr/bin/python4"]),
        ("/opt/dynamic", [NOT_FOUND[1], "/lib/ld-nowhere.so"]),
        ("/opt/text", ["exec format error", "/opt/text"]),
    ] {
        sandbox.exec(&[program]).fails(255, &texts);
        let output = sandbox.exec_call(&["--detach"]).arg(program).output();
        output.fails(255, &texts);
    }
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn the_error_is_in_the_log_too() {
    let mut sandbox = Sandbox::new("logged");
    sandbox.args(&["frobnicate"]);
    sandbox.write_config();
    let log = sandbox.dir.join("log.json");
    let call = sandbox.call(["--log"]).arg(&log).args(["--log-format", "json", "run", "--bundle"]);
    call.arg(sandbox.bundle()).arg(&sandbox.id).output().exits_with(1);
    let text = fs::read_to_string(&log).unwrap();
    let last = text.lines().rfind(|line| line.contains("\"error\"")).expect("an error in the log");
    assert!(last.contains(NOT_FOUND[0]), "{last}");
}

#[test]
fn a_failed_start_leaves_a_stopped_container() {
    let mut sandbox = Sandbox::new("after");
    executable(&sandbox, "opt/script", "#!/usr/bin/python4\n");
    sandbox.args(&["/opt/script"]);
    sandbox.create().ok();
    sandbox.start().fails(1, &["/usr/bin/python4"]);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    sandbox.expect_nothing_left();
}
