//! Who we are for a registry: docker's `config.json`, and the credential helpers that it names.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::image::reference::DEFAULT_REGISTRY;

/// docker's name for docker.io among its credentials.
const DEFAULT_SERVER: &str = "https://index.docker.io/v1/";
/// What a helper gives as the user's name of an identity token.
const TOKEN_USER: &str = "<token>";

/// What proves to a registry who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password.
    Basic {
        /// The name.
        user: String,
        /// The password, or a token in its place.
        password: String,
    },
    /// What the registry's issuer of tokens gave at `login` (OAuth2's refresh token).
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// As in the header `Authorization: Basic`.
    #[must_use]
    pub fn basic(user: &str, password: &str) -> String {
        STANDARD.encode(format!("{user}:{password}"))
    }
}

/// docker's `config.json`; what we don't know of it stays as it is.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    values: Map<String, Value>,
}

/// What the protocol of the helpers passes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    username: String,
    secret: String,
}

impl ConfigFile {
    /// Reads it, from `$DOCKER_CONFIG` or `~/.docker`; it is empty if it isn't there.
    ///
    /// # Errors
    /// When it can't be read or understood.
    pub fn load() -> Result<Self> {
        let folder = match (std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME")) {
            (Some(folder), _) if !folder.is_empty() => PathBuf::from(folder),
            (_, Some(home)) => PathBuf::from(home).join(".docker"),
            // Services have no HOME.
            _ => PathBuf::from("/root/.docker"),
        };
        Self::read(folder.join("config.json"))
    }

    fn read(path: PathBuf) -> Result<Self> {
        let values = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path, values })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The helper that keeps the credentials of a registry, if one does.
    #[must_use]
    pub fn helper(&self, registry: &str) -> Option<&str> {
        let helpers = self.values.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| {
            helpers.iter().find(|(key, _)| host_of(key) == host_of(registry)).map(|(_, name)| name)
        });
        let name = own.or_else(|| self.values.get("credsStore")).and_then(Value::as_str);
        name.filter(|name| !name.is_empty())
    }

    /// Our credentials for a registry.
    ///
    /// # Errors
    /// When its helper fails, or when they can't be understood.
    pub fn get(&self, registry: &str) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helper(registry) {
            return get_from_helper(helper, server(registry));
        }
        let Some(auths) = self.values.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let Some((key, entry)) = auths.iter().find(|(key, _)| host_of(key) == host_of(registry))
        else {
            return Ok(None);
        };
        let text =
            |field: &str| entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::Identity(token.to_owned())));
        }
        if let (Some(user), Some(password)) = (text("username"), text("password")) {
            let (user, password) = (user.to_owned(), password.to_owned());
            return Ok(Some(Credentials::Basic { user, password }));
        }
        let Some(auth) = text("auth") else { return Ok(None) };
        let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':'))
        else {
            bail!(
                "{}: auths/{key}/auth is not a user and a password in base64",
                self.path.display()
            );
        };
        let (user, password) = (user.to_owned(), password.trim_end_matches('\0').to_owned());
        Ok(Some(Credentials::Basic { user, password }))
    }

    /// Keeps credentials, with the registry's helper if it has one.
    ///
    /// # Errors
    /// When the helper fails or the file can't be written.
    pub fn store(&mut self, registry: &str, credentials: &Credentials, user: &str) -> Result<()> {
        let key = server(registry).to_owned();
        if let Some(helper) = self.helper(registry) {
            let (username, secret) = match credentials {
                Credentials::Basic { user, password } => (user.clone(), password.clone()),
                Credentials::Identity(token) => (TOKEN_USER.to_owned(), token.clone()),
            };
            let secret = Secret { server_url: key, username, secret };
            run_helper(helper, "store", &serde_json::to_string(&secret)?)?;
            return Ok(());
        }
        let mut entry = Map::new();
        match credentials {
            Credentials::Basic { user, password } => {
                entry.insert("auth".into(), Credentials::basic(user, password).into());
            }
            Credentials::Identity(token) => {
                entry.insert("auth".into(), Credentials::basic(user, "").into());
                entry.insert("identitytoken".into(), token.as_str().into());
            }
        }
        self.change_auths(|auths| {
            auths.retain(|other, _| host_of(other) != host_of(&key));
            auths.insert(key, entry.into());
        })
    }

    /// Forgets credentials; whether there were any.
    ///
    /// # Errors
    /// When the helper fails or the file can't be written.
    pub fn erase(&mut self, registry: &str) -> Result<bool> {
        if self.get(registry)?.is_none() {
            return Ok(false);
        }
        if let Some(helper) = self.helper(registry) {
            run_helper(helper, "erase", server(registry))?;
            return Ok(true);
        }
        self.change_auths(|auths| auths.retain(|key, _| host_of(key) != host_of(registry)))?;
        Ok(true)
    }

    /// Reads the file again under a lock, changes it, and exchanges it.
    fn change_auths(&mut self, change: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
        let folder = self.path.parent().expect("it is in a folder").to_owned();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make folder {}", folder.display()))?;
        // Users link it to where they keep all their settings: the link stays.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().expect("it is in a folder").to_owned();
        let lock = File::open(&folder).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.with_context(|| format!("lock {}", folder.display()))?;
        self.values = Self::read(self.path.clone())?.values;
        let auths = self.values.entry("auths").or_insert_with(|| Map::new().into());
        let Some(auths) = auths.as_object_mut() else {
            bail!("{}: auths is no object", self.path.display());
        };
        change(auths);
        let text = serde_json::to_vec_pretty(&self.values)?;
        // Made for its owner's eyes alone.
        let mut new = tempfile::NamedTempFile::new_in(&folder)
            .with_context(|| format!("make a file in {}", folder.display()))?;
        new.write_all(&text)
            .and_then(|()| new.as_file().set_permissions(fs::Permissions::from_mode(0o600)))
            .and_then(|()| new.as_file().sync_all())
            .with_context(|| format!("write {}", path.display()))?;
        new.persist(&path).with_context(|| format!("write {}", path.display()))?;
        Ok(())
    }
}

