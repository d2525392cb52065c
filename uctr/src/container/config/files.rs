//! /etc/hosts, /etc/resolv.conf and /etc/hostname of a container.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::container::record::{HostConfig, Record};
use crate::network::Attached;

/// Their names in `/etc` of the container, and in the folder of the record.
pub const NAMES: [&str; 3] = ["resolv.conf", "hostname", "hosts"];

/// Another container's line in /etc/hosts (`--link`).
#[derive(Clone, Debug)]
pub struct Link {
    /// Where it is.
    pub address: IpAddr,
    /// Its alias, ID and name.
    pub names: Vec<String>,
}

/// Writes them into `folder`, over what is there: they may be mounted already.
///
/// # Errors
/// Names the file, or the `--add-host` that is none.
pub fn write(folder: &Path, record: &Record, attached: &Attached, links: &[Link]) -> Result<()> {
    let host_network = record.host_config.network_mode == "host";
    let hosts = match host_network {
        true => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        false => String::new(),
    };
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let texts = [
        resolv_conf(&resolv, &record.host_config, attached, host_network),
        format!("{}\n", record.config.hostname),
        self::hosts(&hosts, record, attached, links)?,
    ];
    for (name, text) in NAMES.iter().zip(texts) {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn hosts(host: &str, record: &Record, attached: &Attached, links: &[Link]) -> Result<String> {
    let mut text = match host.is_empty() {
        true => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\n\
                 ff02::2\tip6-allrouters\n"
            .to_owned(),
        false => host.trim_end().to_owned() + "\n",
    };
    for entry in &record.host_config.extra_hosts {
        let (name, address) = split_host(entry)?;
        let address = match address {
            "host-gateway" => {
                let gateway = attached.endpoints.iter().find_map(|endpoint| endpoint.gateway);
                gateway.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_string()
            }
            address => address.to_owned(),
        };
        writeln!(text, "{address}\t{name}")?;
    }
    for link in links {
        writeln!(text, "{}\t{}", link.address, link.names.join(" "))?;
    }
    let config = &record.config;
    let full = match config.domainname.as_str() {
        "" => config.hostname.clone(),
        domain => format!("{}.{domain} {}", config.hostname, config.hostname),
    };
    for endpoint in &attached.endpoints {
        for address in &endpoint.addresses {
            writeln!(text, "{}\t{full}", address.addr())?;
        }
    }
    Ok(text)
}

/// Reads `--add-host name:address` or `name=address`.
///
/// # Errors
/// In docker's words.
pub fn split_host(entry: &str) -> Result<(&str, &str)> {
    let split = entry.split_once('=').or_else(|| entry.split_once(':'));
    let bad = || format!("bad format for add-host: {entry:?}");
    let (name, address) = split.with_context(bad)?;
    ensure!(!name.is_empty() && !name.contains(char::is_whitespace), bad());
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    ensure!(
        bare == "host-gateway" || bare.parse::<IpAddr>().is_ok(),
        "invalid IP address in add-host: {address:?}"
    );
    Ok((name, bare))
}

fn resolv_conf(host: &str, wanted: &HostConfig, attached: &Attached, host_network: bool) -> String {
    let words = |key: &str| -> Vec<&str> {
        host.lines()
            .filter_map(|line| line.split_once(char::is_whitespace))
            .filter(|(word, _)| *word == key)
            .flat_map(|(_, rest)| rest.split_whitespace())
            .collect()
    };
    // A resolver on the host's loopback can't be reached from another network namespace.
    let reachable = |address: &&str| {
        host_network || !address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let resolver = attached.endpoints.iter().find_map(|endpoint| endpoint.resolver);
    let mut servers: Vec<String> = resolver.iter().map(IpAddr::to_string).collect();
    // The network's resolver asks those of `--dns` itself.
    match (wanted.dns.is_empty(), resolver) {
        (_, Some(_)) => {}
        (false, None) => servers.extend(wanted.dns.iter().cloned()),
        (true, None) => {
            servers.extend(words("nameserver").into_iter().filter(reachable).map(Into::into));
        }
    }
    let or_host = |own: &[String], key| match own {
        [] => words(key).join(" "),
        own => own.join(" "),
    };
    let mut text = String::new();
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    let search = or_host(&wanted.dns_search, "search");
    // `--dns-search .`: none.
    if !search.is_empty() && search != "." {
        text += &format!("search {search}\n");
    }
    let options = or_host(&wanted.dns_options, "options");
    if !options.is_empty() {
        text += &format!("options {options}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_the_hosts_loopback_are_left_out() {
        let host = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a.example b.example\noptions ndots:1\n";
        let text = resolv_conf(host, &HostConfig::default(), &Attached::default(), false);
        assert_eq!(text, "nameserver 10.0.0.2\nsearch a.example b.example\noptions ndots:1\n");
        let text = resolv_conf(host, &HostConfig::default(), &Attached::default(), true);
        assert!(text.starts_with("nameserver 127.0.0.53\n"));
        let wanted = HostConfig {
            dns: vec!["1.2.3.4".into()],
            dns_search: vec![".".into()],
            ..HostConfig::default()
        };
        let text = resolv_conf(host, &wanted, &Attached::default(), false);
        assert_eq!(text, "nameserver 1.2.3.4\noptions ndots:1\n");
    }

    #[test]
    fn hosts_have_names_and_addresses() {
        assert_eq!(split_host("a:1.2.3.4").unwrap(), ("a", "1.2.3.4"));
        assert_eq!(split_host("a=[::1]").unwrap(), ("a", "::1"));
        assert_eq!(split_host("a:::1").unwrap(), ("a", "::1"));
        for entry in ["a", "a:", ":1.2.3.4", "a:b", "a b:1.2.3.4", "a:1.2.3.4\n0.0.0.0 b"] {
            split_host(entry).unwrap_err();
        }
    }
}
