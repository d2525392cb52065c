//! The images on this machine: an OCI image layout, content-addressed, which other tools can read.
//!
//! ```text
//! images/oci-layout, index.json, blobs/sha256/…   as the image-spec says
//!        lock      held while index.json is exchanged
//!        hold      shared by whoever brings images here, exclusive for removing
//!        ingest/   blobs that are not whole yet
//! ```
//!
//! An image's name is the annotation `org.opencontainers.image.ref.name` of its entry in
//! index.json, in full: `docker.io/library/busybox:latest`. An entry without one is an image that
//! lost its name to another, docker's `<none>`.

mod blob;
mod remove;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, Digest, ImageConfiguration, ImageIndex, ImageIndexBuilder,
    ImageManifest, MediaType,
};

pub use blob::Partial;
pub use remove::Removed;
pub(crate) use remove::entries;

use super::digest;
use super::lock;
use super::reference::Reference;
use crate::paths::Paths;

/// Beside its name: the digest that a registry has for that name, be it of a manifest or of an index.
const ANNOTATION_DIGEST: &str = "io.ultari.image.digest";

/// No manifest or configuration is longer (registries take 4 MiB).
const MAX_DOCUMENT: u64 = 8 << 20;

/// The image layout of one `--root`.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// To know what containers need.
    paths: Paths,
}

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
    /// All names that it has here, each with a tag, or with a digest if it was pulled by that.
    pub names: Vec<Reference>,
    /// By which digests registries have it: `RepoDigests`.
    pub digests: Vec<Reference>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// As it is in the registry, mostly compressed.
    pub blob: Descriptor,
    /// The digest of its uncompressed tar archive.
    pub diff_id: Digest,
}

/// While it is held nothing is removed from the store: what is pulled has no name yet, and an image
/// that a container is made of is only in use when that has its record.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code)] File);

impl Image {
    /// The first twelve digits of the ID, as users know it.
    #[must_use]
    pub fn short_id(&self) -> &str {
        &self.id.digest()[..12]
    }

    /// The layers' digests, the lowest first.
    #[must_use]
    pub fn diff_ids(&self) -> Vec<Digest> {
        self.layers.iter().map(|layer| layer.diff_id.clone()).collect()
    }
}

impl Store {
    /// Opens it, and makes it if it isn't there.
    ///
    /// # Errors
    /// When its folders can't be made or are no image layout of version 1.
    pub fn open(paths: &Paths) -> Result<Self> {
        let store = Self { folder: paths.images(), paths: paths.clone() };
        let layout = store.folder.join("oci-layout");
        match fs::read(&layout) {
            Ok(found) => {
                let found: serde_json::Value = serde_json::from_slice(&found)
                    .with_context(|| format!("read {}", layout.display()))?;
                let version = found["imageLayoutVersion"].as_str().unwrap_or_default();
                ensure!(
                    version.starts_with("1."),
                    "{}: an image layout of version {version:?}; only version 1 is known",
                    store.folder.display()
                );
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => store.create()?,
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", layout.display()));
            }
        }
        Ok(store)
    }

