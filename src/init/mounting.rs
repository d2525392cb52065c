//! The container's mounts and devices, in their order, and when the cgroups that the parent makes
//! meanwhile have to be there.

use std::cell::Cell;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::LinuxNamespaceType as Ns;

use super::{Common, NewContainer};
use crate::channel::{Channel, Message};
use crate::rootfs::{self, devices, mask, mounts, root::Root};
use crate::spec::Config;
use crate::spec::mount::Kind;
use crate::state::Record;
use crate::sys::descriptor::Fd;
use crate::{cgroup, namespace, sys, timings};

/// Makes all mounts and the devices. Returns the root, and whether [`hide`] was called for it.
pub fn mount_all(plan: &mut NewContainer, channel: &Channel, null: &Fd) -> Result<(Root, bool)> {
    let (config, record) = (plan.config, plan.record);
    let mut root = take_root(plan)?;
    timings::step("take the root filesystem");
    let placed = Cell::new(false);
    let place = || match placed.replace(true) {
        true => Ok(()),
        false => enter_cgroups(config, record, &plan.common, channel),
    };
    let around = mounts::Surroundings {
        cgroup: &record.cgroup,
        in_cgroup: &place,
        cgroup_namespace: config.namespaces.get(Ns::Cgroup).is_some(),
        user_namespace: config.namespaces.get(Ns::User).is_some(),
        label: config.mount_label.as_deref(),
        proc: plan.common.proc,
    };
    let mut hidden = false;
    let mut late = Vec::new();
    let joined = config.namespaces.get(Ns::Mount).is_some_and(|ns| ns.path.is_some());
    let mut without_devices = !joined && !mounts::has_host_dev(&config.mounts);
    let mut make_devices = |root: &Root| {
        if std::mem::take(&mut without_devices) {
            devices::make_all(root, &config.devices, around.user_namespace)?;
            timings::step("make the devices");
        }
        anyhow::Ok(())
    };
    for (index, (mount, source)) in config.mounts.iter().zip(&mut plan.sources).enumerate() {
        let cgroups = matches!(mount.kind, Kind::Cgroup);
        let last = index + 1 == config.mounts.len();
        if cgroups && last && mount.destination == Path::new(cgroup::ROOT) {
            // It has to wait for the cgroups, and covers none of what can be done before.
            make_devices(&root)?;
            hidden = may_hide_early(&root, config);
            if hidden {
                hide(&root, config, null)?;
            }
        }
        late.extend(mounts::make(&mut root, mount, source.take(), &around)?);
        timings::done(|| format!("mount {}", mount.destination.display()).into());
    }
    make_devices(&root)?;
    late.iter().try_for_each(mounts::make_readonly)?;
    place()?;
    Ok((root, hidden))
}

fn take_root(plan: &mut NewContainer) -> Result<Root> {
    let mounts = &plan.config.mounts;
    // Mounts shared with the host must be opened while they still are.
    if mounts::any_shared(mounts, plan.common.proc)? {
        for (mount, source) in mounts.iter().zip(&mut plan.sources) {
            if source.is_none() && mounts::is_shared(mount) {
                *source = mounts::open_source(mount)?;
            }
        }
    }
    match plan.root.take() {
        Some(tree) => Ok(Root::new(tree)),
        None => rootfs::take_current_folder(plan.config),
    }
}

/// Applies `linux.readonlyPaths` and `linux.maskedPaths`. Still before the pivot: the host's null
/// device can be attached only while it is in sight.
pub fn hide(root: &Root, config: &Config, null: &Fd) -> Result<()> {
    mask::make_readonly(root, &config.readonly_paths)?;
    timings::step("make linux.readonlyPaths read-only");
    let own_mounts = config.namespaces.is_new(Ns::Mount);
    mask::mask(root, &config.masked_paths, null, own_mounts, config.mount_label.as_deref())?;
    timings::step("mask linux.maskedPaths");
    Ok(())
}

/// Whether [`hide`] is the same before a last mount, of cgroups at their usual place: if it is about
/// entries of the container's own procfs and sysfs, and no hook is to come before it.
fn may_hide_early(root: &Root, config: &Config) -> bool {
    let own = |path: &Path| {
        root.interface_entry(path).is_some() && !Path::new(cgroup::ROOT).starts_with(path)
    };
    !config.hooks.any_before_pivot()
        && config.readonly_paths.iter().chain(&config.masked_paths).all(|path| own(path))
}

/// Waits until there are cgroups to be in, and goes into those of v1 by itself.
pub fn take_place(channel: &Channel) -> Result<()> {
    match channel.next()? {
        Message::Placed(door) => cgroup::enter(&door),
        other => bail!("channel: expected Placed, got {other:?}"),
    }
}

fn enter_cgroups(
    config: &Config,
    record: &Record,
    common: &Common,
    channel: &Channel,
) -> Result<()> {
    if !record.cgroup.is_unit() {
        // Hooks have the capabilities that the runtime has.
        if config.hooks.create_container.is_empty() {
            common.limit_capabilities()?;
            timings::step("limit capabilities");
        }
        take_place(channel)?;
    }
    match config.namespaces.get(Ns::Cgroup).map(|namespace| &namespace.path) {
        Some(Some(path)) => namespace::join(Ns::Cgroup, path)?,
        Some(None) => {
            unshare(CloneFlags::CLONE_NEWCGROUP).context("linux.namespaces (cgroup): make it")?;
        }
        None => {}
    }
    // The launcher's binding to processors is not the container's.
    match sys::process::reset_affinity() {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(errno) => return Err(errno).context("allow all processors of the cgroup"),
    }
    timings::step("wait until init is in its cgroup");
    Ok(())
}
