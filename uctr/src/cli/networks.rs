//! Commands on networks and ports.

use anyhow::Result;
use clap::Subcommand;

use crate::network;
use crate::paths::Paths;

/// `uctr network …`
#[derive(Debug, Subcommand)]
pub enum Command {}

/// Commands of their own: `port`, and the processes in the background.
#[derive(Debug, Subcommand)]
pub enum Short {
    /// Serves the published ports of a container
    #[command(hide = true, name = network::proxy::COMMAND)]
    Proxy,
    /// Resolves names on a network
    #[command(hide = true, name = network::resolver::COMMAND)]
    Resolver,
}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}

pub fn run_short(paths: &Paths, command: Short) -> Result<u8> {
    match command {
        Short::Proxy => network::proxy::main(paths).map(|()| 0),
        Short::Resolver => network::resolver::main(paths).map(|()| 0),
    }
}
