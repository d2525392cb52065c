//! `linux.resources` and annotations as properties of a unit of systemd
//! (systemd.resource-control(5), org.freedesktop.systemd1(5)).
//!
//! What a value is wrong for is said by the code that writes the files, which comes after; here a
//! value that systemd can't be told is left out.

use super::convert::{self, set};
use super::devices::Policy;
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use std::collections::BTreeMap;
use zbus::Variant;

/// Name and value.
pub(super) type Property = (String, Variant<'static>);

/// "No limit" in a property.
const INFINITY: u64 = u64::MAX;

/// The period of a quota unless another is set, in µs.
const PERIOD: u64 = 100_000;

/// systemd keeps quotas in percent of a processor: 10 ms a second.
const PERCENT: u64 = 10_000;

/// The first version whose `CPUWeight` can be "idle"; earlier ones leave `cpu.idle` alone.
const KNOWS_IDLE: u32 = 252;

/// More processors or memory nodes than any kernel is built for.
const MOST_BITS: usize = 1 << 16;

/// Annotations with this prefix are properties.
const ANNOTATION: &str = "org.systemd.property.";

pub(super) fn text(name: &str, value: &str) -> Property {
    (name.to_owned(), Variant::from(value.to_owned()))
}

pub(super) fn flag(name: &str, value: bool) -> Property {
    (name.to_owned(), Variant::from(value))
}

fn number(name: &str, value: u64) -> Property {
    (name.to_owned(), Variant::from(value))
}

fn bytes(name: &str, value: Vec<u8>) -> Property {
    (name.to_owned(), Variant::from(value))
}

/// An empty list of devices, which takes away all that were set before.
pub(super) fn no_devices() -> Property {
    ("DeviceAllow".to_owned(), Variant::from(Vec::<(String, String)>::new()))
}

/// All limits that systemd `version` has properties for. `now` reads a file of the cgroup, if it
/// exists: quota and period, memory and swap can be changed one without the other, and what systemd
/// wants depends on both.
pub(super) fn of_limits(
    resources: &LinuxResources,
    version: u32,
    now: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Property>> {
    let mut list = Vec::new();
    if let Some(memory) = resources.memory() {
        of_memory(memory, now, &mut list)?;
    }
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, version, &now("cpu.max").unwrap_or_default(), &mut list);
    }
    if let Some(pids) = resources.pids() {
        list.extend(limit("TasksMax", &convert::pids_max(pids.limit())));
    }
    if let Some(io) = resources.block_io() {
        of_block_io(io, &mut list)?;
    }
    for (file, value) in resources.unified().iter().flatten() {
        of_unified(file, value.trim(), version, &mut list);
    }
    Ok(list)
}

fn of_memory(
    memory: &LinuxMemory,
    now: &dyn Fn(&str) -> Option<String>,
    list: &mut Vec<Property>,
) -> Result<()> {
    let (max, swap) = (set(memory.limit()), set(memory.swap()));
    for (name, property, value) in [
        ("MemoryMax", "linux.resources.memory.limit", max),
        ("MemoryLow", "linux.resources.memory.reservation", set(memory.reservation())),
    ] {
        if let Some(value) = value {
            list.extend(limit(name, &convert::or_max(property, value)?));
        }
    }
    let max = max.or_else(|| now("memory.max").filter(|_| swap.is_some())?.parse().ok());
    let swap = convert::swap_max(max, swap)?;
    list.extend(swap.and_then(|value| limit("MemorySwapMax", &value)));
    Ok(())
}

fn of_cpu(cpu: &LinuxCpu, version: u32, cpu_max: &str, list: &mut Vec<Property>) {
    if cpu.idle() == Some(1) {
        if version >= KNOWS_IDLE {
            list.push(number("CPUWeight", 0));
        }
    } else if let Some(shares) = set(cpu.shares()) {
        list.push(number("CPUWeight", convert::cpu_weight(shares)));
    }
    let (quota, period) = (set(cpu.quota()), set(cpu.period()));
    if quota.is_some() || period.is_some() {
        let mut now = cpu_max.split(' ');
        let quota = match quota {
            Some(quota) => u64::try_from(quota).ok(),
            None => now.next().and_then(|quota| quota.parse().ok()),
        };
        let before = cpu_max.split(' ').nth(1).and_then(|period| period.parse().ok());
        of_quota(quota, period.or(before), list);
    }
    for (name, cpus) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
        list.extend(cpus.as_ref().and_then(|cpus| Some(bytes(name, bits(cpus)?))));
    }
}

