//! Images as one file: `load` reads docker-archives and oci-archives, `save` writes what is both.

mod load;
mod save;

pub use load::{Loaded, load};
pub use save::save;

use serde::{Deserialize, Serialize};

/// An image in `manifest.json` of a docker-archive; names of files are those in the archive.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image's full name in index.json of docker and containerd.
const ANNOTATION_CONTAINERD: &str = "io.containerd.image.name";
