//! What a container uses and has used: the figures of `events`.
//!
//! The structs are its JSON. Their names, order and which zeros are left out are runc's, whose
//! users read it (types/events.go); so are the meanings, which are those of cgroup v1 also where
//! the numbers come from v2 (kernel: admin-guide/cgroup-v1, admin-guide/cgroup-v2.rst). What a
//! kernel does not count is zero.

use super::Cgroup;
use super::node::Node;
use crate::resctrl;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use serde::Serialize;
use std::collections::BTreeMap;

/// All figures.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, HugeTlb>,
    /// Set by who knows the container's groups.
    pub intel_rdt: resctrl::Stats,
    /// Of devices that the runtime has made, which are none.
    network_interfaces: (),
}

fn zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Debug, Default, Serialize)]
struct Cpu {
    #[serde(skip_serializing_if = "zero")]
    usage: CpuUsage,
    #[serde(skip_serializing_if = "zero")]
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// In nanoseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "zero")]
    total: u64,
    #[serde(skip_serializing_if = "zero")]
    percpu: Vec<u64>,
    #[serde(skip_serializing_if = "zero")]
    percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "zero")]
    percpu_user: Vec<u64>,
    kernel: u64,
    user: u64,
}

/// The time is in nanoseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "zero")]
    periods: u64,
    #[serde(skip_serializing_if = "zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "zero")]
    throttled_time: u64,
}

#[derive(Debug, Default, Serialize)]
struct CpuSet {
    #[serde(skip_serializing_if = "zero")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "zero")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

/// In bytes.
#[derive(Debug, Default, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "zero")]
    cache: u64,
    #[serde(skip_serializing_if = "zero")]
    usage: MemoryEntry,
    /// Memory and swap together.
    #[serde(skip_serializing_if = "zero")]
    swap: MemoryEntry,
    #[serde(skip_serializing_if = "zero")]
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP", skip_serializing_if = "zero")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "zero")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "zero")]
    current: u64,
    /// Zero for none.
    #[serde(skip_serializing_if = "zero")]
    limit: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "zero")]
    major: u64,
    #[serde(skip_serializing_if = "zero")]
    minor: u64,
    #[serde(skip_serializing_if = "zero")]
    op: String,
    #[serde(skip_serializing_if = "zero")]
    value: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "zero")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    io_queue_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "zero")]
    sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, Serialize)]
struct HugeTlb {
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

/// Pressure stall information (kernel: accounting/psi.rst).
#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    #[serde(skip_serializing_if = "zero")]
    some: Stall,
    #[serde(skip_serializing_if = "zero")]
    full: Stall,
}

/// Averages in percent, the total in microseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Stall {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

impl Cgroup {
    /// The figures of this moment, but for `intel_rdt`.
    ///
    /// # Errors
    /// When there is no cgroup, or its files can't be read.
    pub fn stats(&self) -> Result<Stats> {
        let any = self.unified().into_iter().chain(self.v1_nodes()).any(|node| node.exists("."));
        ensure!(any, "the container has no cgroup {}, so nothing is counted", self.shown());
        let (v1, v2) = (|name| Files(self.v1_node(name)), Files(self.unified()));
        let mut stats = Stats {
            cpu: match self.v1_node("cpuacct") {
                Some(_) => v1_cpu(&v1("cpuacct"), &v1("cpu"))?,
                None => v2_cpu(&v2)?,
            },
            cpuset: match self.v1_node("cpuset") {
                Some(_) => v1_cpuset(&v1("cpuset"))?,
                None => CpuSet {
                    cpus: v2.list("cpuset.cpus.effective")?,
                    mems: v2.list("cpuset.mems.effective")?,
                    ..CpuSet::default()
                },
            },
            memory: match self.v1_node("memory") {
                Some(_) => v1_memory(&v1("memory"))?,
                None => v2_memory(&v2)?,
            },
            pids: self.pids(&Files(self.v1_node("pids").or_else(|| self.unified())))?,
            blkio: match self.v1_node("blkio") {
                Some(_) => v1_block_io(&v1("blkio"))?,
                None => v2_block_io(&v2.text("io.stat")?.unwrap_or_default()),
            },
            hugetlb: match self.v1_node("hugetlb") {
                Some(_) => hugetlb(&v1("hugetlb"), v1_huge_pages)?,
                None => hugetlb(&v2, v2_huge_pages)?,
            },
            ..Stats::default()
        };
        stats.cpu.psi = v2.pressure("cpu.pressure")?;
        stats.memory.psi = v2.pressure("memory.pressure")?;
        stats.blkio.psi = v2.pressure("io.pressure")?;
        Ok(stats)
    }

