//! A further process in a container that runs.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use oci_spec::runtime::LinuxNamespaceType as Ns;

use super::{Child, Options, check_terminal, keyring, limit_capabilities};
use super::{pass_descriptors, place};
use crate::channel::{Channel, Message};
use crate::container::Container;
use crate::init::{self, Common};
use crate::security::capabilities;
use crate::spec::Process;
use crate::sys::clone::Forked;
use crate::sys::descriptor::Fd;
use crate::{cgroup, host, namespace, seal, sys, timings};

/// The root folder of the process `pid`, which `pidfd` is a descriptor of.
fn own_root(pidfd: &OwnedFd, pid: i32) -> Result<Fd> {
    use nix::fcntl::OFlag;
    let path = format!("/proc/{pid}/root");
    let root = sys::fs::open_path(path.as_str(), OFlag::O_DIRECTORY)
        .with_context(|| format!("exec: open {path}"))?;
    // Only now is it certain that the number still meant this process.
    sys::clone::pidfd_send_signal(pidfd.as_fd(), 0).context("exec: the container has ended")?;
    Ok(root)
}

/// Starts a further process in `container`, up to the point where its program could be executed.
/// The caller stays on the processors of `process.execCPUAffinity.initial`, if there are any.
///
/// # Errors
/// When the container does not run, or the step and property that failed.
pub fn exec(container: &Container, process: &mut Process, options: &Options) -> Result<Child> {
    check_terminal(Some(process), options)?;
    pass_descriptors(process, options)?;
    let id = &container.record.id;
    let config = container.config()?;
    let own = capabilities::own()?;
    limit_capabilities(process, &config.namespaces, &own);
    let process = &*process;
    if let Some(error) = host::missing_for(process, &own).into_iter().next() {
        return Err(error);
    }
    let mut cgroup = container.record.cgroup.open()?.or_without();
    if !options.cgroups.is_empty() {
        cgroup.enter(&options.cgroups)?;
    }
    let (target, init_pid) = container
        .init_pidfd()?
        .with_context(|| format!("cannot exec in container {id}: it is stopped"))?;
    let proc = container.proc();
    let plan = Common {
        process: Some(process),
        seccomp: config.seccomp.as_ref(),
        bounded: Cell::new(false),
        proc,
        preserve_fds: options.preserve_fds,
        personality: config.personality,
        memory_policy: config.memory_policy.as_ref(),
        keyring: keyring(options, id)?,
    };
    let root = match config.namespaces.is_new(Ns::Mount) {
        true => None,
        false => Some(own_root(&target, init_pid)?),
    };
    if let Some(cpus) = process.exec_affinity.as_ref().and_then(|cpus| cpus.initial.as_ref()) {
        sys::process::set_affinity(cpus).context(
            "process.execCPUAffinity.initial: may the runtime run on any of these processors?",
        )?;
    }
    timings::step("look at the container");
    let (channel, theirs) = Channel::pair()?;
    // The container's processes see the next one as soon as it is in their PID namespace: its file
    // is to be read-only for good, and its memory nobody else's.
    seal::let_go();
    let fork = |cgroup: &cgroup::Cgroup| {
        namespace::fork_into(&target, &config.namespaces, cgroup, process, proc)
    };
    let (forked, left) = match fork(&cgroup) {
        Err(error) if error.downcast_ref() == Some(&Errno::EBUSY) && options.cgroups.is_empty() => {
            cgroup.follow(init_pid, proc)?;
            fork(&cgroup)?
        }
        forked => forked?,
    };
    let mut child = match forked {
        Forked::Child => {
            drop(channel);
            let _ = sys::process::set_dumpable(false);
            let user = config.namespaces.get(Ns::User).is_some();
            init::joined(&plan, &target, left, user, root, theirs)
        }
        Forked::Parent { pid, pidfd } => Child::new(pid, pidfd, false, channel),
    };
    drop(theirs);
    timings::step("clone the process");
    let outcome = place(&child, &cgroup, &container.record, Some(process), proc)
        .and_then(|()| child.channel.send(&Message::Placed(cgroup.door()?)))
        .and_then(|()| child.compile_filter(config, options))
        .and_then(|()| child.start_at_once(config, process, options, proc))
        .and_then(|()| child.converse(options, &|| Ok(())));
    timings::step("put it into the cgroup, wait until it is ready");
    match outcome {
        Ok(()) => Ok(child),
        Err(error) => Err(child.give_up(error)),
    }
}
