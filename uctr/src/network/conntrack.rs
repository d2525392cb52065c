//! The kernel's memory of flows. Where the packets of one go is decided when it begins; a sender that
//! goes on sending from one UDP port would for ever reach what was there before, nobody or a
//! container that is gone.

use std::io::Result;
use std::net::{IpAddr, UdpSocket};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::PortMapping;
use super::netlink::{ask, is, open};

/// Forgets the flows to these ports of the host, if they are of UDP: their next packets begin new
/// ones. Those to other hosts' ports, such as questions of containers to a name server, go on.
///
/// # Errors
/// When the kernel doesn't tell of its flows (without the module `nf_conntrack_netlink`).
pub fn forget(ports: &[PortMapping]) -> Result<()> {
    let udp = ports.iter().filter(|port| port.protocol == "udp");
    let udp: Vec<u16> = udp.filter_map(|port| port.host_port).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let socket = open(NETLINK_NETFILTER)?;
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    let all = NetfilterMessage::new(header.clone(), ConntrackMessage::Get(Vec::new()));
    for flow in ask(&socket, all, NLM_F_DUMP)? {
        let Some(original) = original(flow).filter(|tuple| leads_to(tuple, &udp)) else { continue };
        let delete = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
        match ask(&socket, NetfilterMessage::new(header.clone(), delete), 0) {
            // It has just ended.
            Err(error) if is(&error, Errno::ENOENT) => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// What the first packet of a flow had for source and destination.
fn original(flow: NetfilterMessage) -> Option<Vec<Tuple>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = flow.inner else {
        return None;
    };
    attributes.into_iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    })
}

fn leads_to(tuple: &[Tuple], ports: &[u16]) -> bool {
    let to_port = tuple.iter().any(|part| {
        let Tuple::Proto(parts) = part else { return false };
        let to_port = |part: &ProtoTuple| {
            matches!(part, ProtoTuple::DestinationPort(port) if ports.contains(port))
        };
        parts.contains(&ProtoTuple::Protocol(Protocol::Udp)) && parts.iter().any(to_port)
    });
    // An address is the host's own if a socket can have it.
    let is_local = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    let to_host = |part: &IPTuple| matches!(part, IPTuple::DestinationAddress(ip) if is_local(*ip));
    let mut addresses = tuple.iter().filter_map(|part| match part {
        Tuple::Ip(parts) => Some(parts),
        _ => None,
    });
    to_port && addresses.any(|parts| parts.iter().any(to_host))
}