/// A quota in a period, both in µs; none is no limit.
fn of_quota(quota: Option<u64>, period: Option<u64>, list: &mut Vec<Property>) {
    let each = period.unwrap_or(PERIOD);
    let per_second = match quota {
        // Rounded up, because systemd cuts off what is less than a percent.
        Some(quota) if each > 0 => {
            let per_second = u128::from(quota) * 1_000_000 / u128::from(each);
            let rounded = per_second.next_multiple_of(PERCENT.into());
            u64::try_from(rounded).unwrap_or(INFINITY)
        }
        _ => INFINITY,
    };
    list.push(number("CPUQuotaPerSecUSec", per_second));
    list.push(number("CPUQuotaPeriodUSec", each));
}

fn of_block_io(io: &LinuxBlockIo, list: &mut Vec<Property>) -> Result<()> {
    if let Some(weight) = set(io.weight()) {
        let weight = convert::checked_weight("linux.resources.blockIO.weight", weight)?;
        list.push(number("IOWeight", convert::io_weight(weight)));
    }
    let node = |major: i64, minor: i64| format!("/dev/block/{major}:{minor}");
    let weights: Vec<(String, u64)> = (io.weight_device().iter().flatten())
        .filter_map(|device| {
            let weight = convert::io_weight(set(device.weight())?);
            Some((node(device.major(), device.minor()), weight))
        })
        .collect();
    if !weights.is_empty() {
        list.push(("IODeviceWeight".into(), Variant::from(weights)));
    }
    let lists: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("IOReadBandwidthMax", io.throttle_read_bps_device()),
        ("IOWriteBandwidthMax", io.throttle_write_bps_device()),
        ("IOReadIOPSMax", io.throttle_read_iops_device()),
        ("IOWriteIOPSMax", io.throttle_write_iops_device()),
    ];
    for (name, devices) in lists {
        let rates: Vec<(String, u64)> = (devices.iter().flatten())
            .map(|device| {
                let rate = set(Some(device.rate())).unwrap_or(INFINITY);
                (node(device.major(), device.minor()), rate)
            })
            .collect();
        if !rates.is_empty() {
            list.push((name.into(), Variant::from(rates)));
        }
    }
    Ok(())
}

fn of_unified(file: &str, value: &str, version: u32, list: &mut Vec<Property>) {
    let name = match file {
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "io.weight" => {
            let weight = value.strip_prefix("default ").unwrap_or(value);
            list.extend(limit("IOWeight", weight));
            return;
        }
        "cpuset.cpus" => return list.extend(bits(value).map(|bits| bytes("AllowedCPUs", bits))),
        "cpuset.mems" => {
            return list.extend(bits(value).map(|bits| bytes("AllowedMemoryNodes", bits)));
        }
        "cpu.idle" if value == "1" && version >= KNOWS_IDLE => {
            return list.push(number("CPUWeight", 0));
        }
        "cpu.max" => {
            let mut words = value.split_ascii_whitespace();
            let quota = words.next().and_then(amount).filter(|quota| *quota != INFINITY);
            return of_quota(quota, words.next().and_then(amount), list);
        }
        _ => return,
    };
    list.extend(limit(name, value));
}

/// A limit as the files of cgroup v2 take it; none if the kernel would not take it either.
fn limit(name: &str, value: &str) -> Option<Property> {
    Some(number(name, amount(value)?))
}

