//! A small HTTP server of the tests' own: a registry or an issuer of tokens that misbehaves as a
//! test wants.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lowercase.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// With 0 the connection breaks without an answer.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What `Content-Length` says, if it isn't the truth; no such header if `None`.
    pub length: Option<u64>,
    /// The body never ends.
    pub endless: bool,
    /// After the body nothing more comes, and the connection stays.
    pub stalls: bool,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// The server; it lives as long as the test's process.
#[derive(Debug)]
pub struct Rogue {
    pub address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Rogue {
    /// Answers at any port of `host`.
    pub fn at(host: &str, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = format!("{host}:{}", listener.local_addr().unwrap().port());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let handler: Arc<Handler> = Arc::new(handler);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handler) = (log.clone(), handler.clone());
                thread::spawn(move || serve(&stream.unwrap(), &log, &*handler));
            }
        });
        Self { address, seen }
    }

    pub fn new(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1", handler)
    }

    /// What came whose path contains `part`.
    pub fn seen(&self, part: &str) -> Vec<Request> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

fn serve(stream: &TcpStream, log: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    // A line never ends where TLS is tried first: that begins with 0x16.
    let is_tls = reader.fill_buf().is_ok_and(|start| start.first() == Some(&0x16));
    if is_tls || reader.read_line(&mut line).is_err() {
        return;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let [method, path, _] = words[..] else { return };
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap();
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let request = Request { method, path, headers, body };
    let reply = handler(&request);
    log.lock().unwrap().push(request.clone());
    if reply.status != 0 {
        let _ = answer(stream, &request, &reply);
    }
}

fn answer(mut stream: &TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = reply.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    stream.write_all(&reply.body)?;
    if reply.endless {
        loop {
            stream.write_all(&[0; 1 << 16])?;
        }
    }
    if reply.stalls {
        // Until the other side goes away.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = Some(body.len() as u64);
        Self { status, headers: Vec::new(), body, length, endless: false, stalls: false }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Says that there is more than comes.
    pub fn cut(mut self, at: usize) -> Self {
        self.body.truncate(at);
        self
    }
}

/// An image in memory, with one uncompressed layer.
#[derive(Clone, Debug)]
pub struct Fake {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Fake {
    /// The layer has one file, `f`.
    pub fn new(content: &[u8]) -> Self {
        Self::of_platform(content, "linux", "amd64")
    }

    pub fn of_platform(content: &[u8], os: &str, architecture: &str) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, "f", content).unwrap();
        let layer = tar.into_inner().unwrap();
        let config = json!({"architecture": architecture, "os": os,
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]}});
        let config = serde_json::to_vec(&config).unwrap();
        let mut fake = Self { layer, config, manifest: Vec::new() };
        fake.describe(|_| {});
        fake
    }

    /// Makes the manifest, changed by `lie`.
    pub fn describe(&mut self, lie: impl FnOnce(&mut Value)) {
        let blob = |kind: &str, bytes: &[u8]| {
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": sha256(bytes), "size": bytes.len()})
        };
        let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": blob("config.v1+json", &self.config),
            "layers": [blob("layer.v1.tar", &self.layer)]});
        lie(&mut manifest);
        self.manifest = serde_json::to_vec(&manifest).unwrap();
    }

    /// What an honest registry answers, for any repository and tag.
    pub fn reply(&self, request: &Request) -> Reply {
        let path = request.path.as_str();
        if path == "/v2/" {
            return Reply::new(200, "{}");
        }
        if path.contains("/manifests/") {
            return Reply::new(200, self.manifest.clone()).header("Content-Type", MANIFEST);
        }
        for blob in [&self.layer, &self.config] {
            if path.ends_with(&sha256(blob)) {
                return ranged(request, blob);
            }
        }
        Reply::new(404, "")
    }

    /// Whether the layer is asked for.
    pub fn is_layer(&self, request: &Request) -> bool {
        request.path.ends_with(&sha256(&self.layer))
    }
}

/// From the byte on that is asked for.
pub fn ranged(request: &Request, blob: &[u8]) -> Reply {
    let first = request
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match first {
        None => Reply::new(200, blob),
        Some(first) if first >= blob.len() => Reply::new(416, ""),
        Some(first) => {
            let range = format!("bytes {first}-{}/{}", blob.len() - 1, blob.len());
            Reply::new(206, &blob[first..]).header("Content-Range", &range)
        }
    }
}
