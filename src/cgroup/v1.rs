//! Limits on cgroup v1 (kernel: Documentation/admin-guide/cgroup-v1/), one function a controller.
//! Each gets only what is asked for, and returns an error for what the host's kernel can't do.

use super::convert::{self, set};
use super::node::Node;
use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxInterfacePriority, LinuxMemory,
    LinuxThrottleDevice,
};

pub(super) fn memory(node: &Node, memory: &LinuxMemory, warnings: &mut Vec<String>) -> Result<()> {
    let (limit, swap) = (set(memory.limit()), set(memory.swap()));
    convert::checked_swap(limit.or(current_limit(node, swap)), swap)?;
    memory_and_swap(node, limit, swap, warnings)?;
    if let Some(reservation) = set(memory.reservation()) {
        const PROPERTY: &str = "linux.resources.memory.reservation";
        node.set(
            PROPERTY,
            "memory.soft_limit_in_bytes",
            &convert::or_minus_one(PROPERTY, reservation)?,
        )?;
    }
    if memory.disable_oom_killer() == Some(true) {
        node.set("linux.resources.memory.disableOOMKiller", "memory.oom_control", "1")?;
    }
    if let Some(swappiness) = memory.swappiness() {
        const PROPERTY: &str = "linux.resources.memory.swappiness";
        ensure!(swappiness <= 100, "{PROPERTY}: {swappiness} is out of range: 0 to 100");
        node.set(PROPERTY, "memory.swappiness", &swappiness.to_string())?;
    }
    Ok(())
}

/// What a new limit of swap alone is to be compared with; none while memory has no limit, which
/// shows as the largest number of whole pages.
fn current_limit(node: &Node, swap: Option<i64>) -> Option<i64> {
    swap?;
    let limit = node.read("memory.limit_in_bytes").ok()?.parse().ok()?;
    Some(limit).filter(|limit| *limit < i64::MAX >> 16 << 16)
}

/// The kernel keeps `memory.limit_in_bytes` ≤ `memory.memsw.limit_in_bytes` at every moment, so
/// what is lowered must be lowered in that order and what is raised in the other. Trying shows
/// which it is, without reading.
fn memory_and_swap(
    node: &Node,
    limit: Option<i64>,
    swap: Option<i64>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const LIMIT: &str = "linux.resources.memory.limit";
    const LIMIT_FILE: &str = "memory.limit_in_bytes";
    // Unlimited memory means unlimited memory and swap.
    let swap = if limit == Some(-1) { swap.or(Some(-1)) } else { swap };
    let Some(limit) = limit else {
        return swap.map_or(Ok(()), |swap| memory_swap(node, swap, warnings));
    };
    let value = convert::or_minus_one(LIMIT, limit)?;
    let swap_first = match node.write(LIMIT_FILE, &value) {
        Ok(()) => false,
        Err(Errno::EINVAL) if swap.is_some() => true,
        Err(errno) => return Err(memory_refused(node, &value, errno)),
    };
    if let Some(swap) = swap {
        memory_swap(node, swap, warnings)?;
    }
    if swap_first {
        node.set(LIMIT, LIMIT_FILE, &value)?;
    }
    Ok(())
}

fn memory_refused(node: &Node, value: &str, errno: Errno) -> anyhow::Error {
    let error = node.refused("linux.resources.memory.limit", "memory.limit_in_bytes", value, errno);
    match (errno, node.read("memory.usage_in_bytes")) {
        (Errno::EBUSY, Ok(usage)) => error.context(format!("linux.resources.memory.limit: {value} bytes are less than the {usage} in use")),
        (Errno::EINVAL, _) => error.context(format!("linux.resources.memory.limit: {value} is more than the present limit of memory and swap: raise linux.resources.memory.swap too")),
        _ => error,
    }
}

