//! Requests to a registry: who is talked to how, redirects, tries, and errors in docker's words.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use ureq::{Agent, Body, SendBody};
use url::Url;

use super::settings::{Settings, is_loopback};

pub type Response = ureq::http::Response<Body>;

/// A registry redirects blobs to a store of objects, which perhaps redirects once more.
pub const MAX_REDIRECTS: usize = 5;
/// Who is busy, or doesn't answer, is asked again so often.
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
const MAX_ERROR: u64 = 64 << 10;

/// What is sent.
pub struct Outgoing<'a> {
    /// `GET` …
    pub method: Method,
    /// Where to.
    pub url: Url,
    headers: HeaderMap,
    body: Payload<'a>,
}

enum Payload<'a> {
    None,
    Bytes(Vec<u8>),
    /// A part of a file: from where on, and how many bytes.
    Part(&'a File, u64, u64, &'a (dyn Fn(u64) + Sync)),
}

impl<'a> Outgoing<'a> {
    fn new(method: Method, url: Url, body: Payload<'a>) -> Self {
        Self { method, url, headers: HeaderMap::new(), body }
    }

    /// Without a body.
    #[must_use]
    pub fn get(url: Url) -> Self {
        Self::new(Method::GET, url, Payload::None)
    }

    /// Without a body.
    #[must_use]
    pub fn head(url: Url) -> Self {
        Self::new(Method::HEAD, url, Payload::None)
    }

    /// With a small body.
    #[must_use]
    pub fn post(url: Url, body: Vec<u8>, media_type: &str) -> Self {
        let mut outgoing = Self::new(Method::POST, url, Payload::Bytes(body));
        outgoing.header("content-type", media_type.to_owned());
        outgoing
    }

    /// With a small body.
    #[must_use]
    pub fn put(url: Url, body: Vec<u8>, media_type: &str) -> Self {
        Self { method: Method::PUT, ..Self::post(url, body, media_type) }
    }

    /// With a part of a file: from where on, and how many bytes; `sent` is told of each piece.
    pub fn part(
        method: Method,
        url: Url,
        file: &'a File,
        offset: u64,
        size: u64,
        sent: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        let mut outgoing = Self::new(method, url, Payload::Part(file, offset, size, sent));
        outgoing.header("content-type", "application/octet-stream".to_owned());
        outgoing.header("content-length", size.to_string());
        outgoing
    }

    /// Adds a header, in place of one of that name.
    ///
    /// # Panics
    /// When the name is none. A value that can't be one is left out.
    pub fn header(&mut self, name: &'static str, value: String) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
    }

    /// For a host that is not to learn who we are.
    pub fn remove_authorization(&mut self) {
        self.headers.remove(header::AUTHORIZATION);
    }

    /// Method and URL alone, for messages.
    #[must_use]
    pub fn same_place(other: &Outgoing) -> Outgoing<'static> {
        Outgoing::new(other.method.clone(), other.url.clone(), Payload::None)
    }

    fn may_be_tried_again(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    /// `Get "https://host/v2/"`, as docker begins its messages.
    fn what(&self) -> String {
        let method = self.method.as_str();
        let (first, rest) = method.split_at(1);
        format!("{first}{} {:?}", rest.to_lowercase(), clean(self.url.as_str()))
    }
}

/// What a registry says when it refuses.
#[derive(Debug)]
pub struct RegistryError {
    /// Of the response.
    pub status: StatusCode,
    /// `MANIFEST_UNKNOWN` …
    pub code: String,
    text: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    errors: Vec<RefusalPart>,
    /// What issuers of tokens say.
    details: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RefusalPart {
    code: String,
    message: String,
}

impl RegistryError {
    /// Reads why.
    #[must_use]
    pub fn of(outgoing: &Outgoing, response: &mut Response) -> Self {
        let status = response.status();
        let mut body = Vec::new();
        let reader = response.body_mut().as_reader();
        let _ = reader.take(MAX_ERROR).read_to_end(&mut body);
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let words = |part: &RefusalPart| {
            let code = part.code.to_lowercase().replace('_', " ");
            clean(&format!("{code}: {}", part.message))
        };
        let text = if !refusal.errors.is_empty() {
            refusal.errors.iter().map(words).collect::<Vec<_>>().join("; ")
        } else if !refusal.details.is_empty() {
            clean(&format!("{}: {}", reason(status).to_lowercase(), refusal.details))
        } else {
            format!(
                "{}: unexpected status: {} {}",
                outgoing.what(),
                status.as_u16(),
                reason(status)
            )
        };
        let code = refusal.errors.into_iter().next().unwrap_or_default().code;
        Self { status, code, text }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for RegistryError {}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("")
}

/// Others' words may not move the cursor of our user's terminal.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().take(2000).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A body that must not be longer than `limit` bytes.
///
/// # Errors
/// When it is, or when the connection breaks.
pub fn read_body(response: &mut Response, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reader = response.body_mut().as_reader();
    reader.take(limit + 1).read_to_end(&mut bytes).context("read the registry's answer")?;
    ensure!(bytes.len() as u64 <= limit, "the registry's answer is longer than {limit} bytes");
    Ok(bytes)
}

/// Talks with a registry and whom it sends us to.
#[derive(Debug)]
pub struct Http {
    settings: Settings,
    /// One a host and scheme: each has certificates of its own.
    agents: Mutex<HashMap<String, Agent>>,
    /// The host that the user named is on this machine.
    from_loopback: bool,
}

impl Http {
    /// To talk with `registry`, and those that it names.
    #[must_use]
    pub fn new(settings: Settings, registry: &Url) -> Self {
        let from_loopback = is_loopback(registry);
        Self { settings, agents: Mutex::default(), from_loopback }
    }

