//! `linux.netDevices`: moves network devices of the host into the container's network namespace.
//!
//! The kernel keeps a device's own attributes (MTU, hardware address …) on the way and drops its
//! addresses, so these are read before and set again after. All devices are checked before the
//! first is moved. Nobody brings them back: when the network namespace ends, the kernel returns
//! physical devices to the host and removes virtual ones, as the specification has it.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::netlink::{Request, Socket, attributes, number};
use crate::spec::NetDevice;
use crate::sys;
use crate::sys::descriptor::Fd;

/// A device to move, and what it has on the host.
struct Found<'a> {
    device: &'a NetDevice,
    index: u32,
    addresses: Vec<Address>,
}

/// An address as the kernel gave it.
struct Address {
    /// struct ifaddrmsg
    header: [u8; 8],
    attributes: Vec<(u16, Vec<u8>)>,
}

/// Moves `devices` from the caller's network namespace into that of process `pid`, which `pidfd`
/// names too.
///
/// # Errors
/// Names the device and the step. Devices that were moved before stay where they are.
pub fn move_all(devices: &[NetDevice], pid: i32, pidfd: &OwnedFd) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let host = Socket::open().context("linux.netDevices: open a netlink socket")?;
    let inside = socket_inside(pidfd, Socket::open).context("linux.netDevices")?;
    let found = devices.iter().map(|device| find(device, &host, &inside));
    for found in found.collect::<Result<Vec<_>>>()? {
        let property = format!("linux.netDevices.{}", found.device.name);
        let index = enter(&found, &host, &inside, pid).with_context(|| property.clone())?;
        set_up(&found, &inside, index).with_context(|| property)?;
    }
    Ok(())
}

/// Whether all of `devices` are in the caller's network namespace; moves nothing.
///
/// # Errors
/// Names the device that is not.
pub fn check(devices: &[NetDevice]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let host = Socket::open().context("linux.netDevices: open a netlink socket")?;
    devices.iter().try_for_each(|device| index_on_host(device, &host).map(drop))
}

fn index_on_host(device: &NetDevice, host: &Socket) -> Result<u32> {
    let property = format!("linux.netDevices.{}", device.name);
    let index = look_up(host, &device.name).with_context(|| format!("{property}: look it up"))?;
    index.with_context(|| {
        format!("{property}: there is no such device in the runtime's network namespace")
    })
}

/// Brings the loopback interface up in the network namespace of the process that `pidfd` names.
///
/// # Errors
/// Names the step.
pub fn loopback_up(pidfd: &OwnedFd) -> Result<()> {
    let up = || -> Result<()> {
        let socket = Fd::from(socket_inside(pidfd, sys::net::control_socket)?);
        Ok(sys::net::loopback_up(&socket)?)
    };
    up().context("linux.namespaces (network): bring its loopback up")
}

/// A socket in the network namespace of another process: a socket stays in that of its making.
fn socket_inside<S>(pidfd: &OwnedFd, open: fn() -> nix::Result<S>) -> Result<S> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let own = openat(AT_FDCWD, "/proc/self/ns/net", flags, Mode::empty())
        .map(Fd::from)
        .context("open /proc/self/ns/net")?;
    let network = CloneFlags::CLONE_NEWNET;
    setns(pidfd, network).context("enter the container's network namespace")?;
    let socket = open();
    setns(&own, network).context("come back from the container's network namespace")?;
    socket.context("open a socket in the container's network namespace")
}

fn find<'a>(device: &'a NetDevice, host: &Socket, inside: &Socket) -> Result<Found<'a>> {
    let NetDevice { name, target } = device;
    let index = index_on_host(device, host)?;
    if !device.is_template() {
        let there = look_up(inside, target)
            .with_context(|| format!("linux.netDevices.{name}: look for {target} inside"))?;
        ensure!(
            there.is_none(),
            "linux.netDevices.{name}: the container's network namespace has a device {target} \
             already; give another name (\"eth%d\" lets the kernel choose the number)"
        );
    }
    let addresses = addresses(host, index)
        .with_context(|| format!("linux.netDevices.{name}: read its addresses"))?;
    Ok(Found { device, index, addresses })
}

/// struct ifinfomsg for the device `index`, to set those of `flags` that are in it.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// The index of the device `name`; none when there is none.
fn look_up(socket: &Socket, name: &str) -> nix::Result<Option<u32>> {
    let request = Request::new(libc::RTM_GETLINK, 0, &link_header(0, 0));
    match socket.ask(request.string(libc::IFLA_IFNAME, name)) {
        Ok(answers) => {
            answers.first().and_then(|link| number(link, 4)).ok_or(Errno::EPROTO).map(Some)
        }
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The permanent addresses of global scope of the device `index`: those that the specification
/// wants to be kept.
fn addresses(socket: &Socket, index: u32) -> nix::Result<Vec<Address>> {
    let answers = socket.ask(Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; 8]))?;
    let parse = |answer: &Vec<u8>| {
        let header: [u8; 8] = answer.get(..8)?.try_into().ok()?;
        let attributes: Vec<_> = (attributes(&answer[8..]).into_iter())
            .filter(|(kind, _)| KEPT.contains(kind))
            .map(|(kind, value)| (kind, value.to_vec()))
            .collect();
        let wide = attributes.iter().find(|(kind, _)| *kind == libc::IFA_FLAGS);
        let flags = wide.and_then(|(_, value)| number(value, 0)).unwrap_or(header[2].into());
        let kept = number(&header, 4) == Some(index)
            && header[3] == libc::RT_SCOPE_UNIVERSE
            && flags & libc::IFA_F_PERMANENT != 0;
        kept.then_some(Address { header, attributes })
    };
    Ok(answers.iter().filter_map(parse).collect())
}

