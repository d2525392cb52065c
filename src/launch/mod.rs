//! The parent's side of `create`, `run` and `exec`: from the bundle to a process that waits at
//! its gate, and past it.

mod child;
mod create;
mod exec;

use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::LinuxNamespaceType as Ns;

pub use self::child::Child;
pub(crate) use self::child::write_pid_file;
pub use self::create::create;
pub(crate) use self::create::{cgroup_owner, put_on_record, runtime_hooks};
pub use self::exec::exec;
use crate::procfs::Proc;
use crate::spec::{Namespaces, Process};
use crate::state::Record;
use crate::sys::process::CapabilitySets;
use crate::{cgroup, log, process, sys};

/// What the command line says beside the bundle.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder of all containers' records.
    pub root: PathBuf,
    /// The container's name.
    pub id: String,
    /// A file to write the pid to.
    pub pid_file: Option<PathBuf>,
    /// A socket that takes the terminal's master side.
    pub console_socket: Option<PathBuf>,
    /// Move the root filesystem instead of `pivot_root`.
    pub no_pivot: bool,
    /// Stay in the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// A socket that takes a pidfd of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// Cgroups below the container's for a process of `exec`, as [`cgroup::Cgroup::enter`] has them.
    pub cgroups: Vec<String>,
    /// How many of them are sockets that systemd opened for the program (sd_listen_fds(3)).
    pub listen_fds: u32,
    /// The caller goes away before the program ends.
    pub detach: bool,
    /// Have systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// The caller does nothing between the making of the process and [`Child::start`].
    pub start_at_once: bool,
}

/// Checks that a terminal has somebody to hold its other side.
pub(crate) fn check_terminal(process: Option<&Process>, options: &Options) -> Result<()> {
    let terminal = process.is_some_and(|process| process.terminal);
    let socket = options.console_socket.is_some();
    ensure!(
        !terminal || socket || !options.detach,
        "process.terminal: nobody would hold the terminal of a detached container; give \
         --console-socket, or set it to false"
    );
    ensure!(
        terminal || !socket,
        "--console-socket: there is no terminal to pass (process.terminal is false)"
    );
    Ok(())
}

/// Checks the descriptors to pass, and tells the program of those from systemd.
fn pass_descriptors(process: &mut Process, options: &Options) -> Result<()> {
    let last = options.preserve_fds.checked_add(2).filter(|last| *last < 1 << 20);
    let last = last.context("--preserve-fds: too many")?;
    for fd in 3..=last as i32 {
        ensure!(
            sys::fs::is_inherited(fd),
            "--preserve-fds {}: descriptor {fd} is not open",
            options.preserve_fds - options.listen_fds
        );
    }
    // Everything else that leaked into the caller or its engine is not even for hooks.
    sys::descriptor::cloexec_from(last as i32 + 1).context("close inherited descriptors")?;
    if options.listen_fds > 0 {
        process.env.push(CString::new(format!("LISTEN_FDS={}", options.listen_fds))?);
        process.env.push(c"LISTEN_PID=1".into());
        if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
            process.env.push(CString::new(format!("LISTEN_FDNAMES={names}"))?);
        }
    }
    Ok(())
}

/// Takes away the capabilities that are not there to be given. In a user namespace all are.
fn limit_capabilities(process: &mut Process, namespaces: &Namespaces, own: &CapabilitySets) {
    if namespaces.get(Ns::User).is_some() {
        return;
    }
    let missing = process.capabilities.limit_to_available(own);
    if !missing.is_empty() {
        let names = missing.join(", ");
        log::warning(&format!("process.capabilities: not available here: {names}"));
    }
}

pub(crate) fn keyring(options: &Options, id: &str) -> Result<Option<CString>> {
    match options.no_new_keyring {
        true => Ok(None),
        false => Ok(Some(CString::new(format!("_ses.{id}"))?)),
    }
}

/// What only the parent may do to the child: its cgroups and resctrl groups, its rank for the OOM killer.
fn place(
    child: &Child,
    cgroup: &cgroup::Cgroup,
    record: &Record,
    process: Option<&Process>,
    proc: &Proc,
) -> Result<()> {
    if !cgroup.is_joined_by_clone() {
        cgroup.add(child.pid)?;
    }
    if let Some(groups) = &record.resctrl {
        groups.add(child.pid)?;
    }
    process::set_oom_score(process, &child.pid.to_string(), proc)
}
