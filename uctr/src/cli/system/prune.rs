//! `uctr system prune`

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::cli::containers::{Filters, prune_stopped};
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
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// Also anonymous volumes that no container uses
    #[arg(long)]
    volumes: bool,
    /// Only what meets a condition: label=, label!=, until=
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let filters = Filters::parse(&args.filter)?;
    if !args.force && !output::confirm(&warning(args))? {
        return Ok(0);
    }
    let print = |title: &str, names: &[String]| match names {
        [] => Ok(()),
        names => output::print(&format!("Deleted {title}:\n{}\n\n", names.join("\n"))),
    };
    let (ids, mut bytes) = prune_stopped(paths, &filters)?;
    print("Containers", &ids)?;
    print("Networks", &prune_networks(paths, &filters)?)?;
    if args.volumes {
        let (names, freed) = prune_volumes(paths, false, &filters)?;
        print("Volumes", &names)?;
        bytes += freed;
    }
    let store = Store::open(paths)?;
    let (gone, freed) = image::remove::prune(paths, &store, args.all, |image| {
        let labels = image.config.config().as_ref().and_then(|config| config.labels().clone());
        let labels = labels.unwrap_or_default().into_iter().collect();
        filters.hold(&labels, image::usage::created(image).unwrap_or_default())
    })?;
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
