//! The networks that there are: a file each below [`Paths::networks`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::netlink::{Mac, Socket};
use super::{ipam, random_id};
use crate::disk;
use crate::paths::Paths;

/// The networks that are there without being made.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

/// A network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    /// 64 hex digits.
    pub id: String,
    /// Unique.
    pub name: String,
    /// `bridge`, `host` or `null`.
    pub driver: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Addresses, of a bridge only.
    pub pool: Option<Pool>,
    /// The bridge's device on the host.
    pub device: String,
    /// Without a way out.
    pub internal: bool,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `-o`
    pub options: BTreeMap<String, String>,
}

/// The addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// All of them.
    pub subnet: Ipv4Net,
    /// The host's own in it.
    pub gateway: Ipv4Addr,
    /// Where containers' addresses are chosen.
    pub range: Option<Ipv4Net>,
    /// Chosen by ourselves.
    pub automatic: bool,
}

/// What `network create` was asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// `--subnet`
    pub subnet: Option<String>,
    /// `--gateway`
    pub gateway: Option<String>,
    /// `--ip-range`
    pub ip_range: Option<String>,
    /// `--internal`
    pub internal: bool,
    /// `--driver`, `bridge` if empty.
    pub driver: String,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `-o`
    pub options: BTreeMap<String, String>,
}

const DEVICE: &str = "com.docker.network.bridge.name";
const MTU: &str = "com.docker.network.driver.mtu";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

impl Network {
    /// Whether its members find each other by name.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.pool.is_some() && self.name != "bridge"
    }

    /// Of the bridge: tells it from another of the same name.
    pub(super) fn mac(&self) -> Mac {
        let byte = |at: usize| u8::from_str_radix(self.id.get(at..at + 2).unwrap_or("00"), 16);
        let [a, b, c, d, e] = [0, 2, 4, 6, 8].map(|at| byte(at).unwrap_or(0));
        [0x02, a, b, c, d, e]
    }

    /// Of the firewall.
    pub(super) fn table(&self) -> String {
        format!("uctr_{}", &self.id[..12])
    }

    pub(super) fn mtu(&self) -> Option<u32> {
        self.options.get(MTU).and_then(|mtu| mtu.parse().ok())
    }

    /// Whether its members reach others with the host's address.
    pub(super) fn masquerades(&self) -> bool {
        !self.internal && self.options.get(MASQUERADE).is_none_or(|on| on == "true")
    }
}

/// Nobody else changes networks or who is on them while it is held.
pub(super) type Lock = Flock<File>;

pub(super) fn lock(paths: &Paths) -> Result<Lock> {
    let folder = paths.networks();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", path.display()))?;
    for folder in [folder, paths.network_members(), paths.network_resolvers()] {
        disk::remove_unfinished(&folder)?;
    }
    Ok(lock)
}

/// Replaces a file as a whole, for who holds the [`Lock`].
pub(super) fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let folder = path.parent().context("no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    disk::replace(path, value)
}

/// All files of a folder that hold such a value.
pub(super) fn load<T: for<'a> Deserialize<'a>>(folder: &Path) -> Result<Vec<T>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut values = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = match fs::read(&path) {
            // Removed since.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        let value = serde_json::from_slice(&text);
        values.push(value.with_context(|| format!("{} is damaged", path.display()))?);
    }
    Ok(values)
}

fn store(paths: &Paths, network: &Network) -> Result<()> {
    save(&paths.networks().join(format!("{}.json", network.name)), network)
}

/// All networks, by name; the predefined ones are made if they are not there yet.
///
/// # Errors
/// When the folder can't be read or written.
pub fn list(paths: &Paths) -> Result<Vec<Network>> {
    let known: Vec<Network> = load(&paths.networks())?;
    if PREDEFINED.iter().all(|name| known.iter().any(|network| network.name == *name)) {
        return Ok(sorted(known));
    }
    let lock = lock(paths)?;
    list_locked(paths, &lock)
}

fn sorted(mut networks: Vec<Network>) -> Vec<Network> {
    networks.sort_by(|one, two| one.name.cmp(&two.name));
    networks
}

pub(super) fn list_locked(paths: &Paths, _lock: &Lock) -> Result<Vec<Network>> {
    let mut known: Vec<Network> = load(&paths.networks())?;
    for name in PREDEFINED {
        if known.iter().any(|network| network.name == name) {
            continue;
        }
        let driver = if name == "none" { "null" } else { name };
        let mut network = blank(name, driver)?;
        if driver == "bridge" {
            network.device = "uctr0".into();
            network.pool = Some(ipam::choose(&taken(&known)?)?);
        }
        store(paths, &network)?;
        known.push(network);
    }
    Ok(sorted(known))
}

fn blank(name: &str, driver: &str) -> Result<Network> {
    Ok(Network {
        id: random_id()?,
        name: name.into(),
        driver: driver.into(),
        created: jiff::Timestamp::now(),
        pool: None,
        device: String::new(),
        internal: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    })
}

