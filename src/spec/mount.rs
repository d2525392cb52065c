//! Mounts of config.json: the option words become typed, already checked values
//! (runtime-spec config.md, "Mounts"; mount(8) for the words).

use std::ffi::CString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime as oci;

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
    /// A change of attributes of what is mounted there already.
    Remount,
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
fn superblock_flag(word: &str) -> Option<Option<&'static str>> {
    Some(match word {
        "sync" => Some("sync"),
        "dirsync" => Some("dirsync"),
        "lazytime" => Some("lazytime"),
        "mand" => Some("mand"),
        "iversion" => Some("iversion"),
        // Defaults of a new superblock, and switches for kernel messages.
        "async" | "nolazytime" | "nomand" | "noiversion" | "loud" | "silent" | "defaults" => None,
        _ => return None,
    })
}

#[derive(Default)]
struct Words {
    attr: MountAttr,
    recursive_attr: MountAttr,
    propagation: Option<Propagation>,
    bind: bool,
    recursive: bool,
    remount: bool,
    copy_up: bool,
    superblock: Vec<&'static str>,
    data: Vec<String>,
}

fn parse_words(options: &[String]) -> Result<Words> {
    let mut words = Words::default();
    for word in options {
        if let Some(change) = attribute(word) {
            apply(&mut words.attr, change);
        } else if let Some(change) = word.strip_prefix('r').and_then(attribute) {
            apply(&mut words.recursive_attr, change);
        } else if let Some(propagation) = Propagation::parse(word) {
            words.propagation = Some(propagation);
        } else if let Some(flag) = superblock_flag(word) {
            words.superblock.extend(flag);
        } else {
            match word.as_str() {
                "bind" => words.bind = true,
                "rbind" => (words.bind, words.recursive) = (true, true),
                "remount" => words.remount = true,
                "tmpcopyup" => words.copy_up = true,
                "idmap" | "ridmap" => {
                    bail!("idmapped mounts (option {word:?}) are not supported yet")
                }
                // An engine's way of saying nothing.
                "" => {}
                _ => words.data.push(word.clone()),
            }
        }
    }
    Ok(words)
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
const OTHERS: [&str; 23] = [
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

/// Checks and converts entry `index` of `mounts`; `bundle` is what relative sources start from.
///
/// # Errors
/// When the entry contradicts itself or asks for what is not supported.
pub fn convert(index: usize, mount: &oci::Mount, bundle: &std::path::Path) -> Result<Mount> {
    let destination = mount.destination();
    let property = format!("mounts[{index}] ({})", destination.display());
    convert_named(property.clone(), mount, bundle).context(property)
}

fn convert_named(property: String, mount: &oci::Mount, bundle: &std::path::Path) -> Result<Mount> {
    // The specification lets relative destinations mean "from the container's root".
    let destination = std::path::Path::new("/").join(mount.destination());
    let text = mount.destination().as_os_str().as_encoded_bytes();
    ensure!(!text.is_empty(), "destination is empty");
    ensure!(!text.contains(&0), "destination contains a NUL byte");
    ensure!(
        mount.uid_mappings().is_none() && mount.gid_mappings().is_none(),
        "uidMappings and gidMappings of a mount are not supported yet"
    );
    let words = parse_words(mount.options().as_deref().unwrap_or_default())?;
    let fstype = mount.typ().as_deref().unwrap_or_default();
    let kind = if words.remount {
        ensure!(
            words.data.is_empty() && words.superblock.is_empty(),
            "option remount takes only attributes of the mount, not {:?}",
            words.data
        );
        Kind::Remount
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
        let mut data = Vec::new();
        for flag in &words.superblock {
            data.push((c_string(flag)?, None));
        }
        // One word may hold several parameters, as in the data string of mount(2).
        for word in words.data.iter().flat_map(|word| word.split(',')).filter(|w| !w.is_empty()) {
            let pair = match word.split_once('=') {
                Some((key, value)) => (c_string(key)?, Some(c_string(value)?)),
                None => (c_string(word)?, None),
            };
            data.push(pair);
        }
        ensure!(
            !words.copy_up || fstype == "tmpfs",
            "option tmpcopyup works with type tmpfs only, not {fstype:?}"
        );
        Kind::Filesystem {
            fstype: c_string(fstype)?,
            source: c_string(source)?,
            data,
            copy_up: words.copy_up,
        }
    };
    Ok(Mount {
        property,
        destination,
        kind,
        attr: words.attr,
        recursive_attr: words.recursive_attr,
        propagation: words.propagation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(json: &str) -> Result<Mount> {
        convert(0, &serde_json::from_str(json).unwrap(), std::path::Path::new("/bundle"))
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
            matches!(mount.kind, Kind::Bind { source, .. } if source == std::path::Path::new("/bundle/data"))
        );
    }

    #[test]
    fn a_bind_without_a_source_is_refused() {
        let error = mount(r#"{"destination":"/b","options":["bind"]}"#).unwrap_err();
        assert!(format!("{error:#}").contains("needs a source"), "{error:#}");
    }
}
