//! `uctr inspect`

mod container;

use anyhow::{Result, bail, ensure};
use clap::Args as ClapArgs;
use serde_json::Value;

use crate::cli::networks::network_json;
use crate::cli::volumes::volume_json;
use crate::container::{NotFound, find};
use crate::image::layers::Layers;
use crate::image::store::Store;
use crate::image::usage::image_json;
use crate::network;
use crate::output;
use crate::paths::Paths;
pub use container::container_json;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// json, or a Go template for each object
    #[arg(short, long)]
    format: Option<String>,
    /// Also how much room containers take
    #[arg(short, long)]
    size: bool,
    /// Names or IDs
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct AnyArgs {
    /// Only objects of one kind: container, image, network or volume
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<String>,
    #[command(flatten)]
    args: Args,
}

/// In the order in which they are looked for.
const KINDS: [&str; 4] = ["container", "image", "network", "volume"];

/// `uctr container inspect`
pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    show(args, "container", |name| one(paths, "container", name, args.size))
}

/// `uctr inspect`
pub fn run_any(paths: &Paths, any: &AnyArgs) -> Result<u8> {
    let args = &any.args;
    if let Some(kind) = any.kind.as_deref().filter(|kind| !kind.is_empty()) {
        ensure!(KINDS.contains(&kind), "{kind:?} is not a valid value for --type");
        ensure!(!args.size || kind == "container", "size is not supported for the type {kind:?}");
        return show(args, kind, |name| one(paths, kind, name, args.size));
    }
    show(args, "object", |name| {
        for kind in KINDS {
            if let Some(found) = one(paths, kind, name, args.size)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    })
}

/// Prints what is found, then says what isn't.
fn show(args: &Args, kind: &str, look: impl Fn(&str) -> Result<Option<Value>>) -> Result<u8> {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for name in &args.names {
        match look(name) {
            Ok(Some(value)) => found.push(value),
            Ok(None) => missing.push(format!("Error: No such {kind}: {name}")),
            Err(error) => missing.push(format!("Error: {name}: {error:#}")),
        }
    }
    output::print(&output::objects(args.format.as_deref(), &found)?)?;
    for line in &missing {
        eprintln!("{line}");
    }
    Ok(u8::from(!missing.is_empty()))
}

fn one(paths: &Paths, kind: &str, name: &str, size: bool) -> Result<Option<Value>> {
    match kind {
        "container" => match find(paths, name) {
            Ok(container) => container_json(&container, size).map(Some),
            Err(error) if error.is::<NotFound>() => Ok(None),
            Err(error) => Err(error),
        },
        "image" => {
            // What can't be the name of an image may still be that of something else.
            if name.parse::<crate::image::reference::Reference>().is_err() && !is_id(name) {
                return Ok(None);
            }
            let (store, layers) = (Store::open(paths)?, Layers::open(paths)?);
            let image = store.find(name)?;
            image.map(|image| image_json(&store, &layers, &image)).transpose()
        }
        "network" => match network::find(paths, name) {
            Ok(network) => network_json(paths, &network).map(Some),
            Err(_) => Ok(None),
        },
        "volume" => {
            let volume = crate::volume::find(paths, name)?;
            Ok(volume.map(|volume| volume_json(paths, &volume)))
        }
        _ => bail!("{kind:?} is not a valid value for --type"),
    }
}

fn is_id(name: &str) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    hex.len() <= 64 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}
