//! The names of images: `[registry[:port]/][user/]name[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Digest, DigestAlgorithm};

/// The registry of names that have none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The user of names of that registry that have none.
const DEFAULT_USER: &str = "library";
/// The tag of names without one.
const DEFAULT_TAG: &str = "latest";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// A name with all that it leaves out filled in. All parts are plain ASCII, without anything that
/// means something in a path, in a URL or on a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `docker.io`, `localhost:5000` …
    pub registry: String,
    /// `library/busybox`, `user/name` …
    pub repository: String,
    /// Is `latest` where neither a tag nor a digest was given.
    pub tag: Option<String>,
    /// Of the manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// As users write it: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.familiar_repository() + &self.suffix()
    }

    /// [`Reference::familiar`] without tag and digest: the column REPOSITORY.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        match self.repository.strip_prefix(DEFAULT_USER).and_then(|rest| rest.strip_prefix('/')) {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.repository.clone(),
        }
    }

    /// Whether nothing says which image of the repository is meant, as in `busybox`.
    #[must_use]
    pub fn is_bare(text: &str) -> bool {
        !text.contains('@') && !text.rsplit('/').next().unwrap_or_default().contains(':')
    }

    fn suffix(&self) -> String {
        let mut text = String::new();
        if let Some(tag) = &self.tag {
            text = format!(":{tag}");
        }
        if let Some(digest) = &self.digest {
            text = format!("{text}@{digest}");
        }
        text
    }
}

/// In full.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| format!("{text:?}"))
    }
}

fn parse(text: &str) -> Result<Reference> {
    ensure!(
        !(text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())),
        "invalid repository name: 64 hexadecimal digits are an image's ID"
    );
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(parse_digest(digest)?)),
        None => (text, None),
    };
    // A colon before the last slash is that of a registry's port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if let Some(tag) = tag {
        ensure!(is_tag(tag), "invalid reference format");
    }
    let (registry, repository) = split_registry(name);
    ensure!(is_registry(registry), "invalid reference format");
    let lower = repository.to_ascii_lowercase();
    ensure!(lower.split('/').all(is_component), "invalid reference format");
    ensure!(lower == repository, "invalid reference format: repository name must be lowercase");
    let repository = match registry == DEFAULT_REGISTRY && !repository.contains('/') {
        true => format!("{DEFAULT_USER}/{repository}"),
        false => repository.to_owned(),
    };
    if repository.len() > MAX_REPOSITORY {
        bail!("repository name must not be more than {MAX_REPOSITORY} characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG),
        _ => tag,
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
}

/// What is before the first slash is a registry if it can't be a user.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((registry, rest))
            if registry == "localhost"
                || registry
                    .contains(|c: char| matches!(c, '.' | ':') || c.is_ascii_uppercase()) =>
        {
            // Its older name; docker's credentials have it still.
            let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
            (registry, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn parse_digest(text: &str) -> Result<Digest> {
    let digest = Digest::try_from(text).context("invalid reference format")?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512 => Ok(digest),
        _ => bail!("invalid reference format: unsupported digest algorithm"),
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// A host's name, an IPv4 address, or an IPv6 address in brackets, and perhaps a port.
pub(crate) fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (None, port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| port.parse::<u16>().is_ok() && !port.starts_with('+'))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = text.trim_matches(alphanumeric);
    let ends = text.starts_with(alphanumeric) && text.ends_with(alphanumeric);
    ends && inner.split(alphanumeric).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn s2_what_a_name_leaves_out_is_filled_in() {
        for (text, full, familiar) in [
            ("ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
            ("user/name", "docker.io/user/name:latest", "user/name:latest"),
            ("docker.io/ubuntu:14.04", "docker.io/library/ubuntu:14.04", "ubuntu:14.04"),
            ("index.docker.io/library/a", "docker.io/library/a:latest", "a:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
            ("127.0.0.1:5000/a__b/c---d.e", "127.0.0.1:5000/a__b/c---d.e:latest", ""),
            ("Registry/web", "Registry/web:latest", "Registry/web:latest"),
            ("a:V_1.0-x", "docker.io/library/a:V_1.0-x", "a:V_1.0-x"),
        ] {
            let name: Reference = text.parse().unwrap();
            assert_eq!(name.to_string(), full);
            if !familiar.is_empty() {
                assert_eq!(name.familiar(), familiar);
            }
            assert_eq!(name.to_string().parse::<Reference>().unwrap(), name);
        }
    }

    #[test]
    fn s2_a_digest_needs_no_tag() {
        let name: Reference = format!("redis@sha256:{HEX}").parse().unwrap();
        assert_eq!((name.tag.as_deref(), name.digest.is_some()), (None, true));
        assert_eq!(name.familiar(), format!("redis@sha256:{HEX}"));
        let name: Reference = format!("redis:4.0@sha256:{HEX}").parse().unwrap();
        assert_eq!((name.tag.as_deref(), name.digest.is_some()), (Some("4.0"), true));
    }

    #[test]
    fn s2_what_is_no_name_is_refused_in_dockers_words() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        let digest = format!("a@md5:{HEX}");
        for (text, words) in [
            ("Ubuntu", "repository name must be lowercase"),
            ("localhost:5000/Web", "repository name must be lowercase"),
            ("ubuntu:latest:14.04", "invalid reference format"),
            ("", "invalid reference format"),
            (":tag", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a/", "invalid reference format"),
            ("/a", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("../a", "invalid reference format"),
            ("a/../b", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("a:é", "invalid reference format"),
            ("a\u{1b}[2J", "invalid reference format"),
            ("a@sha256:12", "invalid reference format"),
            ("a@", "invalid reference format"),
            ("localhost:/a", "invalid reference format"),
            ("localhost:99999/a", "invalid reference format"),
            ("user@host.example/a", "invalid reference format"),
            ("http://localhost/a", "invalid reference format"),
            ("[::1/a", "invalid reference format"),
            (digest.as_str(), "invalid reference format"),
            (long.as_str(), "must not be more than 255 characters"),
            (tag.as_str(), "invalid reference format"),
            (HEX, "invalid repository name"),
        ] {
            let error = format!("{:#}", text.parse::<Reference>().unwrap_err());
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
