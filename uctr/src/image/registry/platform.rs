//! Which of an index's images is for this machine, or for the one that the user named.

use std::fmt;

use anyhow::{Result, ensure};
use oci_spec::image::{Descriptor, ImageConfiguration};

use super::Platform;

/// `os/architecture[/variant]` in the words of Go, which are those of the image-spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Target {
    /// Of `--platform`, or of this machine.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(platform: &Platform) -> Result<Self> {
        let Some(text) = &platform.0 else { return Ok(Self::here()) };
        let parts: Vec<&str> = text.split('/').collect();
        let is_word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        ensure!(
            parts.len() <= 3 && parts.iter().all(is_word),
            "{text:?}: --platform is os[/architecture[/variant]], as in linux/arm64"
        );
        let here = Self::here();
        let part = |at: usize| parts.get(at).map(|part| part.to_ascii_lowercase());
        // A lone word may be the architecture too.
        let (os, architecture) = match (part(0), part(1)) {
            (Some(os), Some(architecture)) => (os, architecture),
            (Some(os), None) if os == here.os => return Ok(here),
            (Some(architecture), None) => (here.os, architecture),
            (None, _) => return Ok(here),
        };
        Ok(Self { os, ..Self::known_as(&architecture, part(2)) })
    }

    fn here() -> Self {
        let architecture = std::env::consts::ARCH;
        let variant = (architecture == "arm").then(|| "v7".to_owned());
        Self::known_as(architecture, variant)
    }

    /// Other names of the same.
    fn known_as(architecture: &str, variant: Option<String>) -> Self {
        let (architecture, variant) = match (architecture, variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", _) => ("amd64", variant),
            ("aarch64" | "arm64", None | Some("v8" | "8")) => ("arm64", None),
            ("aarch64", _) => ("arm64", variant),
            ("armhf", _) => ("arm", Some("v7".to_owned())),
            ("armel", _) => ("arm", Some("v6".to_owned())),
            ("arm", None) => ("arm", Some("v7".to_owned())),
            ("x86" | "i386", _) => ("386", None),
            ("powerpc64", _) => ("ppc64le", None),
            ("loongarch64", _) => ("loong64", None),
            (other, _) => (other, variant),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// The image of an index for it.
    #[must_use]
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let candidates = manifests.iter().filter_map(|manifest| {
            let platform = manifest.platform().as_ref()?;
            let found =
                Self::known_as(&platform.architecture().to_string(), platform.variant().clone());
            let found = Self { os: platform.os().to_string(), ..found };
            Some((self.fitness(&found)?, manifest))
        });
        // The first of equals, as docker does.
        candidates.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|best| best.1)
    }

    /// How well `found` runs here; not at all if nothing.
    fn fitness(&self, found: &Self) -> Option<u32> {
        if self.os != found.os || self.architecture != found.architecture {
            return None;
        }
        let level = |variant: &Option<String>| {
            let digits = variant.as_deref().map_or(Some("0"), |text| text.strip_prefix('v'));
            digits.and_then(|digits| digits.parse::<u32>().ok())
        };
        match (level(&self.variant), level(&found.variant)) {
            // An older processor's programs run on a newer one.
            (Some(ours), Some(theirs)) if theirs <= ours => Some(theirs),
            _ => (self.variant == found.variant).then_some(u32::MAX),
        }
    }

    /// Whether an image that is not of an index is for it.
    #[must_use]
    pub fn runs(&self, config: &ImageConfiguration) -> bool {
        self.fitness(&Self::of_config(config)).is_some()
    }

    /// What an image is for.
    #[must_use]
    pub fn of_config(config: &ImageConfiguration) -> Self {
        let architecture = config.architecture().to_string();
        let target = Self::known_as(&architecture, config.variant().clone());
        Self { os: config.os().to_string(), ..target }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ImageIndex;

    use super::*;

    fn target(text: &str) -> Target {
        Target::of(&Platform(Some(text.into()))).unwrap()
    }

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(at, platform)| {
                let parts: Vec<&str> = platform.split('/').collect();
                let mut value = serde_json::json!({"os": parts[0], "architecture": parts[1]});
                if let Some(variant) = parts.get(2) {
                    value["variant"] = (*variant).into();
                }
                serde_json::json!({"mediaType": "x", "size": 1, "platform": value,
                    "digest": format!("sha256:{at:064}")})
            })
            .collect();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        serde_json::from_value::<ImageIndex>(index).unwrap().manifests().clone()
    }

    fn chosen(wanted: &str, platforms: &[&str]) -> Option<usize> {
        let manifests = index(platforms);
        let found = target(wanted).choose(&manifests)?.digest().digest().parse().unwrap();
        Some(found)
    }

    #[test]
    fn the_platforms_image_is_chosen_of_an_index() {
        let all =
            ["unknown/unknown", "linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"];
        assert_eq!(chosen("linux/amd64", &all), Some(1));
        assert_eq!(chosen("linux/x86_64", &all), Some(1));
        assert_eq!(chosen("amd64", &all), Some(1));
        assert_eq!(chosen("linux/arm/v6", &all), Some(2));
        assert_eq!(chosen("linux/arm", &all), Some(3));
        assert_eq!(chosen("linux/armhf", &all), Some(3));
        assert_eq!(chosen("linux/arm/v8", &all), Some(3));
        assert_eq!(chosen("linux/arm/v5", &all), None);
        assert_eq!(chosen("linux/arm64", &all), Some(4));
        assert_eq!(chosen("linux/aarch64", &all), Some(4));
        assert_eq!(chosen("linux/s390x", &all), None);
        assert_eq!(chosen("windows/amd64", &all), None);
    }

    #[test]
    fn programs_for_newer_processors_are_not_chosen() {
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3", "linux/amd64"]), Some(1));
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3"]), None);
        assert_eq!(chosen("linux/amd64/v3", &["linux/amd64", "linux/amd64/v3"]), Some(1));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "/", "linux/", "a/b/c/d", "linux/amd 64", "linux/\u{1b}"] {
            assert!(Target::of(&Platform(Some(text.into()))).is_err(), "{text:?}");
        }
        assert_eq!(target("LINUX/ARM64/V8").to_string(), "linux/arm64");
        assert_eq!(target("linux/arm/v6").to_string(), "linux/arm/v6");
    }
}
