//! `linux.resources`: which limits are asked for, and which controller gets them.

use super::convert::set;
use super::devices::Policy;
use super::journal::Journal;
use super::node::Node;
use super::{Cgroup, Location, Version, open_root, unprivileged, v1, v2};
use crate::sys::bpf;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNetwork, LinuxResources,
};
use std::os::fd::{AsFd, BorrowedFd};

/// The name of our device programs, by which they are found again. At most 15 bytes.
const PROGRAM_NAME: &str = "ultari_devices";

/// The first of several properties that is set, for the error about a missing controller.
fn first<'a>(properties: &[(&'a str, bool)]) -> Option<&'a str> {
    properties.iter().find(|(_, set)| *set).map(|(name, _)| *name)
}

fn asked_of_memory(memory: &LinuxMemory) -> Option<&'static str> {
    first(&[
        ("linux.resources.memory.limit", set(memory.limit()).is_some()),
        ("linux.resources.memory.swap", set(memory.swap()).is_some()),
        ("linux.resources.memory.reservation", set(memory.reservation()).is_some()),
        ("linux.resources.memory.swappiness", memory.swappiness().is_some()),
        ("linux.resources.memory.disableOOMKiller", memory.disable_oom_killer() == Some(true)),
    ])
}

fn asked_of_cpu(cpu: &LinuxCpu) -> Option<&'static str> {
    first(&[
        ("linux.resources.cpu.shares", set(cpu.shares()).is_some()),
        ("linux.resources.cpu.quota", set(cpu.quota()).is_some()),
        ("linux.resources.cpu.period", set(cpu.period()).is_some()),
        ("linux.resources.cpu.burst", cpu.burst().is_some()),
        ("linux.resources.cpu.idle", cpu.idle().is_some()),
        ("linux.resources.cpu.realtimeRuntime", set(cpu.realtime_runtime()).is_some()),
        ("linux.resources.cpu.realtimePeriod", set(cpu.realtime_period()).is_some()),
    ])
}

fn asked_of_cpuset(cpu: &LinuxCpu) -> Option<&'static str> {
    let set = |list: &Option<String>| list.as_ref().is_some_and(|list| !list.is_empty());
    first(&[
        ("linux.resources.cpu.cpus", set(cpu.cpus())),
        ("linux.resources.cpu.mems", set(cpu.mems())),
    ])
}

fn asked_of_block_io(io: &LinuxBlockIo) -> Option<&'static str> {
    let any = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    first(&[
        ("linux.resources.blockIO.weight", set(io.weight()).is_some()),
        ("linux.resources.blockIO.leafWeight", set(io.leaf_weight()).is_some()),
        (
            "linux.resources.blockIO.weightDevice",
            io.weight_device().as_ref().is_some_and(|list| !list.is_empty()),
        ),
        ("linux.resources.blockIO.throttleReadBpsDevice", any(io.throttle_read_bps_device())),
        ("linux.resources.blockIO.throttleWriteBpsDevice", any(io.throttle_write_bps_device())),
        ("linux.resources.blockIO.throttleReadIOPSDevice", any(io.throttle_read_iops_device())),
        ("linux.resources.blockIO.throttleWriteIOPSDevice", any(io.throttle_write_iops_device())),
    ])
}

/// The controllers that the limits need, by their names on v1 and on v2.
pub(super) fn needed_controllers(
    resources: Option<&LinuxResources>,
) -> Vec<(&'static str, &'static str)> {
    let Some(resources) = resources else {
        return Vec::new();
    };
    let memory = resources.memory().as_ref().and_then(asked_of_memory);
    let cpu = resources.cpu().as_ref().and_then(asked_of_cpu);
    let cpuset = resources.cpu().as_ref().and_then(asked_of_cpuset);
    let io = resources.block_io().as_ref().and_then(asked_of_block_io);
    let hugetlb = resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty());
    let rdma = resources.rdma().as_ref().is_some_and(|devices| !devices.is_empty());
    let needed = [
        (("memory", "memory"), memory.is_some()),
        (("cpu", "cpu"), cpu.is_some()),
        (("cpuset", "cpuset"), cpuset.is_some()),
        (("blkio", "io"), io.is_some()),
        (("pids", "pids"), resources.pids().is_some()),
        (("hugetlb", "hugetlb"), hugetlb),
        (("rdma", "rdma"), rdma),
    ];
    needed.into_iter().filter(|(_, needed)| *needed).map(|(names, _)| names).collect()
}

