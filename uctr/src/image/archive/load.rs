//! `load`: images from an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, Descriptor, Digest, ImageIndex, ImageManifestBuilder, MediaType, Os,
};
use serde::de::DeserializeOwned;
use tar::EntryType;
use ultari::rootfs::root::lexically_clean;

use super::{ANNOTATION_CONTAINERD, DockerImage};
use crate::image::digest::Counted;
use crate::image::layers::Layers;
use crate::image::reference::Reference;
use crate::image::store::{Image, Store};
use crate::image::unpack::archive::Archive;
use crate::image::unpack::stream::decompressed;

/// No index, manifest or configuration is longer.
const MAX_DOCUMENT: u64 = 8 << 20;
/// More names would only be there to fill the memory.
const MAX_FILES: usize = 100_000;
/// So deep may links and indexes be nested.
const MAX_DEPTH: usize = 8;

/// What came of an archive.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// The names that the archive has for it.
    pub names: Vec<Reference>,
}

/// A file of the archive, on disk under another name.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

/// All files of the archive, by their names in it.
#[derive(Debug, Default)]
struct Files {
    files: HashMap<PathBuf, Found>,
    links: HashMap<PathBuf, PathBuf>,
}

/// Takes all images of an archive into the store, unpacks their layers and names them.
///
/// # Errors
/// When it is no such archive, or damaged: nothing is named then.
pub fn load(store: &Store, layers: &Layers, input: impl Read) -> Result<Vec<Loaded>> {
    store.tidy();
    let _hold = store.hold()?;
    let folder = tempfile::Builder::new()
        .prefix("load-")
        .tempdir_in(store.ingest())
        .context("make a folder in the store")?;
    let files = Files::read(input, folder.path())?;
    let found = if files.get(Path::new("index.json")).is_some() {
        files.oci(store)?
    } else if files.get(Path::new("manifest.json")).is_some() {
        files.docker(store)?
    } else {
        bail!(
            "the archive has neither a manifest.json (docker-archive) nor an index.json \
             (oci-archive): a root filesystem is brought in with `import`"
        )
    };
    let mut loaded = Vec::new();
    for (manifest, names) in found {
        let image = store.image(&manifest)?;
        layers.ensure(store, &image)?;
        loaded.push(Loaded { image, names });
    }
    for Loaded { image, names } in &loaded {
        for name in names {
            store.tag(name, &image.manifest)?;
        }
        if names.is_empty() {
            store.keep(&image.manifest)?;
        }
    }
    Ok(loaded)
}

impl Files {
    fn read(input: impl Read, folder: &Path) -> Result<Self> {
        let mut archive = Archive::new(BufReader::with_capacity(1 << 18, decompressed(input)?));
        let mut files = Self::default();
        while let Some(entry) = archive.next_entry()? {
            let name = lexically_clean(&entry.path);
            let count = files.files.len() + files.links.len();
            ensure!(count < MAX_FILES, "the archive has more than {MAX_FILES} files");
            match entry.kind {
                EntryType::Regular => {
                    ensure!(entry.sparse.is_none(), "{name:?}: is sparse");
                    let path = folder.join(count.to_string());
                    let file = File::create_new(&path)
                        .with_context(|| format!("make {}", path.display()))?;
                    let mut file = Counted::new(file);
                    archive.copy(entry.stored, &mut file)?;
                    let (_, digest, size) = file.finish();
                    files.files.insert(name, Found { path, digest, size });
                }
                // A layer that several images have is there once.
                EntryType::Symlink => {
                    let target = name.parent().unwrap_or(Path::new("")).join(&entry.link);
                    files.links.insert(name, lexically_clean(&target));
                }
                EntryType::Link => {
                    files.links.insert(name, lexically_clean(&entry.link));
                }
                _ => {}
            }
        }
        Ok(files)
    }

    fn get(&self, name: &Path) -> Option<&Found> {
        let mut name = name;
        for _ in 0..MAX_DEPTH {
            if let Some(found) = self.files.get(name) {
                return Some(found);
            }
            name = self.links.get(name)?;
        }
        None
    }

    fn find(&self, name: &str) -> Result<&Found> {
        self.get(&lexically_clean(Path::new(name)))
            .with_context(|| format!("the archive lacks {name:?}"))
    }

