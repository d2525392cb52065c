//! config.json and process.json files as Docker, containerd, CRI-O, buildah and podman wrote
//! them, created, started and deleted as those engines do. A guest in place of their programs
//! checks that every property took effect; then some run their own programs.

mod adapt;
mod check;

use std::fs;

use serde_json::{Value, json};

use crate::skip;
use crate::support::user::{self, UserNamespace};
use crate::support::{ConsoleSocket, Json, Output, Sandbox, Terminal, host, wait_until};
use adapt::{Adapted, adapt, folder, read};
use check::Findings;

/// The files whose names begin so, process.json files or the others.
fn files(prefix: &str, process: bool) -> Vec<String> {
    let entries = fs::read_dir(folder()).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut files: Vec<String> = names
        .filter(|name| name.starts_with(prefix) && name.ends_with(".json"))
        .filter(|name| name.ends_with(".process.json") == process)
        .collect();
    files.sort();
    files
}

/// Creates, checks and starts as an engine's shim does; the output once the container has ended.
fn run_like_a_shim(sandbox: &Sandbox, findings: &mut Findings) -> (i32, String) {
    let pid_file = sandbox.dir.join("init.pid");
    let log = sandbox.dir.join("log.json");
    let terminal = sandbox.config["process"]["terminal"] == true;
    let socket = terminal.then(|| ConsoleSocket::listen(sandbox.dir.join("tty")));
    sandbox.write_config();
    let mut call =
        sandbox.call(["--log"]).arg(&log).args(["--log-format", "json", "create", "--bundle"]);
    call = call.arg(sandbox.bundle()).arg("--pid-file").arg(&pid_file);
    if let Some(socket) = &socket {
        call = call.arg("--console-socket").arg(&socket.path);
    }
    let created = call.arg(&sandbox.id).output();
    if created.code != 0 {
        return (created.code, created.stderr);
    }
    let mut terminal = socket.map(|socket| socket.receive());
    check::limits(sandbox, findings);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let started = sandbox.start();
    if started.code != 0 {
        return (started.code, started.stderr);
    }
    let output = terminal.as_mut().map(Terminal::read_to_end);
    let code = host().exit_code_of_orphan(pid);
    sandbox.wait_for("stopped");
    sandbox.delete().ok();
    sandbox.delete_forced().ok();
    (code, output.unwrap_or_else(|| created.stdout_by_now()))
}

/// Runs the guest under each config of an engine.
fn each_applies(prefix: &str, at_least: usize) {
    let names = files(prefix, false);
    assert!(names.len() >= at_least, "only {} files of {prefix}", names.len());
    let mut failed = Vec::new();
    for name in names {
        let Adapted { mut sandbox, _holder, notes } = adapt(&name);
        for note in notes {
            host().note_skip(&format!("{name}: {note}"));
        }
        let actions = check::actions(&sandbox.config);
        let args = ["/guest", "report"].into_iter().chain(actions.iter().map(String::as_str));
        sandbox.args(&args.collect::<Vec<_>>());
        let mut findings = Findings::default();
        let (code, output) = run_like_a_shim(&sandbox, &mut findings);
        match serde_json::from_str::<Value>(output.trim()) {
            Ok(report) if code == 0 => {
                findings.0.extend(check::container(&sandbox.config, &report).0)
            }
            _ => findings.0.push(format!("exit code {code}: {output}")),
        }
        if !findings.0.is_empty() {
            failed.push(format!("{name}:\n    {}", findings.0.join("\n    ")));
            // Not to be told twice by the end of the sandbox.
            sandbox.delete_forced();
        }
    }
    assert!(failed.is_empty(), "{} configs failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn docker_20_and_28() {
    each_applies("docker2", 27);
}

#[test]
fn containerd() {
    each_applies("containerd", 24);
}

#[test]
fn cri_o() {
    each_applies("crio", 1);
}

#[test]
fn podman() {
    each_applies("podman", 18);
}

/// As podman runs them: the caller is root in a user namespace of the user's.
#[test]
fn podman_without_root_in_its_user_namespace() {
    if let Some(reason) = user::missing_with_helpers() {
        skip!("{reason}");
    }
    let namespace = UserNamespace::new();
    let names = files("podman58-rootless", false);
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        let Adapted { mut sandbox, _holder, .. } = adapt(&name);
        sandbox.give_to_user();
        sandbox.wrapper = Some(namespace.wrapper());
        let linux = sandbox.config["linux"].as_object_mut().unwrap();
        linux.remove("cgroupsPath");
        if linux.contains_key("uidMappings") {
            // The user namespace's id 1.
            sandbox.give_rootfs(user::SUBORDINATE);
        }
        for entry in sandbox.config["linux"]["namespaces"].as_array_mut().unwrap() {
            if entry.get("path").is_some() {
                entry["path"] = json!(namespace.path("net"));
            }
        }
        let actions = check::actions(&sandbox.config);
        let args = ["/guest", "report"].into_iter().chain(actions.iter().map(String::as_str));
        sandbox.args(&args.collect::<Vec<_>>());
        let (code, output) = run_like_a_shim(&sandbox, &mut Findings::default());
        assert_eq!(code, 0, "{name}: {output}");
        let report: Value = serde_json::from_str(output.trim()).unwrap();
        let mut findings = check::container(&sandbox.config, &report).0;
        let inode = fs::read_link(namespace.path("user")).unwrap();
        // Not the one that the tests run in.
        findings.retain(|text| !text.starts_with(&format!("user: \"{}\"", inode.display())));
        assert!(findings.is_empty(), "{name}:\n    {}", findings.join("\n    "));
    }
}

