//! Making a container: an image's configuration and what the user wants, on record.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;

use super::config::{MASKED, READONLY, capabilities, devices};
use super::record::{Config, Empty, HostConfig, PortBinding, Record, State};
use super::{Container, find, names};
use crate::image::store::Image;
use crate::network::{Attached, PortMapping, Wish};
use crate::paths::Paths;
use crate::volume::{self, MountPoint};

/// What the user wants, as far as it was said.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `--name`
    pub name: Option<String>,
    /// The image as named.
    pub image: String,
    /// What follows the image.
    pub command: Vec<String>,
    /// `--entrypoint`; an empty one drops the image's.
    pub entrypoint: Option<String>,
    /// Env, labels … without the image's.
    pub config: Config,
    /// Limits, mounts …
    pub host_config: HostConfig,
    /// `--network` with its address and aliases; none for the default.
    pub wishes: Vec<Wish>,
    /// `-p`
    pub ports: Vec<PortMapping>,
    /// `--tmpfs`, as given.
    pub tmpfs: Vec<String>,
}

/// Puts a new container on record.
///
/// # Errors
/// In docker's words; nothing is left then but volumes that were made.
pub fn make(paths: &Paths, image: &Image, request: Request) -> Result<Container> {
    let id = names::random_id()?;
    let mut config = merge(request.config.clone(), &image.config, &request);
    let args: Vec<String> =
        [&config.entrypoint, &config.cmd].into_iter().flatten().flatten().cloned().collect();
    ensure!(
        args.first().is_some_and(|program| !program.is_empty()),
        "no command specified: the image has none, give one after its name"
    );
    let mut host = request.host_config.clone();
    settle_modes(paths, &mut host)?;
    settle_security(&mut host)?;
    settle_hostname(&mut config, &host, &id)?;
    let mut ports = request.ports.clone();
    if host.publish_all_ports {
        publish_exposed(&config, &mut ports)?;
    }
    settle_ports(&mut config, &mut host, &ports);
    check_links(paths, &host.links)?;
    let wishes = wishes(&host, request.wishes.clone(), &ports)?;
    let volumes: Vec<String> =
        config.volumes.iter().flatten().map(|(path, _)| path.clone()).collect();
    let inherited = inherited_mounts(paths, &host.volumes_from)?;
    let covered = |path: &String| inherited.iter().any(|m| m.destination == Path::new(path));
    let own: Vec<String> = volumes.into_iter().filter(|path| !covered(path)).collect();
    // The name is checked before a volume is made, and held until the record is there.
    let _names = names::lock(paths)?;
    let name = match &request.name {
        Some(name) => name.strip_prefix('/').unwrap_or(name).to_owned(),
        None => names::random_name(paths)?,
    };
    names::check(paths, &name)?;
    let mut mounts = volume::resolve(paths, &id, &host.binds, &host.mounts, &request.tmpfs, &own)?;
    for mount in inherited {
        if mounts.iter().all(|other| other.destination != mount.destination) {
            mounts.push(mount);
        }
    }
    let record = Record {
        id,
        name,
        created: Timestamp::now(),
        image: request.image,
        image_id: image.id.clone(),
        manifest: image.manifest.digest().clone(),
        layers: image.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
        platform: image.config.os().to_string(),
        config,
        host_config: host,
        args,
        mounts,
        wishes,
        ports,
        network: Attached::default(),
        state: State::default(),
        restart_count: 0,
        stopped_by_user: false,
    };
    Container::create(paths, record)
}

/// The image's configuration, and over it what the user wants.
fn merge(mut wanted: Config, image: &ImageConfiguration, request: &Request) -> Config {
    let defaults = image.config().clone().unwrap_or_default();
    let name = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env = defaults.env().clone().unwrap_or_default();
    for entry in std::mem::take(&mut wanted.env) {
        env.retain(|other| name(other) != name(&entry));
        env.push(entry);
    }
    wanted.env = env;
    let command = (!request.command.is_empty()).then(|| request.command.clone());
    match &request.entrypoint {
        // The image's command belongs to its own entrypoint.
        Some(program) => {
            wanted.entrypoint = (!program.is_empty()).then(|| vec![program.clone()]);
            wanted.cmd = command;
        }
        None => {
            wanted.entrypoint = defaults.entrypoint().clone().filter(|list| !list.is_empty());
            wanted.cmd = command.or_else(|| defaults.cmd().clone());
        }
    }
    let mut labels: BTreeMap<_, _> =
        defaults.labels().clone().unwrap_or_default().into_iter().collect();
    labels.append(&mut wanted.labels);
    wanted.labels = labels;
    for port in defaults.exposed_ports().iter().flatten() {
        let port = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        wanted.exposed_ports.insert(port, Empty {});
    }
    let volumes = defaults.volumes().iter().flatten().map(|path| (path.clone(), Empty {}));
    let volumes: BTreeMap<_, _> = volumes.collect();
    wanted.volumes = (!volumes.is_empty()).then_some(volumes);
    if wanted.user.is_empty() {
        wanted.user = defaults.user().clone().unwrap_or_default();
    }
    if wanted.working_dir.is_empty() {
        wanted.working_dir = defaults.working_dir().clone().unwrap_or_default();
    }
    wanted.stop_signal = wanted.stop_signal.or_else(|| defaults.stop_signal().clone());
    wanted.image.clone_from(&request.image);
    wanted
}

