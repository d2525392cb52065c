//! `uctr diff`

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::container;
use crate::container::changes::changes;
use crate::output;
use crate::paths::Paths;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The container's name or ID
    container: String,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let container = container::find(paths, &args.container)?;
    let mut text = String::new();
    for (path, kind) in changes(&container)? {
        text.push_str(&format!("{} {}\n", kind.letter(), path.display()));
    }
    output::print(&text)?;
    Ok(0)
}
