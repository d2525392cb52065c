//! What a container changed in its file system: what is in the uppermost layer, compared with those
//! below it.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Container;
use super::files::own_namespace;
use crate::image::layers::Layers;

const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// What the runtime makes to mount on, or to be as docker's containers are.
const MADE: [&str; 7] =
    ["/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"];

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It, or something in it, is another.
    Changed,
    /// It is gone.
    Deleted,
}

impl Change {
    /// Docker's letter.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// All paths that were changed. Takes the caller to a mount namespace of its own, where the layers
/// without the uppermost are mounted.
///
/// # Errors
/// When layers are missing or can't be read.
pub fn changes(container: &Container) -> Result<BTreeMap<PathBuf, Change>> {
    let upper = container.folder().join("upper");
    let mut found = BTreeMap::new();
    if !upper.exists() {
        return Ok(found);
    }
    let scratch = tempfile::tempdir().context("make a temporary folder")?;
    let [empty, work, lower] = ["upper", "work", "lower"].map(|name| scratch.path().join(name));
    own_namespace()?;
    // Overlayfs takes no upper folder that is on an overlay itself.
    let tmpfs = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), scratch.path(), Some("tmpfs"), tmpfs, None::<&str>)
        .context("mount a tmpfs")?;
    for folder in [&empty, &work, &lower] {
        fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let layers = Layers::open(container.paths())?;
    layers.mount(&container.record.layers, &empty, &work, &lower)?;
    Walk { upper: &upper, lower: &lower, found: &mut found }.folder(Path::new(""), true, true)?;
    nix::mount::umount2(&lower, nix::mount::MntFlags::MNT_DETACH).context("unmount")?;
    nix::mount::umount2(scratch.path(), nix::mount::MntFlags::MNT_DETACH).context("unmount")?;
    hide(&mut found);
    Ok(found)
}

struct Walk<'a> {
    upper: &'a Path,
    lower: &'a Path,
    found: &'a mut BTreeMap<PathBuf, Change>,
}

impl Walk<'_> {
    /// Compares a folder of the upper layer. `below` says that there is one below it, too, `merged`
    /// that this one shows through.
    fn folder(&mut self, path: &Path, below: bool, merged: bool) -> Result<()> {
        for entry in names(&self.upper.join(path))? {
            let path = path.join(entry);
            let upper = self.upper.join(&path);
            let Some(now) = look(&upper)? else { continue };
            let before = if below { look(&self.lower.join(&path))? } else { None };
            let kind = now.file_type();
            if kind.is_char_device() && now.rdev() == 0 {
                if before.is_some() {
                    self.note(&path, Change::Deleted);
                }
                continue;
            }
            self.note(&path, if before.is_some() { Change::Changed } else { Change::Added });
            if !kind.is_dir() {
                continue;
            }
            let opaque = xattr::get(&upper, OVERLAY_OPAQUE)
                .with_context(|| format!("read {}", upper.display()))?;
            let merged = merged && opaque.as_deref() != Some(b"y");
            let below = before.is_some_and(|before| before.is_dir());
            self.folder(&path, below, merged)?;
            if below && !merged {
                self.gone(&path)?;
            }
        }
        Ok(())
    }

    /// What lower layers have in a folder, and the upper one hides without saying so.
    fn gone(&mut self, path: &Path) -> Result<()> {
        for entry in names(&self.lower.join(path))? {
            let path = path.join(entry);
            if look(&self.upper.join(&path))?.is_none() {
                self.note(&path, Change::Deleted);
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, change: Change) {
        self.found.insert(Path::new("/").join(path), change);
    }
}

/// Leaves out what the runtime made, and folders that only changed by that.
fn hide(found: &mut BTreeMap<PathBuf, Change>) {
    let mut hidden = false;
    found.retain(|path, change| {
        let made = MADE.iter().any(|made| path == Path::new(made)) && *change != Change::Deleted;
        hidden |= made;
        !made
    });
    let etc = Path::new("/etc");
    let others = found.keys().any(|path| path != etc && path.starts_with(etc));
    if hidden && !others && found.get(etc) == Some(&Change::Changed) {
        found.remove(etc);
    }
}

fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect();
    let names: std::io::Result<Vec<_>> = read();
    match names {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", folder.display())),
    }
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}