    fn document<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let found = self.find(name)?;
        ensure!(found.size <= MAX_DOCUMENT, "{name}: longer than {MAX_DOCUMENT} bytes");
        let text = std::fs::read(&found.path).with_context(|| format!("read {name}"))?;
        serde_json::from_slice(&text).with_context(|| format!("read {name} of the archive"))
    }

    /// Takes a file over as a blob, once.
    fn adopt(&self, store: &Store, found: &Found, blob: &Descriptor) -> Result<()> {
        ensure!(
            found.digest == *blob.digest() && found.size == blob.size(),
            "{}: its content in the archive is another: {}",
            blob.digest(),
            found.digest
        );
        if !store.has(blob)? {
            store.adopt(&found.path, blob.digest())?;
        }
        Ok(())
    }

    fn oci(&self, store: &Store) -> Result<Vec<(Descriptor, Vec<Reference>)>> {
        let index: ImageIndex = self.document("index.json")?;
        let mut images: Vec<(Descriptor, Vec<Reference>)> = Vec::new();
        for entry in index.manifests() {
            let manifest = self.choose(entry, 0)?;
            let blob = |digest: &Digest| self.find(&in_layout(digest));
            self.adopt(store, blob(manifest.digest())?, &manifest)?;
            let parsed = store.manifest(&manifest)?;
            for part in parsed.layers().iter().chain([parsed.config()]) {
                if !store.has(part)? {
                    self.adopt(store, blob(part.digest())?, part)?;
                }
            }
            let known = images.iter_mut().find(|(known, _)| known.digest() == manifest.digest());
            match known {
                Some((_, names)) => names.extend(name_of(entry)),
                None => images.push((manifest, name_of(entry).into_iter().collect())),
            }
        }
        ensure!(!images.is_empty(), "the archive holds no image");
        Ok(images)
    }

    /// Of an index the image for this machine.
    fn choose(&self, entry: &Descriptor, depth: usize) -> Result<Descriptor> {
        let is_index = matches!(entry.media_type(), MediaType::ImageIndex)
            || entry.media_type().as_ref().contains("manifest.list");
        if !is_index {
            return Ok(entry.clone());
        }
        ensure!(depth < MAX_DEPTH, "indexes are nested too deep");
        let index: ImageIndex = self.document(&in_layout(entry.digest()))?;
        let here = |entry: &&Descriptor| {
            entry.platform().as_ref().is_some_and(|platform| {
                *platform.os() == Os::Linux && *platform.architecture() == Arch::default()
            })
        };
        let entries = index.manifests();
        let chosen = entries.iter().find(here).or(match entries.as_slice() {
            [only] => Some(only),
            _ => None,
        });
        let chosen = chosen.with_context(|| {
            format!("{}: has no image for linux/{}", entry.digest(), Arch::default())
        })?;
        self.choose(chosen, depth + 1)
    }

    fn docker(&self, store: &Store) -> Result<Vec<(Descriptor, Vec<Reference>)>> {
        let images: Vec<DockerImage> = self.document("manifest.json")?;
        ensure!(!images.is_empty(), "the archive holds no image");
        images.iter().map(|image| self.docker_image(store, image)).collect()
    }

    fn docker_image(
        &self,
        store: &Store,
        image: &DockerImage,
    ) -> Result<(Descriptor, Vec<Reference>)> {
        let take = |name: &str, media_type: Option<MediaType>| -> Result<Descriptor> {
            let found = self.find(name)?;
            let media_type = match media_type {
                Some(media_type) => media_type,
                None => layer_type(found)?,
            };
            let blob = Descriptor::new(media_type, found.size, found.digest.clone());
            self.adopt(store, found, &blob)?;
            Ok(blob)
        };
        let config = take(&image.config, Some(MediaType::ImageConfig))?;
        let layers =
            image.layers.iter().map(|name| take(name, None)).collect::<Result<Vec<_>>>()?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()?;
        let text = serde_json::to_vec(&manifest)?;
        let manifest = store.put(MediaType::ImageManifest.as_ref(), &text)?;
        let tags = image.repo_tags.iter().flatten();
        let names = tags.map(|tag| tag.parse()).collect::<Result<_>>()?;
        Ok((manifest, names))
    }
}

/// Archives don't say how their layers are compressed; what counts is how they begin.
fn layer_type(found: &Found) -> Result<MediaType> {
    let mut start = [0; 4];
    let mut file = File::open(&found.path).context("open a layer")?;
    match file.read_exact(&mut start) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Err(error).context("read a layer");
        }
        _ => {}
    }
    Ok(match start {
        [0x1f, 0x8b, ..] => MediaType::ImageLayerGzip,
        [0x28, 0xb5, 0x2f, 0xfd] => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    })
}

/// In full as docker and containerd write it, or as skopeo and podman do. A bare tag is no name.
fn name_of(entry: &Descriptor) -> Option<Reference> {
    let annotations = entry.annotations().as_ref()?;
    let full = annotations.get(ANNOTATION_CONTAINERD);
    let name = annotations.get(ANNOTATION_REF_NAME).filter(|name| name.contains([':', '/']));
    full.or(name)?.parse().ok()
}

fn in_layout(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}
