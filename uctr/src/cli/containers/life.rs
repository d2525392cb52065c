//! Commands that make, start and end containers, or talk to their programs.

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

#[derive(Debug, Subcommand)]
pub enum Command {}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}
