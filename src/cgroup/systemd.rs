//! The systemd driver: the cgroup is that of a transient unit which systemd makes, so that the
//! host's service manager knows of the container (`systemctl status`), and does not take its
//! cgroup for something of its own (systemd: docs/CGROUP_DELEGATION.md).
//!
//! A scope can't be made empty: the container's first process is cloned where the caller is, and
//! does nothing there but wait until [`Cgroup::start_unit`] has put it into the unit. What systemd
//! has a property for is set as one, so that it stays when systemd writes its limits anew; then
//! all limits are written to the files, too, as without systemd: exactly, and those it knows not.
//!
//! Every command that comes later finds the unit, and the bus that its systemd is on, in the state
//! file. The unit's description tells whether it is still that container's.

use super::bus::{Bus, Refused, Target};
use super::unit_properties::{self as properties, Property};
use super::{Cgroup, Hierarchy, Location, ROOT, Version, unprivileged};
use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use zbus::wire::DynamicType;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: Target = Target {
    service: SERVICE,
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// How long systemd may take to start or stop the unit.
const JOB_TIMEOUT: Duration = Duration::from_secs(30);

/// The unit that a container's cgroup belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unit {
    /// The socket of the bus that its systemd is on, as [`Bus::connect`] takes it.
    bus: String,
    /// Whether that is a user's systemd.
    user: bool,
    slice: String,
    name: String,
    /// By this it is told from another unit that has got the name.
    description: String,
}

impl Location {
    /// As [`Location::locate`], for a unit of systemd: `linux.cgroupsPath` is `SLICE:PREFIX:NAME`,
    /// and the cgroup that of `PREFIX-NAME.scope` in the slice, as in runc. Without it these are
    /// `system.slice:ultari:ID`, or `user.slice:ultari:ID` of the user's own systemd for a user
    /// other than root. The annotations are those for [`Cgroup::start_unit`].
    ///
    /// # Errors
    /// When one of them has another form, or systemd can't be reached.
    pub fn locate_unit(
        cgroups_path: Option<&Path>,
        id: &str,
        bundle: &Path,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let user = unprivileged();
        let default = format!("{}:ultari:{id}", if user { "user.slice" } else { "system.slice" });
        let configured = cgroups_path.filter(|path| !path.as_os_str().is_empty());
        let text = match configured {
            Some(path) => path.to_str().context("linux.cgroupsPath: it is not UTF-8")?,
            None => &default,
        };
        let (slice, name) = parse(text, user)?;
        properties::of_annotations(annotations)?;
        ensure!(
            statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC),
            "--systemd-cgroup: {ROOT} is not cgroup v2 alone, which the systemd driver needs: boot with systemd.unified_cgroup_hierarchy=1, or leave the flag out (engines: native.cgroupdriver=cgroupfs)"
        );
        let description = format!("container {id} ({})", bundle.display());
        let unit = Unit { bus: bus_address(user)?, user, slice, name, description };
        let control_group = Manager::connect(&unit)?.control_group()?;
        let names = control_group.split('/').filter(|name| !name.is_empty());
        let mut path: Vec<String> = names.map(str::to_owned).collect();
        if unit.is_slice() {
            path.extend(expand_slice(&unit.name)?);
        } else {
            path.extend(expand_slice(&unit.slice)?);
            path.push(unit.name.clone());
        }
        // systemd makes the slices, and keeps them.
        let existing = path.len() - 1;
        let hierarchy = Hierarchy { existing, ..Hierarchy::new(String::new(), Version::V2) };
        let folder = Path::new(ROOT).join(path.join("/"));
        ensure!(
            unit.is_slice() || !folder.exists(),
            "linux.cgroupsPath: container's cgroup {} exists already: another container has this path: choose another",
            folder.display()
        );
        Ok(Self { path, hierarchies: vec![hierarchy], optional: false, systemd: Some(unit) })
    }

    /// Whether the cgroup is that of a unit of systemd, which is made around the first process.
    pub fn is_unit(&self) -> bool {
        self.systemd.is_some()
    }
}

impl Cgroup {
    /// Has systemd make the cgroup around the process `pid` and applies all limits. `annotations`
    /// are those of config.json: `org.systemd.property.NAME` adds a property. Returns warnings.
    /// Does nothing where the cgroup is not systemd's.
    ///
    /// # Errors
    /// With what systemd said; [`Cgroup::remove`] cleans up.
    pub fn start_unit(
        &mut self,
        pid: libc::pid_t,
        resources: Option<&LinuxResources>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Vec<String>> {
        let Some(unit) = self.location.systemd.clone() else { return Ok(Vec::new()) };
        unit.start(pid, resources, annotations)?;
        let limited = self.set_up(resources, true);
        let warnings = limited
            .with_context(|| format!("cannot limit the container's cgroup {}", self.shown()))?;
        // A slice takes no processes from systemd; of a scope's this makes sure.
        self.add(pid)?;
        Ok(warnings)
    }
}

impl Unit {
    fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// Whether its systemd is a user's, whose processes may not always move others themselves.
    pub(super) fn is_users(&self) -> bool {
        self.user
    }

