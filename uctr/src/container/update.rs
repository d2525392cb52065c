//! Changing the limits and the restart policy of a container.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::config::{limits, swap_is_counted};
use super::record::{HostConfig, RestartPolicy};
use super::{Container, Status};

/// What is to be changed; what is none or 0 stays.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Limits.
    pub limits: HostConfig,
    /// `--restart`
    pub restart: Option<RestartPolicy>,
}

/// Checks limits as docker does, and fills in the one of swap.
///
/// # Errors
/// In docker's words.
pub fn check_limits(host: &mut HostConfig) -> Result<()> {
    const LEAST: i64 = 6 << 20;
    ensure!(host.memory == 0 || host.memory >= LEAST, "Minimum memory limit allowed is 6MB");
    ensure!(
        host.memory_swap <= 0 || host.memory > 0,
        "You should always set the Memory limit when using Memoryswap limit, see usage"
    );
    ensure!(
        host.memory_swap <= 0 || host.memory_swap >= host.memory,
        "Minimum memoryswap limit should be larger than memory limit, see usage"
    );
    ensure!(
        host.memory_reservation == 0 || host.memory == 0 || host.memory_reservation <= host.memory,
        "Minimum memory limit can not be less than memory reservation limit, see usage"
    );
    ensure!(
        host.nano_cpus == 0 || (host.cpu_quota == 0 && host.cpu_period == 0),
        "Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set."
    );
    ensure!(
        host.cpu_period == 0 || (1000..=1_000_000).contains(&host.cpu_period),
        "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
    );
    if host.memory > 0 && host.memory_swap == 0 {
        // Docker's default: as much swap as memory.
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.memory > 0 && host.memory_swap > 0 && !swap_is_counted() {
        host.memory_swap = -1;
    }
    Ok(())
}

/// Changes what is asked for: at once if it runs, and for its next starts.
///
/// # Errors
/// When a limit is refused; nothing has changed then.
pub fn update(container: &mut Container, changes: &Changes) -> Result<()> {
    let mut host = container.record.host_config.clone();
    merge(&mut host, &changes.limits);
    let auto_remove = host.auto_remove;
    if let Some(policy) = &changes.restart {
        ensure!(
            !auto_remove || policy.name == "no",
            "Restart policy cannot be updated because AutoRemove is enabled for the container"
        );
        host.restart_policy = policy.clone();
    }
    if changes.limits.memory > 0 && changes.limits.memory_swap == 0 {
        ensure!(
            host.memory_swap <= 0 || host.memory_swap >= host.memory,
            "Memory limit should be smaller than already set memoryswap limit, update the \
             memoryswap at the same time"
        );
    }
    check_limits(&mut host)?;
    if matches!(container.state().status, Status::Running | Status::Paused) {
        apply(container, &changes.limits, &host)
            .with_context(|| format!("Cannot update container {}", container.record.id))?;
    }
    container.change(|record| {
        record.host_config = host;
        Ok(())
    })
}

fn merge(host: &mut HostConfig, new: &HostConfig) {
    if new.nano_cpus != 0 {
        (host.cpu_period, host.cpu_quota) = (0, 0);
        host.nano_cpus = new.nano_cpus;
    }
    if new.cpu_period != 0 || new.cpu_quota != 0 {
        host.nano_cpus = 0;
    }
    let set = |own: &mut i64, new: i64| {
        if new != 0 {
            *own = new;
        }
    };
    set(&mut host.cpu_quota, new.cpu_quota);
    set(&mut host.memory, new.memory);
    set(&mut host.memory_swap, new.memory_swap);
    set(&mut host.memory_reservation, new.memory_reservation);
    for (own, new) in
        [(&mut host.cpu_shares, new.cpu_shares), (&mut host.cpu_period, new.cpu_period)]
    {
        if new != 0 {
            *own = new;
        }
    }
    for (own, new) in
        [(&mut host.cpuset_cpus, &new.cpuset_cpus), (&mut host.cpuset_mems, &new.cpuset_mems)]
    {
        if !new.is_empty() {
            own.clone_from(new);
        }
    }
    if new.pids_limit.is_some() {
        host.pids_limit = new.pids_limit;
    }
}

/// Only what was asked for goes to the kernel, with the swap that belongs to the memory.
fn apply(container: &Container, wanted: &HostConfig, merged: &HostConfig) -> Result<()> {
    let mut only = wanted.clone();
    if only.memory != 0 || only.memory_swap != 0 {
        only.memory = merged.memory;
        only.memory_swap = merged.memory_swap;
    }
    let mut value = limits(&only);
    for key in ["cpu", "memory"] {
        if value[key] == Value::Object(serde_json::Map::new())
            && let Some(object) = value.as_object_mut()
        {
            object.remove(key);
        }
    }
    let resources = ultari::spec::parse_resources(value.to_string().as_bytes(), &mut Vec::new())?;
    container.runtime()?.update(&resources, &ultari::spec::IntelRdt::default())
}
