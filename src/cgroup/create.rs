//! Making a container's cgroup.

use super::node::Node;
use super::{Cgroup, Hierarchy, Location, Version, open_root, resources, unprivileged};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

/// How often to start over when another runtime removes an empty parent under our hands.
const RACES: usize = 10;

/// A cgroup that is being made around a process: [`Location::begin`].
#[derive(Debug)]
pub struct Unfinished {
    /// Nobody had it before.
    new: bool,
    /// The controllers that it has in the unified hierarchy.
    available: String,
    /// The warnings of [`Location::create`], if that has done it all.
    done: Option<Vec<String>>,
}

/// A cgroup in which all is as it is to be, but any device may still be used:
/// [`Cgroup::restrict_devices`].
#[derive(Debug)]
pub struct Unrestricted {
    /// Nobody had it before.
    new: bool,
}

impl Location {
    /// Makes the cgroup with its parents and applies all limits, the device rules among them.
    /// Returns it with warnings on what was left out although it does no harm.
    ///
    /// On failure everything made here is removed again. A cgroup that exists already is taken
    /// over if it has no processes and is not frozen. With the systemd driver nothing is done yet:
    /// see [`Cgroup::start_unit`].
    pub fn create(&self, resources: Option<&LinuxResources>) -> Result<(Cgroup, Vec<String>)> {
        let mut cgroup = Cgroup::handle(self, open_root()?);
        if self.is_unit() {
            return Ok((cgroup, Vec::new()));
        }
        let mut made = Vec::new();
        let result = cgroup.make(resources, &mut made);
        if result.is_err() {
            for path in made.iter().rev() {
                // The error that led here says more than one from cleaning up.
                let _ = Node::below(cgroup.root, path).rmdir();
            }
        }
        let warnings = result.with_context(|| cgroup.cannot_make())?;
        Ok((cgroup, warnings))
    }

    /// Makes as much of the cgroup as a process is cloned into. The rest can be made while that
    /// process makes its mounts: [`Cgroup::complete`].
    ///
    /// On failure, of that too, the caller destroys the cgroup.
    pub fn begin(&self, resources: Option<&LinuxResources>) -> Result<(Cgroup, Unfinished)> {
        // Who has few rights may have to go without a cgroup, which shows at the last hierarchy.
        if self.is_unit() || unprivileged() {
            let (cgroup, warnings) = self.create(resources)?;
            let done = Some(warnings);
            return Ok((cgroup, Unfinished { new: false, available: String::new(), done }));
        }
        let mut cgroup = Cgroup::handle(self, open_root()?);
        let begun = (|| {
            let new = cgroup.make_in(Version::V2, &mut Vec::new())?;
            let available = cgroup.open_unified(resources)?;
            if cgroup.location.is_unified() {
                cgroup.check_not_frozen()?;
            }
            anyhow::Ok(Unfinished { new, available, done: None })
        })();
        let unfinished = begun.with_context(|| cgroup.cannot_make())?;
        Ok((cgroup, unfinished))
    }
}

impl Location {
    /// Finds out, without making anything, whether a user without privileges may make the cgroup,
    /// if config.json needs one.
    pub fn check_rights(&self, resources: Option<&LinuxResources>) -> Result<()> {
        let needed = resources::needed_controllers(resources);
        if !unprivileged() || self.is_unit() || self.optional && needed.is_empty() {
            return Ok(());
        }
        let root = open_root()?;
        for hierarchy in &self.hierarchies {
            let path = hierarchy.path(&self.path, hierarchy.present.min(self.path.len() - 1));
            if Node::below(root, &path).is_writable() {
                continue;
            }
            match self.optional {
                true => bail!("linux.resources: {}", self.no_rights(Errno::EACCES)),
                false => return Err(mkdir_error(&path, Errno::EACCES)),
            }
        }
        Ok(())
    }

    fn no_rights(&self, errno: Errno) -> String {
        let how = match self.is_unified() {
            true => {
                "start the runtime in a delegated cgroup (systemd-run --user --scope -p Delegate=yes)"
            }
            false => {
                "have root make a cgroup of cgroup v1 for this user in each hierarchy (mkdir, chown -R) and name one below it in linux.cgroupsPath"
            }
        };
        format!(
            "this user may not make cgroups here ({errno}): {how}, or take the limit out of config.json"
        )
    }
}