/// `max`, or a number, with a unit of memory perhaps.
fn amount(value: &str) -> Option<u64> {
    if value == "max" {
        return Some(INFINITY);
    }
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &value[digits.len()..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A list like `0-2,7` as a set of bits, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST_BITS {
            return None;
        }
        for bit in first..=last {
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    (!bits.is_empty()).then_some(bits)
}

/// The device rules, so that a program of systemd's own allows no less than ours, which decides.
/// What it has no words for is left to ours alone.
pub(super) fn of_devices(resources: &LinuxResources) -> Result<Vec<Property>> {
    let rules = resources.devices().as_deref().unwrap_or_default();
    let lists = match Policy::new(rules)?.v1_lists() {
        Ok(lists) if !lists.allow_all => lists,
        _ => return Ok(vec![text("DevicePolicy", "auto"), no_devices()]),
    };
    let allowed: Vec<(String, String)> =
        lists.exceptions.iter().filter_map(|line| device(line)).collect();
    Ok(vec![
        text("DevicePolicy", "strict"),
        no_devices(),
        ("DeviceAllow".to_owned(), Variant::from(allowed)),
    ])
}

/// A line such as `c 1:3 rwm` as systemd names the devices: one by its node, all of one driver by
/// `char-MAJOR`, all by `char-*`.
fn device(line: &str) -> Option<(String, String)> {
    let mut words = line.split(' ');
    let kind = if words.next()? == "b" { "block" } else { "char" };
    let (major, minor) = words.next()?.split_once(':')?;
    let access = words.next()?.to_owned();
    let name = match (major, minor) {
        // Any of one minor number can't be said.
        ("*", _) => format!("{kind}-*"),
        (major, "*") => format!("{kind}-{major}"),
        (major, minor) => format!("/dev/{kind}/{major}:{minor}"),
    };
    Some((name, access))
}

/// The properties among the annotations of config.json: `org.systemd.property.NAME`, whose value
/// is in GVariant's text format, as for runc. `NAMESec` is in seconds for systemd's `NAMEUSec`.
///
/// # Errors
/// When a value can't be read, or the property is not the user's to set.
pub(super) fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>> {
    let mut list = Vec::new();
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else { continue };
        ensure!(
            name.len() > 2 && name.chars().all(|c| c.is_ascii_alphanumeric()),
            "annotations[{key:?}]: {name:?} is not the name of a property of systemd"
        );
        ensure!(
            !["Delegate", "Description", "PIDs", "Slice"].contains(&name),
            "annotations[{key:?}]: this property is the runtime's own"
        );
        let parsed = parse(value).with_context(|| {
            format!("annotations[{key:?}]: {value:?} is not a value in GVariant's text format that is known here: true, 12, uint64 12, 'text' or ['text', 'text']")
        })?;
        list.push(match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
            None => (name.to_owned(), parsed),
            Some(stem) => {
                let micro = seconds(&parsed).with_context(|| {
                    format!("annotations[{key:?}]: {value:?} is not a number of seconds")
                })?;
                number(&format!("{stem}USec"), micro)
            }
        });
    }
    Ok(list)
}

fn seconds(value: &Variant) -> Option<u64> {
    let whole = match *value {
        Variant::I32(n) => u64::try_from(n).ok()?,
        Variant::U32(n) => n.into(),
        Variant::I64(n) => u64::try_from(n).ok()?,
        Variant::U64(n) => n,
        Variant::F64(n) if n >= 0.0 => return Some((n * 1e6) as u64),
        _ => return None,
    };
    whole.checked_mul(1_000_000)
}

/// The part of GVariant's text format that properties of units need.
fn parse(text: &str) -> Result<Variant<'static>> {
    let text = text.trim();
    if let Some(items) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return Ok(Variant::from(strings(items)?));
    }
    if text.starts_with(['\'', '"']) {
        let (string, rest) = string(text)?;
        ensure!(rest.is_empty(), "{rest:?} is too much");
        return Ok(Variant::from(string));
    }
    let (kind, value) = text.split_once(' ').unwrap_or(("", text));
    let value = value.trim();
    Ok(match kind {
        "" if value == "true" || value == "false" => Variant::from(value == "true"),
        "" if value.contains('.') => Variant::from(value.parse::<f64>()?),
        "" | "int32" => Variant::from(value.parse::<i32>()?),
        "byte" => Variant::from(value.parse::<u8>()?),
        "int16" => Variant::from(value.parse::<i16>()?),
        "uint16" => Variant::from(value.parse::<u16>()?),
        "uint32" => Variant::from(value.parse::<u32>()?),
        "int64" => Variant::from(value.parse::<i64>()?),
        "uint64" => Variant::from(value.parse::<u64>()?),
        "double" => Variant::from(value.parse::<f64>()?),
        "boolean" => Variant::from(value.parse::<bool>()?),
        // Of what has a type in front, none follows: text as long as one likes must not nest.
        "string" | "@as" if value.starts_with(['\'', '"', '[']) => return parse(value),
        other => bail!("{other:?} is not a known type"),
    })
}

/// A quoted string at the beginning, and what follows it.
fn string(text: &str) -> Result<(String, &str)> {
    let mut chars = text.char_indices();
    let quote = chars.next().map(|(_, c)| c).filter(|c| matches!(c, '\'' | '"'));
    let quote = quote.context("a string must be in quotes")?;
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next().context("the string has no end")?.1),
            c if c == quote => return Ok((value, text[at + 1..].trim_start())),
            c => value.push(c),
        }
    }
    bail!("the string has no end")
}

