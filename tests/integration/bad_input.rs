//! Input that is wrong: one line on stderr and in the log, exit code 1, and nothing left behind.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Json, Sandbox, bind, remove_namespace, set_namespace};

/// Expects both `create` and `run` to refuse what is in the bundle, naming `texts`.
#[track_caller]
fn refused(sandbox: &Sandbox, texts: &[&str]) {
    for subcommand in ["create", "run"] {
        refused_by(sandbox, subcommand, texts);
    }
}

#[track_caller]
fn refused_by(sandbox: &Sandbox, subcommand: &str, texts: &[&str]) {
    let log = sandbox.dir.join(format!("log-{subcommand}.json"));
    let call = sandbox.call(["--log"]).arg(&log).args(["--log-format", "json", subcommand]);
    let output = call.arg("--bundle").arg(sandbox.bundle()).arg(&sandbox.id).output();
    let output = output.fails(1, texts);
    assert_eq!(output.stdout, "");
    // containerd shows the last line of level error.
    let text = fs::read_to_string(&log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let last = lines.rev().find(|line| line["level"] == "error").expect("a line of level error");
    for text in texts {
        assert!(last.text("/msg").contains(text), "no {text:?} in the log: {last}");
    }
    assert!(last.text("/time").contains('T'));
    sandbox.ultari(["state", &sandbox.id]).fails(1, &["does not exist"]);
    sandbox.expect_nothing_left();
}

/// As [`refused`], for a change of the default config.
#[track_caller]
fn refuses(name: &str, texts: &[&str], change: impl FnOnce(&mut Value)) {
    let mut sandbox = Sandbox::new(name);
    change(&mut sandbox.config);
    sandbox.write_config();
    refused(&sandbox, texts);
}

#[test]
fn missing_config() {
    let sandbox = Sandbox::new("noconfig");
    refused(&sandbox, &["config.json"]);
}

#[test]
fn missing_bundle() {
    let sandbox = Sandbox::new("nobundle");
    let nowhere = sandbox.dir.join("nowhere");
    let call = sandbox.call(["create", "--bundle"]).arg(&nowhere).arg(&sandbox.id);
    call.output().fails(1, &["nowhere"]);
    sandbox.expect_nothing_left();
}

#[test]
fn config_that_is_not_json() {
    for text in ["", "{", "not json", "[]", "{\"ociVersion\": }", "\u{0}"] {
        let sandbox = Sandbox::new("nojson");
        fs::write(sandbox.bundle().join("config.json"), text).unwrap();
        refused(&sandbox, &["config.json"]);
    }
}

#[test]
fn config_that_is_a_folder() {
    let sandbox = Sandbox::new("folder");
    fs::create_dir(sandbox.bundle().join("config.json")).unwrap();
    refused(&sandbox, &["config.json"]);
}

#[test]
fn wrong_types_name_the_property() {
    let wrong: &[(&str, Value, &str)] = &[
        ("/process/user/uid", json!("root"), "uid"),
        ("/process/user/uid", json!(-1), "uid"),
        ("/process/args", json!("sh"), "args"),
        ("/process/env", json!({"A": "b"}), "env"),
        ("/process/noNewPrivileges", json!("yes"), "noNewPrivileges"),
        ("/root", json!("rootfs"), "root"),
        ("/mounts", json!({}), "mounts"),
        ("/linux/namespaces", json!("all"), "namespaces"),
        ("/hostname", json!(5), "hostname"),
        ("/linux/resources", json!("all"), "resources"),
        ("/linux/maskedPaths", json!("/proc"), "maskedPaths"),
    ];
    for (pointer, value, name) in wrong {
        refuses("type", &[name], |config| *config.pointer_mut(pointer).unwrap() = value.clone());
    }
}

#[test]
fn relative_cwd() {
    refuses("cwd", &["cwd"], |config| config["process"]["cwd"] = json!("tmp"));
    refuses("nocwd", &["cwd"], |config| config["process"]["cwd"] = json!(""));
}

#[test]
fn empty_args() {
    refuses("noargs", &["args"], |config| config["process"]["args"] = json!([]));
    refuses("args", &["args"], |config| {
        config["process"].as_object_mut().unwrap().remove("args");
    });
}

#[test]
fn process_may_be_missing_at_create_but_not_at_start() {
    let mut sandbox = Sandbox::new("noprocess");
    sandbox.config.as_object_mut().unwrap().remove("process");
    sandbox.create().ok();
    assert_eq!(sandbox.status(), "created");
    sandbox.start().fails(1, &["process"]);
    sandbox.delete().ok();
    sandbox.expect_nothing_left();
    sandbox.run().fails(1, &["process"]);
    sandbox.expect_nothing_left();
}

#[test]
fn unknown_namespace() {
    refuses("ns", &["namespace", "galaxy"], |config| set_namespace(config, "galaxy", None));
}

#[test]
fn duplicate_namespace() {
    refuses("twins", &["namespace", "pid"], |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
    });
}

