//! Who is on which network.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::bridge::{self, link_name};
use super::definition::{self, Lock, Network};
use super::firewall::{self, Published};
use super::helper::{self, Process};
use super::netlink::Socket;
use super::{Attached, Endpoint, Member, PortMapping, Wish, conntrack, ipam, proxy, resolver};
use crate::paths::Paths;

/// A container that is on networks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The container's ID.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Its networks; the first that isn't internal has its default route and its published ports.
    pub endpoints: Vec<Endpoint>,
    /// With the host's ports.
    pub ports: Vec<PortMapping>,
    /// `--dns`
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    proxy: Option<Process>,
}

impl Record {
    fn is_on(&self, network: &Network) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.network_id == network.id)
    }

    /// The endpoint that has the default route, and so the published ports.
    fn main_endpoint(&self) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.gateway.is_some())
    }

    /// Its address on a network.
    #[must_use]
    pub fn address(&self, network_id: &str) -> Option<Ipv4Addr> {
        let endpoint = self.endpoints.iter().find(|endpoint| endpoint.network_id == network_id)?;
        endpoint.ipv4()
    }

    /// The host's devices of its networks.
    pub(super) fn links(&self) -> Vec<String> {
        let link = |endpoint: &Endpoint| link_name(&self.id, &endpoint.network_id);
        self.endpoints.iter().map(link).collect()
    }

    fn attached(&self) -> Attached {
        Attached { endpoints: self.endpoints.clone(), ports: self.ports.clone() }
    }
}

/// All that a member is known by on a network, in lower case.
pub(super) fn names<'a>(
    member: &'a Record,
    endpoint: &'a Endpoint,
) -> impl Iterator<Item = String> + 'a {
    let short = member.id.get(..12).unwrap_or(&member.id);
    let own = [member.name.as_str(), short].into_iter();
    own.chain(endpoint.aliases.iter().map(String::as_str)).flat_map(|name| {
        let name = name.to_ascii_lowercase();
        let full = format!("{name}.{}", endpoint.network.to_ascii_lowercase());
        [name, full]
    })
}

impl Endpoint {
    fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address.addr() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
    }
}

/// All containers that are on networks. Also those that died since.
///
/// # Errors
/// When their files can't be read.
pub fn list(paths: &Paths) -> Result<Vec<Record>> {
    let mut records: Vec<Record> = definition::load(&paths.network_members())?;
    records.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(records)
}

fn file(paths: &Paths, id: &str) -> PathBuf {
    paths.network_members().join(format!("{id}.json"))
}

/// All that is known, while nobody else changes it.
struct State<'a> {
    paths: &'a Paths,
    lock: Lock,
    host: Socket,
    networks: Vec<Network>,
    members: Vec<Record>,
}

impl<'a> State<'a> {
    /// Takes the lock, and removes what is left of dead members and of networks without any.
    fn open(paths: &'a Paths) -> Result<Self> {
        let lock = definition::lock(paths)?;
        let networks = definition::list_locked(paths, &lock)?;
        let host = Socket::open().context("open a netlink socket")?;
        let mut state = Self { paths, lock, host, networks, members: list(paths)? };
        for member in state.members.clone() {
            let mut alive = false;
            for link in member.links() {
                alive |= state.host.link(&link).context("look up a network device")?.is_some();
            }
            if !alive {
                state.remove(&member.id)?;
            }
        }
        // A network's bridge is made first and removed last. Whoever was to remove it was killed.
        for network in state.networks.clone() {
            let used = state.members.iter().any(|member| member.is_on(&network));
            if !used && bridge::is_own(&state.host, &network)? == Some(true) {
                state.refresh(&network.id)?;
            }
        }
        Ok(state)
    }

    fn save(&mut self, record: &Record) -> Result<()> {
        definition::save(&file(self.paths, &record.id), record)?;
        self.members.retain(|member| member.id != record.id);
        self.members.push(record.clone());
        Ok(())
    }

    fn member(&self, id: &str) -> Option<&Record> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Removes all that is there for a member, however much of it that is.
    fn remove(&mut self, id: &str) -> Result<()> {
        let Some(record) = self.member(id).cloned() else { return Ok(()) };
        let mut first = None;
        let mut note = |result: Result<()>| first = first.take().or(result.err());
        if let Some(proxy) = record.proxy {
            proxy.end();
        }
        for link in record.links() {
            note(self.host.remove_link(&link).with_context(|| format!("remove the device {link}")));
        }
        self.members.retain(|member| member.id != id);
        for endpoint in &record.endpoints {
            note(self.refresh(&endpoint.network_id));
        }
        forget_flows(&record);
        if let Some(error) = first {
            return Err(error);
        }
        match fs::remove_file(file(self.paths, id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("remove the file of a network's member")
            }
            _ => Ok(()),
        }
    }

