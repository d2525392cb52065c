//! `pull`: from a name to an image in the store with its layers unpacked.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::http::{StatusCode, header};

use super::client::{Client, DOCKER_INDEX, DOCKER_MANIFEST, Document, OCI_INDEX, OCI_MANIFEST};
use super::http::{RegistryError, Response, clean};
use super::progress::{Line, Output, Progress};
use super::{Platform, Settings, Target, denied};
use crate::image::layers::Layers;
use crate::image::reference::Reference;
use crate::image::store::{Image, Partial, Store};
use crate::paths::Paths;

/// docker loads so many layers at once; more where more can be unpacked.
const MIN_WORKERS: usize = 3;
const MAX_WORKERS: usize = 8;
/// A layer whose connection breaks so often, without [`PROGRESS`] between, is given up.
const TRIES: u32 = 5;
const PROGRESS: u64 = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const BUFFER: usize = 256 << 10;
/// An index in an index is allowed, one in that too.
const MAX_NESTED: usize = 3;
/// overlayfs takes no more (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;
const MAX_CONFIG: u64 = 8 << 20;

const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What a pull needs, for one image or several.
#[derive(Debug)]
pub struct Pull<'a> {
    store: &'a Store,
    /// Where blobs come to.
    folder: PathBuf,
    layers: Layers,
    platform: &'a Platform,
    target: Target,
    insecure: &'a [String],
    progress: Progress,
}

/// One image at its registry.
struct Found {
    /// Of what the name leads to: an index or a manifest.
    digest: Digest,
    media_type: String,
    manifest: ImageManifest,
    bytes: Vec<u8>,
}

/// The fields that tell manifests and indexes apart.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Kind {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

/// One layer that is to be here.
struct Job<'a> {
    blob: &'a Descriptor,
    diff_id: &'a Digest,
    line: Mutex<Option<Line<'a>>>,
}

impl<'a> Pull<'a> {
    /// `insecure` are the registries of `--insecure-registry`.
    ///
    /// # Errors
    /// When the platform is none.
    pub fn new(
        paths: &Paths,
        store: &'a Store,
        platform: &'a Platform,
        insecure: &'a [String],
        output: Output,
    ) -> Result<Self> {
        Ok(Self {
            store,
            folder: paths.images(),
            layers: Layers::open(paths)?,
            platform,
            target: Target::of(platform)?,
            insecure,
            progress: Progress::new(output),
        })
    }

    /// Pulls one image.
    ///
    /// # Errors
    /// Those of the registry; nothing is named then.
    pub fn image(&self, name: &Reference) -> Result<Image> {
        let client = self.client(name)?;
        self.with(&client, name)
    }

    /// Pulls all tags of a repository.
    ///
    /// # Errors
    /// As [`Pull::image`].
    pub fn all_tags(&self, name: &Reference) -> Result<()> {
        let client = self.client(name)?;
        for tag in client.tags(&name.repository).map_err(|error| denied(error, name, "pull"))? {
            let text = format!("{}/{}:{tag}", name.registry, name.repository);
            // What is no tag can't have been asked for.
            let name: Reference = text.parse()?;
            self.with(&client, &name)?;
        }
        Ok(())
    }

    fn client(&self, name: &Reference) -> Result<Client> {
        let scope = format!("repository:{}:pull", name.repository);
        Client::connect(Settings::load(self.insecure)?, &name.registry, vec![scope])
            .map_err(|error| denied(error, name, "pull"))
    }

    fn with(&self, client: &Client, name: &Reference) -> Result<Image> {
        self.store.tidy();
        let _hold = self.store.hold()?;
        let found = self.find(client, name)?;
        let familiar = name.familiar();
        let shown = match (&name.tag, &name.digest) {
            (_, Some(digest)) => format!("{}@{digest}", name.repository),
            (tag, None) => tag.clone().unwrap_or_default(),
        };
        self.progress.say(format_args!("{shown}: Pulling from {}", name.repository));
        let before = self.store.find(&name.to_string())?.map(|image| image.manifest);
        let manifest = self.fetch(client, name, &found)?;
        let named = Reference {
            // As docker has it: with a digest the tag says nothing.
            tag: name.tag.clone().filter(|_| name.digest.is_none()),
            digest: Some(found.digest.clone()),
            ..name.clone()
        };
        self.store.tag(&named, &manifest)?;
        self.progress.say(format_args!("Digest: {}", found.digest));
        let is_same = before.is_some_and(|before| before.digest() == manifest.digest());
        let status = if is_same { "Image is up to date" } else { "Downloaded newer image" };
        self.progress.say(format_args!("Status: {status} for {familiar}"));
        self.store.image(&manifest).and_then(|image| {
            // With all the names that it has.
            Ok(self.store.find(&named.to_string())?.unwrap_or(image))
        })
    }