/// Names of other containers in `--network`, `--pid` and `--ipc` become IDs.
fn settle_modes(paths: &Paths, host: &mut HostConfig) -> Result<()> {
    if host.network_mode.is_empty() || host.network_mode == "default" {
        host.network_mode = "bridge".into();
    }
    if host.ipc_mode.is_empty() || host.ipc_mode == "shareable" {
        host.ipc_mode = "private".into();
    }
    if host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = "private".into();
    }
    for (flag, mode) in [("--pid", &host.pid_mode), ("--uts", &host.uts_mode)] {
        let fine = mode.is_empty() || mode == "host" || mode == "private";
        let other = flag == "--pid" && mode.starts_with("container:");
        ensure!(fine || other, "{flag}: invalid mode: {mode}");
    }
    ensure!(
        matches!(host.ipc_mode.as_str(), "private" | "host" | "none")
            || host.ipc_mode.starts_with("container:"),
        "--ipc: invalid mode: {}",
        host.ipc_mode
    );
    ensure!(host.ipc_mode != "none", "--ipc none is not supported; private is");
    ensure!(
        matches!(host.cgroupns_mode.as_str(), "private" | "host"),
        "--cgroupns: invalid mode: {}",
        host.cgroupns_mode
    );
    for mode in [&mut host.pid_mode, &mut host.uts_mode] {
        if mode == "private" {
            mode.clear();
        }
    }
    for mode in [&mut host.network_mode, &mut host.pid_mode, &mut host.ipc_mode] {
        if let Some(other) = mode.strip_prefix("container:") {
            *mode = format!("container:{}", find(paths, other)?.record.id);
        }
    }
    Ok(())
}

fn settle_security(host: &mut HostConfig) -> Result<()> {
    // Errors are to come now, not at the start.
    capabilities::of(&host.cap_add, &host.cap_drop, host.privileged)?;
    devices::rules(host)?;
    for option in &mut host.security_opt {
        // A profile is kept whole: its file may be another one by the next start.
        if let Some(path) = option.strip_prefix("seccomp=")
            && !matches!(path, "unconfined" | "builtin")
        {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("opening seccomp profile ({path}) failed"))?;
            super::config::seccomp::from_profile(&text, &[])?;
            *option = format!("seccomp={text}");
        }
    }
    super::config::Security::parse(&host.security_opt)?;
    let open = host.security_opt.iter().any(|option| option == "systempaths=unconfined");
    if !host.privileged && !open {
        host.masked_paths = MASKED.map(str::to_owned).to_vec();
        host.readonly_paths = READONLY.map(str::to_owned).to_vec();
    }
    for name in host.sysctls.keys() {
        let network = name.starts_with("net.");
        ensure!(
            !(network && host.network_mode == "host"),
            "sysctl {name:?} not allowed in host network namespace"
        );
    }
    Ok(())
}

fn settle_hostname(config: &mut Config, host: &HostConfig, id: &str) -> Result<()> {
    let shared = host.network_mode.starts_with("container:");
    ensure!(
        config.hostname.is_empty() || !shared,
        "conflicting options: hostname and the network mode"
    );
    ensure!(
        config.hostname.is_empty() || host.uts_mode != "host",
        "conflicting options: hostname and the UTS mode"
    );
    if config.hostname.is_empty() {
        let of_host = host.uts_mode == "host" || host.network_mode == "host";
        let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        config.hostname = name.filter(|_| of_host).unwrap_or_else(|| id[..12].to_owned());
    }
    for name in [&config.hostname, &config.domainname] {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        ensure!(name.len() <= 64 && name.chars().all(fine), "invalid hostname format: {name}");
    }
    Ok(())
}

