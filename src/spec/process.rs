//! The `process` object of config.json, and the process.json of `exec`.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime as oci;
use serde_json::Value;

use super::{document, list};
use crate::security::capabilities::Capabilities;
use crate::sys::process::SchedAttr;
use crate::sys::tty::WindowSize;

/// A program to run and what it runs as; all values checked.
#[derive(Clone, Debug)]
pub struct Process {
    /// Whether it gets a pseudo-terminal.
    pub terminal: bool,
    /// The terminal's size, when given.
    pub console_size: Option<WindowSize>,
    /// The program and its arguments; at least one.
    pub args: Vec<CString>,
    /// `NAME=value` entries, each name once.
    pub env: Vec<CString>,
    /// Absolute working directory.
    pub cwd: PathBuf,
    /// User and groups.
    pub user: User,
    /// The five capability sets.
    pub capabilities: Capabilities,
    /// Resource limits, each resource once.
    pub rlimits: Vec<Rlimit>,
    /// Whether set-user-ID programs and file capabilities are without effect.
    pub no_new_privileges: bool,
    /// `oom_score_adj`, −1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile for the program.
    pub apparmor_profile: Option<String>,
    /// SELinux context for the program.
    pub selinux_label: Option<String>,
    /// Scheduling policy.
    pub scheduler: Option<SchedAttr>,
    /// I/O priority in the encoding of `ioprio_set(2)`.
    pub io_priority: Option<i32>,
    /// Processors, for a process of `exec`.
    pub exec_affinity: Option<Affinity>,
}

/// `process.execCPUAffinity`: bit n of word w is processor 64 w + n.
#[derive(Clone, Debug)]
pub struct Affinity {
    /// Of the runtime, and of the process until it is in the container's cgroup.
    pub initial: Option<Vec<u64>>,
    /// Of the process from then on; without it the kernel's choice stays.
    pub last: Option<Vec<u64>>,
}

/// Who the program runs as.
#[derive(Clone, Debug)]
pub struct User {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
}

/// One resource limit.
#[derive(Clone, Debug)]
pub struct Rlimit {
    /// `RLIMIT_…`, for messages.
    pub name: String,
    /// The number of it.
    pub resource: u32,
    /// The limit in force.
    pub soft: u64,
    /// The ceiling of the soft limit.
    pub hard: u64,
}

/// Checks and converts `process`.
///
/// # Errors
/// Names the property that is wrong.
pub(super) fn convert(process: &document::Process) -> Result<Process> {
    let args = strings("process.args", process.args.as_deref().unwrap_or_default())?;
    ensure!(
        args.first().is_some_and(|program| !program.is_empty()),
        "process.args: needs at least the program to run"
    );
    ensure!(process.cwd.is_absolute(), "process.cwd: {:?} must be an absolute path", process.cwd);
    let user = &process.user;
    check_user(user)?;
    let terminal = process.terminal.unwrap_or(false);
    Ok(Process {
        terminal,
        // Without a terminal its size is to be ignored, whatever it is.
        console_size: if terminal { console_size(process)? } else { None },
        args,
        env: environment(process.env.as_deref().unwrap_or_default())?,
        cwd: process.cwd.clone(),
        user: User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
        },
        capabilities: process.capabilities.as_ref().map(Capabilities::from).unwrap_or_default(),
        rlimits: rlimits(process.rlimits.as_deref().unwrap_or_default())?,
        no_new_privileges: process.no_new_privileges.unwrap_or(false),
        oom_score_adj: oom_score_adj(process.oom_score_adj)?,
        apparmor_profile: process.apparmor_profile.clone().filter(|profile| !profile.is_empty()),
        selinux_label: process.selinux_label.clone().filter(|label| !label.is_empty()),
        scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
        io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
        exec_affinity: None,
    })
}

/// Takes `execCPUAffinity` out of the JSON of a process: the crate's type refuses empty lists,
/// which the specification allows.
///
/// # Errors
/// Names the property that is wrong.
pub fn take_affinity(process: &mut Value) -> Result<Option<Affinity>> {
    const PROPERTY: &str = "process.execCPUAffinity";
    let found = process.as_object_mut().and_then(|process| process.remove("execCPUAffinity"));
    let Some(value) = found.filter(|value| !value.is_null()) else { return Ok(None) };
    let lists = value.as_object().with_context(|| format!("{PROPERTY}: must be an object"))?;
    let cpus = |name: &str| match lists.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => {
            list::parse(&format!("{PROPERTY}.{name}"), text, list::MAX_CPUS).map(Some)
        }
        Some(_) => bail!("{PROPERTY}.{name}: must be a string such as \"0-3,7\""),
    };
    Ok(Some(Affinity { initial: cpus("initial")?, last: cpus("final")? }))
}

