//! `features` (runtime-spec features.md and features-linux.md).

use anyhow::Result;
use serde_json::json;
use ultari::security::capabilities;
use ultari::spec::{SPEC_VERSION, memory_policy, mount};

pub fn features() -> Result<()> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop"
        ],
        "mountOptions": mount::option_names(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities::names(),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true
            },
            "seccomp": ultari::security::seccomp::features(),
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": memory_policy::MODES, "flags": memory_policy::FLAGS},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true}
        },
        "annotations": {
            "org.ultari.version": env!("CARGO_PKG_VERSION"),
            // By runc's name for it.
            "org.opencontainers.runc.checkpoint.enabled": "true"
        },
        // With the systemd cgroup driver: properties of the unit.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."]
    });
    println!("{}", serde_json::to_string_pretty(&features)?);
    Ok(())
}
