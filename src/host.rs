//! What a configuration needs of this host and does not find, asked before anything is made.
//!
//! `create` fails with the first of these, `check` shows them all. What costs little to ask is asked
//! here; what only the attempt can tell (filesystem types, values that the kernel refuses) is not.

use std::path::Path;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use oci_spec::runtime::LinuxNamespaceType as Ns;

use crate::security::lsm;
use crate::spec::mount::Kind;
use crate::spec::process::Rlimit;
use crate::spec::{Config, Process};
use crate::sys::process::CapabilitySets;
use crate::{namespace, netdev, sys, userns};

/// Everything that `config` asks for and this host lacks. Each error's text begins with its
/// property.
pub fn missing(config: &Config, own: &CapabilitySets) -> Vec<Error> {
    let mut errors = Vec::new();
    errors.extend(namespace::check_support(&config.namespaces, own).err());
    errors.extend(userns::check_helpers(&config.namespaces).err());
    errors.extend(
        config.namespaces.joined().filter_map(|(kind, path)| namespace::open(kind, path).err()),
    );
    errors.extend(rootfs(&config.rootfs).err());
    // In a joined mount namespace the sources are that one's.
    if config.namespaces.get(Ns::Mount).is_none_or(|namespace| namespace.path.is_none()) {
        errors.extend(mount_sources(config));
    }
    if let Some(process) = &config.process {
        errors.extend(missing_for(process, own));
    }
    errors.extend(sysctls(config));
    errors.extend(hooks(config));
    errors.extend(netdev::check(&config.net_devices).err());
    errors
}

/// The same for a process alone, as `exec` has it.
pub fn missing_for(process: &Process, own: &CapabilitySets) -> Vec<Error> {
    let mut errors = limits(process, own);
    errors.extend(lsm::check(process).err());
    errors
}

fn rootfs(path: &Path) -> Result<()> {
    let file = std::fs::metadata(path)
        .with_context(|| format!("root.path: {} (is the bundle complete?)", path.display()))?;
    match file.is_dir() {
        true => Ok(()),
        false => Err(anyhow!("root.path: {} is not a folder", path.display())),
    }
}

fn mount_sources(config: &Config) -> impl Iterator<Item = Error> {
    config.mounts.iter().filter_map(|mount| {
        let Kind::Bind { source, .. } = &mount.kind else { return None };
        let error = std::fs::symlink_metadata(source).err()?;
        Some(Error::new(error).context(format!("{}: source {}", mount.property, source.display())))
    })
}

/// Limits above this process's own, which it takes a capability over the host to raise; no user
/// namespace gives that.
fn limits(process: &Process, own: &CapabilitySets) -> Vec<Error> {
    let may_raise = own.may(caps::Capability::CAP_SYS_RESOURCE);
    process.rlimits.iter().filter_map(|limit| rlimit(limit, may_raise).err()).collect()
}

fn rlimit(limit: &Rlimit, may_raise: bool) -> Result<()> {
    let Rlimit { name, resource, hard, .. } = limit;
    let property = format!("process.rlimits ({name})");
    let own = sys::process::hard_limit(*resource)
        .with_context(|| format!("{property}: read the runtime's own"))?;
    if *hard <= own {
        return Ok(());
    }
    // No privilege raises the number of open files above this (proc_sys_fs(5)).
    if name == "RLIMIT_NOFILE"
        && let Ok(most) = std::fs::read_to_string("/proc/sys/fs/nr_open")
        && most.trim().parse().is_ok_and(|most: u64| *hard > most)
    {
        bail!("{property}: {hard} is above the kernel's fs.nr_open, {}", most.trim());
    }
    ensure!(
        may_raise,
        "{property}: {hard} is above the runtime's own hard limit, {own}; raising it needs \
         CAP_SYS_RESOURCE (Operation not permitted)"
    );
    Ok(())
}

/// Keys that the kernel does not have. Those of network devices come with the devices.
fn sysctls(config: &Config) -> impl Iterator<Item = Error> {
    let of_device = |path: &str| path.contains("/conf/") || path.contains("/neigh/");
    let absent = move |path: &str| !of_device(path) && !Path::new("/proc/sys").join(path).exists();
    config
        .sysctl
        .iter()
        .filter(move |(path, _)| absent(path))
        .map(|(path, _)| anyhow!("linux.sysctl: this kernel has no {}", path.replace('/', ".")))
}

/// Hooks without which `create` fails. Those of `start` may come into being until then, or are the
/// container's.
fn hooks(config: &Config) -> impl Iterator<Item = Error> {
    let hooks = &config.hooks;
    let kinds = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
    ];
    kinds.into_iter().flat_map(|(kind, hooks)| {
        hooks.iter().enumerate().filter_map(move |(index, hook)| {
            let error = std::fs::metadata(&hook.path).err()?;
            let path = hook.path.display();
            Some(Error::new(error).context(format!("hooks.{kind}[{index}].path: {path}")))
        })
    })
}
