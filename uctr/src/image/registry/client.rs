//! One registry's client: the calls of the distribution-spec, for pull, push, login and search.

use std::fs::File;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;
use ureq::http::{Method, StatusCode, header};
use url::Url;

use super::auth::{Auth, Challenge};
use super::credentials::{ConfigFile, Credentials};
use super::http::{
    Http, MAX_REDIRECTS, Outgoing, RegistryError, Response, may_be_plain, read_body,
};
use super::settings::Settings;
use crate::image::digest::Hasher;
use crate::image::reference::DEFAULT_REGISTRY;

/// Where the registry docker.io answers.
const DEFAULT_HOST: &str = "registry-1.docker.io";

/// Registries take manifests of 4 MiB.
const MAX_MANIFEST: u64 = 8 << 20;
const MAX_PAGE: u64 = 8 << 20;
/// Lists of tags and repositories come in pages.
const MAX_PAGES: usize = 10_000;

/// What manifests we understand, the better ones first.
pub const MANIFESTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Talks with one registry, about what `scopes` say. Threads may share it.
#[derive(Debug)]
pub struct Client {
    http: Http,
    auth: Auth,
    /// `https://host[:port]/`
    base: Url,
}

/// A manifest or an index as the registry gave it.
#[derive(Debug)]
pub struct Document {
    /// Of the header `Content-Type`, or of the document.
    pub media_type: String,
    /// Verified if it was asked for by digest.
    pub digest: Digest,
    /// As they came.
    pub bytes: Vec<u8>,
}

/// Whether `login` did anything.
#[derive(Debug)]
pub enum Login {
    /// The credentials are right.
    Succeeded,
    /// They are, and the registry gave an identity token in their place.
    Identity(String),
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Repositories {
    repositories: Option<Vec<String>>,
}

impl Client {
    /// Finds out how the registry is talked to, with the credentials of docker's config.json.
    ///
    /// # Errors
    /// When it doesn't answer, or doesn't let us in.
    pub fn connect(settings: Settings, registry: &str, scopes: Vec<String>) -> Result<Self> {
        let credentials = ConfigFile::load()?.get(registry)?;
        let (client, challenge) = Self::open(settings, registry, credentials, scopes)?;
        if let Some(challenge) = challenge {
            client.auth.answer(&client.http, &challenge)?;
        }
        Ok(client)
    }

    /// Proves credentials to a registry.
    ///
    /// # Errors
    /// When it refuses them.
    pub fn login(settings: Settings, registry: &str, credentials: Credentials) -> Result<Login> {
        let (client, challenge) = Self::open(settings, registry, Some(credentials), Vec::new())?;
        let Some(challenge) = challenge else { return Ok(Login::Succeeded) };
        let identity = client.auth.identity(&client.http, &challenge)?;
        client.auth.answer(&client.http, &challenge)?;
        let outgoing = Outgoing::get(client.url("")?);
        let status = client.send(outgoing)?.status();
        ensure!(
            status.is_success(),
            "login attempt to {} failed with status: {status}",
            client.url("")?
        );
        Ok(identity.map_or(Login::Succeeded, Login::Identity))
    }

    /// Asks `/v2/`: by TLS, or without if that is allowed and the other side speaks none.
    fn open(
        settings: Settings,
        registry: &str,
        credentials: Option<Credentials>,
        scopes: Vec<String>,
    ) -> Result<(Self, Option<Challenge>)> {
        let host = if registry == DEFAULT_REGISTRY { DEFAULT_HOST } else { registry };
        let base = Url::parse(&format!("https://{host}/"))
            .with_context(|| format!("registry {registry:?}"))?;
        let http = Http::new(settings, &base);
        let mut client = Self { http, auth: Auth::new(credentials, scopes), base };
        // A name without a port is port 80 then, as docker has it.
        let plain = Url::parse(&format!("http://{host}/"))?;
        let outgoing = Outgoing::get(client.url("")?);
        let answer = if client.http.settings().allows_plain(&plain) {
            match client.http.exchange_once(&outgoing) {
                // Whoever speaks no TLS says anything, or nothing, to its first bytes.
                Err(error) if may_be_plain(&error) => {
                    client.base = plain;
                    client.http.exchange(&Outgoing::get(client.url("")?))
                }
                other => other.map_err(|error| client.http.explain(&outgoing, error)),
            }
        } else {
            client.http.exchange(&outgoing)
        };
        let outgoing = Outgoing::get(client.url("")?);
        let mut response = answer?;
        let challenge = match response.status() {
            StatusCode::UNAUTHORIZED => {
                let challenge = Challenge::of(response.headers());
                Some(challenge.ok_or_else(|| RegistryError::of(&outgoing, &mut response))?)
            }
            // Whoever has no such page may still have manifests; others tell what is wrong.
            status if status.is_success() || status == StatusCode::NOT_FOUND => None,
            _ => return Err(RegistryError::of(&outgoing, &mut response).into()),
        };
        Ok((client, challenge))
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.base.join("v2/")?.join(path).with_context(|| format!("the URL of {path}"))
    }

