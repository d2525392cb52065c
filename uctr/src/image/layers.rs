//! Unpacked layers, shared by all images and containers: a folder a diffID.
//!
//! ```text
//! layers/<hex>/fs            as overlayfs wants a lower layer
//!       /<hex>/layer.json    its size
//!       /<hex>.new, .lock    while it is unpacked
//! ```

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::image::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use super::lock;
use super::overlay;
use super::store::{Image, Removed, Store, entries};
use super::unpack;
use crate::paths::Paths;

/// Of a container whose image has no layer.
const EMPTY: &str = "empty";

/// The unpacked layers of one `--root`.
#[derive(Clone, Debug)]
pub struct Layers {
    folder: PathBuf,
}

/// What is known of an unpacked layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The bytes of all its files.
    pub size: u64,
    /// How many files, folders and links it has.
    pub entries: u64,
}

impl Layers {
    /// Opens the folder, and makes it if it isn't there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(paths: &Paths) -> Result<Self> {
        let layers = Self { folder: paths.layers() };
        lock::private_folder(&layers.folder)?;
        Ok(layers)
    }

    fn place(&self, diff_id: &Digest) -> Result<PathBuf> {
        // Nothing but hex digits may become a path; other algorithms promise nothing.
        let hex = diff_id.digest();
        ensure!(
            hex.len() >= 64 && hex.bytes().all(|c| c.is_ascii_hexdigit()),
            "{diff_id}: only digests by sha256 and sha512 are known"
        );
        Ok(self.folder.join(hex))
    }

    /// Whether the layer is unpacked.
    ///
    /// # Errors
    /// When the digest is of an unknown kind.
    pub fn has(&self, diff_id: &Digest) -> Result<bool> {
        Ok(self.place(diff_id)?.is_dir())
    }

    /// The folder of an unpacked layer.
    ///
    /// # Errors
    /// When it is not unpacked.
    pub fn path(&self, diff_id: &Digest) -> Result<PathBuf> {
        let fs = self.place(diff_id)?.join("fs");
        ensure!(fs.is_dir(), "layer {diff_id} is not unpacked: pull its image again");
        Ok(fs)
    }

    /// What is known of an unpacked layer, nothing if it isn't unpacked.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn known(&self, diff_id: &Digest) -> Result<Option<Known>> {
        let path = self.place(diff_id)?.join("layer.json");
        match fs::read(&path) {
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text)
                    .with_context(|| format!("read {}", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Unpacks a layer unless that was done: `archive` gives its blob as it was downloaded. Whoever
    /// comes while another process does it waits.
    ///
    /// # Errors
    /// When the archive is damaged, hostile, or not that of the diffID: nothing is left of it then.
    pub fn unpack(
        &self,
        blob: &Descriptor,
        diff_id: &Digest,
        archive: &mut dyn Read,
    ) -> Result<PathBuf> {
        let place = self.place(diff_id)?;
        let fs = place.join("fs");
        if place.is_dir() {
            return Ok(fs);
        }
        let lock_path = place.with_extension("lock");
        let _lock = lock::exclusive(&lock_path)?;
        if !place.is_dir() {
            let new = place.with_extension("new");
            remove_tree(&new)?;
            let done = self.unpack_into(&new, blob, diff_id, archive).and_then(|()| {
                fs::rename(&new, &place).with_context(|| format!("rename {}", new.display()))
            });
            if done.is_err() {
                let _ = remove_tree(&new);
                let _ = fs::remove_file(&lock_path);
            }
            done.with_context(|| format!("unpack layer {diff_id}"))?;
        }
        fs::remove_file(&lock_path).with_context(|| format!("remove {}", lock_path.display()))?;
        Ok(fs)
    }

    fn unpack_into(
        &self,
        new: &Path,
        blob: &Descriptor,
        diff_id: &Digest,
        archive: &mut dyn Read,
    ) -> Result<()> {
        let fs = new.join("fs");
        lock::private_folder(new)?;
        // Unless the layer says something else; what is above it is private.
        fs::create_dir(&fs)
            .and_then(|()| fs::set_permissions(&fs, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("make folder {}", fs.display()))?;
        let known = unpack::layer(&fs, unpack::Kind::Overlay, blob, diff_id, archive)?;
        let file = new.join("layer.json");
        fs::write(&file, serde_json::to_vec(&known)?)
            .with_context(|| format!("write {}", file.display()))
    }

    /// Unpacks all layers of an image that are not unpacked yet.
    ///
    /// # Errors
    /// As [`Layers::unpack`], and when a blob is missing.
    pub fn ensure(&self, store: &Store, image: &Image) -> Result<()> {
        let _hold = store.hold()?;
        for layer in &image.layers {
            if !self.has(&layer.diff_id)? {
                let mut blob = store.blob(layer.blob.digest())?;
                self.unpack(&layer.blob, &layer.diff_id, &mut blob)?;
            }
        }
        Ok(())
    }

    /// Mounts layers (the lowest first) with a writable one on top at `target`, in the caller's
    /// mount namespace.
    ///
    /// # Errors
    /// Those of overlayfs.
    pub fn mount(
        &self,
        diff_ids: &[Digest],
        upper: &Path,
        work: &Path,
        target: &Path,
    ) -> Result<()> {
        let mut lower = diff_ids.iter().map(|id| self.path(id)).collect::<Result<Vec<_>>>()?;
        lower.reverse();
        if lower.is_empty() {
            // overlayfs wants at least one.
            let empty = self.folder.join(EMPTY);
            lock::private_folder(&empty)?;
            lower.push(empty);
        }
        overlay::mount(&lower, upper, work, target)
    }

    /// Removes all layers but these. Nobody may unpack meanwhile.
    pub(crate) fn retain(&self, needed: &HashSet<Digest>) -> Result<Removed> {
        let mut removed = Removed::default();
        for path in entries(&self.folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if needed.iter().any(|digest| digest.digest() == name) || name == EMPTY {
                continue;
            }
            if path.is_file() {
                // A lock of someone who was killed.
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                continue;
            }
            if let Ok(diff_id) = Digest::try_from(format!("sha256:{name}")) {
                removed.bytes += self.known(&diff_id)?.unwrap_or_default().size;
                removed.deleted.push(diff_id);
                // In one step: what is half removed must not look like a layer.
                let gone = path.with_extension("gone");
                fs::rename(&path, &gone).with_context(|| format!("rename {}", path.display()))?;
                remove_tree(&gone)?;
            } else {
                remove_tree(&path)?;
            }
        }
        Ok(removed)
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
