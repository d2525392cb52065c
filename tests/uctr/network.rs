//! Networks, published ports and names (S88–S99). The test's own network namespace is the host; other
//! hosts are network namespaces that are connected with it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::support::{Output, Sandbox, add, output};

const PATIENCE: Duration = Duration::from_secs(10);

/// A host with an image `web`, which can serve `hello` on port 80.
struct Host(Sandbox);

const SERVE: &str = "exec httpd -f -p 80 -h /www";

/// Another host. Its network namespace lasts as long as the process.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.image(
            "web",
            &["CMD [\"sh\", \"-c\", \"exec sleep 1000\"]", "EXPOSE 80"],
            |archive| {
                add(archive, tar::EntryType::Directory, "www", 0o755, b"");
                add(archive, tar::EntryType::Regular, "www/index.html", 0o644, b"hello");
            },
        );
        Self(sandbox)
    }

    fn uctr(&self, args: &[&str]) -> Output {
        self.0.uctr(args)
    }

    fn says(&self, args: &[&str]) -> String {
        self.uctr(args).ok().stdout.trim().to_owned()
    }

    /// A container that runs on.
    fn start(&self, name: &str, flags: &[&str]) -> String {
        self.says(&[&["run", "-d", "--name", name], flags, &["web"]].concat())
    }

    /// One that serves.
    fn serve(&self, name: &str, flags: &[&str]) -> String {
        let id = self
            .says(&[&["run", "-d", "--name", name], flags, &["web", "sh", "-c", SERVE]].concat());
        let address = SocketAddr::new(self.address(name), 80);
        until("it listens", || TcpStream::connect(address).is_ok());
        id
    }

    fn inspect(&self, kind: &str, name: &str) -> Value {
        let mut all: Value = serde_json::from_str(&self.says(&[kind, "inspect", name])).unwrap();
        all[0].take()
    }

    /// A container's address on the only network that it is on.
    fn address(&self, name: &str) -> IpAddr {
        let networks = &self.inspect("container", name)["NetworkSettings"]["Networks"];
        let (_, network) = networks.as_object().unwrap().iter().next().unwrap();
        network["IPAddress"].as_str().unwrap().parse().unwrap()
    }

    /// Connects another host: this one has 10.9.N.1 and fd99:N::1 there, the other one 10.9.N.2 and
    /// fd99:N::2, and it routes over this one.
    fn other(&self, number: u8) -> Other {
        let other = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
        let other = Other(other);
        let pid = other.0.id().to_string();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        until("it has a namespace", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link != own)
        });
        let link = format!("up{number}");
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        let (v4, v6) = (format!("10.9.{number}"), format!("fd99:{number}:"));
        for address in [format!("{v4}.1/24"), format!("{v6}:1/64")] {
            ip(&["address", "add", &address, "dev", &link, "nodad"]
                [..if address.contains("::") { 6 } else { 5 }]);
        }
        ip(&["link", "set", &link, "up"]);
        other.ip(&["link", "set", "lo", "up"]);
        other.ip(&["address", "add", &format!("{v4}.2/24"), "dev", "eth0"]);
        other.ip(&["address", "add", &format!("{v6}:2/64"), "dev", "eth0", "nodad"]);
        other.ip(&["link", "set", "eth0", "up"]);
        other.ip(&["route", "add", "default", "via", &format!("{v4}.1")]);
        other
    }

    /// All that networks leave on a host: devices, rules, the setting that it forwards, processes,
    /// who is on networks.
    fn traces(&self) -> String {
        let said =
            |program: &str, args: &[&str]| output(Command::new(program).args(args)).ok().stdout;
        let links = said("ip", &["-brief", "link"]);
        let links: Vec<_> =
            links.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let run = self.0.dir.path().join("run/networks");
        let mut files = Vec::new();
        for folder in ["members", "resolvers"] {
            let entries = std::fs::read_dir(run.join(folder)).into_iter().flatten();
            files.extend(entries.map(|entry| entry.unwrap().file_name()));
        }
        format!(
            "{links:?} {} {forward} {files:?} {:?}",
            said("nft", &["list", "ruleset"]),
            self.helpers()
        )
    }

    /// The processes in the background.
    fn helpers(&self) -> Vec<String> {
        let own = self.0.dir.path().to_str().unwrap();
        let commands = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&command).replace('\0', " "))
        });
        commands
            .filter(|command| command.contains(own))
            .filter(|command| command.contains("port-proxy") || command.contains("name-server"))
            .collect()
    }
}

