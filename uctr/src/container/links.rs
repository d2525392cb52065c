//! `--link`: other containers' addresses in /etc/hosts and in the environment.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use super::config::files::Link;
use super::{Container, find};

/// What links bring into a container.
#[derive(Debug, Default)]
pub struct Links {
    /// For /etc/hosts.
    pub hosts: Vec<Link>,
    /// `ALIAS_PORT_80_TCP=tcp://…` and so on.
    pub env: Vec<String>,
}

/// Looks up the containers that `container` is linked to.
///
/// # Errors
/// In docker's words: when one is gone, or doesn't run.
pub fn find_all(container: &Container) -> Result<Links> {
    let mut links = Links::default();
    for link in &container.record.host_config.links {
        let (name, alias) = split(link);
        let other = find(container.paths(), name)
            .with_context(|| format!("could not get container for {name}"))?;
        let own = &container.record.name;
        ensure!(
            other.state().status.is_alive(),
            "Cannot link to a non running container: /{} AS /{own}/{alias}",
            other.record.name
        );
        let shared =
            |endpoint: &&crate::network::Endpoint| {
                container.record.wishes.iter().any(|wish| {
                    wish.network == endpoint.network || wish.network == endpoint.network_id
                })
            };
        let endpoints = &other.record.network.endpoints;
        let address = endpoints
            .iter()
            .find(shared)
            .and_then(|endpoint| endpoint.addresses.first())
            .map(ipnet::IpNet::addr)
            .with_context(|| {
                format!(
                    "Cannot link to /{}, as it does not belong to the network",
                    other.record.name
                )
            })?;
        let mut names = vec![alias.to_owned(), other.short_id().to_owned()];
        if alias != other.record.name {
            names.push(other.record.name.clone());
        }
        links.hosts.push(Link { address, names });
        links.env.extend(environment(own, alias, address, &other));
    }
    Ok(links)
}

fn split(link: &str) -> (&str, &str) {
    let (name, alias) = link.split_once(':').unwrap_or((link, link));
    (name.trim_start_matches('/'), alias)
}

/// As docker has it, since the days before names were resolved.
fn environment(own: &str, alias: &str, address: IpAddr, other: &Container) -> Vec<String> {
    let prefix = alias.to_ascii_uppercase().replace('-', "_");
    let mut ports: Vec<(u16, &str)> = other
        .record
        .config
        .exposed_ports
        .keys()
        .filter_map(|port| {
            let (number, protocol) = port.split_once('/')?;
            Some((number.parse().ok()?, protocol))
        })
        .collect();
    ports.sort_unstable();
    let mut env = Vec::new();
    if let Some((number, protocol)) = ports.first() {
        env.push(format!("{prefix}_PORT={protocol}://{address}:{number}"));
    }
    for (number, protocol) in ports {
        let name = format!("{prefix}_PORT_{number}_{}", protocol.to_ascii_uppercase());
        env.push(format!("{name}={protocol}://{address}:{number}"));
        env.push(format!("{name}_ADDR={address}"));
        env.push(format!("{name}_PORT={number}"));
        env.push(format!("{name}_PROTO={protocol}"));
    }
    env.push(format!("{prefix}_NAME=/{own}/{alias}"));
    let of_all = ["PATH", "HOME", "HOSTNAME", "TERM"];
    for entry in &other.record.config.env {
        if let Some((name, value)) = entry.split_once('=')
            && !of_all.contains(&name)
        {
            env.push(format!("{prefix}_ENV_{name}={value}"));
        }
    }
    env
}
