//! From an overlay's upper folder to the tar archive of a layer.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::pack::Packer;

/// Writes what is in the upper folder of an overlay mount as the image-spec wants layers: what is
/// gone is a file `.wh.NAME`. A container may change the folder meanwhile: what it puts there is
/// never followed out of it.
///
/// # Errors
/// Those of reading the folder, with the path, and of writing.
pub fn write_layer(upper: &Path, to: impl Write) -> Result<()> {
    let folder = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(upper)
        .with_context(|| format!("open {}", upper.display()))?;
    let mut packer = Packer::layer(to);
    packer.add_content(&folder, Path::new(""))?;
    packer.finish()
}
