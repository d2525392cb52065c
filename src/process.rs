//! Becoming the program: limits, identity, working directory, executable, exec.

use std::ffi::CString;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Uid, fchown, getcwd};

use crate::channel::Channel;
use crate::procfs::Proc;
use crate::security::seccomp::{self, agent::Courier};
use crate::spec::process::{Affinity, env_name};
use crate::spec::{MemoryPolicy, Process};
use crate::{executable, sys, timings};

/// Limits: what needs the privileges that go with the identity.
///
/// # Errors
/// Names the property.
pub fn apply_limits(process: &Process) -> Result<()> {
    for limit in &process.rlimits {
        sys::process::setrlimit(limit.resource, limit.soft, limit.hard).with_context(|| {
            format!(
                "process.rlimits: set {} to {}/{} (raising a hard limit needs CAP_SYS_RESOURCE)",
                limit.name, limit.soft, limit.hard
            )
        })?;
    }
    if let Some(value) = process.io_priority {
        sys::process::set_io_priority(value).context("process.ioPriority")?;
    }
    sys::process::umask(process.user.umask.unwrap_or(0o022));
    Ok(())
}

/// The scheduling policy. By now the user has changed, but its permission is still there.
///
/// # Errors
/// When the kernel refuses it, with what it may want.
pub fn apply_scheduler(process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler {
        sys::process::set_scheduler(scheduler).with_context(|| {
            let hint = match scheduler.policy {
                _ if scheduler.flags & 0x60 != 0 => {
                    "clamping needs a kernel with CONFIG_UCLAMP_TASK"
                }
                1 | 2 => "needs CAP_SYS_NICE and real-time time in the container's cgroup",
                4 => "Linux has no SCHED_ISO",
                6 => "needs CAP_SYS_NICE, runtime <= deadline <= period, and all processors",
                _ => "going below nice 0 needs CAP_SYS_NICE",
            };
            format!("process.scheduler: set it ({hint})")
        })?;
    }
    Ok(())
}

/// Binds a process of `exec`, which is in the container's cgroup by now, to its processors.
///
/// # Errors
/// When the cgroup has none of them.
pub fn apply_affinity(affinity: &Affinity) -> Result<()> {
    let Some(cpus) = &affinity.last else { return Ok(()) };
    sys::process::set_affinity(cpus).context(
        "process.execCPUAffinity.final: does the container's cgroup have any of these processors?",
    )
}

/// Where memory comes from, from now on and over the exec.
///
/// # Errors
/// When the kernel does not have the mode, or the cgroup not the nodes.
pub fn apply_memory_policy(policy: &MemoryPolicy) -> Result<()> {
    sys::process::set_memory_policy(policy.mode, &policy.nodes).with_context(|| {
        format!(
            "linux.memoryPolicy: set {} (does this kernel know mode and flags, and are the nodes \
             in /sys/devices/system/node/online and in the container's cgroup?)",
            policy.text
        )
    })
}

/// Labels of security modules that take effect with the exec.
///
/// # Errors
/// When the module is not there.
pub fn apply_labels(process: &Process, proc: &Proc) -> Result<()> {
    if let Some(profile) = &process.apparmor_profile {
        let text = format!("exec {profile}");
        let written = proc
            .write("self/attr/apparmor/exec", &text)
            .or_else(|_| proc.write("self/attr/exec", &text));
        written.with_context(|| {
            format!(
                "process.apparmorProfile {profile:?}: is AppArmor enabled and the profile loaded?"
            )
        })?;
    }
    if let Some(label) = &process.selinux_label {
        proc.write("self/attr/exec", label)
            .with_context(|| format!("process.selinuxLabel {label:?}: is SELinux enabled?"))?;
    }
    Ok(())
}

/// Sets the OOM killer's score of the process that procfs calls `pid`. Not the process's own
/// business: in a user namespace it has lost the right to lower it.
///
/// # Errors
/// When the kernel refuses.
pub fn set_oom_score(process: Option<&Process>, pid: &str, proc: &Proc) -> Result<()> {
    let Some(score) = process.and_then(|process| process.oom_score_adj) else { return Ok(()) };
    let file = format!("{pid}/oom_score_adj");
    if proc.read(&file).is_ok_and(|now| now.trim() == score.to_string()) {
        return Ok(());
    }
    proc.write(&file, &score.to_string()).with_context(|| {
        format!("process.oomScoreAdj: set {score} (going below the caller's value needs CAP_SYS_RESOURCE)")
    })
}