    fn start(
        &self,
        pid: libc::pid_t,
        resources: Option<&LinuxResources>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut wanted = vec![
            properties::text("Description", &self.description),
            properties::flag("DefaultDependencies", false),
            // Nobody is to have to clear a container away that was killed.
            properties::text("CollectMode", "inactive-or-failed"),
        ];
        if !self.is_slice() {
            wanted.push(properties::text("Slice", &self.slice));
            wanted.push(properties::flag("Delegate", true));
            wanted.push(("PIDs".into(), Variant::from(vec![u32::try_from(pid)?])));
        }
        // Engines read the numbers also of containers without limits.
        for controller in ["CPU", "Memory", "IO", "Tasks"] {
            wanted.push(properties::flag(&format!("{controller}Accounting"), true));
        }
        let mut manager = Manager::connect(self)?;
        if let Some(resources) = resources {
            let version = manager.version()?;
            wanted.extend(properties::of_limits(resources, version, &|_| None)?);
            if !self.user {
                wanted.extend(properties::of_devices(resources)?);
            }
        }
        wanted.extend(properties::of_annotations(annotations)?);
        let auxiliary: Vec<(String, Vec<Property>)> = Vec::new();
        manager
            .run_job("StartTransientUnit", &(self.name.as_str(), "fail", wanted, auxiliary))
            .map_err(|error| {
                let hint = match refusal(&error) {
                    Some(UNIT_EXISTS) => {
                        ": another container has this linux.cgroupsPath, or it has just ended"
                    }
                    _ => "",
                };
                let (name, user) = (&self.name, if self.user { "--user " } else { "" });
                error.context(format!(
                    "--systemd-cgroup: systemd can't start {name}{hint} (`systemctl {user}status {name}` may say more)"
                ))
            })
    }

    /// Whether the name is certainly that of another container's unit: of one that was first.
    pub(super) fn is_foreign(&self) -> bool {
        let known = Manager::connect(self).and_then(|mut systemd| systemd.description(&self.name));
        known.is_ok_and(|description| description != self.description)
    }

    /// Stops the unit, if there is one. Its processes should have been killed. Tells whether it was
    /// this container's; another's is left alone.
    pub(super) fn stop(&self) -> Result<bool> {
        let stop = || -> Result<bool> {
            let mut manager = Manager::connect(self)?;
            if manager.description(&self.name)? != self.description {
                return Ok(false);
            }
            manager.run_job("StopUnit", &(self.name.as_str(), "replace"))?;
            // A failed one would keep its name; mostly it is gone already.
            let _ = manager.bus.call(&MANAGER, "ResetFailedUnit", &(self.name.as_str(),));
            Ok(true)
        };
        match stop() {
            Err(error) if refusal(&error) == Some(NO_SUCH_UNIT) => Ok(true),
            other => other.with_context(|| format!("stop the unit {}", self.name)),
        }
    }

    /// Tells systemd of limits that the cgroup's files have by now; `now` reads one. All take effect
    /// or none; systemd writes what it makes of them to the files.
    pub(super) fn set_limits(
        &self,
        resources: &LinuxResources,
        now: &dyn Fn(&str) -> Option<String>,
    ) -> Result<()> {
        let mut manager = Manager::connect(self)?;
        let mut wanted = properties::of_limits(resources, manager.version()?, now)?;
        if !self.user && resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
            wanted.extend(properties::of_devices(resources)?);
        }
        let arguments = (self.name.as_str(), true, wanted);
        let set = manager.bus.call(&MANAGER, "SetUnitProperties", &arguments);
        set.map(drop).with_context(|| format!("linux.resources: set properties of {}", self.name))
    }

    /// Has systemd move a process into the unit: it may, where a user may not.
    pub(super) fn attach(&self, pid: libc::pid_t) -> Result<()> {
        let mut manager = Manager::connect(self)?;
        let pids = vec![u32::try_from(pid)?];
        let arguments = (self.name.as_str(), "/", pids);
        let attached = manager.bus.call(&MANAGER, "AttachProcessesToUnit", &arguments);
        attached.map(drop).with_context(|| format!("have systemd move process {pid}"))
    }
}

/// A connection to systemd.
struct Manager {
    bus: Bus,
}