#[test]
fn namespace_path_of_another_type() {
    refuses("nstype", &["/proc/self/ns/uts"], |config| {
        set_namespace(config, "ipc", Some("/proc/self/ns/uts"));
    });
}

#[test]
fn namespace_path_that_is_missing() {
    refuses("nspath", &["/nowhere/netns"], |config| {
        set_namespace(config, "network", Some("/nowhere/netns"));
    });
}

#[test]
fn unsupported_oci_version() {
    for version in ["2.0.0", "99.0.0", "abc", "", "1", "1.0.2.3"] {
        refuses("version", &["ociVersion"], |config| config["ociVersion"] = json!(version));
    }
    refuses("noversion", &["ociVersion"], |config| {
        config.as_object_mut().unwrap().remove("ociVersion");
    });
}

#[test]
fn supported_oci_versions() {
    for version in ["1.0.0", "1.0.2-dev", "1.0.2", "1.1.0", "1.2.1", "1.3.0"] {
        let mut sandbox = Sandbox::new("version");
        sandbox.config["ociVersion"] = json!(version);
        sandbox.run().ok();
    }
}

#[test]
fn unknown_properties_are_ignored() {
    let mut sandbox = Sandbox::with_script("extra", "echo fine");
    sandbox.config["someday"] = json!({"a": 1});
    sandbox.config["process"]["someday"] = json!(true);
    sandbox.run().ok().prints("fine");
}

#[test]
fn missing_rootfs() {
    refuses("noroot", &["nowhere"], |config| config["root"]["path"] = json!("nowhere"));
    refuses("absroot", &["/nowhere/at/all"], |config| {
        config["root"]["path"] = json!("/nowhere/at/all");
    });
    refuses("fileroot", &["config.json"], |config| config["root"]["path"] = json!("config.json"));
    refuses("root", &["root"], |config| {
        config.as_object_mut().unwrap().remove("root");
    });
}

#[test]
fn missing_mount_source() {
    let mut sandbox = Sandbox::new("source");
    let source = sandbox.dir.join("nowhere");
    sandbox.mount(bind(&source, "/mnt", &["bind"]));
    sandbox.write_config();
    refused(&sandbox, &[&source.display().to_string()]);
}

#[test]
fn mount_option_that_the_filesystem_refuses() {
    let mount = |options: &[&str]| json!({"destination": "/mnt", "type": "tmpfs", "source": "t", "options": options});
    for option in ["nonsense", "size=lots", "mode=9"] {
        refuses("option", &["/mnt"], |config| {
            config["mounts"].as_array_mut().unwrap().push(mount(&[option]));
        });
    }
}

