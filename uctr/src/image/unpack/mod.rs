//! Layers: from a tar archive to files.

pub mod archive;
pub mod stream;
mod writer;

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::image::{Descriptor, Digest};
use ultari::rootfs::root::Root;

use super::layers::Known;
use archive::Archive;
use writer::Writer;

/// What becomes of the entries that say "this is gone".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They become what overlayfs has for that.
    Overlay,
    /// What lower layers left in the folder is removed.
    Rootfs,
    /// They are files as all others; and nothing that is there gives way to something of another
    /// kind.
    Plain,
}

/// Unpacks one layer into a folder.
///
/// # Errors
/// When the archive is damaged, hostile, or not that of the diffID. What was written until then
/// stays.
pub fn layer(
    folder: &Path,
    kind: Kind,
    blob: &Descriptor,
    diff_id: &Digest,
    archive: &mut dyn Read,
) -> Result<Known> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root =
        open(folder, flags, Mode::empty()).with_context(|| format!("open {}", folder.display()))?;
    let writer = Writer::new(Root::new(root), kind);
    stream::run(blob, diff_id, archive, |chunks| writer.write(&mut Archive::new(chunks)))
}

/// Unpacks an archive that is no layer: `cp`.
///
/// # Errors
/// When the archive is damaged or hostile. What was written until then stays.
pub fn copy(root: Root, archive: impl Read) -> Result<()> {
    let mut archive = Archive::new(std::io::BufReader::with_capacity(1 << 16, archive));
    Writer::new(root, Kind::Plain).write(&mut archive)?;
    Ok(())
}
