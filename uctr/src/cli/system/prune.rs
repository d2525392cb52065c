//! `uctr system prune`

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::cli::common::{Prune, print_deleted};
use crate::cli::containers::prune_stopped;
use crate::cli::images::meets;
use crate::cli::networks::prune_networks;
use crate::cli::volumes::prune_volumes;
use crate::image;
use crate::image::store::Store;
use crate::output;
use crate::paths::Paths;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Also images with names that no container is made of
    #[arg(short, long)]
    all: bool,
    /// Also anonymous volumes that no container uses
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    prune: Prune,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let Some(filters) = args.prune.agreed(&warning(args))? else { return Ok(0) };
    let (ids, mut bytes) = prune_stopped(paths, &filters)?;
    print_deleted("Containers", &ids)?;
    print_deleted("Networks", &prune_networks(paths, &filters)?)?;
    if args.volumes {
        let (names, freed) = prune_volumes(paths, false, &filters)?;
        print_deleted("Volumes", &names)?;
        bytes += freed;
    }
    let store = Store::open(paths)?;
    let (gone, freed) =
        image::remove::prune(paths, &store, args.all, |image| meets(image, &filters))?;
    output::print(&image::remove::report(&gone, bytes + freed))?;
    Ok(0)
}

fn warning(args: &Args) -> String {
    let images = match args.all {
        true => "all images without at least one container associated to them",
        false => "all dangling images",
    };
    let volumes = match args.volumes {
        true => "  - all anonymous volumes not used by at least one container\n",
        false => "",
    };
    format!(
        "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at \
         least one container\n{volumes}  - {images}\n  - unused build cache\n"
    )
}
