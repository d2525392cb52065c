//! `rmi`, `image prune`, `tag`.

use anyhow::{Context, Result};
use clap::Args;
use jiff::{Span, Timestamp};

use super::{find, open};
use crate::image::reference::Reference;
use crate::image::remove::{Gone, NotFound, prune, remove, report};
use crate::image::store::Image;
use crate::image::usage::created;
use crate::output::{self, confirm, print};
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
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// until=TIME (1h, 2026-01-31 …), label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl Prune {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let filters =
            self.filter.iter().map(|filter| Filter::parse(filter)).collect::<Result<Vec<_>>>()?;
        let warning = match self.all {
            true => {
                "WARNING! This will remove all images without at least one container associated to them."
            }
            false => "WARNING! This will remove all dangling images.",
        };
        if !self.force && !confirm(warning)? {
            return Ok(0);
        }
        let (store, _) = open(paths)?;
        let wanted = |image: &Image| filters.iter().all(|filter| filter.wants(image));
        let (gone, bytes) = prune(paths, &store, self.all, wanted)?;
        print(&report(&gone, bytes))?;
        Ok(0)
    }
}

enum Filter {
    Until(Timestamp),
    Label(String, bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Self> {
        if let Some(label) = text.strip_prefix("label!=") {
            return Ok(Self::Label(label.to_owned(), false));
        }
        Ok(match output::filter(text, &["until", "label"])? {
            ("label", label) => Self::Label(label.to_owned(), true),
            (_, until) => Self::Until(moment(until)?),
        })
    }

    fn wants(&self, image: &Image) -> bool {
        match self {
            Self::Until(time) => created(image).is_none_or(|created| created < *time),
            Self::Label(label, wanted) => {
                let labels = image.config.labels_of_config().into_iter().flatten();
                output::has_label(labels, label) == *wanted
            }
        }
    }
}

/// A moment, or how long ago it was.
fn moment(text: &str) -> Result<Timestamp> {
    if let Ok(ago) = text.parse::<Span>() {
        return Timestamp::now().checked_sub(ago).with_context(|| format!("until={text}"));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local: jiff::civil::DateTime = match text.parse() {
        Ok(time) => time,
        Err(_) => {
            let date: jiff::civil::Date = text.parse().with_context(|| format!("until={text}"))?;
            date.at(0, 0, 0, 0)
        }
    };
    let zoned = local.to_zoned(jiff::tz::TimeZone::system());
    Ok(zoned.with_context(|| format!("until={text}"))?.timestamp())
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
