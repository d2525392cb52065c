//! Compares what the guest saw inside with what the config.json asked for.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::cgroups::{has, is_v1, limit};
use crate::support::{Json, Sandbox, own_namespace};

/// Collects what is not as asked for, so that one run tells everything about a config.
#[derive(Default)]
pub struct Findings(pub Vec<String>);

impl Findings {
    fn expect(&mut self, what: &str, found: impl Into<Value>, wanted: impl Into<Value>) {
        let (found, wanted) = (found.into(), wanted.into());
        if found != wanted {
            self.0.push(format!("{what}: {found}, not {wanted}"));
        }
    }

    fn require(&mut self, condition: bool, what: impl FnOnce() -> String) {
        if !condition {
            self.0.push(what());
        }
    }
}

/// The actions that the guest has to do for [`container`], beside its report.
pub fn actions(config: &Value) -> Vec<String> {
    let devices = config.pointer("/linux/devices").and_then(Value::as_array).into_iter().flatten();
    let mut actions: Vec<String> =
        devices.map(|device| format!("stat {}", device.text("/path"))).collect();
    let sysctl = config.pointer("/linux/sysctl").and_then(Value::as_object).into_iter().flatten();
    actions.extend(sysctl.map(|(name, _)| format!("read /proc/sys/{}", name.replace('.', "/"))));
    for mount in config["mounts"].as_array().unwrap() {
        if mount["type"] == "bind" {
            actions.push(format!("read {}", mount.text("/destination")));
            actions.push(format!("read {}/marker", mount.text("/destination")));
        }
    }
    actions.push("open rw /dev/null".into());
    actions.push("open r /dev/urandom".into());
    actions
}

/// Everything outside of `process`.
pub fn container(config: &Value, report: &Value) -> Findings {
    let mut findings = Findings::default();
    process(&config["process"], report, &mut findings);
    namespaces(config, report, &mut findings);
    if !is_shared(config, "uts") && config.get("hostname").is_some() {
        findings.expect("hostname", report["hostname"].clone(), config["hostname"].clone());
    }
    mounts(config, report, &mut findings);
    paths(config, report, &mut findings);
    let filtered = config.pointer("/linux/seccomp").is_some();
    findings.expect("seccomp", report.text("/status/Seccomp"), if filtered { "2" } else { "0" });
    for map in ["uid", "gid"] {
        if let Some(wanted) = config.pointer(&format!("/linux/{map}Mappings")) {
            let wanted: Vec<Value> = wanted
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| json!([entry["containerID"], entry["hostID"], entry["size"]]))
                .collect();
            findings.expect("id map", report[format!("{map}_map")].clone(), wanted);
        }
    }
    outcomes(config, report, &mut findings);
    findings
}

/// The results of [`actions`].
fn outcomes(config: &Value, report: &Value, findings: &mut Findings) {
    let actions = actions(config);
    let results: HashMap<&str, &str> =
        actions.iter().map(String::as_str).zip(report.texts("/actions")).collect();
    for device in config.pointer("/linux/devices").and_then(Value::as_array).into_iter().flatten() {
        let path = device.text("/path");
        let wanted = format!("ok {} {}:{}", device.text("/type"), device["major"], device["minor"]);
        let result = results[format!("stat {path}").as_str()];
        findings.require(result.starts_with(&wanted), || format!("{path}: {result}, not {wanted}"));
    }
    for (name, value) in
        config.pointer("/linux/sysctl").and_then(Value::as_object).into_iter().flatten()
    {
        let result = results[format!("read /proc/sys/{}", name.replace('.', "/")).as_str()];
        let wanted: Vec<&str> = value.as_str().unwrap().split_whitespace().collect();
        let found: Vec<&str> = result.split_whitespace().skip(1).collect();
        findings.require(found == wanted, || format!("sysctl {name}: {result}, not {value}"));
    }
    for mount in config["mounts"].as_array().unwrap().iter().filter(|mount| mount["type"] == "bind")
    {
        let destination = mount.text("/destination");
        let file = results[format!("read {destination}").as_str()];
        let folder = results[format!("read {destination}/marker").as_str()];
        let program = ["/catatonit", "/sbin/docker-init"].contains(&destination);
        let bound =
            file == format!("ok for {destination}\n") || folder == format!("ok {destination}");
        findings
            .require(bound || program, || format!("{destination} is not what was bound: {file}"));
    }
    findings.expect("/dev/null", results["open rw /dev/null"], "ok");
    findings.expect("/dev/urandom", results["open r /dev/urandom"], "ok");
}

