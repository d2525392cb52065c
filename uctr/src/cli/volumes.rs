//! Commands on volumes.

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

/// `uctr volume …`
#[derive(Debug, Subcommand)]
pub enum Command {}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}