impl Manager {
    fn connect(unit: &Unit) -> Result<Self> {
        let hint = match unit.user {
            true => "is there a session with a `systemd --user` (loginctl enable-linger)? or",
            false => "does systemd run here? If not,",
        };
        let bus = Bus::connect(&unit.bus).with_context(|| {
            format!(
                "--systemd-cgroup: cannot reach systemd at the bus {}: {hint} leave the flag out (engines: native.cgroupdriver=cgroupfs)",
                unit.bus
            )
        })?;
        Ok(Self { bus })
    }

    fn property(&mut self, path: &str, interface: &str, name: &str) -> Result<OwnedVariant> {
        let target =
            Target { service: SERVICE, path, interface: "org.freedesktop.DBus.Properties" };
        let answer = self.bus.call(&target, "Get", &(interface, name));
        let value = answer.with_context(|| format!("ask systemd for {name}"))?;
        Ok(value.read::<(OwnedVariant,)>()?.0)
    }

    /// The cgroup below which all units of this systemd are.
    fn control_group(&mut self) -> Result<String> {
        let value = self.property(MANAGER.path, MANAGER.interface, "ControlGroup")?;
        Ok(String::try_from(value)?)
    }

    /// systemd's version, of which only the first number counts: `252.38-1~deb12u1`.
    fn version(&mut self) -> Result<u32> {
        let value = self.property(MANAGER.path, MANAGER.interface, "Version")?;
        let text = String::try_from(value)?;
        let digits = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).next();
        Ok(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    fn path(&mut self, unit: &str) -> Result<OwnedObjectPath> {
        let answer = self.bus.call(&MANAGER, "GetUnit", &(unit,))?;
        Ok(answer.read::<(OwnedObjectPath,)>()?.0)
    }

    fn description(&mut self, unit: &str) -> Result<String> {
        let path = self.path(unit)?;
        let value = self.property(&path, "org.freedesktop.systemd1.Unit", "Description")?;
        Ok(String::try_from(value)?)
    }

    /// Calls a method that returns a job, and waits for its end.
    fn run_job<T: Serialize + DynamicType>(&mut self, method: &str, arguments: &T) -> Result<()> {
        self.bus.listen(&format!(
            "type='signal',sender='{SERVICE}',path='{}',interface='{}',member='JobRemoved'",
            MANAGER.path, MANAGER.interface
        ))?;
        // Without it systemd keeps its signals to itself.
        self.bus.call(&MANAGER, "Subscribe", &())?;
        let deadline = Instant::now() + JOB_TIMEOUT;
        let job = self.bus.call(&MANAGER, method, arguments)?.read::<(OwnedObjectPath,)>()?.0;
        loop {
            let signal = self.bus.signal("JobRemoved", deadline)?;
            let (_, ended, _, result) = signal.read::<(u32, OwnedObjectPath, String, String)>()?;
            if ended == job {
                ensure!(result == "done", "{method}: its result is {result:?}");
                return Ok(());
            }
        }
    }
}

/// The name of the error that systemd has answered with.
fn refusal(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Refused>().map(|refused| refused.name.as_str())
}

/// Slice and unit of a `linux.cgroupsPath`.
pub(super) fn parse(text: &str, user: bool) -> Result<(String, String)> {
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        bail!(
            "linux.cgroupsPath: with --systemd-cgroup it must be SLICE:PREFIX:NAME, such as \"system.slice:ultari:web\", not {text:?}: set the engine's cgroup driver to systemd, or leave the flag out"
        );
    };
    let slice = match slice {
        "" if user => "user.slice",
        "" => "system.slice",
        slice => slice,
    };
    ensure!(!name.is_empty(), "linux.cgroupsPath: {text:?} has no name after the last colon");
    let unit = match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    for name in [slice, &unit] {
        ensure!(
            name.len() < 256 && name.chars().all(fine),
            "linux.cgroupsPath: {name:?} can't be a unit of systemd: such a name has letters, digits and : - _ . \\ @, at most 255"
        );
    }
    let ancestors = expand_slice(slice)?;
    if unit.ends_with(".slice") {
        let own = expand_slice(&unit)?;
        ensure!(
            own.split_last().is_some_and(|(_, above)| above == ancestors),
            "linux.cgroupsPath: by its name the slice {unit} can't be in {slice}: write its parent's name before the first colon"
        );
    }
    Ok((slice.to_owned(), unit))
}