impl Other {
    fn ip(&self, args: &[&str]) {
        let net = format!("--net=/proc/{}/ns/net", self.0.id());
        output(Command::new("nsenter").arg(net).arg("ip").args(args)).ok();
    }

    /// Does something in the other host's network.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network_of(self.0.id().into(), work)
    }

    fn get(&self, address: &str) -> Option<String> {
        self.run(|| get(address))
    }
}

fn in_network_of<T: Send>(pid: i64, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

fn ip(args: &[&str]) {
    output(Command::new("ip").args(args)).ok();
}

#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: that does not come about");
}

/// What an HTTP server says; nothing when it can't be reached.
fn get(address: &str) -> Option<String> {
    // What can't be reached is mostly silence.
    let mut stream =
        TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}

fn hello() -> Option<String> {
    Some("hello".to_owned())
}

/// What comes back over UDP.
fn echo(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 64];
    // It may be lost.
    (0..10).find_map(|_| {
        socket.send(b"hi").ok()?;
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

#[test]
fn s90_a_published_port_answers_everywhere() {
    let host = Host::new();
    let other = host.other(1);
    host.says(&["network", "create", "elsewhere"]);
    host.serve("web", &["-p", "8080:80", "-p", "5353:53/udp"]);
    host.start("neighbour", &[]);
    host.start("stranger", &["--network", "elsewhere"]);
    let pid = host.inspect("container", "web")["State"]["Pid"].as_i64().unwrap();
    let socket = in_network_of(pid, || UdpSocket::bind("0.0.0.0:53").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], client);
        }
    });

    let own = ["127.0.0.1:8080", "[::1]:8080", "10.9.1.1:8080", "[fd99:1::1]:8080"];
    for address in own {
        assert_eq!(get(address), hello(), "from the host: {address}");
    }
    for address in &own[2..] {
        assert_eq!(other.get(address), hello(), "from another host: {address}");
    }
    for container in ["neighbour", "stranger", "web"] {
        let said = host.uctr(&["exec", container, "wget", "-q", "-O", "-", "http://10.9.1.1:8080"]);
        assert_eq!(said.stdout, "hello", "from {container}: {said:?}");
    }
    for address in ["127.0.0.1:5353", "[::1]:5353", "10.9.1.1:5353"] {
        assert_eq!(echo(address).as_deref(), Some("hi"), "UDP from the host: {address}");
    }
    assert_eq!(other.run(|| echo("10.9.1.1:5353")).as_deref(), Some("hi"), "UDP from another host");
}

#[test]
fn s88_what_is_not_published_can_not_be_reached() {
    let host = Host::new();
    let other = host.other(1);
    host.says(&["network", "create", "elsewhere"]);
    host.serve("web", &["-p", "127.0.0.1:8080:80"]);
    let address = host.address("web").to_string();
    host.start("stranger", &["--network", "elsewhere"]);
    assert_eq!(other.get(&format!("{address}:80")), None, "another host routes to the container");
    assert_eq!(other.get("10.9.1.1:8080"), None, "another host reaches a port of the loopback");
    assert_eq!(get("127.0.0.1:8080"), hello());
    let url = format!("http://{address}");
    let said = host.uctr(&["exec", "stranger", "timeout", "2", "wget", "-q", "-O", "-", &url]);
    assert_ne!(said.code, 0, "{said:?}");
}