    fn pids(&self, files: &Files) -> Result<Pids> {
        let current = match files.text("pids.current")? {
            Some(_) => files.number("pids.current")?,
            None => self.processes()?.len() as u64,
        };
        let limit = files.number("pids.max")?;
        Ok(Pids { current, limit: if limit == u64::MAX { 0 } else { limit } })
    }
}

/// The files of one cgroup. One that is not there is nothing: not every kernel has each, and the
/// cgroup may be on its way out.
struct Files<'a>(Option<Node<'a>>);

impl Files<'_> {
    fn text(&self, file: &str) -> Result<Option<String>> {
        let Some(node) = &self.0 else { return Ok(None) };
        match node.read_long(file) {
            Ok(text) => Ok(Some(text)),
            // The last is a kernel that has PSI, but has it switched off.
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("cannot read {}/{file}", node.path())),
        }
    }

    /// The largest number for `max`, as runc has it.
    fn number(&self, file: &str) -> Result<u64> {
        Ok(self.text(file)?.map_or(0, |text| number(text.trim())))
    }

    fn numbers(&self, file: &str) -> Result<Vec<u64>> {
        let text = self.text(file)?.unwrap_or_default();
        Ok(text.split_ascii_whitespace().map(number).collect())
    }

    /// Lines of a name and a number.
    fn table(&self, file: &str) -> Result<BTreeMap<String, u64>> {
        let text = self.text(file)?.unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.map(|(name, value)| (name.to_owned(), number(value.trim()))).collect())
    }

    /// Numbers and ranges of them, such as `0-3,7`.
    fn list(&self, file: &str) -> Result<Vec<u16>> {
        let text = self.text(file)?.unwrap_or_default();
        let ranges = text.trim().split(',').filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        Ok(ranges.flatten().collect())
    }

    fn pressure(&self, file: &str) -> Result<Option<Pressure>> {
        Ok(self.text(file)?.as_deref().map(pressure))
    }
}

fn number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