#[test]
fn unknown_filesystem() {
    refuses("fs", &["nofs"], |config| {
        let mount = json!({"destination": "/mnt", "type": "nofs", "source": "nofs"});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
}

#[test]
fn bad_container_ids() {
    let sandbox = Sandbox::new("ids");
    let too_long = "x".repeat(1025);
    sandbox.write_config();
    for id in ["../x", "", "a/b", ".", "..", "/", "a b", "a\nb", "\u{e9}", &too_long] {
        for subcommand in ["create", "run"] {
            let call = sandbox.call([subcommand, "--bundle"]).arg(sandbox.bundle()).arg(id);
            call.output().fails(1, &[]);
        }
        // Nor may other commands follow such an id out of the state folder.
        for subcommand in ["state", "start", "kill", "delete", "pause", "ps"] {
            sandbox.ultari([subcommand, id]).fails(1, &[]);
        }
        sandbox.expect_nothing_left();
    }
    assert!(!sandbox.dir.join("x").exists());
}

#[test]
fn ids_of_engines_are_accepted() {
    for id in ["a", "A.b_c-d+e", &"f".repeat(64), "_x", ".hidden"] {
        let mut sandbox = Sandbox::with_script("good", "echo fine");
        sandbox.id = id.to_owned();
        sandbox.run().ok().prints("fine");
    }
}

#[test]
fn id_in_use() {
    let sandbox = Sandbox::with_script("taken", "exec sleep 100");
    sandbox.run_detached();
    let pid = sandbox.pid();
    for subcommand in ["create", "run"] {
        let output = sandbox.bundle_call(subcommand).arg(&sandbox.id).output();
        output.fails(1, &["already exists"]);
    }
    assert_eq!(sandbox.status(), "running", "the first one is none the worse for it");
    assert_eq!(sandbox.pid(), pid);
    assert!(!sandbox.cgroups().is_empty());
}

#[test]
fn unknown_capabilities_are_a_warning() {
    let mut sandbox = Sandbox::with_script("caps", "echo fine");
    for set in ["bounding", "effective", "permitted"] {
        let names = sandbox.config["process"]["capabilities"][set].as_array_mut().unwrap();
        names.push(json!("CAP_TIME_TRAVEL"));
    }
    sandbox.run().ok().prints("fine").says(&["CAP_TIME_TRAVEL"]);
}

#[test]
fn unknown_syscalls_are_no_error() {
    let mut sandbox = Sandbox::with_script("syscalls", "echo fine");
    sandbox.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["time_travel", "swapon"], "action": "SCMP_ACT_ERRNO"}]
    });
    sandbox.run().ok().prints("fine");
}

#[test]
fn bad_seccomp_profiles() {
    let profile = |profile: Value| move |config: &mut Value| config["linux"]["seccomp"] = profile;
    let action = profile(json!({"defaultAction": "SCMP_ACT_SHRUG"}));
    refuses("action", &["linux.seccomp.defaultAction", "SCMP_ACT_SHRUG"], action);
    refuses("profile", &["linux.seccomp", "object"], profile(json!([{}])));
    let operator = json!({"index": 0, "value": 1, "op": "SCMP_CMP_ISH"});
    let rule = json!({"names": ["dup"], "action": "SCMP_ACT_ALLOW", "args": [operator]});
    refuses(
        "operator",
        &["linux.seccomp.syscalls[0].args[0].op", "SCMP_CMP_ISH"],
        profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})),
    );
}

#[test]
fn rlimits_that_cannot_be() {
    let rlimits = |limits: Value| move |config: &mut Value| config["process"]["rlimits"] = limits;
    let limit =
        |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    refuses("rlimit", &["RLIMIT_NONSENSE"], rlimits(json!([limit("RLIMIT_NONSENSE", 1, 1)])));
    let twice = json!([limit("RLIMIT_NOFILE", 10, 10), limit("RLIMIT_NOFILE", 20, 20)]);
    refuses("twice", &["RLIMIT_NOFILE"], rlimits(twice));
    refuses("order", &["RLIMIT_NOFILE"], rlimits(json!([limit("RLIMIT_NOFILE", 20, 10)])));
}

#[test]
fn sysctl_of_a_shared_namespace_is_refused() {
    refuses("sysctl", &["kernel.shmmax"], |config| {
        remove_namespace(config, "ipc");
        config["linux"]["sysctl"] = json!({"kernel.shmmax": "1000000"});
    });
    refuses("netctl", &["net.ipv4.ip_forward"], |config| {
        remove_namespace(config, "network");
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "0"});
    });
    refuses("hostctl", &["kernel.panic"], |config| {
        config["linux"]["sysctl"] = json!({"kernel.panic": "0"});
    });
}