/// `-P`
fn publish_exposed(config: &Config, ports: &mut Vec<PortMapping>) -> Result<()> {
    for exposed in config.exposed_ports.keys() {
        let (port, protocol) = exposed.split_once('/').unwrap_or((exposed, "tcp"));
        let mut number = port.split('-').map(str::parse::<u16>);
        let bad = || format!("invalid port in EXPOSE or --expose: {exposed}");
        let first = number.next().and_then(Result::ok).with_context(bad)?;
        let last = number.next().map_or(Some(first), Result::ok).with_context(bad)?;
        for container_port in first..=last {
            let same = |other: &PortMapping| {
                other.container_port == container_port && other.protocol == protocol
            };
            if !ports.iter().any(same) {
                ports.push(PortMapping {
                    host_ip: None,
                    host_port: None,
                    host_port_end: None,
                    container_port,
                    protocol: protocol.to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn settle_ports(config: &mut Config, host: &mut HostConfig, ports: &[PortMapping]) {
    for port in ports {
        let name = format!("{}/{}", port.container_port, port.protocol);
        config.exposed_ports.insert(name.clone(), Empty {});
        host.port_bindings.entry(name).or_default().push(PortBinding {
            host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            host_port: port.host_port.map(|port| port.to_string()).unwrap_or_default(),
        });
    }
}

fn check_links(paths: &Paths, links: &[String]) -> Result<()> {
    for link in links {
        let name = link.split(':').next().unwrap_or_default();
        find(paths, name).with_context(|| format!("could not get container for {name}"))?;
    }
    Ok(())
}

fn wishes(host: &HostConfig, mut wishes: Vec<Wish>, ports: &[PortMapping]) -> Result<Vec<Wish>> {
    let mode = host.network_mode.as_str();
    let shared = mode.starts_with("container:");
    if !shared && !matches!(mode, "host" | "none") {
        if wishes.is_empty() {
            wishes.push(Wish { network: mode.into(), ..Wish::default() });
        }
        let special = |wish: &&Wish| matches!(wish.network.as_str(), "host" | "none");
        if let Some(wish) = wishes.iter().find(special) {
            bail!("conflicting options: cannot attach both {} and {mode} networks", wish.network);
        }
        return Ok(wishes);
    }
    ensure!(wishes.len() <= 1, "conflicting options: cannot attach both {mode} and other networks");
    ensure!(
        wishes.iter().all(|wish| wish.ip.is_empty() && wish.aliases.is_empty()),
        "conflicting options: --ip and --network-alias need a network with addresses, not {mode}"
    );
    if shared {
        ensure!(
            ports.is_empty(),
            "conflicting options: port publishing and the container type network mode"
        );
    } else if !ports.is_empty() {
        eprintln!("WARNING: Published ports are discarded when using {mode} network mode");
    }
    Ok(Vec::new())
}

/// `--volumes-from container[:ro]`
fn inherited_mounts(paths: &Paths, flags: &[String]) -> Result<Vec<MountPoint>> {
    let mut all: Vec<MountPoint> = Vec::new();
    for flag in flags {
        let (name, mode) = flag.split_once(':').unwrap_or((flag, "rw"));
        ensure!(matches!(mode, "ro" | "rw" | "z" | "Z"), "invalid mode for volumes-from: {mode}");
        for mut mount in find(paths, name)?.record.mounts {
            if mode == "ro" {
                mount.options.push("ro".into());
            }
            if all.iter().all(|other| other.destination != mount.destination) {
                all.push(mount);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(config: &str) -> ImageConfiguration {
        let text = format!(
            r#"{{"architecture": "amd64", "os": "linux", "config": {config},
                "rootfs": {{"type": "layers", "diff_ids": []}}, "history": []}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn args(config: &str, entrypoint: Option<&str>, command: &[&str]) -> Vec<String> {
        let request = Request {
            entrypoint: entrypoint.map(Into::into),
            command: command.iter().map(|s| (*s).into()).collect(),
            ..Request::default()
        };
        let config = merge(Config::default(), &image(config), &request);
        [config.entrypoint, config.cmd].into_iter().flatten().flatten().collect()
    }

    #[test]
    fn s23_s38_s105_command_and_entrypoint() {
        let both = r#"{"Entrypoint": ["sleep"], "Cmd": ["5"]}"#;
        assert_eq!(args(both, None, &[]), ["sleep", "5"]);
        assert_eq!(args(both, None, &["7"]), ["sleep", "7"]);
        assert_eq!(args(both, Some("echo"), &[]), ["echo"]);
        assert_eq!(args(both, Some("echo"), &["x"]), ["echo", "x"]);
        assert_eq!(args(both, Some(""), &["x"]), ["x"]);
        assert_eq!(args(r#"{"Cmd": ["sh"]}"#, None, &["ls", "-l"]), ["ls", "-l"]);
    }

    #[test]
    fn s37_the_environment_of_the_user_wins() {
        let config = Config { env: vec!["B=2".into(), "C=3".into()], ..Config::default() };
        let image = image(r#"{"Env": ["A=1", "B=1"]}"#);
        assert_eq!(merge(config, &image, &Request::default()).env, ["A=1", "B=2", "C=3"]);
    }
}
