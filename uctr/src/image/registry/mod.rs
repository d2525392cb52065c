//! The client of registries (distribution-spec).
//!
//! [`pull()`] and [`push()`] are what users know; `client` makes the calls of the specification over
//! `http`, which knows who may be talked to how; `auth` answers challenges with what `credentials`
//! finds in docker's config.json; `settings` has CAs and registries without TLS.

mod auth;
mod client;
mod credentials;
mod http;
mod platform;
mod progress;
mod pull;
mod push;
mod settings;

use anyhow::{Result, bail};
use clap::ValueEnum;

pub use client::{Client, Login};
pub use credentials::{ConfigFile, Credentials};
pub use http::clean;
pub use platform::Target;
pub use progress::{Output, Progress};
pub use pull::Pull;
pub use push::push;
pub use settings::Settings;

use self::http::RegistryError;
use super::reference::{DEFAULT_REGISTRY, Reference};
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
    paths: &Paths,
    store: &Store,
    name: &Reference,
    platform: &Platform,
    to_stderr: bool,
) -> Result<Image> {
    let output = if to_stderr { Output::Stderr } else { Output::Stdout };
    Pull::new(paths, store, platform, &[], output)?.image(name)
}

/// For `run` and `create`: the image of `name` (also an ID, or the beginning of one), which is
/// pulled first if the policy says so.
///
/// # Errors
/// When there is no such image, here or at its registry.
pub fn ensure(
    paths: &Paths,
    store: &Store,
    name: &str,
    platform: &Platform,
    policy: PullPolicy,
) -> Result<Image> {
    let target = Target::of(platform)?;
    let here = store.find(name)?.filter(|image| platform.0.is_none() || target.runs(&image.config));
    if let Some(image) = &here
        && (policy != PullPolicy::Always || is_id(name, image))
    {
        return Ok(image.clone());
    }
    let reference: Reference = name.parse()?;
    if policy == PullPolicy::Never {
        bail!("No such image: {}", reference.familiar());
    }
    if here.is_none() {
        eprintln!("Unable to find image '{}' locally", reference.familiar());
    }
    pull(paths, store, &reference, platform, true)
}

/// Whether that is the ID of the image rather than its name: no registry knows it.
fn is_id(name: &str, image: &Image) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    image.id.digest().starts_with(hex)
}

/// docker's words for a repository that we may not `pull` from or `push` to.
fn denied(error: anyhow::Error, name: &Reference, verb: &str) -> anyhow::Error {
    let refused = error.downcast_ref::<RegistryError>();
    if !refused.is_some_and(|refused| matches!(refused.status.as_u16(), 401 | 403)) {
        return error;
    }
    let login = match name.registry.as_str() {
        DEFAULT_REGISTRY => "uctr login".to_owned(),
        registry => format!("uctr login {registry}"),
    };
    error.context(format!(
        "{verb} access denied for {}, repository does not exist or may require '{login}'",
        name.familiar_repository()
    ))
}
