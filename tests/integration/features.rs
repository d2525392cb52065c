//! `features`, `spec`, `--version`, `--help`: what scripts and engines ask first.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::skip;
use crate::support::{Json, Sandbox, program};

/// Whether `value` is of the shape that the schema of the specification describes: every property
/// that has one, and no other.
#[track_caller]
fn expect_shape(value: &Value, shape: &Value, at: &str) {
    match shape {
        Value::Object(properties) => {
            let object = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            for name in object.keys() {
                assert!(properties.contains_key(name), "{at}/{name}: the specification has it not");
            }
            for (name, shape) in properties {
                assert!(object.contains_key(name), "{at}/{name}: missing");
                expect_shape(&object[name], shape, &format!("{at}/{name}"));
            }
        }
        Value::String(kind) if kind == "strings" => {
            let array = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            assert!(array.iter().all(Value::is_string), "{at}: {value}");
            let distinct: std::collections::BTreeSet<_> =
                array.iter().map(Value::to_string).collect();
            assert_eq!(distinct.len(), array.len(), "{at}: something twice in {value}");
        }
        Value::String(_) => assert!(value.is_string(), "{at}: {value}"),
        Value::Bool(_) => assert!(value.is_boolean(), "{at}: {value}"),
        other => unreachable!("{other}"),
    }
}

#[test]
fn features_has_the_structure_of_the_spec() {
    let sandbox = Sandbox::new("features");
    let mut features = sandbox.bare_call().arg("features").output().ok().json();
    let annotations = features.as_object_mut().unwrap().remove("annotations").unwrap();
    assert!(annotations.as_object().unwrap().values().all(Value::is_string), "{annotations}");
    let linux = features["linux"].as_object_mut().unwrap();
    // Their parts depend on what is served of them.
    for name in ["intelRdt", "memoryPolicy"] {
        assert!(linux.remove(name).is_some_and(|value| value.is_object()), "{name}");
    }
    let enabled = json!({"enabled": true});
    let shape = json!({
        "ociVersionMin": "", "ociVersionMax": "", "hooks": "strings", "mountOptions": "strings",
        "potentiallyUnsafeConfigAnnotations": "strings",
        "linux": {
            "namespaces": "strings", "capabilities": "strings",
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true
            },
            "seccomp": {
                "enabled": true, "actions": "strings", "operators": "strings",
                "archs": "strings", "knownFlags": "strings", "supportedFlags": "strings"
            },
            "apparmor": enabled, "selinux": enabled, "netDevices": enabled,
            "mountExtensions": {"idmap": enabled}
        }
    });
    expect_shape(&features, &shape, "");
}

#[test]
fn features_lists_all_that_the_spec_knows() {
    let sandbox = Sandbox::new("features");
    let features = sandbox.bare_call().arg("features").output().ok().json();
    let sorted = |pointer: &str| {
        let mut texts = features.texts(pointer);
        texts.sort_unstable();
        texts
    };
    assert_eq!(features.text("/ociVersionMin"), "1.0.0");
    assert_eq!(features.text("/ociVersionMax"), "1.3.0");
    let hooks =
        ["createContainer", "createRuntime", "poststart", "poststop", "prestart", "startContainer"];
    assert_eq!(sorted("/hooks"), hooks);
    let namespaces = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];
    assert_eq!(sorted("/linux/namespaces"), namespaces);
    let capabilities = sorted("/linux/capabilities");
    assert_eq!(capabilities.len(), 41, "{capabilities:?}");
    for capability in ["CAP_CHOWN", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"] {
        assert!(capabilities.contains(&capability), "{capabilities:?}");
    }
    for module in ["apparmor", "selinux", "seccomp"] {
        assert_eq!(features["linux"][module]["enabled"], true);
    }
    for version in ["v1", "v2"] {
        assert_eq!(features["linux"]["cgroup"][version], true);
    }
    let options = features.texts("/mountOptions");
    for option in [
        "ro",
        "rw",
        "bind",
        "rbind",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "rprivate",
        "rslave",
        "rshared",
        "rro",
        "rnosymfollow",
        "tmpcopyup",
        "lazytime",
        "unbindable",
    ] {
        assert!(options.contains(&option), "{option}: {options:?}");
    }
    let actions = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ];
    assert_eq!(sorted("/linux/seccomp/actions"), actions);
    let operators = [
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ];
    assert_eq!(sorted("/linux/seccomp/operators"), operators);
    let flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    assert_eq!(sorted("/linux/seccomp/knownFlags"), flags);
    assert_eq!(sorted("/linux/seccomp/supportedFlags"), flags);
    assert_eq!(sorted("/linux/seccomp/archs").len(), 23);
}

