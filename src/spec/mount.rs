//! Mounts of config.json: the option words become typed, already checked values
//! (runtime-spec config.md, "Mounts"; mount(8) for the words).

use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{self as oci, LinuxNamespaceType as Ns};

use super::namespace::{IdMapping, Namespaces, mappings};
use crate::security::lsm;
use crate::sys::mount::MountAttr;

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_RDONLY: u64 = 0x01;
/// `MOUNT_ATTR_NOSUID`.
pub const ATTR_NOSUID: u64 = 0x02;
/// `MOUNT_ATTR_NODEV`.
pub const ATTR_NODEV: u64 = 0x04;
/// `MOUNT_ATTR_NOEXEC`.
pub const ATTR_NOEXEC: u64 = 0x08;
const ATTR_ATIME_MASK: u64 = 0x70;
const ATTR_NOATIME: u64 = 0x10;
const ATTR_STRICTATIME: u64 = 0x20;
const ATTR_NODIRATIME: u64 = 0x80;
const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;
/// `MOUNT_ATTR_IDMAP`.
pub const ATTR_IDMAP: u64 = 0x10_0000;

/// One entry of `mounts`, ready to be made.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Its place in config.json, for messages: `mounts[3]`.
    pub property: String,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// What is mounted there.
    pub kind: Kind,
    /// Attributes of this mount alone.
    pub attr: MountAttr,
    /// Attributes of this mount and all below it (`rro` and the like).
    pub recursive_attr: MountAttr,
    /// How mount events spread: `MS_*` and whether recursively.
    pub propagation: Option<Propagation>,
    /// Whose ids the files of a bind mount show.
    pub idmap: Option<IdMap>,
}

/// An id-mapped mount: files show other owners than those they have on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// From which ids to which.
    pub maps: IdMaps,
    /// Also for everything mounted below.
    pub recursive: bool,
}

/// What an id-mapped mount maps: the `container` ids of a mapping are those on disk, the `host`
/// ids those that the mount shows to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdMaps {
    /// These.
    Listed {
        /// Users.
        uid_mappings: Vec<IdMapping>,
        /// Groups.
        gid_mappings: Vec<IdMapping>,
    },
    /// Those of the user namespace at this path, which the container joins.
    Namespace(PathBuf),
}

/// What an entry of `mounts` makes.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A file or folder of the host.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// With everything mounted below it.
        recursive: bool,
    },
    /// A new filesystem.
    Filesystem {
        /// The kernel's name of it.
        fstype: CString,
        /// The device, or any word for filesystems without one.
        source: CString,
        /// Parameters of the filesystem: key and value, or a flag.
        data: Vec<(CString, Option<CString>)>,
        /// Copy what the image has at the destination into the new tmpfs.
        copy_up: bool,
    },
    /// The container's view of its cgroups, v1 or v2 as the host has it.
    Cgroup,
    /// A change of what is mounted there already: of the mount's attributes, and of the
    /// filesystem itself when there are parameters of it.
    Remount {
        /// Parameters of the filesystem: key and value, or a flag.
        data: Vec<(CString, Option<CString>)>,
        /// The mount alone is meant (`bind`), not the filesystem, which others may see as well.
        mount_only: bool,
    },
}

/// A propagation type and its reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`.
    pub flag: u64,
    /// Also for all mounts below.
    pub recursive: bool,
}

impl Propagation {
    /// From the words of `mounts[].options` and `linux.rootfsPropagation`.
    pub fn parse(word: &str) -> Option<Self> {
        let (flag, recursive) = match word {
            "private" => (libc::MS_PRIVATE, false),
            "rprivate" => (libc::MS_PRIVATE, true),
            "shared" => (libc::MS_SHARED, false),
            "rshared" => (libc::MS_SHARED, true),
            "slave" => (libc::MS_SLAVE, false),
            "rslave" => (libc::MS_SLAVE, true),
            "unbindable" => (libc::MS_UNBINDABLE, false),
            "runbindable" => (libc::MS_UNBINDABLE, true),
            _ => return None,
        };
        Some(Self { flag, recursive })
    }
}

