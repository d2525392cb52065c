//! The firewall: an nftables table a network, written anew as a whole and in one transaction
//! whenever a member comes or goes. So whatever the kernel has is what the records say, also after a
//! crash, and nobody else's rules are touched.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::PortMapping;
use super::definition::{Lock, Network};

/// The group (`ip link … group`) of all our bridges.
pub const GROUP: u32 = 0x7563_7472;

/// While it is there the host forwards packets only because of us.
const GUARD: &str = "uctr_guard";

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Ports that lead to a member.
pub struct Published<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// Its address.
    pub address: Ipv4Addr,
    /// With the host's ports.
    pub ports: &'a [PortMapping],
}

/// Writes the table of a network that has members.
pub fn write(network: &Network, published: &[Published], lock: &Lock) -> Result<()> {
    if !network.internal {
        forward(lock)?;
    }
    nft(&rules(network, published)?, lock)
        .with_context(|| format!("firewall of network {}", network.name))
        .map(drop)
}

/// Removes the table of a network without members, and with the last one all that is ours.
pub fn remove(network: &Network, lock: &Lock) -> Result<()> {
    let table = network.table();
    match nft(&format!("add table ip {table}\ndelete table ip {table}\n"), lock) {
        // Then there are no tables either.
        Err(error) if is_missing(&error) => return Ok(()),
        other => other.with_context(|| format!("firewall of network {}", network.name))?,
    };
    let tables = nft("list tables ip\n", lock)?;
    let mut ours = tables.split_whitespace().filter(|word| word.starts_with("uctr_"));
    // Another --root may have members in this network namespace too.
    if ours.next() == Some(GUARD) && ours.next().is_none() {
        std::fs::write(FORWARD, "0").with_context(|| format!("write {FORWARD}"))?;
        nft(&format!("add table ip {GUARD}\ndelete table ip {GUARD}\n"), lock)?;
    }
    Ok(())
}

/// Lets the host forward packets. If it didn't before, it does so for our networks only: a host
/// that was no router doesn't become one for its neighbours.
fn forward(lock: &Lock) -> Result<()> {
    let now = std::fs::read_to_string(FORWARD).with_context(|| format!("read {FORWARD}"))?;
    if now.trim() != "0" {
        return Ok(());
    }
    let rules = format!(
        "add table ip {GUARD}\n\
         delete table ip {GUARD}\n\
         table ip {GUARD} {{\n\
         chain forward {{\n\
         type filter hook forward priority filter\n\
         iifgroup != {GROUP} oifgroup != {GROUP} drop\n\
         }}\n\
         }}\n"
    );
    nft(&rules, lock).context("keep the host from forwarding for others")?;
    std::fs::write(FORWARD, "1").with_context(|| format!("write {FORWARD}"))
}

/// Everything that is put in has a type or was checked when the network was made: nothing of it can
/// be read as something else.
fn rules(network: &Network, published: &[Published]) -> Result<String> {
    let pool = network.pool.as_ref().context("the network has no addresses")?;
    let (table, device, subnet) = (network.table(), &network.device, pool.subnet);
    let mut ports = String::new();
    for member in published.iter().filter(|_| !network.internal) {
        for port in member.ports {
            ports += &translation(member, port)?;
        }
    }
    let masquerade = match network.masquerades() {
        true => format!("ip saddr {subnet} oifname != \"{device}\" masquerade"),
        false => String::new(),
    };
    let inside = match network.internal {
        true => format!("iifname \"{device}\" oifname != \"{device}\" drop"),
        false => String::new(),
    };
    // From one member to another over the host: the answer has to come back the same way.
    // Into the network come only answers, and questions for published ports: neither other hosts
    // nor other networks reach a member otherwise.
    Ok(format!(
        "add table ip {table}\n\
         delete table ip {table}\n\
         table ip {table} {{\n\
         chain ports {{\n\
         {ports}\
         }}\n\
         chain prerouting {{\n\
         type nat hook prerouting priority -100\n\
         fib daddr type local jump ports\n\
         }}\n\
         chain output {{\n\
         type nat hook output priority -100\n\
         ip daddr != 127.0.0.0/8 fib daddr type local jump ports\n\
         }}\n\
         chain postrouting {{\n\
         type nat hook postrouting priority 100\n\
         {masquerade}\n\
         ip saddr {subnet} oifname \"{device}\" ct status dnat masquerade\n\
         }}\n\
         chain forwarded {{\n\
         type filter hook forward priority filter\n\
         {inside}\n\
         oifname != \"{device}\" accept\n\
         iifname \"{device}\" accept\n\
         ct state established,related accept\n\
         ct status dnat accept\n\
         drop\n\
         }}\n\
         }}\n"
    ))
}

/// The rule by which a port leads to the member. The host's loopback addresses are the proxy's, and
/// so is the member itself: the kernel drops a packet that comes from where it is to go.
fn translation(member: &Published, port: &PortMapping) -> Result<String> {
    let host_port = port.host_port.context("the host's port is not chosen yet")?;
    let (protocol, address) = (&port.protocol, member.address);
    let mut rule = format!("ip saddr != {address} ");
    match port.host_ip {
        Some(IpAddr::V6(_)) => return Ok(String::new()),
        Some(IpAddr::V4(ip)) if ip.is_loopback() => return Ok(String::new()),
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => write!(rule, "ip daddr {ip} ")?,
        _ => {}
    }
    ensure!(matches!(protocol.as_str(), "tcp" | "udp"), "unknown protocol {protocol}");
    let short = member.id.get(..12).unwrap_or(member.id);
    let target = port.container_port;
    writeln!(rule, "{protocol} dport {host_port} dnat to {address}:{target} comment \"{short}\"")?;
    Ok(rule)
}

fn is_missing(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::NotFound)
}

/// Runs nft(8) with a script; all of it or nothing takes effect. It holds the lock as well: should
/// this process be killed, nobody else changes anything before nft is done.
fn nft(script: &str, lock: &Lock) -> Result<String> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let inherited = |flag| fcntl(&**lock, FcntlArg::F_SETFD(flag)).context("pass the lock on");
    inherited(FdFlag::empty())?;
    let child = command.spawn();
    inherited(FdFlag::FD_CLOEXEC)?;
    let mut child = child
        .context("run nft: networks need nftables (Debian, Fedora, Alpine: package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        // Why it doesn't read on, it says itself.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().context("wait for nft")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