    /// Follows indexes to the manifest for our platform.
    fn find(&self, client: &Client, name: &Reference) -> Result<Found> {
        let wanted = match (&name.digest, &name.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        };
        let mut document = client
            .manifest(&name.repository, &wanted)
            .map_err(|error| denied(not_found(error, name), name, "pull"))?;
        let digest = document.digest.clone();
        for _ in 0..MAX_NESTED {
            let media_type = media_type(&document)
                .with_context(|| format!("manifest {} of {}", document.digest, name.familiar()))?;
            if media_type == OCI_MANIFEST || media_type == DOCKER_MANIFEST {
                let manifest = serde_json::from_slice(&document.bytes)
                    .with_context(|| format!("understand manifest {}", document.digest))?;
                return Ok(Found { digest, media_type, manifest, bytes: document.bytes });
            }
            let index: ImageIndex = serde_json::from_slice(&document.bytes)
                .with_context(|| format!("understand index {}", document.digest))?;
            let chosen = self.target.choose(index.manifests());
            let chosen = chosen.with_context(|| {
                format!("no matching manifest for {} in the manifest list entries", self.target)
            })?;
            document = client.manifest(&name.repository, chosen.digest().as_ref())?;
            ensure!(
                document.bytes.len() as u64 == chosen.size(),
                "manifest {}: it has {} bytes, {} by its index",
                chosen.digest(),
                document.bytes.len(),
                chosen.size()
            );
        }
        bail!("{}: more than {MAX_NESTED} indexes in each other", name.familiar())
    }

    /// Brings configuration, layers and manifest into the store.
    fn fetch(&self, client: &Client, name: &Reference, found: &Found) -> Result<Descriptor> {
        let config = self.config(client, name, &found.manifest)?;
        let blobs = found.manifest.layers();
        let diff_ids = config.rootfs().diff_ids();
        ensure!(
            diff_ids.len() == blobs.len(),
            "{}: its manifest has {} layers, its configuration {}",
            name.familiar(),
            blobs.len(),
            diff_ids.len()
        );
        ensure!(
            blobs.len() <= MAX_LAYERS,
            "{}: it has {} layers; overlayfs takes {MAX_LAYERS}",
            name.familiar(),
            blobs.len()
        );
        let diff_ids = diff_ids
            .iter()
            .map(|text| Digest::try_from(text.as_str()).with_context(|| format!("diffID {text:?}")))
            .collect::<Result<Vec<_>>>()?;
        self.check_space(blobs)?;
        let is_here = blobs.iter().zip(&diff_ids).map(|(blob, id)| self.is_here(blob, id));
        if !is_here.collect::<Result<Vec<_>>>()?.into_iter().all(|here| here) {
            self.fetch_layers(client, name, blobs, &diff_ids)?;
        }
        self.store.put(&found.media_type, &found.bytes)
    }

    /// The image's configuration, which says what its layers are.
    fn config(
        &self,
        client: &Client,
        name: &Reference,
        manifest: &ImageManifest,
    ) -> Result<ImageConfiguration> {
        let blob = manifest.config();
        let media_type = blob.media_type().as_ref();
        if !CONFIGS.contains(&media_type) {
            bail!(
                "{}: is no image of a container: its configuration is of type {:?}",
                name.familiar(),
                clean(media_type)
            );
        }
        ensure!(blob.size() <= MAX_CONFIG, "configuration {}: too long", blob.digest());
        if !self.store.has(blob)? {
            self.download(client, name, blob, &|_| {}, &AtomicBool::new(false))?;
        }
        let config: ImageConfiguration =
            serde_json::from_slice(&self.store.read(blob.digest())?)
                .with_context(|| format!("understand configuration {}", blob.digest()))?;
        if self.platform.0.is_some() && !self.target.runs(&config) {
            bail!(
                "image with reference {} was found but its platform ({}) does not match the \
                 specified platform ({})",
                name.familiar(),
                clean(&Target::of_config(&config).to_string()),
                self.target
            );
        }
        Ok(config)
    }

    fn is_here(&self, blob: &Descriptor, diff_id: &Digest) -> Result<bool> {
        Ok(self.layers.has(diff_id)? && self.store.has(blob)?)
    }

