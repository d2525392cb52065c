//! What this host can and can't honour of a bundle, property by property, without making anything.
//!
//! The configuration goes through the same conversion as for `create`, the filter through the same
//! compiler. What the kernel says only when asked is asked here without side effects: limits of
//! this process, known filesystems, offered cgroup controllers, files that must exist.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::{LinuxNamespaceType as Ns, LinuxResources};
use serde::Serialize;
use serde_json::Value;

use crate::procfs::Proc;
use crate::resctrl::Groups;
use crate::rootfs::root::Root;
use crate::security::{capabilities::have, seccomp};
use crate::spec::mount::Kind;
use crate::spec::{self, Config, Process};
use crate::{cgroup, namespace, netdev, userns};

/// How a property would fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It takes effect.
    Yes,
    /// `create` goes on, but not as one might expect.
    Warning,
    /// `create` fails.
    No,
}

/// What is to be said of one property.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its path in config.json, as in `linux.resources.memory`.
    pub property: String,
    /// How it would fare.
    pub verdict: Verdict,
    /// Why, unless it is fine.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// All findings on a bundle.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Problems first found come first; then what is fine.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether `create` would work, as far as can be told beforehand.
    pub fn is_fine(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::No)
    }

    fn add(&mut self, verdict: Verdict, property: impl Into<String>, reason: impl Into<String>) {
        let (property, reason) = (property.into(), reason.into());
        self.findings.push(Finding { property, verdict, reason });
    }

    fn no(&mut self, property: impl Into<String>, reason: impl Into<String>) {
        self.add(Verdict::No, property, reason);
    }

    fn warn(&mut self, property: impl Into<String>, reason: impl Into<String>) {
        self.add(Verdict::Warning, property, reason);
    }

    /// Takes an error whose text starts with the property.
    fn refuse(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let (property, reason) = text.split_once(": ").unwrap_or(("config.json", &text));
        self.no(property, reason);
    }
}

/// Examines the bundle in the absolute folder `bundle`.
pub fn check(bundle: &Path) -> Report {
    let mut report = Report::default();
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) => {
            report.no("config.json", format!("{}: {error}", path.display()));
            return report;
        }
    };
    if let Some(config) = parse_leniently(&text, bundle, &mut report) {
        check_host(&config, &mut report);
    }
    if let Ok(value) = serde_json::from_slice(&text) {
        for property in spec::unknown_properties(&value) {
            report.warn(property, "not a property of the specification; ignored");
        }
        report_rest(&value, &mut report);
    }
    report
}

/// Parses as `create` does; where that stops at a property, notes it and goes on without it.
fn parse_leniently(text: &[u8], bundle: &Path, report: &mut Report) -> Option<Config> {
    let mut value: Option<Value> = serde_json::from_slice(text).ok();
    let mut text = text.to_vec();
    let mut tried = BTreeSet::new();
    loop {
        let error = match spec::parse(&text, bundle) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let shown = format!("{error:#}");
        let property = shown.split(": ").next().unwrap_or_default();
        // That a required property is missing now is no news.
        if !report.findings.iter().any(|finding| finding.property.starts_with(property)) {
            report.refuse(&error);
        }
        let value = value.as_mut()?;
        let again = !tried.insert(property.to_owned());
        // Most of the required properties are paths.
        let missing = shown.split("missing field `").nth(1).and_then(|rest| rest.split('`').next());
        let parent = missing.and_then(|_| value.pointer_mut(&pointer(property)));
        let parent = parent.and_then(Value::as_object_mut);
        if let (Some(missing), Some(parent), false) = (missing, parent, again) {
            parent.insert(missing.to_owned(), "/".into());
        } else if !neutralise(value, property, again) {
            return None;
        }
        text = serde_json::to_vec(value).ok()?;
    }
}

/// Takes what `property` names out of `value`; false when there is no such thing. An element of
/// an array gives way to a copy of another, so that the rest keep their numbers; when that did not
/// help (`again`), the array is emptied.
fn neutralise(value: &mut Value, property: &str, again: bool) -> bool {
    let pointer = pointer(property);
    let Some((parent, last)) = pointer.rsplit_once('/') else { return false };
    match value.pointer_mut(parent) {
        Some(Value::Object(object)) => object.remove(last).is_some(),
        Some(Value::Array(elements)) => {
            let Some(index) = last.parse::<usize>().ok().filter(|index| *index < elements.len())
            else {
                return false;
            };
            let other = (0..elements.len()).find(|other| *other != index && !again);
            match other {
                Some(other) => elements[index] = elements[other].clone(),
                None => elements.clear(),
            }
            true
        }
        _ => false,
    }
}