#[test]
fn hostname_needs_a_namespace() {
    refuses("hostname", &["hostname"], |config| remove_namespace(config, "uts"));
}

#[test]
fn hooks_that_cannot_run() {
    let hooks =
        |hook: Value| move |config: &mut Value| config["hooks"] = json!({"createRuntime": [hook]});
    refuses("relhook", &["hook"], hooks(json!({"path": "bin/true"})));
    refuses("nohook", &["/nowhere/hook"], hooks(json!({"path": "/nowhere/hook"})));
    refuses("zerohook", &["timeout"], hooks(json!({"path": "/bin/true", "timeout": 0})));
    refuses("neghook", &["timeout"], hooks(json!({"path": "/bin/true", "timeout": -1})));
}

#[test]
fn annotation_keys_may_not_be_empty() {
    refuses("annotation", &["annotations"], |config| config["annotations"] = json!({"": "x"}));
}

#[test]
fn paths_that_must_be_absolute() {
    for list in ["maskedPaths", "readonlyPaths"] {
        refuses("relative", &[list], |config| config["linux"][list] = json!(["proc/kcore"]));
    }
}

#[test]
fn rootfs_propagation_that_does_not_exist() {
    refuses("propagation", &["rootfsPropagation"], |config| {
        config["linux"]["rootfsPropagation"] = json!("sideways");
    });
}

#[test]
fn environment_entries_without_a_name_do_not_crash() {
    let mut sandbox = Sandbox::with_script("env", "echo fine");
    sandbox.config["process"]["env"] =
        json!(["PATH=/bin", "NOEQUALS", "=nameless", sandbox.marker()]);
    let output = sandbox.run();
    assert!(output.code == 0 || output.code == 1, "{output:?}");
}

#[test]
fn bytes_that_no_c_string_can_hold() {
    refuses("nul", &["args"], |config| config["process"]["args"] = json!(["/bin/echo", "a\0b"]));
    refuses("nulenv", &["env"], |config| config["process"]["env"] = json!(["A=b\0c"]));
    refuses("nulmount", &["destination"], |config| {
        let mount = json!({"destination": "/mnt\0x", "type": "tmpfs", "source": "t"});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
}

#[test]
fn wrong_command_lines() {
    let sandbox = Sandbox::new("usage");
    for arguments in
        [&["create"][..], &["state"], &["create", "a", "b"], &["state", "--nonsense", "x"]]
    {
        sandbox.ultari(arguments).exits_with(1);
    }
    for arguments in [&["--nonsense"][..], &["--log-format", "xml", "list"]] {
        let output = sandbox.bare_call().args(arguments).output();
        assert!(output.code != 0 && !output.stderr.is_empty(), "{output:?}");
    }
    let output = sandbox.ultari(["nonsense"]);
    assert!(output.code != 0 && output.stderr.contains("nonsense"), "{output:?}");
}

#[test]
fn bad_process_json_for_exec() {
    let sandbox = Sandbox::with_script("badexec", "exec sleep 100");
    sandbox.run_detached();
    for (text, named) in [
        ("{", "process.json"),
        (r#"{"cwd": "/", "args": [], "user": {"uid": 0, "gid": 0}}"#, "args"),
        (r#"{"cwd": "tmp", "args": ["true"], "user": {"uid": 0, "gid": 0}}"#, "cwd"),
        (r#"{"cwd": "/", "args": "true", "user": {"uid": 0, "gid": 0}}"#, "args"),
    ] {
        let file = sandbox.file("process.json", text);
        let call = sandbox.call(["exec", "--process"]).arg(&file).arg(&sandbox.id);
        call.output().fails(255, &[named]);
    }
    let call = sandbox.call(["exec", "--process", "/nowhere/process.json"]).arg(&sandbox.id);
    call.output().fails(255, &["/nowhere/process.json"]);
    assert_eq!(sandbox.status(), "running");
}
