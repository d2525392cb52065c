//! What networks need and change on a host, and that nothing of it is left.

use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};
use serde_json::Value;

use super::hosts::{Host, get, hello, in_network_of};
use crate::support::{Sandbox, add, output, until};

#[test]
fn nothing_is_left_of_containers_that_are_gone() {
    let host = Host::new();
    host.says(&["network", "create", "net1"]);
    let before = host.traces();
    assert!(before.contains(" 0\n"), "the host forwards already: {before}");
    host.serve("web", &["-p", "8080:80", "-p", "5353:53/udp"]);
    let one = host.traces();
    host.start("member", &["--network", "net1", "-p", "8081:80"]);
    assert_eq!(host.helpers().len(), 3, "{:?}", host.helpers());
    host.says(&["rm", "-f", "member"]);
    assert_eq!(host.traces(), one);
    host.says(&["stop", "-t", "0", "web"]);
    assert_eq!(host.traces(), before);
    // It comes back with what it had.
    host.says(&["start", "web"]);
    until("it answers again", || get("127.0.0.1:8080") == hello());
    host.says(&["restart", "-t", "0", "web"]);
    until("it answers again", || get("127.0.0.1:8080") == hello());
    host.says(&["rm", "-f", "web"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_container_that_is_killed_with_its_monitor_leaves_nothing() {
    let host = Host::new();
    host.says(&["network", "create", "net1"]);
    let before = host.traces();
    host.serve("web", &["--network", "net1", "-p", "8080:80"]);
    let pid = host.inspect("container", "web")["State"]["Pid"].as_i64().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent: i64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    let command = std::fs::read(format!("/proc/{parent}/cmdline")).unwrap();
    assert!(String::from_utf8_lossy(&command).contains("monitor"), "{command:?}");
    for pid in [parent, pid] {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    // No command is run for that: the proxy sees that the container is gone.
    until("all is gone", || host.traces() == before);
}

#[test]
fn a_killed_proxy_and_a_killed_resolver_come_back_with_the_next_start() {
    let host = Host::new();
    let before = {
        host.says(&["network", "create", "net1"]);
        host.traces()
    };
    host.start("first", &["--network", "net1"]);
    let file = host.0.dir.path().join("run/networks/resolvers");
    let file = std::fs::read_dir(file).unwrap().next().unwrap().unwrap().path();
    let process: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let pid = i32::try_from(process["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    until("the resolver has ended", || host.helpers().is_empty());
    host.start("second", &["--network", "net1"]);
    assert!(
        host.says(&["exec", "second", "nslookup", "-type=a", "first"]).contains("Name:\tfirst")
    );
    host.says(&["rm", "-f", "first", "second"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_host_that_was_no_router_does_not_become_one() {
    let host = Host::new();
    let (one, two) = (host.other(1), host.other(2));
    let listener = two.run(|| TcpListener::bind("10.9.2.2:80").unwrap());
    let reach = || {
        one.run(|| {
            TcpStream::connect_timeout(&"10.9.2.2:80".parse().unwrap(), Duration::from_secs(1))
        })
        .is_ok()
    };
    host.serve("web", &["-p", "8080:80"]);
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
    assert!(!reach(), "it forwards from one host to another");
    assert_eq!(two.get("10.9.2.1:8080"), hello());
    host.says(&["rm", "-f", "web"]);
    assert!(!reach());
    // One that is a router stays one.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    host.serve("web", &["-p", "8080:80"]);
    assert!(reach(), "it does not forward any more");
    host.says(&["rm", "-f", "web"]);
    assert!(reach());
    drop(listener);
}

/// CVE-2020-13401: a container that may send what it likes (NET_RAW is among docker's defaults) says
/// that it is the router to everywhere.
#[test]
fn cve_2020_13401_the_host_takes_no_routes_from_a_container() {
    let host = Host::new();
    host.says(&["network", "create", "net1"]);
    host.start("one", &[]);
    host.start("two", &["--network", "net1"]);
    let routes = || {
        let said = |args: &[&str]| output(Command::new("ip").args(args)).ok().stdout;
        format!("{}{}", said(&["-6", "route"]), said(&["-6", "address", "show", "scope", "global"]))
    };
    host.start("neighbour", &[]);
    let before = routes();
    let neighbour = host.inspect("container", "neighbour")["State"]["Pid"].as_i64().unwrap();
    for name in ["one", "two"] {
        let pid = host.inspect("container", name)["State"]["Pid"].as_i64().unwrap();
        in_network_of(pid, || {
            advertise();
        });
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(routes(), before);
    let inside = in_network_of(neighbour, routes);
    assert!(!inside.contains("2001:db8"), "a neighbour takes them: {inside}");
}

/// Sends a router advertisement (RFC 4861, 4.2) with a prefix (4.6.2) to all on the link; with IPv6 on
/// again, as a container may have it that may configure its network.
fn advertise() {
    std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
    until("it has an address", || {
        let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        // Address, index, length, scope, flags (0x40: not yet known to be its own), name.
        table.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words[5] == "eth0" && u8::from_str_radix(words[4], 16).unwrap() & 0x40 == 0
        })
    });
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6);
    let socket = socket.unwrap();
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
    let mut packet = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    packet.extend([3, 4, 64, 0xc0]);
    packet.extend([0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend("2001:db8:bad::".parse::<Ipv6Addr>().unwrap().octets());
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    let all = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    let to = SockaddrIn6::from(all);
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
}

#[test]
fn two_places_of_containers_share_a_host() {
    let host = Host::new();
    host.serve("web", &["-p", "8080:80"]);
    let second = Host(Sandbox { dir: tempfile::tempdir_in("/var/tmp").unwrap() });
    second.0.image("web", &["CMD [\"sleep\", \"1000\"]"], |archive| {
        add(archive, tar::EntryType::Directory, "www", 0o755, b"");
        add(archive, tar::EntryType::Regular, "www/index.html", 0o644, b"hello");
    });
    second.serve("web", &["-p", "8081:80"]);
    assert_ne!(host.address("web"), second.address("web"));
    second
        .uctr(&["run", "--rm", "-p", "8080:80", "web", "true"])
        .fails(125, &["Bind for 0.0.0.0:8080 failed: port is already allocated"]);
    second.says(&["rm", "-f", "web"]);
    assert_eq!(get("127.0.0.1:8080"), hello());
    let other = host.other(1);
    assert_eq!(other.get("10.9.1.1:8080"), hello());
}

#[test]
fn nft_that_is_missing_is_named() {
    let host = Host::new();
    let before = host.traces();
    let empty = host.0.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut command = host.0.command(["run", "--rm", "web", "/bin/true"]);
    output(command.env("PATH", &empty).stderr(Stdio::piped()))
        .fails(125, &["run nft: networks need nftables"]);
    assert_eq!(host.traces(), before);
}