    /// Whoever says that a layer is larger than the disk need not fill it first.
    fn check_space(&self, blobs: &[Descriptor]) -> Result<()> {
        let mut needed = 0u64;
        for blob in blobs {
            if !self.store.has(blob)? {
                needed = needed.saturating_add(blob.size());
            }
        }
        let folder = &self.folder;
        let found = nix::sys::statvfs::statvfs(folder)
            .with_context(|| format!("statvfs {}", folder.display()))?;
        let free = found.blocks_available().saturating_mul(found.fragment_size());
        ensure!(
            needed <= free,
            "the image's layers have {needed} bytes; {free} are free at {}",
            folder.display()
        );
        Ok(())
    }

    /// Downloads and unpacks layers, several at once.
    fn fetch_layers(
        &self,
        client: &Client,
        name: &Reference,
        blobs: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<()> {
        let mut seen = HashSet::new();
        let mut jobs = Vec::new();
        for (blob, diff_id) in blobs.iter().zip(diff_ids) {
            if seen.insert((blob.digest(), diff_id)) {
                let line = self.progress.line(short(blob.digest()), "Pulling fs layer");
                jobs.push(Job { blob, diff_id, line: Mutex::new(Some(line)) });
            }
        }
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let first_error = Mutex::new(None);
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if failed.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = self.layer(client, name, job, &failed) {
                    failed.store(true, Ordering::Relaxed);
                    let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(error);
                }
            }
        };
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers = cores.clamp(MIN_WORKERS, MAX_WORKERS).min(jobs.len());
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(work);
            }
        });
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn layer(&self, client: &Client, name: &Reference, job: &Job, stop: &AtomicBool) -> Result<()> {
        let line = job.line.lock().unwrap_or_else(PoisonError::into_inner).take();
        let line = line.expect("each job is taken once");
        if self.is_here(job.blob, job.diff_id)? {
            line.end("Already exists");
            return Ok(());
        }
        if !self.store.has(job.blob)? {
            line.count("Downloading", 0, job.blob.size());
            self.download(client, name, job.blob, &|done| line.position(done), stop)?;
            line.state("Download complete");
        }
        line.busy("Extracting");
        let mut blob = self.store.blob(job.blob.digest())?;
        self.layers.unpack(job.blob, job.diff_id, &mut blob)?;
        line.end("Pull complete");
        Ok(())
    }

    /// Downloads a blob, going on with what is there of it.
    fn download(
        &self,
        client: &Client,
        name: &Reference,
        blob: &Descriptor,
        done: &dyn Fn(u64),
        stop: &AtomicBool,
    ) -> Result<()> {
        let what = || format!("download {}", blob.digest());
        let mut partial = self.store.partial(blob)?;
        let was_begun = partial.offset() > 0 && partial.offset() < blob.size();
        self.fill(client, name, blob, &mut partial, done, stop).with_context(what)?;
        match partial.commit() {
            // What was left from another time is perhaps what is wrong.
            Err(_) if was_begun => {
                let mut partial = self.store.partial(blob)?;
                partial.restart()?;
                self.fill(client, name, blob, &mut partial, done, stop).with_context(what)?;
                partial.commit()
            }
            other => other,
        }
        .with_context(what)
    }

    fn fill(
        &self,
        client: &Client,
        name: &Reference,
        blob: &Descriptor,
        partial: &mut Partial,
        done: &dyn Fn(u64),
        stop: &AtomicBool,
    ) -> Result<()> {
        let mut tries = TRIES;
        let mut pause = FIRST_PAUSE;
        while partial.offset() < blob.size() {
            let offset = partial.offset();
            let mut response = client.blob(&name.repository, blob.digest(), offset)?;
            let begin = begin(&response);
            if begin != Some(offset) {
                partial.restart()?;
            }
            // What begins somewhere in the middle, or nowhere, is of no use.
            if begin != Some(partial.offset()) {
                tries = tries
                    .checked_sub(1)
                    .context("the registry sends another part than asked for")?;
                continue;
            }
            let ended = receive(&mut response, partial, done, stop)?;
            if partial.offset() >= offset + PROGRESS {
                (tries, pause) = (TRIES, FIRST_PAUSE);
            }
            tries -= 1;
            match ended {
                // It ended as it should, and is too short: commit says so.
                Ok(()) if offset == 0 && partial.offset() < blob.size() => return Ok(()),
                Err(error) if tries == 0 => {
                    return Err(error).with_context(|| {
                        format!("after {} of {} bytes", partial.offset(), blob.size())
                    });
                }
                Ok(()) if tries == 0 => return Ok(()),
                _ => sleep(pause),
            }
            pause *= 2;
        }
        Ok(())
    }
}

