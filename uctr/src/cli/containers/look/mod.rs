//! Commands that look at containers and their files, and tidy up.

mod commit;
mod cp;
mod diff;
mod inspect;
mod prune;
mod ps;
mod rename;
mod stats;
mod top;

use anyhow::Result;
use clap::Subcommand;

use crate::cli::common;
use crate::container::Container;
use crate::paths::Paths;
pub use prune::prune_stopped;
pub use ps::status;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List containers
    Ps(ps::Args),
    /// Show all that is known of containers, images, networks and volumes
    Inspect(inspect::AnyArgs),
    #[command(flatten)]
    Both(Both),
}

/// Those that are the same after `uctr container`.
#[derive(Debug, Subcommand)]
pub enum Both {
    /// Show a container's processes
    Top(top::Args),
    /// Show what containers use, live
    Stats(stats::Args),
    /// Copy files and folders between a container and the local file system
    Cp(cp::Args),
    /// List what changed in a container's file system
    Diff(diff::Args),
    /// Make an image of what changed in a container
    Commit(commit::Args),
    /// Give a container another name
    Rename(rename::Args),
}

/// Those of them that are also `uctr container …`, and those that are only that.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Args),
    /// Show all that is known of containers
    Inspect(inspect::Args),
    /// Remove all containers that don't run
    Prune(common::Prune),
    #[command(flatten)]
    Both(Both),
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Ps(args) => ps::run(paths, &args),
        Command::Inspect(args) => inspect::run_any(paths, &args),
        Command::Both(command) => run_both(paths, command),
    }
}

pub fn run_group(paths: &Paths, command: Group) -> Result<u8> {
    match command {
        Group::Ls(args) => ps::run(paths, &args),
        Group::Inspect(args) => inspect::run(paths, &args),
        Group::Prune(args) => prune::run(paths, &args),
        Group::Both(command) => run_both(paths, command),
    }
}

fn run_both(paths: &Paths, command: Both) -> Result<u8> {
    match command {
        Both::Top(args) => top::run(paths, &args),
        Both::Stats(args) => stats::run(paths, &args),
        Both::Cp(args) => cp::run(paths, &args),
        Both::Diff(args) => diff::run(paths, &args),
        Both::Commit(args) => commit::run(paths, &args),
        Both::Rename(args) => rename::run(paths, &args),
    }
}

/// The runtime's view of a container that runs.
fn running(container: &Container) -> Result<ultari::container::Container> {
    let id = &container.record.id;
    anyhow::ensure!(container.state().status.is_alive(), "Container {id} is not running");
    ultari::container::Container::open(&container.paths().runtime(), id)
}