    /// Where a `Location` of the registry leads to.
    fn follow(&self, from: &Url, response: &Response) -> Result<Url> {
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        let location = location.with_context(|| format!("{from}: there is no Location"))?;
        let url = from.join(location).with_context(|| format!("{from}: Location {location:?}"))?;
        self.http.check(&url)?;
        Ok(url)
    }

    /// Sends with our credentials, and only to the registry itself; follows redirects of what is
    /// only read.
    fn send(&self, mut outgoing: Outgoing) -> Result<Response> {
        let is_read = matches!(outgoing.method, Method::GET | Method::HEAD);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_here(&mut outgoing)?;
            if !(is_read && is_redirect(response.status())) {
                return Ok(response);
            }
            let url = self.follow(&outgoing.url, &response)?;
            outgoing.url = url;
        }
        bail!("{}: more than {MAX_REDIRECTS} redirects", outgoing.url)
    }

    fn send_here(&self, outgoing: &mut Outgoing) -> Result<Response> {
        if outgoing.url.origin() != self.base.origin() {
            outgoing.remove_authorization();
            return self.http.exchange(outgoing);
        }
        if let Some(header) = self.auth.header() {
            outgoing.header("authorization", header);
        }
        let response = self.http.exchange(outgoing)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // The token is too old, or doesn't allow this.
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(response) };
        let is_refused = challenge == Challenge::Basic && self.auth.header().is_some();
        if is_refused {
            return Ok(response);
        }
        self.auth.answer(&self.http, &challenge)?;
        if let Some(header) = self.auth.header() {
            outgoing.header("authorization", header);
        }
        self.http.exchange(outgoing)
    }

    /// As [`Client::send`]; any other status than these is an error.
    fn expect(&self, outgoing: Outgoing, statuses: &[u16]) -> Result<Response> {
        let shown = Outgoing::same_place(&outgoing);
        let mut response = self.send(outgoing)?;
        if statuses.contains(&response.status().as_u16()) {
            return Ok(response);
        }
        Err(RegistryError::of(&shown, &mut response).into())
    }

    /// A manifest or an index, by tag or digest.
    ///
    /// # Errors
    /// Those of the registry, and when it is not what was asked for.
    pub fn manifest(&self, repository: &str, tag_or_digest: &str) -> Result<Document> {
        let mut outgoing =
            Outgoing::get(self.url(&format!("{repository}/manifests/{tag_or_digest}"))?);
        outgoing.header("accept", MANIFESTS.join(", "));
        let mut response = self.expect(outgoing, &[200])?;
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(|value| value.split(';').next().unwrap_or(value).trim().to_owned())
        };
        let media_type = header("content-type").unwrap_or_default();
        let promised = header("docker-content-digest").and_then(|text| Digest::try_from(text).ok());
        let bytes = read_body(&mut response, MAX_MANIFEST).context("the manifest")?;
        // What the user wrote counts; what the registry says of a tag is checked too.
        let expected = Digest::try_from(tag_or_digest).ok().or(promised);
        let mut hasher = match &expected {
            Some(expected) => Hasher::like(expected)?,
            None => Hasher::sha256(),
        };
        hasher.update(&bytes);
        let digest = hasher.finish();
        if let Some(expected) = expected {
            ensure!(
                digest == expected,
                "manifest {tag_or_digest}: its digest is {digest}, not {expected}: it was damaged on \
                 its way or changed"
            );
        }
        Ok(Document { media_type, digest, bytes })
    }

    /// Whether the registry has a manifest or a blob, without getting it.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn has_blob(&self, repository: &str, digest: &Digest) -> Result<bool> {
        let outgoing = Outgoing::head(self.url(&format!("{repository}/blobs/{digest}"))?);
        Ok(self.expect(outgoing, &[200, 404])?.status() == StatusCode::OK)
    }

    /// A blob from a byte on; the status is 206 if it really begins there.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn blob(&self, repository: &str, digest: &Digest, offset: u64) -> Result<Response> {
        let mut outgoing = Outgoing::get(self.url(&format!("{repository}/blobs/{digest}"))?);
        if offset > 0 {
            outgoing.header("range", format!("bytes={offset}-"));
        }
        self.expect(outgoing, &[200, 206, 416])
    }

    /// Asks for a place to send a blob to; nothing if the registry took it from another repository.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn begin_upload(
        &self,
        repository: &str,
        digest: &Digest,
        from: Option<&str>,
    ) -> Result<Option<Url>> {
        let mut url = self.url(&format!("{repository}/blobs/uploads/"))?;
        if let Some(from) = from {
            let mut query = url.query_pairs_mut();
            query.append_pair("mount", digest.as_ref()).append_pair("from", from);
        }
        let outgoing = Outgoing::post(url.clone(), Vec::new(), "application/octet-stream");
        let response = self.expect(outgoing, &[201, 202])?;
        if response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        self.follow(&url, &response).map(Some)
    }

    /// Sends a whole blob, and ends its upload.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn upload(
        &self,
        place: &Url,
        blob: &Descriptor,
        file: &File,
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let url = with_digest(place, blob.digest());
        let outgoing = Outgoing::part(Method::PUT, url, file, 0, blob.size(), sent);
        self.expect(outgoing, &[201, 204]).map(drop)
    }

    /// Sends a part of a blob; gives the place of the next.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn upload_part(
        &self,
        place: &Url,
        file: &File,
        offset: u64,
        size: u64,
        sent: &(dyn Fn(u64) + Sync),
    ) -> Result<Url> {
        let mut outgoing = Outgoing::part(Method::PATCH, place.clone(), file, offset, size, sent);
        outgoing.header("content-range", format!("{offset}-{}", offset + size - 1));
        let response = self.expect(outgoing, &[202, 204])?;
        self.follow(place, &response)
    }

    /// How many bytes of an upload arrived, and where the next go.
    ///
    /// # Errors
    /// Those of the registry, also when it forgot the upload.
    pub fn uploaded(&self, place: &Url) -> Result<(u64, Url)> {
        let response = self.expect(Outgoing::get(place.clone()), &[204])?;
        let range = response.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let last = range.and_then(|range| range.rsplit_once('-')?.1.parse::<u64>().ok());
        // Nothing yet is `0-0` too.
        let offset = last.map_or(0, |last| if last == 0 { 0 } else { last + 1 });
        let next = match response.headers().contains_key(header::LOCATION) {
            true => self.follow(place, &response)?,
            false => place.clone(),
        };
        Ok((offset, next))
    }

    /// Ends an upload that was sent in parts.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn end_upload(&self, place: &Url, digest: &Digest) -> Result<()> {
        let url = with_digest(place, digest);
        let outgoing = Outgoing::put(url, Vec::new(), "application/octet-stream");
        self.expect(outgoing, &[201, 204]).map(drop)
    }

    /// Names a manifest; its blobs must be there.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<()> {
        let url = self.url(&format!("{repository}/manifests/{tag}"))?;
        self.expect(Outgoing::put(url, bytes, media_type), &[200, 201, 202]).map(drop)
    }

    /// All tags of a repository.
    ///
    /// # Errors
    /// Those of the registry.
    pub fn tags(&self, repository: &str) -> Result<Vec<String>> {
        self.pages(&format!("{repository}/tags/list"), usize::MAX, |text| {
            Ok(serde_json::from_slice::<Tags>(text)?.tags.unwrap_or_default())
        })
    }

    /// The first `limit` repositories whose name has `term`.
    ///
    /// # Errors
    /// Those of the registry; many have no catalog.
    pub fn repositories(&self, term: &str, limit: usize) -> Result<Vec<String>> {
        self.pages("_catalog?n=1000", limit, |text| {
            let all = serde_json::from_slice::<Repositories>(text)?.repositories;
            Ok(all.unwrap_or_default().into_iter().filter(|name| name.contains(term)).collect())
        })
    }

    fn pages(
        &self,
        path: &str,
        limit: usize,
        read: impl Fn(&[u8]) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let mut url = self.url(path)?;
        let mut all = Vec::new();
        for _ in 0..MAX_PAGES {
            let mut response = self.expect(Outgoing::get(url.clone()), &[200])?;
            let next = next_page(&url, &response);
            let text = read_body(&mut response, MAX_PAGE)?;
            let page = read(&text).with_context(|| format!("{url}: what it says is no list"))?;
            all.extend(page);
            match next {
                Some(next) if all.len() < limit && next.origin() == self.base.origin() => {
                    url = next
                }
                _ => break,
            }
        }
        all.truncate(limit);
        Ok(all)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn with_digest(place: &Url, digest: &Digest) -> Url {
    let mut url = place.clone();
    url.query_pairs_mut().append_pair("digest", digest.as_ref());
    url
}

/// `Link: <URL>; rel="next"`
fn next_page(from: &Url, response: &Response) -> Option<Url> {
    let link = response.headers().get(header::LINK)?.to_str().ok()?;
    let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| from.join(target).ok()).flatten()
}
