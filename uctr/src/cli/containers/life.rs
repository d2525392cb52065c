//! Commands that make, start and end containers, or talk to their programs.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{ArgAction, Args, Subcommand};

use super::flags::{Create, Limits};
use super::foreground;
use super::values;
use crate::container::attach::{self, DETACH_KEYS, Outcome, Signals};
use crate::container::monitor::protocol::{WANTS_INPUT, WANTS_OUTPUT};
use crate::container::monitor::{Client, start};
use crate::container::parse::{parse_keys, parse_signal};
use crate::container::record::HostConfig;
use crate::container::update::{Changes, update};
use crate::container::{Container, exec, find, lifecycle, logs};
use crate::paths::Paths;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a container and start it
    #[command(disable_help_flag = true)]
    Run(Box<Run>),
    /// Make a container
    #[command(disable_help_flag = true)]
    Create(Box<Create>),
    /// Start containers
    Start(Start),
    /// Ask programs to end, and kill them if they don't
    Stop(Stop),
    /// Stop containers and start them again
    Restart(Stop),
    /// Send a signal
    Kill(Kill),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Wait until containers have ended, and print their exit statuses
    Wait {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Freeze all processes of containers
    Pause {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Let frozen processes go on
    Unpause {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Show what a container has written
    Logs(Box<Logs>),
    /// Run a further program in a container
    Exec(Box<Exec>),
    /// Show a container's output and pass on input
    Attach(Attach),
    /// Change limits and the restart policy
    Update(Box<Update>),
}

#[derive(Debug, Args)]
pub struct Run {
    /// Go on in the background and print the container's ID
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub create: Create,
}

#[derive(Debug, Args)]
pub struct Start {
    /// Show output and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Signal that asks the program to end
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds until it is killed, -1 for never
    #[arg(
        short = 't',
        long = "timeout",
        visible_alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    seconds: Option<i64>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes, too
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// Go on as long as the container runs
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all")]
    tail: String,
    /// Not before this time (RFC 3339, or as 10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    container: String,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Don't wait for its end
    #[arg(short, long)]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    tty: bool,
    /// Set environment variables
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Name or number of the user, and of the group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// With all capabilities
    #[arg(long)]
    privileged: bool,
    container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Don't pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// Keys that leave the container
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    container: String,
}

#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    limits: Limits,
    /// no, always, unless-stopped or on-failure[:MAX]
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Run(args) => Ok(foreground::run(paths, &args)),
        Command::Create(args) => foreground::create(paths, &args),
        Command::Start(args) => start_all(paths, &args),
        Command::Stop(args) => {
            let signal = args.signal.as_deref().map(parse_signal).transpose()?;
            each(paths, &args.containers, |container| {
                lifecycle::stop(container, signal, args.seconds)
            })
        }
        Command::Restart(args) => {
            let signal = args.signal.as_deref().map(parse_signal).transpose()?;
            each(paths, &args.containers, |container| {
                lifecycle::stop(container, signal, args.seconds)?;
                start(container, None).map(drop)
            })
        }
        Command::Kill(args) => {
            let signal = parse_signal(&args.signal)?;
            each(paths, &args.containers, |container| lifecycle::kill(container, signal))
        }
        Command::Rm(args) => remove(paths, &args),
        Command::Wait { containers } => wait(paths, &containers),
        Command::Pause { containers } => each(paths, &containers, lifecycle::pause),
        Command::Unpause { containers } => each(paths, &containers, lifecycle::unpause),
        Command::Logs(args) => show_logs(paths, &args),
        Command::Exec(args) => exec(paths, &args),
        Command::Attach(args) => attach(paths, &args),
        Command::Update(args) => update_all(paths, &args),
    }
}

/// Does it to all of them and prints their names as given; an error does not keep it from the
/// others.
fn each(paths: &Paths, names: &[String], act: impl Fn(&mut Container) -> Result<()>) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match find(paths, name).and_then(|mut container| act(&mut container)) {
            Ok(()) => println!("{name}"),
            Err(error) => {
                eprintln!("uctr: {error:#}");
                code = 1;
            }
        }
    }
    Ok(code)
}

fn remove(paths: &Paths, args: &Rm) -> Result<u8> {
    let mut code = 0;
    for name in &args.containers {
        let removed = match find(paths, name) {
            // As rm(1) has it.
            Err(error) if args.force && error.is::<crate::container::NotFound>() => continue,
            Err(error) => Err(error),
            Ok(mut container) => lifecycle::remove(&mut container, args.force, args.volumes),
        };
        match removed {
            Ok(()) => println!("{name}"),
            Err(error) => {
                eprintln!("uctr: {error:#}");
                code = 1;
            }
        }
    }
    Ok(code)
}

