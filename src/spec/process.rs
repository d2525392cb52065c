//! The `process` object of config.json, and the process.json of `exec`.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime as oci;

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
pub fn convert(process: &oci::Process) -> Result<Process> {
    let args = strings("process.args", process.args().as_deref().unwrap_or_default())?;
    ensure!(
        args.first().is_some_and(|program| !program.is_empty()),
        "process.args: needs at least the program to run"
    );
    ensure!(
        process.cwd().is_absolute(),
        "process.cwd: {:?} must be an absolute path",
        process.cwd()
    );
    let user = process.user();
    Ok(Process {
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process)?,
        args,
        env: environment(process.env().as_deref().unwrap_or_default())?,
        cwd: process.cwd().clone(),
        user: User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
        },
        capabilities: process.capabilities().as_ref().map(Capabilities::from).unwrap_or_default(),
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: oom_score_adj(process.oom_score_adj())?,
        apparmor_profile: process.apparmor_profile().clone().filter(|profile| !profile.is_empty()),
        selinux_label: process.selinux_label().clone().filter(|label| !label.is_empty()),
        scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
        io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
    })
}

fn console_size(process: &oci::Process) -> Result<Option<WindowSize>> {
    let Some(size) = process.console_size() else { return Ok(None) };
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
    let mut seen = HashSet::new();
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

fn scheduler(scheduler: &oci::Scheduler) -> Result<SchedAttr> {
    use oci::LinuxSchedulerPolicy as Policy;
    let policy = match scheduler.policy() {
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
    let Ok(priority) = u32::try_from(scheduler.priority().unwrap_or(0)) else {
        bail!("process.scheduler.priority: must not be negative");
    };
    Ok(SchedAttr {
        size: 0,
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
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
}
