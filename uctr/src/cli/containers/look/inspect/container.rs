//! A container as `docker inspect` shows it.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::super::ps::{layers_size, networks};
use crate::container::Container;
use crate::container::record::{Record, State, Status};
use crate::disk;
use crate::image::layers::Layers;
use crate::network::Endpoint;
use crate::output;

/// All that is known of a container, with docker's names in docker's order.
///
/// # Errors
/// With `size`, when its files can't be counted.
pub fn container_json(container: &Container, size: bool) -> Result<Value> {
    let Container { record, .. } = container;
    let state = container.state();
    let folder = container.folder();
    let file = |name: &str| folder.join(name).display().to_string();
    let (program, args) = record.args.split_first().map_or(("", &[][..]), |(p, a)| (p.as_str(), a));
    let mut value = json!({
        "Id": record.id,
        "Created": output::time(Some(record.created)),
        "Path": program,
        "Args": args,
        "State": state_json(&state),
        "Image": record.image_id,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": file("container.log"),
        "Name": format!("/{}", record.name),
        "RestartCount": record.restart_count,
        "Driver": "overlay2",
        "Platform": record.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": record.host_config,
        "GraphDriver": { "Data": layers_json(container), "Name": "overlay2" },
    });
    let fields = value.as_object_mut().context("an object")?;
    if size {
        let own = disk::folder_size(&folder.join("upper"))?;
        fields.insert("SizeRw".into(), own.into());
        fields.insert("SizeRootFs".into(), (own + layers_size(container)?).into());
    }
    fields.insert("Mounts".into(), record.mounts.iter().map(mount_json).collect());
    fields.insert("Config".into(), json!(record.config));
    fields.insert("NetworkSettings".into(), network_json(container, &state));
    Ok(value)
}

fn state_json(state: &State) -> Value {
    json!({
        "Status": state.status.word(),
        "Running": state.status.is_alive() || state.status == Status::Restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": output::time(state.started_at),
        "FinishedAt": output::time(state.finished_at),
    })
}

/// Where its files are, as far as layers are unpacked.
fn layers_json(container: &Container) -> Value {
    let folder = container.folder();
    let lower: Vec<String> = Layers::open(container.paths())
        .map(|layers| {
            let paths = container.record.layers.iter().rev().filter_map(|id| layers.path(id).ok());
            paths.map(|path| path.display().to_string()).collect()
        })
        .unwrap_or_default();
    json!({
        "LowerDir": lower.join(":"),
        "MergedDir": folder.join("rootfs"),
        "UpperDir": folder.join("upper"),
        "WorkDir": folder.join("work"),
    })
}

fn mount_json(mount: &crate::volume::MountPoint) -> Value {
    let mut value = Map::new();
    let mut add = |name: &str, field: Value| value.insert(name.into(), field);
    add("Type", json!(mount.kind));
    if let Some(name) = &mount.name {
        add("Name", json!(name));
    }
    add("Source", json!(mount.source.as_deref().unwrap_or(Path::new(""))));
    add("Destination", json!(mount.destination));
    if mount.kind == "volume" {
        add("Driver", json!("local"));
    }
    let is_propagation =
        |o: &&String| matches!(o.trim_start_matches('r'), "private" | "slave" | "shared");
    let propagation = mount.options.iter().find(is_propagation).cloned();
    add("Mode", json!(""));
    add("RW", json!(!mount.options.iter().any(|option| option == "ro")));
    let default = if mount.kind == "bind" { "rprivate" } else { "" };
    add("Propagation", json!(propagation.unwrap_or_else(|| default.into())));
    Value::Object(value)
}

fn network_json(container: &Container, state: &State) -> Value {
    let record = &container.record;
    let alive = state.status.is_alive();
    let endpoints = if alive { record.network.endpoints.as_slice() } else { &[] };
    // Docker's old fields tell of the default network only.
    let bridge = endpoints.iter().find(|endpoint| endpoint.network == "bridge");
    let blank = endpoint_json(record, None);
    let first = bridge.map_or(blank.clone(), |endpoint| endpoint_json(record, Some(endpoint)));
    let mut all = Map::new();
    for name in networks(container).into_iter().filter(|name| !name.starts_with("container:")) {
        all.insert(name, blank.clone());
    }
    for endpoint in endpoints {
        // It may have been asked for by its ID.
        all.retain(|name, _| !endpoint.network_id.starts_with(name.as_str()));
        all.insert(endpoint.network.clone(), endpoint_json(record, Some(endpoint)));
    }
    all.sort_keys();
    json!({
        "Bridge": "",
        "SandboxID": if alive { record.id.as_str() } else { "" },
        "SandboxKey": if alive { format!("/proc/{}/ns/net", state.pid) } else { String::new() },
        "Ports": ports_json(record, alive),
        "EndpointID": first["EndpointID"],
        "Gateway": first["Gateway"],
        "GlobalIPv6Address": first["GlobalIPv6Address"],
        "GlobalIPv6PrefixLen": first["GlobalIPv6PrefixLen"],
        "IPAddress": first["IPAddress"],
        "IPPrefixLen": first["IPPrefixLen"],
        "IPv6Gateway": first["IPv6Gateway"],
        "MacAddress": first["MacAddress"],
        "Networks": all,
    })
}

fn endpoint_json(record: &Record, endpoint: Option<&Endpoint>) -> Value {
    let address = |v6: bool| {
        let mut all = endpoint.into_iter().flat_map(|endpoint| &endpoint.addresses);
        all.find(|net| net.addr().is_ipv6() == v6)
    };
    let text =
        |net: Option<&ipnet::IpNet>| net.map_or_else(String::new, |net| net.addr().to_string());
    let length = |net: Option<&ipnet::IpNet>| net.map_or(0, ipnet::IpNet::prefix_len);
    let gateway = |v6: bool| {
        let gateway = endpoint.and_then(|endpoint| endpoint.gateway);
        gateway.filter(|ip| ip.is_ipv6() == v6).map_or_else(String::new, |ip| ip.to_string())
    };
    let links = &record.host_config.links;
    json!({
        "IPAMConfig": null,
        "Links": if links.is_empty() { Value::Null } else { json!(links) },
        "Aliases": endpoint.map(|e| &e.aliases).filter(|aliases| !aliases.is_empty()),
        "MacAddress": endpoint.map_or("", |endpoint| endpoint.mac.as_str()),
        "NetworkID": endpoint.map_or("", |endpoint| endpoint.network_id.as_str()),
        // An endpoint is known by its container here.
        "EndpointID": endpoint.map_or("", |_| record.id.as_str()),
        "Gateway": gateway(false),
        "IPAddress": text(address(false)),
        "IPPrefixLen": length(address(false)),
        "IPv6Gateway": gateway(true),
        "GlobalIPv6Address": text(address(true)),
        "GlobalIPv6PrefixLen": length(address(true)),
        "DriverOpts": null,
    })
}

/// `80/tcp` → where on the host; null for what only other containers reach.
fn ports_json(record: &Record, alive: bool) -> Value {
    let mut ports = Map::new();
    if alive {
        for port in record.config.exposed_ports.keys() {
            ports.insert(port.clone(), Value::Null);
        }
        for port in &record.network.ports {
            let entry = ports.entry(port.container()).or_insert(Value::Null);
            if entry.is_null() {
                *entry = json!([]);
            }
            for address in port.addresses() {
                let place = json!({
                    "HostIp": address.ip().to_string(), "HostPort": address.port().to_string()
                });
                if let Some(places) = entry.as_array_mut() {
                    places.push(place);
                }
            }
        }
    }
    ports.sort_keys();
    Value::Object(ports)
}
