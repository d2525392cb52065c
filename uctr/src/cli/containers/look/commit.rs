//! `uctr commit`

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use crate::container::record::{Config, Status};
use crate::container::{self, Container};
use crate::image::change;
use crate::image::commit::Change;
use crate::image::diff::write_layer;
use crate::image::layers::Layers;
use crate::image::reference::Reference;
use crate::image::store::{Image, Store};
use crate::output;
use crate::paths::Paths;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Who made it
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// An instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL,
    /// USER, VOLUME or WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What is new
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Whether the container is paused meanwhile
    #[arg(short, long, value_name = "true|false", default_value_t = true,
        action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true",
        require_equals = true)]
    pause: bool,
    /// The container's name or ID
    container: String,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let name: Option<Reference> =
        args.name.as_deref().map(str::parse).transpose().context("invalid reference format")?;
    let container = container::find(paths, &args.container)?;
    let mut config = image_config(&container.record.config)?;
    for instruction in &args.change {
        change::apply(&mut config, instruction)?;
    }
    let change = Change {
        config,
        created_by: container.record.args.join(" "),
        comment: args.message.clone(),
        author: args.author.clone(),
    };
    let store = Store::open(paths)?;
    // Until it has a name.
    let _hold = store.hold()?;
    let parent = parent(&store, &container)?;
    let image =
        frozen(&container, args.pause, || make(paths, &store, &parent, &container, &change))?;
    match &name {
        Some(name) => store.tag(name, &image.manifest)?,
        None => store.keep(&image.manifest)?,
    }
    output::print(&format!("{}\n", image.id))?;
    Ok(0)
}

/// The image that the container is made of, which may have lost its name.
fn parent(store: &Store, container: &Container) -> Result<Image> {
    let id = container.record.image_id.to_string();
    store.find(&id)?.with_context(|| {
        format!(
            "the image {id} of the container isn't here any more: pull {} again",
            container.record.image
        )
    })
}

fn make(
    paths: &Paths,
    store: &Store,
    parent: &Image,
    container: &Container,
    change: &Change,
) -> Result<Image> {
    let upper = container.folder().join("upper");
    // One that was never started.
    std::fs::create_dir_all(&upper).with_context(|| format!("make {}", upper.display()))?;
    let layers = Layers::open(paths)?;
    let (mut reader, writer) = std::io::pipe().context("make a pipe")?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || write_layer(&upper, writer));
        let image = store.add_layer(&layers, Some(parent), &mut reader, change);
        drop(reader);
        match packing.join() {
            Ok(Ok(())) => image,
            // What was written until then is no whole layer.
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("the reading thread panicked"),
        }
    })
}

/// Does something while a container that runs is paused, so that its files are of one moment.
fn frozen<T>(container: &Container, pause: bool, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if !pause || container.state().status != Status::Running {
        return work();
    }
    let runtime = super::running(container)?;
    runtime.pause()?;
    let result = work();
    runtime.resume().context("let the container go on")?;
    result
}

/// What of a container's configuration belongs to an image.
fn image_config(config: &Config) -> Result<Map<String, Value>> {
    let all = json!(config);
    let kept = [
        "User",
        "ExposedPorts",
        "Env",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "Entrypoint",
        "Labels",
        "StopSignal",
    ];
    let mut fields = all.as_object().cloned().context("an object")?;
    fields.retain(|name, value| kept.contains(&name.as_str()) && !value.is_null());
    Ok(fields)
}
