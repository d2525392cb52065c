//! `linux.namespaces` with what belongs to them: id maps and clock offsets.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use nix::sched::CloneFlags;
use oci_spec::runtime as oci;
use oci_spec::runtime::LinuxNamespaceType as Ns;

/// The namespaces of a container.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    entries: Vec<Namespace>,
    /// User ids, for a new user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids, for a new user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// Clocks, for a new time namespace.
    pub time_offsets: Vec<TimeOffset>,
}

/// One namespace: new, or that of `path`.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Which one.
    pub kind: Ns,
    /// A namespace file (`/proc/PID/ns/…` or a bind mount of one) to join.
    pub path: Option<PathBuf>,
}

/// One line of `uid_map` or `gid_map` (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// First id in the container.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// One line of `timens_offsets` (time_namespaces(7)).
#[derive(Clone, Debug)]
pub struct TimeOffset {
    /// `monotonic` or `boottime`.
    pub clock: String,
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below 10⁹.
    pub nanoseconds: u32,
}

/// The `CLONE_NEW…` flag of a kind.
pub fn flag(kind: Ns) -> CloneFlags {
    CloneFlags::from_bits_retain(kind as i32)
}

/// The word of config.json for a kind, also the kernel's file name but for two of them.
pub fn word(kind: Ns) -> &'static str {
    match kind {
        Ns::Mount => "mount",
        Ns::Cgroup => "cgroup",
        Ns::Uts => "uts",
        Ns::Ipc => "ipc",
        Ns::User => "user",
        Ns::Pid => "pid",
        Ns::Network => "network",
        Ns::Time => "time",
    }
}

impl Namespaces {
    /// The entry for `kind`; none means that the container stays in the caller's.
    pub fn get(&self, kind: Ns) -> Option<&Namespace> {
        self.entries.iter().find(|entry| entry.kind == kind)
    }

    /// Whether `kind` is made anew.
    pub fn is_new(&self, kind: Ns) -> bool {
        self.get(kind).is_some_and(|entry| entry.path.is_none())
    }

    /// Those to be joined, in config.json's order.
    pub fn joined(&self) -> impl Iterator<Item = (Ns, &PathBuf)> {
        self.entries.iter().filter_map(|entry| Some((entry.kind, entry.path.as_ref()?)))
    }

    /// `CLONE_NEW…` flags of those to be made anew.
    pub fn new_flags(&self) -> CloneFlags {
        let new = self.entries.iter().filter(|entry| entry.path.is_none());
        new.fold(CloneFlags::empty(), |flags, entry| flags | flag(entry.kind))
    }

    /// `CLONE_NEW…` flags of all that are listed, new and joined.
    pub fn all_flags(&self) -> CloneFlags {
        self.entries.iter().fold(CloneFlags::empty(), |flags, entry| flags | flag(entry.kind))
    }

    /// The host's id of the container's user `uid`; none when it is not mapped.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        map_id(&self.uid_mappings, uid)
    }

    /// The host's id of the container's group `gid`; none when it is not mapped.
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        map_id(&self.gid_mappings, gid)
    }
}

fn map_id(mappings: &[IdMapping], id: u32) -> Option<u32> {
    if mappings.is_empty() {
        return Some(id);
    }
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container)?;
        (offset < mapping.size).then(|| mapping.host.checked_add(offset)).flatten()
    })
}

/// Checks and converts the namespaces of `linux`.
///
/// # Errors
/// For duplicates, relative paths, and maps or offsets without their namespace.
pub fn convert(linux: Option<&oci::Linux>) -> Result<Namespaces> {
    let Some(linux) = linux else { return Ok(Namespaces::default()) };
    let mut namespaces = Namespaces {
        uid_mappings: mappings("linux.uidMappings", linux.uid_mappings())?,
        gid_mappings: mappings("linux.gidMappings", linux.gid_mappings())?,
        time_offsets: time_offsets(linux)?,
        ..Namespaces::default()
    };
    for entry in linux.namespaces().iter().flatten() {
        let (kind, path) = (entry.typ(), entry.path().clone());
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let name = word(kind);
        ensure!(namespaces.get(kind).is_none(), "linux.namespaces: {name} stands there twice");
        if let Some(path) = &path {
            ensure!(
                path.is_absolute(),
                "linux.namespaces ({name}).path: {path:?} must be an absolute path"
            );
        }
        namespaces.entries.push(Namespace { kind, path });
    }
    let mapped = !namespaces.uid_mappings.is_empty() || !namespaces.gid_mappings.is_empty();
    if namespaces.is_new(Ns::User) {
        ensure!(
            !namespaces.uid_mappings.is_empty() && !namespaces.gid_mappings.is_empty(),
            "linux.uidMappings and linux.gidMappings: a new user namespace needs both"
        );
        for (property, mappings) in
            [("uidMappings", &namespaces.uid_mappings), ("gidMappings", &namespaces.gid_mappings)]
        {
            ensure!(
                map_id(mappings, 0).is_some(),
                "linux.{property}: containerID 0 must be mapped: as it the container is set up"
            );
        }
    } else if mapped && namespaces.get(Ns::User).is_none() {
        bail!("linux.uidMappings: mean nothing without {{\"type\": \"user\"}} in linux.namespaces");
    }
    if !namespaces.time_offsets.is_empty() && !namespaces.is_new(Ns::Time) {
        bail!("linux.timeOffsets: need a new time namespace in linux.namespaces");
    }
    Ok(namespaces)
}

/// Checks and converts the id mappings that `property` has.
///
/// # Errors
/// When a mapping is empty.
pub fn mappings(property: &str, list: &Option<Vec<oci::LinuxIdMapping>>) -> Result<Vec<IdMapping>> {
    let convert = |mapping: &oci::LinuxIdMapping| {
        ensure!(mapping.size() > 0, "{property}: a mapping has size 0");
        Ok(IdMapping {
            container: mapping.container_id(),
            host: mapping.host_id(),
            size: mapping.size(),
        })
    };
    list.iter().flatten().map(convert).collect()
}

fn time_offsets(linux: &oci::Linux) -> Result<Vec<TimeOffset>> {
    let convert = |(clock, offset): (&String, &oci::LinuxTimeOffset)| {
        ensure!(
            matches!(clock.as_str(), "monotonic" | "boottime"),
            "linux.timeOffsets: {clock:?} is neither monotonic nor boottime"
        );
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        ensure!(
            nanoseconds < 1_000_000_000,
            "linux.timeOffsets.{clock}.nanosecs: {nanoseconds} is a second or more"
        );
        Ok(TimeOffset { clock: clock.clone(), seconds: offset.secs().unwrap_or(0), nanoseconds })
    };
    linux.time_offsets().iter().flatten().map(convert).collect()
}