/// What docker calls a registry in its file.
fn server(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DEFAULT_SERVER } else { registry }
}

/// The host of a key, which may be a URL.
fn host_of(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = key.split('/').next().unwrap_or(key);
    if host == "index.docker.io" || host == "registry-1.docker.io" {
        DEFAULT_REGISTRY
    } else {
        host
    }
}

fn get_from_helper(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let Some(text) = run_helper(helper, "get", server)? else { return Ok(None) };
    let secret: Secret = serde_json::from_str(&text)
        .with_context(|| format!("understand what docker-credential-{helper} says"))?;
    Ok(match (secret.username, secret.secret) {
        (user, _) if user.is_empty() => None,
        (user, token) if user == TOKEN_USER => Some(Credentials::Identity(token)),
        (user, password) => Some(Credentials::Basic { user, password }),
    })
}

/// What a helper says to `input`; nothing if it doesn't know the registry.
fn run_helper(helper: &str, verb: &str, input: &str) -> Result<Option<String>> {
    ensure!(!helper.contains('/'), "credential helper {helper:?}: its name can't have a slash");
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("start {program}, which docker's config.json names"))?;
    let sent = child.stdin.take().expect("is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        sent.with_context(|| format!("write to {program}"))?;
        return Ok(Some(said));
    }
    // The words that the helpers' protocol prescribes.
    if said.contains("credentials not found") {
        return Ok(None);
    }
    bail!("{program} {verb}: {}: {said}", output.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, ConfigFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker/config.json");
        if !text.is_empty() {
            fs::create_dir(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        (dir, ConfigFile::read(path).unwrap())
    }

    fn basic(user: &str, password: &str) -> Credentials {
        Credentials::Basic { user: user.into(), password: password.into() }
    }

    #[test]
    fn s14_what_docker_wrote_is_understood() {
        let (_dir, file) = file(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "localhost:5000": {"auth": "dTpw", "identitytoken": "t"},
                "http://host.example/v2/": {"username": "n", "password": "w"},
                "bad.example": {"auth": "dQ=="}, "empty.example": {}}}"#,
        );
        assert_eq!(file.get("docker.io").unwrap(), Some(basic("u", "p:q")));
        assert_eq!(file.get("localhost:5000").unwrap(), Some(Credentials::Identity("t".into())));
        assert_eq!(file.get("host.example").unwrap(), Some(basic("n", "w")));
        assert_eq!(file.get("empty.example").unwrap(), None);
        assert_eq!(file.get("other.example").unwrap(), None);
        assert!(file.get("bad.example").unwrap_err().to_string().contains("auths/bad.example"));
    }

    #[test]
    fn s14_what_we_do_not_know_of_the_file_stays() {
        let (_dir, mut file) =
            file(r#"{"HttpHeaders": {"a": "b"}, "auths": {"x:1": {"auth": "dTpw"}}}"#);
        file.store("docker.io", &basic("me", "secret"), "me").unwrap();
        let mut again = ConfigFile::read(file.path.clone()).unwrap();
        assert_eq!(again.values["HttpHeaders"]["a"], "b");
        assert_eq!(again.values["auths"][DEFAULT_SERVER]["auth"], "bWU6c2VjcmV0");
        assert_eq!(again.get("x:1").unwrap(), Some(basic("u", "p")));
        assert!(again.erase("docker.io").unwrap());
        assert!(!again.erase("docker.io").unwrap());
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn s14_helpers_of_a_registry_come_before_that_of_all() {
        let (_dir, file) = file(r#"{"credsStore": "all", "credHelpers": {"https://a:1/": "own"}}"#);
        assert_eq!(file.helper("a:1"), Some("own"));
        assert_eq!(file.helper("b"), Some("all"));
        let error = run_helper("../sh", "get", "").unwrap_err();
        assert!(error.to_string().contains("slash"), "{error}");
    }
}
