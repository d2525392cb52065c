//! Doors for the fuzz targets, which are outside: what becomes of a configuration before, and
//! while, files of cgroups are written. Only in their build.

use std::fs::{create_dir_all, write};
use std::os::unix::fs::symlink;
use std::sync::LazyLock;

use oci_spec::runtime::LinuxResources;

use super::*;

/// Files that limits are read from and written to; here without an end or a content.
const FILES: [&str; 60] = [
    "blkio.bfq.weight",
    "blkio.bfq.weight_device",
    "blkio.leaf_weight",
    "blkio.leaf_weight_device",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.write_iops_device",
    "blkio.weight",
    "blkio.weight_device",
    "cgroup.events",
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.cfs_burst_us",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
    "cpu.shares",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "devices.allow",
    "devices.deny",
    "devices.list",
    "freezer.state",
    "hugetlb.1GB.limit_in_bytes",
    "hugetlb.1GB.max",
    "hugetlb.1GB.rsvd.limit_in_bytes",
    "hugetlb.1GB.rsvd.max",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.limit_in_bytes",
    "hugetlb.2MB.rsvd.max",
    "io.bfq.weight",
    "io.max",
    "io.weight",
    "memory.current",
    "memory.high",
    "memory.limit_in_bytes",
    "memory.low",
    "memory.max",
    "memory.memsw.limit_in_bytes",
    "memory.min",
    "memory.oom_control",
    "memory.soft_limit_in_bytes",
    "memory.swap.current",
    "memory.swap.max",
    "memory.swappiness",
    "memory.usage_in_bytes",
    "net_cls.classid",
    "net_prio.ifpriomap",
    "notify_on_release",
    "pids.current",
    "pids.max",
    "rdma.max",
];

const CONTROLLERS: &str = "cpu cpuset io memory pids hugetlb rdma";

/// Like the cgroup mount of a host: of cgroup v2 alone, and of v1 alone. `c` is the container's.
struct Mock {
    root: std::os::fd::BorrowedFd<'static>,
    location: Location,
}

impl Mock {
    fn new(version: Version) -> std::io::Result<Self> {
        let name = format!("cgroup-{version:?}-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let directories: &[&str] = match version {
            Version::V1 => &[
                "blkio",
                "cpu,cpuacct",
                "cpuset",
                "devices",
                "hugetlb",
                "memory",
                "net_cls,net_prio",
                "pids",
                "rdma",
            ],
            Version::V2 => &[""],
        };
        let hierarchies = directories.iter().map(|directory| {
            let leaf = root.join(directory).join("c");
            create_dir_all(&leaf)?;
            for file in FILES {
                symlink("/dev/null", leaf.join(file))?;
            }
            write(root.join(directory).join("cgroup.controllers"), CONTROLLERS)?;
            write(leaf.join("cgroup.controllers"), CONTROLLERS)?;
            Ok(Hierarchy::new((*directory).to_owned(), version))
        });
        let hierarchies = hierarchies.collect::<std::io::Result<Vec<_>>>()?;
        let location =
            Location { path: vec!["c".to_owned()], hierarchies, optional: false, systemd: None };
        let root = Box::leak(Box::new(open_path(&root, OFlag::O_DIRECTORY)?));
        Ok(Self { root: std::os::fd::AsFd::as_fd(root), location })
    }

    fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let mut cgroup = Cgroup::handle(&self.location, self.root);
        cgroup.open_leaf()?;
        cgroup.apply(resources).map(drop)
    }
}

/// Everything that is made of `linux.resources`, on every kind of host: the files' contents, the
/// device program, the properties of a unit.
///
/// # Panics
/// When what is made of the device rules does not mean what they say.
pub fn plan(resources: &LinuxResources) {
    static MOCKS: LazyLock<[Mock; 2]> = LazyLock::new(|| {
        [Version::V1, Version::V2].map(|version| Mock::new(version).expect("make a mock"))
    });
    for (version, now) in [(240, "max 100000"), (257, "18446744073709551 1000")] {
        let read = |file: &str| Some(if file == "cpu.max" { now } else { "1000" }.to_owned());
        let _ = unit_properties::of_limits(resources, version, &read);
    }
    let _ = unit_properties::of_devices(resources);
    devices::check_meaning(resources.devices().as_deref().unwrap_or_default());
    // The program is the kernel's to take, which the tests see to.
    let mut resources = resources.clone();
    resources.set_devices(None);
    for mock in &*MOCKS {
        let _ = mock.apply(&resources);
    }
}

/// The path of a cgroup, as the cgroupfs driver takes it.
///
/// # Errors
/// As [`Location::locate`].
pub fn components(path: &Path) -> Result<Vec<String>> {
    super::components(path)
}

/// The path of a unit's cgroup below systemd's own.
///
/// # Errors
/// As [`Location::locate_unit`].
pub fn unit(text: &str, user: bool) -> Result<Vec<String>> {
    let (slice, name) = systemd::parse(text, user)?;
    let mut path = systemd::expand_slice(&slice)?;
    if name.ends_with(".slice") {
        path = systemd::expand_slice(&name)?;
    } else {
        path.push(name);
    }
    Ok(path)
}

/// What annotations add to a unit.
///
/// # Errors
/// When one of them is wrong.
pub fn properties(annotations: &std::collections::BTreeMap<String, String>) -> Result<usize> {
    unit_properties::of_annotations(annotations).map(|list| list.len())
}

/// Where a record says that the cgroup is, and what of it belongs to others.
///
/// # Panics
/// When that is not a cgroup below the root of each hierarchy.
pub fn places(location: &Location) -> Result<()> {
    for (directory, path) in location.paths() {
        let inner = path.strip_prefix(ROOT).context("below the root")?;
        assert!(inner.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
        assert!(inner.components().count() > usize::from(!directory.is_empty()), "{path:?}");
    }
    assert!(location.hierarchies.iter().all(|one| one.existing <= location.path.len()));
    Ok(())
}