impl Cgroup {
    /// Makes the cgroup in the hierarchies of v1, of which the kernel takes its time for each, and
    /// applies all limits but the device rules, if these are still to be applied; warnings as of
    /// [`Location::create`].
    pub fn complete(
        &mut self,
        unfinished: Unfinished,
        resources: Option<&LinuxResources>,
    ) -> Result<(Option<Unrestricted>, Vec<String>)> {
        let Unfinished { mut new, available, done } = unfinished;
        if let Some(warnings) = done {
            return Ok((None, warnings));
        }
        let mut complete = || {
            if !self.location.is_unified() {
                new &= self.make_in(Version::V1, &mut Vec::new())?;
                self.check_not_frozen()?;
            }
            self.apply_limits_at_last(resources, &available)
        };
        let warnings = complete().with_context(|| self.cannot_make())?;
        Ok((Some(Unrestricted { new }), warnings))
    }

    /// Applies the device rules after [`Cgroup::complete`], before a program may run in the cgroup.
    pub fn restrict_devices(
        &self,
        unrestricted: &Unrestricted,
        resources: Option<&LinuxResources>,
    ) -> Result<()> {
        self.apply_devices(device_rules(resources), unrestricted.new)
            .with_context(|| self.cannot_make())
    }

    fn cannot_make(&self) -> String {
        format!("cannot make the container's cgroup {}", self.shown())
    }

    /// `made` gets the paths of the directories made, in their order.
    fn make(
        &mut self,
        resources: Option<&LinuxResources>,
        made: &mut Vec<String>,
    ) -> Result<Vec<String>> {
        let mut new = true;
        for version in [Version::V2, Version::V1] {
            match (self.make_in(version, made), self.location.optional && unprivileged()) {
                (Ok(all_new), _) => new &= all_new,
                (Err(error), true) => return self.go_without(resources, error, made),
                (Err(error), false) => return Err(error),
            }
        }
        self.set_up(resources, new)
    }

    /// Makes the cgroup in the hierarchies of one version; whether nobody had any of them before.
    fn make_in(&self, version: Version, made: &mut Vec<String>) -> Result<bool> {
        let mut new = true;
        for hierarchy in self.location.hierarchies.iter().filter(|h| h.version == version) {
            let leaf_made = self.make_directories(hierarchy, made)?;
            if !leaf_made {
                new = false;
                check_unused(&self.node(hierarchy))?;
            }
        }
        Ok(new)
    }

    /// Applies all limits to the cgroup, which exists by now. `new`: nobody had it before.
    pub(super) fn set_up(
        &mut self,
        resources: Option<&LinuxResources>,
        new: bool,
    ) -> Result<Vec<String>> {
        let available = self.open_unified(resources)?;
        self.check_not_frozen()?;
        let warnings = self.apply_limits_at_last(resources, &available)?;
        self.apply_devices(device_rules(resources), new)?;
        Ok(warnings)
    }

    /// Opens the cgroup of v2, if there is one, and enables its controllers; returns them.
    fn open_unified(&mut self, resources: Option<&LinuxResources>) -> Result<String> {
        self.open_leaf().with_context(|| format!("cannot open the cgroup {}", self.shown()))?;
        match self.unified_hierarchy().cloned() {
            Some(hierarchy) => self.enable_controllers(&hierarchy, resources),
            None => Ok(String::new()),
        }
    }