/// The JSON pointer of a property as messages name it. What stands in parentheses there is for
/// people: mounts[3] (/proc), linux.sysctl (net.x).
fn pointer(property: &str) -> String {
    let path = property.split(" (").next().unwrap_or_default();
    format!("/{}", path.replace(['[', '.'], "/").replace(']', ""))
}

fn check_host(config: &Config, report: &mut Report) {
    for warning in &config.warnings {
        let (property, reason) = warning.split_once(": ").unwrap_or(("config.json", warning));
        report.warn(property, reason);
    }
    if let Err(error) = namespace::check_support(&config.namespaces) {
        report.refuse(&error);
    }
    if let Some((property, helper)) = userns::missing_helper(&config.namespaces) {
        let reason =
            format!("{helper}, which these maps need, is not on the PATH (package uidmap)");
        report.no(format!("linux.{property}"), reason);
    }
    for (kind, path) in config.namespaces.joined() {
        if let Err(error) = std::fs::File::open(path) {
            let name = spec::namespace::word(kind);
            report.no(format!("linux.namespaces ({name})"), format!("{}: {error}", path.display()));
        }
    }
    check_rootfs(config, report);
    check_mounts(config, report);
    if let Some(process) = &config.process {
        check_process(process, config, report);
    }
    for (path, _) in &config.sysctl {
        if !Path::new("/proc/sys").join(path).exists() {
            report.no("linux.sysctl", format!("this kernel has no {}", path.replace('/', ".")));
        }
    }
    check_hooks(config, report);
    if let Err(error) = netdev::check(&config.net_devices) {
        report.refuse(&error);
    }
    let located = Proc::open().and_then(|proc| match &config.intel_rdt {
        Some(rdt) => Groups::locate(rdt, "a container", &proc).map(drop),
        None => Ok(()),
    });
    if let Err(error) = located {
        report.refuse(&error);
    }
    match config.seccomp.as_ref().map(seccomp::compile) {
        Some(Err(error)) => report.refuse(&error.context("linux.seccomp")),
        Some(Ok(filter)) => {
            for warning in filter.warnings {
                report.warn("linux.seccomp", warning);
            }
        }
        None => {}
    }
    let located = cgroup::Location::locate(config.cgroups_path.as_deref(), "check");
    if let Err(error) = located.and_then(|at| at.check_rights(config.resources.as_ref())) {
        report.refuse(&error);
    }
    if let Some(resources) = &config.resources {
        check_resources(resources, report);
    }
}

fn check_rootfs(config: &Config, report: &mut Report) {
    let path = config.rootfs.display();
    match std::fs::metadata(&config.rootfs) {
        Err(error) => report.no("root.path", format!("{path}: {error}")),
        Ok(file) if !file.is_dir() => report.no("root.path", format!("{path} is not a folder")),
        Ok(_) => {}
    }
}

fn check_mounts(config: &Config, report: &mut Report) {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for mount in &config.mounts {
        match &mount.kind {
            Kind::Bind { source, .. } => {
                if let Err(error) = std::fs::symlink_metadata(source) {
                    report.no(&mount.property, format!("source {}: {error}", source.display()));
                }
            }
            Kind::Filesystem { fstype, .. } => {
                let name = fstype.to_string_lossy();
                let main = name.split('.').next().unwrap_or_default();
                if !known.lines().any(|line| line.split_ascii_whitespace().last() == Some(main)) {
                    let reason = format!("the kernel does not know {name} now; a module might");
                    report.warn(&mount.property, reason);
                }
            }
            Kind::Cgroup | Kind::Remount { .. } => {}
        }
    }
}

fn check_process(process: &Process, config: &Config, report: &mut Report) {
    let own_user = config.namespaces.get(Ns::User).is_some();
    if !own_user && let Ok(missing) = process.capabilities.clone().limit_to_available() {
        for name in missing {
            report.warn("process.capabilities", format!("{name}: this process does not have it"));
        }
    }
    let may_raise = have(caps::Capability::CAP_SYS_RESOURCE);
    // No privilege raises the number of open files above this (proc_sys_fs(5)).
    let files = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    let files = files.and_then(|text| text.trim().parse::<u64>().ok());
    for limit in &process.rlimits {
        if limit.name == "RLIMIT_NOFILE" && files.is_some_and(|most| limit.hard > most) {
            let reason = format!("{} is above this kernel's fs.nr_open", limit.hard);
            report.no("process.rlimits (RLIMIT_NOFILE)", reason);
            continue;
        }
        let hard = resource(limit.resource).and_then(|resource| getrlimit(resource).ok());
        if let Some((_, hard)) = hard
            && limit.hard > hard
            && !may_raise
            && !own_user
        {
            report.no(
                format!("process.rlimits ({})", limit.name),
                format!(
                    "{} is above this process's {hard}; that needs CAP_SYS_RESOURCE",
                    limit.hard
                ),
            );
        }
    }
    let own_score = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    let own_score = own_score.and_then(|text| text.trim().parse::<i32>().ok());
    if let (Some(score), Some(own)) = (process.oom_score_adj, own_score)
        && score < own
        && !may_raise
    {
        let reason = format!("{score} is below this process's {own}; that needs CAP_SYS_RESOURCE");
        report.no("process.oomScoreAdj", reason);
    }
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if process.apparmor_profile.is_some() && !enabled.is_ok_and(|text| text.starts_with('Y')) {
        report.no("process.apparmorProfile", "AppArmor is not enabled on this host");
    }
    if process.selinux_label.is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
        report.no("process.selinuxLabel", "SELinux is not enabled on this host");
    }
    check_program(process, config, report);
}

