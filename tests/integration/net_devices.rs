//! `linux.netDevices`. The devices are made in a network namespace of the test, in which the
//! runtime is run: the host's are not touched.

use std::process::Command;

use serde_json::json;

use crate::namespaces::Holder;
use crate::support::{Output, Sandbox, host, remove_namespace, set_namespace};

/// A pair of devices: `v0` with addresses of several kinds, and its other end.
const PAIR: &str = "\
    ip link add v0 address 02:00:00:00:00:07 mtu 1400 type veth peer name v1; \
    ip addr add 10.9.8.7/24 brd + dev v0; \
    ip addr add 10.9.8.8/24 label v0:x dev v0; \
    ip addr add 10.9.7.1 peer 10.9.7.2 dev v0; \
    ip -6 addr add fd00::7/64 nodad dev v0; \
    ip addr add 10.1.1.1/32 scope link dev v0; \
    ip addr add 10.2.2.2/24 valid_lft 1000 preferred_lft 900 dev v0";

/// Runs the container from a new network namespace that `setup` has filled; prints afterwards
/// what devices are left in it.
#[track_caller]
fn run(sandbox: &Sandbox, setup: &str) -> Output {
    run_in(sandbox, "unshare --net", setup)
}

/// The same, from the network namespace into which `enter` leads.
#[track_caller]
fn run_in(sandbox: &Sandbox, enter: &str, setup: &str) -> Output {
    let script = format!(
        "exec {enter} /bin/sh -c 'set -e; {setup}; set +e; \"$@\"; code=$?; \
         echo left: $(ls /proc/sys/net/ipv4/conf); exit $code' sh \"$@\""
    );
    sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output()
}

fn sandbox_with(name: &str, devices: serde_json::Value, script: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_script(name, script);
    sandbox.config["linux"]["netDevices"] = devices;
    sandbox
}

#[track_caller]
fn has(output: &Output, texts: &[&str]) {
    for text in texts {
        assert!(output.stdout.contains(text), "no {text:?} in:\n{}", output.stdout);
    }
}

const SHOW: &str = "busybox ip -o link show dev net0; busybox ip -o addr show dev net0";

#[test]
fn a_device_comes_with_its_attributes_and_addresses_and_is_up() {
    let sandbox = sandbox_with("netdev", json!({"v0": {"name": "net0"}}), SHOW);
    let output = run(&sandbox, PAIR).ok();
    has(
        &output,
        &[
            "02:00:00:00:00:07",
            "mtu 1400",
            ",UP",
            "10.9.8.7/24 brd 10.9.8.255 scope global net0\\",
            "10.9.8.8/24 scope global secondary net0:x\\",
            "10.9.7.1 peer 10.9.7.2/32 scope global net0\\",
            "fd00::7/64 scope global",
        ],
    );
    // Of narrower scope, and with a lifetime: those are not to be kept.
    assert!(!output.stdout.contains("10.1.1.1"), "{}", output.stdout);
    assert!(!output.stdout.contains("10.2.2.2"), "{}", output.stdout);
    // Gone from where it was. The kernel removes the pair soon, with the container's namespace.
    has(&output, &["left: all default lo"]);
    assert!(!output.stdout.contains("v0"), "{}", output.stdout);
}

#[test]
fn the_name_stays_unless_given() {
    let sandbox = sandbox_with("netname", json!({"v0": {}}), "busybox ip -o addr show dev v0");
    let output = run(&sandbox, PAIR).ok();
    has(&output, &["10.9.8.7/24", "10.9.8.8/24 scope global secondary v0:x\\"]);
}

#[test]
fn the_kernel_completes_a_template() {
    let devices = json!({"v0": {"name": "eth%d"}, "v1": {"name": "eth%d"}});
    let script = "ls /sys/class/net; busybox ip -o addr show dev eth0";
    let sandbox = sandbox_with("nettemplate", devices, script);
    let output = run(&sandbox, PAIR).ok();
    has(&output, &["eth0\neth1\nlo\n", "10.9.8.7/24 brd 10.9.8.255 scope global eth0\\"]);
}

#[test]
fn sysctl_finds_the_devices() {
    let script = "cat /proc/sys/net/ipv4/conf/net0/forwarding";
    let mut sandbox = sandbox_with("netsysctl", json!({"v0": {"name": "net0"}}), script);
    sandbox.config["linux"]["sysctl"] = json!({"net.ipv4.conf.net0.forwarding": "1"});
    has(&run(&sandbox, PAIR).ok(), &["1\nleft"]);
}

