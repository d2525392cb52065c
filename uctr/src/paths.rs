//! Where everything is on disk: no other module joins these names.

use std::path::PathBuf;

/// The two folders that all else is below.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What outlives a reboot: `--root`, by default `/var/lib/ultari`.
    pub data: PathBuf,
    /// What does not: `--run-root`, by default `/run/ultari/uctr`.
    pub run: PathBuf,
}

impl Paths {
    /// An OCI image layout: oci-layout, index.json, blobs/sha256/.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Unpacked layers, one folder a diffID: `<hex>/fs` and what is known of it beside.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    /// All containers, a folder each.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// A container's own folder: its record, bundle, upper and work folders, logs.
    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.data.join("containers").join(id)
    }

    /// Named and anonymous volumes: `<name>/_data`, `<name>/volume.json`.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// Networks: `<name>.json`.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.data.join("networks")
    }

    /// Who is on networks: `<container's ID>.json`.
    #[must_use]
    pub fn network_members(&self) -> PathBuf {
        self.run.join("networks/members")
    }

    /// The processes that resolve names: `<network's ID>.json`.
    #[must_use]
    pub fn network_resolvers(&self) -> PathBuf {
        self.run.join("networks/resolvers")
    }

    /// The runtime's records of containers (`ultari --root`).
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.run.join("runtime")
    }

    /// A container's sockets and what else goes with a reboot.
    #[must_use]
    pub fn container_run(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }
}
