//! Commands that look at containers and their files, and tidy up.

use anyhow::Result;
use clap::Subcommand;

use crate::paths::Paths;

#[derive(Debug, Subcommand)]
pub enum Command {}

/// Those of them that are also `uctr container …`, and those that are only that.
#[derive(Debug, Subcommand)]
pub enum Group {}

pub fn run(_paths: &Paths, command: Command) -> Result<u8> {
    match command {}
}

pub fn run_group(_paths: &Paths, command: Group) -> Result<u8> {
    match command {}
}