/// What a word does to the mount's attributes: bits to set, bits to clear.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (ATTR_RDONLY, 0),
        "rw" => (0, ATTR_RDONLY),
        "nosuid" => (ATTR_NOSUID, 0),
        "suid" => (0, ATTR_NOSUID),
        "nodev" => (ATTR_NODEV, 0),
        "dev" => (0, ATTR_NODEV),
        "noexec" => (ATTR_NOEXEC, 0),
        "exec" => (0, ATTR_NOEXEC),
        "noatime" => (ATTR_NOATIME, ATTR_ATIME_MASK),
        "strictatime" => (ATTR_STRICTATIME, ATTR_ATIME_MASK),
        // The kernel has three ways of keeping access times and relatime is the default, so the
        // negations of the two others lead back to it.
        "relatime" | "atime" | "nostrictatime" => (0, ATTR_ATIME_MASK),
        "norelatime" => (ATTR_STRICTATIME, ATTR_ATIME_MASK),
        "nodiratime" => (ATTR_NODIRATIME, 0),
        "diratime" => (0, ATTR_NODIRATIME),
        "nosymfollow" => (ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

fn apply(attr: &mut MountAttr, (set, clear): (u64, u64)) {
    // Later words win over earlier ones.
    attr.set = attr.set & !clear | set;
    attr.clear = attr.clear & !set | clear;
}

/// Words for the superblock that the generic layer of the kernel takes by `fsconfig`.
const SUPERBLOCK_FLAGS: [&str; 5] = ["sync", "dirsync", "lazytime", "mand", "iversion"];
/// Their opposites, which are the defaults of a new superblock.
const SUPERBLOCK_DEFAULTS: [&str; 3] = ["async", "nolazytime", "nomand"];
/// What changes nothing: version counters can't be switched off, kernel messages not by `fsconfig`.
const WITHOUT_EFFECT: [&str; 4] = ["noiversion", "loud", "silent", "defaults"];

#[derive(Default)]
struct Words {
    attr: MountAttr,
    recursive_attr: MountAttr,
    propagation: Option<Propagation>,
    bind: bool,
    recursive: bool,
    remount: bool,
    copy_up: bool,
    idmap: bool,
    recursive_idmap: bool,
    superblock: Vec<String>,
    cleared: Vec<String>,
    data: Vec<String>,
}

fn parse_words(options: &[String]) -> Words {
    let mut words = Words::default();
    for word in options {
        if let Some(change) = attribute(word) {
            apply(&mut words.attr, change);
        } else if let Some(change) = word.strip_prefix('r').and_then(attribute) {
            apply(&mut words.recursive_attr, change);
        } else if let Some(propagation) = Propagation::parse(word) {
            words.propagation = Some(propagation);
        } else if SUPERBLOCK_FLAGS.contains(&word.as_str()) {
            words.superblock.push(word.clone());
        } else if SUPERBLOCK_DEFAULTS.contains(&word.as_str()) {
            // Later words win here too.
            let flag = if word == "async" { "sync" } else { &word[2..] };
            words.superblock.retain(|earlier| earlier != flag);
            words.cleared.push(word.clone());
        } else if !WITHOUT_EFFECT.contains(&word.as_str()) {
            match word.as_str() {
                "bind" => words.bind = true,
                "rbind" => (words.bind, words.recursive) = (true, true),
                "remount" => words.remount = true,
                "tmpcopyup" => words.copy_up = true,
                "idmap" => words.idmap = true,
                "ridmap" => (words.idmap, words.recursive_idmap) = (true, true),
                // An engine's way of saying nothing.
                "" => {}
                _ => words.data.push(word.clone()),
            }
        }
    }
    words
}

const ATTRIBUTES: [&str; 19] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "strictatime",
    "relatime",
    "atime",
    "nostrictatime",
    "norelatime",
    "nodiratime",
    "diratime",
    "nosymfollow",
    "symfollow",
    "defaults",
];
const OTHERS: [&str; 25] = [
    "sync",
    "async",
    "dirsync",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "loud",
    "silent",
    "bind",
    "rbind",
    "remount",
    "tmpcopyup",
    "idmap",
    "ridmap",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// All words that mean something here, sorted, for `features`.
pub fn option_names() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().map(|word| word.to_string());
    let recursive = ATTRIBUTES.iter().filter(|w| **w != "defaults").map(|w| format!("r{w}"));
    let mut names: Vec<_> =
        attributes.chain(recursive).chain(OTHERS.iter().map(|word| word.to_string())).collect();
    names.sort();
    names
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("{text:?} contains a NUL byte"))
}

/// Checks and converts entry `index` of `mounts`; `bundle` is what relative sources start from,
/// `namespaces` may have the maps of an id-mapped mount.
///
/// # Errors
/// When the entry contradicts itself or asks for what is not supported.
pub fn convert(
    index: usize,
    mount: &oci::Mount,
    bundle: &Path,
    namespaces: &Namespaces,
) -> Result<Mount> {
    let destination = mount.destination();
    let property = format!("mounts[{index}] ({})", destination.display());
    convert_named(property.clone(), mount, bundle, namespaces).context(property)
}

