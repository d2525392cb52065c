//! Published ports: `-p`, `--expose` and how docker writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A port of the container that answers on the host: `-p [ip:]host:container[/protocol]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address, all if none.
    pub host_ip: Option<IpAddr>,
    /// Any free one if none.
    pub host_port: Option<u16>,
    /// The last of a range of which any free one is wanted (`-p 8000-8010:80`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port_end: Option<u16>,
    /// In the container.
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

impl PortMapping {
    /// The host's addresses that it answers on, once the host's port is chosen: for all addresses
    /// those are `0.0.0.0` and `[::]`.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let ips = match self.host_ip {
            Some(ip) => vec![ip],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        let port = self.host_port.unwrap_or(0);
        ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
    }

    /// `80/tcp`
    #[must_use]
    pub fn container(&self) -> String {
        format!("{}/{}", self.container_port, self.protocol)
    }

    /// Whether both want the same port of an address of the host.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        let address = |one: Option<IpAddr>, two: Option<IpAddr>| match (one, two) {
            (Some(one), Some(two)) => {
                one == two
                    || one.is_ipv4() == two.is_ipv4()
                        && (one.is_unspecified() || two.is_unspecified())
            }
            _ => true,
        };
        self.protocol == other.protocol
            && self.host_port.is_some()
            && self.host_port == other.host_port
            && address(self.host_ip, other.host_ip)
    }
}

/// As in the column PORTS: `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.addresses().iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{address}->{}", self.container())?;
        }
        Ok(())
    }
}

/// Reads `-p`, also ranges of the same length on both sides (`8000-8010:80-90`), which are several
/// ports, and docker's long form (`published=8080,target=80`). What an image exposes (`80/tcp`) is
/// read as well: such a port gets any free one of the host (`-P`).
///
/// # Errors
/// When it is no port, in docker's words.
pub fn parse_port(text: &str) -> Result<Vec<PortMapping>> {
    if text.contains('=') {
        return parse_long(text);
    }
    let (address, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let (rest, container) = match address.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, address),
    };
    ensure!(!container.is_empty(), "no port specified: {text}<empty>");
    let (ip, host) = match rest {
        None => (None, None),
        Some(rest) => match rest.rsplit_once(':') {
            // `[::1]:80` has no port of the host, `::1:80:80` has one.
            _ if rest.ends_with(']') => (Some(rest), None),
            Some((ip, host)) => (Some(ip), Some(host)),
            // `127.0.0.1:80`: an address without a port.
            None if rest.contains('.') => (Some(rest), None),
            None => (None, Some(rest)),
        },
    };
    let host = host.filter(|host| !host.is_empty());
    ports(ip.filter(|ip| !ip.is_empty()), host, container, protocol)
        .with_context(|| format!("invalid publish opts format: {text}"))
}

fn parse_long(text: &str) -> Result<Vec<PortMapping>> {
    let (mut target, mut published, mut protocol) = (None, None, "tcp");
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("target", value)) => target = Some(value),
            Some(("published", value)) => published = Some(value),
            Some(("protocol", value)) => protocol = value,
            Some(("mode", "host" | "ingress")) => {}
            _ => bail!("invalid publish opts format (should be name=value but got '{field}')"),
        }
    }
    let target = target.context("missing mandatory field \"target\"")?;
    ports(None, published, target, protocol)
}

fn ports(
    ip: Option<&str>,
    host: Option<&str>,
    container: &str,
    protocol: &str,
) -> Result<Vec<PortMapping>> {
    let protocol = protocol.to_ascii_lowercase();
    ensure!(protocol != "sctp", "sctp can't be published, only tcp and udp can");
    ensure!(matches!(protocol.as_str(), "tcp" | "udp"), "invalid proto: {protocol}");
    let unbracketed = |ip: &str| {
        let inner = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
        inner.unwrap_or(ip).parse::<IpAddr>().ok()
    };
    let host_ip = ip.map(|ip| unbracketed(ip).with_context(|| format!("invalid IP address: {ip}")));
    let host_ip = host_ip.transpose()?;
    let (first, last) =
        range(container).with_context(|| format!("invalid containerPort: {container}"))?;
    let host_range =
        host.map(|host| range(host).with_context(|| format!("invalid hostPort: {host}")));
    let host_range = host_range.transpose()?;
    if let Some((from, to)) = host_range {
        ensure!(
            first == last || to - from == last - first,
            "invalid ranges specified for container and host Ports: {container} and {}",
            host.unwrap_or_default()
        );
    }
    let any_of_range = host_range.filter(|(from, to)| first == last && from != to);
    let mapping = |container_port| PortMapping {
        host_ip,
        host_port: host_range.map(|(from, _)| from + (container_port - first)),
        host_port_end: any_of_range.map(|(_, to)| to),
        container_port,
        protocol: protocol.clone(),
    };
    Ok((first..=last).map(mapping).collect())
}

/// `80` or `80-90`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> String {
        let ports = parse_port(text).unwrap();
        let texts: Vec<_> = ports.iter().map(ToString::to_string).collect();
        texts.join(" | ")
    }

    #[test]
    fn s89_forms_of_published_ports() {
        assert_eq!(one("8080:80"), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp");
        assert_eq!(one("127.0.0.1:8080:80/udp"), "127.0.0.1:8080->80/udp");
        assert_eq!(one("[::1]:8080:80"), "[::1]:8080->80/tcp");
        assert_eq!(one("127.0.0.1::80"), "127.0.0.1:0->80/tcp");
        assert_eq!(one("127.0.0.1:80"), "127.0.0.1:0->80/tcp");
        assert_eq!(one("127.0.0.1:81-82:91-92"), "127.0.0.1:81->91/tcp | 127.0.0.1:82->92/tcp");
        assert_eq!(one("published=8080,target=80"), one("8080:80"));
        assert_eq!(parse_port("80").unwrap()[0].host_port, None);
        let any = &parse_port("8000-8010:80").unwrap()[..];
        assert_eq!(any.len(), 1);
        assert_eq!((any[0].host_port, any[0].host_port_end), (Some(8000), Some(8010)));
    }

    #[test]
    fn s89_what_is_no_port_is_refused() {
        for (text, words) in [
            ("", "no port specified"),
            ("8080:", "no port specified"),
            ("abc", "invalid containerPort: abc"),
            ("0:80", "invalid hostPort: 0"),
            ("70000:80", "invalid hostPort: 70000"),
            ("90-80:1", "invalid hostPort: 90-80"),
            ("80:80/icmp", "invalid proto: icmp"),
            ("80:80/sctp", "sctp can't be published"),
            ("1.2.3:80:80", "invalid IP address: 1.2.3"),
            ("80-82:80-81", "invalid ranges specified for container and host Ports"),
            ("x=1", "should be name=value"),
        ] {
            let error = format!("{:#}", parse_port(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn s91_ports_clash_on_the_same_address_only() {
        let port = |text: &str| parse_port(text).unwrap().remove(0);
        assert!(port("80:80").clashes(&port("80:81")));
        assert!(port("80:80").clashes(&port("127.0.0.1:80:81")));
        assert!(port("0.0.0.0:80:80").clashes(&port("127.0.0.1:80:81")));
        assert!(!port("0.0.0.0:80:80").clashes(&port("[::1]:80:81")));
        assert!(!port("127.0.0.2:80:80").clashes(&port("127.0.0.1:80:80")));
        assert!(!port("80:80").clashes(&port("80:80/udp")));
        assert!(!port("80").clashes(&port("80")));
    }
}