fn memory_swap(node: &Node, swap: i64, warnings: &mut Vec<String>) -> Result<()> {
    const PROPERTY: &str = "linux.resources.memory.swap";
    const FILE: &str = "memory.memsw.limit_in_bytes";
    let value = swap.to_string();
    match node.write(FILE, &value) {
        // Without swap accounting nothing limits swap, which is what -1 asks for.
        Err(Errno::ENOENT) if swap == -1 => Ok(()),
        Err(Errno::ENOENT) if !swap_in_use() => {
            warnings.push(format!("{PROPERTY}: the kernel does not account for swap, so it is not limited; the host has none now"));
            Ok(())
        }
        Err(Errno::ENOENT) => bail!(
            "{PROPERTY}: the kernel does not account for swap: boot it with swapaccount=1, or set the property to -1"
        ),
        Err(errno) => Err(node.refused(PROPERTY, FILE, &value, errno)),
        Ok(()) => Ok(()),
    }
}

/// Whether the host has any swap. When in doubt it has.
fn swap_in_use() -> bool {
    std::fs::read_to_string("/proc/swaps").map_or(true, |text| text.lines().count() > 1)
}

pub(super) fn cpu(node: &Node, cpu: &LinuxCpu) -> Result<()> {
    let shares = set(cpu.shares());
    if let Some(shares) = shares {
        // The kernel would cut it silently.
        ensure!(
            (2..=262_144).contains(&shares),
            "linux.resources.cpu.shares: {shares} is out of range: the minimum allowed cpu-shares is 2, the maximum 262144"
        );
    }
    let shares = || match shares {
        Some(shares) => node.set("linux.resources.cpu.shares", "cpu.shares", &shares.to_string()),
        None => Ok(()),
    };
    // The kernel refuses shares for an idle group.
    match cpu.idle() {
        Some(1) => {
            shares()?;
            node.set("linux.resources.cpu.idle", "cpu.idle", "1")?;
        }
        Some(idle) => {
            node.set("linux.resources.cpu.idle", "cpu.idle", &idle.to_string())?;
            shares()?;
        }
        None => shares()?,
    }
    cpu_quota(node, cpu)?;
    cpu_realtime(node, cpu)
}

/// Quota, period and burst depend on each other (quota/period ≤ the parent's, burst ≤ quota), so
/// what is refused at first is tried again after the quota.
fn cpu_quota(node: &Node, cpu: &LinuxCpu) -> Result<()> {
    let quota = set(cpu.quota()).map(|quota| quota.max(-1).to_string());
    let mut later = Vec::new();
    for (property, file, value) in [
        ("linux.resources.cpu.period", "cpu.cfs_period_us", set(cpu.period())),
        ("linux.resources.cpu.burst", "cpu.cfs_burst_us", cpu.burst()),
    ] {
        let Some(value) = value.map(|value| value.to_string()) else {
            continue;
        };
        match node.write(file, &value) {
            Err(Errno::EINVAL) if quota.is_some() => later.push((property, file, value)),
            Err(errno) => return Err(node.refused(property, file, &value, errno)),
            Ok(()) => {}
        }
    }
    if let Some(quota) = quota {
        node.set("linux.resources.cpu.quota", "cpu.cfs_quota_us", &quota)?;
    }
    later.iter().try_for_each(|(property, file, value)| node.set(property, file, value))
}

/// Runtime ≤ period at every moment: raised together, the period must come first, lowered, last.
fn cpu_realtime(node: &Node, cpu: &LinuxCpu) -> Result<()> {
    const PERIOD: &str = "linux.resources.cpu.realtimePeriod";
    let period = set(cpu.realtime_period()).map(|period| period.to_string());
    let runtime = set(cpu.realtime_runtime()).map(|runtime| runtime.to_string());
    let mut period_later = false;
    if let Some(period) = &period {
        match node.write("cpu.rt_period_us", period) {
            Err(Errno::EINVAL) if runtime.is_some() => period_later = true,
            Err(errno) => return Err(node.refused(PERIOD, "cpu.rt_period_us", period, errno)),
            Ok(()) => {}
        }
    }
    if let Some(runtime) = runtime {
        const RUNTIME: &str = "linux.resources.cpu.realtimeRuntime";
        node.write("cpu.rt_runtime_us", &runtime).map_err(|errno| {
            let error = node.refused(RUNTIME, "cpu.rt_runtime_us", &runtime, errno);
            if errno != Errno::EINVAL {
                return error;
            }
            error.context(format!("{RUNTIME}: realtime time must be given to every parent cgroup first (their cpu.rt_runtime_us is 0 by default)"))
        })?;
    }
    match period {
        Some(period) if period_later => node.set(PERIOD, "cpu.rt_period_us", &period),
        _ => Ok(()),
    }
}

