//! Where in the cgroup tree a process of `exec` is.

use std::path::PathBuf;

use serde_json::json;

use crate::cgroups::is_v1;
use crate::support::{HIERARCHIES, Sandbox, set_namespace};

/// The container's cgroup in each hierarchy of this host, with a cgroup `below` in each.
fn divided(sandbox: &Sandbox, below: &str) -> Vec<PathBuf> {
    let relative = sandbox.cgroup();
    let cgroups = HIERARCHIES.iter().map(|path| path.join(relative.trim_start_matches('/')));
    let cgroups: Vec<_> = cgroups.filter(|path| path.exists()).collect();
    for cgroup in &cgroups {
        let inner = cgroup.join(below);
        std::fs::create_dir(&inner).unwrap();
        // A cpuset of v1 starts without processors and takes nobody then.
        for file in ["cpuset.cpus", "cpuset.mems"].map(|file| (cgroup.join(file), inner.join(file)))
        {
            if is_v1("cpuset") && file.1.exists() {
                std::fs::write(&file.1, std::fs::read(&file.0).unwrap()).unwrap();
            }
        }
    }
    cgroups
}

fn running(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    sandbox
}

#[test]
fn a_cgroup_below_the_containers() {
    let sandbox = running("below");
    let cgroups = divided(&sandbox, "jobs");
    let inside = format!("{}/jobs", sandbox.cgroup());
    let call = sandbox.exec_call(&["--cgroup", "/jobs"]).args(["/bin/cat", "/proc/self/cgroup"]);
    let seen = call.output().ok().stdout;
    assert!(seen.lines().filter(|line| line.ends_with(&inside)).count() >= cgroups.len(), "{seen}");
    for (cgroup, error) in
        [("/none", "no cgroup"), ("../x", "stay in"), ("nothing:/jobs", "controller")]
    {
        let call = sandbox.exec_call(&["--cgroup", cgroup]).args(["/bin/true"]);
        call.output().fails(255, &["--cgroup", cgroup, error]);
    }
}

#[test]
fn of_one_controller_on_v1() {
    if !is_v1("memory") || !is_v1("pids") {
        crate::skip!("cgroup v1 only");
    }
    let sandbox = running("onecontroller");
    divided(&sandbox, "jobs");
    let call = sandbox.exec_call(&["--cgroup", "memory,pids:jobs"]);
    let seen = call.args(["/bin/cat", "/proc/self/cgroup"]).output().ok().stdout;
    let inside: Vec<_> = seen.lines().filter(|line| line.ends_with("/jobs")).collect();
    assert_eq!(inside.len(), 2, "{seen}");
    assert!(inside.iter().all(|line| line.contains("memory") || line.contains("pids")), "{seen}");
}

/// As systemd in a container does it.
#[test]
fn a_container_that_has_divided_its_cgroup() {
    if is_v1("memory") {
        crate::skip!("cgroup v2 only");
    }
    let mut sandbox = Sandbox::new("divided");
    sandbox.script(
        "cd /sys/fs/cgroup; mkdir init.scope; echo 0 > init.scope/cgroup.procs
        for c in $(cat cgroup.controllers); do echo +$c > cgroup.subtree_control; done
        echo ready; sleep 100",
    );
    set_namespace(&mut sandbox.config, "cgroup", None);
    sandbox.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    crate::support::wait_until("it is ready", || running.stdout().contains("ready"));
    let output = sandbox.exec(&["/bin/cat", "/proc/self/cgroup"]).ok();
    assert_eq!(output.stdout, "0::/init.scope\n");
    sandbox.kill("KILL").ok();
    running.wait();
}
