//! `run`, `create`, and `start` in the foreground.

use std::io::Write;

use anyhow::{Context, Result, ensure};

use super::flags::Create;
use super::life::Run;
use crate::container::attach::{self, Options, Outcome, Signals};
use crate::container::monitor::protocol::WANTS_INPUT;
use crate::container::monitor::{Client, StartFailed, start};
use crate::container::parse::parse_keys;
use crate::container::{Container, lifecycle, make};
use crate::image::layers::Layers;
use crate::image::registry::{self, Platform};
use crate::image::store::Store;
use crate::paths::Paths;

/// Docker's exit status for whatever is wrong before the program runs.
const FAILED: u8 = 125;

/// `create`
pub fn create(paths: &Paths, args: &Create) -> Result<u8> {
    // Nobody is attached yet, but the first who comes with -i brings the input to its end.
    match make_container(paths, args, false) {
        Ok(container) => {
            println!("{}", container.record.id);
            Ok(0)
        }
        Err(error) => {
            eprintln!("uctr: {error:#}");
            Ok(1)
        }
    }
}

fn make_container(paths: &Paths, args: &Create, detached: bool) -> Result<Container> {
    let request = args.request(detached)?;
    if let Some(path) = &args.cidfile {
        ensure!(
            !path.exists(),
            "container ID file found, make sure the other container isn't running or delete {}",
            path.display()
        );
    }
    let store = Store::open(paths)?;
    // Until the container is on record nothing else keeps its image.
    let _hold = store.hold()?;
    let platform = Platform(args.platform.clone());
    let image = registry::ensure(paths, &store, &args.image, &platform, args.pull)?;
    Layers::open(paths)?.ensure(&store, &image)?;
    let container = make::make(paths, &image, request)?;
    if let Some(path) = &args.cidfile {
        let written = std::fs::File::create_new(path)
            .and_then(|mut file| file.write_all(container.record.id.as_bytes()));
        written.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(container)
}

/// `run`
pub fn run(paths: &Paths, args: &Run) -> u8 {
    match try_run(paths, args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("uctr: {error:#}");
            error.downcast_ref::<StartFailed>().map_or(FAILED, |failed| failed.code)
        }
    }
}

fn try_run(paths: &Paths, args: &Run) -> Result<u8> {
    let create = &args.create;
    let attached = create.attached(args.detach)?;
    let keys = parse_keys(&create.detach_keys)?;
    if !args.detach
        && let Err(error) = attach::check_terminal(attached[0] && create.interactive, create.tty)
    {
        // Docker's own status for that.
        eprintln!("{error}");
        return Ok(1);
    }
    let mut container = make_container(paths, create, args.detach)?;
    if args.detach {
        start_or_remove(&mut container, None)?;
        println!("{}", container.record.id);
        return Ok(0);
    }
    let options = Options {
        input: attached[0] && create.interactive,
        terminal: create.tty,
        detach_keys: keys,
        shown: [attached[1], attached[2]],
        signals: create.sig_proxy,
    };
    let wants = crate::container::monitor::protocol::WANTS_OUTPUT;
    in_front(&mut container, &options, if attached[1] || attached[2] { wants } else { 0 })
}

/// A container that could not be started is of no use with `--rm`.
fn start_or_remove(
    container: &mut Container,
    client: Option<Client>,
) -> Result<Option<crate::container::monitor::protocol::Connection>> {
    start(container, client).inspect_err(|_| {
        if container.record.host_config.auto_remove
            && let Err(leftover) = lifecycle::remove(container, true, true)
        {
            eprintln!("uctr: {leftover:#}");
        }
    })
}

/// Starts it and stays in front of it until it ends.
pub fn in_front(container: &mut Container, options: &Options, wants: u8) -> Result<u8> {
    let signals = Signals::block()?;
    let wants = wants | if options.input { WANTS_INPUT } else { 0 };
    let size = attach::own_size().filter(|_| options.terminal);
    let monitor = start_or_remove(container, Some(Client { wants, size }))?;
    let monitor = monitor.context("no connection to the container's monitor")?;
    match attach::run(container, &monitor, &signals, options)? {
        Outcome::Exited(status) => Ok(status as u8),
        Outcome::Detached => {
            eprintln!("read escape sequence");
            Ok(0)
        }
    }
}