pub(super) fn block_io(node: &Node, io: &LinuxBlockIo) -> Result<()> {
    if let Some(weight) = set(io.weight()) {
        io_weight(node, "linux.resources.blockIO.weight", "", weight)?;
    }
    if let Some(weight) = set(io.leaf_weight()) {
        node.set("linux.resources.blockIO.leafWeight", "blkio.leaf_weight", &weight.to_string())?;
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let property = format!("linux.resources.blockIO.weightDevice[{index}]");
        let number = format!("{}:{} ", device.major(), device.minor());
        if let Some(weight) = set(device.weight()) {
            io_weight(node, &property, &number, weight)?;
        }
        if let Some(weight) = set(device.leaf_weight()) {
            node.set(
                &format!("{property}.leafWeight"),
                "blkio.leaf_weight_device",
                &format!("{number}{weight}"),
            )?;
        }
    }
    let lists: [(&str, &str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
        (
            "throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            io.throttle_write_bps_device(),
        ),
        (
            "throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            io.throttle_read_iops_device(),
        ),
        (
            "throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            io.throttle_write_iops_device(),
        ),
    ];
    for (name, file, list) in lists {
        for (index, device) in list.iter().flatten().enumerate() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            node.set(&format!("linux.resources.blockIO.{name}[{index}]"), file, &value)?;
        }
    }
    Ok(())
}

/// BFQ's weight where that scheduler is built in, else CFQ's (kernels before 5.0).
fn io_weight(node: &Node, property: &str, device: &str, weight: u16) -> Result<()> {
    let value = format!("{device}{}", convert::checked_weight(property, weight)?);
    let suffix = if device.is_empty() { "" } else { "_device" };
    let bfq = format!("blkio.bfq.weight{suffix}");
    match node.write(&bfq, &value) {
        Err(Errno::ENOENT) => node.set(property, &format!("blkio.weight{suffix}"), &value),
        Err(errno) => Err(node.refused(property, &bfq, &value, errno)),
        Ok(()) => Ok(()),
    }
}

pub(super) fn hugetlb(node: &Node, limits: &[LinuxHugepageLimit]) -> Result<()> {
    for (index, limit) in limits.iter().enumerate() {
        let property = format!("linux.resources.hugepageLimits[{index}]");
        let size = limit.page_size();
        convert::checked_page_size(&property, size)?;
        let value = convert::or_minus_one(&property, limit.limit())?;
        node.set(&property, &format!("hugetlb.{size}.limit_in_bytes"), &value)?;
        // Reservations would escape the limit of faults until they are touched.
        node.set(&property, &format!("hugetlb.{size}.rsvd.limit_in_bytes"), &value)?;
    }
    Ok(())
}

pub(super) fn net_cls(node: &Node, class: u32) -> Result<()> {
    node.set("linux.resources.network.classID", "net_cls.classid", &class.to_string())
}

pub(super) fn net_prio(node: &Node, priorities: &[LinuxInterfacePriority]) -> Result<()> {
    for (index, priority) in priorities.iter().enumerate() {
        let property = format!("linux.resources.network.priorities[{index}]");
        convert::checked_word(&property, priority.name())?;
        node.set(
            &property,
            "net_prio.ifpriomap",
            &format!("{} {}", priority.name(), priority.priority()),
        )?;
    }
    Ok(())
}
