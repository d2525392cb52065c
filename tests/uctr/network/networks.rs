//! The networks that are always there and those of users, and the names on them (S93–S99).

use std::net::UdpSocket;

use nix::mount::{MsFlags, mount};

use super::hosts::{Host, echo, get, hello};
use crate::support::until;

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
        (&["-o", "com.docker.network.bridge.name=all", "net2"], "invalid value"),
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
fn networks_in_the_long_form() {
    let host = Host::new();
    host.says(&["network", "create", "--subnet", "10.50.0.0/24", "net1"]);
    let flag = "name=net1,ip=10.50.0.77,alias=one,alias=two,mac-address=92:d0:c6:0a:29:33";
    host.start("member", &["--network", flag]);
    let networks = &host.inspect("container", "member")["NetworkSettings"]["Networks"];
    let network = &networks["net1"];
    assert_eq!(network["IPAddress"], "10.50.0.77");
    assert_eq!(network["MacAddress"], "92:d0:c6:0a:29:33");
    for name in ["one", "two", "member"] {
        let said = host.says(&["run", "--rm", "--network", "net1", "web", "nslookup", name]);
        assert!(said.contains("10.50.0.77"), "{name}: {said}");
    }
    host.uctr(&["run", "--rm", "--network", "name=net1,colour=red", "web", "true"])
        .fails(125, &["colour"]);
}

/// A database and what shows it, each with its data in a volume.
#[test]
fn s100_a_service_of_two_containers() {
    let host = Host::new();
    let database = "echo \"$PASSWORD $NAME\" >/data/index.html; exec httpd -f -p 3306 -h /data";
    let volume = ["-v", "dbdata:/data"];
    let env = ["-e", "PASSWORD=secret", "-e", "NAME=blog", "--expose", "3306"];
    let command = ["web", "sh", "-c", database];
    host.says(&[&["run", "-d", "--name", "mysql"], &volume[..], &env[..], &command[..]].concat());
    let site =
        "until wget -q -O /www/index.html http://db:$DB_PORT_3306_TCP_PORT; do sleep 0.1; done
                echo $DB_ENV_NAME >>/www/index.html; exec httpd -f -p 80 -h /www";
    let flags = ["--link", "mysql:db", "-v", "content:/www", "-p", "8080:80"];
    let command = ["web", "sh", "-c", site];
    host.says(&[&["run", "-d", "--name", "wordpress"], &flags[..], &command[..]].concat());
    let page = || get("127.0.0.1:8080");
    until("it answers", || page().is_some());
    assert_eq!(page().as_deref(), Some("secret blog\nblog\n"));
    // All of it made anew, but for the data.
    host.says(&["rm", "-f", "wordpress", "mysql"]);
    let said = host.says(&["run", "--rm", "-v", "dbdata:/data", "web", "cat", "/data/index.html"]);
    assert_eq!(said, "secret blog");
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
