//! Commands that talk to registries.

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

#[derive(Debug, Subcommand)]
pub enum Command {}

/// Those of them that are also `uctr image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}

pub fn run_group(_paths: &Paths, command: ImageCommand) -> Result<u8> {
    match command {}
}