/// The highest number is no id: as an argument of the kernel it means "leave it as it is", so
/// that such a user would stay root.
fn check_user(user: &oci::User) -> Result<()> {
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    for (property, id) in [("uid", user.uid()), ("gid", user.gid())]
        .into_iter()
        .chain(groups.iter().map(|gid| ("additionalGids", *gid)))
    {
        ensure!(id != u32::MAX, "process.user.{property}: {id} is not an id");
    }
    // NGROUPS_MAX
    ensure!(groups.len() <= 65536, "process.user.additionalGids: more than 65536 groups");
    let umask = user.umask().unwrap_or(0);
    ensure!(umask <= 0o777, "process.user.umask: {umask} (octal {umask:o}) is above octal 777");
    Ok(())
}

fn console_size(process: &document::Process) -> Result<Option<WindowSize>> {
    let Some(size) = process.console_size else { return Ok(None) };
    let cells = |name, value: u64| {
        u16::try_from(value)
            .with_context(|| format!("process.consoleSize.{name}: {value} is more than 65535"))
    };
    Ok(Some(WindowSize {
        rows: cells("height", size.height())?,
        columns: cells("width", size.width())?,
    }))
}

fn strings(property: &str, values: &[String]) -> Result<Vec<CString>> {
    let convert = |value: &String| {
        CString::new(value.as_str()).with_context(|| format!("{property}: NUL byte in {value:?}"))
    };
    values.iter().map(convert).collect()
}

/// The name of an environment entry: what stands before `=`.
pub fn env_name(entry: &[u8]) -> &[u8] {
    entry.split(|byte| *byte == b'=').next().unwrap_or(entry)
}

/// Of several entries with one name the last wins: engines append to what the image has, and C
/// programs would find the first.
fn environment(values: &[String]) -> Result<Vec<CString>> {
    let mut seen = BTreeSet::new();
    let mut env = strings("process.env", values)?;
    env.reverse();
    env.retain(|entry| seen.insert(env_name(entry.as_bytes()).to_vec()));
    env.reverse();
    Ok(env)
}

fn oom_score_adj(value: Option<i32>) -> Result<Option<i32>> {
    if let Some(score) = value {
        ensure!(
            (-1000..=1000).contains(&score),
            "process.oomScoreAdj: {score} is not between -1000 and 1000"
        );
    }
    Ok(value)
}

fn rlimits(limits: &[oci::PosixRlimit]) -> Result<Vec<Rlimit>> {
    let mut converted: Vec<Rlimit> = Vec::with_capacity(limits.len());
    for limit in limits {
        let name = limit.typ().to_string();
        let (soft, hard) = (limit.soft(), limit.hard());
        ensure!(
            converted.iter().all(|other| other.name != name),
            "process.rlimits: {name} stands there twice"
        );
        ensure!(
            soft <= hard,
            "process.rlimits: the soft limit of {name} ({soft}) is above its hard limit ({hard})"
        );
        converted.push(Rlimit { resource: limit.typ() as u32, name, soft, hard });
    }
    Ok(converted)
}

fn io_priority(priority: &oci::LinuxIOPriority) -> Result<i32> {
    use oci::IOPriorityClass as Class;
    let class = match priority.class() {
        Class::IoprioClassRt => 1,
        Class::IoprioClassBe => 2,
        Class::IoprioClassIdle => 3,
    };
    let level = priority.priority();
    ensure!(
        (0..=7).contains(&level),
        "process.ioPriority.priority: {level} is not between 0 and 7"
    );
    Ok(class << 13 | level as i32)
}

