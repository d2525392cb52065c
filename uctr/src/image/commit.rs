//! New images: one more layer on another, or the first.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use oci_spec::image::{Arch, Descriptor, ImageManifestBuilder, MediaType};
use serde_json::{Map, Value, json};

use super::digest::Counted;
use super::layers::Layers;
use super::store::{Image, Store};

/// What is new in an image besides its layer.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The whole `config` object of the new configuration.
    pub config: Map<String, Value>,
    /// What made the layer, for `history`.
    pub created_by: String,
    /// `-m`
    pub comment: String,
    /// `-a`
    pub author: String,
}

impl Store {
    /// Makes an image of another one, or of nothing, and a layer: `archive` is its tar archive,
    /// uncompressed. It has no name yet: hold the store until it has ([`Store::tag`] or
    /// [`Store::keep`]).
    ///
    /// # Errors
    /// When the archive is none, or the store can't be written.
    pub fn add_layer(
        &self,
        layers: &Layers,
        parent: Option<&Image>,
        archive: &mut dyn Read,
        change: &Change,
    ) -> Result<Image> {
        let _hold = self.hold()?;
        let (blob, diff_id) = self.compress(archive)?;
        let mut config = match parent {
            Some(parent) => self.config_json(parent)?,
            None => json!({
                "architecture": Arch::default(), "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": []}
            }),
        };
        let created = Timestamp::now().to_string();
        let mut history = json!({"created": created, "created_by": change.created_by});
        for (key, text) in [("comment", &change.comment), ("author", &change.author)] {
            if !text.is_empty() {
                history[key] = json!(text);
            }
        }
        config["created"] = json!(created);
        config["author"] = json!(change.author);
        config["config"] = Value::Object(change.config.clone());
        push(&mut config["rootfs"]["diff_ids"], json!(diff_id));
        push(&mut config["history"], history);
        // Docker's own, of the container that the parent was made of.
        for stale in ["container", "container_config", "id", "parent"] {
            config.as_object_mut().and_then(|config| config.remove(stale));
        }
        let text = serde_json::to_vec(&config)?;
        let config = self.put(MediaType::ImageConfig.as_ref(), &text)?;
        let mut blobs: Vec<Descriptor> =
            parent.into_iter().flat_map(|parent| &parent.layers).map(|l| l.blob.clone()).collect();
        blobs.push(blob);
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(blobs)
            .build()?;
        let text = serde_json::to_vec(&manifest)?;
        let manifest = self.put(MediaType::ImageManifest.as_ref(), &text)?;
        let image = self.image(&manifest)?;
        layers.ensure(self, &image)?;
        Ok(image)
    }

    /// Stores a layer; also says the digest of what it was before.
    fn compress(&self, archive: &mut dyn Read) -> Result<(Descriptor, oci_spec::image::Digest)> {
        let file = tempfile::Builder::new()
            .prefix("layer-")
            .tempfile_in(self.ingest())
            .context("make a file in the store")?;
        let compressed: Counted<&File> = Counted::new(file.as_file());
        let mut gzip = GzEncoder::new(compressed, Compression::new(4));
        let mut plain = Counted::new(archive);
        io::copy(&mut plain, &mut gzip).context("compress the layer")?;
        let (_, digest, size) = gzip.finish().context("compress the layer")?.finish();
        let (_, diff_id, _) = plain.finish();
        let blob = Descriptor::new(MediaType::ImageLayerGzip, size, digest);
        if !self.has(&blob)? {
            let (_, path) = file.keep().context("keep the layer")?;
            self.adopt(&path, blob.digest())?;
        }
        Ok((blob, diff_id))
    }
}

fn push(list: &mut Value, value: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(value);
    } else {
        *list = json!([value]);
    }
}
