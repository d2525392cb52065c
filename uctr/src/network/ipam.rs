//! Addresses: subnets of networks, and their members' addresses in them.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;

use super::definition::{Network, Pool, Request};
use super::netlink::Mac;

/// Private subnets in the order in which they are tried, as docker's.
fn candidates() -> impl Iterator<Item = Ipv4Net> {
    let large = (17..32).map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16));
    let small =
        (0..16).map(|third| Ipv4Net::new_assert(Ipv4Addr::new(192, 168, third * 16, 0), 20));
    large.chain(small)
}

pub fn overlap(one: &Ipv4Net, two: &Ipv4Net) -> bool {
    one.contains(&two.network()) || two.contains(&one.network())
}

/// The first private subnet that overlaps with none.
pub fn choose(taken: &[Ipv4Net]) -> Result<Pool> {
    let free = |subnet: &Ipv4Net| !taken.iter().any(|other| overlap(subnet, other));
    let subnet = candidates().find(free).context(
        "all predefined address pools have been fully subnetted: give the network a --subnet",
    )?;
    Ok(Pool { subnet, gateway: first(subnet), range: None, automatic: true })
}

fn first(subnet: Ipv4Net) -> Ipv4Addr {
    (u32::from(subnet.network()) + 1).into()
}

/// The addresses that a new network asked for.
pub fn pool(request: &Request, taken: &[Ipv4Net]) -> Result<Pool> {
    let Some(subnet) = &request.subnet else {
        ensure!(
            request.gateway.is_none() && request.ip_range.is_none(),
            "every ip-range or gateway must have a corresponding subnet"
        );
        return choose(taken);
    };
    let subnet = parse("subnet", subnet)?;
    ensure!(subnet.prefix_len() <= 30, "invalid subnet {subnet}: it has no room for a container");
    ensure!(
        !subnet.network().is_loopback() && !subnet.network().is_multicast(),
        "invalid subnet {subnet}: such addresses can't be used on a network"
    );
    if let Some(other) = taken.iter().find(|other| overlap(&subnet, other)) {
        bail!(
            "invalid pool request: Pool overlaps with other one on this address space: {subnet} \
             with {other}"
        );
    }
    let gateway = match &request.gateway {
        None => first(subnet),
        Some(text) => {
            let ip: IpAddr =
                text.parse().ok().with_context(|| format!("invalid gateway address {text}"))?;
            match ip {
                IpAddr::V4(ip) if is_host(&subnet, ip) => ip,
                _ => bail!("no matching subnet for gateway {text}"),
            }
        }
    };
    let range = request.ip_range.as_ref().map(|text| parse("ip-range", text)).transpose()?;
    if let Some(range) = range {
        ensure!(subnet.contains(&range), "no matching subnet for range {range}");
    }
    Ok(Pool { subnet, gateway, range, automatic: false })
}

fn parse(what: &str, text: &str) -> Result<Ipv4Net> {
    ensure!(
        text.parse::<ipnet::Ipv6Net>().is_err(),
        "invalid {what} {text}: networks have IPv4 addresses only"
    );
    let net: Ipv4Net = text
        .parse()
        .ok()
        .with_context(|| format!("invalid {what} {text}: invalid CIDR block notation"))?;
    ensure!(net.addr() == net.network(), "invalid {what} {text}: it should be {}", net.trunc());
    Ok(net)
}

/// Neither the address of the subnet itself nor its broadcast address.
fn is_host(subnet: &Ipv4Net, ip: Ipv4Addr) -> bool {
    subnet.contains(&ip) && ip != subnet.network() && ip != subnet.broadcast()
}

/// A free address of the network, or the one that is wished for.
pub fn allocate(network: &Network, wish: &[IpAddr], used: &[Ipv4Addr]) -> Result<Ipv4Net> {
    let pool = network.pool.as_ref().context("the network has no addresses")?;
    let free = |ip: &Ipv4Addr| *ip != pool.gateway && !used.contains(ip);
    let ip = match wish {
        [] => {
            let range = pool.range.unwrap_or(pool.subnet);
            let (low, high) = (u32::from(range.network()), u32::from(range.broadcast()));
            let mut all = (low..=high).map(Ipv4Addr::from);
            all.find(|ip| is_host(&pool.subnet, *ip) && free(ip)).with_context(|| {
                format!(
                    "no available IPv4 addresses on this network's address pools: {}",
                    network.name
                )
            })?
        }
        [IpAddr::V4(ip)] => {
            ensure!(
                network.name != "bridge",
                "user specified IP address is supported on user defined networks only"
            );
            ensure!(
                is_host(&pool.subnet, *ip),
                "invalid config for network {}: no configured subnet contains the IP address {ip}",
                network.name
            );
            ensure!(free(ip), "Address already in use: {ip} on network {}", network.name);
            *ip
        }
        [IpAddr::V6(ip)] => bail!("invalid address {ip}: networks have IPv4 addresses only"),
        _ => bail!("one address for each network: {wish:?}"),
    };
    Ok(Ipv4Net::new_assert(ip, pool.subnet.prefix_len()))
}