    /// What is configured.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether we may go where a registry sends us.
    ///
    /// # Errors
    /// When that would be without TLS, or from outside to this machine's own services.
    pub fn check(&self, url: &Url) -> Result<()> {
        match url.scheme() {
            "https" => {}
            "http" if self.settings.allows_plain(url) => {}
            "http" => bail!(
                "{:?}: plain HTTP is only used with this machine and with registries that \
                 --insecure-registry or insecure-registries in /etc/ultari/daemon.json names",
                clean(url.as_str())
            ),
            other => bail!("{:?}: {other} is neither HTTP nor HTTPS", clean(url.as_str())),
        }
        ensure!(
            self.from_loopback || !is_loopback(url),
            "{:?}: the registry sends us to a service of this machine; that is refused",
            clean(url.as_str())
        );
        Ok(())
    }

    fn agent(&self, url: &Url) -> Result<Agent> {
        let origin = url.origin().ascii_serialization();
        if let Some(agent) = self.agents.lock().expect("nobody panics with it").get(&origin) {
            return Ok(agent.clone());
        }
        let agent = self.settings.agent(url)?;
        self.agents.lock().expect("nobody panics with it").insert(origin, agent.clone());
        Ok(agent)
    }

    /// Sends, and gets the answer. Who is busy or breaks the connection is asked again, if nothing
    /// can happen twice by that.
    ///
    /// # Errors
    /// When there is none, in docker's words.
    pub fn exchange(&self, outgoing: &Outgoing) -> Result<Response> {
        let mut pause = FIRST_PAUSE;
        let mut tries = if outgoing.may_be_tried_again() { TRIES } else { 1 };
        loop {
            tries -= 1;
            match self.exchange_once(outgoing) {
                Ok(response) if tries > 0 && is_busy(response.status()) => {
                    sleep(wished_pause(response.headers()).unwrap_or(pause));
                }
                Err(error) if tries > 0 && is_broken(&error) => sleep(pause),
                other => return other.map_err(|error| self.explain(outgoing, error)),
            }
            pause *= 3;
        }
    }

    /// Sends once.
    ///
    /// # Errors
    /// Those of ureq, as they are, and those of our own configuration.
    pub fn exchange_once(&self, outgoing: &Outgoing) -> Result<Response> {
        let mut request = Request::builder().method(&outgoing.method).uri(outgoing.url.as_str());
        if let Some(headers) = request.headers_mut() {
            headers.extend(outgoing.headers.clone());
        }
        let agent = self.agent(&outgoing.url)?;
        let response = match &outgoing.body {
            Payload::None => agent.run(request.body(())?),
            Payload::Bytes(bytes) => agent.run(request.body(bytes.as_slice())?),
            Payload::Part(file, offset, size, sent) => {
                let mut file: &File = file;
                file.seek(SeekFrom::Start(*offset)).context("read the blob")?;
                let mut reader = Reported { file: file.take(*size), sent };
                agent.run(request.body(SendBody::from_reader(&mut reader))?)
            }
        };
        Ok(response?)
    }

    /// Docker's words for what goes wrong below HTTP.
    pub fn explain(&self, outgoing: &Outgoing, error: anyhow::Error) -> anyhow::Error {
        let what = outgoing.what();
        if is_not_tls(&error) {
            return anyhow::anyhow!(
                "{what}: http: server gave HTTP response to HTTPS client; if you trust the network \
                 between, name it with --insecure-registry or in insecure-registries in \
                 /etc/ultari/daemon.json"
            );
        }
        if let Some(rustls::Error::InvalidCertificate(why)) = tls_error(&error) {
            let folder = self.settings.certificate_folder(&outgoing.url);
            let folder = folder.display();
            return anyhow::anyhow!(match why {
                rustls::CertificateError::UnknownIssuer => format!(
                    "{what}: x509: certificate signed by unknown authority; put its CA's \
                     certificate into {folder}/ca.crt"
                ),
                why => format!("{what}: x509: {why}"),
            });
        }
        error.context(what)
    }
}

/// Tells how much of a file was sent.
struct Reported<'a> {
    file: io::Take<&'a File>,
    sent: &'a (dyn Fn(u64) + Sync),
}

impl Read for Reported<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        (self.sent)(count as u64);
        Ok(count)
    }
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn wished_pause(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// Whether the connection broke, which may not happen again.
fn is_broken(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(ureq::Error::Io(error)) => {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        Some(ureq::Error::Timeout(_)) => true,
        _ => false,
    }
}

fn tls_error(error: &anyhow::Error) -> Option<&rustls::Error> {
    match error.downcast_ref()? {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// Whether whoever is there speaks something else than TLS.
fn is_not_tls(error: &anyhow::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
    )
}

/// Whether it seems to speak no TLS: not if it refuses ours, or if its certificate is wrong.
#[must_use]
pub fn may_be_plain(error: &anyhow::Error) -> bool {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    error.is::<ureq::Error>()
        && !matches!(tls_error(error), Some(AlertReceived(_) | InvalidCertificate(_)))
}
