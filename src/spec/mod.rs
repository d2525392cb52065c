//! config.json: loading, checking, and the typed values that every later step works with.
//!
//! Nothing past this module sees a string of config.json that still needs interpretation, and no
//! property is dropped silently: what cannot be served is refused here, by name.

pub mod default;
mod document;
pub mod intel_rdt;
pub mod json;
pub mod list;
pub mod memory_policy;
pub mod mount;
pub mod namespace;
pub mod net_device;
pub mod process;
pub mod seccomp;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime as oci;
use serde_json::Value;

use crate::sys::descriptor::Fd;
use document::Document;
pub use intel_rdt::IntelRdt;
pub use json::{property_paths, unknown_properties};
pub use memory_policy::MemoryPolicy;
pub use mount::{Mount, Propagation};
pub use namespace::{IdMapping, Namespaces, TimeOffset};
pub use net_device::NetDevice;
pub use process::Process;
pub use seccomp::Seccomp;

/// The version of the specification that is implemented.
pub const SPEC_VERSION: &str = "1.3.0";

/// A checked config.json.
#[derive(Debug)]
pub struct Config {
    /// `ociVersion` as written.
    pub oci_version: String,
    /// Absolute path of the root filesystem on the host.
    pub rootfs: PathBuf,
    /// `root.readonly`.
    pub rootfs_readonly: bool,
    /// How mount events cross the border of the container.
    pub rootfs_propagation: Option<Propagation>,
    /// The program; a container without one can be created but not started.
    pub process: Option<Process>,
    /// Host name in a new UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in a new UTS namespace.
    pub domainname: Option<String>,
    /// What to mount, in order.
    pub mounts: Vec<Mount>,
    /// SELinux context of new filesystems; none when SELinux is not enabled.
    pub mount_label: Option<CString>,
    /// Programs to run at points of the life cycle.
    pub hooks: Hooks,
    /// Free-form labels.
    pub annotations: BTreeMap<String, String>,
    /// New and joined namespaces, id maps, clock offsets.
    pub namespaces: Namespaces,
    /// Device nodes beside the default ones.
    pub devices: Vec<Device>,
    /// Kernel parameters: path below /proc/sys, value.
    pub sysctl: Vec<(String, String)>,
    /// Where the cgroup is to be.
    pub cgroups_path: Option<PathBuf>,
    /// The limits of it.
    pub resources: Option<oci::LinuxResources>,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Paths made unreadable.
    pub masked_paths: Vec<PathBuf>,
    /// Paths made read-only.
    pub readonly_paths: Vec<PathBuf>,
    /// `personality(2)` domain.
    pub personality: Option<u64>,
    /// Where memory comes from.
    pub memory_policy: Option<MemoryPolicy>,
    /// Shares of caches and memory bandwidth.
    pub intel_rdt: Option<IntelRdt>,
    /// Network devices of the host to take.
    pub net_devices: Vec<NetDevice>,
    /// What is odd but no error.
    pub warnings: Vec<String>,
}

/// The hooks of each kind, in order.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Deprecated: in the runtime's namespaces, after the container's are made.
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, before `pivot_root`.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before `pivot_root`.
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, after the program was executed.
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, after the container is gone.
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Whether any of them run while the host's mounts are still in the container's namespace.
    pub fn any_before_pivot(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container]
            .into_iter()
            .any(|hooks| !hooks.is_empty())
    }
}

/// A program to run at a point of the life cycle.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, the first being the name.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<String>,
    /// Seconds after which it is killed and has failed.
    pub timeout: Option<u64>,
}