/// `process`, or a process.json.
pub fn process(process: &Value, report: &Value, findings: &mut Findings) {
    let (uid, gid) = (process.integer("/user/uid"), process.integer("/user/gid"));
    findings.expect("uid", report.text("/status/Uid"), format!("{uid} {uid} {uid} {uid}"));
    findings.expect("gid", report.text("/status/Gid"), format!("{gid} {gid} {gid} {gid}"));
    let groups: Vec<&str> = report.text("/status/Groups").split(' ').collect();
    for group in
        process.pointer("/user/additionalGids").and_then(Value::as_array).into_iter().flatten()
    {
        findings.require(groups.contains(&group.to_string().as_str()), || {
            format!("group {group}: {groups:?}")
        });
    }
    if let Some(umask) = process.pointer("/user/umask") {
        findings.expect("umask", report["umask"].clone(), umask.clone());
    }
    findings.expect("cwd", report["cwd"].clone(), process["cwd"].clone());
    let no_new_privileges = process["noNewPrivileges"].as_bool().unwrap_or(false);
    findings.expect(
        "noNewPrivileges",
        report.text("/status/NoNewPrivs"),
        if no_new_privileges { "1" } else { "0" },
    );
    if let Some(score) = process.get("oomScoreAdj") {
        findings.expect("oomScoreAdj", report["oom_score_adj"].clone(), score.clone());
    }
    for limit in process.get("rlimits").and_then(Value::as_array).into_iter().flatten() {
        let name = limit.text("/type");
        findings.expect(
            name,
            report["rlimits"][name].clone(),
            json!([limit["soft"], limit["hard"]]),
        );
    }
    environment(process, report, findings);
    capabilities(process, report, no_new_privileges, uid, findings);
    let terminal = process["terminal"].as_bool().unwrap_or(false);
    findings.require(report["tty"][0].is_string() == terminal, || {
        format!("terminal: {}", report["tty"])
    });
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    findings.require(fds == ["0", "1", "2"], || format!("descriptors {fds:?}"));
}

