//! `check`: what it foretells is what `create` then does.

use serde_json::{Value, json};

use crate::support::{Output, Sandbox};

fn check(sandbox: &Sandbox) -> Output {
    sandbox.write_config();
    sandbox.bare_call().args(["check", "--format", "json"]).arg(sandbox.bundle()).output()
}

fn findings(output: &Output, verdict: &str) -> Vec<String> {
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let matching = findings.filter(|finding| finding["verdict"] == verdict);
    matching.map(|finding| finding["property"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_bundle_that_works_has_nothing_against_it() {
    let sandbox = Sandbox::with_script("fine", "exit 3");
    let output = check(&sandbox).ok();
    assert_eq!(findings(&output, "no"), Vec::<String>::new());
    let fine = findings(&output, "yes");
    for property in ["ociVersion", "root.path", "process.args", "linux.namespaces"] {
        assert!(fine.iter().any(|path| path == property), "{property}: {fine:?}");
    }
    assert!(!sandbox.root().exists() && sandbox.cgroups().is_empty(), "check made something");
    sandbox.run().exits_with(3);
}

#[test]
fn what_it_refuses_create_refuses() {
    type Edit = fn(&mut Value);
    let cases: &[(&str, Edit)] = &[
        ("root.path", |config| config["root"]["path"] = json!("nowhere")),
        ("mounts[", |config| {
            let mount = json!({"destination": "/m", "source": "/no/where", "options": ["bind"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("process.rlimits", |config| {
            config["process"]["rlimits"] =
                json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1u64 << 40}]);
        }),
        ("linux.netDevices.none", |config| {
            config["linux"]["netDevices"] = json!({"none": {"name": "eth0"}});
        }),
        ("linux.intelRdt", |config| {
            config["linux"]["intelRdt"] = json!({"closID": "no-such-group"});
        }),
        ("process.cwd", |config| config["process"]["cwd"] = json!("tmp")),
        ("linux.namespaces", |config| {
            config["linux"]["namespaces"][0]["path"] = json!("/no/such/namespace");
        }),
        ("linux.namespaces (network).path", |config| {
            let ipc = json!({"type": "network", "path": "/proc/self/ns/ipc"});
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "network");
            namespaces.push(ipc);
        }),
        ("process.selinuxLabel", |config| {
            config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        }),
        ("linux.sysctl", |config| {
            config["linux"]["sysctl"] = json!({"net.ipv4.no_such_thing": "1"});
        }),
        ("hooks.createRuntime[0]", |config| {
            config["hooks"] = json!({"createRuntime": [{"path": "/no/such/hook"}]});
        }),
        ("linux.seccomp", |config| {
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": [], "action": "SCMP_ACT_ERRNO"}]
            });
        }),
        ("linux.cgroupsPath", |config| config["linux"]["cgroupsPath"] = json!("/a/../b")),
        ("linux.resources.network.classID", |config| {
            config["linux"]["resources"]["network"] = json!({"classID": 1});
        }),
        ("linux.resources.memory.swap", |config| {
            config["linux"]["resources"]["memory"] = json!({"limit": 1 << 30, "swap": 1});
        }),
        ("linux.resources.memory.limit", |config| {
            config["linux"]["resources"]["memory"] = json!({"limit": "1G"});
        }),
    ];
    for (property, edit) in cases {
        let mut sandbox = Sandbox::with_script("refused", "exit 0");
        edit(&mut sandbox.config);
        let output = check(&sandbox);
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        let refused = report["findings"].as_array().unwrap().iter();
        let refused: Vec<_> = refused.filter(|finding| finding["verdict"] == "no").collect();
        assert_eq!(refused.len(), 1, "{property}: {refused:?}");
        let text = |key: &str| refused[0][key].as_str().unwrap();
        assert!(text("property").starts_with(property), "{property}: {refused:?}");
        output.exits_with(1);
        // The same code, and so the same words.
        sandbox.create().fails(1, &[text("property"), text("reason")]);
        assert!(!sandbox.root().exists() || sandbox.cgroups().is_empty(), "{property}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let mut sandbox = Sandbox::with_script("many", "exit 0");
    sandbox.config["process"]["cwd"] = json!("tmp");
    sandbox.config["process"]["oomScoreAdj"] = json!(5000);
    sandbox.config["mounts"][1]["options"] = json!(["bind"]);
    sandbox.config["mounts"][1]["source"] = json!(null);
    sandbox.config["mounts"][2]["destination"] = json!(7);
    sandbox.config["hooks"] = json!({"poststop": [{"path": "/bin/true", "timeout": 0}]});
    sandbox.config["linux"]["resources"]["cpu"] = json!({"quota": "all"});
    sandbox.config["root"]["path"] = json!("nowhere");
    let output = check(&sandbox);
    let refused = findings(&output, "no");
    for property in [
        "process.cwd",
        "process.oomScoreAdj",
        "mounts[1]",
        "mounts[2].destination",
        "hooks.poststop[0].timeout",
        "linux.resources.cpu.quota",
        "root.path",
    ] {
        let named = refused.iter().filter(|path| path.starts_with(property)).count();
        assert_eq!(named, 1, "{property}: {refused:?}");
    }
    assert_eq!(refused.len(), 7, "{refused:?}");
    sandbox.create().exits_with(1);
}

#[test]
fn unknown_properties_and_capabilities_are_warnings() {
    let mut sandbox = Sandbox::with_script("typo", "exit 0");
    sandbox.config["hostnme"] = json!("x");
    sandbox.config["linux"]["sysctls"] = json!({});
    sandbox.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_FLY"]);
    let output = check(&sandbox).ok();
    let warnings = findings(&output, "warning");
    for property in ["hostnme", "linux.sysctls", "process.capabilities"] {
        assert!(warnings.iter().any(|path| path == property), "{property}: {warnings:?}");
    }
}

#[test]
fn people_get_a_table() {
    let sandbox = Sandbox::with_script("table", "exit 0");
    sandbox.write_config();
    let call = sandbox.bare_call().arg("check").cwd(sandbox.bundle());
    let output = call.output().ok();
    assert!(output.stdout.contains("can be created on this host"), "{output:?}");
    let output = sandbox.bare_call().args(["check", "/no/such/bundle"]).output();
    output.fails(1, &["/no/such/bundle"]);
}