/// `--mac-address`, or one made of the IP address: who gets an address anew has the MAC that
/// neighbours remember for it.
pub fn mac(wish: Option<&str>, ip: Ipv4Addr) -> Result<Mac> {
    let [a, b, c, d] = ip.octets();
    let Some(text) = wish else { return Ok([0x02, 0x42, a, b, c, d]) };
    let bytes: Option<Vec<u8>> =
        text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let mac: Option<Mac> = bytes.and_then(|bytes| bytes.try_into().ok());
    let mac = mac.with_context(|| format!("{text} is not a valid mac address"))?;
    ensure!(mac[0] & 1 == 0 && mac != [0; 6], "{text} is no address of a single device");
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn request(subnet: &str, gateway: &str, range: &str) -> Request {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Request {
            subnet: some(subnet),
            gateway: some(gateway),
            ip_range: some(range),
            ..Request::default()
        }
    }

    fn network(pool: Pool) -> Network {
        Network {
            id: "0".repeat(64),
            name: "net1".into(),
            driver: "bridge".into(),
            created: jiff::Timestamp::now(),
            pool: Some(pool),
            device: String::new(),
            internal: false,
            labels: Default::default(),
            options: Default::default(),
        }
    }

    #[test]
    fn s92_the_default_subnet_clashes_with_no_route() {
        assert_eq!(choose(&[]).unwrap().subnet, net("172.17.0.0/16"));
        assert_eq!(choose(&[net("172.16.0.0/12")]).unwrap().subnet, net("192.168.0.0/20"));
        assert_eq!(choose(&[net("172.17.9.0/24")]).unwrap().subnet, net("172.18.0.0/16"));
        let all = [net("172.16.0.0/12"), net("192.168.0.0/16")];
        assert!(choose(&all).unwrap_err().to_string().contains("fully subnetted"));
    }

    #[test]
    fn s94_subnets_that_can_not_be_are_refused() {
        let taken = [net("10.1.0.0/16")];
        for (subnet, gateway, range, words) in [
            ("10.1.2.0/24", "", "", "Pool overlaps with other one on this address space"),
            ("10.0.0.0/8", "", "", "Pool overlaps with other one on this address space"),
            ("10.2.0.0", "", "", "invalid CIDR block notation"),
            ("10.2.0.1/24", "", "", "it should be 10.2.0.0/24"),
            ("10.2.0.0/31", "", "", "no room"),
            ("127.0.0.0/8", "", "", "can't be used"),
            ("fd00::/64", "", "", "IPv4 addresses only"),
            ("10.2.0.0/24", "10.3.0.1", "", "no matching subnet for gateway 10.3.0.1"),
            ("10.2.0.0/24", "10.2.0.255", "", "no matching subnet for gateway"),
            ("10.2.0.0/24", "", "10.3.0.0/25", "no matching subnet for range"),
            ("", "10.2.0.1", "", "must have a corresponding subnet"),
        ] {
            let error = pool(&request(subnet, gateway, range), &taken).unwrap_err().to_string();
            assert!(error.contains(words), "{subnet}: {error}");
        }
        let good = pool(&request("10.2.0.0/24", "10.2.0.9", "10.2.0.8/30"), &taken).unwrap();
        assert_eq!(good.gateway, Ipv4Addr::new(10, 2, 0, 9));
    }

    #[test]
    fn addresses_are_the_lowest_free_ones_of_the_range() {
        let network =
            network(pool(&request("10.2.0.0/24", "10.2.0.9", "10.2.0.8/30"), &[]).unwrap());
        let mut used = Vec::new();
        for last in [8, 10, 11] {
            let address = allocate(&network, &[], &used).unwrap();
            assert_eq!(address, net(&format!("10.2.0.{last}/24")));
            used.push(address.addr());
        }
        let error = allocate(&network, &[], &used).unwrap_err().to_string();
        assert!(error.contains("no available IPv4 addresses"), "{error}");
        let wish = |text: &str| allocate(&network, &[text.parse().unwrap()], &used);
        assert_eq!(wish("10.2.0.77").unwrap(), net("10.2.0.77/24"));
        assert!(wish("10.2.0.10").unwrap_err().to_string().contains("Address already in use"));
        assert!(wish("10.3.0.10").unwrap_err().to_string().contains("no configured subnet"));
    }

    #[test]
    fn mac_addresses() {
        let ip = Ipv4Addr::new(172, 17, 0, 2);
        assert_eq!(mac(None, ip).unwrap(), [2, 0x42, 172, 17, 0, 2]);
        assert_eq!(mac(Some("92:d0:c6:0a:29:33"), ip).unwrap()[5], 0x33);
        for bad in ["", "92:d0", "01:00:5e:00:00:01", "zz:d0:c6:0a:29:33"] {
            assert!(mac(Some(bad), ip).is_err(), "{bad}");
        }
    }
}
