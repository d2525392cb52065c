//! `uctr ps --filter`

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use oci_spec::image::Digest;
use regex_lite::Regex;

use super::networks;
use crate::container::record::State;
use crate::container::{self, Container};
use crate::image::store::Store;
use crate::output;
use crate::paths::Paths;

const KNOWN: [&str; 12] = [
    "ancestor", "before", "exited", "expose", "id", "label", "name", "network", "publish", "since",
    "status", "volume",
];

const STATES: [&str; 7] =
    ["created", "restarting", "running", "removing", "paused", "exited", "dead"];

/// One condition. Of several with the same name one has to hold, but of labels all.
enum Filter {
    Ancestor(Ancestor),
    Before(Timestamp),
    Exited(i32),
    Expose(Ports),
    Id(String),
    Label(String),
    Name(Regex),
    Network(String),
    Publish(Ports),
    Since(Timestamp),
    Status(String),
    Volume(String),
}

/// What a container may be made of.
struct Ancestor {
    name: String,
    /// The image's ID and its layers: those made of it have them too.
    image: Option<(Digest, Vec<Digest>)>,
}

/// `80`, `80/udp`, `8000-8010/tcp`
struct Ports {
    first: u16,
    last: u16,
    protocol: String,
}

pub struct Filters(Vec<(&'static str, Filter)>);

impl Filters {
    pub fn parse(texts: &[String], paths: &Paths, all: &[Container]) -> Result<Self> {
        let mut filters = Vec::new();
        for text in texts {
            let (name, value) = output::filter(text, &KNOWN)?;
            let name = KNOWN.iter().find(|known| **known == name).context("a known filter")?;
            filters.push((*name, Filter::new(name, value, paths, all)?));
        }
        Ok(Self(filters))
    }

    /// Whether it is said which states are wanted, so that also those are shown that don't run.
    pub fn of_state(&self) -> bool {
        self.0.iter().any(|(_, filter)| matches!(filter, Filter::Status(_) | Filter::Exited(_)))
    }

    pub fn hold(&self, container: &Container, state: &State) -> bool {
        KNOWN.iter().all(|name| {
            let mut same = self
                .0
                .iter()
                .filter(|(other, _)| other == name)
                .map(|(_, filter)| filter)
                .peekable();
            match *name {
                _ if same.peek().is_none() => true,
                "label" => same.all(|filter| filter.holds(container, state)),
                _ => same.any(|filter| filter.holds(container, state)),
            }
        })
    }
}

impl Filter {
    fn new(name: &str, value: &str, paths: &Paths, all: &[Container]) -> Result<Self> {
        let number = || value.parse().with_context(|| format!("invalid filter 'exited={value}'"));
        let created = || {
            // Of a container that is found as by other commands.
            let container = container::find(paths, value)?;
            anyhow::Ok(container.record.created)
        };
        Ok(match name {
            "ancestor" => Self::Ancestor(Ancestor::find(paths, value)?),
            "before" => Self::Before(created()?),
            "exited" => Self::Exited(number()?),
            "expose" => Self::Expose(Ports::parse(value)?),
            "id" => Self::Id(value.into()),
            "label" => Self::Label(value.into()),
            "name" => Self::Name(
                Regex::new(value).with_context(|| format!("invalid filter 'name={value}'"))?,
            ),
            "network" => Self::Network(network_name(value, all)),
            "publish" => Self::Publish(Ports::parse(value)?),
            "since" => Self::Since(created()?),
            "status" => {
                ensure!(
                    STATES.contains(&value),
                    "invalid filter 'status={value}' (there are {})",
                    STATES.join(", ")
                );
                Self::Status(value.into())
            }
            _ => Self::Volume(value.into()),
        })
    }

    fn holds(&self, container: &Container, state: &State) -> bool {
        let record = &container.record;
        match self {
            Self::Ancestor(ancestor) => ancestor.of(container),
            Self::Before(time) => record.created < *time,
            Self::Since(time) => record.created > *time,
            Self::Exited(code) => {
                state.finished_at.is_some() && !state.status.is_alive() && state.exit_code == *code
            }
            Self::Expose(ports) => record.config.exposed_ports.keys().any(|port| {
                let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                number.parse().is_ok_and(|number| ports.have(number, protocol))
            }),
            Self::Publish(ports) => record
                .network
                .ports
                .iter()
                .any(|port| ports.have(port.container_port, &port.protocol)),
            Self::Id(begin) => record.id.starts_with(begin.as_str()),
            Self::Label(label) => output::has_label(&record.config.labels, label),
            Self::Name(name) => {
                name.is_match(&record.name) || name.is_match(&format!("/{}", record.name))
            }
            Self::Network(name) => networks(container).contains(name),
            Self::Status(word) => state.status.word() == word,
            Self::Volume(volume) => record.mounts.iter().any(|mount| {
                mount.name.as_deref() == Some(volume)
                    || mount.destination.as_os_str() == volume.as_str()
                    || mount.source.as_deref().is_some_and(|s| s.as_os_str() == volume.as_str())
            }),
        }
    }
}

/// A network can also be told by its ID, or the beginning of it.
fn network_name(value: &str, all: &[Container]) -> String {
    let mut endpoints = all.iter().flat_map(|container| &container.record.network.endpoints);
    let named = endpoints.find(|e| value.len() >= 4 && e.network_id.starts_with(value));
    named.map_or_else(|| value.to_owned(), |endpoint| endpoint.network.clone())
}

impl Ancestor {
    fn find(paths: &Paths, name: &str) -> Result<Self> {
        let image = Store::open(paths)?.find(name)?;
        Ok(Self {
            name: name.into(),
            image: image.map(|image| (image.id.clone(), image.diff_ids())),
        })
    }

    fn of(&self, container: &Container) -> bool {
        let record = &container.record;
        match &self.image {
            None => record.image == self.name,
            Some((id, layers)) => {
                record.image_id == *id || !layers.is_empty() && record.layers.starts_with(layers)
            }
        }
    }
}

impl Ports {
    fn parse(text: &str) -> Result<Self> {
        let context = || format!("invalid port: {text:?}");
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        Ok(Self {
            first: first.parse().with_context(context)?,
            last: last.parse().with_context(context)?,
            protocol: protocol.into(),
        })
    }

    fn have(&self, port: u16, protocol: &str) -> bool {
        (self.first..=self.last).contains(&port) && self.protocol == protocol
    }
}