/// sched_setattr(2); the numbers are those of include/uapi/linux/sched.h.
fn scheduler(scheduler: &oci::Scheduler) -> Result<SchedAttr> {
    use oci::LinuxSchedulerPolicy as Policy;
    let policy = scheduler.policy();
    let number = match policy {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => 4,
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    let mut flags = 0;
    for flag in scheduler.flags().as_deref().unwrap_or_default() {
        use oci::LinuxSchedulerFlag as Flag;
        flags |= match flag {
            Flag::SchedResetOnFork => 0x01,
            Flag::SchedFlagReclaim => 0x02,
            Flag::SchedFlagDLOverrun => 0x04,
            Flag::SchedFlagKeepPolicy => 0x08,
            Flag::SchedFlagKeepParams => 0x10,
            Flag::SchedFlagUtilClampMin => 0x20,
            Flag::SchedFlagUtilClampMax => 0x40,
        };
    }
    let nice = scheduler.nice().unwrap_or(0);
    // The kernel would silently take the nearest.
    ensure!((-20..=19).contains(&nice), "process.scheduler.nice: {nice} is not from -20 to 19");
    let priority = scheduler.priority().unwrap_or(0);
    match policy {
        Policy::SchedFifo | Policy::SchedRr => ensure!(
            (1..=99).contains(&priority),
            "process.scheduler.priority: {priority} is not from 1 to 99, as {policy} needs it"
        ),
        _ => ensure!(
            priority == 0,
            "process.scheduler.priority: {priority} means nothing to {policy}; it is for \
             SCHED_FIFO and SCHED_RR"
        ),
    }
    let time = |name: &str, value: &Option<u64>| -> Result<u64> {
        let value = value.unwrap_or(0);
        ensure!(
            value == 0 || *policy == Policy::SchedDeadline,
            "process.scheduler.{name}: means nothing to {policy}; it is for SCHED_DEADLINE"
        );
        Ok(value)
    };
    Ok(SchedAttr {
        size: 0,
        policy: number,
        flags,
        nice,
        priority: priority as u32,
        runtime: time("runtime", scheduler.runtime())?,
        deadline: time("deadline", scheduler.deadline())?,
        period: time("period", scheduler.period())?,
        // The specification has the flags but no values: the widest clamp.
        util_min: 0,
        util_max: 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: &str) -> Result<Process> {
        convert(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_last_of_equal_environment_names_wins() {
        let process =
            process(r#"{"user":{},"cwd":"/","args":["a"],"env":["A=1","B=2","A=3"]}"#).unwrap();
        assert_eq!(process.env, [c"B=2".to_owned(), c"A=3".to_owned()]);
    }

    #[test]
    fn bad_values_name_their_property() {
        for (json, property) in [
            (r#"{"user":{},"cwd":"tmp","args":["a"]}"#, "process.cwd"),
            (r#"{"user":{},"cwd":"/","args":[]}"#, "process.args"),
            (r#"{"user":{},"cwd":"/"}"#, "process.args"),
            (r#"{"user":{},"cwd":"/","args":["a"],"oomScoreAdj":2000}"#, "process.oomScoreAdj"),
            (r#"{"user":{},"cwd":"/","args":["a\u0000b"]}"#, "process.args"),
            (
                r#"{"user":{},"cwd":"/","args":["a"],"rlimits":[{"type":"RLIMIT_CORE","soft":2,"hard":1}]}"#,
                "process.rlimits",
            ),
            (
                r#"{"user":{},"cwd":"/","args":["a"],"rlimits":[
                    {"type":"RLIMIT_CORE","soft":1,"hard":1},{"type":"RLIMIT_CORE","soft":0,"hard":1}]}"#,
                "process.rlimits",
            ),
        ] {
            let error = format!("{:#}", process(json).unwrap_err());
            assert!(error.starts_with(property), "{error}");
        }
    }

    #[test]
    fn bad_users_and_schedulers_name_their_property() {
        let last = u32::MAX;
        for (property, json) in [
            ("process.user.uid", format!(r#"{{"user":{{"uid":{last}}}"#)),
            ("process.user.gid", format!(r#"{{"user":{{"gid":{last}}}"#)),
            ("process.user.additionalGids", format!(r#"{{"user":{{"additionalGids":[{last}]}}"#)),
            ("process.user.umask", r#"{"user":{"umask":512}"#.into()),
        ] {
            let error = process(&format!(r#"{json},"cwd":"/","args":["a"]}}"#)).unwrap_err();
            assert!(error.to_string().starts_with(property), "{error}");
        }
        for (property, json) in [
            ("nice", r#""policy":"SCHED_OTHER","nice":20"#),
            ("nice", r#""policy":"SCHED_BATCH","nice":-21"#),
            ("priority", r#""policy":"SCHED_FIFO""#),
            ("priority", r#""policy":"SCHED_RR","priority":100"#),
            ("priority", r#""policy":"SCHED_FIFO","priority":-1"#),
            ("priority", r#""policy":"SCHED_IDLE","priority":1"#),
            ("runtime", r#""policy":"SCHED_OTHER","runtime":1"#),
            ("deadline", r#""policy":"SCHED_FIFO","priority":1,"deadline":1"#),
            ("period", r#""policy":"SCHED_BATCH","period":1"#),
        ] {
            let json = format!(r#"{{"user":{{}},"cwd":"/","args":["a"],"scheduler":{{{json}}}}}"#);
            let error = process(&json).unwrap_err().to_string();
            assert!(error.starts_with(&format!("process.scheduler.{property}: ")), "{error}");
        }
    }

    #[test]
    fn affinity_is_taken_out_and_checked() {
        let mut value = serde_json::json!({"execCPUAffinity": {"initial": "", "final": "0-1,4"}});
        let affinity = take_affinity(&mut value).unwrap().unwrap();
        assert_eq!((affinity.initial, affinity.last), (None, Some(vec![0b10011])));
        assert_eq!(value, serde_json::json!({}));
        for lists in ["{\"final\":\"x\"}", "{\"final\":1}"] {
            let mut value =
                serde_json::from_str(&format!("{{\"execCPUAffinity\":{lists}}}")).unwrap();
            let error = take_affinity(&mut value).unwrap_err().to_string();
            assert!(error.starts_with("process.execCPUAffinity.final"), "{error}");
        }
    }
}
