//! Getting a process into its namespaces: those made anew come from `clone3`, those of a path are
//! entered before it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::LinuxNamespaceType as Ns;

use crate::procfs::Proc;
use crate::security::capabilities::have;
use crate::spec::namespace::{flag, word};
use crate::spec::{Namespaces, Process};
use crate::sys::clone::{CLONE_NEWTIME, Forked, clone3, exit_now, pidfd_open, wait_status};
use crate::sys::process::CapabilitySets;
use crate::{cgroup, process, sys, userns};

/// The kernel's name of a namespace file (namespaces(7)).
fn file_name(kind: Ns) -> &'static str {
    match kind {
        Ns::Mount => "mnt",
        Ns::Network => "net",
        // Entered by the next child only, as unshare and setns have it for these two.
        Ns::Pid => "pid_for_children",
        Ns::Time => "time_for_children",
        other => word(other),
    }
}

/// Opens the namespace that config.json names.
///
/// # Errors
/// When the path is missing, or not a namespace of that kind.
pub fn open(kind: Ns, path: &Path) -> Result<File> {
    let property = || format!("linux.namespaces ({}).path: {}", word(kind), path.display());
    let file = File::open(path).with_context(property)?;
    let found = sys::process::namespace_kind(file.as_fd());
    let found = found.with_context(|| format!("{} is not a namespace", property()))?;
    ensure!(
        found == flag(kind).bits(),
        "{} is a namespace of another type (the process that it was taken from has ns/{})",
        property(),
        file_name(kind)
    );
    Ok(file)
}

/// Enters the namespace at `path`.
///
/// # Errors
/// When it can't be opened or entered.
pub fn join(kind: Ns, path: &Path) -> Result<()> {
    let file = open(kind, path)?;
    setns(&file, flag(kind))
        .with_context(|| format!("linux.namespaces ({}).path: join {}", word(kind), path.display()))
}

/// The caller's own namespaces, to come back to after the clone.
#[derive(Default)]
pub struct Return(Vec<(Ns, OwnedFd)>);

impl Return {
    /// Brings the caller back to where it was.
    ///
    /// # Errors
    /// When the kernel refuses, after which nothing sensible can be done.
    pub fn go(self) -> Result<()> {
        for (kind, file) in self.0 {
            setns(&file, flag(kind))
                .with_context(|| format!("come back to the {} namespace", word(kind)))?;
        }
        Ok(())
    }
}

/// Whether a joined namespace of this kind is entered before the clone.
fn is_entered_early(kind: Ns) -> bool {
    !matches!(kind, Ns::Mount | Ns::User | Ns::Cgroup)
}

/// Whether [`enter_for_child`] leaves any namespace of the caller.
pub fn leaves_any(namespaces: &Namespaces) -> bool {
    namespaces.is_new(Ns::Time) || namespaces.joined().any(|(kind, _)| is_entered_early(kind))
}

/// Enters what the next child is to be born in: the joined namespaces but the mount and user
/// ones, and a new time namespace, whose clocks can be set only before anyone is in it. Not the
/// cgroup namespace: out of it the child could not be cloned into its cgroup.
///
/// # Errors
/// Names the namespace.
pub fn enter_for_child(namespaces: &Namespaces, proc: &Proc) -> Result<Return> {
    let mut back = Return::default();
    let mut remember = |kind: Ns| -> Result<()> {
        let path = format!("/proc/self/ns/{}", file_name(kind));
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        back.0.push((kind, file.into()));
        Ok(())
    };
    for (kind, path) in namespaces.joined() {
        if !is_entered_early(kind) {
            continue;
        }
        remember(kind)?;
        join(kind, path)?;
    }
    if namespaces.is_new(Ns::Time) {
        remember(Ns::Time)?;
        unshare(CLONE_NEWTIME).context("linux.namespaces (time): make it")?;
        let lines: String = (namespaces.time_offsets.iter())
            .map(|o| format!("{} {} {}\n", o.clock, o.seconds, o.nanoseconds))
            .collect();
        if !lines.is_empty() {
            proc.write("self/timens_offsets", &lines).context("linux.timeOffsets: set them")?;
        }
    }
    Ok(back)
}

/// What `clone3` makes. A cgroup namespace shows its tree from where its maker is at that moment,
/// so the child makes that itself once it is in its cgroup; a time namespace is made before.
pub fn clone_flags(namespaces: &Namespaces) -> CloneFlags {
    namespaces.new_flags() - CloneFlags::CLONE_NEWCGROUP - CLONE_NEWTIME
}

