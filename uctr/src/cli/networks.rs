//! Commands on networks and ports.

use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::common::{Filters, Inspect, Prune, Rm, Shape, label_column, pairs, print_deleted};
use crate::container::config::files;
use crate::container::{self, Container, links};
use crate::network::definition::{PREDEFINED, Request};
use crate::network::members::Record as OnNetworks;
use crate::network::{self, Member, Network, Wish};
use crate::output::{self, Listing, print};
use crate::paths::Paths;

/// `uctr network …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a network
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all that is known of networks
    Inspect(Inspect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all networks that no container uses
    Prune(Prune),
    /// Connect a container with one more network
    Connect(Connect),
    /// Disconnect a container from a network
    Disconnect(Disconnect),
}

/// Commands of their own: `port`, and the processes in the background.
#[derive(Debug, Subcommand)]
pub enum Short {
    /// Show where a container's ports answer on the host
    Port(Port),
    /// Serves the published ports of a container
    #[command(hide = true, name = network::proxy::COMMAND)]
    Proxy,
    /// Resolves names on a network
    #[command(hide = true, name = network::resolver::COMMAND)]
    Resolver,
}

#[derive(Debug, Args)]
pub struct Create {
    /// The kind of network: bridge
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Its addresses, as 10.1.0.0/16; otherwise private ones that this host doesn't use
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<String>,
    /// The host's address on it; otherwise the first of the subnet
    #[arg(long, value_name = "IP")]
    gateway: Option<String>,
    /// The part of the subnet that containers get addresses of
    #[arg(long, value_name = "SUBNET")]
    ip_range: Option<String>,
    /// Without a way to other networks
    #[arg(long)]
    internal: bool,
    /// A note on it
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// com.docker.network.bridge.name, …bridge.enable_ip_masquerade, …driver.mtu
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Any container may join: they always may
    #[arg(long, hide = true)]
    attachable: bool,
    name: String,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// driver=, id=, label=, name=, type=custom|builtin, dangling=true|false
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Show IDs in full
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, Args)]
pub struct Connect {
    /// The container's address
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,
    /// One more name of the container on that network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    network: String,
    container: String,
}

#[derive(Debug, Args)]
pub struct Disconnect {
    /// That it isn't on that network is no error
    #[arg(short, long)]
    force: bool,
    network: String,
    container: String,
}

/// `uctr port`
#[derive(Debug, Args)]
pub struct Port {
    container: String,
    /// Only this port of the container
    #[arg(value_name = "PRIVATE_PORT[/PROTOCOL]")]
    port: Option<String>,
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Create(args) => create(paths, args),
        Command::Ls(args) => list(paths, &args),
        Command::Inspect(args) => args.run(|name| {
            network::find(paths, name).and_then(|network| network_json(paths, &network))
        }),
        Command::Rm(args) => args.run(
            |name| network::find(paths, name).is_err(),
            |name| network::members::remove(paths, name).map(drop),
        ),
        Command::Prune(args) => prune(paths, &args),
        Command::Connect(args) => connect(paths, args),
        Command::Disconnect(args) => disconnect(paths, &args),
    }
}

pub fn run_short(paths: &Paths, command: Short) -> Result<u8> {
    match command {
        Short::Port(args) => port(paths, &args),
        Short::Proxy => network::proxy::main(paths).map(|()| 0),
        Short::Resolver => network::resolver::main(paths).map(|()| 0),
    }
}

fn create(paths: &Paths, args: Create) -> Result<u8> {
    let request = Request {
        labels: pairs(&args.label),
        options: pairs(&args.opt),
        name: args.name,
        subnet: args.subnet,
        gateway: args.gateway,
        ip_range: args.ip_range,
        internal: args.internal,
        driver: args.driver,
    };
    let network = network::definition::create(paths, &request)?;
    print(&format!("{}\n", network.id))?;
    Ok(0)
}

const NETWORKS: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