fn value(table: &BTreeMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

fn v1_cpu(cpuacct: &Files, cpu: &Files) -> Result<Cpu> {
    let stat = cpu.table("cpu.stat")?;
    Ok(Cpu {
        usage: CpuUsage {
            total: cpuacct.number("cpuacct.usage")?,
            percpu: cpuacct.numbers("cpuacct.usage_percpu")?,
            percpu_kernel: cpuacct.numbers("cpuacct.usage_percpu_sys")?,
            percpu_user: cpuacct.numbers("cpuacct.usage_percpu_user")?,
            kernel: cpuacct.number("cpuacct.usage_sys")?,
            user: cpuacct.number("cpuacct.usage_user")?,
        },
        throttling: Throttling {
            periods: value(&stat, "nr_periods"),
            throttled_periods: value(&stat, "nr_throttled"),
            throttled_time: value(&stat, "throttled_time"),
        },
        psi: None,
    })
}

fn v2_cpu(files: &Files) -> Result<Cpu> {
    let stat = files.table("cpu.stat")?;
    let nanoseconds = |name| value(&stat, name).saturating_mul(1000);
    Ok(Cpu {
        usage: CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            ..CpuUsage::default()
        },
        throttling: Throttling {
            periods: value(&stat, "nr_periods"),
            throttled_periods: value(&stat, "nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
        },
        psi: None,
    })
}

fn v1_cpuset(files: &Files) -> Result<CpuSet> {
    let flag = |name: &str| files.number(&format!("cpuset.{name}"));
    let level = files.text("cpuset.sched_relax_domain_level")?.unwrap_or_default();
    Ok(CpuSet {
        cpus: files.list("cpuset.cpus")?,
        cpu_exclusive: flag("cpu_exclusive")?,
        mems: files.list("cpuset.mems")?,
        mem_hardwall: flag("mem_hardwall")?,
        mem_exclusive: flag("mem_exclusive")?,
        memory_migrate: flag("memory_migrate")?,
        memory_spread_page: flag("memory_spread_page")?,
        memory_spread_slab: flag("memory_spread_slab")?,
        memory_pressure: flag("memory_pressure")?,
        sched_load_balance: flag("sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    })
}

fn v1_memory(files: &Files) -> Result<Memory> {
    let entry = |name: &str| -> Result<MemoryEntry> {
        Ok(MemoryEntry {
            limit: files.number(&format!("memory.{name}limit_in_bytes"))?,
            usage: files.number(&format!("memory.{name}usage_in_bytes"))?,
            max: files.number(&format!("memory.{name}max_usage_in_bytes"))?,
            failcnt: files.number(&format!("memory.{name}failcnt"))?,
        })
    };
    let raw = files.table("memory.stat")?;
    Ok(Memory {
        cache: value(&raw, "cache"),
        usage: entry("")?,
        swap: entry("memsw.")?,
        kernel: entry("kmem.")?,
        kernel_tcp: entry("kmem.tcp.")?,
        raw,
        psi: None,
    })
}

fn v2_memory(files: &Files) -> Result<Memory> {
    let usage = MemoryEntry {
        limit: files.number("memory.max")?,
        usage: files.number("memory.current")?,
        max: files.number("memory.peak")?,
        failcnt: value(&files.table("memory.events")?, "max"),
    };
    // Without accounting of swap nothing is known of both together.
    let swap = match files.text("memory.swap.current")? {
        Some(_) => MemoryEntry {
            limit: files.number("memory.swap.max")?.saturating_add(usage.limit),
            usage: files.number("memory.swap.current")?.saturating_add(usage.usage),
            ..MemoryEntry::default()
        },
        None => MemoryEntry::default(),
    };
    let raw = files.table("memory.stat")?;
    Ok(Memory { cache: value(&raw, "file"), usage, swap, raw, ..Memory::default() })
}

/// Counters of BFQ where that scheduler has some, else those of throttling.
fn v1_block_io(files: &Files) -> Result<BlockIo> {
    let entries = |name: &str| -> Result<Vec<BlockIoEntry>> {
        for source in ["bfq.", "throttle.", ""] {
            let text = files.text(&format!("blkio.{source}{name}_recursive"))?.unwrap_or_default();
            let entries: Vec<_> = text.lines().filter_map(v1_block_io_entry).collect();
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    };
    Ok(BlockIo {
        io_service_bytes_recursive: entries("io_service_bytes")?,
        io_serviced_recursive: entries("io_serviced")?,
        io_queue_recursive: entries("io_queued")?,
        io_service_time_recursive: entries("io_service_time")?,
        io_wait_time_recursive: entries("io_wait_time")?,
        io_merged_recursive: entries("io_merged")?,
        io_time_recursive: entries("time")?,
        sectors_recursive: entries("sectors")?,
        psi: None,
    })
}

/// `8:0 Read 4096`, or `8:0 4096` where no operation is told apart. Totals have no device.
fn v1_block_io_entry(line: &str) -> Option<BlockIoEntry> {
    let (device, rest) = line.split_once(' ')?;
    let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
    block_io_entry(device, op, value)
}

fn block_io_entry(device: &str, op: &str, value: &str) -> Option<BlockIoEntry> {
    let (major, minor) = device.split_once(':')?;
    Some(BlockIoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: value.parse().ok()?,
    })
}

/// Lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn v2_block_io(text: &str) -> BlockIo {
    let mut stats = BlockIo::default();
    for line in text.lines() {
        let Some((device, counters)) = line.split_once(' ') else { continue };
        for (name, value) in counters.split(' ').filter_map(|counter| counter.split_once('=')) {
            let (entries, op) = match name {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            entries.extend(block_io_entry(device, op, value));
        }
    }
    stats
}

/// The figures of each size of huge pages that the kernel has, and counts here.
fn hugetlb(
    files: &Files,
    of_size: impl Fn(&Files, &str) -> Result<Option<HugeTlb>>,
) -> Result<BTreeMap<String, HugeTlb>> {
    let mut sizes = BTreeMap::new();
    // A kernel without huge pages has no such directory.
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB"));
        let Some(kilobytes) = size.and_then(|size| size.parse::<u64>().ok()) else { continue };
        let size = match kilobytes {
            0..1024 => format!("{kilobytes}KB"),
            1024..0x10_0000 => format!("{}MB", kilobytes >> 10),
            _ => format!("{}GB", kilobytes >> 20),
        };
        if let Some(figures) = of_size(files, &size)? {
            sizes.insert(size, figures);
        }
    }
    Ok(sizes)
}

/// Reservations, where the kernel counts them, include what is in use.
fn v1_huge_pages(files: &Files, size: &str) -> Result<Option<HugeTlb>> {
    for kind in [".rsvd", ""] {
        let name = |what: &str| format!("hugetlb.{size}{kind}.{what}");
        if files.text(&name("usage_in_bytes"))?.is_some() {
            return Ok(Some(HugeTlb {
                usage: files.number(&name("usage_in_bytes"))?,
                max: files.number(&name("max_usage_in_bytes"))?,
                failcnt: files.number(&name("failcnt"))?,
            }));
        }
    }
    Ok(None)
}

fn v2_huge_pages(files: &Files, size: &str) -> Result<Option<HugeTlb>> {
    for kind in [".rsvd", ""] {
        let current = format!("hugetlb.{size}{kind}.current");
        if files.text(&current)?.is_some() {
            let events = files.table(&format!("hugetlb.{size}.events"))?;
            let usage = files.number(&current)?;
            return Ok(Some(HugeTlb { usage, max: 0, failcnt: value(&events, "max") }));
        }
    }
    Ok(None)
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(text: &str) -> Pressure {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let field = |name: &str| {
            let fields = line.split(' ').filter_map(|field| field.split_once('='));
            fields.into_iter().find(|(other, _)| *other == name).map_or("0", |(_, value)| value)
        };
        let average = |name| field(name).parse().unwrap_or(0.0);
        Stall {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: number(field("total")),
        }
    };
    Pressure { some: stall("some "), full: stall("full ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_line_by_line() {
        let text = "some avg10=0.12 avg60=3.00 avg300=0.50 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let json = serde_json::to_string(&pressure(text)).unwrap();
        assert_eq!(json, r#"{"some":{"avg10":0.12,"avg60":3.0,"avg300":0.5,"total":77}}"#);
    }

    #[test]
    fn block_io_has_one_form_from_both_versions() {
        let entry = |op: &str, value| BlockIoEntry { major: 8, minor: 16, op: op.into(), value };
        let stats = v2_block_io("8:16 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=9 dios=3\n8:0 \n");
        assert_eq!(stats.io_service_bytes_recursive, [entry("Read", 5), entry("Write", 6)]);
        assert_eq!(stats.io_serviced_recursive, [entry("Read", 1), entry("Write", 2)]);
        assert_eq!(v1_block_io_entry("8:16 Read 5"), Some(entry("Read", 5)));
        assert_eq!(v1_block_io_entry("8:16 5"), Some(entry("", 5)));
        assert_eq!(v1_block_io_entry("Total 5"), None);
    }

    #[test]
    fn zeros_are_left_out_as_runc_does() {
        let json = serde_json::to_string(&Stats::default()).unwrap();
        assert_eq!(
            json,
            "{\"cpu\":{},\"cpuset\":{\"cpu_exclusive\":0,\"mem_hardwall\":0,\"mem_exclusive\":0,\
             \"memory_migrate\":0,\"memory_spread_page\":0,\"memory_spread_slab\":0,\
             \"memory_pressure\":0,\"sched_load_balance\":0,\"sched_relax_domain_level\":0},\
             \"memory\":{},\"pids\":{},\"blkio\":{},\"hugetlb\":{},\"intel_rdt\":{},\
             \"network_interfaces\":null}"
        );
    }
}
