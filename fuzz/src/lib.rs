//! What the targets share: the mutator for JSON, and what must hold of whatever was accepted.

pub mod json;
pub mod verdicts;

use std::path::Path;

use anyhow::Result;
use oci_spec::runtime::{LinuxResources, LinuxSeccomp};
use ultari::cgroup::fuzzing as cgroup;
use ultari::spec::Process;
use ultari::spec::mount::Mount;

/// An error is there to be read.
pub fn refused<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|error| assert!(format!("{error:#}").len() > 10, "{error:#}")).ok()
}

/// Of a process that was accepted.
pub fn check_process(process: &Process) {
    assert!(!process.args.is_empty() && !process.args[0].is_empty());
    assert!(process.cwd.is_absolute());
    assert!(process.user.uid != u32::MAX && process.user.gid != u32::MAX);
    let mut names: Vec<_> = process.env.iter().map(|entry| entry.to_bytes()).collect();
    names.iter_mut().for_each(|entry| *entry = ultari::spec::process::env_name(entry));
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name twice in the environment");
    assert!(process.rlimits.iter().all(|limit| limit.soft <= limit.hard));
}

/// Of a mount that was accepted.
pub fn check_mount(mount: &Mount) {
    assert!(mount.destination.is_absolute());
    for attr in [&mount.attr, &mount.recursive_attr] {
        // Only the field of access times is cleared and set in one call (mount_setattr(2)).
        assert_eq!(attr.set & attr.clear & !0x70, 0, "{attr:?}");
    }
}

/// Plans a filter as `create` does, and tries it in both machines.
pub fn check_seccomp(profile: &LinuxSeccomp) {
    if let Some(filter) = refused(ultari::security::seccomp::compile(profile)) {
        verdicts::check(profile, &filter);
    }
}

/// Plans what becomes of `linux.resources`, on each kind of host.
pub fn check_resources(resources: &LinuxResources) {
    cgroup::plan(resources);
}

/// Plans where the cgroup is to be, with both drivers.
pub fn check_cgroups_path(path: &Path) {
    if let Some(components) = refused(cgroup::components(path)) {
        check_names(&components);
        assert!(!components.is_empty());
    }
    for user in [false, true] {
        let Some(text) = path.to_str() else { continue };
        if let Some(components) = refused(cgroup::unit(text, user)) {
            check_names(&components);
        }
    }
}

/// None of them may lead anywhere else.
fn check_names(components: &[String]) {
    for name in components {
        assert!(!name.is_empty() && name != "." && name != "..", "{components:?}");
        assert!(!name.contains(['/', '\0', '\n']), "{components:?}");
    }
}
