//! `linux.intelRdt`: the container's groups in the resctrl filesystem, which share out caches and
//! memory bandwidth (Documentation/filesystems/resctrl.rst of the kernel).
//!
//! The control group is that of `closID`, which others may use too and which is never removed, or
//! one of the container's own. The monitoring group in it is always its own.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::procfs::Proc;
use crate::spec::IntelRdt;

/// Where a container's groups are; kept on record for `exec` and `delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Where resctrl is mounted.
    root: PathBuf,
    /// The control group.
    control: PathBuf,
    /// Whether the control group ends with the container.
    own: bool,
    /// The monitoring group.
    monitoring: Option<PathBuf>,
}

impl Groups {
    /// Finds out where the groups of the container `id` are to be; makes nothing.
    ///
    /// # Errors
    /// When resctrl is not mounted, or a group is there that must not, or the other way round.
    pub fn locate(rdt: &IntelRdt, id: &str, proc: &Proc) -> Result<Self> {
        let mounts = proc.read("self/mountinfo").context("read /proc/self/mountinfo")?;
        let root = mount_point(&mounts).context(
            "linux.intelRdt: resctrl is not mounted; with a processor and a kernel that have it: \
             mount -t resctrl resctrl /sys/fs/resctrl",
        )?;
        Self::below(&root, rdt, id)
    }

    fn below(root: &Path, rdt: &IntelRdt, id: &str) -> Result<Self> {
        let control = match rdt.clos_id.as_deref() {
            Some("/") => root.to_owned(),
            Some(name) => root.join(name),
            None => root.join(id),
        };
        let exists = control.exists();
        match &rdt.clos_id {
            Some(name) => ensure!(
                exists || !rdt.lines().is_empty(),
                "linux.intelRdt.closID: there is no group {}; make it, or give schemata for a new \
                 one ({name})",
                control.display()
            ),
            None => ensure!(
                !exists,
                "linux.intelRdt: the group {} is there already; remove it, or use it by closID",
                control.display()
            ),
        }
        let monitoring = rdt.monitoring.then(|| control.join("mon_groups").join(id));
        if let Some(path) = monitoring.as_ref().filter(|path| path.exists()) {
            bail!("linux.intelRdt.enableMonitoring: {} is there already", path.display());
        }
        Ok(Self { root: root.to_owned(), control, own: rdt.clos_id.is_none(), monitoring })
    }

    /// Checks what a record says: whose groups are removed must be groups.
    ///
    /// # Errors
    /// When they are elsewhere.
    pub fn check(&self) -> Result<()> {
        for group in [&self.control].into_iter().chain(&self.monitoring) {
            let inside = group.starts_with(&self.root)
                && !group.components().any(|part| part == std::path::Component::ParentDir);
            ensure!(inside, "resctrl: {group:?} is not below {:?}", self.root);
        }
        Ok(())
    }

