//! The floor under every container runtime: what the kernel itself charges for
//! a container like that of `benches/bundle/config.json`.
//!
//! `floor ROOTFS COMMAND [ARG...]` makes the cgroup, does one clone3 with five
//! namespaces, joins the cgroup, makes the config's mounts, pivots, sets the
//! hostname, executes COMMAND and waits for it. It reads no config, resolves no
//! path safely, keeps no state, makes no device, masks nothing and drops
//! nothing: a measuring stick, not a runtime.
//!
//! This is the only place outside `src/sys` with `unsafe`: it must not share the
//! code that it measures.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, execv, pivot_root, sethostname};

/// Where the cgroups lie in each hierarchy.
const CGROUPS: &str = "ultari-bench";

/// The namespaces of the config.
const NAMESPACES: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNS;

/// From linux/sched.h; libc's constant is of a type too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(rootfs), Some(_)) = (args.first(), args.get(1)) else {
        eprintln!("usage: floor ROOTFS COMMAND [ARG...]");
        return ExitCode::from(2);
    };
    match run(Path::new(rootfs), &args[1..]) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("floor: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Runs `command` in a new container on `rootfs`; returns its exit status.
fn run(rootfs: &Path, command: &[String]) -> Result<u8> {
    let hierarchies = Hierarchies::find()?;
    let folders = hierarchies.make_cgroup()?;
    let command: Vec<CString> =
        command.iter().map(|arg| CString::new(arg.as_str())).collect::<Result<_, _>>()?;

    let cgroup = match &hierarchies {
        Hierarchies::V2 => Some(File::open(&folders[0])?),
        Hierarchies::V1(_) => None,
    };
    let status = match clone3(cgroup.as_ref().map(AsRawFd::as_raw_fd))? {
        None => {
            let Err(error) = child(rootfs, &hierarchies, &folders, &command);
            eprintln!("floor: in the container: {error:#}");
            std::process::exit(1);
        }
        Some(pid) => waitpid(pid, None)?,
    };

    for folder in &folders {
        fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    match status {
        WaitStatus::Exited(_, code) => Ok(code as u8),
        other => bail!("the container ended with {other:?}"),
    }
}

/// One clone3 into all namespaces and, on cgroup v2, into the cgroup. Returns
/// `None` in the child.
fn clone3(cgroup: Option<RawFd>) -> Result<Option<Pid>> {
    // SAFETY: clone_args is plain integers, for which all zeroes is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = NAMESPACES as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd as u64;
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: the arguments outlive the call; without CLONE_VM this is a fork,
    // and the process has one thread, so the child may go on as it likes.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) } {
        -1 => Err(io::Error::last_os_error()).context("clone3"),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as i32))),
    }
}