#[test]
fn a_network_namespace_of_a_user_namespace_takes_devices() {
    let mut sandbox = sandbox_with("netuser", json!({"v0": {"name": "net0"}}), SHOW);
    crate::namespaces::with_user_namespace(&mut sandbox);
    has(&run(&sandbox, PAIR).ok(), &["mtu 1400", ",UP", "10.9.8.7/24"]);
}

/// What is in the network namespace of `holder`.
fn devices_of(holder: &Holder) -> String {
    let mut command = Command::new("/usr/bin/nsenter");
    command.arg(format!("--net={}", holder.path("net"))).args(["ls", "/proc/sys/net/ipv4/conf"]);
    let child = host().spawn(command.stdout(std::process::Stdio::piped()));
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    host().forget(pid);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn devices_stay_in_a_joined_network_namespace() {
    let (outside, inside) = (Holder::new(&["--net"]), Holder::new(&["--net"]));
    let enter = format!("nsenter --net={}", outside.path("net"));
    let mut sandbox = sandbox_with("netjoin", json!({"v0": {"name": "net0"}}), SHOW);
    set_namespace(&mut sandbox.config, "network", Some(&inside.path("net")));
    let output = run_in(&sandbox, &enter, PAIR).ok();
    has(&output, &["mtu 1400", ",UP", "10.9.8.7/24", "left: all default lo v1\n"]);
    assert_eq!(devices_of(&inside), "all\ndefault\nlo\nnet0\n");
    // Now the name is taken there, and nothing is moved.
    sandbox.config["linux"]["netDevices"] = json!({"w0": {"name": "net0"}, "v1": {}});
    let setup = "ip link add w0 type veth peer name w1; ip addr add 10.9.7.7/24 dev w0";
    let texts = &["linux.netDevices.w0", "net0", "already"];
    let output = run_in(&sandbox, &enter, setup).fails(1, texts);
    has(&output, &["left: all default lo v1 w0 w1\n"]);
    sandbox.config["linux"]["netDevices"] = json!({"w0": {"name": "net%d"}});
    sandbox.script("busybox ip -o addr show dev net1");
    has(&run_in(&sandbox, &enter, "true").ok(), &["10.9.7.7/24 scope global net1\\"]);
    assert_eq!(devices_of(&inside), "all\ndefault\nlo\nnet0\nnet1\n");
}

#[test]
fn a_device_that_is_not_there_leaves_the_others_alone() {
    let sandbox = sandbox_with("netmissing", json!({"v0": {}, "v9": {}}), "exit 0");
    let output = run(&sandbox, PAIR).fails(1, &["linux.netDevices.v9", "no such device"]);
    has(&output, &["left: all default lo v0 v1\n"]);
}

#[test]
fn what_can_not_be_moved_is_an_error_that_names_device_and_step() {
    let sandbox = sandbox_with("netbridge", json!({"br0": {}}), "exit 0");
    let texts = &["linux.netDevices.br0", "move it", "EINVAL", "bridges"];
    run(&sandbox, "ip link add br0 type bridge").fails(1, texts);
    // Every network namespace has one.
    let sandbox = sandbox_with("netlo", json!({"lo": {}}), "exit 0");
    run(&sandbox, "true").fails(1, &["linux.netDevices.lo", "already"]);
}

#[test]
fn wrong_net_devices_are_refused_by_property() {
    for (devices, texts) in [
        (json!({"a b": {}}), &["linux.netDevices", "a b"][..]),
        (json!({"v0": {"name": "a/b"}}), &["linux.netDevices.v0.name", "a/b"]),
        (json!({"v0": {"name": "e%d%d"}}), &["linux.netDevices.v0.name", "e%d%d"]),
        (json!({"v0": {"name": "x"}, "v1": {"name": "x"}}), &["linux.netDevices.v1.name", "x"]),
    ] {
        sandbox_with("netwrong", devices, "exit 0").run().fails(1, texts);
    }
    let mut sandbox = sandbox_with("nonet", json!({"v0": {}}), "exit 0");
    remove_namespace(&mut sandbox.config, "network");
    sandbox.run().fails(1, &["linux.netDevices", "network", "linux.namespaces"]);
}