impl Cgroup {
    /// Changes limits of a container that exists; what `resources` leaves out stays as it is, the
    /// device rules among it. Returns warnings.
    ///
    /// # Errors
    /// With the property that was refused; what this call had changed before is as it was.
    pub fn apply(&mut self, resources: &LinuxResources) -> Result<Vec<String>> {
        let available = match self.unified_hierarchy().cloned() {
            Some(hierarchy) if self.leaf.is_some() => {
                self.enable_controllers(&hierarchy, Some(resources))?
            }
            _ => String::new(),
        };
        self.journal = Some(Journal::default());
        let mut warnings = Vec::new();
        let mut result = self.apply_limits(Some(resources), &available, &mut warnings);
        // Not before: what systemd has taken is not taken back.
        result = result.and_then(|()| self.tell_systemd(resources, &available));
        // Last, because on v2 this step takes effect as a whole or not at all.
        if let Some(rules) = resources.devices().as_deref().filter(|rules| !rules.is_empty()) {
            result = result.and_then(|()| self.apply_devices(rules, false));
        }
        let journal = self.journal.take().unwrap_or_default();
        result.map(|()| warnings).map_err(|error| match journal.undo().as_slice() {
            [] => error,
            left => error.context(format!("could not put back {}", left.join(", "))),
        })
    }

    /// What of `resources` would be refused in a cgroup at `location`, as far as can be told without
    /// making one; and warnings.
    ///
    /// # Errors
    /// When the host's cgroups can't be looked at.
    pub fn try_limits(
        location: &Location,
        resources: &LinuxResources,
    ) -> Result<(Vec<anyhow::Error>, Vec<String>)> {
        let mut cgroup = Self::handle(location, open_root()?);
        cgroup.journal = Some(Journal::Trial);
        let mut available = String::new();
        if let Some(hierarchy) = cgroup.unified_hierarchy().cloned() {
            // What the root offers can be enabled all the way down, mostly.
            let top = cgroup.node_at(&hierarchy, 0);
            available = top.text("cgroup.controllers")?;
            let directory = top.open_directory().with_context(|| format!("open {}", top.path()))?;
            cgroup.leaf = Some(directory);
        }
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        // One part at a time, for the first error ends it.
        let parts = serde_json::to_value(resources)?;
        for (name, part) in parts.as_object().into_iter().flatten() {
            let part = serde_json::from_value(serde_json::json!({ name: part }))?;
            errors.extend(cgroup.apply_limits(Some(&part), &available, &mut warnings).err());
        }
        let rules = resources.devices().as_deref().unwrap_or_default();
        errors.extend(Policy::new(rules).err());
        Ok((errors, warnings))
    }

    /// Has systemd keep the limits that the files have, if the cgroup is of its making. It writes
    /// them, too, a quota rounded to percents, so that they are written once more.
    fn tell_systemd(&self, resources: &LinuxResources, available: &str) -> Result<()> {
        let Some(unit) = &self.location.systemd else { return Ok(()) };
        unit.set_limits(resources, &|file| self.unified()?.read(file).ok())?;
        self.apply_limits(Some(resources), available, &mut Vec::new())
    }

