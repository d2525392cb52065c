//! The host and other hosts, and how their servers are asked.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::support::{Output, Sandbox, add, output, until};

const PATIENCE: Duration = Duration::from_secs(10);

/// A host with an image `web`, which can serve `hello` on port 80.
pub struct Host(pub Sandbox);

const SERVE: &str = "exec httpd -f -p 80 -h /www";

/// Another host. Its network namespace lasts as long as the process.
pub struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    pub fn new() -> Self {
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

    pub fn uctr(&self, args: &[&str]) -> Output {
        self.0.uctr(args)
    }

    pub fn says(&self, args: &[&str]) -> String {
        self.uctr(args).ok().stdout.trim().to_owned()
    }

    /// A container that runs on.
    pub fn start(&self, name: &str, flags: &[&str]) -> String {
        self.says(&[&["run", "-d", "--name", name], flags, &["web"]].concat())
    }

    /// One that serves.
    pub fn serve(&self, name: &str, flags: &[&str]) -> String {
        let id = self
            .says(&[&["run", "-d", "--name", name], flags, &["web", "sh", "-c", SERVE]].concat());
        let address = SocketAddr::new(self.address(name), 80);
        until("it listens", || TcpStream::connect(address).is_ok());
        id
    }

    pub fn inspect(&self, kind: &str, name: &str) -> Value {
        let mut all: Value = serde_json::from_str(&self.says(&[kind, "inspect", name])).unwrap();
        all[0].take()
    }

    /// A container's address on the only network that it is on.
    pub fn address(&self, name: &str) -> IpAddr {
        let networks = &self.inspect("container", name)["NetworkSettings"]["Networks"];
        let (_, network) = networks.as_object().unwrap().iter().next().unwrap();
        network["IPAddress"].as_str().unwrap().parse().unwrap()
    }

    /// Connects another host: this one has 10.9.N.1 and fd99:N::1 there, the other one 10.9.N.2 and
    /// fd99:N::2, and it routes over this one.
    pub fn other(&self, number: u8) -> Other {
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
    pub fn traces(&self) -> String {
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
    pub fn helpers(&self) -> Vec<String> {
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
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network_of(self.0.id().into(), work)
    }

    pub fn get(&self, address: &str) -> Option<String> {
        self.run(|| get(address))
    }
}

pub fn in_network_of<T: Send>(pid: i64, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

pub fn ip(args: &[&str]) {
    output(Command::new("ip").args(args)).ok();
}

/// What an HTTP server says; nothing when it can't be reached.
pub fn get(address: &str) -> Option<String> {
    // What can't be reached is mostly silence.
    let mut stream =
        TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}

pub fn hello() -> Option<String> {
    Some("hello".to_owned())
}

/// What comes back over UDP.
pub fn echo(address: &str) -> Option<String> {
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
