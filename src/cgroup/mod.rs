//! Control groups: where a container's processes are counted, limited, frozen and killed.
//!
//! Two steps, so that a runtime killed at any instruction leaves nothing that can't be cleaned:
//! [`Location::locate`] decides where the cgroup will be and what of it exists already, and goes
//! into the state file; [`Location::create`] makes it. Later commands get a [`Cgroup`] from
//! [`Location::open`].
//!
//! One code serves three kinds of host, told apart by what is mounted on /sys/fs/cgroup:
//! - *unified*: cgroup v2 alone;
//! - *legacy*: a v1 hierarchy for each controller, at /sys/fs/cgroup/NAME (NAME may be several,
//!   `cpu,cpuacct`, with symlinks for each);
//! - *hybrid*: as legacy, and v2 at /sys/fs/cgroup/unified, with the controllers that no v1
//!   hierarchy has taken.
//!
//! On the latter two the container gets a cgroup in *every* hierarchy: engines read their numbers
//! from any of them (cpuacct, blkio), systemd's named one keeps it from taking our processes for
//! its own, and the unified one kills all of a container in one write and says when it is empty.
//!
//! The cgroupfs driver writes to the tree itself; with the systemd driver ([`systemd`]) the cgroup
//! is made by systemd, on a v2 host, and the rest is the same.

mod bus;
mod convert;
mod create;
mod devices;
// With tests, so that it goes on compiling.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod hierarchy;
mod inside;
mod journal;
mod node;
mod oom;
mod processes;
mod remove;
mod resources;
mod stats;
mod systemd;
#[cfg(test)]
mod tests;
mod unit_properties;
mod v1;
mod v2;

use crate::sys::descriptor::Fd;
use crate::sys::fs::open_path;
use anyhow::{Context, Result, bail, ensure};
pub use create::Unfinished;
use hierarchy::{Hierarchy, UNIFIED, Version, mounted_hierarchies};
use journal::Journal;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use node::Node;
pub use node::ROOT;
pub use oom::OomEvents;
pub use processes::signal_each;
use serde::{Deserialize, Serialize};
pub use stats::Stats;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// The parent of all cgroups whose place config.json leaves to us.
const DEFAULT_PARENT: &str = "ultari";

/// Where a container's cgroup is, and how much of the way there was not made for it.
///
/// It goes into the state file before anything is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The path within each hierarchy, as components.
    path: Vec<String>,
    hierarchies: Vec<Hierarchy>,
    /// config.json leaves the place to us: a user without rights to any cgroup may go without.
    optional: bool,
    /// The unit that makes and keeps the cgroup, with the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    systemd: Option<systemd::Unit>,
}

