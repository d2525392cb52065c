//! Taking names and images away, and what nothing needs any longer.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use oci_spec::image::Digest;

use super::{Image, Store, key, name_of};
use crate::container;
use crate::image::layers::Layers;
use crate::image::lock;
use crate::image::reference::Reference;

/// What an interrupted pull or load left is kept so long, to be gone on with.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// IDs of images and digests of layers.
    pub deleted: Vec<Digest>,
    /// How many bytes that gave back.
    pub bytes: u64,
}

impl Store {
    /// Takes names away. An image that then has none stays as `<none>`.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn untag(&self, names: &[Reference]) -> Result<()> {
        let keys: Vec<String> = names.iter().map(key).collect();
        self.change(|entries| {
            for entry in entries {
                if name_of(entry).is_some_and(|name| keys.iter().any(|key| key == name)) {
                    entry.set_annotations(None);
                }
            }
        })
    }

    /// Removes images with all their names, then what no other image and no container needs.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn remove(&self, images: &[Image]) -> Result<Removed> {
        let gone: HashSet<&Digest> = images.iter().map(|image| image.manifest.digest()).collect();
        self.change(|entries| entries.retain(|entry| !gone.contains(entry.digest())))?;
        // From here on it is garbage, whatever happens to us.
        for image in images {
            for digest in blobs_of(image) {
                forget(&self.blob_path(digest))?;
            }
        }
        let mut removed = self.collect()?;
        let left: HashSet<Digest> = self.images()?.into_iter().map(|image| image.id).collect();
        let mut ids: Vec<Digest> = Vec::new();
        for image in images {
            if !left.contains(&image.id) && !ids.contains(&image.id) {
                ids.push(image.id.clone());
            }
        }
        removed.deleted.splice(0..0, ids);
        Ok(removed)
    }

    /// Takes a name away whose image can't be read any more, with what is damaged of it. Says
    /// whether there was one.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub fn remove_damaged(&self, name: &Reference) -> Result<bool> {
        let key = key(name);
        let index = self.index()?;
        let Some(entry) = index.manifests().iter().find(|entry| name_of(entry) == Some(&key))
        else {
            return Ok(false);
        };
        if self.image(entry).is_ok() {
            return Ok(false);
        }
        let digest = entry.digest().clone();
        self.change(|entries| entries.retain(|entry| *entry.digest() != digest))?;
        if let Ok(manifest) = self.manifest(entry) {
            for part in manifest.layers().iter().chain([manifest.config()]) {
                forget(&self.blob_path(part.digest()))?;
            }
        }
        forget(&self.blob_path(&digest))?;
        self.collect()?;
        Ok(true)
    }

    /// Cleans up after whoever was killed while bringing an image here. That it can't be done is no
    /// reason not to bring another one.
    pub fn tidy(&self) {
        if let Err(error) = self.collect() {
            eprintln!("uctr: clean up the store: {error:#}");
        }
    }

    /// Removes what no image and no container needs, but not what an interrupted pull may still
    /// need. While something is pulled or loaded nothing is removed; the next call does it.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub fn collect(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        let Some(_alone) = lock::try_exclusive(&self.folder.join("hold"))? else {
            return Ok(removed);
        };
        let mut blobs: HashSet<Digest> = HashSet::new();
        let mut diff_ids: HashSet<Digest> = HashSet::new();
        for entry in self.index()?.manifests() {
            // Of an image that can't be read nobody knows what it needs: then nothing may go.
            let image = self.image(entry).with_context(|| {
                format!("nothing is removed: image {}", name_of(entry).unwrap_or("<none>"))
            })?;
            blobs.extend(blobs_of(&image).cloned());
            diff_ids.extend(image.layers.iter().map(|layer| layer.diff_id.clone()));
        }
        for container in container::list(&self.paths)? {
            diff_ids.extend(container.record.layers);
        }
        for algorithm in entries(&self.folder.join("blobs"))? {
            for path in entries(&algorithm)? {
                let is_needed = blobs.iter().any(|digest| path.ends_with(digest.digest()));
                if !is_needed && is_old(&path)? {
                    removed.bytes += remove_file(&path)?;
                }
            }
        }
        for path in entries(&self.ingest())? {
            // Only a download can be gone on with; nobody loads or commits now.
            let is_partial = path.file_name().is_some_and(|name| {
                name.as_encoded_bytes().starts_with(b"sha256-")
                    || name.as_encoded_bytes().starts_with(b"sha512-")
            });
            if !is_partial || is_old(&path)? {
                removed.bytes += remove_any(&path)?;
            }
        }
        let unpacked = Layers::open(&self.paths)?.retain(&diff_ids)?;
        removed.deleted.extend(unpacked.deleted);
        removed.bytes += unpacked.bytes;
        Ok(removed)
    }
}

fn blobs_of(image: &Image) -> impl Iterator<Item = &Digest> {
    let layers = image.layers.iter().map(|layer| layer.blob.digest());
    [image.manifest.digest(), &image.id].into_iter().chain(layers)
}

/// Lets a blob look so old that nobody waits for it.
fn forget(path: &Path) -> Result<()> {
    match fs::File::open(path) {
        Ok(file) => file
            .set_modified(SystemTime::UNIX_EPOCH)
            .with_context(|| format!("mark {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("open {}", path.display())),
    }
}

fn is_old(path: &Path) -> Result<bool> {
    let written = fs::symlink_metadata(path)
        .and_then(|found| found.modified())
        .with_context(|| format!("look at {}", path.display()))?;
    Ok(SystemTime::now().duration_since(written).is_ok_and(|age| age > KEPT))
}

/// The paths in a folder; none if it isn't there.
pub(crate) fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut paths = found
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("read {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

fn remove_file(path: &Path) -> Result<u64> {
    let size = fs::symlink_metadata(path).map_or(0, |found| found.len());
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    Ok(size)
}

fn remove_any(path: &Path) -> Result<u64> {
    if path.is_dir() {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
        return Ok(0);
    }
    remove_file(path)
}