    fn create(&self) -> Result<()> {
        lock::private_folder(&self.folder.join("blobs/sha256"))?;
        lock::private_folder(&self.ingest())?;
        let _lock = self.lock_index()?;
        if !self.index_path().exists() {
            self.write_index(
                &ImageIndexBuilder::default().schema_version(2u32).manifests([]).build()?,
            )?;
        }
        // Last: it says that all else is there.
        replace(&self.folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// Keeps everything from being removed.
    ///
    /// # Errors
    /// As of flock(2).
    pub fn hold(&self) -> Result<Hold> {
        let path = self.folder.join("hold");
        let file = lock::open(&path)?;
        file.lock_shared().with_context(|| format!("lock {}", path.display()))?;
        Ok(Hold(file))
    }

    /// Where blobs are that are not whole yet.
    pub(crate) fn ingest(&self) -> PathBuf {
        self.folder.join("ingest")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
    }

    fn index_path(&self) -> PathBuf {
        self.folder.join("index.json")
    }

    fn lock_index(&self) -> Result<File> {
        lock::exclusive(&self.folder.join("lock"))
    }

    fn index(&self) -> Result<ImageIndex> {
        let path = self.index_path();
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    fn write_index(&self, index: &ImageIndex) -> Result<()> {
        replace(&self.index_path(), &serde_json::to_vec(index)?)
    }

    /// Changes the entries of index.json; nobody else does meanwhile.
    fn change(&self, change: impl FnOnce(&mut Vec<Descriptor>)) -> Result<()> {
        let _lock = self.lock_index()?;
        let mut index = self.index()?;
        let mut entries = index.manifests().clone();
        change(&mut entries);
        index.set_manifests(without_needless(entries));
        self.write_index(&index)
    }

    /// A whole small blob: a manifest or a configuration.
    ///
    /// # Errors
    /// When it is not there, too long, or damaged.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.blob(digest)?
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read the blob {digest}"))?;
        ensure!(bytes.len() as u64 <= MAX_DOCUMENT, "{digest}: longer than {MAX_DOCUMENT} bytes");
        let mut hasher = digest::Hasher::like(digest)?;
        hasher.update(&bytes);
        ensure!(
            hasher.finish() == *digest,
            "{}: the file was changed or damaged; remove it and pull the image again",
            self.blob_path(digest).display()
        );
        Ok(bytes)
    }

    /// What the manifest of an image says.
    ///
    /// # Errors
    /// When it is missing or is none.
    pub fn manifest(&self, manifest: &Descriptor) -> Result<ImageManifest> {
        let digest = manifest.digest();
        serde_json::from_slice(&self.read(digest)?)
            .with_context(|| format!("{digest}: is no manifest of an image"))
    }

    /// Reads what a manifest, and what its configuration say.
    ///
    /// # Errors
    /// When a blob is missing or is not what its media type says.
    pub fn image(&self, manifest: &Descriptor) -> Result<Image> {
        let digest = manifest.digest();
        let parsed = self.manifest(manifest)?;
        let id = parsed.config().digest().clone();
        let config: ImageConfiguration = serde_json::from_slice(&self.read(&id)?)
            .with_context(|| format!("{id}: is no configuration of an image"))?;
        let diff_ids = config.rootfs().diff_ids();
        ensure!(
            diff_ids.len() == parsed.layers().len(),
            "{digest}: the manifest has {} layers, its configuration {}",
            parsed.layers().len(),
            diff_ids.len()
        );
        let layer = |(blob, diff_id): (&Descriptor, &String)| {
            let diff_id = Digest::try_from(diff_id.as_str())
                .with_context(|| format!("{id}: /rootfs/diff_ids: {diff_id:?}"))?;
            anyhow::Ok(Layer { blob: blob.clone(), diff_id })
        };
        let layers = parsed.layers().iter().zip(diff_ids).map(layer).collect::<Result<_>>()?;
        Ok(Image {
            manifest: plain(manifest),
            id,
            config,
            layers,
            names: Vec::new(),
            digests: Vec::new(),
        })
    }

    /// The configuration of an image with all that is in it, also what the image-spec doesn't know.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn config_json(&self, image: &Image) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.read(&image.id)?)?)
    }

    /// All images. What can't be read is told on stderr and left out: one damaged image must not
    /// make the others unusable.
    ///
    /// # Errors
    /// When index.json can't be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images: Vec<Image> = Vec::new();
        let mut known: HashMap<Digest, usize> = HashMap::new();
        for entry in self.index()?.manifests() {
            let at = match known.get(entry.digest()) {
                Some(at) => *at,
                None => match self.image(entry) {
                    Ok(image) => {
                        known.insert(entry.digest().clone(), images.len());
                        images.push(image);
                        images.len() - 1
                    }
                    Err(error) => {
                        eprintln!("uctr: image {}: {error:#}", name_of(entry).unwrap_or("<none>"));
                        continue;
                    }
                },
            };
            let Some((name, digest)) = reference_of(entry) else { continue };
            images[at].names.push(name);
            if let Some(digest) = digest.filter(|digest| !images[at].digests.contains(digest)) {
                images[at].digests.push(digest);
            }
        }
        Ok(images)
    }

    /// The image of a name, an ID, or the beginning of an ID.
    ///
    /// # Errors
    /// When index.json can't be read, when several IDs begin so, or when it can't be a name.
    pub fn find(&self, name: &str) -> Result<Option<Image>> {
        Ok(self.find_named(name)?.map(|(image, _)| image))
    }