    /// Makes the groups that are not there and sets what they get.
    ///
    /// # Errors
    /// Names the property, with the kernel's own words where it has some.
    pub fn create(&self, rdt: &IntelRdt) -> Result<()> {
        let made = match std::fs::create_dir(&self.control) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !self.own => false,
            Err(error) => {
                return Err(error).with_context(|| {
                    self.explain("linux.intelRdt: make the group", &self.control)
                });
            }
        };
        let outcome = self.set(rdt, made);
        if outcome.is_err() && made && !self.own {
            // Nobody else uses it yet, and what it should have been it is not.
            let _ = std::fs::remove_dir(&self.control);
        }
        outcome
    }

    fn set(&self, rdt: &IntelRdt, made: bool) -> Result<()> {
        if !made {
            self.compare("l3CacheSchema", rdt.l3_cache_schema.as_deref())?;
            self.compare("memBwSchema", rdt.mem_bw_schema.as_deref())?;
        }
        self.set_schemata(rdt)?;
        if let Some(path) = &self.monitoring {
            std::fs::create_dir(path).with_context(|| {
                self.explain(
                    "linux.intelRdt.enableMonitoring: make the group (does this processor have \
                     monitoring, and is a monitoring id free?)",
                    path,
                )
            })?;
        }
        Ok(())
    }

    /// Changes the shares; returns what they were, for [`Groups::put_back`].
    ///
    /// # Errors
    /// With the kernel's own words; all is as it was then.
    pub fn update(&self, rdt: &IntelRdt) -> Result<String> {
        let path = self.control.join("schemata");
        let old = std::fs::read_to_string(&path)
            .with_context(|| format!("linux.intelRdt: read {}", path.display()))?;
        self.set_schemata(rdt)?;
        Ok(old)
    }

    /// Undoes [`Groups::update`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_back(&self, old: &str) -> Result<()> {
        let path = self.control.join("schemata");
        std::fs::write(&path, old).with_context(|| self.explain("put the shares back in", &path))
    }

    /// In one piece: the kernel takes all lines or none.
    fn set_schemata(&self, rdt: &IntelRdt) -> Result<()> {
        let lines: String = rdt.lines().iter().map(|line| format!("{line}\n")).collect();
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.control.join("schemata");
        std::fs::write(&path, &lines)
            .with_context(|| self.explain(&format!("linux.intelRdt: write {lines:?} to"), &path))
    }

    /// A group that was there must have what is asked for.
    fn compare(&self, property: &str, wanted: Option<&str>) -> Result<()> {
        let Some(wanted) = wanted else { return Ok(()) };
        let path = self.control.join("schemata");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("linux.intelRdt: read {}", path.display()))?;
        ensure!(
            has(&text, wanted),
            "linux.intelRdt.{property}: {wanted:?} is not what the group {} has: {:?}",
            self.control.display(),
            text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
        );
        Ok(())
    }

    /// Puts the process `pid` into the groups; its children will be in them too.
    ///
    /// # Errors
    /// When a group is gone.
    pub fn add(&self, pid: i32) -> Result<()> {
        // Only a member of the control group may enter a monitoring group of it.
        for group in [Some(&self.control), self.monitoring.as_ref()].into_iter().flatten() {
            let path = group.join("tasks");
            std::fs::write(&path, pid.to_string())
                .with_context(|| self.explain("linux.intelRdt: put the process into", &path))?;
        }
        Ok(())
    }

    /// Removes what belongs to the container alone.
    ///
    /// # Errors
    /// When the kernel refuses; what is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        let own = self.own.then_some(&self.control);
        for group in self.monitoring.as_ref().into_iter().chain(own) {
            match std::fs::remove_dir(group) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", group.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A step with its path and what the kernel says of its last failure.
    fn explain(&self, step: &str, path: &Path) -> String {
        let status = std::fs::read_to_string(self.root.join("info/last_cmd_status"));
        let status = status.unwrap_or_default();
        match status.trim() {
            "" | "ok" => format!("{step} {}", path.display()),
            words => format!("{step} {} (resctrl says: {words})", path.display()),
        }
    }
}

/// What `events` says of a container's groups; the JSON is runc's (types/events.go).
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<BTreeMap<&'static str, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<BTreeMap<&'static str, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schemata: Vec<String>,
    /// Bytes, of each cache in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    mbm_stats: Option<Vec<BTreeMap<&'static str, u64>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmt_stats: Option<Vec<BTreeMap<&'static str, u64>>>,
}

impl Groups {
    /// The shares and what is counted. What this processor or kernel doesn't have is left out.
    pub fn stats(&self) -> Stats {
        let lines = |group: &Path| -> Vec<String> {
            let text = std::fs::read_to_string(group.join("schemata")).unwrap_or_default();
            text.lines().map(|line| line.trim().to_owned()).collect()
        };
        let schema = |group: &Path, name: &str| {
            let found = lines(group).into_iter().find(|line| line.starts_with(name));
            found.filter(|_| self.root.join("info").join(name).exists())
        };
        Stats {
            l3_cache_info: self.info("L3", &["cbm_mask", "min_cbm_bits", "num_closids"]),
            l3_cache_schema_root: schema(&self.root, "L3"),
            l3_cache_schema: schema(&self.control, "L3"),
            mem_bw_info: self
                .info("MB", &["bandwidth_gran", "delay_linear", "min_bandwidth", "num_closids"]),
            mem_bw_schema_root: schema(&self.root, "MB"),
            mem_bw_schema: schema(&self.control, "MB"),
            schemata: lines(&self.control),
            mbm_stats: self.counters(&["mbm_total_bytes", "mbm_local_bytes"]),
            cmt_stats: self.counters(&["llc_occupancy"]),
        }
    }