/// Clones the first process into its namespaces.
///
/// # Errors
/// Names the namespace, or what to do where the kernel refuses new ones.
pub fn fork(
    namespaces: &Namespaces,
    cgroup: &cgroup::Cgroup,
    program: Option<&Process>,
    proc: &Proc,
) -> Result<Forked> {
    let flags = clone_flags(namespaces);
    let joined_user = namespaces.joined().find(|(kind, _)| *kind == Ns::User);
    // Root in a user namespace only could not come back to namespaces of the host.
    if joined_user.is_none() && !(leaves_any(namespaces) && userns::is_inside()) {
        let back = enter_for_child(namespaces, proc)?;
        let forked = clone3(flags, cgroup.clone_fd()).map_err(|errno| {
            userns::explain_clone(errno, namespaces, cgroup.clone_fd().is_some())
        })?;
        if let Forked::Parent { .. } = forked {
            back.go()?;
        }
        return Ok(forked);
    }
    fork_within(flags, namespaces, cgroup, || {
        process::set_oom_score(program, "self", proc)?;
        if let Some((kind, path)) = joined_user {
            // The new namespaces are to belong to it.
            join(kind, path)?;
        }
        enter_for_child(namespaces, proc).map(drop)
    })
}

/// Clones a process into namespaces that it enters by `enter` and from which nobody comes back, as
/// a user namespace: a process in between enters them and clones its own sibling.
fn fork_within(
    flags: CloneFlags,
    namespaces: &Namespaces,
    cgroup: &cgroup::Cgroup,
    enter: impl FnOnce() -> Result<()>,
) -> Result<Forked> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe2")?;
    let Forked::Parent { pidfd: between, .. } =
        clone3(CloneFlags::empty(), None).context("clone3")?
    else {
        let outcome = enter().and_then(|()| {
            clone3(flags | CloneFlags::CLONE_PARENT, cgroup.clone_fd()).map_err(|errno| {
                userns::explain_clone(errno, namespaces, cgroup.clone_fd().is_some())
            })
        });
        let text = match outcome {
            Ok(Forked::Child) => return Ok(Forked::Child),
            Ok(Forked::Parent { pid, .. }) => pid.to_string(),
            Err(error) => format!("{error:#}"),
        };
        let _ = nix::unistd::write(&writer, text.as_bytes());
        exit_now(0);
    };
    drop(writer);
    let mut text = String::new();
    let read = std::fs::File::from(reader).read_to_string(&mut text);
    read.context("hear from the process in the user namespace")?;
    wait_status(between.as_fd()).context("wait for it")?;
    ensure!(!text.is_empty(), "clone the container's init: the process in between was killed");
    let Ok(pid) = text.parse() else { bail!(text) };
    // It can't be reaped by anybody else meanwhile: it is a child of this process.
    let pidfd = pidfd_open(pid).context("watch the container's init")?;
    Ok(Forked::Parent { pid, pidfd })
}

/// Clones a process into the PID namespace of `target`, and, where only that gives the right to,
/// into its user namespace; with the flags of those that it is still to enter. A process can't
/// change its own PID namespace, only its children's.
///
/// # Errors
/// When the kernel refuses.
pub fn fork_into(
    target: &OwnedFd,
    namespaces: &Namespaces,
    cgroup: &cgroup::Cgroup,
    program: &Process,
    proc: &Proc,
) -> Result<(Forked, CloneFlags)> {
    let all = namespaces.all_flags();
    let pid = all & CloneFlags::CLONE_NEWPID;
    let user = all & CloneFlags::CLONE_NEWUSER;
    let enter = |flags: CloneFlags| match flags.is_empty() {
        true => Ok(()),
        false => setns(target, flags).context("exec: enter the container's PID namespace"),
    };
    if !user.is_empty() && !have(caps::Capability::CAP_SYS_ADMIN) {
        let forked = fork_within(CloneFlags::empty(), namespaces, cgroup, || {
            process::set_oom_score(Some(program), "self", proc)?;
            let _ = crate::sys::process::set_dumpable(false);
            enter(user | pid)
        })?;
        return Ok((forked, all - user - pid));
    }
    enter(pid)?;
    let forked = clone3(CloneFlags::empty(), cgroup.clone_fd()).context("exec: clone3")?;
    Ok((forked, all - pid))
}

/// Refuses namespaces that the kernel lacks, by name, before anything is made; and a container that
/// this user could make in a user namespace only.
///
/// # Errors
/// Names the namespace.
pub fn check_support(namespaces: &Namespaces, own: &CapabilitySets) -> Result<()> {
    for kind in [Ns::Cgroup, Ns::Time, Ns::User] {
        if namespaces.get(kind).is_none() {
            continue;
        }
        let path = format!("/proc/self/ns/{}", word(kind));
        ensure!(
            Path::new(&path).exists(),
            "linux.namespaces: this kernel has no {} namespaces",
            word(kind)
        );
    }
    if namespaces.get(Ns::User).is_none() && !own.may(caps::Capability::CAP_SYS_ADMIN) {
        bail!(
            "linux.namespaces: a user without privileges makes containers in a user namespace: add \
             {{\"type\": \"user\"}}, linux.uidMappings and linux.gidMappings (`ultari spec \
             --rootless` writes an example), or run this as root"
        );
    }
    if namespaces.get(Ns::Mount).is_none() && namespaces.get(Ns::User).is_some() {
        bail!(
            "linux.namespaces: a container in a user namespace may not mount in the host's mount \
             namespace; add {{\"type\": \"mount\"}}"
        );
    }
    Ok(())
}