/// `linux.mountLabel`, or nothing and a warning on a host without SELinux, where no file has a
/// label: nothing is less protected there than the host itself is. A label of a *process*, which
/// is what confines, is an error there.
///
/// # Errors
/// When it contains a NUL byte.
pub fn label(label: &str, warnings: &mut Vec<String>) -> Result<Option<CString>> {
    if label.is_empty() {
        return Ok(None);
    }
    if !lsm::has_selinux() {
        warnings.push(format!(
            "linux.mountLabel: SELinux is not enabled on this host, so that mounts do not get the \
             label {label:?}"
        ));
        return Ok(None);
    }
    c_string(label).context("linux.mountLabel").map(Some)
}

/// The parameters for `fsconfig` that the option words ask for.
fn parameters<'a>(
    flags: impl Iterator<Item = &'a String>,
    words: &[String],
) -> Result<Vec<(CString, Option<CString>)>> {
    let mut data = Vec::new();
    for flag in flags {
        data.push((c_string(flag)?, None));
    }
    // One word may hold several parameters, as in the data string of mount(2).
    for word in words.iter().flat_map(|word| word.split(',')).filter(|word| !word.is_empty()) {
        data.push(match word.split_once('=') {
            Some((key, value)) => (c_string(key)?, Some(c_string(value)?)),
            None => (c_string(word)?, None),
        });
    }
    Ok(data)
}

/// The maps of an id-mapped mount: its own, or those of the container's user namespace.
fn id_map(
    words: &Words,
    mount: &oci::Mount,
    kind: &Kind,
    namespaces: &Namespaces,
) -> Result<Option<IdMap>> {
    let uid_mappings = mappings("uidMappings", mount.uid_mappings())?;
    let gid_mappings = mappings("gidMappings", mount.gid_mappings())?;
    ensure!(
        uid_mappings.is_empty() == gid_mappings.is_empty(),
        "uidMappings and gidMappings: a mount needs both or none"
    );
    if !words.idmap && uid_mappings.is_empty() {
        return Ok(None);
    }
    ensure!(
        matches!(kind, Kind::Bind { .. }),
        "uidMappings, gidMappings and the options idmap and ridmap work with bind mounts only (add \
         the option bind or rbind)"
    );
    let maps = if !uid_mappings.is_empty() {
        IdMaps::Listed { uid_mappings, gid_mappings }
    } else {
        match namespaces.get(Ns::User).map(|namespace| &namespace.path) {
            Some(Some(path)) => IdMaps::Namespace(path.clone()),
            Some(None) => IdMaps::Listed {
                uid_mappings: namespaces.uid_mappings.clone(),
                gid_mappings: namespaces.gid_mappings.clone(),
            },
            None => bail!(
                "the options idmap and ridmap need uidMappings and gidMappings of the mount, or a \
                 user namespace in linux.namespaces whose maps they take"
            ),
        }
    };
    Ok(Some(IdMap { maps, recursive: words.recursive_idmap }))
}

