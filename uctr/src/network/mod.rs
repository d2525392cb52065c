//! Networks: bridges, addresses, published ports and names.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// A port of the container that answers on the host: `-p [ip:]host:container[/protocol]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address, all if none.
    pub host_ip: Option<IpAddr>,
    /// Any free one if none.
    pub host_port: Option<u16>,
    /// In the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// What a container wants of one network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wish {
    /// The network's name or ID.
    pub network: String,
    /// `--ip`, `--ip6`.
    pub ip: Vec<IpAddr>,
    /// `--mac-address`
    pub mac: Option<String>,
    /// `--network-alias`
    pub aliases: Vec<String>,
}

/// What it got.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network's name.
    pub network: String,
    /// The network's ID, 64 hex digits.
    pub network_id: String,
    /// In the container: `eth0` …
    pub interface: String,
    /// Of the interface.
    pub mac: String,
    /// With the length of the prefix.
    pub addresses: Vec<ipnet::IpNet>,
    /// Where its default route goes.
    pub gateway: Option<IpAddr>,
    /// Names that it answers to on that network.
    pub aliases: Vec<String>,
    /// Who answers the container's questions for names.
    pub resolver: Option<IpAddr>,
}

/// A container that joins networks.
#[derive(Debug)]
pub struct Member<'a> {
    /// 64 hex digits.
    pub id: &'a str,
    /// `--name`
    pub name: &'a str,
    /// Its network namespace.
    pub namespace: BorrowedFd<'a>,
    /// The networks that it joins.
    pub wishes: &'a [Wish],
    /// Its published ports.
    pub ports: &'a [PortMapping],
}

/// Whatever [`attach`] did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Attached {
    /// One a network.
    pub endpoints: Vec<Endpoint>,
    /// With the host's ports that were chosen.
    pub ports: Vec<PortMapping>,
}

/// Connects a container that is created and not started yet. Called in the host's network
/// namespace.
///
/// # Errors
/// With docker's words where it has some; nothing is left behind.
pub fn attach(_paths: &Paths, _member: &Member) -> Result<Attached> {
    todo!()
}

/// Frees all that [`attach`] took for that container; what isn't there any more is no error.
///
/// # Errors
/// When something can't be removed.
pub fn detach(_paths: &Paths, _id: &str) -> Result<()> {
    todo!()
}

/// Reads `-p`, also ranges (`8000-8010:80`), which are several ports.
///
/// # Errors
/// When it is no port, in docker's words.
pub fn parse_port(_text: &str) -> Result<Vec<PortMapping>> {
    todo!()
}