/// The cgroups from a slice's outermost ancestor to itself: `a-b.slice` is in `a.slice`
/// (systemd.slice(5)). The root slice `-.slice` has none.
pub(super) fn expand_slice(slice: &str) -> Result<Vec<String>> {
    let wrong = || {
        anyhow!(
            "linux.cgroupsPath: {slice:?} is not a slice of systemd: it must end in .slice and have no slash, no empty part between dashes"
        )
    };
    let stem = slice.strip_suffix(".slice").filter(|stem| !stem.contains('/')).ok_or_else(wrong)?;
    if stem == "-" {
        return Ok(Vec::new());
    }
    let mut path = Vec::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return Err(wrong());
        }
        name.push_str(part);
        path.push(format!("{name}.slice"));
        name.push('-');
    }
    Ok(path)
}

/// The socket of the system's or the user's bus, as [`Bus::connect`] takes it.
fn bus_address(user: bool) -> Result<String> {
    let variable = if user { "DBUS_SESSION_BUS_ADDRESS" } else { "DBUS_SYSTEM_BUS_ADDRESS" };
    let from = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (from(variable), user) {
        (Some(addresses), _) => socket_of(&addresses).with_context(|| {
            format!("--systemd-cgroup: ${variable} is {addresses:?}, which has no Unix socket: unset it, or set it to unix:path=SOCKET")
        }),
        (None, false) => Ok("/run/dbus/system_bus_socket".to_owned()),
        (None, true) => {
            let folder = from("XDG_RUNTIME_DIR").context(
                "--systemd-cgroup: there is no user session: neither $DBUS_SESSION_BUS_ADDRESS nor $XDG_RUNTIME_DIR is set: log in through a session (loginctl enable-linger), or leave the flag out",
            )?;
            Ok(format!("{folder}/bus"))
        }
    }
}

/// The first Unix socket of a D-Bus address (specification, "Server Addresses").
fn socket_of(addresses: &str) -> Option<String> {
    addresses.split(';').find_map(|address| {
        let pairs = address.strip_prefix("unix:")?;
        pairs.split(',').find_map(|pair| match pair.split_once('=')? {
            ("path", value) => unescape(value),
            ("abstract", value) => Some(format!("@{}", unescape(value)?)),
            _ => None,
        })
    })
}

/// `%XX` stands for a byte.
fn unescape(value: &str) -> Option<String> {
    let mut pieces = value.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_paths_name_slice_and_unit() {
        let fine = [
            ("system.slice:docker:abc", ("system.slice", "docker-abc.scope")),
            (":libpod:abc", ("system.slice", "libpod-abc.scope")),
            ("a-b.slice:crio:x", ("a-b.slice", "crio-x.scope")),
            ("a.slice::x", ("a.slice", "x.scope")),
            ("-.slice:p:n", ("-.slice", "p-n.scope")),
            ("a.slice:ignored:a-b.slice", ("a.slice", "a-b.slice")),
        ];
        for (text, (slice, unit)) in fine {
            assert_eq!(parse(text, false).unwrap(), (slice.to_owned(), unit.to_owned()), "{text}");
        }
        assert_eq!(parse(":p:n", true).unwrap().0, "user.slice");
        for text in [
            "",
            "/a/b",
            "a.slice",
            "a.slice:b",
            "a:b:c",
            "a.slice:b:c:d",
            "a.slice:p:",
            "a/b.slice:p:n",
            "a.slice:p:x/y",
            "a.slice:p:..\n",
            "-a.slice:p:n",
            "a--b.slice:p:n",
            ".slice:p:n",
            "a.slice:p:b-c.slice",
            "a.slice:p+q:n",
        ] {
            let error = parse(text, false).unwrap_err().to_string();
            assert!(error.starts_with("linux.cgroupsPath: "), "{text}: {error}");
        }
    }

    #[test]
    fn slices_lie_in_each_other_by_their_names() {
        assert_eq!(expand_slice("-.slice").unwrap(), Vec::<String>::new());
        assert_eq!(expand_slice("a.slice").unwrap(), ["a.slice"]);
        assert_eq!(expand_slice("a-b-c.slice").unwrap(), ["a.slice", "a-b.slice", "a-b-c.slice"]);
        for wrong in ["", "a", ".slice", "a/b.slice", "a-.slice", "-a.slice", "a--b.slice"] {
            expand_slice(wrong).unwrap_err();
        }
    }

    #[test]
    fn the_first_unix_socket_of_an_address_is_taken() {
        assert_eq!(socket_of("unix:path=/run/user/1/bus").unwrap(), "/run/user/1/bus");
        assert_eq!(socket_of("tcp:host=x;unix:guid=1,path=/a%20b").unwrap(), "/a b");
        assert_eq!(socket_of("unix:abstract=/tmp/x,guid=1").unwrap(), "@/tmp/x");
        for nothing in ["", "tcp:host=x", "unix:runtime=yes", "unix:path=/a%2", "unix:path=%zz"] {
            assert_eq!(socket_of(nothing), None, "{nothing}");
        }
    }
}
