//! `rmi`, `image prune`, `tag`.

use anyhow::Result;
use clap::Args;

use super::{find, open};
use crate::cli::common::{self, Filters};
use crate::image::reference::Reference;
use crate::image::remove::{Gone, NotFound, prune, remove, report};
use crate::image::store::Image;
use crate::image::usage::created;
use crate::output::print;
use crate::paths::Paths;

#[derive(Debug, Args)]
pub struct Remove {
    /// Names, or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also if a stopped container was made of it, or if it has several names
    #[arg(short, long)]
    force: bool,
    /// Taken for docker's sake: images have no parents here
    #[arg(long)]
    no_prune: bool,
}

impl Remove {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, _) = open(paths)?;
        let mut code = 0;
        for name in &self.images {
            match remove(paths, &store, name, self.force) {
                Ok(gone) => {
                    let line = |gone: Gone| match gone {
                        Gone::Untagged(name) => format!("Untagged: {name}\n"),
                        Gone::Deleted(digest) => format!("Deleted: {digest}\n"),
                    };
                    print(&gone.into_iter().map(line).collect::<String>())?;
                }
                Err(error) => {
                    eprintln!("uctr: {error:#}");
                    if !self.force || !error.is::<NotFound>() {
                        code = 1;
                    }
                }
            }
        }
        Ok(code)
    }
}

#[derive(Debug, Args)]
pub struct Prune {
    /// All images that no container is made of, not only those without a name
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    prune: common::Prune,
}

impl Prune {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let warning = match self.all {
            true => {
                "WARNING! This will remove all images without at least one container associated to them."
            }
            false => "WARNING! This will remove all dangling images.",
        };
        let Some(filters) = self.prune.agreed(warning)? else { return Ok(0) };
        let (store, _) = open(paths)?;
        let (gone, bytes) = prune(paths, &store, self.all, |image| meets(image, &filters))?;
        print(&report(&gone, bytes))?;
        Ok(0)
    }
}

/// Whether `prune` may take the image away.
pub fn meets(image: &Image, filters: &Filters) -> bool {
    let labels = image.config.labels_of_config().cloned().unwrap_or_default();
    filters.hold(&labels.into_iter().collect(), created(image).unwrap_or_default())
}

#[derive(Debug, Args)]
pub struct Tag {
    /// The image
    #[arg(value_name = "SOURCE[:TAG]")]
    source: String,
    /// Its new name
    #[arg(value_name = "TARGET[:TAG]")]
    target: String,
}

impl Tag {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, _) = open(paths)?;
        let target: Reference = self.target.parse()?;
        anyhow::ensure!(
            target.digest.is_none(),
            "refusing to create a tag with a digest reference"
        );
        let image = find(&store, &self.source)?;
        store.tag(&target, &image.manifest)?;
        Ok(0)
    }
}
