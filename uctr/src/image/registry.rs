//! The client of registries (distribution-spec).

use anyhow::Result;

use super::reference::Reference;
use super::store::{Image, Store};
use crate::paths::Paths;

/// Which platform's image is wanted of an index: `os/architecture[/variant]`.
#[derive(Clone, Debug, Default)]
pub struct Platform(pub Option<String>);

/// Brings an image here, unpacks its layers and names it; prints what it does to stderr (for
/// `run`) or stdout (for `pull`).
///
/// # Errors
/// Those of the registry, in its words; nothing is named then.
pub fn pull(
    _paths: &Paths,
    _store: &Store,
    _name: &Reference,
    _platform: &Platform,
    _to_stderr: bool,
) -> Result<Image> {
    todo!()
}