    /// Properties of a resource; the mask is text, the others are numbers.
    fn info(&self, name: &str, files: &[&'static str]) -> Option<BTreeMap<&'static str, Value>> {
        let folder = self.root.join("info").join(name);
        let value = |file: &&'static str| {
            let text = std::fs::read_to_string(folder.join(file)).ok()?.trim().to_owned();
            let number = text.parse::<u64>().ok().filter(|_| *file != "cbm_mask");
            Some((*file, number.map_or(Value::from(text), Value::from)))
        };
        folder.exists().then(|| files.iter().filter_map(value).collect())
    }

    /// Counters of each cache, if the processor has any of them.
    fn counters(&self, files: &[&'static str]) -> Option<Vec<BTreeMap<&'static str, u64>>> {
        let known = std::fs::read_to_string(self.root.join("info/L3_MON/mon_features")).ok()?;
        let files: Vec<_> = files.iter().filter(|f| known.lines().any(|k| k == **f)).collect();
        if files.is_empty() {
            return None;
        }
        let group = self.monitoring.as_ref().unwrap_or(&self.control);
        let entries = std::fs::read_dir(group.join("mon_data")).ok()?.flatten();
        let mut caches: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        caches.sort();
        let count = |path: PathBuf| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let of_cache =
            |cache: &PathBuf| files.iter().map(|f| (**f, count(cache.join(f)))).collect();
        Some(caches.iter().map(of_cache).collect())
    }
}

/// The mount point of a whole resctrl (proc_pid_mountinfo(5)).
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let of_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let whole = right.starts_with("resctrl ") && fields.next()? == "/";
        whole.then(|| fields.next().map(|path| path.replace("\\040", " ").into())).flatten()
    };
    mounts.lines().find_map(of_line)
}

/// Name of the resource, and value of each of its domains. The kernel pads names with spaces and
/// values with spaces or zeros.
fn parse(line: &str) -> Option<(&str, BTreeMap<&str, String>)> {
    let (name, domains) = line.split_once(':')?;
    let parse = |domain: &'_ str| {
        let value = domain.split_once('=')?.1.trim().trim_start_matches('0').to_lowercase();
        Some(value)
    };
    let mut values = BTreeMap::new();
    for domain in domains.trim().split(';') {
        values.insert(domain.split('=').next()?.trim(), parse(domain)?);
    }
    Some((name.trim(), values))
}

