//! Controllers that only cgroup v1 has, and that no hierarchy of this host is for: they are
//! mounted in a mount namespace of the test's own, beside cgroup v2.

use serde_json::json;

use crate::cgroups::is_v1;
use crate::skip;
use crate::support::Sandbox;

/// Runs the rest of the line where /sys/fs/cgroup is that of a hybrid host.
const HYBRID: &str = "exec unshare --mount --propagation private sh -ec '
    mount -t tmpfs hybrid /sys/fs/cgroup
    cd /sys/fs/cgroup
    mkdir unified net_cls net_prio
    mount -t cgroup2 cgroup2 unified
    mount -t cgroup -o net_cls net_cls net_cls
    mount -t cgroup -o net_prio net_prio net_prio
    \"$@\"
    # What a hierarchy has keeps it alive without its mount.
    find net_cls net_prio -mindepth 1 -type d >&2' sh \"$@\"";

#[test]
fn network_class_and_priorities() {
    if is_v1("memory") {
        skip!("controllers of this machine's own v1 hierarchies are not to be changed");
    }
    // criu, for one, can't save a process while they are there, and they outlive their mounts.
    if std::env::var_os("ULTARI_TEST_HIERARCHIES").is_none() {
        skip!(
            "it leaves cgroup v1 hierarchies in the kernel: make test-vm runs it, after all others"
        );
    }
    let known = std::fs::read_to_string("/proc/cgroups").unwrap();
    if !known.contains("net_cls") || !known.contains("net_prio") {
        skip!("no net_cls or net_prio in this kernel");
    }
    let script = "cat /sys/fs/cgroup/net_cls/net_cls.classid
        grep lo /sys/fs/cgroup/net_prio/net_prio.ifpriomap";
    let mut sandbox = Sandbox::with_script("network", script);
    sandbox.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]
    }));
    sandbox.config["linux"]["resources"]["network"] = json!({
        "classID": 1048577, "priorities": [{"name": "lo", "priority": 5}]
    });
    let output = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(HYBRID).output().ok();
    assert_eq!(output.stdout, "1048577\nlo 5\n");
    assert_eq!(output.stderr, "", "cgroups are left");
    // A device that isn't there is refused with the property's name.
    sandbox.config["linux"]["resources"]["network"]["priorities"][0]["name"] = json!("none7");
    let call = sandbox.bundle_call("run").arg(&sandbox.id).wrapped(HYBRID);
    call.output().fails(1, &["linux.resources.network.priorities[0]", "none7"]);
}