#[test]
fn s92_containers_reach_each_other_and_other_hosts() {
    let host = Host::new();
    let other = host.other(1);
    // The first that would be chosen is in use.
    ip(&["address", "add", "172.17.3.1/24", "dev", "lo"]);
    host.serve("web", &[]);
    host.start("client", &[]);
    let address = host.address("web").to_string();
    assert!(address.starts_with("172.18.0."), "{address}");
    let url = format!("http://{address}");
    assert_eq!(host.says(&["exec", "client", "wget", "-q", "-O", "-", &url]), "hello");
    // Other hosts see the host's address.
    let listener = other.run(|| TcpListener::bind("10.9.1.2:80").unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, client) = listener.accept().unwrap();
        // What was not read would make the end a reset.
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nthere").unwrap();
        client.ip()
    });
    let said = host.says(&["exec", "client", "wget", "-q", "-O", "-", "http://10.9.1.2"]);
    assert_eq!(said, "there");
    assert_eq!(server.join().unwrap(), IpAddr::V4(Ipv4Addr::new(10, 9, 1, 1)));
}

#[test]
fn s89_forms_of_published_ports() {
    let host = Host::new();
    let _other = host.other(1);
    let flags = ["-p", "10.9.1.1:8081:80", "-p", "9001-9002:81-82", "-p", "7000-7010:83", "-P"];
    host.serve("web", &flags);
    assert_eq!(get("10.9.1.1:8081"), hello());
    assert_eq!(get("127.0.0.1:8081"), None, "only the address that was named");
    let ports = host.says(&["port", "web"]);
    let expected = [
        "80/tcp -> 10.9.1.1:8081",
        "81/tcp -> 0.0.0.0:9001",
        "81/tcp -> [::]:9001",
        "82/tcp -> 0.0.0.0:9002",
        "82/tcp -> [::]:9002",
        "83/tcp -> 0.0.0.0:7000",
        "83/tcp -> [::]:7000",
    ];
    assert_eq!(ports.lines().collect::<Vec<_>>(), expected);
    assert_eq!(host.says(&["port", "web", "81"]), "0.0.0.0:9001\n[::]:9001");
    host.uctr(&["port", "web", "99"]).fails(1, &["No public port '99/tcp' published for web"]);
    // The next free one of the range, and any free one.
    host.serve("second", &["-p", "7000-7010:80"]);
    assert_eq!(host.says(&["port", "second", "80/tcp"]), "0.0.0.0:7001\n[::]:7001");
    host.serve("third", &["-P"]);
    let port = host.says(&["port", "third", "80/tcp"]);
    let port = port.lines().next().unwrap().replace("0.0.0.0", "127.0.0.1");
    assert_eq!(get(&port), hello(), "{port}");
    let shown = host.says(&["ps", "--filter", "name=second", "--format", "{{.Ports}}"]);
    assert_eq!(shown, "0.0.0.0:7001->80/tcp, [::]:7001->80/tcp");
}

#[test]
fn s91_a_port_that_is_taken_is_refused_and_nothing_is_left() {
    let host = Host::new();
    host.serve("web", &["-p", "8080:80"]);
    let foreign = TcpListener::bind("127.0.0.1:8082").unwrap();
    let before = host.traces();
    for (flag, address) in [
        ("8080:80", "0.0.0.0:8080"),
        ("127.0.0.1:8080:80", "127.0.0.1:8080"),
        ("8082:80", "0.0.0.0:8082"),
    ] {
        let words = format!("Bind for {address} failed: port is already allocated");
        let args = ["run", "--rm", "-p", "8999:99", "-p", flag, "web", "true"];
        host.uctr(&args).fails(125, &[&words]);
        assert_eq!(host.traces(), before, "after {flag}");
    }
    // The other protocol is another port.
    host.uctr(&["run", "--rm", "-p", "8080:80/udp", "web", "true"]).ok();
    drop(foreign);
    host.uctr(&["run", "--rm", "-p", "8082:80", "web", "true"]).ok();
    assert_eq!(get("127.0.0.1:8080"), hello());
}

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