impl Location {
    /// Decides where the cgroup of container `id` is. Changes nothing. One that holds processes is
    /// refused.
    ///
    /// `cgroups_path` is `linux.cgroupsPath`. An absolute path starts at the root of the cgroup
    /// mounts (spec: config-linux.md, "Cgroups Path"). A relative one, whose meaning is left to the
    /// runtime, starts there too; without one it is `/ultari/ID`. For a user without privileges these
    /// two start at the parent of the caller's own cgroup instead, which is where systemd's
    /// delegation allows new ones.
    pub fn locate(cgroups_path: Option<&Path>, id: &str) -> Result<Self> {
        let configured = cgroups_path.filter(|path| !path.as_os_str().is_empty());
        let mut path = match configured {
            Some(path) => components(path)?,
            None => vec![DEFAULT_PARENT.to_owned(), id.to_owned()],
        };
        let kind = statfs(ROOT)
            .with_context(|| {
                format!("no cgroups here: cannot look at {ROOT} (is a cgroup file system mounted?)")
            })?
            .filesystem_type();
        let unified = kind == CGROUP2_SUPER_MAGIC;
        if unified && !configured.is_some_and(Path::is_absolute) && unprivileged() {
            let mut base = own_parent()?;
            base.append(&mut path);
            path = base;
        }
        let root = open_root()?;
        let mut hierarchies = if unified {
            let mut hierarchy = Hierarchy::new(String::new(), Version::V2);
            hierarchy.look_up(root, &path)?;
            vec![hierarchy]
        } else {
            mounted_hierarchies(root, &path)?
        };
        for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.existing == path.len()) {
            // What goes on record is ours to kill.
            let leaf = hierarchy.path(&path, path.len());
            create::check_unused(&Node::below(root, &leaf))?;
        }
        if configured.is_none() {
            // These names are ours alone, so whoever finds the parent empty removes it.
            let foreign = path.len() - 2;
            for hierarchy in &mut hierarchies {
                hierarchy.existing = hierarchy.existing.min(foreign);
            }
        }
        Ok(Self { path, hierarchies, optional: configured.is_none(), systemd: None })
    }

    /// Checks what a record says: whoever deletes the container kills all that is in there.
    ///
    /// # Errors
    /// When that is no cgroup below the root of each hierarchy.
    pub fn check(&self) -> Result<()> {
        let name = |name: &String| {
            !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\n', '\0'])
        };
        let hierarchy = |hierarchy: &Hierarchy| {
            (hierarchy.directory.is_empty() || name(&hierarchy.directory))
                && hierarchy.existing <= self.path.len()
        };
        ensure!(
            !self.path.is_empty() && self.path.iter().all(name),
            "cgroup.path: {:?} is not the path of a cgroup",
            self.path
        );
        ensure!(
            !self.hierarchies.is_empty() && self.hierarchies.iter().all(hierarchy),
            "cgroup.hierarchies: {:?} are not hierarchies",
            self.hierarchies
        );
        Ok(())
    }

    /// Whether the host has cgroup v2 alone.
    pub fn is_unified(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.directory.is_empty())
    }

    /// The container's cgroup in each v1 hierarchy: the name of the hierarchy's directory in
    /// /sys/fs/cgroup, and the full path.
    pub fn v1_paths(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.paths().filter(|(name, _)| !name.is_empty() && *name != UNIFIED)
    }

    /// Its path within each hierarchy, from the root of that.
    pub fn path(&self) -> String {
        format!("/{}", self.path.join("/"))
    }

    /// The folder of the cgroup that freezes its processes.
    pub fn freezer(&self) -> Option<PathBuf> {
        let freezer = |h: &&Hierarchy| h.version == Version::V2 || h.has_v1_controller("freezer");
        // v1's, where there is one, and not v2's beside it.
        let found =
            self.hierarchies.iter().filter(freezer).min_by_key(|h| h.version == Version::V2);
        found.map(|h| Path::new(ROOT).join(h.path(&self.path, self.path.len())))
    }

    /// The container's cgroup on a v2 host.
    pub fn unified_path(&self) -> PathBuf {
        Path::new(ROOT).join(self.path.join("/"))
    }

    /// The same for every hierarchy; on a v2 host the one has no name.
    fn paths(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.hierarchies.iter().map(|hierarchy| {
            let path = hierarchy.path(&self.path, self.path.len());
            (hierarchy.directory.as_str(), Path::new(ROOT).join(path))
        })
    }

    /// Removes the cgroup: [`Cgroup::remove`].
    ///
    /// # Errors
    /// All that went wrong, together.
    pub fn remove(&self) -> Result<()> {
        Cgroup::handle(self, open_root()?).remove()
    }

    /// A handle on the cgroup, whether it exists or not.
    pub fn open(&self) -> Result<Cgroup> {
        let mut cgroup = Cgroup::handle(self, open_root()?);
        match cgroup.open_leaf() {
            Err(Errno::ENOENT) | Ok(()) => Ok(cgroup),
            Err(errno) => Err(errno)
                .with_context(|| format!("cannot open the container's cgroup {}", cgroup.shown())),
        }
    }
}

/// A container's cgroup, in every hierarchy of the host.
pub struct Cgroup {
    location: Location,
    /// [`ROOT`].
    root: BorrowedFd<'static>,
    /// The cgroup in the v2 hierarchy, if there is one and it exists.
    leaf: Option<Fd>,
    /// Why this container has no cgroup: the user may not make one and config.json doesn't insist.
    absent: Option<String>,
    /// Why controllers could not be enabled, for the error of a limit that needs one of them.
    not_enabled: Vec<String>,
    /// While limits are changed: what they were.
    journal: Option<Journal>,
    /// Where a cgroup below it is meant: its path from here, by the hierarchy's directory.
    inside: BTreeMap<String, String>,
}

impl Cgroup {
    fn handle(location: &Location, root: BorrowedFd<'static>) -> Self {
        Self {
            location: location.clone(),
            root,
            leaf: None,
            absent: None,
            not_enabled: Vec::new(),
            journal: None,
            inside: BTreeMap::new(),
        }
    }

    fn open_leaf(&mut self) -> nix::Result<()> {
        if let Some(node) = self.unified_path() {
            self.leaf = Some(node.open_directory()?);
        }
        Ok(())
    }

    /// Whether there is a cgroup at all. There is none if the user may not make one and neither
    /// `linux.cgroupsPath` nor `linux.resources` asks for it, as in runc; or when it was removed.
    pub fn exists(&self) -> bool {
        self.hierarchies().iter().any(|hierarchy| self.node(hierarchy).exists(""))
    }

    /// Takes a cgroup that is not there and that config.json did not ask for as one that could not
    /// be made: the container, if it lives, is without.
    pub fn or_without(mut self) -> Self {
        if self.location.optional && !self.exists() {
            self.absent = Some("it could not be made when the container was created".into());
        }
        self
    }

