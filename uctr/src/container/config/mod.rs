//! The config.json of a container: docker's defaults, its image's configuration and its flags.

pub mod capabilities;
pub mod devices;
pub mod files;
pub mod seccomp;
pub mod user;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::record::{HostConfig, Record};
use user::User;

/// Where the reaper of `--init` is in the container; docker has its own there.
pub const INIT_PATH: &str = "/sbin/docker-init";

/// Paths of the kernel that a container sees empty.
pub const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths of the kernel that a container can't write.
pub const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What of this host a container's config.json depends on.
pub struct Surroundings<'a> {
    /// The mounted root filesystem.
    pub rootfs: &'a Path,
    /// The folder with its hosts, hostname and resolv.conf.
    pub files: &'a Path,
    /// This program, as the reaper of `--init`.
    pub program: &'a Path,
    /// First processes of the containers whose namespaces it shares.
    pub pid_of: &'a dyn Fn(&str) -> Result<i32>,
    /// Environment of `--link`.
    pub link_env: &'a [String],
}

/// The whole of it.
///
/// # Errors
/// When a user isn't there, a device, or another container whose namespace is to be shared.
pub fn make(record: &Record, around: &Surroundings) -> Result<Value> {
    let host = &record.host_config;
    let root = user::open_root(around.rootfs)?;
    let user = user::find(&root, &record.config.user, &host.group_add)?;
    let capabilities = capabilities::of(&host.cap_add, &host.cap_drop, host.privileged)?;
    let security = Security::parse(&host.security_opt)?;
    let namespaces = namespaces(host, around.pid_of)?;
    let mut linux = json!({
        "namespaces": namespaces,
        "resources": resources(host)?,
        "sysctl": sysctls(host),
    });
    if !host.cgroup_parent.is_empty() {
        let parent = host.cgroup_parent.trim_end_matches('/');
        linux["cgroupsPath"] = json!(format!("{parent}/{}", record.id));
    }
    if !host.privileged {
        linux["maskedPaths"] = json!(host.masked_paths);
        linux["readonlyPaths"] = json!(host.readonly_paths);
        match security.seccomp.as_deref() {
            Some("unconfined") => {}
            Some("builtin") | None => linux["seccomp"] = seccomp::default_policy(&capabilities),
            Some(profile) => linux["seccomp"] = seccomp::from_profile(profile, &capabilities)?,
        }
    }
    linux["devices"] = json!(devices::nodes(host)?);
    let mut spec = json!({
        "ociVersion": ultari::spec::SPEC_VERSION,
        "process": process(record, around, &user, &capabilities, &security),
        "root": {"path": around.rootfs, "readonly": host.readonly_rootfs},
        "mounts": mounts(record, around),
        "linux": linux,
    });
    if host.uts_mode.is_empty() && !host.network_mode.starts_with("container:") {
        spec["hostname"] = json!(record.config.hostname);
        if !record.config.domainname.is_empty() {
            spec["domainname"] = json!(record.config.domainname);
        }
    }
    Ok(spec)
}

/// `--security-opt`
#[derive(Debug, Default)]
pub struct Security {
    /// `unconfined`, `builtin`, or the text of a profile.
    pub seccomp: Option<String>,
    /// AppArmor's profile.
    pub apparmor: Option<String>,
    /// Set-user-ID programs have no effect.
    pub no_new_privileges: bool,
}

impl Security {
    /// Reads them.
    ///
    /// # Errors
    /// When one is unknown or not supported.
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut security = Self::default();
        for option in options {
            let (key, value) = match option.split_once(['=', ':']) {
                Some((key, value)) => (key, value),
                None => (option.as_str(), ""),
            };
            match (key, value) {
                ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
                ("no-new-privileges", "false") => {}
                ("seccomp", value) => security.seccomp = Some(value.into()),
                ("apparmor", "unconfined") | ("label", "disable") => {}
                ("apparmor", profile) => security.apparmor = Some(profile.into()),
                ("systempaths", "unconfined") => {}
                ("label", _) => bail!(
                    "--security-opt {option}: labels of SELinux are not supported; label=disable is"
                ),
                _ => bail!("invalid --security-opt: {option:?}"),
            }
        }
        Ok(security)
    }
}

