//! What this host can and can't honour of a bundle, property by property, without making anything.
//!
//! The configuration goes through the same conversion as for `create`, the filter through the same
//! compiler. What the kernel says only when asked is asked here without side effects: limits of
//! this process, known filesystems, offered cgroup controllers, files that must exist.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use oci_spec::runtime::LinuxNamespaceType as Ns;
use serde::Serialize;
use serde_json::Value;

use crate::cgroup::{self, Cgroup};
use crate::host;
use crate::process::set_oom_score;
use crate::procfs::Proc;
use crate::resctrl::Groups;
use crate::rootfs::root::Root;
use crate::security::{capabilities, seccomp};
use crate::spec::mount::Kind;
use crate::spec::{self, Config, Process};
use crate::sys::fs::open_path;
use crate::sys::process::CapabilitySets;

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

    /// Takes a warning whose text starts with the property.
    fn warn_of(&mut self, text: &str) {
        let (property, reason) = text.split_once(": ").unwrap_or(("config.json", text));
        self.warn(property, reason);
    }

    /// Takes an error whose text starts with the property, which may have more about it in
    /// parentheses: `mounts[3] (/proc): no such …`, `linux.seccomp.syscalls[0].names is empty`.
    fn refuse(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let mut depth = 0;
        let end = text.char_indices().find(|(at, character)| {
            match character {
                '(' => depth += 1,
                ')' => depth -= 1,
                ':' => return depth == 0,
                ' ' => return depth == 0 && !text[*at..].starts_with(" ("),
                _ => {}
            }
            false
        });
        match end.map(|(at, _)| text.split_at(at)) {
            Some((property, reason)) => self.no(property, reason.trim_start_matches([':', ' '])),
            None => self.no("config.json", text),
        }
    }
}

/// Examines the bundle in the absolute folder `bundle`, with the systemd cgroup driver or without.
pub fn check(bundle: &Path, systemd_cgroup: bool) -> Report {
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
        check_cgroup(&config, bundle, systemd_cgroup, &mut report);
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

/// A door for the fuzz targets.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub fn leniently(text: &[u8], bundle: &Path) {
    parse_leniently(text, bundle, &mut Report::default());
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
    config.warnings.iter().for_each(|warning| report.warn_of(warning));
    let own = match capabilities::own() {
        Ok(own) => own,
        Err(error) => return report.refuse(&error),
    };
    for error in host::missing(config, &own) {
        report.refuse(&error);
    }
    warn_of_filesystems(config, report);
    warn_of_hooks(config, report);
    if let Some(process) = &config.process {
        check_process(process, config, &own, report);
    }
    let located = Proc::open().and_then(|proc| match &config.intel_rdt {
        Some(rdt) => Groups::locate(rdt, "a container", &proc).map(drop),
        None => Ok(()),
    });
    if let Err(error) = located {
        report.refuse(&error);
    }
    match config.seccomp.as_ref().map(|seccomp| seccomp::compile(seccomp.profile()?)) {
        Some(Err(error)) => report.refuse(&error),
        Some(Ok(filter)) => {
            for warning in filter.warnings {
                report.warn("linux.seccomp", warning);
            }
        }
        None => {}
    }
}

fn check_cgroup(config: &Config, bundle: &Path, systemd: bool, report: &mut Report) {
    let path = config.cgroups_path.as_deref();
    let located = match systemd {
        true => cgroup::Location::locate_unit(path, "check", bundle, &config.annotations),
        false => cgroup::Location::locate(path, "check"),
    };
    let resources = config.resources.as_ref();
    let tried = located.and_then(|location| {
        location.check_rights(resources)?;
        resources.map(|resources| Cgroup::try_limits(&location, resources)).transpose()
    });
    match tried {
        Err(error) => report.refuse(&error),
        Ok(tried) => {
            let (errors, warnings) = tried.unwrap_or_default();
            errors.iter().for_each(|error| report.refuse(error));
            warnings.iter().for_each(|warning| report.warn_of(warning));
        }
    }
}

fn warn_of_filesystems(config: &Config, report: &mut Report) {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for mount in &config.mounts {
        let Kind::Filesystem { fstype, .. } = &mount.kind else { continue };
        let name = fstype.to_string_lossy();
        let main = name.split('.').next().unwrap_or_default();
        if !known.lines().any(|line| line.split_ascii_whitespace().last() == Some(main)) {
            let reason = format!("the kernel does not know {name} now; a module might");
            report.warn(&mount.property, reason);
        }
    }
}

fn check_process(process: &Process, config: &Config, own: &CapabilitySets, report: &mut Report) {
    let own_user = config.namespaces.get(Ns::User).is_some();
    if !own_user {
        for name in process.capabilities.clone().limit_to_available(own) {
            report.warn("process.capabilities", format!("{name}: this process does not have it"));
        }
    }
    if process.oom_score_adj.is_some()
        && let Err(error) = Proc::open().and_then(|proc| try_oom_score(&proc, process))
    {
        report.refuse(&error);
    }
    check_program(process, config, report);
}

/// Only the kernel knows how low this process, whose child the container's would be, may go.
fn try_oom_score(proc: &Proc, process: &Process) -> Result<()> {
    let own = proc.read("self/oom_score_adj")?;
    set_oom_score(Some(process), "self", proc)?;
    Ok(proc.write("self/oom_score_adj", own.trim())?)
}

/// The program may come from a mount, so that its absence from the root is no error yet.
fn check_program(process: &Process, config: &Config, report: &mut Report) {
    use nix::fcntl::OFlag;
    let Ok(root) = open_path(&config.rootfs, OFlag::O_DIRECTORY) else { return };
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

/// Without these `create` works and something later fails.
fn warn_of_hooks(config: &Config, report: &mut Report) {
    for (kind, hooks) in
        [("poststart", &config.hooks.poststart), ("poststop", &config.hooks.poststop)]
    {
        for (index, hook) in hooks.iter().enumerate() {
            if let Err(error) = std::fs::metadata(&hook.path) {
                let property = format!("hooks.{kind}[{index}].path");
                report.warn(property, format!("{}: {error}", hook.path.display()));
            }
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
