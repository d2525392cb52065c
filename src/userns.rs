//! User namespaces: writing their id maps, with newuidmap(1) and newgidmap(1) where the caller has
//! no right to, and saying why the kernel refuses one.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use caps::Capability;
use nix::errno::Errno;
use oci_spec::runtime::LinuxNamespaceType as Ns;

use crate::procfs::Proc;
use crate::security::capabilities::have;
use crate::spec::Namespaces;
use crate::spec::namespace::IdMapping;
use crate::sys;

/// Whether this process is in a user namespace other than the host's, which maps all ids. Who has
/// asked once gets the same answer ever after, and after a fork: whoever goes into a user namespace
/// of the container's later knows that without asking.
pub fn is_inside() -> bool {
    static INSIDE: OnceLock<bool> = OnceLock::new();
    *INSIDE.get_or_init(look_inside)
}

fn look_inside() -> bool {
    /// The inode of the first user namespace (Linux: include/linux/proc_ns.h, PROC_USER_INIT_INO).
    const FIRST: u64 = 0xEFFF_FFFD;
    if nix::sys::stat::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == FIRST) {
        return false;
    }
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    !std::fs::read_to_string("/proc/self/uid_map").is_ok_and(whole)
}

/// What differs between the maps of users and of groups.
struct Kind {
    file: &'static str,
    property: &'static str,
    helper: &'static str,
    /// Where the administrator says which ids the helper may map for whom.
    ranges: &'static str,
    /// The caller's own id, which it may map by itself.
    own: u32,
}

impl Kind {
    fn user() -> Self {
        let own = nix::unistd::geteuid().as_raw();
        let (file, property) = ("uid_map", "uidMappings");
        Self { file, property, helper: "newuidmap", ranges: "/etc/subuid", own }
    }

    fn group() -> Self {
        let own = nix::unistd::getegid().as_raw();
        let (file, property) = ("gid_map", "gidMappings");
        Self { file, property, helper: "newgidmap", ranges: "/etc/subgid", own }
    }

    fn without_helper(&self) -> String {
        format!(
            "a user without privileges can map only one id, its own ({}); for more, {} is needed, \
             and it is not on the PATH (Debian: apt install uidmap; Fedora: dnf install \
             shadow-utils)",
            self.own, self.helper
        )
    }

    /// The one mapping that needs no privilege (user_namespaces(7)).
    fn is_own(&self, mapping: &IdMapping) -> bool {
        mapping.size == 1 && mapping.host == self.own
    }
}

/// Writes the id maps of process `pid`, which is in a new user namespace. `owner` is the part of
/// config.json that has the mappings.
///
/// # Errors
/// When the kernel or the helper refuses a map: what the administrator can do about it.
pub fn write_maps(
    owner: &str,
    uid_mappings: &[IdMapping],
    gid_mappings: &[IdMapping],
    proc: &Proc,
    pid: i32,
) -> Result<()> {
    let alone = matches!(gid_mappings, [mapping] if Kind::group().is_own(mapping));
    if alone && !have(Capability::CAP_SETGID) {
        // Who may not change its groups may map its own one.
        proc.write(&format!("{pid}/setgroups"), "deny").context("forbid setgroups")?;
    }
    write_map(owner, &Kind::user(), uid_mappings, proc, pid)?;
    write_map(owner, &Kind::group(), gid_mappings, proc, pid)
}

fn write_map(
    owner: &str,
    kind: &Kind,
    mappings: &[IdMapping],
    proc: &Proc,
    pid: i32,
) -> Result<()> {
    let property = format!("{owner}.{}", kind.property);
    let line = |m: &IdMapping| format!("{} {} {}\n", m.container, m.host, m.size);
    let lines: String = mappings.iter().map(line).collect();
    match proc.write(&format!("{pid}/{}", kind.file), &lines) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) if !nix::unistd::geteuid().is_root() => {
            ask_helper(&property, kind, mappings, pid)
        }
        Err(errno) => {
            let hint = match errno {
                Errno::EPERM => {
                    ": has this process CAP_SETUID and CAP_SETGID, and are the host ids mapped in \
                     its own user namespace (/proc/self/uid_map and gid_map)?"
                }
                Errno::EINVAL => ": do mappings overlap?",
                _ => "",
            };
            Err(errno).with_context(|| format!("{property}: set the map{hint}"))
        }
    }
}

