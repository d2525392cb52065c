//! The proxy of a container's published ports: for connections that address translation in the
//! kernel can't lead into the container, which are those to the host's loopback addresses, over IPv6,
//! and of the container with itself. Its sockets also keep the ports from being taken by others.

use std::collections::HashMap;
use std::io;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use serde::{Deserialize, Serialize};

use super::PortMapping;
use super::helper::{self, Watch};
use crate::paths::Paths;

/// The hidden subcommand.
pub const COMMAND: &str = "port-proxy";

/// What the proxy is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The ones that are published.
    pub ports: Vec<PortMapping>,
    /// The container.
    pub target: Ipv4Addr,
    /// It serves until these devices of the host are gone.
    pub links: Vec<String>,
}

/// After that long without a word a UDP client is forgotten.
const UDP_IDLE: Duration = Duration::from_secs(90);
const UDP_CLIENTS: usize = 1024;
const CONNECT: Duration = Duration::from_secs(10);
/// Of the threads that copy.
const STACK: usize = 64 * 1024;

enum Listener {
    Tcp(TcpListener, SocketAddr),
    Udp(Arc<UdpSocket>, SocketAddr, Clients),
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

/// The process: answers with the ports that it has, and serves them until the container is gone.
///
/// # Errors
/// When it can't begin; later ones only concern single connections.
pub fn main(paths: &Paths) -> Result<()> {
    let job: Job = helper::input()?;
    let ready = helper::into_background(paths).and_then(|()| {
        // Each connection takes two descriptors.
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        let watch = Watch::new()?;
        let (ports, listeners) = open_all(&job)?;
        Ok((ports, listeners, watch))
    });
    let (listeners, watch) = match ready {
        Ok((ports, listeners, watch)) => {
            helper::answer(&Ok(ports))?;
            (listeners, watch)
        }
        Err(error) => return helper::answer::<()>(&Err(error)),
    };
    serve(&listeners, &watch, &job.links)?;
    // The next one may have the ports at once.
    drop(listeners);
    // What the container's monitor should have done, unless it does so right now.
    super::sweep(paths)
}

fn serve(listeners: &[Listener], watch: &Watch, links: &[String]) -> Result<()> {
    let mut fds = vec![PollFd::new(watch.fd(), PollFlags::POLLIN)];
    fds.extend(listeners.iter().map(|listener| match listener {
        Listener::Tcp(socket, _) => PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        Listener::Udp(socket, ..) => PollFd::new(socket.as_fd(), PollFlags::POLLIN),
    }));
    while !watch.all_gone(links) {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.context("poll")?,
        };
        let ready = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        watch.drain();
        let ready: Vec<bool> = fds.iter().skip(1).map(ready).collect();
        for (listener, _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            match listener {
                Listener::Tcp(socket, target) => accept(socket, *target),
                Listener::Udp(socket, target, clients) => datagram(socket, *target, clients),
            }
        }
    }
    Ok(())
}

fn background(work: impl FnOnce() + Send + 'static) -> bool {
    thread::Builder::new().stack_size(STACK).spawn(work).is_ok()
}

fn accept(socket: &TcpListener, target: SocketAddr) {
    match socket.accept() {
        Ok((client, _)) => {
            background(move || {
                if let Ok(server) = TcpStream::connect_timeout(&target, CONNECT) {
                    copy_both(client, server);
                }
            });
        }
        // Too many open files: some will be closed.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            thread::sleep(Duration::from_millis(20));
        }
        Err(_) => {}
    }
}

fn copy_both(client: TcpStream, server: TcpStream) {
    let (client, server) = (Arc::new(client), Arc::new(server));
    let other = (client.clone(), server.clone());
    if background(move || copy(&other.1, &other.0)) {
        copy(&client, &server);
    }
}

/// Until one side has said all; the other one may still have something to say.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = to.set_nodelay(true);
    let end = match io::copy(&mut from, &mut to) {
        Ok(_) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    let _ = to.shutdown(end);
    if end == Shutdown::Both {
        let _ = from.shutdown(end);
    }
}