fn strings(text: &str) -> Result<Vec<String>> {
    let mut list = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (value, after) = string(rest)?;
        list.push(value);
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => bail!("a comma is missing before {after:?}"),
        };
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str, version: u32, cpu_max: &str) -> BTreeMap<String, Variant<'static>> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let now = |file: &str| {
            let text = if file == "cpu.max" { cpu_max } else { "1000" };
            Some(text.to_owned())
        };
        of_limits(&resources, version, &now).unwrap().into_iter().collect()
    }

    #[test]
    fn memory_and_tasks_keep_their_numbers_and_minus_one_is_infinity() {
        let list = limits(
            r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 500}, "pids": {"limit": 7}}"#,
            252,
            "",
        );
        assert_eq!(list["MemoryMax"], Variant::U64(1000));
        assert_eq!(list["MemorySwapMax"], Variant::U64(500));
        assert_eq!(list["MemoryLow"], Variant::U64(500));
        assert_eq!(list["TasksMax"], Variant::U64(7));
        let list = limits(r#"{"memory": {"limit": -1}, "pids": {"limit": -1}}"#, 252, "");
        assert_eq!(list["MemoryMax"], Variant::U64(INFINITY));
        assert_eq!(list["MemorySwapMax"], Variant::U64(INFINITY));
        assert_eq!(list["TasksMax"], Variant::U64(INFINITY));
        // Counted from the limit that there is.
        let list = limits(r#"{"memory": {"swap": 1200}}"#, 252, "");
        assert_eq!(list["MemorySwapMax"], Variant::U64(200));
        assert_eq!(list.len(), 1);
        // What engines leave alone.
        assert!(limits(r#"{"memory": {"limit": 0}, "cpu": {"shares": 0}}"#, 252, "").is_empty());
    }

    #[test]
    fn a_quota_is_time_in_a_second_rounded_up_to_percents() {
        let quota = |json: &str, now: &str| {
            let list = limits(json, 252, now);
            match (&list["CPUQuotaPerSecUSec"], &list["CPUQuotaPeriodUSec"]) {
                (Variant::U64(quota), Variant::U64(period)) => (*quota, *period),
                other => panic!("{other:?}"),
            }
        };
        let now = "max 100000";
        assert_eq!(
            quota(r#"{"cpu": {"quota": 50000, "period": 100000}}"#, now),
            (500_000, 100_000)
        );
        assert_eq!(quota(r#"{"cpu": {"quota": 12345}}"#, now), (130_000, 100_000));
        assert_eq!(quota(r#"{"cpu": {"quota": -1}}"#, "5000 10000"), (INFINITY, 10_000));
        // One of the two alone: the other is what it was.
        assert_eq!(quota(r#"{"cpu": {"quota": 5000}}"#, "1000 50000"), (100_000, 50_000));
        assert_eq!(quota(r#"{"cpu": {"period": 50000}}"#, "5000 10000"), (100_000, 50_000));
        assert_eq!(quota(r#"{"cpu": {"period": 50000}}"#, now), (INFINITY, 50_000));
        assert_eq!(quota(r#"{"unified": {"cpu.max": "25000 50000"}}"#, now), (500_000, 50_000));
        assert_eq!(quota(r#"{"unified": {"cpu.max": "max"}}"#, now), (INFINITY, 100_000));
        // What is too much only when rounded up.
        let most = r#"{"cpu": {"quota": 18446744073709551, "period": 1000}}"#;
        assert_eq!(quota(most, now), (INFINITY, 1000));
    }

    #[test]
    fn weights_are_those_of_the_files_and_idle_is_zero_where_known() {
        let list = limits(r#"{"cpu": {"shares": 1024}, "blockIO": {"weight": 100}}"#, 252, "");
        assert_eq!(list["CPUWeight"], Variant::U64(100));
        assert_eq!(list["IOWeight"], Variant::U64(910));
        let idle = r#"{"cpu": {"shares": 1024, "idle": 1}}"#;
        assert_eq!(limits(idle, 252, "")["CPUWeight"], Variant::U64(0));
        assert!(limits(idle, 251, "").is_empty());
        assert_eq!(
            limits(r#"{"unified": {"io.weight": "default 5"}}"#, 252, "")["IOWeight"],
            Variant::U64(5)
        );
    }

    #[test]
    fn sets_of_processors_are_bits() {
        assert_eq!(bits("0").unwrap(), [1]);
        assert_eq!(bits("0-2,9").unwrap(), [7, 2]);
        for wrong in ["", ",", "x", "3-1", "1-", "99999999"] {
            assert_eq!(bits(wrong), None, "{wrong}");
        }
        let list = limits(r#"{"cpu": {"cpus": "1", "mems": "0"}}"#, 252, "");
        assert_eq!(list["AllowedCPUs"], Variant::from(vec![2u8]));
        assert_eq!(list["AllowedMemoryNodes"], Variant::from(vec![1u8]));
    }

    #[test]
    fn unified_files_that_systemd_knows_are_properties() {
        let list = limits(
            r#"{"unified": {"memory.high": "2M", "memory.min": "max", "pids.max": "9", "cpu.weight": "junk", "hugetlb.2MB.max": "0"}}"#,
            252,
            "",
        );
        assert_eq!(list["MemoryHigh"], Variant::U64(2 << 20));
        assert_eq!(list["MemoryMin"], Variant::U64(INFINITY));
        assert_eq!(list["TasksMax"], Variant::U64(9));
        assert_eq!(list.len(), 3, "{list:?}");
    }

    #[test]
    fn throttled_devices_are_named_by_number() {
        let list = limits(
            r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}],
                "weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}"#,
            252,
            "",
        );
        let one = |node: &str, value: u64| Variant::from(vec![(node.to_owned(), value)]);
        assert_eq!(list["IOReadBandwidthMax"], one("/dev/block/8:0", 600));
        assert_eq!(list["IOWriteIOPSMax"], one("/dev/block/8:16", INFINITY));
        assert_eq!(list["IODeviceWeight"], one("/dev/block/8:0", 1));
    }

    #[test]
    fn device_rules_are_never_narrower_than_ours() {
        let named = |line: &str| device(line).unwrap();
        assert_eq!(named("c 1:3 rwm"), ("/dev/char/1:3".into(), "rwm".into()));
        assert_eq!(named("c 136:* rw"), ("char-136".into(), "rw".into()));
        assert_eq!(named("b *:* m"), ("block-*".into(), "m".into()));
        assert_eq!(named("b *:5 r"), ("block-*".into(), "r".into()));
        let resources = |json| serde_json::from_str::<LinuxResources>(json).unwrap();
        let denied = of_devices(&resources(r#"{"devices": [{"allow": false}]}"#)).unwrap();
        assert_eq!(denied[0], text("DevicePolicy", "strict"));
        assert_eq!(denied[1], no_devices());
        let allowed =
            of_devices(&resources(r#"{"devices": [{"allow": true, "access": "rwm"}]}"#)).unwrap();
        assert_eq!(allowed, [text("DevicePolicy", "auto"), no_devices()]);
    }

    #[test]
    fn annotations_are_properties_in_gvariants_text_format() {
        let annotations = |key: &str, value: &str| {
            let key = format!("{ANNOTATION}{key}");
            of_annotations(&BTreeMap::from([(key, value.to_owned())]))
        };
        let one = |key, value| annotations(key, value).unwrap().pop().unwrap();
        assert_eq!(one("TimeoutStopUSec", "uint64 5"), number("TimeoutStopUSec", 5));
        assert_eq!(one("TimeoutStopSec", "5"), number("TimeoutStopUSec", 5_000_000));
        assert_eq!(one("TimeoutStopSec", "1.5"), number("TimeoutStopUSec", 1_500_000));
        assert_eq!(one("CollectMode", "'inactive'"), text("CollectMode", "inactive"));
        assert_eq!(one("SendSIGHUP", "true"), flag("SendSIGHUP", true));
        let list = Variant::from(vec!["a.service".to_owned(), "b'c".to_owned()]);
        assert_eq!(one("Before", r"['a.service', 'b\'c']"), ("Before".to_owned(), list));
        for (key, value) in [
            ("X-Y", "1"),
            ("PIDs", "1"),
            ("Abc", ""),
            ("Abc", "'x"),
            ("Abc", "'x' y"),
            ("Abc", "junk 1"),
            ("Abc", "['a' 'b']"),
            ("Abc", "[1]"),
            ("Abc", "byte 256"),
            ("TimeoutStopSec", "'x'"),
            ("TimeoutStopSec", "-1"),
            ("é", "1"),
            ("Abc", "'\\"),
            ("Abc", "string string 'x'"),
            // Deep enough for the end of any stack, were it nested.
            ("Abc", &"string ".repeat(1 << 14)),
        ] {
            let error = annotations(key, value).unwrap_err().to_string();
            assert!(error.starts_with("annotations["), "{key}={value}: {error}");
        }
        let others = BTreeMap::from([("org.example".to_owned(), "x".to_owned())]);
        assert!(of_annotations(&others).unwrap().is_empty());
    }
}