    /// Makes a network's firewall, bridge and resolver what its members need.
    fn refresh(&mut self, network_id: &str) -> Result<()> {
        let Some(network) = self.networks.iter().find(|network| network.id == network_id) else {
            return Ok(());
        };
        let members: Vec<_> = self.members.iter().filter(|member| member.is_on(network)).collect();
        if members.is_empty() {
            self.stop_resolver(network);
            firewall::remove(network, &self.lock)?;
            if bridge::is_own(&self.host, network)? == Some(true) {
                self.host
                    .remove_link(&network.device)
                    .with_context(|| format!("remove the bridge {}", network.device))?;
            }
            return Ok(());
        }
        let published = members.into_iter().filter_map(|member| {
            let endpoint =
                member.main_endpoint().filter(|endpoint| endpoint.network_id == network.id)?;
            Some(Published { id: &member.id, address: endpoint.ipv4()?, ports: &member.ports })
        });
        firewall::write(network, &published.collect::<Vec<_>>(), &self.lock)?;
        self.start_resolver(network)
    }

    fn resolver(&self, network: &Network) -> PathBuf {
        self.paths.network_resolvers().join(format!("{}.json", network.id))
    }

    /// Starts the network's resolver, unless it runs.
    fn start_resolver(&self, network: &Network) -> Result<()> {
        let (true, Some(pool)) = (network.has_names(), &network.pool) else { return Ok(()) };
        let known = fs::read(self.resolver(network)).ok();
        let known: Option<Process> = known.and_then(|text| serde_json::from_slice(&text).ok());
        if known.is_some_and(Process::is_alive) {
            return Ok(());
        }
        let job = resolver::Job { network_id: network.id.clone(), address: pool.gateway };
        let resolver = helper::start::<()>(self.paths, resolver::COMMAND, &job)
            .with_context(|| format!("names on network {}", network.name))?;
        definition::save(&self.resolver(network), &resolver.process)?;
        resolver.let_go()
    }

    fn stop_resolver(&self, network: &Network) {
        let path = self.resolver(network);
        let known = fs::read(&path).ok();
        let known: Option<Process> = known.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(process) = known {
            process.end();
            let _ = fs::remove_file(path);
        }
    }

    /// A network that can get members now: with a free name for its bridge, and addresses that the
    /// host doesn't use for something else.
    fn prepare(&mut self, name: &str) -> Result<Network> {
        let id = definition::pick(&self.networks, name)?.id.clone();
        let at = self.networks.iter().position(|network| network.id == id).context("vanished")?;
        let network = &mut self.networks[at];
        ensure!(network.pool.is_some(), "container cannot be connected to {name} network");
        if self.members.iter().any(|member| member.is_on(network)) {
            return Ok(network.clone());
        }
        if network.name == "bridge" && bridge::is_own(&self.host, network)? == Some(false) {
            definition::change_device(self.paths, network, &self.lock)?;
        }
        definition::refresh(self.paths, &mut self.networks, at, &self.lock)?;
        Ok(self.networks[at].clone())
    }

    /// What the container gets on a network; nothing is made yet.
    fn plan(&mut self, record: &Record, wish: &Wish, inside: &Socket) -> Result<Endpoint> {
        let network = self.prepare(&wish.network)?;
        ensure!(
            wish.aliases.is_empty() || network.has_names(),
            "network-scoped alias is supported only for containers in user defined networks"
        );
        ensure!(
            !record.is_on(&network),
            "endpoint with name {} already exists in network {}",
            record.name,
            network.name
        );
        let used: Vec<_> =
            self.members.iter().filter_map(|member| member.address(&network.id)).collect();
        let address = ipam::allocate(&network, &wish.ip, &used)?;
        let mac = ipam::mac(wish.mac.as_deref(), address.addr())?;
        let gateway = network.pool.as_ref().map(|pool| IpAddr::V4(pool.gateway));
        let mut number = 0;
        let interface = loop {
            let name = format!("eth{number}");
            let taken = record.endpoints.iter().any(|endpoint| endpoint.interface == name);
            if !taken && inside.link(&name).context("look at the container's devices")?.is_none() {
                break name;
            }
            number += 1;
        };
        let has_route = record.main_endpoint().is_some() || network.internal;
        Ok(Endpoint {
            network: network.name.clone(),
            network_id: network.id.clone(),
            interface,
            mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
            addresses: vec![address.into()],
            gateway: gateway.filter(|_| !has_route),
            aliases: wish.aliases.clone(),
            resolver: gateway.filter(|_| network.has_names()),
        })
    }