/// Addresses that are in use by networks and on this host.
fn taken(networks: &[Network]) -> Result<Vec<Ipv4Net>> {
    let host = Socket::open().and_then(|host| host.destinations());
    let mut taken = host.context("read the host's routes")?;
    taken.extend(networks.iter().filter_map(|network| Some(network.pool.as_ref()?.subnet)));
    Ok(taken)
}

/// Finds the one that is meant: by name, ID, or the beginning of an ID.
///
/// # Errors
/// When there is none, or several IDs begin so.
pub fn find(paths: &Paths, name: &str) -> Result<Network> {
    pick(&list(paths)?, name).cloned()
}

pub(super) fn pick<'a>(networks: &'a [Network], name: &str) -> Result<&'a Network> {
    let name = if name == "default" { "bridge" } else { name };
    let exact = networks.iter().find(|network| network.name == name || network.id == name);
    if let Some(network) = exact {
        return Ok(network);
    }
    let mut begin =
        networks.iter().filter(|network| !name.is_empty() && network.id.starts_with(name));
    match (begin.next(), begin.next()) {
        (Some(network), None) => Ok(network),
        (Some(_), Some(_)) => bail!("network {name} is ambiguous: several IDs begin so"),
        _ => bail!("network {name} not found"),
    }
}

/// Makes a network; its bridge comes with its first member.
///
/// # Errors
/// In docker's words: a name that is taken, a subnet that overlaps …
pub fn create(paths: &Paths, request: &Request) -> Result<Network> {
    let name = &request.name;
    check_name(name)?;
    let driver = if request.driver.is_empty() { "bridge" } else { &request.driver };
    ensure!(driver == "bridge", "plugin \"{driver}\" not found: only the driver bridge is here");
    ensure!(
        !PREDEFINED.contains(&name.as_str()) && name != "default",
        "operation is not permitted on predefined {name} network"
    );
    for (option, value) in &request.options {
        check_option(option, value)?;
    }
    let lock = lock(paths)?;
    let known = list_locked(paths, &lock)?;
    if known.iter().any(|network| network.name == *name) {
        bail!("network with name {name} already exists");
    }
    let mut network = blank(name, driver)?;
    network.device = match request.options.get(DEVICE) {
        Some(device) => device.clone(),
        None => format!("br-{}", &network.id[..12]),
    };
    if let Some(other) = known.iter().find(|other| other.device == network.device) {
        bail!(
            "cannot create network {name}: network {} has its device {}",
            other.name,
            other.device
        );
    }
    network.pool = Some(ipam::pool(request, &taken(&known)?)?);
    network.internal = request.internal;
    network.labels.clone_from(&request.labels);
    network.options.clone_from(&request.options);
    store(paths, &network)?;
    Ok(network)
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    ensure!(
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(plain)
            && name.len() <= 128,
        "invalid network name {name:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed"
    );
    Ok(())
}

fn check_option(option: &str, value: &str) -> Result<()> {
    let device = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good = match option {
        // As the kernel wants it, and without what the firewall's language would read otherwise, or
        // what stands for all devices in /proc/sys/net.
        DEVICE => {
            (1..16).contains(&value.len())
                && !matches!(value, "all" | "default")
                && value.starts_with(|c: char| c.is_ascii_alphabetic())
                && value.chars().all(device)
        }
        MTU => value.parse::<u32>().is_ok_and(|mtu| (68..=65535).contains(&mtu)),
        MASQUERADE => matches!(value, "true" | "false"),
        _ => bail!("unknown option {option}: {DEVICE}, {MTU} and {MASQUERADE} are known"),
    };
    ensure!(good, "invalid value for {option}: {value:?}");
    Ok(())
}

/// Forgets a network.
pub(super) fn forget(paths: &Paths, network: &Network, _lock: &Lock) -> Result<()> {
    let path = paths.networks().join(format!("{}.json", network.name));
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}

/// Gives the default network another device, because the name of its own is taken by something else.
pub(super) fn change_device(paths: &Paths, network: &mut Network, _lock: &Lock) -> Result<()> {
    network.device = format!("br-{}", &network.id[..12]);
    store(paths, network)
}

/// Chooses other addresses for a network without members, if the host uses those by now.
pub(super) fn refresh(
    paths: &Paths,
    networks: &mut [Network],
    at: usize,
    _lock: &Lock,
) -> Result<()> {
    let others: Vec<_> =
        networks.iter().filter(|other| other.id != networks[at].id).cloned().collect();
    let taken = taken(&others)?;
    let network = &mut networks[at];
    let Some(pool) = &network.pool else { return Ok(()) };
    let Some(clash) = taken.iter().find(|other| ipam::overlap(&pool.subnet, other)) else {
        return Ok(());
    };
    ensure!(
        pool.automatic,
        "network {}: its subnet {} overlaps with {clash}, to which this host has a route",
        network.name,
        pool.subnet
    );
    network.pool = Some(ipam::choose(&taken)?);
    store(paths, network)
}
