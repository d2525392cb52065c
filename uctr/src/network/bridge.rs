//! Devices: a network's bridge, and the pair of devices by which a member is on it.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::definition::Network;
use super::firewall::GROUP;
use super::netlink::{self, Mac, Socket, disable_ipv6, is};

/// The name of a member's device on the host: the same whenever it is asked for.
pub fn link_name(container: &str, network: &str) -> String {
    let hash = Sha256::digest(format!("{container} {network}"));
    let digits: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("veth{digits}")
}

/// Whether the device of that name is the network's; none if there is no such device.
pub fn is_own(host: &Socket, network: &Network) -> Result<Option<bool>> {
    let link = host.link(&network.device).context("look up the bridge")?;
    Ok(link.map(|link| link.mac == network.mac()))
}

/// Makes the bridge if it isn't there; returns its index.
pub fn ensure_bridge(host: &Socket, network: &Network) -> Result<u32> {
    let device = &network.device;
    let context = || format!("network {}: bridge {device}", network.name);
    let pool = network.pool.as_ref().with_context(context)?;
    match host.make_bridge(device, network.mac(), GROUP, network.mtu()) {
        Err(error) if is(&error, Errno::EEXIST) => {}
        other => other.with_context(context)?,
    }
    let link = host.link(device).with_context(context)?.with_context(context)?;
    ensure!(link.mac == network.mac(), "{}: there is another device of that name", context());
    disable_ipv6(device).with_context(context)?;
    let address = Ipv4Net::new(pool.gateway, pool.subnet.prefix_len())?;
    host.add_address(link.index, address).with_context(context)?;
    host.bring_up(link.index).with_context(context)?;
    Ok(link.index)
}

/// What a member gets.
pub struct Port<'a> {
    pub container: &'a str,
    pub namespace: BorrowedFd<'a>,
    /// Inside.
    pub interface: &'a str,
    pub mac: Mac,
    pub address: Ipv4Net,
    /// Of its default route, if that goes here.
    pub gateway: Option<Ipv4Addr>,
}

/// Connects a member with its network's bridge.
pub fn plug(host: &Socket, inside: &Socket, network: &Network, port: &Port) -> Result<()> {
    let bridge = ensure_bridge(host, network)?;
    let context = || format!("network {}: interface {}", network.name, port.interface);
    let name = link_name(port.container, &network.id);
    // Of an earlier run, whose namespace is still there.
    host.remove_link(&name).with_context(context)?;
    let peer = (port.interface, port.mac, port.namespace);
    host.make_pair(&name, bridge, peer, network.mtu()).with_context(context)?;
    let link = inside.link(port.interface).with_context(context)?.with_context(context)?;
    netlink::inside(port.namespace, || disable_ipv6(port.interface)).with_context(context)?;
    inside.add_address(link.index, port.address).with_context(context)?;
    inside.bring_up(link.index).with_context(context)?;
    if let Some(gateway) = port.gateway {
        inside.set_default_route(link.index, gateway).context("default route")?;
    }
    Ok(())
}
