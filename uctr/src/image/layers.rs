//! Unpacked layers, shared by all images and containers: a folder a diffID.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use oci_spec::image::{Descriptor, Digest};

use crate::paths::Paths;

/// The unpacked layers of one `--root`.
#[derive(Debug)]
pub struct Layers {}

impl Layers {
    /// Opens the folder, and makes it if it isn't there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(_paths: &Paths) -> Result<Self> {
        todo!()
    }

    /// Unpacks a layer unless that was done: `archive` gives its blob as it was downloaded. Whoever
    /// comes while another process does it waits.
    ///
    /// # Errors
    /// When the archive is damaged, hostile, or not that of the diffID: nothing is left of it then.
    pub fn unpack(
        &self,
        _blob: &Descriptor,
        _diff_id: &Digest,
        _archive: &mut dyn Read,
    ) -> Result<PathBuf> {
        todo!()
    }

    /// Mounts layers (the lowest first) with a writable one on top at `target`, in the caller's
    /// mount namespace.
    ///
    /// # Errors
    /// Those of overlayfs.
    pub fn mount(
        &self,
        _diff_ids: &[Digest],
        _upper: &Path,
        _work: &Path,
        _target: &Path,
    ) -> Result<()> {
        todo!()
    }
}
