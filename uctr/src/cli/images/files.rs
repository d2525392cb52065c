//! `save`, `load`, `import`, `unpack`.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::{find, open};
use crate::image::archive::{load, save};
use crate::image::bundle;
use crate::image::change;
use crate::image::commit::Change;
use crate::image::reference::Reference;
use crate::image::store::{Image, Store};
use crate::image::unpack::stream::decompressed;
use crate::output::print;
use crate::paths::Paths;

#[derive(Debug, Args)]
pub struct Save {
    /// Names (all tags, if none is given), or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// To this file, not to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Save {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, _) = open(paths)?;
        let mut images: Vec<(Image, Vec<Reference>)> = Vec::new();
        for name in &self.images {
            for (image, names) in wanted(&store, name)? {
                let digest = image.manifest.digest();
                let known = images.iter_mut().find(|(known, _)| known.manifest.digest() == digest);
                let Some((_, known)) = known else {
                    images.push((image, names));
                    continue;
                };
                for name in names {
                    if !known.contains(&name) {
                        known.push(name);
                    }
                }
            }
        }
        let Some(path) = &self.output else {
            let stdout = io::stdout();
            ensure!(
                !stdout.is_terminal(),
                "cowardly refusing to save to a terminal. Use the -o flag or redirect"
            );
            save(&store, &images, BufWriter::with_capacity(1 << 18, stdout.lock()))?;
            return Ok(0);
        };
        let context = || format!("write {}", path.display());
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            .prefix(".uctr-save-")
            .tempfile_in(parent.unwrap_or(Path::new(".")))
            .with_context(context)?;
        save(&store, &images, BufWriter::with_capacity(1 << 18, file.as_file()))
            .with_context(context)?;
        file.persist(path).with_context(context)?;
        Ok(0)
    }
}

/// A repository means all its tags; an ID brings no name along.
fn wanted(store: &Store, name: &str) -> Result<Vec<(Image, Vec<Reference>)>> {
    if Reference::is_bare(name)
        && let Ok(wanted) = name.parse::<Reference>()
    {
        let mut found = Vec::new();
        for image in store.images()? {
            let is_of = |name: &&Reference| {
                name.registry == wanted.registry
                    && name.repository == wanted.repository
                    && name.tag.is_some()
            };
            let names: Vec<Reference> = image.names.iter().filter(is_of).cloned().collect();
            if !names.is_empty() {
                found.push((image, names));
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let found = store.find_named(name)?;
    let (image, by_name) = found.ok_or_else(|| crate::image::remove::NotFound(name.to_owned()))?;
    Ok(vec![(image, by_name.into_iter().filter(|name| name.tag.is_some()).collect())])
}

#[derive(Debug, Args)]
pub struct Load {
    /// From this file, not from stdin
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Only the names of the images
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, layers) = open(paths)?;
        let input: Box<dyn Read> = match &self.input {
            Some(path) => {
                Box::new(File::open(path).with_context(|| format!("open {}", path.display()))?)
            }
            None => {
                ensure!(
                    !io::stdin().is_terminal(),
                    "requested load from stdin, but stdin is empty"
                );
                Box::new(io::stdin().lock())
            }
        };
        for loaded in load(&store, &layers, input)? {
            for name in &loaded.names {
                print(&format!("Loaded image: {}\n", name.familiar()))?;
            }
            if loaded.names.is_empty() {
                print(&format!("Loaded image ID: {}\n", loaded.image.id))?;
            }
        }
        Ok(0)
    }
}

#[derive(Debug, Args)]
pub struct Import {
    /// A tar archive, also compressed; - is stdin
    file: String,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// An instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME, WORKDIR …
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// For its history
    #[arg(short, long, default_value = "")]
    message: String,
}

impl Import {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let name: Option<Reference> = self.name.as_deref().map(str::parse).transpose()?;
        ensure!(
            name.as_ref().is_none_or(|name| name.digest.is_none()),
            "cannot import digest reference"
        );
        let mut config = serde_json::Map::new();
        for instruction in &self.change {
            change::apply(&mut config, instruction)?;
        }
        if self.file.starts_with("http://") || self.file.starts_with("https://") {
            bail!("{}: only files and - are imported: fetch it first", self.file);
        }
        let (store, layers) = open(paths)?;
        let input: Box<dyn Read> = match self.file.as_str() {
            "-" => Box::new(io::stdin().lock()),
            path => Box::new(File::open(path).with_context(|| format!("open {path}"))?),
        };
        let comment = match self.message.as_str() {
            "" => format!("Imported from {}", self.file),
            message => message.to_owned(),
        };
        let change = Change { config, comment, ..Change::default() };
        store.tidy();
        let _hold = store.hold()?;
        let image = store.add_layer(&layers, None, &mut decompressed(input)?, &change)?;
        match &name {
            Some(name) => store.tag(name, &image.manifest)?,
            None => store.keep(&image.manifest)?,
        }
        print(&format!("{}\n", image.id))?;
        Ok(0)
    }
}

#[derive(Debug, Args)]
pub struct Unpack {
    /// The image
    image: String,
    /// The bundle's folder, which is made
    dir: PathBuf,
    /// With a terminal
    #[arg(short, long)]
    tty: bool,
}

impl Unpack {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, _) = open(paths)?;
        let image = find(&store, &self.image)?;
        bundle::unpack(&store, &image, &self.dir, self.tty)?;
        io::stdout().flush()?;
        Ok(0)
    }
}
