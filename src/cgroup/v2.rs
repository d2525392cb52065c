//! Limits on cgroup v2 (kernel: Documentation/admin-guide/cgroup-v2.rst), one function a
//! controller. Each gets only what is asked for, and returns an error for what v2 can't do.

use super::convert::{self, set};
use super::node::Node;
use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxRdma, LinuxThrottleDevice,
};
use std::collections::{BTreeMap, HashMap};

pub(super) fn memory(node: &Node, memory: &LinuxMemory, warnings: &mut Vec<String>) -> Result<()> {
    if memory.swappiness().is_some() {
        bail!(
            "linux.resources.memory.swappiness: cgroup v2 has no swappiness of its own for a cgroup: remove the property, or use linux.resources.unified \"memory.swap.max\""
        );
    }
    if memory.disable_oom_killer() == Some(true) {
        bail!(
            "linux.resources.memory.disableOOMKiller: cgroup v2 can't disable the OOM killer: remove the property, or protect the process with process.oomScoreAdj"
        );
    }
    let (limit, swap) = (set(memory.limit()), set(memory.swap()));
    // Swap alone is counted from the limit that there is, if any.
    let current = || node.read("memory.max").ok()?.parse().ok();
    let swap_max = convert::swap_max(limit.or_else(|| swap.and_then(|_| current())), swap)?;
    if memory.check_before_update() == Some(true) {
        check_usage(node, limit, swap)?;
    }
    // Swap goes first: a lower memory limit then can't push out more than may be swapped.
    if let Some(value) = &swap_max {
        match node.write("memory.swap.max", value) {
            // Without swap accounting nothing limits swap, which is what "max" asks for.
            Err(Errno::ENOENT) if value == "max" => {}
            // Engines ask for no swap by default, also where the kernel has none at all.
            Err(Errno::ENOENT) if value == "0" => warnings.push(
                "linux.resources.memory.swap: the kernel does not account for swap, so it is not limited".to_owned(),
            ),
            Err(errno) => return Err(node.refused("linux.resources.memory.swap", "memory.swap.max", value, errno)),
            Ok(()) => {}
        }
    }
    if let Some(limit) = limit {
        const PROPERTY: &str = "linux.resources.memory.limit";
        node.set(PROPERTY, "memory.max", &convert::or_max(PROPERTY, limit)?)?;
    }
    if let Some(reservation) = set(memory.reservation()) {
        const PROPERTY: &str = "linux.resources.memory.reservation";
        node.set(PROPERTY, "memory.low", &convert::or_max(PROPERTY, reservation)?)?;
    }
    Ok(())
}

/// `checkBeforeUpdate`: v2 takes a limit below the usage and kills; v1 refuses it.
fn check_usage(node: &Node, limit: Option<i64>, swap: Option<i64>) -> Result<()> {
    let Ok(usage) = node.text("memory.current")?.parse::<i64>() else {
        return Ok(());
    };
    for (property, limit) in [("limit", limit), ("swap", swap)] {
        if let Some(limit @ 1..) = limit {
            ensure!(
                limit > usage,
                "linux.resources.memory.{property}: {limit} is not above the {usage} bytes in use, and linux.resources.memory.checkBeforeUpdate is set"
            );
        }
    }
    Ok(())
}

pub(super) fn cpu(node: &Node, cpu: &LinuxCpu) -> Result<()> {
    for (property, set) in [
        ("realtimeRuntime", set(cpu.realtime_runtime()).is_some()),
        ("realtimePeriod", set(cpu.realtime_period()).is_some()),
    ] {
        ensure!(
            !set,
            "linux.resources.cpu.{property}: cgroup v2 has no realtime limits: remove the property, or use a host with the v1 cpu controller"
        );
    }
    let weight = set(cpu.shares()).map(|shares| convert::cpu_weight(shares).to_string());
    // The kernel refuses a weight for an idle group.
    if cpu.idle() == Some(1) {
        if let Some(weight) = &weight {
            node.set("linux.resources.cpu.shares", "cpu.weight", weight)?;
        }
        return node
            .set("linux.resources.cpu.idle", "cpu.idle", "1")
            .and_then(|()| cpu_max(node, cpu));
    }
    if let Some(idle) = cpu.idle() {
        node.set("linux.resources.cpu.idle", "cpu.idle", &idle.to_string())?;
    }
    if let Some(weight) = &weight {
        node.set("linux.resources.cpu.shares", "cpu.weight", weight)?;
    }
    cpu_max(node, cpu)
}