    /// All limits but the device rules. `available` are the controllers of the v2 hierarchy's
    /// cgroup.
    pub(super) fn apply_limits(
        &self,
        resources: Option<&LinuxResources>,
        available: &str,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(resources) = resources else {
            return Ok(());
        };
        if let Some(memory) = resources.memory() {
            self.apply_memory(memory, available, warnings)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.apply_cpu(cpu, available)?;
        }
        if let Some(pids) = resources.pids() {
            let (_, node) =
                self.controller("pids", "pids", available, "linux.resources.pids.limit")?;
            v2::pids(&node, pids.limit())?;
        }
        if let Some((io, property)) =
            resources.block_io().as_ref().and_then(|io| Some((io, asked_of_block_io(io)?)))
        {
            match self.controller("blkio", "io", available, property)? {
                (Version::V1, node) => v1::block_io(&node, io)?,
                (Version::V2, node) => v2::block_io(&node, io)?,
            }
        }
        if let Some(limits) =
            resources.hugepage_limits().as_ref().filter(|limits| !limits.is_empty())
        {
            match self.controller(
                "hugetlb",
                "hugetlb",
                available,
                "linux.resources.hugepageLimits",
            )? {
                (Version::V1, node) => v1::hugetlb(&node, limits)?,
                (Version::V2, node) => v2::hugetlb(&node, limits)?,
            }
        }
        if let Some(devices) = resources.rdma().as_ref().filter(|devices| !devices.is_empty()) {
            let (_, node) = self.controller("rdma", "rdma", available, "linux.resources.rdma")?;
            v2::rdma(&node, devices)?;
        }
        if let Some(network) = resources.network() {
            self.apply_network(network)?;
        }
        if let Some(files) = resources.unified().as_ref().filter(|files| !files.is_empty()) {
            match (self.location.is_unified(), self.unified()) {
                (true, Some(node)) => v2::unified(&node, files, available)?,
                _ if self.absent.is_some() => {
                    bail!("linux.resources.unified: {}", self.absent.as_deref().unwrap_or_default())
                }
                _ => bail!(
                    "linux.resources.unified: this host has cgroup v1, which has no such files: use the other properties of linux.resources, or a host with cgroup v2"
                ),
            }
        }
        Ok(())
    }

    fn apply_memory(
        &self,
        memory: &LinuxMemory,
        available: &str,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        // The kernel has given these up; runc ignores them too.
        #[allow(deprecated)]
        for (property, asked) in
            [("kernel", set(memory.kernel())), ("kernelTCP", set(memory.kernel_tcp()))]
        {
            if asked.is_some() {
                warnings.push(format!("linux.resources.memory.{property} is ignored: the kernel counts such memory to memory.limit"));
            }
        }
        let Some(property) = asked_of_memory(memory) else {
            return Ok(());
        };
        match self.controller("memory", "memory", available, property)? {
            (Version::V1, node) => v1::memory(&node, memory, warnings),
            (Version::V2, node) => v2::memory(&node, memory, warnings),
        }
    }

    fn apply_cpu(&self, cpu: &LinuxCpu, available: &str) -> Result<()> {
        if let Some(property) = asked_of_cpu(cpu) {
            match self.controller("cpu", "cpu", available, property)? {
                (Version::V1, node) => v1::cpu(&node, cpu)?,
                (Version::V2, node) => v2::cpu(&node, cpu)?,
            }
        }
        if let Some(property) = asked_of_cpuset(cpu) {
            let (_, node) = self.controller("cpuset", "cpuset", available, property)?;
            v2::cpuset(&node, cpu)?;
        }
        Ok(())
    }

    fn apply_network(&self, network: &LinuxNetwork) -> Result<()> {
        let node = |controller: &str, property: &str| match self.v1_node(controller) {
            Some(node) => Ok(node),
            None => bail!(
                "{property} needs the cgroup v1 controller {controller:?}, which is not mounted here, and cgroup v2 has nothing like it: remove the property, or use nftables' \"socket cgroupv2\" match"
            ),
        };
        if let Some(class) = set(network.class_id()) {
            v1::net_cls(&node("net_cls", "linux.resources.network.classID")?, class)?;
        }
        if let Some(priorities) =
            network.priorities().as_ref().filter(|priorities| !priorities.is_empty())
        {
            v1::net_prio(&node("net_prio", "linux.resources.network.priorities")?, priorities)?;
        }
        Ok(())
    }

    /// Device rules, unless we lack the rights in a user namespace, where the kernel lets nobody
    /// make or mount devices anyway. `new` is a cgroup that nobody had before.
    pub(super) fn apply_devices(&self, rules: &[LinuxDeviceCgroup], new: bool) -> Result<()> {
        let policy = Policy::new(rules)?;
        let result = match (self.v1_node("devices"), self.unified()) {
            (Some(node), _) => v1_devices(&node, &policy, new),
            (None, Some(node)) => match &self.leaf {
                Some(leaf) => v2_devices(&node, leaf.as_fd(), &policy, new),
                None => Ok(()),
            },
            (None, None) => Ok(()),
        };
        let denied = |error: &anyhow::Error| {
            matches!(error.downcast_ref(), Some(Errno::EPERM | Errno::EACCES))
        };
        match result {
            Err(error) if denied(&error) && unprivileged() => Ok(()),
            result => result,
        }
    }
}

