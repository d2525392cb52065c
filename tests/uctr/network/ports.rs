//! Who reaches a container: published ports, other containers and other hosts (S88–S92).

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use super::hosts::{Host, echo, get, hello, in_network_of, ip};

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

/// Where a flow goes is decided by its first packet; one that goes on finds what comes later all the
/// same.
#[test]
fn s90_who_goes_on_sending_reaches_what_comes_and_goes() {
    let host = Host::new();
    let other = host.other(1);
    // From one port, as a phone or a sender of logs does.
    let socket = other.run(|| UdpSocket::bind("10.9.1.2:5000").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let reaches = |name: &str| {
        let mut buffer = [0; 64];
        (0..20).any(|_| {
            let _ = socket.send_to(b"hi", "10.9.1.1:5353");
            let length = socket.recv(&mut buffer).unwrap_or(0);
            buffer[..length] == *name.as_bytes()
        })
    };
    assert!(!reaches("one"), "nobody is there");
    let serve = |name: &'static str| {
        host.start(name, &["-p", "5353:53/udp"]);
        let pid = host.inspect("container", name)["State"]["Pid"].as_i64().unwrap();
        let own = in_network_of(pid, || UdpSocket::bind("0.0.0.0:53").unwrap());
        own.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        std::thread::spawn(move || {
            while let Ok((_, from)) = own.recv_from(&mut [0; 64]) {
                let _ = own.send_to(name.as_bytes(), from);
            }
        });
    };
    serve("one");
    assert!(reaches("one"));
    // Its address is another one.
    host.start("between", &[]);
    host.says(&["rm", "-f", "one"]);
    host.start("again", &[]);
    serve("two");
    assert_ne!(host.address("again"), host.address("two"));
    assert!(reaches("two"));
    host.says(&["rm", "-f", "two"]);
    let own = UdpSocket::bind("10.9.1.1:5353").unwrap();
    let _ = socket.send_to(b"for the host", "10.9.1.1:5353");
    own.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 64];
    let length = own.recv(&mut buffer).expect("the host itself is reached");
    assert_eq!(&buffer[..length], b"for the host");
}

/// What a container has asked others is answered, whatever is published meanwhile.
#[test]
fn a_port_that_is_published_cuts_off_no_questions_to_other_hosts() {
    let host = Host::new();
    let other = host.other(1);
    let server = other.run(|| UdpSocket::bind("10.9.1.2:53").unwrap());
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    host.start("asks", &[]);
    let pid = host.inspect("container", "asks")["State"]["Pid"].as_i64().unwrap();
    let client = in_network_of(pid, || UdpSocket::bind("0.0.0.0:6000").unwrap());
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.send_to(b"question", "10.9.1.2:53").unwrap();
    let mut buffer = [0; 64];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    host.start("names", &["-p", "53:53/udp"]);
    server.send_to(b"answer", from).unwrap();
    let length = client.recv(&mut buffer).expect("the answer is lost");
    assert_eq!(&buffer[..length], b"answer");
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