/// include/uapi/linux/if_addr.h
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

/// What makes an address: itself, its peer and broadcast address, label, lifetimes, flags, the
/// metric of its route, and who made it.
const KEPT: [u16; 8] = [
    libc::IFA_ADDRESS,
    libc::IFA_LOCAL,
    libc::IFA_LABEL,
    libc::IFA_BROADCAST,
    libc::IFA_CACHEINFO,
    libc::IFA_FLAGS,
    IFA_RT_PRIORITY,
    IFA_PROTO,
];

/// Moves the device and gives it its name; returns its index there.
fn enter(found: &Found, host: &Socket, inside: &Socket, pid: i32) -> Result<u32> {
    let NetDevice { target, .. } = found.device;
    // The kernel does not say which name it made of a template: so first one that is known.
    let temporary = format!("ultari{pid}");
    let name = if found.device.is_template() { &temporary } else { target };
    let request = Request::new(libc::RTM_SETLINK, 0, &link_header(found.index, 0))
        .attribute(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes())
        .string(libc::IFLA_IFNAME, name);
    if let Err(errno) = host.ask(request) {
        let hint = match errno {
            Errno::EINVAL => " (the kernel keeps devices such as lo and bridges where they are)",
            Errno::EPERM => " (needs CAP_NET_ADMIN)",
            _ => "",
        };
        return Err(errno).with_context(|| {
            format!("move it into the container's network namespace as {name}{hint}")
        });
    }
    let Some(index) = look_up(inside, name).context("look it up inside")? else {
        bail!("it did not arrive in the container's network namespace");
    };
    if found.device.is_template() {
        let request = Request::new(libc::RTM_SETLINK, 0, &link_header(index, 0));
        inside
            .ask(request.string(libc::IFLA_IFNAME, target))
            .with_context(|| format!("rename it to {target}"))?;
    }
    Ok(index)
}

/// Gives the device `index` its addresses back and brings it up.
fn set_up(found: &Found, inside: &Socket, index: u32) -> Result<()> {
    for address in &found.addresses {
        let mut header = address.header;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request = Request::new(libc::RTM_NEWADDR, flags, &header);
        for (kind, value) in &address.attributes {
            if *kind != libc::IFA_LABEL {
                request = request.attribute(*kind, value);
            } else if let Some(label) = label(found.device, value) {
                request = request.string(libc::IFA_LABEL, &label);
            }
        }
        inside
            .ask(request)
            .with_context(|| format!("give it back its address {}", describe(address)))?;
    }
    let up = Request::new(libc::RTM_SETLINK, 0, &link_header(index, libc::IFF_UP as u32));
    inside.ask(up).context("bring it up")?;
    Ok(())
}

/// The label of an address, which begins with the device's name, under its new one; with none the
/// kernel takes the device's name.
fn label(device: &NetDevice, value: &[u8]) -> Option<String> {
    let old = std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()?;
    let rest = old.strip_prefix(device.name.as_str())?;
    let new = format!("{}{rest}", device.target);
    // IFNAMSIZ
    (!device.is_template() && new.len() < 16).then_some(new)
}

/// As `ip address` prints it.
fn describe(address: &Address) -> String {
    let find = |wanted| address.attributes.iter().find(|(kind, _)| *kind == wanted);
    let bytes = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS));
    let bytes = bytes.map(|(_, value)| value.as_slice()).unwrap_or_default();
    let text = match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (Ok(four), _) => std::net::Ipv4Addr::from(four).to_string(),
        (_, Ok(sixteen)) => std::net::Ipv6Addr::from(sixteen).to_string(),
        _ => "?".into(),
    };
    format!("{text}/{}", address.header[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_name() {
        let device = |target: &str| NetDevice { name: "eth0".into(), target: target.into() };
        assert_eq!(label(&device("net"), b"eth0\0").as_deref(), Some("net"));
        assert_eq!(label(&device("net"), b"eth0:1\0").as_deref(), Some("net:1"));
        assert_eq!(label(&device("net%d"), b"eth0\0"), None);
        assert_eq!(label(&device("abcdefghijklmno"), b"eth0:1\0"), None);
        assert_eq!(label(&device("net"), b"other\0"), None);
    }
}