#[test]
fn buildah() {
    each_applies("buildah", 5);
}

#[test]
fn no_file_is_left_out() {
    let all = files("", false).len();
    let known: usize = ["docker2", "containerd", "crio", "podman", "buildah"]
        .iter()
        .map(|prefix| files(prefix, false).len())
        .sum();
    assert_eq!(all, known);
    assert_eq!((all, files("", true).len()), (75, 18), "as the README beside them counts");
}

/// Runs what the engine's user had asked for.
fn own_program(name: &str) -> (i32, String) {
    let Adapted { sandbox, _holder, .. } = adapt(name);
    run_like_a_shim(&sandbox, &mut Findings::default())
}

#[test]
fn their_own_programs_end_as_expected() {
    for (name, code, text) in [
        ("docker28-run-rm-echo.json", 0, "hello"),
        ("docker28-run-rm-exit-7.json", 7, ""),
        ("docker28-oom-score-adj.json", 0, "500"),
        ("docker28-apparmor-seccomp-unconf.json", 0, "Seccomp:\t0"),
        ("docker28-usernsremap-userns-remap-2.json", 0, "uid=1000"),
        ("containerd21-ctr-run-rm.json", 0, "hello"),
        ("containerd21-ctr-run-rm-exit-7.json", 7, ""),
        ("containerd21-ctr-run-rootfs.json", 0, "rootfs"),
        ("containerd21-ctr-run-uidmap-gidmap-remap-labels.json", 0, "100000"),
        ("buildah128-from-run.json", 0, "hi"),
        ("podman58-run-rm.json", 0, "hello"),
        ("podman58-run-it.json", 0, "/dev/pts/0"),
        ("podman58-rootless-run-rm.json", 0, "hello"),
    ] {
        let (found, output) = own_program(name);
        assert_eq!(found, code, "{name}: {output}");
        assert!(output.contains(text), "{name}: {output:?}");
    }
}

#[test]
fn programs_that_cannot_be_executed_are_told_in_words_that_the_engines_know() {
    for (name, text) in [
        ("docker28-run-missing-cmd-127.json", "executable file not found"),
        ("containerd21-ctr-run-missing-cmd.json", "executable file not found"),
        ("docker28-run-non-exec-126.json", "permission denied"),
    ] {
        let (code, output) = own_program(name);
        assert_eq!(code, 1, "{name}: {output}");
        assert!(output.contains(text), "{name}: {output}");
    }
}