/// Whether the text of a `schemata` file gives to each domain of `wanted` what that says.
fn has(text: &str, wanted: &str) -> bool {
    let Some((name, wanted)) = parse(wanted) else { return false };
    let lines = text.lines().filter_map(parse);
    let Some((_, present)) = lines.into_iter().find(|(other, _)| *other == name) else {
        return false;
    };
    wanted.iter().all(|(domain, value)| present.get(domain) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that stands in for resctrl: without its rules, but with its names.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ultari-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn group(&self, name: &str, schemata: &str) {
            std::fs::create_dir_all(self.0.join(name).join("mon_groups")).unwrap();
            self.write(&format!("{name}/schemata"), schemata);
        }

        fn write(&self, path: &str, text: &str) {
            std::fs::write(self.0.join(path), text).unwrap();
        }

        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.0.join(path)).unwrap()
        }

        fn has(&self, path: &str) -> bool {
            self.0.join(path).exists()
        }

        fn make(&self, rdt: &IntelRdt) -> Result<Groups> {
            let groups = Groups::below(&self.0, rdt, "box")?;
            groups.create(rdt).map(|()| groups)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn rdt(clos_id: &str, schemata: &[&str]) -> IntelRdt {
        IntelRdt {
            clos_id: (!clos_id.is_empty()).then(|| clos_id.to_owned()),
            schemata: schemata.iter().map(|line| line.to_string()).collect(),
            ..IntelRdt::default()
        }
    }

    #[test]
    fn without_a_name_the_group_is_the_containers_own() {
        let fake = Fake::new("rdt-own");
        let groups = fake.make(&rdt("", &["L3:0=f", "MB:0=50"])).unwrap();
        assert_eq!(fake.read("box/schemata"), "L3:0=f\nMB:0=50\n");
        groups.add(77).unwrap();
        assert_eq!(fake.read("box/tasks"), "77");
        let error = fake.make(&rdt("", &[])).unwrap_err();
        assert!(format!("{error:#}").contains("there already"), "{error:#}");
        // A real group's files go with it.
        std::fs::remove_file(fake.0.join("box/schemata")).unwrap();
        std::fs::remove_file(fake.0.join("box/tasks")).unwrap();
        let json = serde_json::to_string(&groups).unwrap();
        let groups: Groups = serde_json::from_str(&json).unwrap();
        groups.remove().unwrap();
        assert!(!fake.has("box"));
        groups.remove().unwrap();
    }

    #[test]
    fn shares_can_be_changed_and_put_back() {
        let fake = Fake::new("rdt-update");
        let groups = fake.make(&rdt("gold", &["L3:0=f"])).unwrap();
        let old = groups.update(&rdt("", &["L3:0=3"])).unwrap();
        assert_eq!(fake.read("gold/schemata"), "L3:0=3\n");
        groups.put_back(&old).unwrap();
        assert_eq!(fake.read("gold/schemata"), "L3:0=f\n");
        std::fs::remove_dir_all(fake.0.join("gold")).unwrap();
        let error = groups.update(&rdt("", &["L3:0=3"])).unwrap_err().to_string();
        assert!(error.starts_with("linux.intelRdt: read "), "{error}");
    }

    #[test]
    fn figures_are_those_that_the_processor_has() {
        let fake = Fake::new("rdt-stats");
        let groups = fake.make(&rdt("gold", &["L3:0=f", "MB:0=50"])).unwrap();
        let json = |groups: &Groups| serde_json::to_string(&groups.stats()).unwrap();
        assert_eq!(json(&groups), r#"{"schemata":["L3:0=f","MB:0=50"]}"#);
        for (path, text) in [
            ("info/L3/cbm_mask", "fff\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\n"),
            ("gold/mon_data/mon_L3_01/llc_occupancy", "Unavailable\n"),
            ("gold/mon_data/mon_L3_00/llc_occupancy", "4096\n"),
            ("gold/mon_data/mon_L3_00/mbm_total_bytes", "77\n"),
            ("schemata", "    L3:0=fff\n"),
        ] {
            let path = fake.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert_eq!(
            json(&groups),
            "{\"l3_cache_info\":{\"cbm_mask\":\"fff\",\"num_closids\":16},\
             \"l3_cache_schema_root\":\"L3:0=fff\",\"l3_cache_schema\":\"L3:0=f\",\
             \"schemata\":[\"L3:0=f\",\"MB:0=50\"],\
             \"mbm_stats\":[{\"mbm_total_bytes\":77},{\"mbm_total_bytes\":0}],\
             \"cmt_stats\":[{\"llc_occupancy\":4096},{\"llc_occupancy\":0}]}"
        );
    }

    #[test]
    fn without_schemata_none_are_written() {
        let fake = Fake::new("rdt-none");
        fake.make(&rdt("", &[])).unwrap();
        assert!(fake.has("box") && !fake.has("box/schemata"));
    }

    #[test]
    fn a_named_group_without_schemata_must_be_there() {
        let fake = Fake::new("rdt-named");
        let error = fake.make(&rdt("gold", &[])).unwrap_err().to_string();
        assert!(error.starts_with("linux.intelRdt.closID: there is no group"), "{error}");
        fake.group("gold", "L3:0=ff\n");
        let groups = fake.make(&rdt("gold", &[])).unwrap();
        groups.add(5).unwrap();
        groups.remove().unwrap();
        assert_eq!(fake.read("gold/schemata"), "L3:0=ff\n");
        assert_eq!(fake.read("gold/tasks"), "5");
    }

    #[test]
    fn a_named_group_with_schemata_is_made_and_stays() {
        let fake = Fake::new("rdt-new");
        let groups = fake.make(&rdt("gold", &["L3:0=f"])).unwrap();
        groups.remove().unwrap();
        assert_eq!(fake.read("gold/schemata"), "L3:0=f\n");
    }

    #[test]
    fn a_group_that_is_there_must_have_what_is_asked_for() {
        let fake = Fake::new("rdt-compare");
        fake.group("gold", "    L3:0=00ff;1=0F\n    MB:0= 50;1=100\n");
        for (l3, mb, fine) in [
            ("L3:0=ff;1=f", "MB:1=100;0=50", true),
            ("L3:1=00f", "MB:0=50", true),
            ("L3:0=f", "MB:0=50", false),
            ("L3:0=ff", "MB:0=5", false),
            ("L3:2=ff", "MB:0=50", false),
            ("L2:0=ff", "MB:0=50", false),
            ("L3:", "MB:0=50", false),
        ] {
            let wanted = IntelRdt {
                l3_cache_schema: Some(l3.into()),
                mem_bw_schema: Some(mb.into()),
                ..rdt("gold", &[])
            };
            match fake.make(&wanted) {
                Ok(_) => assert!(fine, "{l3} {mb}"),
                Err(error) => {
                    assert!(!fine && error.to_string().contains("is not what"), "{error:#}");
                }
            }
            fake.group("gold", "    L3:0=00ff;1=0F\n    MB:0= 50;1=100\n");
        }
    }

    #[test]
    fn the_default_group_is_the_root() {
        let fake = Fake::new("rdt-root");
        let groups = fake.make(&rdt("/", &[])).unwrap();
        groups.add(3).unwrap();
        groups.remove().unwrap();
        assert_eq!(fake.read("tasks"), "3");
    }

    #[test]
    fn a_monitoring_group_is_always_the_containers_own() {
        let fake = Fake::new("rdt-mon");
        fake.group("gold", "");
        let wanted = IntelRdt { monitoring: true, ..rdt("gold", &[]) };
        let groups = fake.make(&wanted).unwrap();
        groups.add(9).unwrap();
        assert_eq!(fake.read("gold/tasks"), "9");
        assert_eq!(fake.read("gold/mon_groups/box/tasks"), "9");
        let error = fake.make(&wanted).unwrap_err().to_string();
        assert!(error.starts_with("linux.intelRdt.enableMonitoring: "), "{error}");
        std::fs::remove_file(fake.0.join("gold/mon_groups/box/tasks")).unwrap();
        groups.remove().unwrap();
        assert!(fake.has("gold") && !fake.has("gold/mon_groups/box"));
    }

    #[test]
    fn failures_have_the_kernels_words_and_leave_no_new_named_group() {
        let fake = Fake::new("rdt-fail");
        std::fs::create_dir(fake.0.join("info")).unwrap();
        fake.write("info/last_cmd_status", "out of monitoring ids\n");
        // As on a processor without monitoring: there is no mon_groups to make one in.
        let wanted = IntelRdt { monitoring: true, ..rdt("", &[]) };
        let error = format!("{:#}", fake.make(&wanted).unwrap_err());
        assert!(error.starts_with("linux.intelRdt.enableMonitoring: "), "{error}");
        assert!(error.contains("resctrl says: out of monitoring ids"), "{error}");
        let groups = Groups::below(&fake.0, &rdt("gold", &["L3:0=f"]), "box").unwrap();
        let wanted = IntelRdt { monitoring: true, ..rdt("gold", &[]) };
        let groups = Groups { monitoring: Some(fake.0.join("gold/mon_groups/box")), ..groups };
        groups.create(&wanted).unwrap_err();
        assert!(!fake.has("gold"));
    }

    #[test]
    fn the_mount_is_found_by_its_type() {
        let mounts = "1 2 0:5 / /proc rw - proc proc rw\n\
                      2 2 0:6 /x /mnt rw - resctrl resctrl rw\n\
                      3 2 0:6 / /sys/fs/a\\040b rw,nosuid shared:4 - resctrl resctrl rw,cdp\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/a b".into()));
        assert_eq!(mount_point("1 2 0:5 / /proc rw - proc resctrl rw\n"), None);
    }
}