fn process(
    record: &Record,
    around: &Surroundings,
    user: &User,
    capabilities: &[String],
    security: &Security,
) -> Value {
    let config = &record.config;
    let mut args = record.args.clone();
    if record.host_config.init == Some(true) {
        let reaper = [INIT_PATH, "init", "--"].map(str::to_owned);
        args.splice(0..0, reaper);
    }
    let mut env = environment(record, around.link_env);
    if config.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    let rlimits: Vec<_> = record.host_config.ulimits.iter().map(rlimit).collect();
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args,
        "env": env,
        "cwd": if config.working_dir.is_empty() { "/" } else { &config.working_dir },
        "capabilities": capability_sets(capabilities, user.uid),
        "rlimits": rlimits,
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": record.host_config.oom_score_adj,
    });
    if let Some(profile) = &security.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if record.host_config.oom_score_adj == 0
        && let Some(process) = process.as_object_mut()
    {
        // Lowering it to 0 needs a privilege that the caller may lack.
        process.remove("oomScoreAdj");
    }
    process
}

/// Who isn't root has none in effect until it executes a program that has some.
#[must_use]
pub fn capability_sets(capabilities: &[String], uid: u32) -> Value {
    match uid {
        0 => json!({
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        }),
        _ => json!({"bounding": capabilities}),
    }
}

/// `PATH` and `HOSTNAME` come first, as with docker; what the image or the user says wins.
fn environment(record: &Record, link_env: &[String]) -> Vec<String> {
    let own = &record.config.env;
    let mut env = Vec::new();
    let has = |name: &str| own.iter().any(|entry| entry.split('=').next() == Some(name));
    if !has("PATH") {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    if !has("HOSTNAME") {
        env.push(format!("HOSTNAME={}", record.config.hostname));
    }
    env.extend(link_env.iter().cloned());
    // `-e NAME` without a value takes it away.
    env.extend(own.iter().filter(|entry| entry.contains('=')).cloned());
    env
}

fn rlimit(limit: &super::record::Ulimit) -> Value {
    let number = |value: i64| if value < 0 { u64::MAX } else { value as u64 };
    json!({
        "type": format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
        "soft": number(limit.soft),
        "hard": number(limit.hard),
    })
}

fn namespaces(host: &HostConfig, pid_of: &dyn Fn(&str) -> Result<i32>) -> Result<Vec<Value>> {
    let mut list = vec![json!({"type": "mount"})];
    for (kind, file, mode) in [
        ("network", "net", &host.network_mode),
        ("uts", "uts", &host.uts_mode),
        ("pid", "pid", &host.pid_mode),
        ("ipc", "ipc", &host.ipc_mode),
        ("cgroup", "cgroup", &host.cgroupns_mode),
    ] {
        match mode.strip_prefix("container:") {
            Some(other) => {
                let pid = pid_of(other).with_context(|| format!("--{kind} {mode}"))?;
                list.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
                // The names belong to the network.
                if kind == "network" && host.uts_mode.is_empty() {
                    list.push(json!({"type": "uts", "path": format!("/proc/{pid}/ns/uts")}));
                }
            }
            None if mode == "host" => {}
            None if kind == "uts" && host.network_mode.starts_with("container:") => {}
            None => list.push(json!({"type": kind})),
        }
    }
    Ok(list)
}

fn sysctls(host: &HostConfig) -> Value {
    let mut all = serde_json::Map::new();
    if host.network_mode != "host" && !host.network_mode.starts_with("container:") {
        all.insert("net.ipv4.ip_unprivileged_port_start".into(), json!("0"));
        all.insert("net.ipv4.ping_group_range".into(), json!("0 2147483647"));
    }
    for (name, value) in &host.sysctls {
        all.insert(name.clone(), json!(value));
    }
    Value::Object(all)
}

/// `linux.resources`
///
/// # Errors
/// When a device isn't there.
pub fn resources(host: &HostConfig) -> Result<Value> {
    let mut all = limits(host);
    all["devices"] = match host.privileged {
        true => json!([{"allow": true, "access": "rwm"}]),
        false => {
            let mut rules = vec![json!({"allow": false, "access": "rwm"})];
            rules.extend(devices::rules(host)?);
            json!(rules)
        }
    };
    Ok(all)
}

/// What `update` can change of them, too.
#[must_use]
pub fn limits(host: &HostConfig) -> Value {
    let (mut cpu, mut memory) = (json!({}), json!({}));
    if host.nano_cpus > 0 {
        cpu["period"] = json!(100_000);
        cpu["quota"] = json!(host.nano_cpus / 10_000);
    }
    if host.cpu_period > 0 {
        cpu["period"] = json!(host.cpu_period);
    }
    if host.cpu_quota != 0 {
        cpu["quota"] = json!(host.cpu_quota);
    }
    if host.cpu_shares > 0 {
        cpu["shares"] = json!(host.cpu_shares);
    }
    if !host.cpuset_cpus.is_empty() {
        cpu["cpus"] = json!(host.cpuset_cpus);
    }
    if !host.cpuset_mems.is_empty() {
        cpu["mems"] = json!(host.cpuset_mems);
    }
    if host.memory > 0 {
        memory["limit"] = json!(host.memory);
    }
    if host.memory_swap != 0 && swap_is_counted() {
        memory["swap"] = json!(host.memory_swap);
    }
    if host.memory_reservation > 0 {
        memory["reservation"] = json!(host.memory_reservation);
    }
    let mut all = json!({"cpu": cpu, "memory": memory});
    if let Some(limit) = host.pids_limit.filter(|limit| *limit != 0) {
        all["pids"] = json!({"limit": limit.max(-1)});
    }
    all
}

/// On cgroup v1 only a kernel that was told so counts it.
#[must_use]
pub fn swap_is_counted() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    !v1.exists() || v1.join("memory.memsw.limit_in_bytes").exists()
}

