//! What is configured of registries: who may be talked to without TLS, and whose certificates are
//! believed. The files are docker's, in `/etc/ultari` or else `/etc/docker` (or the folder that
//! `UCTR_CONFIG_DIR` names, alone):
//!
//! ```text
//! daemon.json          its key "insecure-registries" alone
//! certs.d/HOST[:PORT]/ *.crt: CAs; NAME.cert with NAME.key: our certificate for that host
//! ```

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{
    Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsConfigBuilder, parse_pem,
};
use url::{Host, Url};

const FOLDERS: [&str; 2] = ["/etc/ultari", "/etc/docker"];

/// Whoever is silent for so long has gone.
const SILENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(30);
/// This machine answers sooner. It can be that it speaks no TLS and waits for the end of a line.
const CONNECT_HERE: Duration = Duration::from_secs(10);

/// What is configured of registries.
#[derive(Debug, Default)]
pub struct Settings {
    folders: Vec<PathBuf>,
    /// `host[:port]` or networks, as in docker's daemon.json.
    insecure: Vec<String>,
    system_roots: OnceLock<Vec<Certificate<'static>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    insecure_registries: Vec<String>,
}

impl Settings {
    /// Reads what is configured; `insecure` are those of `--insecure-registry`.
    ///
    /// # Errors
    /// When a file can't be read or understood.
    pub fn load(insecure: &[String]) -> Result<Self> {
        let folders = match std::env::var_os("UCTR_CONFIG_DIR") {
            Some(folder) => vec![PathBuf::from(folder)],
            None => FOLDERS.map(PathBuf::from).to_vec(),
        };
        let mut insecure = insecure.to_vec();
        for folder in &folders {
            let path = folder.join("daemon.json");
            match fs::read(&path) {
                Ok(text) => {
                    let file: File = serde_json::from_slice(&text)
                        .with_context(|| format!("read {}", path.display()))?;
                    insecure.extend(file.insecure_registries);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            }
        }
        Ok(Self { folders, insecure, system_roots: OnceLock::new() })
    }

    /// Whether the user said that this host needs neither TLS nor a certificate that we know.
    #[must_use]
    pub fn is_insecure(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let port = url.port_or_known_default().unwrap_or_default();
        let named = format!("{host}:{port}");
        let mut networks = Vec::new();
        for entry in &self.insecure {
            if let Ok(network) = entry.parse::<IpNet>() {
                networks.push(network);
            } else if entry.eq_ignore_ascii_case(&named)
                || (url.port().is_none() && entry.eq_ignore_ascii_case(host))
            {
                return true;
            }
        }
        let inside = |address: IpAddr| networks.iter().any(|network| network.contains(&address));
        !networks.is_empty()
            && url.socket_addrs(|| None).is_ok_and(|found| {
                !found.is_empty() && found.iter().all(|address| inside(address.ip()))
            })
    }

    /// Whether plain HTTP may be used with this host.
    #[must_use]
    pub fn allows_plain(&self, url: &Url) -> bool {
        is_loopback(url) || self.is_insecure(url)
    }

    /// How to talk with a host.
    ///
    /// # Errors
    /// When its certificates can't be read.
    pub fn agent(&self, url: &Url) -> Result<Agent> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed by `Client`, which knows who may get what.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .user_agent(concat!("uctr/", env!("CARGO_PKG_VERSION")))
            // What is compressed is a blob, and its digest is that of the compressed bytes.
            .accept_encoding("identity");
        if is_loopback(url) {
            config = config.proxy(None).timeout_connect(Some(CONNECT_HERE));
        }
        if url.scheme() == "https" {
            config = config.tls_config(self.tls(url)?);
        }
        Ok(config.build().new_agent())
    }

    fn tls(&self, url: &Url) -> Result<TlsConfig> {
        if self.is_insecure(url) {
            return Ok(with_provider().disable_verification(true).build());
        }
        let mut roots = self.system_roots.get_or_init(system_roots).clone();
        let mut ours = None;
        for folder in self.certificate_folders(url) {
            for path in files(&folder)? {
                match path.extension().and_then(|name| name.to_str()) {
                    Some("crt") => roots.extend(certificates(&path)?),
                    Some("cert") => ours = Some(client_certificate(&path)?),
                    _ => {}
                }
            }
        }
        let config = with_provider().root_certs(RootCerts::new_with_certs(&roots));
        Ok(config.client_cert(ours).build())
    }

    /// `certs.d/host:port`, and `certs.d/host` where the port is that of the scheme.
    fn certificate_folders(&self, url: &Url) -> Vec<PathBuf> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        let mut names = vec![format!("{host}:{port}")];
        if url.port().is_none() {
            names.push(host.to_owned());
        }
        let folders = self.folders.iter();
        folders
            .flat_map(|folder| names.iter().map(|name| folder.join("certs.d").join(name)))
            .filter(|folder| folder.is_dir())
            .collect()
    }

    /// Where the user puts a CA that a host needs.
    #[must_use]
    pub fn certificate_folder(&self, url: &Url) -> PathBuf {
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        self.folders
            .first()
            .map(PathBuf::as_path)
            .unwrap_or(Path::new(""))
            .join("certs.d")
            .join(authority)
    }
}

fn with_provider() -> TlsConfigBuilder {
    let provider = rustls::crypto::ring::default_provider();
    TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(provider))
}

/// Whether it is a host that can only be this one.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

/// Those of this machine, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`. Without any, no certificate is
/// believed, and the error of the handshake says so.
fn system_roots() -> Vec<Certificate<'static>> {
    let found = rustls_native_certs::load_native_certs();
    found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.with_context(|| format!("read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) =
            item.with_context(|| format!("read {}", path.display()))?
        {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        bail!("{}: there is no certificate in PEM form", path.display());
    }
    Ok(found)
}

fn client_certificate(path: &Path) -> Result<ClientCert> {
    let chain = certificates(path)?;
    let path = path.with_extension("key");
    let text = fs::read(&path)
        .with_context(|| format!("read {}, the key of the certificate beside", path.display()))?;
    let key = PrivateKey::from_pem(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}
