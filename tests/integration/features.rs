//! `features`, `spec`, `--version`, `--help`: what scripts and engines ask first.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::skip;
use crate::support::{Json, Sandbox, program};

#[test]
fn features_has_the_structure_of_the_spec() {
    let sandbox = Sandbox::new("features");
    let features = sandbox.bare_call().arg("features").output().ok().json();
    assert!(features.text("/ociVersionMin").starts_with("1.0"));
    assert!(features.text("/ociVersionMax").starts_with("1."));
    let hooks = features.texts("/hooks");
    for hook in
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    {
        assert!(hooks.contains(&hook), "{hooks:?}");
    }
    let options = features.texts("/mountOptions");
    for option in [
        "ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec", "noatime", "rprivate", "rslave",
        "rshared",
    ] {
        assert!(options.contains(&option), "{option}: {options:?}");
    }
    let namespaces = features.texts("/linux/namespaces");
    for namespace in ["pid", "network", "mount", "ipc", "uts", "user", "cgroup"] {
        assert!(namespaces.contains(&namespace), "{namespaces:?}");
    }
    let capabilities = features.texts("/linux/capabilities");
    assert!(
        capabilities.contains(&"CAP_CHOWN") && capabilities.contains(&"CAP_BPF"),
        "{capabilities:?}"
    );
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    let actions = features.texts("/linux/seccomp/actions");
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"] {
        assert!(actions.contains(&action), "{actions:?}");
    }
    assert!(features.texts("/linux/seccomp/operators").contains(&"SCMP_CMP_MASKED_EQ"));
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
        "create", "delete", "exec", "features", "kill", "list", "pause", "ps", "resume", "run",
        "spec", "start", "state",
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