#[test]
fn what_features_lists_is_accepted() {
    let sandbox = Sandbox::new("accepted");
    let features = sandbox.bare_call().arg("features").output().ok().json();
    let mut sandbox = Sandbox::with_script("accepted", "echo runs");
    let seccomp = &features["linux"]["seccomp"];
    let rule = |action: &Value| json!({"names": ["getpriority"], "action": action});
    let asked: Vec<&Value> = seccomp["actions"].as_array().unwrap().iter().collect();
    let syscalls: Vec<Value> = asked
        .iter()
        .filter(|action| !["SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW"].contains(&action.as_str().unwrap()))
        .enumerate()
        .map(|(index, action)| {
            let operators = seccomp["operators"].as_array().unwrap();
            let operator = &operators[index % operators.len()];
            let mut rule = rule(action);
            rule["args"] = json!([{"index": 0, "value": 90 + index, "op": operator}]);
            rule
        })
        .collect();
    assert!(syscalls.len() >= seccomp["operators"].as_array().unwrap().len());
    let flags = seccomp["supportedFlags"].as_array().unwrap().iter();
    let flags: Vec<&Value> =
        flags.filter(|flag| *flag != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV").collect();
    sandbox.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": seccomp["archs"], "flags": flags,
        "syscalls": syscalls
    });
    let sets = &features["linux"]["capabilities"];
    sandbox.config["process"]["capabilities"] = json!({"bounding": sets, "permitted": sets});
    for version in [features.text("/ociVersionMin"), features.text("/ociVersionMax")] {
        sandbox.config["ociVersion"] = json!(version);
        sandbox.run().ok().prints("runs");
    }
}

#[test]
fn every_mount_option_of_features_is_accepted() {
    let sandbox = Sandbox::new("options");
    let features = sandbox.bare_call().arg("features").output().ok().json();
    let options: Vec<String> =
        features.texts("/mountOptions").into_iter().map(str::to_owned).collect();
    assert!(!options.is_empty());
    for option in options {
        // These need more than a tmpfs: an id map, or the mount they change.
        if ["remount", "bind", "rbind", "idmap", "ridmap", "acl", "noacl", "mand"]
            .contains(&option.as_str())
        {
            continue;
        }
        let mut sandbox = Sandbox::with_script("option", "exit 0");
        sandbox.mount(json!({
            "destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": [option]
        }));
        sandbox.run().ok();
    }
}