fn start_all(paths: &Paths, args: &Start) -> Result<u8> {
    if !args.attach && !args.interactive {
        return each(paths, &args.containers, |container| start(container, None).map(drop));
    }
    let [name] = args.containers.as_slice() else {
        anyhow::bail!("you cannot start and attach multiple containers at once")
    };
    let mut container = find(paths, name)?;
    let config = &container.record.config;
    let input = args.interactive && config.open_stdin;
    let options = attach::Options {
        input,
        terminal: config.tty,
        detach_keys: parse_keys(&args.detach_keys)?,
        shown: [true; 2],
        signals: true,
    };
    attach::check_terminal(input, config.tty)?;
    foreground::in_front(&mut container, &options, WANTS_OUTPUT)
}

fn wait(paths: &Paths, names: &[String]) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match find(paths, name).and_then(|mut container| lifecycle::wait(&mut container)) {
            Ok(status) => println!("{status}"),
            Err(error) => {
                eprintln!("uctr: {error:#}");
                code = 1;
            }
        }
    }
    Ok(code)
}

fn show_logs(paths: &Paths, args: &Logs) -> Result<u8> {
    let mut container = find(paths, &args.container)?;
    ensure!(
        container.record.host_config.log_config.kind != "none",
        "configured logging driver does not support reading"
    );
    let tail = match args.tail.as_str() {
        "all" => None,
        // As docker has it, whatever is no number is all.
        number => number.parse().ok(),
    };
    let time = |text: &Option<String>| text.as_deref().map(logs::parse_time).transpose();
    let wanted = logs::Wanted {
        tail,
        since: time(&args.since)?,
        until: time(&args.until)?,
        timestamps: args.timestamps,
    };
    let mut sink = logs::Sink::default();
    let mut reader = logs::Reader::open(&container.folder(), wanted, &mut sink)?;
    if !args.follow {
        return Ok(0);
    }
    loop {
        let state = container.state();
        let over = !state.status.is_alive()
            && state.status != crate::container::record::Status::Restarting;
        let late = wanted.until.is_some_and(|until| jiff::Timestamp::now() > until);
        // What was written before it ended is in the log by the time at which that is known.
        let more = reader.read_more(&mut sink)?;
        if over || late {
            break;
        }
        if !more {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        match Container::read(paths, &container.record.id)? {
            Some(now) => container = now,
            None => break,
        }
    }
    Ok(0)
}

fn exec(paths: &Paths, args: &Exec) -> Result<u8> {
    // A process of the container sees this one for a moment, and must not get at its file.
    ultari::seal::ensure(&Vec::from_iter(std::env::args_os()))?;
    let container = find(paths, &args.container)?;
    if !args.detach {
        attach::check_terminal(args.interactive, args.tty)?;
    }
    if let Some(folder) = &args.workdir {
        ensure!(
            folder.starts_with('/'),
            "the working directory '{folder}' is invalid, it needs to be an absolute path"
        );
    }
    let request = exec::Request {
        args: args.command.clone(),
        detach: args.detach,
        input: args.interactive,
        terminal: args.tty,
        env: values::environment(&args.env, &args.env_file)?,
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        privileged: args.privileged,
    };
    match exec::exec(&container, &request) {
        Ok(status) => Ok(status as u8),
        Err(error) => {
            eprintln!("uctr: {error:#}");
            let code = crate::container::monitor::finish::failure_code(&format!("{error:#}"));
            // Docker's status for everything else.
            Ok(if code == 125 { 1 } else { code as u8 })
        }
    }
}

fn attach(paths: &Paths, args: &Attach) -> Result<u8> {
    let container = find(paths, &args.container)?;
    match container.state().status {
        crate::container::record::Status::Running => {}
        crate::container::record::Status::Paused => {
            anyhow::bail!("You cannot attach to a paused container, unpause it first")
        }
        crate::container::record::Status::Restarting => {
            anyhow::bail!("You cannot attach to a restarting container, wait until it is running")
        }
        _ => anyhow::bail!("You cannot attach to a stopped container, start it first"),
    }
    let config = &container.record.config;
    let input = config.open_stdin && !args.no_stdin;
    attach::check_terminal(input, config.tty)?;
    let options = attach::Options {
        input,
        terminal: config.tty,
        detach_keys: parse_keys(&args.detach_keys)?,
        shown: [true; 2],
        signals: args.sig_proxy,
    };
    let signals = Signals::block()?;
    let wants = WANTS_OUTPUT | if input { WANTS_INPUT } else { 0 };
    let client = Client { wants, size: attach::own_size().filter(|_| config.tty) };
    let monitor = crate::container::monitor::join(&container, client)?;
    match attach::run(&container, &monitor, &signals, &options)? {
        Outcome::Exited(status) => Ok(status as u8),
        Outcome::Detached => {
            eprintln!("read escape sequence");
            Ok(0)
        }
    }
}

fn update_all(paths: &Paths, args: &Update) -> Result<u8> {
    let mut limits = HostConfig::default();
    args.limits.put(&mut limits)?;
    let restart = args.restart.as_deref().map(values::restart_policy).transpose()?;
    let changes = Changes { limits, restart };
    each(paths, &args.containers, |container| update(container, &changes).context("update"))
}
