//! Mounting layers over each other with overlayfs.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;
use ultari::sys::mount::{FsContext, attach};

/// As long may a value of `fsconfig(2)` be, and the options of `mount(2)` together.
const MAX_VALUE: usize = 255;
const MAX_OPTIONS: usize = 4095;

/// A layer's own attributes never say where its files are: such were not unpacked, and what a
/// container writes must be found by name when it is committed.
const OPTIONS: [(&CStr, &CStr); 3] =
    [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off"), (c"index", c"off")];

/// Mounts at `target`, in the caller's mount namespace; the uppermost of `lower` comes first.
///
/// # Errors
/// Those of overlayfs, with what it says itself.
pub fn mount(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<()> {
    let context = || format!("mount overlayfs at {}", target.display());
    let folders = Folders::open(lower, upper, work).with_context(context)?;
    let target_fd = folder(target)?;
    match mount_by_parts(&folders) {
        Ok(Some(mount)) => attach(&mount, &target_fd).context("move_mount"),
        // Linux before 6.8 takes all of them only as one list.
        Ok(None) => mount_by_list(&folders, &target_fd),
        Err(error) => Err(error),
    }
    .with_context(context)
}

/// Names by which the kernel finds the folders. They are short whatever the path to them is.
struct Folders {
    lower: Vec<CString>,
    upper: CString,
    work: CString,
    /// What those names need.
    _open: Vec<OwnedFd>,
}

impl Folders {
    fn open(lower: &[PathBuf], upper: &Path, work: &Path) -> Result<Self> {
        let mut open = Vec::new();
        let mut name = |path: &Path| -> Result<CString> {
            // What is mounted shows these names: the path is better to read, if it can be used.
            let bytes = path.as_os_str().as_bytes();
            let is_plain =
                path.is_absolute() && !bytes.iter().any(|byte| matches!(byte, b'\\' | b':' | b','));
            if bytes.len() <= MAX_VALUE && is_plain {
                return Ok(CString::new(bytes)?);
            }
            open.push(folder(path)?);
            by_descriptor(&open[open.len() - 1])
        };
        Ok(Self {
            lower: lower.iter().map(|path| name(path)).collect::<Result<_>>()?,
            upper: name(upper)?,
            work: name(work)?,
            _open: open,
        })
    }
}

/// Nothing if this kernel can't do it so.
fn mount_by_parts(folders: &Folders) -> Result<Option<OwnedFd>> {
    let overlay = FsContext::open(c"overlay").context("fsopen: this kernel has no overlayfs")?;
    let complain = |what: &str, errno: Errno| {
        let said = overlay.complaint().map(|said| format!(" ({said})")).unwrap_or_default();
        Err::<Option<OwnedFd>, _>(anyhow::anyhow!("{what}: {errno}{said}{}", hint(errno)))
    };
    for (number, name) in folders.lower.iter().enumerate() {
        match overlay.set(c"lowerdir+", Some(name)) {
            Err(Errno::EINVAL) if number == 0 => return Ok(None),
            Err(errno) => return complain(&name.to_string_lossy(), errno),
            Ok(()) => {}
        }
    }
    let writable = [(c"upperdir", folders.upper.as_c_str()), (c"workdir", &folders.work)];
    for (key, value) in writable.into_iter().chain(OPTIONS) {
        if let Err(errno) = overlay.set(key, Some(value)) {
            return complain(
                &format!("{}={}", key.to_string_lossy(), value.to_string_lossy()),
                errno,
            );
        }
    }
    if let Err(errno) = overlay.create() {
        return complain("fsconfig", errno);
    }
    match overlay.mount(0) {
        Ok(mount) => Ok(Some(mount.into())),
        Err(errno) => complain("fsmount", errno),
    }
}

/// The older way has room for one page: there all names are those of descriptors.
fn mount_by_list(folders: &Folders, target: &OwnedFd) -> Result<()> {
    let mut open = Vec::new();
    let mut short = |name: &CStr| -> Result<String> {
        open.push(folder(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())))?);
        Ok(by_descriptor(&open[open.len() - 1])?.into_string()?)
    };
    let lower: Vec<String> = folders.lower.iter().map(|name| short(name)).collect::<Result<_>>()?;
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        short(&folders.upper)?,
        short(&folders.work)?
    );
    for (key, value) in OPTIONS {
        options += &format!(",{}={}", key.to_str()?, value.to_str()?);
    }
    ensure!(
        options.len() <= MAX_OPTIONS,
        "{} layers are too many for this kernel; from Linux 6.8 on there may be 500",
        lower.len()
    );
    let target = by_descriptor(target)?;
    let (name, flags) = (Some("overlay"), MsFlags::empty());
    match nix::mount::mount(name, target.as_c_str(), name, flags, Some(options.as_str())) {
        Ok(()) => Ok(()),
        Err(errno) => bail!("mount: {errno}{}", hint(errno)),
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EINVAL | Errno::EOPNOTSUPP => {
            ": is the --root folder itself on overlayfs, on a network or without extended attributes?"
        }
        _ => "",
    }
}

fn folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

fn by_descriptor(folder: &OwnedFd) -> Result<CString> {
    Ok(CString::new(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()))?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Lower layers that each have a file of their own and one that all have, mounted by `mount`.
    fn stacked(count: usize, depth: &str, mount: impl Fn(&Folders, &Path) -> Result<()> + Sync) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let base = dir.path().join(depth);
        let folder = |name: String| {
            fs::create_dir_all(base.join(&name)).unwrap();
            base.join(name)
        };
        let lower: Vec<PathBuf> = (0..count).map(|n| folder(format!("layer-{n:061}"))).collect();
        for (number, path) in lower.iter().enumerate() {
            fs::write(path.join(format!("own-{number}")), "x").unwrap();
            fs::write(path.join("common"), number.to_string()).unwrap();
        }
        let [upper, work, target] = ["upper", "work", "target"].map(|name| folder(name.into()));
        // A mount namespace is a thread's own only once it is unshared.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                mount(&Folders::open(&lower, &upper, &work).unwrap(), &target).unwrap();
                assert_eq!(fs::read_dir(&target).unwrap().count(), count + 1);
                assert_eq!(fs::read_to_string(target.join("common")).unwrap(), "0");
                fs::write(target.join("new"), "").unwrap();
                assert!(upper.join("new").exists());
            });
        });
        assert!(!target.join("common").exists());
    }

    fn by_parts(folders: &Folders, target: &Path) -> Result<()> {
        let mount = mount_by_parts(folders)?.expect("this kernel knows lowerdir+");
        Ok(attach(&mount, &folder(target)?)?)
    }

    #[test]
    fn many_layers_are_mounted() {
        stacked(200, "", by_parts);
    }

    #[test]
    fn many_layers_are_mounted_by_kernels_that_want_a_list() {
        stacked(150, "", |folders, target| mount_by_list(folders, &folder(target)?));
    }

    #[test]
    fn layers_are_found_below_long_and_odd_paths() {
        let depth = format!("{}/a:b,c\\d/{}", "long".repeat(50), "longer".repeat(30));
        stacked(3, &depth, by_parts);
        stacked(3, &depth, |folders, target| mount_by_list(folders, &folder(target)?));
    }
}