#[test]
fn s93_the_networks_that_are_always_there() {
    let host = Host::new();
    let list = host.says(&["network", "ls"]);
    let lines: Vec<Vec<&str>> =
        list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]);
    let rest: Vec<_> = lines[1..].iter().map(|line| &line[1..]).collect();
    assert_eq!(
        rest,
        [["bridge", "bridge", "local"], ["host", "host", "local"], ["none", "null", "local"]]
    );
    let id = host.start("web", &[]);
    let network = host.inspect("network", "bridge");
    assert_eq!(network["IPAM"]["Config"][0]["Subnet"], "172.17.0.0/16");
    assert_eq!(network["IPAM"]["Config"][0]["Gateway"], "172.17.0.1");
    let member = &network["Containers"][&id];
    assert_eq!(member["Name"], "web");
    assert_eq!(member["IPv4Address"], "172.17.0.2/16");
    assert_eq!(member["MacAddress"], "02:42:ac:11:00:02");
    for name in ["bridge", "host", "none"] {
        let words = format!("{name} is a pre-defined network and cannot be removed");
        host.uctr(&["network", "rm", name]).fails(1, &[&words]);
    }
    let missing = host.uctr(&["network", "inspect", "nope"]).fails(1, &["network nope not found"]);
    assert_eq!(missing.stdout.trim(), "[]");
}

#[test]
fn s94_networks_of_the_users() {
    let host = Host::new();
    let create = ["network", "create", "--subnet", "10.50.0.0/24", "--gateway", "10.50.0.254"];
    let range = ["--ip-range", "10.50.0.64/28", "--label", "colour=red", "net1"];
    let id = host.says(&[&create[..], &range].concat());
    assert_eq!(id.len(), 64);
    for (args, words) in [
        (
            &["--subnet", "10.50.0.128/25", "net2"][..],
            "Pool overlaps with other one on this address space",
        ),
        (&["net1"], "network with name net1 already exists"),
        (&["host"], "operation is not permitted on predefined host network"),
        (&["--driver", "overlay", "net2"], "plugin \"overlay\" not found"),
        (&["--subnet", "fd00::/64", "net2"], "IPv4 addresses only"),
        (&["-o", "x=y", "net2"], "unknown option x"),
        (&["../net2"], "invalid network name"),
    ] {
        host.uctr(&[&["network", "create"], args].concat()).fails(1, &[words]);
    }
    host.start("first", &["--network", "net1"]);
    assert_eq!(host.address("first").to_string(), "10.50.0.64");
    let routes = host.says(&["exec", "first", "ip", "route"]);
    assert!(routes.contains("default via 10.50.0.254 dev eth0"), "{routes}");
    let flags = ["--network", "net1", "--ip", "10.50.0.7", "--mac-address", "02:00:00:00:00:07"];
    host.start("second", &flags);
    assert_eq!(host.address("second").to_string(), "10.50.0.7");
    let link = host.says(&["exec", "second", "ip", "link", "show", "eth0"]);
    assert!(link.contains("02:00:00:00:00:07"), "{link}");
    let args = ["run", "--rm", "--network", "net1", "--ip", "10.50.0.7", "web", "true"];
    host.uctr(&args).fails(125, &["Address already in use"]);
    host.uctr(&["run", "--rm", "--network", "nope", "web", "true"])
        .fails(125, &["network nope not found"]);
    host.uctr(&["network", "rm", "net1"])
        .fails(1, &["network net1", "has active endpoints", "first"]);
    host.uctr(&["network", "prune", "-f"]).ok();
    host.says(&["rm", "-f", "first", "second"]);
    assert_eq!(host.says(&["network", "rm", &id[..12]]), &id[..12]);
    host.says(&["network", "create", "--label", "a", "net3"]);
    host.says(&["network", "create", "net4"]);
    let pruned = host.says(&["network", "prune", "-f", "--filter", "label=a"]);
    assert_eq!(pruned, "Deleted Networks:\nnet3");
    assert_eq!(host.says(&["network", "ls", "-f", "type=custom", "--format", "{{.Name}}"]), "net4");
}