fn cpu_max(node: &Node, cpu: &LinuxCpu) -> Result<()> {
    const BURST: &str = "linux.resources.cpu.burst";
    let burst = cpu.burst().map(|burst| burst.to_string());
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    // A burst may not exceed the quota: raised together, the quota must come first.
    let burst_later = match &burst {
        Some(value) => match node.write("cpu.max.burst", value) {
            Err(Errno::EINVAL) if quota.is_some() => true,
            Err(errno) => return Err(node.refused(BURST, "cpu.max.burst", value, errno)),
            Ok(()) => false,
        },
        None => false,
    };
    let max = quota.map(|quota| if quota < 0 { "max".to_owned() } else { quota.to_string() });
    match (max, period) {
        (Some(max), Some(period)) => node.set(
            "linux.resources.cpu: quota and period",
            "cpu.max",
            &format!("{max} {period}"),
        )?,
        // A single number leaves the period as it is.
        (Some(max), None) => node.set("linux.resources.cpu.quota", "cpu.max", &max)?,
        // There is no way to write the period alone.
        (None, Some(period)) => {
            let now = node.text("cpu.max")?;
            let max = now.split(' ').next().unwrap_or("max");
            node.set("linux.resources.cpu.period", "cpu.max", &format!("{max} {period}"))?;
        }
        (None, None) => {}
    }
    match burst {
        Some(value) if burst_later => node.set(BURST, "cpu.max.burst", &value),
        _ => Ok(()),
    }
}

/// Both versions name these files alike.
pub(super) fn cpuset(node: &Node, cpu: &LinuxCpu) -> Result<()> {
    for (property, file, value) in
        [("cpus", "cpuset.cpus", cpu.cpus()), ("mems", "cpuset.mems", cpu.mems())]
    {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            node.set(&format!("linux.resources.cpu.{property}"), file, value)?;
        }
    }
    Ok(())
}

pub(super) fn pids(node: &Node, limit: i64) -> Result<()> {
    node.set("linux.resources.pids.limit", "pids.max", &convert::pids_max(limit))
}

pub(super) fn block_io(node: &Node, io: &LinuxBlockIo) -> Result<()> {
    if set(io.leaf_weight()).is_some() {
        bail!(
            "linux.resources.blockIO.leafWeight: cgroup v2 has no leaf weights: remove the property"
        );
    }
    if let Some(weight) = set(io.weight()) {
        io_weight(node, "linux.resources.blockIO.weight", "", weight)?;
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let property = format!("linux.resources.blockIO.weightDevice[{index}]");
        ensure!(
            set(device.leaf_weight()).is_none(),
            "{property}.leafWeight: cgroup v2 has no leaf weights: remove the property"
        );
        if let Some(weight) = set(device.weight()) {
            io_weight(node, &property, &format!("{}:{} ", device.major(), device.minor()), weight)?;
        }
    }
    for (device, (property, line)) in io_max(io) {
        node.set(&property, "io.max", &format!("{device} {line}"))?;
    }
    Ok(())
}

/// For either that may divide a disk: BFQ, where it is the disk's scheduler, and io.cost, where it
/// is enabled. A cgroup has the files of both if the kernel has both, whichever is in use.
fn io_weight(node: &Node, property: &str, device: &str, weight: u16) -> Result<()> {
    let weight = convert::checked_weight(property, weight)?;
    let files = [("io.bfq.weight", u64::from(weight)), ("io.weight", convert::io_weight(weight))];
    let mut refused = None;
    let mut set = false;
    for (file, weight) in files {
        let value = format!("{device}{weight}");
        match node.write(file, &value) {
            Ok(()) => set = true,
            // It is not what divides this disk, or not there.
            Err(errno @ (Errno::EOPNOTSUPP | Errno::ENOENT)) => {
                refused = Some(node.refused(property, file, &value, errno));
            }
            Err(errno) => return Err(node.refused(property, file, &value, errno)),
        }
    }
    if set { Ok(()) } else { refused.map_or(Ok(()), Err) }
}

