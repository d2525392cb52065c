//! `exec`.

use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use ultari::container::{Container, Status};
use ultari::launch::{self, Options};
use ultari::spec::process::{Process, env_name};
use ultari::supervise::{self, Signals};
use ultari::{log, spec};

use crate::cli::Exec;

pub fn exec(root: PathBuf, args: Exec) -> Result<i32> {
    let container = Container::open(&root, &args.container_id)?;
    let id = &args.container_id;
    match container.status()?.0 {
        Status::Created | Status::Running => {}
        Status::Paused => ensure!(
            args.ignore_paused,
            "cannot exec in a paused container (use --ignore-paused to override)"
        ),
        Status::Stopped => bail!("cannot exec in container {id}: it has stopped"),
        Status::Creating => bail!("cannot exec in container {id}: it is being created"),
    }
    let mut process = match &args.process {
        Some(path) => {
            let context = || format!("--process {}", path.display());
            let text = std::fs::read(path).with_context(context)?;
            let mut warnings = Vec::new();
            let process = spec::parse_process(&text, &mut warnings).with_context(context)?;
            warnings.iter().for_each(|warning| log::warning(warning));
            process
        }
        None => from_flags(&container, &args)?,
    };
    let absolute = |path: &PathBuf| std::path::absolute(path).context("working directory");
    let options = Options {
        root,
        id: args.container_id.clone(),
        pid_file: args.pid_file.as_ref().map(absolute).transpose()?,
        console_socket: args.console_socket.as_ref().map(absolute).transpose()?,
        pidfd_socket: args.pidfd_socket.as_ref().map(absolute).transpose()?,
        preserve_fds: args.preserve_fds.saturating_add(super::listen_fds()),
        listen_fds: super::listen_fds(),
        detach: args.detach,
        cgroups: args.cgroup.clone(),
        start_at_once: true,
        ..Options::default()
    };
    if args.detach {
        launch::exec(&container, &mut process, &options)?.start(&container)?;
        return Ok(0);
    }
    let signals = Signals::block()?;
    let mut child = launch::exec(&container, &mut process, &options)?;
    child.start(&container)?;
    supervise::wait(&child.pidfd, &signals, child.console.take(), None)
}

/// The container's own process with what the flags change.
fn from_flags(container: &Container, args: &Exec) -> Result<Process> {
    let mut process = match &container.config()?.process {
        Some(process) => process.clone(),
        None => {
            let empty = br#"{"user": {}, "cwd": "/", "args": ["sh"]}"#;
            spec::parse_process(empty, &mut Vec::new())?
        }
    };
    ensure!(!args.command.is_empty(), "exec: give a command to run, or --process FILE");
    let strings = |list: &[String]| -> Result<Vec<CString>> {
        let convert =
            |text: &String| CString::new(text.as_str()).context("NUL byte in an argument");
        list.iter().map(convert).collect()
    };
    process.args = strings(&args.command)?;
    process.terminal = args.tty;
    process.console_size = None;
    if let Some(cwd) = &args.cwd {
        ensure!(cwd.starts_with('/'), "--cwd {cwd:?}: must be an absolute path");
        process.cwd = cwd.into();
    }
    for entry in strings(&args.env)? {
        let name = env_name(entry.as_bytes()).to_vec();
        process.env.retain(|other| env_name(other.as_bytes()) != name);
        process.env.push(entry);
    }
    if let Some(user) = &args.user {
        let (uid, gid) = parse_user(user)?;
        process.user.uid = uid;
        process.user.gid = gid.unwrap_or(process.user.gid);
    }
    process.user.additional_gids.extend(&args.additional_gids);
    for name in &args.cap {
        process.capabilities.add(name).context("--cap")?;
    }
    process.no_new_privileges |= args.no_new_privs;
    process.apparmor_profile = args.apparmor.clone().or(process.apparmor_profile);
    process.selinux_label = args.process_label.clone().or(process.selinux_label);
    Ok(process)
}

/// `UID[:GID]`. Numbers only: a name that were taken for 0 would be root (CVE-2026-30892).
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let number = part.parse::<u32>().ok().filter(|_| digits);
        number.with_context(|| format!("--user {text:?}: expected UID or UID:GID, as numbers"))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_and_nothing_else() {
        assert_eq!(parse_user("1").unwrap(), (1, None));
        assert_eq!(parse_user("1000:5").unwrap(), (1000, Some(5)));
        for text in
            ["", ":", "1:", ":1", "root", "1:wheel", "-1", "+1", "1:2:3", "4294967296", "1 "]
        {
            parse_user(text).unwrap_err();
        }
    }
}
