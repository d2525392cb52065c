//! Networks: bridges, addresses, published ports and names.
//!
//! What is configured is a file a network ([`definition`]), which outlives a reboot; who is on them
//! is a file a container ([`members`]), which doesn't. Such a file is written before anything is
//! made for the container and removed after all of it is gone. Its addresses are taken as long as it
//! is there. A member whose device on the host is gone is dead, however it ended: whoever takes the
//! lock next removes what is left of it.

mod bridge;
mod conntrack;
pub mod definition;
mod firewall;
mod helper;
mod ipam;
pub mod members;
mod netlink;
mod ports;
pub mod proxy;
pub mod resolver;

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::Digest;

pub use definition::{Network, find};
pub use members::{attach, connect, detach, disconnect, sweep};
pub use ports::{PortMapping, parse_port};

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

impl Endpoint {
    /// Docker's ID of a container's place on a network, 64 hex digits.
    #[must_use]
    pub fn id(&self, container: &str) -> String {
        let hash = sha2::Sha256::digest(format!("{container} {}", self.network_id));
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
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
    /// `--dns`: who is asked for names that the network doesn't know, the host's resolvers if none.
    pub dns: &'a [String],
}

/// Whatever [`attach`] did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Attached {
    /// One a network.
    pub endpoints: Vec<Endpoint>,
    /// With the host's ports that were chosen.
    pub ports: Vec<PortMapping>,
}

/// 64 random hex digits, as docker's IDs are.
///
/// # Errors
/// Without `/dev/urandom`.
pub fn random_id() -> Result<String> {
    let mut bytes = [0; 32];
    let mut random = File::open("/dev/urandom").context("open /dev/urandom")?;
    random.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
