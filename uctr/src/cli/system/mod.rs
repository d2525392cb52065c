//! Commands on all that there is: `version`, `info`, `system df`, `system prune`.

mod df;
mod info;
mod prune;

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

/// Commands of their own.
#[derive(Debug, Subcommand)]
pub enum Short {
    /// Show the version
    Version(info::Args),
    /// Show what there is, and on what kind of machine
    Info(info::Args),
}

/// `uctr system …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how much room images, containers and volumes take
    Df(df::Args),
    /// Show what there is, and on what kind of machine
    Info(info::Args),
    /// Remove what nobody uses
    Prune(prune::Args),
}

pub fn run_short(paths: &Paths, command: Short) -> Result<u8> {
    match command {
        Short::Version(args) => info::version(&args),
        Short::Info(args) => info::run(paths, &args),
    }
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Df(args) => df::run(paths, &args),
        Command::Info(args) => info::run(paths, &args),
        Command::Prune(args) => prune::run(paths, &args),
    }
}