/// The lines of `io.max`, one a device, each with the property that asks for it first.
fn io_max(io: &LinuxBlockIo) -> BTreeMap<String, (String, String)> {
    let lists: [(&str, &str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("throttleReadBpsDevice", "rbps", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", "riops", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device()),
    ];
    let mut lines = BTreeMap::new();
    for (name, key, list) in lists {
        for (index, device) in list.iter().flatten().enumerate() {
            let (_, line): &mut (String, String) =
                lines.entry(format!("{}:{}", device.major(), device.minor())).or_insert_with(
                    || (format!("linux.resources.blockIO.{name}[{index}]"), String::new()),
                );
            // On v1 a rate of 0 takes the limit away.
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let separator = if line.is_empty() { "" } else { " " };
            line.push_str(&format!("{separator}{key}={rate}"));
        }
    }
    lines
}

pub(super) fn hugetlb(node: &Node, limits: &[LinuxHugepageLimit]) -> Result<()> {
    for (index, limit) in limits.iter().enumerate() {
        let property = format!("linux.resources.hugepageLimits[{index}]");
        let size = limit.page_size();
        convert::checked_page_size(&property, size)?;
        let value = convert::or_max(&property, limit.limit())?;
        node.set(&property, &format!("hugetlb.{size}.max"), &value)?;
        // Reservations would escape the limit of faults until they are touched.
        node.set(&property, &format!("hugetlb.{size}.rsvd.max"), &value)?;
    }
    Ok(())
}

/// Both versions name this file alike.
pub(super) fn rdma(node: &Node, devices: &HashMap<String, LinuxRdma>) -> Result<()> {
    for (name, limits) in devices {
        let property = format!("linux.resources.rdma.{name}");
        convert::checked_word(&property, name)?;
        let mut line = name.clone();
        if let Some(handles) = limits.hca_handles() {
            line.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limits.hca_objects() {
            line.push_str(&format!(" hca_object={objects}"));
        }
        if line != *name {
            node.set(&property, "rdma.max", &line)?;
        }
    }
    Ok(())
}

/// `linux.resources.unified`: file names to values, in the order of their names. A value of
/// several lines is several settings.
pub(super) fn unified(
    node: &Node,
    files: &HashMap<String, String>,
    controllers: &str,
) -> Result<()> {
    let files: BTreeMap<_, _> = files.iter().collect();
    for (file, value) in files {
        let property = format!("linux.resources.unified[{file:?}]");
        convert::checked_file_name(&property, file)?;
        for line in value.lines() {
            node.write(file, line).map_err(|errno| {
                let controller = file.split('.').next().unwrap_or_default();
                let missing = errno == Errno::ENOENT
                    && controller != "cgroup"
                    && !controllers.split(' ').any(|have| have == controller);
                let error = node.refused(&property, file, line, errno);
                if !missing {
                    return error;
                }
                error.context(format!("{property}: the controller {controller:?} is not available in {}, only: {controllers}", node.path()))
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttles_of_one_device_are_one_line_and_zero_lifts_the_limit() {
        let io: LinuxBlockIo = serde_json::from_str(
            r#"{"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}, {"major": 8, "minor": 16, "rate": 1}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}"#,
        )
        .unwrap();
        let lines = io_max(&io);
        assert_eq!(
            lines["8:0"],
            (
                "linux.resources.blockIO.throttleReadBpsDevice[0]".into(),
                "rbps=600 wiops=max".into()
            )
        );
        assert_eq!(
            lines["8:16"],
            ("linux.resources.blockIO.throttleReadBpsDevice[1]".into(), "rbps=1".into())
        );
    }
}
