//! `--init`: the first process of a container, which starts the program as its child, passes
//! signals on, and reaps what others leave behind.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::config::INIT_PATH;

/// Runs if that is how this program was executed.
#[must_use]
pub fn hidden_command(args: &[OsString]) -> Option<u8> {
    let [own, command, dashes, program @ ..] = args else { return None };
    if own != INIT_PATH || command != "init" || dashes != "--" {
        return None;
    }
    match run(program) {
        Ok(code) => Some(code),
        Err(error) => {
            eprintln!("{error:#}");
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            Some(match kind {
                Some(std::io::ErrorKind::NotFound) => 127,
                Some(std::io::ErrorKind::PermissionDenied) => 126,
                _ => 125,
            })
        }
    }
}

fn run(program: &[OsString]) -> Result<u8> {
    let (name, args) = program.split_first().context("init: no program")?;
    let all = SigSet::all();
    all.thread_block().context("init: block signals")?;
    let mut command = Command::new(name);
    // A group of its own, with the terminal: ^C is not to come twice.
    command.args(args).process_group(0);
    ultari::sys::process::spawn_in_foreground(&mut command);
    let child = command.spawn().with_context(|| format!("init: exec: {name:?}"))?;
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(&child) {
                    return Ok(code);
                }
            }
            Ok(signal) => {
                // It may just have ended.
                let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), signal);
            }
            Err(_) => {}
        }
    }
}

/// Reaps all that have ended; the program's exit status, if it is among them.
fn reap(child: &Child) -> Option<u8> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    loop {
        let (pid, code) = match waitid(Id::All, flags).ok()? {
            WaitStatus::Exited(pid, code) => (pid, code),
            WaitStatus::Signaled(pid, signal, _) => (pid, 128 + signal as i32),
            _ => return None,
        };
        if pid.as_raw() as u32 == child.id() {
            return Some(code as u8);
        }
    }
}