    /// Applies all limits, if need be when the files for them have come; returns warnings.
    fn apply_limits_at_last(
        &mut self,
        resources: Option<&LinuxResources>,
        available: &str,
    ) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut applied = self.apply_limits(resources, available, &mut warnings);
        if matches!(&applied, Err(error) if error.downcast_ref() == Some(&Errno::ENOENT)) {
            self.await_files(available);
            warnings.clear();
            applied = self.apply_limits(resources, available, &mut warnings);
        }
        applied?;
        Ok(warnings)
    }

    /// Waits for the files of the controllers in `available`. While another runtime enables one in a
    /// parent that is new, the kernel names it before its files are there; a write that changes
    /// nothing has to wait for the end of that.
    fn await_files(&self, available: &str) {
        let controller = available.split(' ').next().filter(|name| !name.is_empty());
        if let (Some(hierarchy), Some(controller)) = (self.unified_hierarchy(), controller) {
            let parent = self.node_at(hierarchy, self.location.path.len() - 1);
            // Who may not write there gets the error of the missing file again.
            let _ = parent.write("cgroup.subtree_control", &format!("+{controller}"));
        }
    }

    /// Makes the directories that are missing; tells whether the last one was.
    fn make_directories(&self, hierarchy: &Hierarchy, made: &mut Vec<String>) -> Result<bool> {
        let path = &self.location.path;
        let cpuset = hierarchy.has_v1_controller("cpuset");
        let mut depth = hierarchy.present.min(path.len() - 1);
        let mut races = 0;
        loop {
            depth += 1;
            let at = hierarchy.path(path, depth);
            let is_leaf = depth == path.len();
            let new = match Node::below(self.root, &at).mkdir(!is_leaf) {
                Ok(()) => true,
                Err(Errno::EEXIST) => false,
                // The last container in a shared parent has just taken the parent with it.
                Err(Errno::ENOENT) if races < RACES => {
                    races += 1;
                    depth = 0;
                    continue;
                }
                Err(errno) => return Err(mkdir_error(&at, errno)),
            };
            if new {
                made.push(at);
            }
            if is_leaf {
                if cpuset {
                    self.inherit_cpuset(hierarchy, depth, made)?;
                }
                return Ok(new);
            }
            if cpuset && new {
                // What fails here fails at the leaf too, or another runtime has removed this one.
                let _ = self.inherit_cpuset(hierarchy, depth, made);
            }
        }
    }

    /// A user without rights to any cgroup runs the container in their own, if no limit is asked
    /// for: an engine's rootless mode without delegation.
    fn go_without(
        &mut self,
        resources: Option<&LinuxResources>,
        refused: anyhow::Error,
        made: &mut Vec<String>,
    ) -> Result<Vec<String>> {
        let errno = match refused.downcast_ref() {
            Some(errno @ (Errno::EACCES | Errno::EPERM | Errno::EROFS)) => *errno,
            _ => return Err(refused),
        };
        for path in made.drain(..).rev() {
            let _ = Node::below(self.root, &path).rmdir();
        }
        self.absent = Some(self.location.no_rights(errno));
        let mut warnings = Vec::new();
        self.apply_limits(resources, "", &mut warnings)?;
        crate::log::debug(|| {
            format!("no cgroup for the container: may not make {} ({errno})", self.shown())
        });
        Ok(warnings)
    }

    /// In a frozen cgroup, or in a frozen parent's, the container's first process would never run
    /// and the runtime wait for it for ever.
    fn check_not_frozen(&self) -> Result<()> {
        let frozen = match (self.v1_node("freezer"), self.unified()) {
            (Some(node), _) => node.text("freezer.state")? != "THAWED",
            (None, Some(node)) => {
                node.text("cgroup.events")?.lines().any(|line| line == "frozen 1")
            }
            (None, None) => false,
        };
        ensure!(
            !frozen,
            "linux.cgroupsPath: container's cgroup {} is frozen, or a parent of it: thaw it or choose another path",
            self.shown()
        );
        Ok(())
    }

    /// A v1 cpuset starts without CPUs and memory nodes, and takes no process then. Those of the
    /// parent are passed down, from as far up as needed.
    ///
    /// For parents that we made, `cgroup.clone_children` has the kernel do it for what is made
    /// below, without rebuilding the scheduler's domains each time.
    fn inherit_cpuset(
        &self,
        hierarchy: &Hierarchy,
        depth: usize,
        made: &[String],
    ) -> Result<[String; 2]> {
        const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
        let node = self.node_at(hierarchy, depth);
        let cpus = node.text(FILES[0])?;
        let leaf = depth == self.location.path.len();
        let new = made.contains(&hierarchy.path(&self.location.path, depth));
        if leaf && !cpus.is_empty() {
            // Given by clone_children, both of them, or by whoever made the cgroup.
            return Ok([cpus, String::new()]);
        }
        let mems = if new && cpus.is_empty() { String::new() } else { node.text(FILES[1])? };
        let mut values = [cpus, mems];
        if depth == 0 || values.iter().all(|value| !value.is_empty()) {
            return Ok(values);
        }
        let inherited = self.inherit_cpuset(hierarchy, depth - 1, made)?;
        for ((value, inherited), file) in values.iter_mut().zip(inherited).zip(FILES) {
            if value.is_empty() {
                node.write(file, &inherited).with_context(|| {
                    format!("cannot pass {inherited:?} on to {}/{file}", node.path())
                })?;
                *value = inherited;
            }
        }
        if !leaf && new {
            node.write("cgroup.clone_children", "1")
                .with_context(|| format!("cannot set {}/cgroup.clone_children", node.path()))?;
        }
        Ok(values)
    }

    /// Enables controllers for the cgroup in the `cgroup.subtree_control` of all its parents;
    /// returns those that it has then.
    ///
    /// On a v2 host these are all that the host offers, as in runc: engines read memory.current,
    /// pids.current and the like of containers without limits. On a hybrid host it is only what
    /// the limits need, because the numbers are read from v1 there; and in systemd's tree, because
    /// it enables what it knows itself.
    pub(super) fn enable_controllers(
        &mut self,
        hierarchy: &Hierarchy,
        resources: Option<&LinuxResources>,
    ) -> Result<String> {
        let hybrid = self.location.hierarchies.len() > 1;
        let sparing = hybrid || self.location.is_unit();
        let mut needed: Vec<&str> = resources::needed_controllers(resources)
            .into_iter()
            .filter(|(v1, _)| self.v1_node(v1).is_none())
            .map(|(_, v2)| v2)
            .collect();
        let files = resources.and_then(|resources| resources.unified().as_ref());
        needed.extend(
            files.iter().flat_map(|files| files.keys()).filter_map(|file| file.split('.').next()),
        );
        if hybrid && needed.is_empty() {
            return Ok(String::new());
        }
        let leaf = self.node(hierarchy);
        let available = leaf.text("cgroup.controllers")?;
        let offered = self.node_at(hierarchy, 0).text("cgroup.controllers")?;
        let mut wanted: Vec<&str> =
            offered.split_whitespace().filter(|name| !sparing || needed.contains(name)).collect();
        // In a tree that was used before nothing is left to do.
        if wanted.iter().all(|name| available.split(' ').any(|have| have == *name)) {
            return Ok(available);
        }
        let mut notes = Vec::new();
        for depth in 0..self.location.path.len() {
            enable_in(&self.node_at(hierarchy, depth), &mut wanted, &mut notes)?;
        }
        let kind = leaf.text("cgroup.type")?;
        if kind == "domain invalid" || kind == "threaded" {
            bail!(
                "linux.cgroupsPath: {} can't hold the processes of a container, because a parent is a threaded cgroup: choose another path",
                leaf.path()
            );
        }
        let available = leaf.text("cgroup.controllers")?;
        self.not_enabled = notes;
        Ok(available)
    }
}