    /// The cgroup's directory for clone3(2) with CLONE_INTO_CGROUP, where there is cgroup v2. The
    /// child is then in the cgroup from its first instruction. None with a user's systemd: only that
    /// may move processes out of the caller's session.
    pub fn clone_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.location.systemd {
            Some(unit) if unit.is_users() => None,
            _ => self.leaf.as_ref().filter(|_| self.unified_hierarchy().is_some()).map(AsFd::as_fd),
        }
    }

    /// Whether a child that is cloned with [`Cgroup::clone_fd`] and gets through the [`Cgroup::door`]
    /// is in the cgroup then, and needs no [`Cgroup::add`].
    pub fn is_joined_by_clone(&self) -> bool {
        self.clone_fd().is_some() || self.unified_hierarchy().is_none()
    }

    /// The way of a child into the v1 hierarchies: an open file of each, for [`enter`].
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn door(&self) -> Result<Vec<Fd>> {
        let open = |node: Node| {
            let context = || format!("cannot open {}/tasks to put a process there", node.path());
            node.open("tasks", OFlag::O_WRONLY).with_context(context)
        };
        self.v1_nodes().map(open).collect()
    }

    /// Gives the cgroup to the host's user `uid`, so that the container can divide it further: the
    /// directory and the files that the kernel says are safe to give (spec: config-linux.md,
    /// "Cgroup ownership"; /sys/kernel/cgroup/delegate).
    ///
    /// # Errors
    /// When the owner can't be changed.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        let Some(leaf) = &self.leaf else { return Ok(()) };
        let files = std::fs::read_to_string("/sys/kernel/cgroup/delegate")
            .unwrap_or_else(|_| "cgroup.procs cgroup.threads cgroup.subtree_control".into());
        let owner = Some(nix::unistd::Uid::from_raw(uid));
        for file in [""].into_iter().chain(files.split_ascii_whitespace()) {
            match nix::unistd::fchownat(leaf, file, owner, None, AtFlags::AT_EMPTY_PATH) {
                // The list is that of all controllers; not each is enabled here.
                Ok(()) | Err(Errno::ENOENT) => {}
                // It stays with who runs the container, to whom alone it was delegated.
                Err(Errno::EPERM) if unprivileged() => return Ok(()),
                Err(errno) => {
                    let shown = self.shown();
                    return Err(errno)
                        .with_context(|| format!("give cgroup {shown} to user {uid}"));
                }
            }
        }
        Ok(())
    }

    /// Moves a process, with all its threads, into the cgroup.
    pub fn add(&self, pid: libc::pid_t) -> Result<()> {
        ensure!(
            self.unified_hierarchy().is_none() || self.leaf.is_some(),
            "cannot move process {pid} into cgroup {}: the cgroup is gone",
            self.shown()
        );
        // The unified hierarchy comes first: it kills all that is in it, should we not get on.
        for node in self.unified().into_iter().chain(self.v1_nodes()) {
            node.write("cgroup.procs", &pid.to_string()).or_else(|errno| {
                match &self.location.systemd {
                    // The way from a session's cgroup leads through one that is not the user's.
                    Some(unit) if matches!(errno, Errno::EACCES | Errno::EPERM) => unit.attach(pid),
                    _ => Err(move_error(&format!("process {pid}"), node.path(), errno)),
                }
            })?;
        }
        Ok(())
    }

    fn hierarchies(&self) -> &[Hierarchy] {
        if self.absent.is_some() { &[] } else { &self.location.hierarchies }
    }

    fn node_at(&self, hierarchy: &Hierarchy, depth: usize) -> Node<'_> {
        let path = hierarchy.path(&self.location.path, depth);
        Node::below(self.root, &path).recorded(self.journal.as_ref())
    }

    /// The cgroup in this hierarchy, by its path.
    fn node(&self, hierarchy: &Hierarchy) -> Node<'_> {
        let node = self.node_at(hierarchy, self.location.path.len());
        match self.inside.get(&hierarchy.directory) {
            Some(below) if !below.is_empty() => node.child(below),
            _ => node,
        }
    }

    fn unified_hierarchy(&self) -> Option<&Hierarchy> {
        self.hierarchies().iter().find(|hierarchy| hierarchy.version == Version::V2)
    }

    fn unified_path(&self) -> Option<Node<'_>> {
        self.unified_hierarchy().map(|hierarchy| self.node(hierarchy))
    }

    /// The cgroup in the v2 hierarchy, by its descriptor; none if it does not exist.
    fn unified(&self) -> Option<Node<'_>> {
        let hierarchy = self.unified_hierarchy()?;
        let path = hierarchy.path(&self.location.path, self.location.path.len());
        let leaf = self.leaf.as_ref()?;
        Some(Node::open_on(leaf.as_fd(), &path).recorded(self.journal.as_ref()))
    }

    fn v1_nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.hierarchies()
            .iter()
            .filter(|hierarchy| hierarchy.version == Version::V1)
            .map(|hierarchy| self.node(hierarchy))
    }

    fn v1_node(&self, controller: &str) -> Option<Node<'_>> {
        self.hierarchies()
            .iter()
            .find(|hierarchy| hierarchy.has_v1_controller(controller))
            .map(|hierarchy| self.node(hierarchy))
    }

    /// Its path within the hierarchies, for messages.
    fn shown(&self) -> String {
        self.location.path()
    }
}

