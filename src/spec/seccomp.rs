//! `linux.seccomp`: most of what an engine writes into config.json, and nobody needs it before the
//! container's first process exists. So it is left as it is until somebody does.

use std::cell::OnceCell;

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::LinuxSeccomp;
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::json;

/// A profile, as text until it is asked for.
#[derive(Debug)]
pub struct Seccomp {
    text: Box<RawValue>,
    profile: OnceCell<LinuxSeccomp>,
}

impl Seccomp {
    /// What it says.
    ///
    /// # Errors
    /// With the path of the property that does not fit.
    pub fn profile(&self) -> Result<&LinuxSeccomp> {
        if let Some(profile) = self.profile.get() {
            return Ok(profile);
        }
        let profile = self.parse().context("config.json")?;
        Ok(self.profile.get_or_init(|| profile))
    }

    fn parse(&self) -> Result<LinuxSeccomp> {
        let text = self.text.get();
        ensure!(text.starts_with('{'), "linux.seccomp: must be an object");
        // As with the rest, to know the path takes longer; and there the last of two of a name counts.
        serde_json::from_str(text).or_else(|_| {
            let value = serde_json::from_str(text).context("linux.seccomp")?;
            json::deserialize_in("linux.seccomp", value)
        })
    }

    /// Whether it could have a rule with SCMP_ACT_NOTIFY: false only if it has none.
    pub fn may_notify(&self) -> bool {
        let text = self.text.get();
        // Any letter may be written as \u….
        text.contains("SCMP_ACT_NOTIFY") || text.contains('\\')
    }
}

/// The value of a config.json without `linux.seccomp`, and that.
///
/// # Errors
/// When it is no JSON.
pub fn split(text: &[u8]) -> serde_json::Result<(Value, Option<Seccomp>)> {
    let mut found = None;
    let mut read = serde_json::Deserializer::from_slice(text);
    let without = Without { path: &["linux", "seccomp"], found: &mut found };
    let value = without.deserialize(&mut read).and_then(|value| read.end().map(|()| value));
    match value {
        Ok(value) => Ok((value, found.map(|text| Seccomp { text, profile: OnceCell::new() }))),
        // Something else than an object where there should be one: whoever looks at the whole says so.
        Err(_) => Ok((serde_json::from_slice(text)?, None)),
    }
}

/// Reads an object without the property at `path`, which it puts into `found`.
struct Without<'a> {
    path: &'a [&'a str],
    found: &'a mut Option<Box<RawValue>>,
}

impl<'de> DeserializeSeed<'de> for Without<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Without<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            match self.path {
                [wanted] if name == *wanted => *self.found = entries.next_value()?,
                [first, path @ ..] if name == *first => {
                    // Of two objects of that name the last one counts, with or without it.
                    *self.found = None;
                    let without = Without { path, found: self.found };
                    object.insert(name, entries.next_value_seed(without)?);
                }
                _ => drop(object.insert(name, entries.next_value()?)),
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_profile_is_taken_out_and_nothing_else() {
        let text = br#"{"linux": {"a": 1, "seccomp": {"defaultAction": "SCMP_ACT_LOG"}, "b": [2]}, "seccomp": 3}"#;
        let (rest, seccomp) = split(text).unwrap();
        assert_eq!(rest, json!({"linux": {"a": 1, "b": [2]}, "seccomp": 3}));
        let profile = seccomp.unwrap();
        assert_eq!(profile.profile().unwrap().default_action().to_string(), "SCMP_ACT_LOG");
        let null = br#"{"linux": {"seccomp": null}}"#;
        assert!(split(null).unwrap().1.is_none());
        let twice = r#"{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_LOG"}}, "linux": {}}"#;
        for text in [twice, "{}", r#"{"linux": {}}"#, "[1]", r#"{"linux": 5}"#] {
            let (rest, seccomp) = split(text.as_bytes()).unwrap();
            assert!(seccomp.is_none());
            assert_eq!(rest, serde_json::from_str::<Value>(text).unwrap());
        }
        for text in
            ["{", r#"{"linux": {"seccomp": {]}}"#, "{} 5", r#"{"linux": {"seccomp": {}}} x"#]
        {
            split(text.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn an_escape_does_not_hide_an_action() {
        let of = |action: &str| {
            let text = format!(r#"{{"linux": {{"seccomp": {{"defaultAction": "{action}"}}}}}}"#);
            split(text.as_bytes()).unwrap().1.unwrap()
        };
        assert!(of("SCMP_ACT_NOTIFY").may_notify());
        let escaped = of(r"SCMP\u005fACT_NOTIFY");
        assert!(escaped.may_notify());
        assert_eq!(escaped.profile().unwrap().default_action().to_string(), "SCMP_ACT_NOTIFY");
        assert!(!of("SCMP_ACT_LOG").may_notify());
    }
}