/// The number of a resource limit as nix's type.
fn resource(number: u32) -> Option<Resource> {
    const KNOWN: [Resource; 16] = [
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_STACK,
        Resource::RLIMIT_CORE,
        Resource::RLIMIT_RSS,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_MEMLOCK,
        Resource::RLIMIT_AS,
        Resource::RLIMIT_LOCKS,
        Resource::RLIMIT_SIGPENDING,
        Resource::RLIMIT_MSGQUEUE,
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_RTPRIO,
        Resource::RLIMIT_RTTIME,
    ];
    KNOWN.into_iter().find(|resource| *resource as u32 == number)
}

/// The program may come from a mount, so that its absence from the root is no error yet.
fn check_program(process: &Process, config: &Config, report: &mut Report) {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(root) = open(&config.rootfs, flags, nix::sys::stat::Mode::empty()) else { return };
    let root = Root::new(root);
    let program = process.args[0].to_string_lossy();
    let path = process.env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let path = String::from_utf8_lossy(path.unwrap_or_default());
    let places: Vec<_> = match program.contains('/') {
        true => vec![process.cwd.join(&*program)],
        false => path.split(':').map(|folder| Path::new(folder).join(&*program)).collect(),
    };
    if !places.iter().any(|place| root.open(place, OFlag::O_PATH).is_ok()) {
        let reason = format!("{program:?} is not in the root filesystem; a mount may bring it");
        report.warn("process.args", reason);
    }
}

fn check_hooks(config: &Config, report: &mut Report) {
    let hooks = &config.hooks;
    for (kind, hooks) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        for (index, hook) in hooks.iter().enumerate() {
            if let Err(error) = std::fs::metadata(&hook.path) {
                let property = format!("hooks.{kind}[{index}].path");
                report.no(property, format!("{}: {error}", hook.path.display()));
            }
        }
    }
}

fn check_resources(resources: &LinuxResources, report: &mut Report) {
    let Ok(offered) = cgroup::controllers() else { return };
    let cpu = resources.cpu().as_ref();
    let time = cpu.is_some_and(|cpu| {
        cpu.shares().is_some_and(|n| n > 0) || cpu.quota().is_some_and(|n| n > 0)
    });
    let set = cpu.is_some_and(|cpu| cpu.cpus().is_some() || cpu.mems().is_some());
    let memory = resources.memory().as_ref().is_some_and(|memory| {
        memory.limit().or(memory.reservation()).or(memory.swap()).is_some_and(|n| n != 0)
    });
    let pages = resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty());
    let io = resources.block_io().as_ref().is_some_and(|io| io.weight().is_some());
    let network = resources.network().as_ref().is_some_and(|network| network.class_id().is_some());
    for (wanted, property, controllers) in [
        (memory, "memory", &["memory"][..]),
        (time, "cpu", &["cpu"]),
        (set, "cpu", &["cpuset"]),
        (resources.pids().is_some(), "pids", &["pids"]),
        (io, "blockIO", &["io", "blkio"]),
        (pages, "hugepageLimits", &["hugetlb"]),
        (network, "network", &["net_cls"]),
        (resources.rdma().is_some(), "rdma", &["rdma"]),
    ] {
        if wanted && !controllers.iter().any(|name| offered.contains(*name)) {
            let reason =
                format!("this host offers no cgroup controller {}", controllers.join(", "));
            report.no(format!("linux.resources.{property}"), reason);
        }
    }
}

/// Every property that nothing was said of is fine.
fn report_rest(value: &Value, report: &mut Report) {
    let said: BTreeSet<_> = report.findings.iter().map(|f| f.property.clone()).collect();
    // Findings name places inside of these: mounts[3] (/proc), process.rlimits (RLIMIT_CPU).
    let touched = |path: &str| {
        said.iter().any(|other| {
            other.strip_prefix(path).is_some_and(|rest| {
                rest.is_empty() || !rest.starts_with(|c: char| c.is_alphanumeric())
            })
        })
    };
    for path in spec::property_paths(value) {
        if !touched(&path) {
            report.add(Verdict::Yes, path, "");
        }
    }
}