    /// Makes what was planned of one network.
    fn plug(
        &self,
        record: &Record,
        endpoint: &Endpoint,
        namespace: BorrowedFd,
        inside: &Socket,
    ) -> Result<()> {
        let network = definition::pick(&self.networks, &endpoint.network_id)?;
        let ip = endpoint.ipv4().context("no address")?;
        let pool = network.pool.as_ref().context("no addresses")?;
        let port = bridge::Port {
            container: &record.id,
            namespace,
            interface: &endpoint.interface,
            mac: ipam::mac(Some(&endpoint.mac), ip)?,
            address: ipnet::Ipv4Net::new(ip, pool.subnet.prefix_len())?,
            gateway: endpoint.gateway.map(|_| pool.gateway),
        };
        bridge::plug(&self.host, inside, network, &port)
    }

    /// Refuses ports that another container has.
    fn check_ports(&self, member: &Member) -> Result<()> {
        for port in member.ports.iter().filter(|port| port.host_port_end.is_none()) {
            let holder = self.members.iter().find(|other| {
                other.id != member.id && other.ports.iter().any(|held| held.clashes(port))
            });
            if let (Some(holder), Some(address)) = (holder, port.addresses().first()) {
                bail!(
                    "Bind for {address} failed: port is already allocated (by the container {})",
                    holder.name
                );
            }
        }
        Ok(())
    }

    /// Starts the proxy of the published ports, which chooses those that are free to choose.
    fn publish(&mut self, record: &mut Record, wanted: &[PortMapping]) -> Result<()> {
        let Some(target) = record.main_endpoint().and_then(Endpoint::ipv4) else { return Ok(()) };
        if wanted.is_empty() {
            return Ok(());
        }
        let job = proxy::Job { ports: wanted.to_vec(), target, links: record.links() };
        let proxy = helper::start::<Vec<PortMapping>>(self.paths, proxy::COMMAND, &job)?;
        record.proxy = Some(proxy.process);
        record.ports.clone_from(&proxy.answer);
        self.save(record)?;
        proxy.let_go()
    }

    fn attach(&mut self, member: &Member, inside: &Socket) -> Result<Attached> {
        let mut record = Record {
            id: member.id.into(),
            name: member.name.into(),
            endpoints: Vec::new(),
            ports: Vec::new(),
            dns: member.dns.iter().filter_map(|server| server.parse().ok()).collect(),
            proxy: None,
        };
        let external = || {
            let Member { id, name, .. } = member;
            format!("driver failed programming external connectivity on endpoint {name} ({id})")
        };
        self.check_ports(member).with_context(external)?;
        for wish in member.wishes {
            let endpoint = self.plan(&record, wish, inside)?;
            record.endpoints.push(endpoint);
        }
        self.save(&record)?;
        for endpoint in &record.endpoints {
            self.plug(&record, endpoint, member.namespace, inside)?;
        }
        self.publish(&mut record, member.ports).with_context(external)?;
        for endpoint in &record.endpoints {
            self.refresh(&endpoint.network_id)?;
        }
        forget_flows(&record);
        Ok(record.attached())
    }
}

/// Has what goes on being sent to published ports find its way anew.
fn forget_flows(record: &Record) {
    // Where the kernel can't do that, those flows go wrong until their sender pauses for a while.
    let _ = conntrack::forget(&record.ports);
}

/// Connects a container that is created and not started yet. Called in the host's network
/// namespace. What the container had of an earlier run is replaced.
///
/// # Errors
/// With docker's words where it has some; nothing is left behind.
pub fn attach(paths: &Paths, member: &Member) -> Result<Attached> {
    let wished = |wish: &&Wish| !is_namespace(&wish.network);
    let wishes: Vec<Wish> = member.wishes.iter().filter(wished).cloned().collect();
    if wishes.is_empty() {
        detach(paths, member.id)?;
        return Ok(Attached::default());
    }
    let member = Member { wishes: &wishes, ..*member };
    let inside =
        Socket::open_in(member.namespace).context("enter the container's network namespace")?;
    let mut state = State::open(paths)?;
    state.remove(member.id)?;
    state.attach(&member, &inside).inspect_err(|_| {
        // That is the error to report.
        let _ = state.remove(member.id);
    })
}

/// Whether `--network` names a namespace, in which nothing is to be made.
fn is_namespace(name: &str) -> bool {
    matches!(name, "host" | "none") || name.starts_with("container:")
}

/// Frees all that [`attach`] took for that container; what isn't there any more is no error.
///
/// # Errors
/// When something can't be removed.
pub fn detach(paths: &Paths, id: &str) -> Result<()> {
    // Also what a call that was killed has left half-made is on record.
    if !file(paths, id).exists() {
        return Ok(());
    }
    State::open(paths)?.remove(id)
}

/// Removes what is left of dead members.
///
/// # Errors
/// When something can't be removed.
pub fn sweep(paths: &Paths) -> Result<()> {
    State::open(paths).map(drop)
}

