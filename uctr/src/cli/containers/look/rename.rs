//! `uctr rename`

use anyhow::{Result, ensure};
use clap::Args as ClapArgs;

use crate::container::{self, names};
use crate::network;
use crate::paths::Paths;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The container's name or ID
    container: String,
    /// The name that it gets
    new_name: String,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let name = args.new_name.strip_prefix('/').unwrap_or(&args.new_name);
    let _lock = names::lock(paths)?;
    let mut container = container::find(paths, &args.container)?;
    ensure!(
        container.record.name != name,
        "Renaming a container with the same name as its current name"
    );
    names::check(paths, name)?;
    container.change(|record| {
        record.name = name.into();
        Ok(())
    })?;
    network::members::rename(paths, &container.record.id, name)?;
    Ok(0)
}