fn convert_named(
    property: String,
    mount: &oci::Mount,
    bundle: &Path,
    namespaces: &Namespaces,
) -> Result<Mount> {
    // The specification lets relative destinations mean "from the container's root".
    let destination = Path::new("/").join(mount.destination());
    let text = mount.destination().as_os_str().as_encoded_bytes();
    ensure!(!text.is_empty(), "destination is empty");
    ensure!(!text.contains(&0), "destination contains a NUL byte");
    let words = parse_words(mount.options().as_deref().unwrap_or_default());
    let fstype = mount.typ().as_deref().unwrap_or_default();
    let kind = if words.remount {
        let flags = words.cleared.iter().chain(&words.superblock);
        let data = parameters(flags, &words.data)?;
        ensure!(
            !words.bind || data.is_empty(),
            "options remount and bind together change the mount alone, which does not have {:?}",
            data[0].0
        );
        Kind::Remount { data, mount_only: words.bind }
    } else if words.bind || fstype == "bind" {
        // Options of a filesystem mean nothing to a bind mount; the peers ignore them too.
        let source = mount.source().as_ref().context("a bind mount needs a source")?;
        Kind::Bind { source: bundle.join(source), recursive: words.recursive }
    } else if fstype == "cgroup" || fstype == "cgroup2" {
        Kind::Cgroup
    } else {
        ensure!(
            !fstype.is_empty(),
            "type is missing: name a filesystem, or add the option bind or rbind"
        );
        let source = mount.source().as_ref().and_then(|s| s.to_str()).unwrap_or(fstype);
        ensure!(
            !words.copy_up || fstype == "tmpfs",
            "option tmpcopyup works with type tmpfs only, not {fstype:?}"
        );
        Kind::Filesystem {
            fstype: c_string(fstype)?,
            source: c_string(source)?,
            data: parameters(words.superblock.iter(), &words.data)?,
            copy_up: words.copy_up,
        }
    };
    let idmap = id_map(&words, mount, &kind, namespaces)?;
    Ok(Mount {
        property,
        destination,
        kind,
        attr: words.attr,
        recursive_attr: words.recursive_attr,
        propagation: words.propagation,
        idmap,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(json: &str) -> Result<Mount> {
        convert_in(json, &Namespaces::default())
    }

    fn convert_in(json: &str, namespaces: &Namespaces) -> Result<Mount> {
        convert(0, &serde_json::from_str(json).unwrap(), Path::new("/bundle"), namespaces)
    }

    #[test]
    fn later_words_win() {
        let mount = mount(
            r#"{"destination":"/a","type":"tmpfs","options":["ro","noatime","rw","relatime"]}"#,
        )
        .unwrap();
        assert_eq!(mount.attr.set, 0);
        assert_eq!(mount.attr.clear, ATTR_RDONLY | ATTR_ATIME_MASK);
    }

    #[test]
    fn recursive_attributes_are_kept_apart() {
        let mount = mount(
            r#"{"destination":"/a","source":"/","options":["rbind","rro","nosuid","rslave"]}"#,
        )
        .unwrap();
        assert_eq!(mount.recursive_attr.set, ATTR_RDONLY);
        assert_eq!(mount.attr.set, ATTR_NOSUID);
        assert_eq!(mount.propagation, Some(Propagation { flag: libc::MS_SLAVE, recursive: true }));
        assert!(matches!(mount.kind, Kind::Bind { recursive: true, .. }));
    }

    #[test]
    fn unknown_words_are_parameters_of_the_filesystem() {
        let mount = mount(
            r#"{"destination":"/a","type":"tmpfs","source":"t","options":["size=1k,mode=755","x"]}"#,
        )
        .unwrap();
        let Kind::Filesystem { data, .. } = mount.kind else { panic!("no filesystem") };
        let keys: Vec<_> = data.iter().map(|(key, _)| key.to_str().unwrap()).collect();
        assert_eq!(keys, ["size", "mode", "x"]);
    }

    #[test]
    fn relative_sources_start_from_the_bundle() {
        let mount = mount(r#"{"destination":"b","source":"data","options":["bind"]}"#).unwrap();
        assert_eq!(mount.destination, PathBuf::from("/b"));
        assert!(
            matches!(mount.kind, Kind::Bind { source, .. } if source == Path::new("/bundle/data"))
        );
    }

    #[test]
    fn a_bind_without_a_source_is_refused() {
        let error = mount(r#"{"destination":"/b","options":["bind"]}"#).unwrap_err();
        assert!(format!("{error:#}").contains("needs a source"), "{error:#}");
    }
    #[test]
    fn own_maps_of_a_mount_come_before_those_of_the_container() {
        let own = r#"{"destination":"/b","source":"/","options":["rbind","ridmap"],
            "uidMappings":[{"containerID":1,"hostID":2,"size":3}],
            "gidMappings":[{"containerID":4,"hostID":5,"size":6}]}"#;
        let map = |container, host, size| vec![IdMapping { container, host, size }];
        let maps = IdMaps::Listed { uid_mappings: map(1, 2, 3), gid_mappings: map(4, 5, 6) };
        assert_eq!(mount(own).unwrap().idmap, Some(IdMap { maps, recursive: true }));
    }

    #[test]
    fn maps_that_are_missing_are_an_error() {
        let without = r#"{"destination":"/b","source":"/","options":["bind","idmap"]}"#;
        let error = format!("{:#}", mount(without).unwrap_err());
        assert!(error.contains("user namespace"), "{error}");
        let half = r#"{"destination":"/b","source":"/","options":["bind"],
            "uidMappings":[{"containerID":1,"hostID":2,"size":3}]}"#;
        let error = format!("{:#}", mount(half).unwrap_err());
        assert!(error.contains("needs both"), "{error}");
        let tmpfs = r#"{"destination":"/b","type":"tmpfs","options":["idmap"]}"#;
        let error = format!("{:#}", mount(tmpfs).unwrap_err());
        assert!(error.contains("bind mounts only"), "{error}");
    }

    #[test]
    fn a_remount_can_change_the_filesystem_too() {
        let kind = |json| mount(json).unwrap().kind;
        let Kind::Remount { data, mount_only: false } =
            kind(r#"{"destination":"/b","options":["remount","sync","async","size=1m"]}"#)
        else {
            panic!("no remount of the filesystem")
        };
        let keys: Vec<_> = data.iter().map(|(key, _)| key.to_str().unwrap()).collect();
        assert_eq!(keys, ["async", "size"]);
        let both = r#"{"destination":"/b","options":["remount","bind","size=1m"]}"#;
        assert!(format!("{:#}", mount(both).unwrap_err()).contains("size"));
    }
}