#[test]
fn s94_connect_and_disconnect() {
    let host = Host::new();
    host.says(&["network", "create", "--subnet", "10.51.0.0/24", "net1"]);
    host.says(&["network", "create", "--subnet", "10.52.0.0/24", "net2"]);
    let before = host.traces();
    host.serve("web", &["--network", "net1", "-p", "8080:80"]);
    host.start("client", &["--network", "net2"]);
    let wget = ["exec", "client", "timeout", "2", "wget", "-q", "-O", "-", "http://web"];
    assert_ne!(host.uctr(&wget).code, 0);
    host.says(&["network", "connect", "--alias", "site", "net2", "web"]);
    assert_eq!(host.says(&wget), "hello");
    let hosts = host.says(&["exec", "web", "cat", "/etc/hosts"]);
    assert!(hosts.contains("10.51.0.2") && hosts.contains("10.52.0.3"), "{hosts}");
    host.uctr(&["network", "connect", "net2", "web"])
        .fails(1, &["endpoint with name web already exists in network net2"]);
    // The port follows the network that is left.
    host.says(&["network", "disconnect", "net1", "web"]);
    assert_eq!(get("127.0.0.1:8080"), hello());
    let routes = host.says(&["exec", "web", "ip", "route"]);
    assert!(routes.contains("default via 10.52.0.1"), "{routes}");
    host.uctr(&["network", "disconnect", "net1", "web"])
        .fails(1, &["is not connected to network net1"]);
    host.says(&["network", "rm", "net1"]);
    // A start keeps it so.
    host.says(&["restart", "-t", "0", "web"]);
    until("it answers", || host.uctr(&wget).stdout == "hello");
    host.says(&["network", "disconnect", "net2", "web"]);
    let links = host.says(&["exec", "web", "ip", "-o", "link"]);
    assert_eq!(links.lines().count(), 1, "{links}");
    host.says(&["rm", "-f", "web", "client"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn an_internal_network_has_no_way_out() {
    let host = Host::new();
    let _other = host.other(1);
    host.says(&["network", "create", "--internal", "inside"]);
    host.serve("web", &["--network", "inside"]);
    host.start("client", &["--network", "inside"]);
    assert_eq!(host.says(&["exec", "client", "wget", "-q", "-O", "-", "http://web"]), "hello");
    let routes = host.says(&["exec", "client", "ip", "route"]);
    assert!(!routes.contains("default"), "{routes}");
    // Not even for one that makes itself a route.
    host.says(&[
        "run",
        "-d",
        "--name",
        "admin",
        "--cap-add",
        "NET_ADMIN",
        "--network",
        "inside",
        "web",
    ]);
    let gateway = host.inspect("network", "inside")["IPAM"]["Config"][0]["Gateway"].clone();
    host.says(&[
        "exec",
        "admin",
        "ip",
        "route",
        "add",
        "default",
        "via",
        gateway.as_str().unwrap(),
    ]);
    assert_ne!(host.uctr(&["exec", "admin", "ping", "-c1", "-W1", "10.9.1.2"]).code, 0);
}

/// A name server that knows one name.
fn name_server(address: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            // A response with one answer: the question's name, type A, class IN, 10.99.99.99.
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 99, 99, 99]);
            let _ = socket.send_to(&answer, client);
        }
    });
}