/// From which byte of the blob on a response has it.
fn begin(response: &Response) -> Option<u64> {
    match response.status() {
        StatusCode::OK => Some(0),
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
            range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
        }
        _ => None,
    }
}

/// Writes what comes; the inner result is how the connection ended.
fn receive(
    response: &mut Response,
    partial: &mut Partial,
    done: &dyn Fn(u64),
    stop: &AtomicBool,
) -> Result<std::io::Result<()>> {
    let mut reader = response.body_mut().as_reader();
    let mut buffer = vec![0; BUFFER];
    loop {
        ensure!(!stop.load(Ordering::Relaxed), "given up, since another layer failed");
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Ok(())),
            Ok(count) => {
                partial.write_all(&buffer[..count]).context("write what comes")?;
                done(partial.offset());
            }
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// What a document is. Header and document must agree, or it could be one thing for us and another
/// for whoever looked it through.
fn media_type(document: &Document) -> Result<String> {
    let kind: Kind = serde_json::from_slice(&document.bytes).context("it is no JSON object")?;
    ensure!(
        kind.schema_version == 2,
        "its schema version is {}; only 2 is known: push the image again with a newer tool",
        kind.schema_version
    );
    let is_index = kind.manifests.is_some();
    ensure!(
        is_index != (kind.config.is_some() || kind.layers.is_some()),
        "it is neither a manifest nor an index"
    );
    let of_header = Some(document.media_type.clone());
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
    let of_header = of_header.filter(|name| known.contains(&name.as_str()));
    let name = match (kind.media_type, of_header) {
        (Some(inside), Some(outside)) => {
            ensure!(inside == outside, "it says that it is {inside:?}, the registry {outside:?}");
            inside
        }
        (Some(name), None) | (None, Some(name)) => name,
        (None, None) => if is_index { OCI_INDEX } else { OCI_MANIFEST }.to_owned(),
    };
    ensure!(known.contains(&name.as_str()), "its type {:?} is not known", clean(&name));
    ensure!(
        is_index == (name == OCI_INDEX || name == DOCKER_INDEX),
        "it is not what its type {name:?} says"
    );
    Ok(name)
}

fn short(digest: &Digest) -> &str {
    &digest.digest()[..12]
}

/// docker's words for a name that is not there.
fn not_found(error: anyhow::Error, name: &Reference) -> anyhow::Error {
    match error.downcast_ref::<RegistryError>() {
        Some(refused) if refused.status == StatusCode::NOT_FOUND => {
            let text = if refused.code.is_empty() {
                "manifest unknown".to_owned()
            } else {
                refused.to_string()
            };
            anyhow::anyhow!("manifest for {} not found: {text}", name.familiar())
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::sha256;

    fn kind(media_type: &str, text: &str) -> Result<String> {
        let bytes = text.as_bytes().to_vec();
        let document = Document { media_type: media_type.into(), digest: sha256(&bytes), bytes };
        super::media_type(&document)
    }

    #[test]
    fn what_could_be_a_manifest_and_an_index_is_neither() {
        let both = r#"{"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}"#;
        assert!(kind(OCI_MANIFEST, both).is_err());
        assert!(kind(OCI_INDEX, both).is_err());
        let lie = format!(r#"{{"schemaVersion": 2, "mediaType": "{OCI_INDEX}", "manifests": []}}"#);
        assert!(kind(OCI_MANIFEST, &lie).is_err());
        assert_eq!(kind(OCI_INDEX, &lie).unwrap(), OCI_INDEX);
        assert!(kind(OCI_MANIFEST, r#"{"schemaVersion": 2, "manifests": []}"#).is_err());
    }

    #[test]
    fn a_type_that_the_registry_leaves_out_is_found() {
        let manifest = r#"{"schemaVersion": 2, "config": {}, "layers": []}"#;
        assert_eq!(kind("", manifest).unwrap(), OCI_MANIFEST);
        assert_eq!(kind("application/json", manifest).unwrap(), OCI_MANIFEST);
        assert_eq!(kind(DOCKER_MANIFEST, manifest).unwrap(), DOCKER_MANIFEST);
        assert_eq!(kind("", r#"{"schemaVersion": 2, "manifests": []}"#).unwrap(), OCI_INDEX);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in ["", "[]", "{}", "null", r#"{"schemaVersion": 1, "fsLayers": []}"#] {
            assert!(kind("", text).is_err(), "{text}");
        }
        let artifact = r#"{"schemaVersion": 2, "mediaType": "a/b", "config": {}, "layers": []}"#;
        assert!(kind("", artifact).unwrap_err().to_string().contains("a/b"));
    }
}
