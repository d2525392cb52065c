//! The client of registries (distribution-spec).

use anyhow::Result;
use clap::ValueEnum;

use super::reference::Reference;
use super::store::{Image, Store};
use crate::paths::Paths;

/// Which platform's image is wanted of an index: `os/architecture[/variant]`, this machine's if
/// none.
#[derive(Clone, Debug, Default)]
pub struct Platform(pub Option<String>);

/// `--pull`: when an image is asked of its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Also when it is here.
    Always,
    /// Only when it is not here.
    #[default]
    Missing,
    /// Not even then.
    Never,
}

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

/// For `run` and `create`: the image of `name` (also an ID, or the beginning of one), which is
/// pulled first if the policy says so.
///
/// # Errors
/// When there is no such image, here or at its registry.
pub fn ensure(
    _paths: &Paths,
    _store: &Store,
    _name: &str,
    _platform: &Platform,
    _policy: PullPolicy,
) -> Result<Image> {
    todo!()
}
