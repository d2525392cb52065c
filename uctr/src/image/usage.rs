//! How much room images take, and what `inspect` says of one.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use jiff::Timestamp;
use oci_spec::image::Digest;
use serde_json::{Value, json};

use super::layers::Layers;
use super::reference::Reference;
use super::store::{Image, Layer, Store};
use crate::container;
use crate::output;
use crate::paths::Paths;

/// The numbers of `system df` for images. A layer counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many images there are.
    pub total: usize,
    /// Of how many of them there are containers.
    pub active: usize,
    /// Bytes of all layers.
    pub size: u64,
    /// Bytes of the layers that only images without containers need.
    pub reclaimable: u64,
}

/// The bytes of a layer's files; as long as it is not unpacked, those of its archive.
///
/// # Errors
/// When what is known of it can't be read.
pub fn layer_size(layers: &Layers, layer: &Layer) -> Result<u64> {
    Ok(layers.known(&layer.diff_id)?.map_or(layer.blob.size(), |known| known.size))
}

/// The bytes of all of an image's layers, shared or not: docker's column SIZE.
///
/// # Errors
/// As [`layer_size`].
pub fn image_size(layers: &Layers, image: &Image) -> Result<u64> {
    image.layers.iter().map(|layer| layer_size(layers, layer)).sum()
}

/// What all images take.
///
/// # Errors
/// When the store can't be read.
pub fn usage(paths: &Paths, store: &Store, layers: &Layers) -> Result<Usage> {
    let used: HashSet<Digest> =
        container::list(paths)?.into_iter().map(|container| container.record.image_id).collect();
    let mut ids: HashSet<Digest> = HashSet::new();
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    let mut needed: HashSet<Digest> = HashSet::new();
    for image in store.images()? {
        for layer in &image.layers {
            sizes.insert(layer.diff_id.clone(), layer_size(layers, layer)?);
            if used.contains(&image.id) {
                needed.insert(layer.diff_id.clone());
            }
        }
        ids.insert(image.id);
    }
    let reclaimable =
        sizes.iter().filter(|(id, _)| !needed.contains(id)).map(|(_, size)| size).sum();
    Ok(Usage {
        total: ids.len(),
        active: ids.intersection(&used).count(),
        size: sizes.values().sum(),
        reclaimable,
    })
}

/// When the image was made, if it says so.
#[must_use]
pub fn created(image: &Image) -> Option<Timestamp> {
    image.config.created().as_ref()?.parse().ok()
}

/// What made each layer, the lowest first; empty where nothing is known.
#[must_use]
pub fn commands(image: &Image) -> Vec<String> {
    let history = image.config.history().iter().flatten();
    let mut commands: Vec<String> = history
        .filter(|step| !step.empty_layer().unwrap_or(false))
        .map(|step| step.created_by().clone().unwrap_or_default())
        .collect();
    commands.resize(image.layers.len(), String::new());
    commands
}

/// An image as `docker image inspect` shows it.
///
/// # Errors
/// When its configuration can't be read.
pub fn image_json(store: &Store, layers: &Layers, image: &Image) -> Result<Value> {
    let raw = store.config_json(image)?;
    let familiar = |names: &[Reference]| -> Vec<String> {
        names
            .iter()
            .filter(|name| name.tag.is_some() || name.digest.is_some())
            .map(Reference::familiar)
            .collect()
    };
    let tags: Vec<Reference> = image.names.iter().filter(|n| n.tag.is_some()).cloned().collect();
    let folders: Vec<String> = image
        .layers
        .iter()
        .rev()
        .filter_map(|layer| layers.path(&layer.diff_id).ok())
        .map(|path| path.display().to_string())
        .collect();
    let (upper, lower) = match folders.split_first() {
        Some((upper, lower)) => (upper.clone(), lower.join(":")),
        None => (String::new(), String::new()),
    };
    let last = image.config.history().iter().flatten().next_back();
    let comment = last.and_then(|step| step.comment().clone()).unwrap_or_default();
    let mut data = json!({ "UpperDir": upper });
    if !lower.is_empty() {
        data["LowerDir"] = json!(lower);
    }
    let mut value = json!({
        "Id": image.id,
        "RepoTags": familiar(&tags),
        "RepoDigests": familiar(&image.digests),
        "Parent": "",
        "Comment": comment,
        "Created": output::time(created(image)),
        "DockerVersion": raw["docker_version"].as_str().unwrap_or_default(),
        "Author": raw["author"].as_str().unwrap_or_default(),
        "Config": raw.get("config").cloned().unwrap_or_else(|| json!({})),
        "Architecture": raw["architecture"],
        "Os": raw["os"],
        "Size": image_size(layers, image)?,
        "GraphDriver": { "Data": data, "Name": "overlay2" },
        "RootFS": { "Type": "layers", "Layers": image.diff_ids() },
        "Descriptor": image.manifest,
    });
    if let Some(variant) = raw.get("variant") {
        value["Variant"] = variant.clone();
    }
    Ok(value)
}
