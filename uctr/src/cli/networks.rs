//! Commands on networks and ports.

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

/// `uctr network …`
#[derive(Debug, Subcommand)]
pub enum Command {}

/// Commands of their own: `port`.
#[derive(Debug, Subcommand)]
pub enum Short {}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}

pub fn run_short(_paths: &Paths, command: Short) -> Result<u8> {
    match command {}
}
