//! `push`: an image of the store to its registry, blobs as they are.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oci_spec::image::{Descriptor, Digest};
use url::Url;

use super::client::Client;
use super::denied;
use super::http::RegistryError;
use super::progress::{Line, Output, Progress};
use super::settings::Settings;
use crate::image::reference::Reference;
use crate::image::store::{Image, Store};

/// docker sends so many layers at once.
const WORKERS: usize = 5;
/// After a break the rest is sent in parts of this size, so that the next break costs less.
const PART: u64 = 16 << 20;
/// So often an upload is gone on with.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

struct Job<'a> {
    blob: &'a Descriptor,
    /// Another repository of the registry that has it.
    from: Option<String>,
    line: Mutex<Option<Line<'a>>>,
}

/// Sends the image of that name to its registry; `insecure` are the registries of
/// `--insecure-registry`.
///
/// # Errors
/// Those of the registry, and when there is no image of that name.
pub fn push(store: &Store, name: &Reference, insecure: &[String], output: Output) -> Result<()> {
    let _hold = store.hold()?;
    let repository = &name.repository;
    let familiar = name.familiar();
    let image = store.find(&name.to_string())?;
    let image = image.with_context(|| format!("tag does not exist: {familiar}"))?;
    let progress = Progress::new(output);
    progress.say(format_args!("The push refers to repository [{}/{repository}]", name.registry));
    let manifest = store.manifest(&image.manifest)?;
    let sources = sources(store, name)?;
    let mut scopes = vec![format!("repository:{repository}:pull,push")];
    let source_of = |digest: &Digest| {
        let mut having = sources.iter().filter(|(_, digests)| digests.contains(digest));
        having.next().map(|(repository, _)| repository.clone())
    };
    let mut seen = HashSet::new();
    let mut jobs = Vec::new();
    for layer in &image.layers {
        if seen.insert(layer.blob.digest().clone()) {
            let line = Mutex::new(Some(progress.line(&layer.diff_id.digest()[..12], "Preparing")));
            let from = source_of(layer.blob.digest());
            scopes.extend(from.iter().map(|from| format!("repository:{from}:pull")));
            jobs.push(Job { blob: &layer.blob, from, line });
        }
    }
    scopes.sort();
    scopes.dedup();
    let may_not = |error| denied(error, name, "push");
    let settings = Settings::load(insecure)?;
    let client = Client::connect(settings, &name.registry, scopes).map_err(may_not)?;
    let upload = Upload { store, client: &client, repository };
    upload.all(&jobs).map_err(may_not)?;
    upload.config(manifest.config())?;
    let bytes = store.read(image.manifest.digest())?;
    let size = bytes.len();
    let tag = match (&name.tag, &name.digest) {
        (Some(tag), _) => tag.clone(),
        (None, Some(digest)) => digest.to_string(),
        (None, None) => "latest".to_owned(),
    };
    let media_type = image.manifest.media_type().to_string();
    client
        .put_manifest(repository, &tag, &media_type, bytes)
        .with_context(|| format!("push the manifest of {familiar}"))?;
    remember(store, name, &image)?;
    progress.say(format_args!("{tag}: digest: {} size: {size}", image.manifest.digest()));
    Ok(())
}

/// The registry has that digest for the name now: `inspect` shows it.
fn remember(store: &Store, name: &Reference, image: &Image) -> Result<()> {
    let now = store.find(&name.to_string())?;
    if now.is_some_and(|now| now.manifest.digest() == image.manifest.digest()) {
        let digest = Some(image.manifest.digest().clone());
        store.tag(&Reference { digest, ..name.clone() }, &image.manifest)?;
    }
    Ok(())
}

/// The other repositories at that registry whose images are here, with their blobs.
fn sources(store: &Store, name: &Reference) -> Result<Vec<(String, HashSet<Digest>)>> {
    let mut found: Vec<(String, HashSet<Digest>)> = Vec::new();
    for image in store.images()? {
        let digests = || image.layers.iter().map(|layer| layer.blob.digest().clone());
        for other in names_elsewhere(&image, name) {
            match found.iter_mut().find(|(repository, _)| *repository == other) {
                Some((_, all)) => all.extend(digests()),
                None => found.push((other, digests().collect())),
            }
        }
    }
    Ok(found)
}

