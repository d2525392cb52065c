//! `create` and `run`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ultari::container::Container;
use ultari::launch::{self, Child, Options};
use ultari::notify::Notify;
use ultari::supervise::{self, Signals};
use ultari::sys::descriptor::{Together, close_put_off};
use ultari::{sys, timings};

use crate::cli::{Create, Run};

fn options(
    root: PathBuf,
    systemd_cgroup: bool,
    args: &Create,
    detach: bool,
) -> Result<(PathBuf, Options)> {
    let bundle = super::bundle(args.bundle.as_deref().unwrap_or(Path::new(".")))?;
    let absolute = |path: &PathBuf| std::path::absolute(path).context("working directory");
    let options = Options {
        root,
        id: args.container_id.clone(),
        pid_file: args.pid_file.as_ref().map(absolute).transpose()?,
        console_socket: args.console_socket.as_ref().map(absolute).transpose()?,
        pidfd_socket: args.pidfd_socket.as_ref().map(absolute).transpose()?,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        preserve_fds: args.preserve_fds.saturating_add(super::listen_fds()),
        listen_fds: super::listen_fds(),
        detach,
        cgroups: Vec::new(),
        systemd_cgroup,
        start_at_once: true,
    };
    Ok((bundle, options))
}

pub fn create(root: PathBuf, systemd_cgroup: bool, args: Create) -> Result<i32> {
    let together = Together::begin();
    let (bundle, options) = options(root, systemd_cgroup, &args, true)?;
    std::mem::forget((together, launch::create(&bundle, &options, true)?));
    Ok(0)
}

pub fn run(root: PathBuf, systemd_cgroup: bool, args: Run) -> Result<i32> {
    let together = Together::begin();
    let (bundle, options) = options(root, systemd_cgroup, &args.create, args.detach)?;
    if args.detach {
        let (container, child) = launch::create(&bundle, &options, false)?;
        let notify = start(&container, &child, true)?;
        notify.map_or(Ok(()), |notify| notify.wait(&child.pidfd))?;
        return Ok(0);
    }
    let signals = Signals::block()?;
    if !args.no_subreaper {
        sys::process::become_subreaper().context("become the parent of orphans")?;
    }
    let (container, mut child) = launch::create(&bundle, &options, false)?;
    let notify = start(&container, &child, false)?;
    timings::step("poststart hooks");
    close_put_off();
    let status = supervise::wait(&child.pidfd, &signals, child.console.take(), notify);
    timings::step("the program runs");
    if !args.keep {
        match status {
            Ok(_) => container.destroy_ended()?,
            Err(_) => container.destroy()?,
        }
        timings::step("remove the cgroup and the record");
    }
    // The end of this process closes all that, which is not far.
    std::mem::forget((together, container, child, signals));
    status
}

/// Lets the program go; if that fails nothing of the container is left. `detach`: the caller learns that
/// it runs.
fn start(container: &Container, child: &Child, detach: bool) -> Result<Option<Notify>> {
    let started = (|| {
        let notify = Notify::open(container, child.pid)?;
        match detach || notify.is_some() || !container.config()?.hooks.poststart.is_empty() {
            true => child.start(container)?,
            false => child.start_unnoticed(container)?,
        }
        container.run_poststart(child.pid)?;
        Ok(notify)
    })();
    started.inspect_err(|_| {
        if let Err(leftover) = container.destroy() {
            ultari::log::warning(&format!("{leftover:#}"));
        }
    })
}