#[test]
fn out_of_memory() {
    let Adapted { mut sandbox, _holder, .. } = adapt("docker28-oom.json");
    sandbox.args(&["/guest", "do", "alloc 500"]);
    let (code, output) = run_like_a_shim(&sandbox, &mut Findings::default());
    assert_eq!(code, 137, "{output}");
}

/// Runs a process.json by `exec`, by console socket if it wants a terminal.
fn exec_like_a_shim(sandbox: &Sandbox, process: &Value) -> (Output, String) {
    let file = sandbox.file("process.json", &process.to_string());
    let terminal = process["terminal"] == true;
    let path = sandbox.dir.join("tty");
    let _ = fs::remove_file(&path);
    let socket = terminal.then(|| ConsoleSocket::listen(path));
    let pid_file = sandbox.dir.join("exec.pid");
    let mut call = sandbox.call(["exec", "--process"]).arg(file).arg("--detach");
    if let Some(socket) = &socket {
        call = call.arg("--console-socket").arg(&socket.path);
    }
    let output = call.arg("--pid-file").arg(&pid_file).arg(&sandbox.id).output();
    if output.code != 0 {
        return (output, String::new());
    }
    let seen = socket.map(|socket| socket.receive().read_to_end());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(host().exit_code_of_orphan(pid), 0);
    let text = seen.unwrap_or_else(|| output.stdout_by_now());
    (output, text)
}

#[test]
fn exec_with_each_process_json() {
    let mut sandbox = Sandbox::new("execs");
    sandbox.args(&["/bin/sleep", "100"]);
    // What `exec --privileged` adds must be allowed to the container's processes by nothing else.
    sandbox.run_detached();
    let names = files("", true);
    assert!(names.len() >= 18, "{names:?}");
    let mut failed = Vec::new();
    for name in names {
        let mut process = read(&name);
        process["env"].as_array_mut().unwrap().push(json!(sandbox.marker()));
        if name.contains("missing-cmd") {
            let (output, _) = exec_like_a_shim(&sandbox, &process);
            output.fails(255, &["executable file not found"]);
            continue;
        }
        process["args"] = json!(["/guest", "report"]);
        let (output, text) = exec_like_a_shim(&sandbox, &process);
        let mut findings = Findings::default();
        match serde_json::from_str::<Value>(text.trim()) {
            Ok(report) => check::process(&process, &report, &mut findings),
            Err(error) => findings.0.push(format!("{error}: {output:?} {text:?}")),
        }
        if !findings.0.is_empty() {
            failed.push(format!("{name}:\n    {}", findings.0.join("\n    ")));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_pod_of_podman_shares_what_its_first_container_has() {
    let Adapted { sandbox: mut infra, _holder, .. } = adapt("podman58-pod-run.json");
    infra.config["linux"]["namespaces"].as_array_mut().unwrap().iter_mut().for_each(|namespace| {
        namespace.as_object_mut().unwrap().remove("path");
    });
    infra.args(&["/bin/sleep", "100"]);
    infra.run_detached();
    let pid = infra.pid();
    let Adapted { sandbox: mut second, _holder, .. } = adapt("podman58-pod-run-2.json");
    for namespace in second.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace.get("path").is_some() {
            let name = if namespace["type"] == "network" { "net" } else { namespace.text("/type") };
            namespace["path"] = json!(format!("/proc/{pid}/ns/{name}"));
        }
    }
    let actions = check::actions(&second.config);
    let args = ["/guest", "report"].into_iter().chain(actions.iter().map(String::as_str));
    second.args(&args.collect::<Vec<_>>());
    let mut findings = Findings::default();
    let (code, output) = run_like_a_shim(&second, &mut findings);
    assert_eq!(code, 0, "{output}");
    let report: Value = serde_json::from_str(&output).unwrap();
    findings.0.extend(check::container(&second.config, &report).0);
    assert!(findings.0.is_empty(), "{:#?}", findings.0);
    wait_until("the first one still runs", || infra.status() == "running");
}