fn names_elsewhere(image: &Image, name: &Reference) -> Vec<String> {
    let names = image.names.iter();
    let others = names
        .filter(|other| other.registry == name.registry && other.repository != name.repository);
    others.map(|other| other.repository.clone()).collect()
}

struct Upload<'a> {
    store: &'a Store,
    client: &'a Client,
    repository: &'a str,
}

impl Upload<'_> {
    fn all(&self, jobs: &[Job]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let first_error = Mutex::new(None);
        let lock = || first_error.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if lock().is_some() {
                    return;
                }
                if let Err(error) = self.layer(job) {
                    lock().get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..WORKERS.min(jobs.len()) {
                scope.spawn(work);
            }
        });
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn layer(&self, job: &Job) -> Result<()> {
        let line = job.line.lock().unwrap_or_else(PoisonError::into_inner).take();
        let line = line.expect("each job is taken once");
        if self.client.has_blob(self.repository, job.blob.digest())? {
            line.end("Layer already exists");
            return Ok(());
        }
        let from = job.from.as_deref();
        match self.client.begin_upload(self.repository, job.blob.digest(), from)? {
            None => line.end(&format!("Mounted from {}", from.unwrap_or_default())),
            Some(place) => {
                line.count("Pushing", 0, job.blob.size());
                self.send(job.blob, &place, &|more| line.advance(more))?;
                line.end("Pushed");
            }
        }
        Ok(())
    }

    fn config(&self, blob: &Descriptor) -> Result<()> {
        if self.client.has_blob(self.repository, blob.digest())? {
            return Ok(());
        }
        match self.client.begin_upload(self.repository, blob.digest(), None)? {
            None => Ok(()),
            Some(place) => self.send(blob, &place, &|_| {}),
        }
    }

    /// In one piece; what a break left out follows in parts.
    fn send(&self, blob: &Descriptor, place: &Url, sent: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let what = || format!("upload {}", blob.digest());
        let file = self.store.blob(blob.digest())?;
        let found = file.metadata().with_context(what)?.len();
        ensure!(
            found == blob.size(),
            "{}: the file has {found} bytes, not {}; pull the image again",
            blob.digest(),
            blob.size()
        );
        let Err(error) = self.client.upload(place, blob, &file, sent) else { return Ok(()) };
        if !may_go_on(&error) {
            return Err(error).with_context(what);
        }
        self.go_on(blob, &file, place, sent, error).with_context(what)
    }

    fn go_on(
        &self,
        blob: &Descriptor,
        file: &File,
        place: &Url,
        sent: &(dyn Fn(u64) + Sync),
        mut error: anyhow::Error,
    ) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            sleep(pause);
            pause *= 2;
            // The last answer may be all that was lost.
            if self.client.has_blob(self.repository, blob.digest())? {
                return Ok(());
            }
            match self.rest(blob, file, place, sent) {
                Ok(()) => return Ok(()),
                Err(again) if may_go_on(&again) => error = again,
                Err(again) => return Err(again),
            }
        }
        Err(error)
    }

    fn rest(
        &self,
        blob: &Descriptor,
        file: &File,
        place: &Url,
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let (mut offset, mut place) = match self.client.uploaded(place) {
            Ok(found) => found,
            // It forgot that upload: a new one.
            Err(error) if status_of(&error) == Some(404) => {
                match self.client.begin_upload(self.repository, blob.digest(), None)? {
                    Some(place) => (0, place),
                    None => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        };
        while offset < blob.size() {
            let size = PART.min(blob.size() - offset);
            place = self.client.upload_part(&place, file, offset, size, sent)?;
            offset += size;
        }
        self.client.end_upload(&place, blob.digest())
    }
}

fn status_of(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<RegistryError>().map(|refused| refused.status.as_u16())
}

/// Whether the connection broke, or the registry was in trouble: not when it refused.
fn may_go_on(error: &anyhow::Error) -> bool {
    match status_of(error) {
        // Too large in one piece, or a server in between gave up.
        Some(status) => matches!(status, 408 | 413 | 416 | 429 | 500..=599),
        None => error.downcast_ref::<ureq::Error>().is_some(),
    }
}