/// Moves the calling process, which has one thread, through the [`Cgroup::door`].
///
/// A process that is moved by another one, or has threads, makes the kernel stop all forks on the
/// machine first, which takes some 10 ms if nobody did so lately (an RCU grace period of
/// cgroup_threadgroup_rwsem). A thread that moves itself needs none of that.
///
/// # Errors
/// When the kernel refuses.
pub fn enter(door: &[Fd]) -> Result<()> {
    door.iter().try_for_each(|tasks| {
        node::write_all(tasks, "0").map_err(|errno| {
            let link = format!("/proc/self/fd/{}", tasks.as_raw_fd());
            let shown = std::fs::read_link(link).unwrap_or_default();
            move_error("the container's process", &shown.to_string_lossy(), errno)
        })
    })
}

fn move_error(process: &str, cgroup: &str, errno: Errno) -> anyhow::Error {
    let hint = match errno {
        Errno::ESRCH => ": the process is gone",
        Errno::EOPNOTSUPP => {
            ": the cgroup or its parent is a threaded one: choose another linux.cgroupsPath"
        }
        Errno::EBUSY => {
            ": controllers are enabled for its sub-cgroups, so it can't hold processes itself: move the process into one of them"
        }
        Errno::ENOSPC => ": its cpuset has no CPUs or no memory nodes",
        Errno::EACCES | Errno::EPERM => {
            ": moving a process needs the right to write to cgroup.procs of the common parent of its old and new cgroup: start the runtime in a delegated cgroup (systemd-run --user --scope -p Delegate=yes)"
        }
        Errno::ENOENT | Errno::ENODEV => ": the cgroup is gone",
        _ => "",
    };
    anyhow::Error::new(errno).context(format!("cannot move {process} into cgroup {cgroup}{hint}"))
}

/// A normal path's components. `..` is refused: it could lead out of the cgroup that an engine
/// keeps its containers in.
fn components(path: &Path) -> Result<Vec<String>> {
    let mut components = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                bail!("linux.cgroupsPath: {path:?} contains \"..\": write the path without it")
            }
            Component::Normal(name) => match name.to_str() {
                Some(name) if !name.contains(['\n', '\0']) => components.push(name.to_owned()),
                _ => bail!(
                    "linux.cgroupsPath: {path:?} is not a path of UTF-8 names without line breaks"
                ),
            },
        }
    }
    ensure!(
        !components.is_empty(),
        "linux.cgroupsPath: {path:?} is the root cgroup, which can't be limited: name a cgroup below it, or leave the property out"
    );
    Ok(components)
}

/// [`ROOT`], opened by whoever asks first.
fn open_root() -> Result<BorrowedFd<'static>> {
    static OPENED: OnceLock<Fd> = OnceLock::new();
    if let Some(root) = OPENED.get() {
        return Ok(root.as_fd());
    }
    let root =
        open_path(ROOT, OFlag::O_DIRECTORY).with_context(|| format!("cannot open {ROOT}"))?;
    Ok(OPENED.get_or_init(|| root).as_fd())
}

/// The parent of the caller's own cgroup. The own one holds processes, so that it can't hold
/// cgroups with controllers (kernel: cgroup-v2.rst, "No Internal Process Constraint").
fn own_parent() -> Result<Vec<String>> {
    const FILE: &str = "/proc/self/cgroup";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let mut path: Vec<String> =
        own.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    path.pop();
    // A cgroup outside the caller's cgroup namespace is shown with `..`.
    if path.iter().any(|name| name == "..") {
        path.clear();
    }
    Ok(path)
}

/// The caller's own cgroup in the v1 hierarchy of the directory `name`; its root where /proc knows
/// none.
pub fn own_v1_path(name: &str) -> PathBuf {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // hierarchy-ID:controllers:path; a hierarchy without controllers has a name (cgroups(7)).
    let of_name = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let own = controllers.strip_prefix("name=").unwrap_or(controllers) == name;
        own.then(|| path.trim_start_matches('/').to_owned())
    };
    let path = text.lines().find_map(of_name).unwrap_or_default();
    Path::new(ROOT).join(name).join(path)
}

/// Whether we lack root's rights on the host: not root, or root of a user namespace only.
pub fn unprivileged() -> bool {
    !nix::unistd::geteuid().is_root() || crate::userns::is_inside()
}