    /// As [`Store::find`]; also by which of its names it was found, nothing if by its ID.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub fn find_named(&self, name: &str) -> Result<Option<(Image, Option<Reference>)>> {
        let images = self.images()?;
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_id = !hex.is_empty() && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let wanted = match name.parse::<Reference>() {
            Ok(wanted) => Some(wanted),
            Err(_) if is_id => None,
            Err(error) => return Err(error),
        };
        if let Some(wanted) = wanted.filter(|_| hex == name) {
            for image in &images {
                let mut names = image.names.iter();
                if let Some(found) = names.find(|name| answers(image, name, &wanted)) {
                    return Ok(Some((image.clone(), Some(found.clone()))));
                }
            }
        }
        if !is_id {
            return Ok(None);
        }
        let mut found = images.into_iter().filter(|image| image.id.digest().starts_with(hex));
        let Some(first) = found.next() else { return Ok(None) };
        if found.any(|other| other.id != first.id) {
            bail!("{name}: several images have IDs that begin so: give more digits");
        }
        Ok(Some((first, None)))
    }

    /// Names an image; whichever had that name before loses it. If the name has a tag and a digest,
    /// the digest is kept as that which the registry has for this tag.
    ///
    /// # Errors
    /// When the store can't be written, or lacks what the image needs.
    pub fn tag(&self, name: &Reference, manifest: &Descriptor) -> Result<()> {
        let image = self.image(manifest)?;
        for layer in &image.layers {
            ensure!(self.has(&layer.blob)?, "{}: is not in the store", layer.blob.digest());
        }
        let key = key(name);
        self.change(|entries| {
            for entry in entries.iter_mut().filter(|entry| name_of(entry) == Some(&key)) {
                entry.set_annotations(None);
            }
            let mut annotations = HashMap::from([(ANNOTATION_REF_NAME.to_owned(), key)]);
            if let Some(digest) = &name.digest {
                annotations.insert(ANNOTATION_DIGEST.to_owned(), digest.to_string());
            }
            let mut entry = plain(manifest);
            entry.set_annotations(Some(annotations));
            entries.push(entry);
        })
    }

    /// Keeps an image that has no name.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn keep(&self, manifest: &Descriptor) -> Result<()> {
        self.change(|entries| entries.push(plain(manifest)))
    }
}

/// Nothing of the annotations that it has elsewhere.
fn plain(manifest: &Descriptor) -> Descriptor {
    let media_type: MediaType = manifest.media_type().clone();
    let mut plain = Descriptor::new(media_type, manifest.size(), manifest.digest().clone());
    plain.set_platform(manifest.platform().clone());
    plain
}

/// Entries without a name are only needed for images that have no entry with one.
fn without_needless(entries: Vec<Descriptor>) -> Vec<Descriptor> {
    let mut kept: Vec<Descriptor> = Vec::new();
    for entry in &entries {
        let named = name_of(entry).is_some();
        let same = |other: &&Descriptor| other.digest() == entry.digest();
        let needless = !named
            && (kept.iter().any(|other| same(&other))
                || entries.iter().filter(same).any(|other| name_of(other).is_some()));
        if !needless {
            kept.push(entry.clone());
        }
    }
    kept
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations().as_ref()?.get(key).map(String::as_str)
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    annotation(entry, ANNOTATION_REF_NAME)
}

/// An entry's name, and by which digest the registry has it.
fn reference_of(entry: &Descriptor) -> Option<(Reference, Option<Reference>)> {
    let name: Reference = name_of(entry)?.parse().ok()?;
    let noted = annotation(entry, ANNOTATION_DIGEST).and_then(|text| Digest::try_from(text).ok());
    let digest = noted.or_else(|| name.digest.clone()).map(|digest| Reference {
        tag: None,
        digest: Some(digest),
        ..name.clone()
    });
    Some((name, digest))
}

/// What a name is in index.json: a tag, or else a digest.
fn key(name: &Reference) -> String {
    let Reference { registry, repository, tag, digest } = name;
    match (tag, digest) {
        (Some(tag), _) => format!("{registry}/{repository}:{tag}"),
        (None, Some(digest)) => format!("{registry}/{repository}@{digest}"),
        (None, None) => format!("{registry}/{repository}:latest"),
    }
}

/// Whether one of an image's names is what is asked for. A digest says more than a tag.
fn answers(image: &Image, name: &Reference, wanted: &Reference) -> bool {
    let same =
        |name: &Reference| name.registry == wanted.registry && name.repository == wanted.repository;
    match &wanted.digest {
        Some(digest) => {
            let known = |name: &Reference| same(name) && name.digest.as_ref() == Some(digest);
            same(name) && (image.manifest.digest() == digest || image.digests.iter().any(known))
        }
        None => same(name) && name.tag == wanted.tag,
    }
}

/// Exchanges a file for another in one step.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)
        .and_then(|()| File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("write {}", path.display()))?;
    lock::sync_folder(path.parent().expect("it is in a folder"))
}
