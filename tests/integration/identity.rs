//! What a container is called, and kernel parameters of its own.

use serde_json::json;

use crate::support::{Json, Sandbox};

#[test]
fn hostname_and_domainname() {
    let mut sandbox = Sandbox::new("names");
    sandbox.config["hostname"] = json!("garden");
    sandbox.config["domainname"] = json!("example.org");
    let before = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let report = sandbox.probe();
    assert_eq!(report["hostname"], "garden");
    assert_eq!(report["domainname"], "example.org");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[test]
fn without_a_hostname_it_is_the_callers() {
    let mut sandbox = Sandbox::new("noname");
    sandbox.config.as_object_mut().unwrap().remove("hostname");
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(sandbox.probe().text("/hostname"), own.trim());
}

#[test]
fn hostname_that_is_too_long_is_an_error() {
    let mut sandbox = Sandbox::with_script("longname", "exit 0");
    sandbox.config["hostname"] = json!("x".repeat(65));
    sandbox.run().fails(1, &["hostname"]);
}

/// Shown: with one write(2) in Proc::write the kernel had taken only the first 682 ports.
#[test]
fn a_sysctl_of_more_than_a_page_is_set_whole() {
    let name = "net.ipv4.ip_local_reserved_ports";
    // Read at once, or the kernel shows a part of it.
    let count = "dd if=/proc/sys/net/ipv4/ip_local_reserved_ports bs=65536 | tr , '\\n' | wc -l";
    let mut sandbox = Sandbox::with_script("longsysctl", count);
    let ports: Vec<String> = (0..1500).map(|n| (20_000 + 2 * n).to_string()).collect();
    sandbox.config["linux"]["sysctl"] = json!({ name: ports.join(",") });
    sandbox.run().ok().prints("1500");
}

#[test]
fn sysctl_of_the_containers_namespaces() {
    let mut sandbox = Sandbox::new("sysctl");
    sandbox.config["linux"]["sysctl"] = json!({
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
        "net/ipv4/conf/lo/forwarding": "1",
        "kernel.shmmax": "1234567",
        "fs.mqueue.msg_max": "17"
    });
    let outcomes = sandbox.attempt(&[
        "read /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "read /proc/sys/net/ipv4/ping_group_range",
        "read /proc/sys/net/ipv4/conf/lo/forwarding",
        "read /proc/sys/kernel/shmmax",
        "read /proc/sys/fs/mqueue/msg_max",
    ]);
    assert_eq!(outcomes, ["ok 0\n", "ok 0\t2147483647\n", "ok 1\n", "ok 1234567\n", "ok 17\n"]);
}

#[test]
fn sysctl_that_is_missing_or_refused_is_an_error_that_names_it() {
    for (name, value) in
        [("net.ipv4.nonsense", "1"), ("net.ipv4.ip_unprivileged_port_start", "lots")]
    {
        let mut sandbox = Sandbox::with_script("badctl", "exit 0");
        sandbox.config["linux"]["sysctl"] = json!({name: value});
        let word = name.rsplit('.').next().unwrap();
        sandbox.run().fails(1, &[word]);
        sandbox.expect_nothing_left();
    }
}

#[test]
fn annotations_are_in_the_state() {
    let mut sandbox = Sandbox::with_script("notes", "exec sleep 100");
    let annotations = json!({"org.example.a": "1", "io.kubernetes.cri.sandbox-id": "", "x": "\u{2603} \"quoted\""});
    sandbox.config["annotations"] = annotations.clone();
    sandbox.create().ok();
    assert_eq!(sandbox.state()["annotations"], annotations);
}
