//! Images made by hand: layers as tar archives with any content, in an image layout.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::{EntryType, Header};
use uctr::image::digest;

/// A tar archive that is written entry by entry; nothing is checked.
#[derive(Clone, Default)]
pub struct Tar {
    bytes: Vec<u8>,
    extended: Vec<u8>,
}

/// What an entry has besides its name and content.
#[derive(Clone, Copy)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

impl Default for Meta {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: 1_600_000_000 }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// A record of an extended header for the next entry.
    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        let rest = key.len() + value.as_ref().len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        self.extended.extend(format!("{length} {key}=").bytes());
        self.extended.extend(value.as_ref());
        self.extended.push(b'\n');
        self
    }

    pub fn entry(mut self, kind: u8, name: &str, link: &str, meta: Meta, content: &[u8]) -> Self {
        if !self.extended.is_empty() {
            let extended = std::mem::take(&mut self.extended);
            self = self.entry(b'x', "extended", "", Meta::default(), &extended);
        }
        self.raw(&header(kind, name, link, meta, content.len() as u64), content)
    }

    pub fn raw(mut self, header: &Header, content: &[u8]) -> Self {
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, "", Meta::default(), content.as_bytes())
    }

    pub fn folder(self, name: &str) -> Self {
        self.entry(b'5', name, "", Meta { mode: 0o755, ..Meta::default() }, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, Meta { mode: 0o777, ..Meta::default() }, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, Meta::default(), b"")
    }

    /// With the two blocks that end an archive.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

pub fn header(kind: u8, name: &str, link: &str, meta: Meta, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len().min(100)]
        .copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header.as_mut_bytes()[157..157 + link.len().min(100)]
        .copy_from_slice(&link.as_bytes()[..link.len().min(100)]);
    header.set_entry_type(EntryType::new(kind));
    header.set_mode(meta.mode);
    header.set_uid(meta.uid);
    header.set_gid(meta.gid);
    header.set_mtime(meta.mtime);
    header.set_size(size);
    header.set_cksum();
    header
}

/// How a layer is in its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::None => bytes.to_vec(),
            Self::Gzip => {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(bytes).unwrap();
                gzip.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image layout with one image.
pub struct Layout {
    pub folder: PathBuf,
    name: String,
    diff_ids: Vec<String>,
    layers: Vec<Value>,
    history: Vec<Value>,
    pub config: Value,
}

impl Layout {
    /// `name` is what index.json has for it.
    pub fn new(folder: PathBuf, name: &str) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let name = name.to_owned();
        let (diff_ids, layers, history) = (Vec::new(), Vec::new(), Vec::new());
        Self { folder, name, diff_ids, layers, history, config: json!({"Cmd": ["sh"]}) }
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest::sha256(bytes);
        fs::write(self.folder.join("blobs/sha256").join(digest.digest()), bytes).unwrap();
        digest.to_string()
    }

    pub fn layer(self, tar: &[u8], compression: Compression) -> Self {
        let diff_id = digest::sha256(tar).to_string();
        self.layer_as(&compression.of(tar), compression, &diff_id)
    }

    /// With a diffID that may be a lie.
    pub fn layer_as(mut self, blob: &[u8], compression: Compression, diff_id: &str) -> Self {
        let (digest, size) = (self.blob(blob), blob.len());
        self.layers
            .push(json!({"mediaType": compression.media_type(), "digest": digest, "size": size}));
        self.diff_ids.push(diff_id.to_owned());
        let step = format!("step {}", self.layers.len());
        self.history.push(json!({"created": "2024-01-01T00:00:00Z", "created_by": step}));
        self
    }

    /// Writes configuration, manifest and index.
    pub fn finish(self) -> PathBuf {
        let config = json!({
            "created": "2024-01-02T03:04:05.678Z", "architecture": "amd64", "os": "linux",
            "config": self.config, "history": self.history,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(&config), "size": config.len(),
            },
            "layers": self.layers,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.blob(&manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": self.name},
        }]});
        fs::write(self.folder.join("index.json"), index.to_string()).unwrap();
        self.folder
    }
}

/// A layout as an oci-archive beside it.
pub fn archived(layout: &Path) -> PathBuf {
    let path = layout.with_extension("oci.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
    archive.append_dir_all(".", layout).unwrap();
    archive.into_inner().unwrap();
    path
}