/// A cgroup that was there before must not hold someone else's processes.
pub(super) fn check_unused(node: &Node) -> Result<()> {
    let count = super::processes::all_below(node)?.len();
    ensure!(
        count == 0,
        "linux.cgroupsPath: container's cgroup is not empty: {count} process(es) found in {}: choose another path, or end them first",
        node.path()
    );
    Ok(())
}

/// Enables what is not enabled yet; what can't be is taken off `wanted`, with a note why.
fn enable_in(node: &Node, wanted: &mut Vec<&str>, notes: &mut Vec<String>) -> Result<()> {
    const FILE: &str = "cgroup.subtree_control";
    let enabled = node.text(FILE)?;
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|name| !enabled.split(' ').any(|have| have == *name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if holds_processes(node)? {
        missing.iter().for_each(|name| give_up(node, name, Errno::EBUSY, wanted, notes));
        return Ok(());
    }
    let all: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    let Err(refused) = node.write(FILE, &all.join(" ")) else {
        return Ok(());
    };
    // The kernel takes all or none: one by one shows which it is that it does not take, unless
    // the reason is the cgroup.
    let whole = matches!(refused, Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EOPNOTSUPP);
    for name in missing {
        let result = if whole { Err(refused) } else { node.write(FILE, &format!("+{name}")) };
        if let Err(errno) = result {
            give_up(node, name, errno, wanted, notes);
        }
    }
    Ok(())
}

/// Whether a cgroup other than the root has processes itself. It can't be the parent of cgroups
/// with controllers then; worse, enabling only such as can be threaded (cpu, pids) would be taken
/// as the wish to make it a threaded one, which can't be undone.
fn holds_processes(node: &Node) -> Result<bool> {
    match node.read("cgroup.type") {
        // The root of the whole tree has no type and is free to have both.
        Err(Errno::ENOENT) => Ok(false),
        // It has no such list, and refuses controllers by itself.
        Ok(kind) if kind == "threaded" => Ok(false),
        Ok(_) => Ok(!node.text("cgroup.procs")?.is_empty()),
        Err(errno) => {
            Err(errno).with_context(|| format!("cannot read {}/cgroup.type", node.path()))
        }
    }
}

fn give_up(node: &Node, name: &str, errno: Errno, wanted: &mut Vec<&str>, notes: &mut Vec<String>) {
    wanted.retain(|wanted| *wanted != name);
    let hint = match errno {
        Errno::EBUSY => {
            ", because it holds processes itself: move them into a cgroup below it, or choose another linux.cgroupsPath"
        }
        Errno::EOPNOTSUPP => ", because it is a threaded cgroup: choose another linux.cgroupsPath",
        Errno::EACCES | Errno::EPERM | Errno::EROFS => {
            ", because it is not ours: ask for its delegation (systemd: Delegate=yes)"
        }
        _ => "",
    };
    notes.push(format!("{name} could not be enabled in {}{hint} ({errno})", node.path()));
}

fn mkdir_error(path: &str, errno: Errno) -> anyhow::Error {
    let hint = match errno {
        Errno::EACCES | Errno::EPERM => {
            ": this user may not make cgroups there: leave linux.cgroupsPath out, name a delegated cgroup, or run as root"
        }
        Errno::EROFS => ": the cgroup file system is mounted read-only",
        Errno::EAGAIN => ": cgroup.max.descendants or cgroup.max.depth of a parent is reached",
        Errno::ENAMETOOLONG => ": a name may have 255 bytes",
        Errno::ENOSPC => ": the kernel has run out of cgroups",
        _ => "",
    };
    anyhow::Error::new(errno)
        .context(format!("linux.cgroupsPath: cannot make {}/{path}{hint}", super::ROOT))
}

impl Cgroup {
    /// The version and the node of a controller, or an error for the property that needs it.
    pub(super) fn controller(
        &self,
        v1: &str,
        v2: &str,
        available: &str,
        property: &str,
    ) -> Result<(Version, Node<'_>)> {
        if let Some(node) = self.v1_node(v1) {
            return Ok((Version::V1, node));
        }
        match self.unified() {
            Some(node) if available.split(' ').any(|name| name == v2) => Ok((Version::V2, node)),
            _ => Err(self.missing(v2, property)),
        }
    }

    fn missing(&self, controller: &str, property: &str) -> anyhow::Error {
        let why = if let Some(why) = &self.absent {
            why.clone()
        } else if self.unified_hierarchy().is_some() && self.leaf.is_none() {
            format!("the cgroup {} is gone", self.shown())
        } else if let Some(note) =
            self.not_enabled.iter().find(|note| note.split(' ').next() == Some(controller))
        {
            note.clone()
        } else if self.location.hierarchies.iter().any(|hierarchy| hierarchy.version == Version::V1)
        {
            format!("it is neither mounted in {} nor offered by the unified hierarchy", super::ROOT)
        } else {
            let offered = self
                .unified_hierarchy()
                .and_then(|hierarchy| self.node_at(hierarchy, 0).text("cgroup.controllers").ok());
            match offered {
                Some(offered) if offered.split(' ').any(|name| name == controller) => {
                    format!(
                        "it is not enabled for {} in the cgroup.subtree_control of its parents",
                        self.shown()
                    )
                }
                offered => format!("the host offers only: {}", offered.unwrap_or_default()),
            }
        };
        anyhow::anyhow!(
            "{property} needs the cgroup controller {controller:?}, which is not available here: {why}"
        )
    }
}

fn device_rules(resources: Option<&LinuxResources>) -> &[LinuxDeviceCgroup] {
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}
