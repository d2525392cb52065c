//! Requests to the kernel's network configuration, rtnetlink(7).

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A socket to the kernel, bound to the network namespace in which it was opened.
pub struct Socket(RawSocket);

/// A network device.
pub struct Link {
    pub index: u32,
    pub mac: Vec<u8>,
}

/// Does something in another network namespace. The thread that goes there for it ends with that.
pub fn inside<T: Send>(
    namespace: BorrowedFd,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(Error::from(ErrorKind::Other)))
    })
}

/// Takes IPv6 away from a device of the calling thread's network namespace (kernel:
/// Documentation/networking/ip-sysctl.rst). Who is on its link is no router of ours then, whatever
/// they send (CVE-2020-13401).
pub fn disable_ipv6(device: &str) -> Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Opens a socket to a part of the kernel (netlink(7)), in the calling thread's network namespace.
pub fn open(protocol: isize) -> Result<RawSocket> {
    let mut socket = RawSocket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Makes a request, and takes all that the kernel answers.
pub fn ask<T>(socket: &RawSocket, message: T, flags: u16) -> Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    if flags & NLM_F_DUMP != NLM_F_DUMP {
        header.flags |= NLM_F_ACK;
    }
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<T>::deserialize(rest)
                .map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
        }
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        open(NETLINK_ROUTE).map(Self)
    }

    /// Opens one in another network namespace.
    pub fn open_in(namespace: BorrowedFd) -> Result<Self> {
        inside(namespace, Self::open)
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Vec<RouteNetlinkMessage>> {
        ask(&self.0, message, flags)
    }

    /// The device of that name.
    pub fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let answers = match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Err(error) if is(&error, Errno::ENODEV) => return Ok(None),
            other => other?,
        };
        let link = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        Ok(link.map(|link| {
            let mac = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(mac) => Some(mac.clone()),
                _ => None,
            });
            Link { index: link.header.index, mac: mac.unwrap_or_default() }
        }))
    }

    /// Makes a bridge, which is not up yet.
    pub fn make_bridge(&self, name: &str, mac: Mac, group: u32, mtu: Option<u32>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Group(group),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Makes a pair of devices: `name` here, up and on the bridge with the index `bridge`, and
    /// `peer` in another namespace, down.
    pub fn make_pair(
        &self,
        name: &str,
        bridge: u32,
        peer: (&str, Mac, BorrowedFd),
        mtu: Option<u32>,
    ) -> Result<()> {
        let (peer, mac, namespace) = peer;
        let mut inside = LinkMessage::default();
        inside.attributes = vec![
            LinkAttribute::IfName(peer.into()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        inside.attributes.extend(mtu.map(LinkAttribute::Mtu));
        let mut message = up(0);
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
            ]),
        ];
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Brings a device up.
    pub fn bring_up(&self, index: u32) -> Result<()> {
        self.ask(RouteNetlinkMessage::SetLink(up(index)), 0).map(drop)
    }

    /// Removes a device, unless it is gone already.
    pub fn remove_link(&self, name: &str) -> Result<()> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match self.ask(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Gives a device an address; that it has it already is no error.
    pub fn add_address(&self, index: u32, address: Ipv4Net) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address.addr())),
            AddressAttribute::Address(IpAddr::V4(address.addr())),
            AddressAttribute::Broadcast(address.broadcast()),
        ];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewAddress(message), flags).map(drop)
    }

    /// Sends what goes nowhere else to `gateway`.
    pub fn set_default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.ask(RouteNetlinkMessage::NewRoute(message), flags).map(drop)
    }

    /// Where this host sends what, but for its default routes.
    pub fn destinations(&self) -> Result<Vec<Ipv4Net>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        let destination = |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
            let length = route.header.destination_prefix_length;
            route.attributes.into_iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) if length > 0 => {
                    Ipv4Net::new(ip, length).ok()
                }
                _ => None,
            })
        };
        Ok(answers.into_iter().filter_map(destination).collect())
    }

    /// Wakes whoever polls this socket when a device changes or goes.
    pub fn watch_links(&mut self) -> Result<()> {
        self.0.set_non_blocking(true)?;
        self.0.add_membership(libc::RTNLGRP_LINK)
    }

    /// Throws away what was said until now.
    pub fn drain(&self) {
        let mut buffer = vec![0; 64 * 1024];
        // ENOBUFS, that some was lost, doesn't matter either.
        while matches!(
            nix::sys::socket::recv(
                self.0.as_raw_fd(),
                &mut buffer,
                nix::sys::socket::MsgFlags::MSG_DONTWAIT
            ),
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR)
        ) {}
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Whether the kernel answered so.
pub fn is(error: &Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