/// The container's side, up to exec.
fn child(
    rootfs: &Path,
    hierarchies: &Hierarchies,
    cgroup: &[PathBuf],
    command: &[CString],
) -> Result<Infallible> {
    if let Hierarchies::V1(_) = hierarchies {
        for folder in cgroup {
            // 0 stands for the process that writes.
            let file = folder.join("cgroup.procs");
            fs::write(&file, "0").with_context(|| format!("write {}", file.display()))?;
        }
    }

    change("/", MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
    bind(rootfs, rootfs, MsFlags::MS_REC)?;
    chdir(rootfs)?;
    mounts(hierarchies, cgroup)?;

    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("detach the old root")?;
    change("/", MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
    chdir("/")?;
    sethostname("bench")?;
    execv(&command[0], command).with_context(|| format!("execute {:?}", command[0]))
}

/// The seven mounts of the config, relative to the working directory.
fn mounts(hierarchies: &Hierarchies, cgroup: &[PathBuf]) -> Result<()> {
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    new("proc", "proc", MsFlags::empty(), "")?;
    let dev = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
    new("tmpfs", "dev", dev, "mode=755,size=65536k")?;
    for folder in ["dev/pts", "dev/shm", "dev/mqueue"] {
        make_folder(Path::new(folder))?;
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let devpts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    new("devpts", "dev/pts", quiet, devpts)?;
    new("tmpfs", "dev/shm", closed, "mode=1777,size=65536k")?;
    new("mqueue", "dev/mqueue", closed, "")?;
    new("sysfs", "sys", closed | MsFlags::MS_RDONLY, "")?;

    let cgroup_flags = closed | MsFlags::MS_RELATIME;
    let Hierarchies::V1(hosts) = hierarchies else {
        return new("cgroup2", "sys/fs/cgroup", cgroup_flags | MsFlags::MS_RDONLY, "");
    };
    // v1 without a cgroup namespace: the container's own folder of each
    // hierarchy, read-only, under the name that the hierarchy has on the host.
    new("tmpfs", "sys/fs/cgroup", cgroup_flags, "mode=755")?;
    for (host, folder) in hosts.iter().zip(cgroup) {
        let name = host.file_name().context("a hierarchy without a name")?;
        let target = Path::new("sys/fs/cgroup").join(name);
        make_folder(&target)?;
        bind(folder, &target, MsFlags::empty())?;
        let read_only = cgroup_flags | MsFlags::MS_RDONLY;
        change(&target, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | read_only)?;
    }
    Ok(())
}

/// The cgroup hierarchies of the host.
enum Hierarchies {
    /// cgroup v2 alone, at /sys/fs/cgroup.
    V2,
    /// The mount points of cgroup v1, with that of v2 where the host is hybrid.
    V1(Vec<PathBuf>),
}

impl Hierarchies {
    fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let points: Vec<PathBuf> = mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (point, kind) = (fields.next()?, fields.next()?);
                matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
            })
            .collect();
        match points.as_slice() {
            [] => bail!("no cgroup hierarchy is mounted"),
            [only] if only == Path::new("/sys/fs/cgroup") => Ok(Self::V2),
            _ => Ok(Self::V1(points)),
        }
    }

    /// Makes the cgroup in each hierarchy; returns its folders.
    fn make_cgroup(&self) -> Result<Vec<PathBuf>> {
        let roots = match self {
            Self::V2 => &[PathBuf::from("/sys/fs/cgroup")][..],
            Self::V1(points) => points,
        };
        let mut folders = Vec::new();
        // Several floors may run at once.
        let name = format!("floor-{}", std::process::id());
        for root in roots {
            let parent = root.join(CGROUPS);
            let folder = parent.join(&name);
            if fs::create_dir(&folder).is_err() {
                DirBuilder::new().recursive(true).create(&parent)?;
                inherit_cpuset(root, &parent)?;
                // Another one may have made the parent meanwhile, but not this.
                make_folder(&folder)?;
            }
            inherit_cpuset(&parent, &folder)?;
            folders.push(folder);
        }
        Ok(folders)
    }
}

/// cgroup v1: no process can join a cpuset whose cpus and mems are unset.
fn inherit_cpuset(parent: &Path, folder: &Path) -> Result<()> {
    // This file is v1's alone; on v2 an unset cpuset means the parent's.
    if !folder.join("cpuset.memory_migrate").exists() {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let to = folder.join(file);
        let value = fs::read(parent.join(file))?;
        fs::write(&to, value).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .with_context(|| format!("make the folder {}", path.display()))
}

/// Mounts a new file system of type `kind` on `target`.
fn new(kind: &str, target: &str, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), flags, Some(data))
        .with_context(|| format!("mount {kind} on {target}"))
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<()> {
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND | flags, none)
        .with_context(|| format!("bind {} on {}", source.display(), target.display()))
}

/// Changes the flags or the propagation of the mount at `target`.
fn change(target: impl AsRef<Path>, flags: MsFlags) -> Result<()> {
    let (target, none) = (target.as_ref(), None::<&str>);
    mount(none, target, none, flags, none)
        .with_context(|| format!("change the mount {}", target.display()))
}