fn mounts(record: &Record, around: &Surroundings) -> Vec<Value> {
    let host = &record.host_config;
    let access = if host.privileged { "rw" } else { "ro" };
    let kernel = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": kernel}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options":
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", access]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": kernel}),
    ];
    if host.ipc_mode == "host" {
        mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
            "options": ["rbind", "rprivate"]}));
    } else if let Some(other) = host.ipc_mode.strip_prefix("container:") {
        let pid = (around.pid_of)(other).unwrap_or(0);
        mounts.push(json!({"destination": "/dev/shm", "type": "bind",
            "source": format!("/proc/{pid}/root/dev/shm"), "options": ["rbind", "rprivate"]}));
    } else {
        mounts.push(json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options":
            ["nosuid", "noexec", "nodev", "mode=1777", format!("size={}", host.shm_size)]}));
    }
    let covered = |path: &str| record.mounts.iter().any(|m| m.destination == Path::new(path));
    for name in files::NAMES {
        let path = format!("/etc/{name}");
        if !covered(&path) {
            let mut options = vec!["rbind", "rprivate"];
            options.extend(host.readonly_rootfs.then_some("ro"));
            mounts.push(json!({"destination": path, "type": "bind",
                "source": around.files.join(name), "options": options}));
        }
    }
    if host.init == Some(true) {
        mounts.push(json!({"destination": INIT_PATH, "type": "bind", "source": around.program,
            "options": ["bind", "rprivate", "ro", "nosuid"]}));
    }
    mounts.extend(volumes(record));
    // The user's own mounts replace the default ones, and the higher come before what is in them.
    let own = |path: &Value| path.as_str().is_some_and(covered);
    let defaults = mounts.len() - record.mounts.len();
    let mut index = 0;
    mounts.retain(|mount| {
        index += 1;
        index > defaults || !own(&mount["destination"])
    });
    mounts
}

fn volumes(record: &Record) -> Vec<Value> {
    let mut sorted: Vec<_> = record.mounts.iter().collect();
    sorted.sort_by_key(|mount| mount.destination.components().count());
    let one = |mount: &&crate::volume::MountPoint| {
        let kind = if mount.kind == "tmpfs" { "tmpfs" } else { "bind" };
        let source = mount.source.clone().unwrap_or_else(|| PathBuf::from("tmpfs"));
        let mut options = mount.options.clone();
        if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.insert(0, "rbind".into());
        }
        json!({
            "destination": mount.destination, "type": kind, "source": source, "options": options,
        })
    };
    sorted.iter().map(one).collect()
}