#[test]
fn s95_members_of_a_network_find_each_other_by_name() {
    let host = Host::new();
    let other = host.other(1);
    other.run(|| name_server("10.9.1.2:53"));
    let resolv = host.0.dir.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 10.9.1.2\n").unwrap();
    mount(Some(&resolv), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();

    host.says(&["network", "create", "--subnet", "10.53.0.0/24", "net1"]);
    host.start("client", &["--network", "net1"]);
    let id = host.start("db", &["--network", "net1", "--network-alias", "store"]);
    host.start("lonely", &[]);
    let look = |name: &str| {
        let said = host.uctr(&["exec", "client", "nslookup", "-type=a", name]).stdout;
        let answer = said.split("Name:").nth(1).unwrap_or_default().to_owned();
        answer.split("Address:").nth(1).map(|address| address.trim().to_owned())
    };
    for name in ["db", "store", "DB", "db.net1", &id[..12]] {
        assert_eq!(look(name).as_deref(), Some("10.53.0.3"), "{name}");
    }
    // Everything else is for the host's name server: also who is on other networks.
    for name in ["www.example.org", "lonely"] {
        assert_eq!(look(name).as_deref(), Some("10.99.99.99"), "{name}");
    }
    let reverse = host.says(&["exec", "client", "nslookup", "10.53.0.3"]);
    assert!(reverse.contains("name = db.net1"), "{reverse}");
    host.says(&["exec", "client", "ping", "-c1", "db"]);
    // The answers follow whoever comes and goes.
    host.says(&["rename", "db", "base"]);
    assert_eq!(look("base").as_deref(), Some("10.53.0.3"));
    assert_eq!(look("db").as_deref(), Some("10.99.99.99"));
    host.says(&["rm", "-f", "base"]);
    assert_eq!(look("base").as_deref(), Some("10.99.99.99"));
    // It is for members only.
    assert_eq!(other.run(|| echo("10.53.0.1:53")), None);
    host.says(&["rm", "-f", "client"]);
    until("the resolver has ended", || host.helpers().is_empty());
}

#[test]
fn s95_dns_of_the_container_is_asked_for_other_names() {
    let host = Host::new();
    let other = host.other(1);
    other.run(|| name_server("10.9.1.2:53"));
    host.says(&["network", "create", "net1"]);
    host.start("client", &["--network", "net1", "--dns", "10.9.1.2"]);
    let said = host.says(&["exec", "client", "nslookup", "-type=a", "www.example.org"]);
    assert!(said.contains("10.99.99.99"), "{said}");
    assert!(host.says(&["exec", "client", "nslookup", "-type=a", "client"]).contains("Name:"));
}

#[test]
fn s96_namespaces_of_others() {
    let host = Host::new();
    let _other = host.other(1);
    host.serve("web", &[]);
    let said =
        host.says(&["run", "--rm", "--network", "host", "web", "ip", "address", "show", "up1"]);
    assert!(said.contains("10.9.1.1/24"), "{said}");
    let said = host.says(&["run", "--rm", "--network", "none", "web", "ip", "-o", "link"]);
    assert_eq!(said.lines().count(), 1, "{said}");
    let args = [
        "run",
        "--rm",
        "--network",
        "container:web",
        "web",
        "wget",
        "-q",
        "-O",
        "-",
        "http://127.0.0.1",
    ];
    assert_eq!(host.says(&args), "hello");
    host.uctr(&["network", "connect", "host", "web"])
        .fails(1, &["container cannot be connected to host network"]);
}

#[test]
fn s97_s99_links() {
    let host = Host::new();
    host.serve("web3", &[]);
    let address = host.address("web3");
    let script = "cat /etc/hosts; env; wget -q -O - http://apache";
    let said = host.says(&["run", "--rm", "--link", "web3:apache", "web", "sh", "-c", script]);
    assert!(said.contains(&format!("{address}\tapache")), "{said}");
    assert!(said.contains(&format!("APACHE_PORT_80_TCP_ADDR={address}")), "{said}");
    assert!(said.ends_with("hello"), "{said}");
    host.uctr(&["run", "--rm", "--link", "nobody", "web", "true"])
        .fails(125, &["could not get container for nobody"]);
    host.says(&["stop", "-t", "0", "web3"]);
    host.uctr(&["run", "--rm", "--link", "web3:apache", "web", "true"])
        .fails(125, &["Cannot link to a non running container: /web3"]);
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