/// User and groups. The capabilities stay until the last moment: a seccomp filter without
/// `no_new_privs` needs them.
///
/// # Errors
/// Names the property.
pub fn take_identity(process: &Process) -> Result<()> {
    let user = &process.user;
    // To the kernel it means "as before", which is root.
    ensure!(user.uid.max(user.gid) != u32::MAX, "process.user: {} is not an id", u32::MAX);
    // Root has them in any case.
    let keep = |keep| match user.uid {
        0 => Ok(()),
        _ => sys::process::keep_capabilities(keep).context("keep capabilities"),
    };
    keep(true)?;
    match sys::process::setgroups(&user.additional_gids) {
        // In a user namespace made without privileges groups can't be changed, hence not gained.
        Err(Errno::EPERM) if user.additional_gids.is_empty() => {}
        Err(Errno::EPERM) => {
            return Err(Errno::EPERM).context(
                "process.user.additionalGids: a user namespace made without privileges may not set \
             groups, unless newgidmap has written linux.gidMappings (more than one id)",
            );
        }
        other => other.context("process.user.additionalGids: are all in linux.gidMappings?")?,
    }
    let unmapped = "is it in linux.uidMappings and linux.gidMappings?";
    sys::process::setgid(user.gid)
        .with_context(|| format!("process.user.gid: become group {} ({unmapped})", user.gid))?;
    sys::process::setuid(user.uid)
        .with_context(|| format!("process.user.uid: become user {} ({unmapped})", user.uid))?;
    keep(false)?;
    if user.uid != 0 {
        // The change of user emptied the effective set only.
        let mut sets = sys::process::capget().context("read capabilities")?;
        sets.effective = sets.permitted;
        sys::process::capset(sets).context("keep capabilities effective")?;
    }
    Ok(())
}

/// A program that opens /dev/stdout anew must be allowed to; the null device keeps its owner.
pub fn own_stdio(uid: u32) {
    for number in 0..3 {
        let fd = sys::fs::standard_stream(number);
        let Ok(stat) = fstat(fd) else { continue };
        if stat.st_uid == uid || stat.st_rdev == nix::sys::stat::makedev(1, 3) {
            continue;
        }
        // Not possible for an unmapped owner or a read-only file, and then not needed either.
        let _ = fchown(fd, Some(Uid::from_raw(uid)), None);
    }
}

/// Changes into the working directory and makes sure that it lies in the container: a descriptor
/// of the host that leaked in could lead out (CVE-2024-21626).
///
/// # Errors
/// When it is missing, forbidden or outside.
pub fn enter_cwd(cwd: &Path) -> Result<()> {
    nix::unistd::chdir(cwd)
        .with_context(|| format!("process.cwd: change into {}", cwd.display()))?;
    check_cwd(cwd)
}

fn check_cwd(cwd: &Path) -> Result<()> {
    // For a folder out of reach from the root the kernel answers "(unreachable)…".
    let inside = getcwd().is_ok_and(|path| path.is_absolute());
    ensure!(inside, "process.cwd: {} lies outside of the container", cwd.display());
    Ok(())
}

/// As much of the image's /etc/passwd as is read, in bytes.
const MAX_PASSWD: usize = 1024 * 1024;

/// `env` with `HOME` from the container's /etc/passwd when it is not set, as login shells and
/// runc have it.
pub fn with_home(mut env: Vec<CString>, uid: u32) -> Vec<CString> {
    if !env.iter().any(|entry| env_name(entry.as_bytes()) == b"HOME") {
        let text = executable::head(c"/etc/passwd", MAX_PASSWD).unwrap_or_default();
        let home = home(&String::from_utf8_lossy(&text), uid);
        env.extend(CString::new(format!("HOME={}", home.as_deref().unwrap_or("/"))));
    }
    env
}

fn home(passwd: &str, uid: u32) -> Option<String> {
    let of_user = |line: &str| {
        let mut fields = line.split(':');
        let id: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty()).then(|| home.to_owned())
    };
    passwd.lines().find_map(of_user)
}

/// Becomes the program: filter, capabilities, exec. Returns only on failure. The descriptor of a
/// filter with SCMP_ACT_NOTIFY goes to the parent by `channel`.
pub fn exec(
    process: &Process,
    filter: Option<&seccomp::Filter>,
    channel: &Channel,
) -> anyhow::Error {
    match try_exec(process, filter, channel) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_exec(
    process: &Process,
    filter: Option<&seccomp::Filter>,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    let env = with_home(process.env.clone(), process.user.uid);
    let file = executable::find(&process.args[0], &env)?;
    let listener = filter.and_then(|filter| filter.listener.as_ref());
    let courier = listener.map(|_| Courier::start(channel)).transpose()?;
    // Without no_new_privs only who has CAP_SYS_ADMIN may load a filter; with it the filter comes
    // last, so that it need not allow what the steps before it do.
    if process.no_new_privileges {
        sys::process::no_new_privileges().context("process.noNewPrivileges")?;
        process.capabilities.apply()?;
    }
    let descriptor = match filter {
        Some(filter) => filter.load()?,
        None => None,
    };
    if let (Some(courier), Some(descriptor)) = (courier, descriptor) {
        courier.pass(descriptor);
    }
    if !process.no_new_privileges {
        process.capabilities.apply()?;
    }
    timings::step("drop capabilities, load the filter");
    let errno = sys::process::execve(&file, &process.args, &env);
    Err(executable::diagnose(&file, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_of_a_user_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:\nbad\n";
        assert_eq!(home(passwd, 1000).as_deref(), Some("/home/ann"));
        assert_eq!(home(passwd, 7), None);
    }
}