/// Has the set-uid program write the map.
fn ask_helper(property: &str, kind: &Kind, mappings: &[IdMapping], pid: i32) -> Result<()> {
    let helper = kind.helper;
    let mut command = Command::new(helper);
    command.arg(pid.to_string()).stdin(Stdio::null());
    for mapping in mappings {
        command.args([mapping.container, mapping.host, mapping.size].map(|n| n.to_string()));
    }
    sys::process::spawn_unblocked(&mut command);
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{property}: {}", kind.without_helper())
        }
        other => other.with_context(|| format!("{property}: run {helper}"))?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().replace('\n', "; ");
    let advice = match nix::sys::prctl::get_no_new_privs().unwrap_or(false) {
        true => "a set-uid program can't help a process that has no_new_privs".to_owned(),
        false => wanted_ranges(kind, mappings),
    };
    bail!("{property}: {helper} refuses ({}): {advice}", said)
}

/// What must be in /etc/subuid or /etc/subgid, in the words of subuid(5).
fn wanted_ranges(kind: &Kind, mappings: &[IdMapping]) -> String {
    let user = crate::container::user_name(nix::unistd::geteuid().as_raw());
    let foreign = mappings.iter().filter(|mapping| !kind.is_own(mapping));
    let lines: Vec<_> = foreign.map(|m| format!("\"{user}:{}:{}\"", m.host, m.size)).collect();
    let (ranges, helper, lines) = (kind.ranges, kind.helper, lines.join(" and "));
    format!("{ranges} must allow it by {lines}, each on a line, and {helper} be set-uid root")
}

/// Says what to do where the kernel refused to clone a process into `namespaces` and, if
/// `into_cgroup`, into a cgroup.
pub fn explain_clone(errno: Errno, namespaces: &Namespaces, into_cgroup: bool) -> anyhow::Error {
    let new_user = namespaces.is_new(Ns::User);
    let hint = match errno {
        Errno::EPERM | Errno::EACCES if new_user && is("kernel/unprivileged_userns_clone", "0") => {
            ": only root may make user namespaces here; the sysctl \
             kernel.unprivileged_userns_clone=1 lets everybody"
        }
        Errno::EPERM | Errno::EACCES if new_user && restricted_by_apparmor() => APPARMOR,
        Errno::EACCES | Errno::ENOENT if into_cgroup => {
            ": moving a process needs the right to write to cgroup.procs of the common parent of \
             the runtime's own cgroup and the container's: start the runtime in a delegated \
             cgroup (systemd-run --user --scope -p Delegate=yes)"
        }
        Errno::EPERM | Errno::EACCES if new_user => {
            ": user namespaces are forbidden to this process, by a security module, a seccomp \
             filter or because it is in a chroot"
        }
        Errno::ENOSPC | Errno::EUSERS if new_user && is("user/max_user_namespaces", "0") => {
            ": user namespaces are switched off by the sysctl user.max_user_namespaces=0"
        }
        Errno::ENOSPC | Errno::EUSERS => {
            ": a limit of the number of namespaces is reached (sysctl user.max_*_namespaces), or \
             32 levels of them"
        }
        _ => "",
    };
    anyhow!(errno).context(format!("clone the container's init (clone3){hint}"))
}

const APPARMOR: &str = ": AppArmor takes the rights of user namespaces from programs without a \
     profile (sysctl kernel.apparmor_restrict_unprivileged_userns=1): give the runtime a profile \
     with the rule \"userns,\", or set the sysctl to 0";

/// Adds what to do to an error of a container's init that had rights neither here nor in its new
/// user namespace.
pub fn explain_failure(error: anyhow::Error, namespaces: &Namespaces) -> anyhow::Error {
    let text = format!("{error:#}");
    let denied = text.contains("EPERM") || text.contains("EACCES");
    match denied && namespaces.is_new(Ns::User) && restricted_by_apparmor() {
        true if !text.contains(APPARMOR) => anyhow!("{text}{APPARMOR}"),
        _ => error,
    }
}

/// Ubuntu's restriction: the namespace is made, but its root has no capabilities.
fn restricted_by_apparmor() -> bool {
    !have(Capability::CAP_SYS_ADMIN) && is("kernel/apparmor_restrict_unprivileged_userns", "1")
}

fn is(sysctl: &str, value: &str) -> bool {
    let text = std::fs::read_to_string(Path::new("/proc/sys").join(sysctl));
    text.is_ok_and(|text| text.trim() == value)
}

/// Refuses mappings that need a helper which is not there.
///
/// # Errors
/// Names the property and the helper.
pub fn check_helpers(namespaces: &Namespaces) -> Result<()> {
    if !namespaces.is_new(Ns::User) || nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let lists = [&namespaces.uid_mappings, &namespaces.gid_mappings];
    for (kind, list) in [Kind::user(), Kind::group()].iter().zip(lists) {
        let alone = matches!(&list[..], [mapping] if kind.is_own(mapping));
        if !alone && !std::env::split_paths(&path).any(|folder| folder.join(kind.helper).is_file())
        {
            bail!("linux.{}: {}", kind.property, kind.without_helper());
        }
    }
    Ok(())
}