/// Connects a running container with one more network, the only one of `member.wishes`.
///
/// # Errors
/// As [`attach`]; the container keeps what it had.
pub fn connect(paths: &Paths, member: &Member) -> Result<Attached> {
    let [wish] = member.wishes else { bail!("one network at a time can be connected") };
    let inside =
        Socket::open_in(member.namespace).context("enter the container's network namespace")?;
    let mut state = State::open(paths)?;
    let Some(before) = state.member(member.id).cloned() else {
        return state.attach(member, &inside).inspect_err(|_| {
            let _ = state.remove(member.id);
        });
    };
    let endpoint = state.plan(&before, wish, &inside)?;
    let mut record = before.clone();
    record.endpoints.push(endpoint.clone());
    state.save(&record)?;
    let made = state.plug(&record, &endpoint, member.namespace, &inside);
    match made.and_then(|()| state.refresh(&endpoint.network_id)) {
        Ok(()) => Ok(record.attached()),
        Err(error) => {
            // That is the error to report.
            let _ = state.unplug(&before, &endpoint);
            Err(error)
        }
    }
}

impl State<'_> {
    /// Takes one network away; `rest` is what stays.
    fn unplug(&mut self, rest: &Record, endpoint: &Endpoint) -> Result<()> {
        let link = link_name(&rest.id, &endpoint.network_id);
        self.host.remove_link(&link).with_context(|| format!("remove the device {link}"))?;
        self.save(rest)?;
        self.refresh(&endpoint.network_id)
    }
}

/// Disconnects a running container from one of its networks. When that had its default route and
/// its published ports, another one gets them.
///
/// # Errors
/// When it isn't on that network.
pub fn disconnect(
    paths: &Paths,
    id: &str,
    namespace: BorrowedFd,
    network: &str,
) -> Result<Attached> {
    let inside = Socket::open_in(namespace).context("enter the container's network namespace")?;
    let mut state = State::open(paths)?;
    let network = definition::pick(&state.networks, network)?.clone();
    let record = state.member(id).filter(|member| member.is_on(&network)).cloned();
    let Some(mut record) = record else {
        bail!("container {id} is not connected to network {}", network.name);
    };
    let at = record.endpoints.iter().position(|endpoint| endpoint.network_id == network.id);
    let endpoint = record.endpoints.remove(at.context("vanished")?);
    if record.endpoints.is_empty() {
        state.remove(id)?;
        return Ok(Attached::default());
    }
    let moves = endpoint.gateway.is_some();
    let old = record.proxy.take();
    let ports = std::mem::take(&mut record.ports);
    if moves {
        for other in &mut record.endpoints {
            let network = definition::pick(&state.networks, &other.network_id)?;
            if let Some(pool) = network.pool.as_ref().filter(|_| !network.internal) {
                other.gateway = Some(pool.gateway.into());
                break;
            }
        }
    }
    if let Some(old) = old {
        old.end();
    }
    state.unplug(&record, &endpoint)?;
    if let (true, Some(main)) = (moves, record.main_endpoint().cloned())
        && let (Some(link), Some(IpAddr::V4(gateway))) =
            (inside.link(&main.interface)?, main.gateway)
    {
        inside.set_default_route(link.index, gateway).context("default route")?;
    }
    state.publish(&mut record, &ports)?;
    for endpoint in &record.endpoints {
        state.refresh(&endpoint.network_id)?;
    }
    forget_flows(&record);
    Ok(record.attached())
}

/// Gives a member another name.
///
/// # Errors
/// When its file can't be written.
pub fn rename(paths: &Paths, id: &str, name: &str) -> Result<()> {
    let mut state = State::open(paths)?;
    let Some(mut record) = state.member(id).cloned() else { return Ok(()) };
    record.name = name.into();
    state.save(&record)
}

/// Removes a network.
///
/// # Errors
/// In docker's words: when it has members, is predefined, or isn't there.
pub fn remove(paths: &Paths, name: &str) -> Result<Network> {
    let state = State::open(paths)?;
    let network = definition::pick(&state.networks, name)?.clone();
    ensure!(
        !definition::PREDEFINED.contains(&network.name.as_str()),
        "{} is a pre-defined network and cannot be removed",
        network.name
    );
    let active: BTreeSet<String> = state
        .members
        .iter()
        .filter(|member| member.is_on(&network))
        .map(|member| {
            format!("name:\"{}\" id:\"{}\"", member.name, &member.id[..12.min(member.id.len())])
        })
        .collect();
    if !active.is_empty() {
        let active = active.into_iter().collect::<Vec<_>>().join(", ");
        bail!(
            "error while removing network: network {} id {} has active endpoints ({active})",
            network.name,
            network.id
        );
    }
    definition::forget(paths, &network, &state.lock)?;
    Ok(network)
}