/// Of several entries of one name the last counts: CRI-O repeats PATH.
fn environment(process: &Value, report: &Value, findings: &mut Findings) {
    let parse = |entries: Vec<&str>| -> HashMap<String, String> {
        let pairs = entries.into_iter().filter_map(|entry| entry.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let found = parse(report.texts("/env"));
    for (name, value) in parse(process.texts("/env")) {
        if name == "HOME" && value.is_empty() {
            // podman's pods have it so. runc looks the home up then, which is as good.
            continue;
        }
        findings.require(found.get(&name) == Some(&value), || {
            format!("{name}={:?}, not {value}", found.get(&name))
        });
    }
}

/// A set of config.json as a bit mask, without what this host's bounding set lacks: engines list
/// all capabilities for `--privileged`, and the host may have fewer.
fn mask(process: &Value, set: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let host = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let host = u64::from_str_radix(host.trim(), 16).unwrap();
    let names = process.pointer(&format!("/capabilities/{set}")).and_then(Value::as_array);
    let bits = names.into_iter().flatten().map(|name| {
        let capability = caps::Capability::from_str(name.as_str().unwrap()).unwrap();
        1u64 << capability.index()
    });
    bits.fold(0, |all, bit| all | bit) & host
}

/// What execve(2) makes of the sets of the config: see capabilities(7), "Transformation of
/// capabilities during execve()" and "Capabilities and execution of programs by root".
fn capabilities(
    process: &Value,
    report: &Value,
    no_new_privileges: bool,
    uid: i64,
    findings: &mut Findings,
) {
    let (bounding, permitted) = (mask(process, "bounding"), mask(process, "permitted"));
    let (inheritable, ambient) = (mask(process, "inheritable"), mask(process, "ambient"));
    let ambient = ambient & inheritable & permitted;
    let gained = match (uid, no_new_privileges) {
        (0, false) => bounding | inheritable,
        (0, true) => permitted & (bounding | inheritable),
        _ => ambient,
    };
    let wanted = [
        ("CapBnd", bounding),
        ("CapInh", inheritable),
        ("CapAmb", ambient),
        ("CapPrm", gained),
        ("CapEff", gained),
    ];
    for (set, wanted) in wanted {
        findings.expect(set, report.text(&format!("/status/{set}")), format!("{wanted:016x}"));
    }
}

fn is_shared(config: &Value, kind: &str) -> bool {
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    !namespaces.iter().any(|namespace| namespace["type"] == kind)
}

fn namespaces(config: &Value, report: &Value, findings: &mut Findings) {
    for (kind, name) in [
        ("pid", "pid"),
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("mount", "mnt"),
        ("user", "user"),
        ("cgroup", "cgroup"),
    ] {
        let found = report.text(&format!("/namespaces/{name}"));
        let namespaces = config["linux"]["namespaces"].as_array().unwrap();
        match namespaces.iter().find(|namespace| namespace["type"] == kind) {
            None => findings.expect(kind, found, own_namespace(name)),
            Some(namespace) => match namespace.get("path").and_then(Value::as_str) {
                Some(path) => {
                    let inode = fs::read_link(path).unwrap().display().to_string();
                    findings.expect(kind, found, inode);
                }
                None => findings
                    .require(found != own_namespace(name), || format!("{kind} is the host's")),
            },
        }
    }
}

fn mounts(config: &Value, report: &Value, findings: &mut Findings) {
    for wanted in config["mounts"].as_array().unwrap() {
        let (destination, kind) = (wanted.text("/destination"), wanted.text("/type"));
        let Some(found) = report.mount(destination) else {
            findings.0.push(format!("no mount at {destination}"));
            continue;
        };
        if kind != "bind" && kind != "cgroup" {
            findings.expect(destination, found["type"].clone(), kind);
        }
        let mut options = found.texts("/options");
        options.extend(found.texts("/super_options"));
        for option in wanted["options"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            // A cgroup mount of v1 is a tmpfs with binds in it: these have the options.
            let flag = ["ro", "nosuid", "nodev", "noexec"].contains(&option);
            if flag && kind != "cgroup" {
                findings.require(options.contains(&option), || {
                    format!("{destination} is not {option}: {options:?}")
                });
            }
        }
    }
    if config["root"]["readonly"] == true {
        let options = report.mount("/").unwrap().texts("/options");
        findings.require(options.contains(&"ro"), || format!("the root is writable: {options:?}"));
    }
}

/// Masked and read-only paths have a mount over them, if they exist at all.
fn paths(config: &Value, report: &Value, findings: &mut Findings) {
    for list in ["maskedPaths", "readonlyPaths"] {
        let paths = config["linux"].get(list).and_then(Value::as_array).into_iter().flatten();
        for path in paths.filter_map(Value::as_str) {
            // What the host's own /proc and /sys have, the container's have as well.
            if !Path::new(path).exists() {
                continue;
            }
            let Some(mount) = report.mount(path) else {
                findings.0.push(format!("{list}: {path} is open"));
                continue;
            };
            let mut options = mount.texts("/options");
            options.extend(mount.texts("/super_options"));
            let masked = options.contains(&"ro") || mount["root"] == "/null";
            findings.require(masked, || format!("{list}: {path}: {mount}"));
        }
    }
}

/// The limits, read while the container exists.
pub fn limits(sandbox: &Sandbox, findings: &mut Findings) {
    let resources = &sandbox.config["linux"]["resources"];
    let number = |pointer: &str| {
        resources.pointer(pointer).and_then(Value::as_i64).filter(|value| *value > 0)
    };
    let mut expect = |controller: &str, v1: &str, v2: &str, wanted: String| {
        if has(controller) {
            let found = limit(sandbox, controller, v1, v2);
            findings.expect(&format!("{controller} {v1} {v2}"), found, wanted);
        }
    };
    if let Some(bytes) = number("/memory/limit") {
        expect("memory", "memory.limit_in_bytes", "memory.max", bytes.to_string());
    }
    if let Some(count) = number("/pids/limit") {
        expect("pids", "pids.max", "pids.max", count.to_string());
    }
    if let Some(quota) = number("/cpu/quota") {
        let period = number("/cpu/period").unwrap_or(100_000);
        let wanted = if is_v1("cpu") { quota.to_string() } else { format!("{quota} {period}") };
        expect("cpu", "cpu.cfs_quota_us", "cpu.max", wanted);
    }
    if let Some(shares) = number("/cpu/shares").filter(|_| is_v1("cpu")) {
        expect("cpu", "cpu.shares", "cpu.weight", shares.to_string());
    }
    if let Some(cpus) = resources.pointer("/cpu/cpus").and_then(Value::as_str) {
        expect("cpuset", "cpuset.cpus", "cpuset.cpus", cpus.to_owned());
    }
}
