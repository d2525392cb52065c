//! Commands on the images that are here.

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

#[derive(Debug, Subcommand)]
pub enum Command {}

/// Those of them that are also `uctr image …`, and those that are only that.
#[derive(Debug, Subcommand)]
pub enum Group {}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}

pub fn run_group(_paths: &Paths, command: Group) -> Result<u8> {
    match command {}
}
