//! Commands on containers.

mod flags;
mod foreground;
mod life;
mod look;
mod values;

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;
pub use look::{prune_stopped, status};

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Life(life::Command),
    #[command(flatten)]
    Look(look::Command),
}

/// `uctr container …`
#[derive(Debug, Subcommand)]
pub enum Group {
    #[command(flatten)]
    Life(life::Command),
    #[command(flatten)]
    Look(look::Group),
    /// Show where a container's ports answer on the host
    Port(super::networks::Port),
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Life(command) => life::run(paths, command),
        Command::Look(command) => look::run(paths, command),
    }
}

pub fn run_group(paths: &Paths, command: Group) -> Result<u8> {
    match command {
        Group::Life(command) => life::run(paths, command),
        Group::Look(command) => look::run_group(paths, command),
        Group::Port(args) => super::networks::port(paths, &args),
    }
}
