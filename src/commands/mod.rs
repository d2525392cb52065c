//! One function a command: arguments in, library calls, output.

mod check;
mod checkpoint;
mod events;
mod exec;
mod features;
mod list;
mod ps;
mod restore;
mod run;
mod spec;
mod update;

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::sys::signal::Signal;
use ultari::container::{Container, does_not_exist, wait_for};
use ultari::log;
use ultari::notify::Notify;
use ultari::state::{Damaged, Folder};
use ultari::sys::process::{RTMAX, RTMIN};
use ultari::timings;

use crate::cli::{Cli, Command, LogFormat};

/// Runs the command; returns the exit status and the error to show.
pub fn dispatch(cli: Cli) -> (i32, Option<Error>) {
    let failure = if matches!(cli.command, Some(Command::Exec(_))) {
        // As with runc: lower codes are those of the program.
        255
    } else {
        1
    };
    match try_dispatch(cli) {
        Ok(status) => (status, None),
        Err(error) => (failure, Some(error)),
    }
}

fn try_dispatch(cli: Cli) -> Result<i32> {
    let format = match cli.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    let log = cli.log.as_deref().filter(|path| !path.as_os_str().is_empty());
    log::init(log, format, cli.debug)?;
    if cli.version {
        println!(
            "ultari version {}\nspec: {}",
            env!("CARGO_PKG_VERSION"),
            ultari::spec::SPEC_VERSION
        );
        return Ok(0);
    }
    let root = match cli.root {
        Some(root) => std::path::absolute(root).context("--root")?,
        None => default_root(),
    };
    let command = cli.command.context("no command given; see ultari --help")?;
    let timings = cli.timings.or_else(wanted_timings).filter(|_| starts_process(&command));
    if timings.is_some() {
        timings::begin()?;
        timings::step("read the arguments");
    }
    let status = call(command, root, cli.systemd_cgroup, cli.criu);
    match timings.map(|file| timings::report(&file)) {
        Some(Err(error)) if status.is_ok() => Err(error),
        _ => status,
    }
}

/// `ULTARI_TIMINGS`: 1, or a file.
fn wanted_timings() -> Option<PathBuf> {
    let value = std::env::var_os("ULTARI_TIMINGS").filter(|value| !value.is_empty())?;
    match value.to_str() {
        Some("0") => None,
        Some("1") => Some("-".into()),
        _ => Some(value.into()),
    }
}

fn starts_process(command: &Command) -> bool {
    use Command::{Create, Exec, Restore, Run};
    matches!(command, Create(_) | Run(_) | Exec(_) | Restore(_))
}

fn call(
    command: Command,
    root: PathBuf,
    systemd_cgroup: bool,
    criu: Option<PathBuf>,
) -> Result<i32> {
    match command {
        Command::Create(args) => run::create(root, systemd_cgroup, args),
        Command::Run(args) => run::run(root, systemd_cgroup, args),
        Command::Exec(args) => exec::exec(root, *args),
        Command::Start { container_id } => start(&root, &container_id).map(zero),
        Command::State { container_id } => state(&root, &container_id).map(zero),
        Command::Kill { container_id, signal, all } => {
            let signal = parse_signal(&signal)?;
            Container::open(&root, &container_id)?.kill(signal, all).map(zero)
        }
        Command::Delete { container_id, force } => delete(&root, &container_id, force).map(zero),
        Command::List { format, quiet } => list::list(&root, format, quiet).map(zero),
        Command::Ps { format, container_id_and_options } => {
            let [container_id, options @ ..] = container_id_and_options.as_slice() else {
                bail!("ps: no container named")
            };
            ps::ps(&Container::open(&root, container_id)?, format, options).map(zero)
        }
        Command::Update(args) => update::update(&root, *args).map(zero),
        Command::Events { container_id, interval, stats } => {
            events::events(&Container::open(&root, &container_id)?, &interval, stats).map(zero)
        }
        Command::Pause { container_id } => Container::open(&root, &container_id)?.pause().map(zero),
        Command::Resume { container_id } => {
            Container::open(&root, &container_id)?.resume().map(zero)
        }
        Command::Checkpoint(args) => checkpoint::checkpoint(&root, criu, *args).map(zero),
        Command::Restore(args) => restore::restore(root, criu, systemd_cgroup, *args),
        Command::Spec { bundle, rootless } => spec::spec(bundle, rootless).map(zero),
        Command::Check { bundle, format } => check::check(&bundle, systemd_cgroup, format),
        Command::Features => features::features().map(zero),
    }
}

