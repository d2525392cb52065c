//! The kernel's side of it: limits are proved by exceeding them. These need root, and run on
//! whatever the host has: v2, v1 or both. What can't be tried is printed as SKIPPED with the
//! reason. All cgroups are below `/ultari-unit-PID-…`.

mod life;
mod limits;

use super::*;
use oci_spec::runtime::LinuxResources;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

/// Prints why a test proves nothing here.
fn skipped(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

fn is_root(test: &str) -> bool {
    let root = !unprivileged();
    if !root {
        skipped(test, "needs root");
    }
    root
}

/// A place for one test, removed with all in it even if the test fails.
struct Place {
    name: String,
}

impl Place {
    fn new(test: &str) -> Self {
        Self { name: format!("ultari-unit-{}-{test}", std::process::id()) }
    }

    fn locate(&self, below: &str) -> Location {
        let path = format!("/{}/{below}", self.name);
        Location::locate(Some(Path::new(&path)), "unused").unwrap()
    }

    fn create(&self, json: &str) -> Cgroup {
        self.locate("c").create(Some(&resources(json))).unwrap().0
    }

    /// The directories of this test that exist, in any hierarchy.
    fn left(&self) -> Vec<PathBuf> {
        let places = self
            .locate("c")
            .paths()
            .map(|(_, path)| path.parent().unwrap().to_owned())
            .collect::<Vec<_>>();
        places.into_iter().filter(|path| path.exists()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(root) = open_root() {
            let mut location = self.locate("c");
            location.path.pop();
            location.hierarchies.iter_mut().for_each(|hierarchy| hierarchy.existing = 0);
            let mut cgroup = Cgroup::handle(&location, root);
            let _ = cgroup.open_leaf();
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
    }
}

/// Whether a controller is there at all, on either version.
fn has(cgroup: &Cgroup, test: &str, v1: &str, v2: &str) -> bool {
    let offered = cgroup
        .unified_hierarchy()
        .map(|one| cgroup.node_at(one, 0).text("cgroup.controllers").unwrap());
    let there = cgroup.v1_node(v1).is_some()
        || offered.is_some_and(|all| all.split(' ').any(|name| name == v2));
    if !there {
        skipped(test, &format!("no {v2} controller on this host"));
    }
    there
}

fn offers(test: &str, v1: &str, v2: &str) -> bool {
    is_root(test) && has(&Place::new(test).locate("c").open().unwrap(), test, v1, v2)
}

/// A shell in the cgroup that goes on once it is there.
fn shell(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read -r go\n{script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cgroup.add(child.id() as i32).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

fn run(cgroup: &Cgroup, script: &str) -> ExitStatus {
    shell(cgroup, script).wait().unwrap()
}

fn value(cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
    match cgroup.v1_node(controller) {
        Some(node) => node.text(v1).unwrap(),
        None => cgroup.unified().unwrap().text(v2).unwrap(),
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