/// A device node to make.
#[derive(Clone, Debug)]
pub struct Device {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`.
    pub kind: u32,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Permissions.
    pub mode: u32,
    /// Owner in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
}

/// Reads and checks `config.json` in the folder `bundle`; also returns the text itself.
///
/// # Errors
/// Names the file, the property and what is wrong with it.
pub fn load(bundle: &Path) -> Result<(Config, Vec<u8>)> {
    let path = bundle.join("config.json");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(AT_FDCWD, &path, flags, Mode::empty()).map(Fd::from);
    let text = file.and_then(|file| file.read_to_end(usize::MAX)).with_context(|| {
        format!(
            "read {}: is {} a bundle? (`ultari spec` writes a config.json to start from)",
            path.display(),
            bundle.display()
        )
    })?;
    let config = parse(&text, bundle).with_context(|| path.display().to_string())?;
    Ok((config, text))
}

/// Checks the text of a config.json whose bundle is the absolute path `bundle`.
///
/// # Errors
/// Names the property and what is wrong with it.
pub fn parse(text: &[u8], bundle: &Path) -> Result<Config> {
    let completed = || -> Result<_> {
        let mut warnings = Vec::new();
        let (mut value, seccomp) = seccomp::split(text).context("not valid JSON")?;
        let mut affinity = None;
        if let Some(process) = value.get_mut("process") {
            affinity = process::take_affinity(process)?;
            json::complete_process(process, &mut warnings);
        }
        if let Some(linux) = value.get("linux") {
            intel_rdt::warn_of_old(linux, &mut warnings);
        }
        if let Some(resources) = value.pointer_mut("/linux/resources") {
            json::complete_resources(resources);
        }
        Ok((value, seccomp, affinity, warnings))
    };
    let (value, seccomp, affinity, warnings) = completed()?;
    let spec: Document = json::deserialize_moved(value, || Ok(completed()?.0))?;
    let mut config = Config { seccomp, ..convert(spec, bundle, warnings)? };
    if let Some(process) = &mut config.process {
        process.exec_affinity = affinity;
    }
    Ok(config)
}

/// Checks the text of a process.json as `exec --process` takes it.
///
/// # Errors
/// Names the property and what is wrong with it.
pub fn parse_process(text: &[u8], warnings: &mut Vec<String>) -> Result<Process> {
    let mut value: Value = serde_json::from_slice(text).context("not valid JSON")?;
    let exec_affinity = process::take_affinity(&mut value)?;
    json::complete_process(&mut value, warnings);
    let process: document::Process = json::deserialize(value)?;
    Ok(Process { exec_affinity, ..process::convert(&process)? })
}

/// Checks the text of a resources.json as `update --resources` takes it: the object
/// `linux.resources` of a config.json.
///
/// # Errors
/// Names the property and what is wrong with it.
pub fn parse_resources(text: &[u8], warnings: &mut Vec<String>) -> Result<oci::LinuxResources> {
    let value: Value = serde_json::from_slice(text).context("not valid JSON")?;
    ensure!(value.is_object(), "must be a JSON object, the one of linux.resources in config.json");
    for property in json::unknown_resources(&value) {
        warnings.push(format!("{property}: unknown, and ignored"));
    }
    convert_resources(value)
}

/// The same for an object already read.
///
/// # Errors
/// As [`parse_resources`].
pub fn convert_resources(mut value: Value) -> Result<oci::LinuxResources> {
    json::complete_resources(&mut value);
    json::deserialize(value)
}

fn check_version(version: &str) -> Result<()> {
    let hint = "write the version of the OCI runtime specification, such as \"1.3.0\"";
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    ensure!(
        numbers.len() == 3 && numbers.iter().all(|n| n.parse::<u32>().is_ok()),
        "ociVersion: {version:?} is not a version; {hint}"
    );
    ensure!(
        numbers[0] == "1",
        "ociVersion: {version} is unsupported; this runtime speaks 1.0.0 to {SPEC_VERSION}"
    );
    Ok(())
}

fn convert(mut spec: Document, bundle: &Path, mut warnings: Vec<String>) -> Result<Config> {
    // What stays as it is isn't copied.
    let resources = spec.linux.as_mut().and_then(|linux| linux.resources_mut().take());
    check_version(&spec.oci_version)?;
    let root = spec.root.as_ref().context("root: missing; it names the root filesystem")?;
    ensure!(!root.path().as_os_str().is_empty(), "root.path: empty");
    let linux = spec.linux.as_ref();
    let namespaces = namespace::convert(linux)?;
    let list = |paths: Option<&Option<Vec<String>>>, property: &str| {
        absolute_paths(paths.and_then(|p| p.as_deref()).unwrap_or_default(), property)
    };
    let mounts = spec.mounts.as_deref().unwrap_or_default();
    let config = Config {
        oci_version: spec.oci_version.clone(),
        rootfs: bundle.join(root.path()),
        rootfs_readonly: root.readonly().unwrap_or(false),
        rootfs_propagation: linux
            .and_then(|l| l.rootfs_propagation().as_deref())
            .filter(|word| !word.is_empty())
            .map(rootfs_propagation)
            .transpose()?,
        process: spec.process.as_ref().map(process::convert).transpose()?,
        hostname: spec.hostname.clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname.clone().filter(|name| !name.is_empty()),
        mounts: (mounts.iter().enumerate())
            .map(|(index, mount)| mount::convert(index, mount, bundle, &namespaces))
            .collect::<Result<_>>()?,
        mount_label: linux
            .and_then(|l| l.mount_label().as_deref())
            .map(|label| mount::label(label, &mut warnings))
            .transpose()?
            .flatten(),
        hooks: spec.hooks.as_ref().map(hooks).transpose()?.unwrap_or_default(),
        annotations: annotations(&spec)?,
        namespaces,
        devices: linux
            .and_then(|l| l.devices().as_deref())
            .unwrap_or_default()
            .iter()
            .map(device)
            .collect::<Result<_>>()?,
        sysctl: linux.and_then(|l| l.sysctl().as_ref()).map(sysctl).unwrap_or_default(),
        cgroups_path: linux
            .and_then(|l| l.cgroups_path().clone())
            .filter(|path| !path.as_os_str().is_empty()),
        resources,
        seccomp: None,
        masked_paths: list(linux.map(|l| l.masked_paths()), "linux.maskedPaths")?,
        readonly_paths: list(linux.map(|l| l.readonly_paths()), "linux.readonlyPaths")?,
        personality: linux.and_then(|l| l.personality().as_ref()).map(personality).transpose()?,
        memory_policy: linux
            .and_then(|l| l.memory_policy().as_ref())
            .map(memory_policy::convert)
            .transpose()?,
        intel_rdt: linux
            .and_then(|l| l.intel_rdt().as_ref())
            .map(intel_rdt::convert)
            .transpose()?,
        net_devices: linux
            .and_then(|l| l.net_devices().as_ref())
            .map(net_device::convert)
            .transpose()?
            .unwrap_or_default(),
        warnings,
    };
    check_isolation(&config)?;
    Ok(config)
}

fn rootfs_propagation(word: &str) -> Result<Propagation> {
    Propagation::parse(word).with_context(|| {
        format!("linux.rootfsPropagation: {word:?} is none of shared, slave, private, unbindable")
    })
}

fn personality(personality: &oci::LinuxPersonality) -> Result<u64> {
    ensure!(
        personality.flags().as_ref().is_none_or(|flags| flags.is_empty()),
        "linux.personality.flags: no flag is supported"
    );
    Ok(match personality.domain() {
        oci::LinuxPersonalityDomain::PerLinux => 0,
        oci::LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

fn absolute_paths(paths: &[String], property: &str) -> Result<Vec<PathBuf>> {
    let check = |path: &String| {
        ensure!(path.starts_with('/'), "{property}: {path:?} must be an absolute path");
        Ok(PathBuf::from(path))
    };
    paths.iter().map(check).collect()
}

fn annotations(spec: &Document) -> Result<BTreeMap<String, String>> {
    let annotations = spec.annotations.clone().unwrap_or_default();
    ensure!(!annotations.contains_key(""), "annotations: a key is empty");
    Ok(annotations)
}

fn sysctl(values: &std::collections::HashMap<String, String>) -> Vec<(String, String)> {
    // Either form is in use: net.ipv4.ip_forward, and net/ipv4/conf/eth0.100/forwarding where a
    // part has a dot in it.
    let path = |key: &String| {
        let slash_first = key.find('/').unwrap_or(usize::MAX) < key.find('.').unwrap_or(usize::MAX);
        if slash_first { key.clone() } else { key.replace('.', "/") }
    };
    let mut sorted: Vec<_> = values.iter().map(|(key, value)| (path(key), value.clone())).collect();
    sorted.sort();
    sorted
}

fn hooks(hooks: &oci::Hooks) -> Result<Hooks> {
    Ok(Hooks {
        prestart: hook_list("prestart", hooks.prestart())?,
        create_runtime: hook_list("createRuntime", hooks.create_runtime())?,
        create_container: hook_list("createContainer", hooks.create_container())?,
        start_container: hook_list("startContainer", hooks.start_container())?,
        poststart: hook_list("poststart", hooks.poststart())?,
        poststop: hook_list("poststop", hooks.poststop())?,
    })
}

fn hook_list(kind: &str, hooks: &Option<Vec<oci::Hook>>) -> Result<Vec<Hook>> {
    let convert = |(index, hook): (usize, &oci::Hook)| {
        let property = format!("hooks.{kind}[{index}]");
        let path = hook.path();
        ensure!(path.is_absolute(), "{property}.path: {path:?} must be an absolute path");
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) if seconds > 0 => Some(seconds as u64),
            Some(seconds) => bail!("{property}.timeout: {seconds} must be above 0 seconds"),
        };
        let strings = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (args, env) = (strings(hook.args()), strings(hook.env()));
        let nul = |text: &String| text.contains('\0');
        ensure!(!args.iter().chain(&env).any(nul), "{property}: NUL byte in args or env");
        Ok(Hook { path: path.clone(), args, env, timeout })
    };
    hooks.iter().flatten().enumerate().map(convert).collect()
}

fn device(device: &oci::LinuxDevice) -> Result<Device> {
    let path = device.path();
    ensure!(path.is_absolute(), "linux.devices: path {path:?} must be an absolute path");
    let (kind, numbered) = match device.typ() {
        oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => (libc::S_IFCHR, true),
        oci::LinuxDeviceType::B => (libc::S_IFBLK, true),
        oci::LinuxDeviceType::P => (libc::S_IFIFO, false),
        oci::LinuxDeviceType::A => {
            bail!("linux.devices ({}): type must be c, u, b or p", path.display())
        }
    };
    let number = |name, value: i64| {
        u32::try_from(value).map_err(|_| {
            anyhow!("linux.devices ({}).{name}: {value} is no device number", path.display())
        })
    };
    Ok(Device {
        path: path.clone(),
        kind,
        number: match numbered {
            true => (number("major", device.major())?, number("minor", device.minor())?),
            false => (0, 0),
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// What would change the host instead of the container is refused.
fn check_isolation(config: &Config) -> Result<()> {
    use oci::LinuxNamespaceType as Ns;
    let private = |kind| config.namespaces.get(kind).is_some();
    let need = |property: &str, kind: Ns, name: &str| -> Result<()> {
        ensure!(
            private(kind),
            "{property}: would change the host; add {{\"type\": \"{name}\"}} to linux.namespaces"
        );
        Ok(())
    };
    if config.hostname.is_some() {
        need("hostname", Ns::Uts, "uts")?;
    }
    if config.domainname.is_some() {
        need("domainname", Ns::Uts, "uts")?;
    }
    if !config.net_devices.is_empty() {
        need("linux.netDevices", Ns::Network, "network")?;
    }
    for (path, _) in &config.sysctl {
        let property = format!("linux.sysctl ({})", path.replace('/', "."));
        let clean = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        ensure!(clean && !path.contains('\0'), "{property}: not a name of a kernel parameter");
        const IPC: [&str; 8] =
            ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
        match path.split_once('/') {
            Some(("net", _)) => need(&property, Ns::Network, "network")?,
            Some(("kernel", "hostname" | "domainname")) => need(&property, Ns::Uts, "uts")?,
            Some(("kernel", name)) if IPC.contains(&name) => need(&property, Ns::Ipc, "ipc")?,
            Some(("fs", name)) if name.starts_with("mqueue/") => need(&property, Ns::Ipc, "ipc")?,
            Some(("user", _)) => need(&property, Ns::User, "user")?,
            _ => bail!("{property}: belongs to no namespace, so it would change the host"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}"#;

    fn config(rest: &str) -> Result<Config> {
        parse(format!("{MINIMAL}{rest}}}").as_bytes(), Path::new("/bundle"))
    }

    fn error(rest: &str) -> String {
        format!("{:#}", config(rest).unwrap_err())
    }

    #[test]
    fn a_config_without_process_is_accepted() {
        let config = config("").unwrap();
        assert_eq!(config.rootfs, PathBuf::from("/bundle/rootfs"));
        assert!(config.process.is_none());
    }

    #[test]
    fn unknown_capabilities_are_a_warning() {
        let config = config(
            r#","process":{"user":{},"cwd":"/","args":["a"],
                "capabilities":{"bounding":["CAP_KILL","CAP_FLY"],"permitted":["CAP_FLY"]}}"#,
        )
        .unwrap();
        assert_eq!(config.warnings.len(), 1);
        assert!(config.warnings[0].contains("CAP_FLY"), "{:?}", config.warnings);
        assert_eq!(config.process.unwrap().capabilities.bounding, 1 << 5);
    }

    #[test]
    fn every_flag_of_the_scheduler_is_known() {
        let names = ["RESET_ON_FORK", "RECLAIM", "DL_OVERRUN", "KEEP_POLICY", "KEEP_PARAMS"];
        for (index, name) in names.iter().chain(&["UTIL_CLAMP_MIN", "UTIL_CLAMP_MAX"]).enumerate() {
            let config = config(&format!(
                r#","process":{{"user":{{}},"cwd":"/","args":["a"],
                    "scheduler":{{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_{name}"]}}}}"#
            ));
            let scheduler = config.unwrap().process.unwrap().scheduler.unwrap();
            assert_eq!(scheduler.flags, 1 << index, "{name}");
        }
    }

    #[test]
    fn a_limit_of_processes_that_is_not_set_is_none() {
        for (pids, limit) in
            [("{}", None), (r#"{"limit":null}"#, None), (r#"{"limit":0}"#, Some(0))]
        {
            let config = config(&format!(r#","linux":{{"resources":{{"pids":{pids}}}}}"#)).unwrap();
            let resources = config.resources.unwrap();
            assert_eq!(resources.pids().as_ref().map(|pids| pids.limit()), limit, "{pids}");
        }
    }

    #[test]
    fn errors_name_the_property() {
        for (rest, property) in [
            (r#","process":{"user":{},"cwd":"/","args":"sh"}"#, "process.args"),
            (r#","linux":{"resources":{"memory":{"limit":"1G"}}}"#, "linux.resources.memory.limit"),
            (r#","linux":{"namespaces":[{"type":"space"}]}"#, "linux.namespaces[0].type"),
            (r#","linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#, "linux.namespaces"),
            (r#","hostname":"h""#, "hostname"),
            (r#","linux":{"sysctl":{"vm.swappiness":"1"}}"#, "linux.sysctl"),
            (
                r#","linux":{"maskedPaths":["proc"],"namespaces":[{"type":"mount"}]}"#,
                "linux.maskedPaths",
            ),
            (r#","linux":{"rootfsPropagation":"foo"}"#, "linux.rootfsPropagation"),
            (r#","annotations":{"":"x"}"#, "annotations"),
            (r#","linux":{"resources":{"pids":[]}}"#, "linux.resources.pids"),
            (r#","linux":{"memoryPolicy":{"mode":"MPOL_X"}}"#, "linux.memoryPolicy.mode"),
            (
                r#","linux":{"personality":{"domain":"LINUX","flags":["X"]}}"#,
                "linux.personality.flags",
            ),
            (r#","linux":{"resources":[]}"#, "linux.resources"),
            (r#","mounts":[["/a","tmpfs"]]"#, "mounts[0]"),
            (r#","hooks":{"poststop":[{"path":"/a","timeout":0}]}"#, "hooks.poststop[0].timeout"),
            (r#","hooks":{"poststop":[{"path":"a"}]}"#, "hooks.poststop[0].path"),
        ] {
            let error = error(rest);
            assert!(error.starts_with(property), "{property}: {error}");
        }
    }

    #[test]
    fn text_that_is_no_json_is_refused() {
        for text in ["", "{", "hello", "{}x"] {
            parse(text.as_bytes(), Path::new("/b")).unwrap_err();
        }
    }

    #[test]
    fn only_versions_of_major_one_are_accepted() {
        for version in ["1.0.0", "1.0.2-dev", "1.3.0", "1.9.0+x"] {
            check_version(version).unwrap();
        }
        for version in ["", "abc", "1", "1.0", "2.0.0", "0.5.0", "99.0.0", "1.x.0"] {
            check_version(version).unwrap_err();
        }
    }

    #[test]
    fn sysctl_keys_may_use_dots_or_slashes() {
        let config = config(
            r#","linux":{"namespaces":[{"type":"network"}],
                "sysctl":{"net.ipv4.ip_forward":"1","net/ipv4/conf/a.1/forwarding":"0"}}"#,
        )
        .unwrap();
        let keys: Vec<_> = config.sysctl.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["net/ipv4/conf/a.1/forwarding", "net/ipv4/ip_forward"]);
    }
}
