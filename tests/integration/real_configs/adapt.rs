//! Makes an engine's config.json runnable here: what only existed where the engine ran is
//! replaced by something of the same kind; everything else stays as the engine wrote it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use serde_json::{Value, json};

use crate::namespaces::Holder;
use crate::support::{Json, Sandbox};

/// What an adapted config needs while its container lives.
pub struct Adapted {
    pub sandbox: Sandbox,
    /// Holds the namespaces to be joined.
    pub _holder: Option<Holder>,
    /// What could not be kept, to be told.
    pub notes: Vec<String>,
}

/// Where the files are, in the repository.
pub fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/configs"))
}

pub fn read(name: &str) -> Value {
    let text = fs::read_to_string(folder().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The config of this name in a bundle of its own; `args` are still the engine's.
pub fn adapt(name: &str) -> Adapted {
    let short: String = name.trim_end_matches(".json").chars().take(40).collect();
    let mut sandbox = Sandbox::new(&short);
    sandbox.config = read(name);
    sandbox.config["root"]["path"] = json!("rootfs");
    sandbox.config["linux"]["cgroupsPath"] = json!(sandbox.cgroup());
    let marker = json!(sandbox.marker());
    let process = sandbox.config["process"].as_object_mut().unwrap();
    process.entry("env").or_insert(json!([])).as_array_mut().unwrap().push(marker);
    replace_sources(&mut sandbox);
    replace_hooks(&mut sandbox.config);
    let holder = replace_namespaces(&mut sandbox.config);
    give_to_mapped_root(&sandbox);
    let notes = fit_to_host(&mut sandbox.config);
    Adapted { sandbox, _holder: holder, notes }
}

/// Every bind mount gets a source of its own: a file, a program or a folder.
fn replace_sources(sandbox: &mut Sandbox) {
    let mut mounts = sandbox.config["mounts"].take();
    for (number, mount) in mounts.as_array_mut().unwrap().iter_mut().enumerate() {
        if mount["type"] != "bind" {
            continue;
        }
        let destination = mount.text("/destination").to_owned();
        let source = sandbox.dir.join(format!("source-{number}"));
        match destination.as_str() {
            "/etc/resolv.conf" | "/etc/hosts" | "/etc/hostname" | "/run/.containerenv" => {
                fs::write(&source, format!("for {destination}\n")).unwrap();
            }
            "/catatonit" | "/sbin/docker-init" => {
                fs::copy(sandbox.rootfs().join("guest"), &source).unwrap();
                fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
            }
            _ => {
                fs::create_dir(&source).unwrap();
                fs::write(source.join("marker"), &destination).unwrap();
            }
        }
        mount["source"] = json!(source);
    }
    sandbox.config["mounts"] = mounts;
}

/// Keeps how many there are of which kind; the engines' programs are not here.
fn replace_hooks(config: &mut Value) {
    let Some(kinds) = config.get_mut("hooks").and_then(Value::as_object_mut) else { return };
    for hook in kinds.values_mut().flat_map(|hooks| hooks.as_array_mut().unwrap()) {
        hook["path"] = json!("/bin/true");
    }
}

fn replace_namespaces(config: &mut Value) -> Option<Holder> {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    let mut holder = None;
    for namespace in namespaces.iter_mut().filter(|namespace| namespace.get("path").is_some()) {
        let name = match namespace.text("/type") {
            "network" => "net",
            // `--with-ns pid:/proc/1/ns/pid` meant the host's.
            "pid" => {
                namespace["path"] = json!(format!("/proc/{}/ns/pid", std::process::id()));
                continue;
            }
            other => other,
        };
        let holder = holder.get_or_insert_with(|| Holder::new(&["--net", "--ipc", "--uts"]));
        namespace["path"] = json!(holder.path(name));
    }
    holder
}

/// Where the container's root is not the host's, it must own its root folder, as engines arrange.
fn give_to_mapped_root(sandbox: &Sandbox) {
    let Some(uid) = sandbox.config.pointer("/linux/uidMappings/0/hostID").and_then(Value::as_u64)
    else {
        return;
    };
    let uid = Some(uid as u32);
    for path in ["", "dev", "etc", "mnt", "proc", "root", "sys", "tmp", "usr", "usr/bin"] {
        chown(sandbox.rootfs().join(path), uid, uid).unwrap();
    }
    for entry in fs::read_dir(&sandbox.dir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("source-") {
            chown(entry.path(), uid, uid).unwrap();
        }
    }
}

/// What this host cannot give whatever the runtime does. Each change is told.
fn fit_to_host(config: &mut Value) -> Vec<String> {
    let mut notes = Vec::new();
    let process = config["process"].as_object_mut().unwrap();
    if !Path::new("/sys/kernel/security/apparmor").exists()
        && let Some(profile) = process.remove("apparmorProfile")
    {
        notes.push(format!("no AppArmor here: profile {profile} removed"));
    }
    if let Some(limits) = process.get_mut("rlimits").and_then(Value::as_array_mut) {
        for limit in limits {
            fit_rlimit(limit, &mut notes);
        }
    }
    if let Some(score) = process.get_mut("oomScoreAdj")
        && score.as_i64().is_some_and(|score| score < own_oom_score())
    {
        notes
            .push(format!("oomScoreAdj {score} is below the caller's: CAP_SYS_RESOURCE is needed"));
        *score = json!(own_oom_score());
    }
    notes
}

fn own_oom_score() -> i64 {
    fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap()
}

fn fit_rlimit(limit: &mut Value, notes: &mut Vec<String>) {
    use nix::sys::resource::{Resource, getrlimit};
    let resource = match limit.text("/type") {
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        _ => return,
    };
    let (_, hard) = getrlimit(resource).unwrap();
    for bound in ["soft", "hard"] {
        if limit[bound].as_u64().unwrap() > hard {
            notes.push(format!("{} is above this host's hard limit {hard}", limit["type"]));
            limit[bound] = json!(hard);
        }
    }
}