fn datagram(socket: &Arc<UdpSocket>, target: SocketAddr, clients: &Clients) {
    let mut buffer = vec![0; 64 * 1024];
    let Ok((length, client)) = socket.recv_from(&mut buffer) else { return };
    let mut known = clients.lock().unwrap_or_else(PoisonError::into_inner);
    let upstream = match known.get(&client) {
        Some(upstream) => upstream.clone(),
        None if known.len() >= UDP_CLIENTS => return,
        None => {
            let Ok(upstream) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return };
            if upstream.connect(target).is_err()
                || upstream.set_read_timeout(Some(UDP_IDLE)).is_err()
            {
                return;
            }
            let upstream = Arc::new(upstream);
            let (socket, clients, answers) = (socket.clone(), clients.clone(), upstream.clone());
            if !background(move || answer(&socket, client, &answers, &clients)) {
                return;
            }
            known.insert(client, upstream.clone());
            upstream
        }
    };
    drop(known);
    let _ = upstream.send(&buffer[..length]);
}

/// Hands the container's answers to a client.
fn answer(socket: &UdpSocket, client: SocketAddr, upstream: &UdpSocket, clients: &Clients) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match upstream.recv(&mut buffer) {
            Ok(length) => drop(socket.send_to(&buffer[..length], client)),
            // Nobody listens in the container; somebody may later.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(_) => break,
        }
    }
    clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&client);
}

fn open_all(job: &Job) -> Result<(Vec<PortMapping>, Vec<Listener>)> {
    let (mut ports, mut listeners) = (Vec::new(), Vec::new());
    for wanted in &job.ports {
        let (port, opened) = open(wanted, job.target)?;
        ports.push(port);
        listeners.extend(opened);
    }
    Ok((ports, listeners))
}

/// Takes the port on all its addresses; of several that it may be the first that is free on all.
fn open(wanted: &PortMapping, target: Ipv4Addr) -> Result<(PortMapping, Vec<Listener>)> {
    let candidates: Vec<u16> = match (wanted.host_port, wanted.host_port_end) {
        (Some(first), Some(last)) => (first..=last).collect(),
        (Some(port), None) => vec![port],
        // 0 lets the kernel choose; for all addresses at once that may need a few tries.
        (None, _) => vec![0; 16],
    };
    let mut last = anyhow!("no port");
    for candidate in candidates {
        match open_at(wanted, candidate, target) {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open_at(
    wanted: &PortMapping,
    candidate: u16,
    target: Ipv4Addr,
) -> Result<(PortMapping, Vec<Listener>)> {
    let mut port =
        PortMapping { host_port: Some(candidate), host_port_end: None, ..wanted.clone() };
    let target = SocketAddr::new(IpAddr::V4(target), wanted.container_port);
    let mut listeners = Vec::new();
    for ip in wanted.addresses().into_iter().map(|address| address.ip()) {
        let address = SocketAddr::new(ip, port.host_port.unwrap_or(candidate));
        let listener = match listener(&wanted.protocol, address, target) {
            // A host without IPv6.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) if ip == Ipv6Addr::UNSPECIFIED => {
                continue;
            }
            Err(Errno::EADDRINUSE) => bail!("Bind for {address} failed: port is already allocated"),
            other => other.with_context(|| format!("Bind for {address} failed"))?,
        };
        let local = match &listener {
            Listener::Tcp(socket, _) => socket.local_addr(),
            Listener::Udp(socket, ..) => socket.local_addr(),
        };
        port.host_port = Some(local.context("read the chosen port")?.port());
        listeners.push(listener);
    }
    Ok((port, listeners))
}

fn listener(protocol: &str, address: SocketAddr, target: SocketAddr) -> nix::Result<Listener> {
    let kind = if protocol == "udp" { SockType::Datagram } else { SockType::Stream };
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(family, kind, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if kind == SockType::Stream {
        // Connections of an earlier run may still be ending.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Datagram {
        return Ok(Listener::Udp(Arc::new(socket.into()), target, Clients::default()));
    }
    listen(&socket, Backlog::new(1024)?)?;
    Ok(Listener::Tcp(socket.into(), target))
}
