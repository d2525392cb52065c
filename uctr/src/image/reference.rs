//! The names of images: `[registry[:port]/][user/]name[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;

/// A name with all that it leaves out filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, `localhost:5000` …
    pub registry: String,
    /// `library/busybox`, `user/name` …
    pub repository: String,
    /// Is `latest` where neither a tag nor a digest was given.
    pub tag: Option<String>,
    /// Of the manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// As users write it: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        todo!()
    }
}

/// In full.
impl fmt::Display for Reference {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(_text: &str) -> anyhow::Result<Self> {
        todo!()
    }
}
