//! Commands on the images that are here.

mod files;
mod list;
mod remove;

use anyhow::{Result, anyhow};
use clap::Subcommand;

pub use self::remove::meets;
use crate::image::layers::Layers;
use crate::image::remove::NotFound;
use crate::image::store::{Image, Store};
use crate::paths::Paths;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List images
    Images(list::List),
    /// Remove one or more images
    Rmi(remove::Remove),
    #[command(flatten)]
    Both(Both),
}

/// Those that are called the same with and without `image`.
#[derive(Debug, Subcommand)]
pub enum Both {
    /// Show the layers of an image: digests, sizes, who shares them, what made them
    Layers(list::LayersOf),
    /// Show how an image came about
    History(list::History),
    /// Give an image another name
    Tag(remove::Tag),
    /// Write images to an archive
    Save(files::Save),
    /// Read images from an archive
    Load(files::Load),
    /// Make an image of the archive of a root filesystem
    Import(files::Import),
    /// Make an OCI bundle of an image, for `ultari run -b DIR`
    Unpack(files::Unpack),
}

/// Those of them that are also `uctr image …`, and those that are only that.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// List images
    #[command(visible_alias = "list")]
    Ls(list::List),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(remove::Remove),
    /// Show all that is known of images
    Inspect(list::Inspect),
    /// Remove unused images
    Prune(remove::Prune),
    #[command(flatten)]
    Both(Both),
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Images(list) => list.run(paths),
        Command::Rmi(remove) => remove.run(paths),
        Command::Both(both) => run_both(paths, both),
    }
}

pub fn run_group(paths: &Paths, command: Group) -> Result<u8> {
    match command {
        Group::Ls(list) => list.run(paths),
        Group::Rm(remove) => remove.run(paths),
        Group::Inspect(inspect) => inspect.run(paths),
        Group::Prune(prune) => prune.run(paths),
        Group::Both(both) => run_both(paths, both),
    }
}

fn run_both(paths: &Paths, command: Both) -> Result<u8> {
    match command {
        Both::Layers(layers) => layers.run(paths),
        Both::History(history) => history.run(paths),
        Both::Tag(tag) => tag.run(paths),
        Both::Save(save) => save.run(paths),
        Both::Load(load) => load.run(paths),
        Both::Import(import) => import.run(paths),
        Both::Unpack(unpack) => unpack.run(paths),
    }
}

fn open(paths: &Paths) -> Result<(Store, Layers)> {
    Ok((Store::open(paths)?, Layers::open(paths)?))
}

fn find(store: &Store, name: &str) -> Result<Image> {
    store.find(name)?.ok_or_else(|| anyhow!(NotFound(name.to_owned())))
}