#[test]
fn spec_writes_a_config_that_runs() {
    let mut sandbox = Sandbox::new("spec");
    sandbox.bare_call().arg("spec").cwd(sandbox.bundle()).output().ok();
    let text = fs::read_to_string(sandbox.bundle().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert!(config.text("/ociVersion").starts_with("1."));
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert_eq!(config["process"]["terminal"], true);
    assert_eq!(config["root"]["path"], "rootfs");
    assert_eq!(config["root"]["readonly"], true);
    sandbox.bare_call().arg("spec").cwd(sandbox.bundle()).output().fails(1, &["config.json"]);
    sandbox.config = config;
    sandbox.config["process"]["terminal"] = json!(false);
    sandbox.config["process"]["args"] = json!(["sh", "-c", "echo as written; hostname >/dev/null"]);
    let marker = sandbox.marker();
    sandbox.config["process"]["env"].as_array_mut().unwrap().push(json!(marker));
    sandbox.config["linux"]["cgroupsPath"] = json!(sandbox.cgroup());
    sandbox.run().ok().prints("as written");
}

#[test]
fn spec_for_another_folder() {
    let sandbox = Sandbox::new("specdir");
    sandbox.bare_call().args(["spec", "--bundle"]).arg(sandbox.bundle()).output().ok();
    assert!(sandbox.bundle().join("config.json").exists());
}

#[test]
fn spec_has_the_default_fences() {
    let sandbox = Sandbox::new("fences");
    sandbox.bare_call().args(["spec", "-b"]).arg(sandbox.bundle()).output().ok();
    let text = fs::read_to_string(sandbox.bundle().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["process"]["noNewPrivileges"], true);
    let masked = config.texts("/linux/maskedPaths");
    assert!(masked.contains(&"/proc/kcore") && masked.contains(&"/sys/firmware"), "{masked:?}");
    let readonly = config.texts("/linux/readonlyPaths");
    assert!(readonly.contains(&"/proc/sys"), "{readonly:?}");
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    for kind in ["pid", "network", "ipc", "uts", "mount"] {
        assert!(namespaces.iter().any(|namespace| namespace["type"] == kind), "{kind}");
    }
    let bounding = config.texts("/process/capabilities/bounding");
    assert!(!bounding.contains(&"CAP_SYS_ADMIN"), "{bounding:?}");
    assert_eq!(
        config["linux"]["resources"]["devices"][0],
        json!({"allow": false, "access": "rwm"})
    );
}

#[test]
fn version() {
    let sandbox = Sandbox::new("version");
    let output = sandbox.bare_call().arg("--version").output().ok();
    let first = output.stdout.lines().next().unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    assert!(
        words.len() >= 3 && words[1] == "version" && words[2].contains('.'),
        "as runc's: {first}"
    );
    let spec = output.stdout.lines().find_map(|line| line.strip_prefix("spec: "));
    assert!(spec.is_some_and(|spec| spec.starts_with("1.")), "{}", output.stdout);
}

#[test]
fn help_lists_the_commands() {
    let sandbox = Sandbox::new("help");
    let output = sandbox.bare_call().arg("--help").output().ok();
    for command in [
        "create", "delete", "events", "exec", "features", "kill", "list", "pause", "ps", "resume",
        "run", "spec", "start", "state", "update",
    ] {
        assert!(output.stdout.contains(command), "{command}: {}", output.stdout);
    }
    for command in ["create", "run", "exec", "kill", "delete", "list", "ps", "spec", "state"] {
        let output = sandbox.bare_call().args([command, "--help"]).output().ok();
        assert!(output.stdout.contains(command), "{}", output.stdout);
    }
}

#[test]
fn the_default_root_is_under_run() {
    let mut sandbox = Sandbox::with_script("root", "exec sleep 100");
    sandbox.config["linux"]["cgroupsPath"] = json!(sandbox.cgroup());
    sandbox.write_config();
    let name = program().file_name().unwrap().to_str().unwrap();
    // In a /run of its own, so that nothing is made on the host.
    let script = format!(
        "exec unshare -m --propagation private sh -c 'mount -t tmpfs run /run && \"$@\" && \
         ls /run/{name}; \"$1\" delete --force {0}; ls /run/{name} | wc -l' sh \"$@\"",
        sandbox.id
    );
    let call = sandbox.bare_call().args(["create", "--bundle"]).arg(sandbox.bundle());
    let output = call.arg(&sandbox.id).wrapped(&script).output().ok();
    assert_eq!(output.stdout, format!("{}\n0\n", sandbox.id));
}

#[test]
fn the_default_root_of_a_user_is_in_the_runtime_dir() {
    if !Path::new("/usr/bin/strace").exists() {
        skip!("strace is not installed");
    }
    let sandbox = Sandbox::new("userroot");
    let home = sandbox.dir.join("xdg");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    let wrapper = "exec setpriv --reuid 1000 --regid 1000 --clear-groups \
                   strace -f -qq -e trace=file \"$@\"";
    let call = sandbox.bare_call().env("XDG_RUNTIME_DIR", &home.display().to_string());
    let output = call.args(["state", "nobody"]).cwd("/").wrapped(wrapper).output().exits_with(1);
    let name = program().file_name().unwrap().to_str().unwrap();
    assert!(output.stderr.contains(&format!("{}/{name}", home.display())), "{}", output.stderr);
    assert!(!output.stderr.contains(&format!("\"/run/{name}")), "{}", output.stderr);
}

#[test]
fn an_empty_runtime_dir_of_the_user_is_ignored() {
    // podman passes XDG_RUNTIME_DIR= on.
    let sandbox = Sandbox::new("xdg");
    let call = sandbox.bare_call().env("XDG_RUNTIME_DIR", "").cwd(&sandbox.dir);
    call.args(["state", "no-such-container-of-the-tests"]).output().fails(1, &["does not exist"]);
    assert!(!sandbox.dir.join("ultari").exists());
}