fn list(paths: &Paths, args: &Ls) -> Result<u8> {
    let mut networks = network::definition::list(paths)?;
    for text in &args.filter {
        let known = ["driver", "id", "label", "name", "type", "dangling"];
        let (filter, value) = output::filter(text, &known)?;
        let used = if filter == "dangling" { used(paths)? } else { Vec::new() };
        networks.retain(|network| match filter {
            "driver" => network.driver == value,
            "id" => network.id.starts_with(value),
            "label" => output::has_label(&network.labels, value),
            "name" => network.name.contains(value),
            "type" => PREDEFINED.contains(&network.name.as_str()) == (value == "builtin"),
            _ => is_custom(network) && is_used(&used, network) != (value == "true"),
        });
    }
    let row = |network: &Network| {
        json!({
            "ID": if args.no_trunc { &network.id } else { output::short_id(&network.id) },
            "Name": network.name,
            "Driver": network.driver,
            "Scope": "local",
            "IPv4": network.pool.is_some().to_string(),
            "IPv6": "false",
            "Internal": network.internal.to_string(),
            "Labels": label_column(&network.labels),
            "Label": network.labels,
            "CreatedAt": output::local_time(network.created),
        })
    };
    let rows: Vec<Value> = networks.iter().map(row).collect();
    let default = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";
    args.shape.print(Listing { default, titles: NETWORKS }, "{{.ID}}", &rows)?;
    Ok(0)
}

/// What `inspect` shows of a network.
pub fn network_json(paths: &Paths, network: &Network) -> Result<Value> {
    network::sweep(paths)?;
    let mut containers = Map::new();
    for member in network::members::list(paths)? {
        if let Some(value) = member_json(&member, network) {
            containers.insert(member.id.clone(), value);
        }
    }
    let config: Vec<Value> = network
        .pool
        .iter()
        .map(|pool| {
            let mut config = json!({ "Subnet": pool.subnet, "Gateway": pool.gateway });
            if let Some(range) = pool.range {
                config["IPRange"] = json!(range);
            }
            config
        })
        .collect();
    let mut options = network.options.clone();
    if network.pool.is_some() {
        let name = "com.docker.network.bridge.name";
        options.entry(name.into()).or_insert_with(|| network.device.clone());
    }
    Ok(json!({
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": network.pool.is_some(),
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": config },
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": options,
        "Labels": network.labels,
    }))
}

fn member_json(member: &OnNetworks, network: &Network) -> Option<Value> {
    let endpoint = member.endpoints.iter().find(|found| found.network_id == network.id)?;
    let address = endpoint.addresses.first()?;
    Some(json!({
        "Name": member.name,
        "EndpointID": endpoint.id(&member.id),
        "MacAddress": endpoint.mac,
        "IPv4Address": address,
        "IPv6Address": "",
    }))
}

/// The networks that containers name, running or not.
fn used(paths: &Paths) -> Result<Vec<String>> {
    let containers = container::list(paths)?;
    let wishes = containers.into_iter().flat_map(|container| container.record.wishes);
    Ok(wishes.map(|wish| wish.network).collect())
}

fn is_used(used: &[String], network: &Network) -> bool {
    used.iter().any(|name| *name == network.name || network.id.starts_with(name))
}

fn is_custom(network: &Network) -> bool {
    !PREDEFINED.contains(&network.name.as_str())
}

fn prune(paths: &Paths, args: &Prune) -> Result<u8> {
    let warning =
        "WARNING! This will remove all custom networks not used by at least one container.";
    let Some(filters) = args.agreed(warning)? else { return Ok(0) };
    print_deleted("Networks", &prune_networks(paths, &filters)?)?;
    Ok(0)
}

/// Removes all networks that no container uses and that meet the filters; their names.
pub fn prune_networks(paths: &Paths, filters: &Filters) -> Result<Vec<String>> {
    let used = used(paths)?;
    let mut removed = Vec::new();
    for network in network::definition::list(paths)? {
        let unused = is_custom(&network) && !is_used(&used, &network);
        // Somebody may have joined meanwhile.
        if unused
            && filters.hold(&network.labels, network.created)
            && network::members::remove(paths, &network.id).is_ok()
        {
            removed.push(network.name);
        }
    }
    Ok(removed)
}

