//! `save`: an image layout with a `manifest.json` beside, so that it is a docker-archive too. The
//! layers are in it as they are in the store, so that digests stay what they are.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use anyhow::{Context, Result};
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, Digest, ImageIndexBuilder, MediaType};
use tar::{Builder, EntryType, Header};

use super::{ANNOTATION_CONTAINERD, DockerImage};
use crate::image::reference::Reference;
use crate::image::store::{Image, Store};

/// Writes images, each with those of its names that are wanted.
///
/// # Errors
/// When a blob is missing, or it can't be written.
pub fn save(store: &Store, images: &[(Image, Vec<Reference>)], to: impl Write) -> Result<()> {
    let _hold = store.hold()?;
    let mut archive = Builder::new(to);
    for folder in ["blobs/", "blobs/sha256/"] {
        let mut header = header(EntryType::Directory, 0o755, 0);
        archive.append_data(&mut header, folder, std::io::empty()).context("write")?;
    }
    let mut written: HashSet<Digest> = HashSet::new();
    let (mut entries, mut docker) = (Vec::new(), Vec::new());
    for (image, names) in images {
        let layers = image.layers.iter().map(|layer| layer.blob.digest());
        for digest in [&image.id, image.manifest.digest()].into_iter().chain(layers) {
            if written.insert(digest.clone()) {
                let blob = store.blob(digest)?;
                let size = blob.metadata().with_context(|| format!("look at {digest}"))?.len();
                let mut header = header(EntryType::Regular, 0o644, size);
                archive
                    .append_data(&mut header, in_layout(digest), blob)
                    .with_context(|| format!("write {digest}"))?;
            }
        }
        entries.extend(index_entries(image, names));
        docker.push(DockerImage {
            config: in_layout(&image.id),
            repo_tags: Some(names.iter().map(Reference::familiar).collect()),
            layers: image.layers.iter().map(|layer| in_layout(layer.blob.digest())).collect(),
        });
    }
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(entries)
        .build()?;
    let documents = [
        ("index.json", serde_json::to_vec(&index)?),
        ("manifest.json", serde_json::to_vec(&docker)?),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ];
    for (name, text) in documents {
        let mut header = header(EntryType::Regular, 0o644, text.len() as u64);
        archive.append_data(&mut header, name, text.as_slice()).context("write")?;
    }
    archive.into_inner().context("write")?.flush().context("write")
}

/// One for each name, or one without.
fn index_entries(image: &Image, names: &[Reference]) -> Vec<Descriptor> {
    if names.is_empty() {
        return vec![image.manifest.clone()];
    }
    let entry = |name: &Reference| {
        let mut entry = image.manifest.clone();
        // Readers of layouts look for the familiar name; docker's and containerd's for the full one.
        entry.set_annotations(Some(HashMap::from([
            (ANNOTATION_REF_NAME.to_owned(), name.familiar()),
            (ANNOTATION_CONTAINERD.to_owned(), name.to_string()),
        ])));
        entry
    };
    names.iter().map(entry).collect()
}

/// Without times and owners: the same images always give the same archive.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn in_layout(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}
