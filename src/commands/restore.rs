//! `restore`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ultari::launch;
use ultari::restore::{self, Options};
use ultari::supervise::{self, Signals};
use ultari::{log, sys};

use super::checkpoint::common;
use crate::cli::Restore;

/// `criu`: what `--criu` says.
pub fn restore(
    root: PathBuf,
    criu: Option<PathBuf>,
    systemd_cgroup: bool,
    args: Restore,
) -> Result<i32> {
    let bundle = super::bundle(args.bundle.as_deref().unwrap_or(Path::new(".")))?;
    let absolute = |path: PathBuf| std::path::absolute(path).context("working directory");
    if args.no_pivot {
        log::warning("--no-pivot: criu knows only pivot_root");
    }
    let options = Options {
        launch: launch::Options {
            root,
            id: args.container_id,
            pid_file: args.pid_file.map(absolute).transpose()?,
            console_socket: args.console_socket.map(absolute).transpose()?,
            detach: args.detach,
            systemd_cgroup,
            ..launch::Options::default()
        },
        common: common(criu, args.images)?,
        lsm_profile: args.lsm_profile,
        lsm_mount_context: args.lsm_mount_context,
    };
    if args.detach {
        restore::restore(&bundle, &options)?;
        return Ok(0);
    }
    let signals = Signals::block()?;
    if !args.no_subreaper && args.single_dash.is_none() {
        sys::process::become_subreaper().context("become the parent of orphans")?;
    }
    let (container, mut restored) = restore::restore(&bundle, &options)?;
    let status = supervise::wait(&restored.pidfd, &signals, restored.console.take(), None);
    container.destroy()?;
    status
}