fn v1_devices(node: &Node, policy: &Policy, new: bool) -> Result<()> {
    let lists = policy.v1_lists()?;
    let mut deny = Vec::new();
    let mut allow = Vec::new();
    if lists.allow_all {
        allow.push("a".to_owned());
        deny = lists.exceptions;
    } else {
        let now = if new { String::new() } else { node.text("devices.list")? };
        let listed: Vec<&str> = now.lines().collect();
        if listed.is_empty() || listed.iter().any(|line| line.starts_with('a')) {
            deny.push("a".to_owned());
            allow = lists.exceptions;
        } else {
            // A running container keeps what it may go on using at every moment.
            deny.extend(
                listed
                    .iter()
                    .filter(|line| !lists.exceptions.iter().any(|keep| keep == *line))
                    .map(|line| line.to_string()),
            );
            allow.extend(
                lists.exceptions.into_iter().filter(|line| !listed.contains(&line.as_str())),
            );
        }
    }
    let (first, second) = if lists.allow_all {
        (("devices.allow", allow), ("devices.deny", deny))
    } else {
        (("devices.deny", deny), ("devices.allow", allow))
    };
    for (file, lines) in [first, second] {
        if lines.is_empty() {
            continue;
        }
        let fd = node.open(file, OFlag::O_WRONLY).with_context(|| {
            format!("linux.resources.devices: cannot open {}/{file}", node.path())
        })?;
        for line in lines {
            node.write_to(&fd, file, &line).map_err(|errno| {
                let hint = match errno {
                    Errno::EPERM => "; the parent cgroup does not allow this device",
                    Errno::EINVAL => "; the mode can't change once the cgroup has sub-cgroups",
                    _ => "",
                };
                anyhow::Error::new(errno).context(format!(
                    "linux.resources.devices: cannot write {line:?} to {}/{file}{hint}",
                    node.path()
                ))
            })?;
        }
    }
    Ok(())
}

fn v2_devices(node: &Node, cgroup: BorrowedFd, policy: &Policy, new: bool) -> Result<()> {
    let explain = |step: &str, errno: Errno| {
        let hint = match errno {
            Errno::EPERM => {
                "; it needs CAP_BPF or CAP_SYS_ADMIN, and a parent cgroup whose own device program allows more"
            }
            Errno::ENOSYS | Errno::EINVAL => {
                "; the kernel must have CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL"
            }
            _ => "",
        };
        anyhow::Error::new(errno)
            .context(format!("linux.resources.devices: cannot {step} for {}{hint}", node.path()))
    };
    let old = if new {
        None
    } else {
        own_program(cgroup).map_err(|errno| explain("find the old BPF program", errno))?
    };
    if policy.allows_everything() {
        return match old {
            Some(old) => bpf::detach_device_program(cgroup, old.as_fd())
                .map_err(|errno| explain("detach the BPF program", errno)),
            None => Ok(()),
        };
    }
    let program = bpf::load_device_program(&policy.program(), PROGRAM_NAME)
        .map_err(|errno| explain("load the BPF program of the rules", errno))?;
    bpf::attach_device_program(cgroup, program.as_fd(), old.as_ref().map(AsFd::as_fd))
        .map_err(|errno| explain("attach the BPF program of the rules", errno))
}

/// The program that we attached before. Those of others (systemd, an administrator) stay: the
/// kernel allows only what all of them allow.
fn own_program(cgroup: BorrowedFd) -> nix::Result<Option<std::os::fd::OwnedFd>> {
    for id in bpf::attached_device_programs(cgroup)? {
        let program = bpf::program_by_id(id)?;
        if bpf::program_name(program.as_fd())? == PROGRAM_NAME {
            return Ok(Some(program));
        }
    }
    Ok(None)
}