/// The absolute path of a bundle, without links.
fn bundle(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("--bundle {}", path.display()))
}

fn zero((): ()) -> i32 {
    0
}

/// `/run/ultari`, or a folder of the user's own. In a user namespace root is somebody else, unless
/// `$USER` says otherwise; Podman without root doesn't set it. It is runc's rule, too.
fn default_root() -> PathBuf {
    let text = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let uid = nix::unistd::geteuid();
    let masked = || text("USER").is_none_or(|user| user != "root") && ultari::userns::is_inside();
    match text("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(personal) if !uid.is_root() || masked() => personal.join("ultari"),
        // Where it is for login sessions; su(1) and cron(8) do not set it.
        None if !uid.is_root() => format!("/run/user/{uid}/ultari").into(),
        _ => "/run/ultari".into(),
    }
}

/// How many sockets systemd opened for us to pass on (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

fn start(root: &Path, id: &str) -> Result<()> {
    let container = Container::open(root, id)?;
    let ready = match container.init_pidfd()? {
        Some((pidfd, pid)) => Notify::open(&container, pid)?.map(|notify| (notify, pidfd)),
        None => None,
    };
    container.start()?;
    ready.map_or(Ok(()), |(notify, pidfd)| notify.wait(&pidfd))
}

fn state(root: &Path, id: &str) -> Result<()> {
    let state = Container::open(root, id)?.state()?;
    println!("{}", serde_json::to_string_pretty(&state)?);
    Ok(())
}

fn delete(root: &Path, id: &str, force: bool) -> Result<()> {
    let Some(folder) = Folder::open(root, id)? else {
        // Engines delete once more after a delete, to be sure.
        ensure!(force, does_not_exist(root, id));
        return Ok(());
    };
    match folder.record() {
        Ok(None) if force => {
            // Whoever is creating it goes on, or was killed before there was a record, when nothing
            // else had been made.
            let Some(alone) = folder.lock()? else { return Ok(()) };
            wait_for(|| !matches!(folder.record(), Ok(None)) || folder.bar());
            if let Ok(None) = folder.record() {
                return folder.remove(&alone);
            }
        }
        // Nobody can tell what it was about.
        Err(error) if force && error.is::<Damaged>() => {
            log::warning(&format!("{error:#}"));
            let Some(alone) = folder.lock()? else { return Ok(()) };
            return folder.remove(&alone);
        }
        _ => {}
    }
    match Container::open(root, id) {
        Ok(container) => container.delete(force),
        // Somebody else was faster.
        Err(_) if force && folder.is_gone() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A signal's number from its name (`TERM`, `SIGTERM`, `RTMIN+3`) or number.
fn parse_signal(text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<i32>() {
        Ok(number) => number,
        Err(_) => {
            let real_time = |from: i32, rest: &str, sign: i32| {
                let offset = rest.strip_prefix(if sign > 0 { '+' } else { '-' });
                let offset = if rest.is_empty() { Some("0") } else { offset };
                offset.and_then(|n| n.parse::<i32>().ok()).map(|n| from + sign * n)
            };
            let named = || format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32);
            let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(rest), _) => real_time(RTMIN, rest, 1),
                (_, Some(rest)) => real_time(RTMAX, rest, -1),
                _ => named(),
            };
            number.with_context(|| format!("signal {text:?} is unknown; `kill -l` lists them"))?
        }
    };
    if !(1..=RTMAX).contains(&number) {
        bail!("signal {text:?} is not between 1 and {}", RTMAX);
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("SIGKILL", 9), ("9", 9), ("usr1", 10), ("37", 37)] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        assert_eq!(parse_signal("RTMIN+3").unwrap(), 37);
        assert_eq!(parse_signal("SIGRTMAX-1").unwrap(), 63);
        for text in ["", "0", "65", "-1", "NOPE", "SIG", "RTMIN3"] {
            parse_signal(text).unwrap_err();
        }
    }
}