/// A container whose networks can be changed.
fn changeable(paths: &Paths, name: &str) -> Result<Container> {
    let container = container::find(paths, name)?;
    let mode = &container.record.host_config.network_mode;
    ensure!(
        mode != "host",
        "container cannot be disconnected from host network or connected to another network"
    );
    ensure!(
        !mode.starts_with("container:"),
        "container sharing network namespace with another container or host cannot be connected \
         to any other network"
    );
    ensure!(
        mode != "none",
        "container cannot be connected to multiple networks with one of the networks in private \
         (none) mode"
    );
    Ok(container)
}

fn namespace(pid: i32) -> Result<std::fs::File> {
    let path = format!("/proc/{pid}/ns/net");
    std::fs::File::open(&path).with_context(|| format!("open {path}"))
}

fn is_wish_for(wish: &Wish, network: &Network) -> bool {
    wish.network == network.name || network.id.starts_with(&wish.network)
}

fn connect(paths: &Paths, args: Connect) -> Result<u8> {
    let network = network::find(paths, &args.network)?;
    let mut container = changeable(paths, &args.container)?;
    ensure!(network.pool.is_some(), "container cannot be connected to {} network", network.name);
    let wish = Wish {
        network: network.name.clone(),
        ip: args.ip.into_iter().collect(),
        mac: None,
        aliases: args.alias,
    };
    let state = container.state();
    let known = container.record.wishes.iter().any(|wish| is_wish_for(wish, &network));
    ensure!(
        !known,
        "endpoint with name {} already exists in network {}",
        container.record.name,
        network.name
    );
    let mut attached = None;
    if state.status.is_alive() {
        let record = &container.record;
        let namespace = namespace(state.pid)?;
        let member = Member {
            id: &record.id,
            name: &record.name,
            namespace: namespace.as_fd(),
            wishes: std::slice::from_ref(&wish),
            ports: &record.ports,
            dns: &record.host_config.dns,
        };
        attached = Some(network::connect(paths, &member)?);
    }
    container.change(|record| {
        record.wishes.push(wish);
        record.network = attached.clone().unwrap_or_default();
        Ok(())
    })?;
    if attached.is_some() {
        write_files(&container)?;
    }
    Ok(0)
}

fn disconnect(paths: &Paths, args: &Disconnect) -> Result<u8> {
    let network = network::find(paths, &args.network)?;
    let mut container = changeable(paths, &args.container)?;
    let state = container.state();
    let known = container.record.wishes.iter().any(|wish| is_wish_for(wish, &network));
    if !known && args.force {
        return Ok(0);
    }
    let id = container.record.id.clone();
    ensure!(known, "container {id} is not connected to network {}", network.name);
    let mut attached = None;
    if state.status.is_alive() {
        let namespace = namespace(state.pid)?;
        let rest = network::disconnect(paths, &id, namespace.as_fd(), &network.id)?;
        attached = Some(rest);
    }
    container.change(|record| {
        record.wishes.retain(|wish| !is_wish_for(wish, &network));
        record.network = attached.clone().unwrap_or_default();
        Ok(())
    })?;
    if attached.is_some() {
        write_files(&container)?;
    }
    Ok(0)
}

/// The container's /etc/hosts and /etc/resolv.conf follow its networks.
fn write_files(container: &Container) -> Result<()> {
    let record = &container.record;
    let links = links::find_all(container).unwrap_or_default();
    files::write(&container.folder(), record, &record.network, &links.hosts)
}

/// `uctr port`
pub fn port(paths: &Paths, args: &Port) -> Result<u8> {
    let container = container::find(paths, &args.container)?;
    let mut ports = match container.state().status.is_alive() {
        true => container.record.network.ports.clone(),
        false => Vec::new(),
    };
    ports.sort_by_key(|port| (port.container_port, port.protocol.clone()));
    let mut text = String::new();
    if let Some(wanted) = &args.port {
        let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
        let number: u16 = number.parse().with_context(|| format!("Invalid port: {wanted}"))?;
        ports.retain(|port| port.container_port == number && port.protocol == protocol);
        if ports.is_empty() {
            bail!("No public port '{number}/{protocol}' published for {}", args.container);
        }
    }
    for port in &ports {
        for address in port.addresses() {
            if args.port.is_none() {
                text += &format!("{} -> ", port.container());
            }
            text += &format!("{address}\n");
        }
    }
    print(&text)?;
    Ok(0)
}
