//! The images on this machine: an OCI image layout, content-addressed, which other tools can read.

use std::fs::File;
use std::io::Write;

use anyhow::Result;
use oci_spec::image::{Descriptor, Digest, ImageConfiguration};

use super::reference::Reference;
use crate::paths::Paths;

/// The image layout of one `--root`.
#[derive(Debug)]
pub struct Store {}

/// One image, with what was read of its manifest and configuration.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its manifest.
    pub manifest: Descriptor,
    /// The digest of its configuration: what users know as the image's ID.
    pub id: Digest,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// All names that it has here.
    pub names: Vec<Reference>,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// As it is in the registry, mostly compressed.
    pub blob: Descriptor,
    /// The digest of its uncompressed tar archive.
    pub diff_id: Digest,
}

/// While it is held nothing is removed from the store: what is pulled has no name yet.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code)] File);

/// A blob that is being written. What a cut connection left is gone on with.
#[derive(Debug)]
pub struct Partial {}

impl Partial {
    /// How many bytes are there already.
    #[must_use]
    pub fn offset(&self) -> u64 {
        todo!()
    }

    /// Forgets what is there.
    ///
    /// # Errors
    /// As of ftruncate(2).
    pub fn restart(&mut self) -> Result<()> {
        todo!()
    }

    /// Makes it a blob of the store, if size and digest are those of its descriptor.
    ///
    /// # Errors
    /// If they are not; what is there is then removed.
    pub fn commit(self) -> Result<()> {
        todo!()
    }
}

impl Write for Partial {
    fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
        todo!()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        todo!()
    }
}

impl Store {
    /// Opens it, and makes it if it isn't there.
    ///
    /// # Errors
    /// When its folders can't be made or are no image layout of version 1.
    pub fn open(_paths: &Paths) -> Result<Self> {
        todo!()
    }

    /// Keeps everything from being removed.
    ///
    /// # Errors
    /// As of flock(2).
    pub fn hold(&self) -> Result<Hold> {
        todo!()
    }

    /// Whether the blob is there, whole.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn has(&self, _blob: &Descriptor) -> Result<bool> {
        todo!()
    }

    /// Opens a blob that is there.
    ///
    /// # Errors
    /// When it is not.
    pub fn blob(&self, _digest: &Digest) -> Result<File> {
        todo!()
    }

    /// Begins to write a blob, or goes on; one caller at a time, others wait.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn partial(&self, _blob: &Descriptor) -> Result<Partial> {
        todo!()
    }

    /// Stores a small blob: a manifest, an index or a configuration.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn put(&self, _media_type: &str, _bytes: &[u8]) -> Result<Descriptor> {
        todo!()
    }

    /// Reads what a manifest, and what its configuration say.
    ///
    /// # Errors
    /// When a blob is missing or is not what its media type says.
    pub fn image(&self, _manifest: &Descriptor) -> Result<Image> {
        todo!()
    }

    /// All images.
    ///
    /// # Errors
    /// When index.json can't be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        todo!()
    }

    /// The image of a name, an ID, or the beginning of an ID.
    ///
    /// # Errors
    /// When index.json can't be read, or when several IDs begin so.
    pub fn find(&self, _name: &str) -> Result<Option<Image>> {
        todo!()
    }

    /// Names an image; whichever had that name before loses it.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn tag(&self, _name: &Reference, _manifest: &Descriptor) -> Result<()> {
        todo!()
    }
}
