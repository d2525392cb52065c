//! From an overlay's upper folder to the tar archive of a layer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};
use tar::{Builder, EntryType, Header};

const OVERLAY: &[u8] = b"trusted.overlay.";
const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// Writes what is in the upper folder of an overlay mount as the image-spec wants layers: what is
/// gone is a file `.wh.NAME`. Sockets are left out, as they are of running programs.
///
/// # Errors
/// Those of reading the folder, with the path, and of writing.
pub fn write_layer(upper: &Path, to: impl Write) -> Result<()> {
    let mut writer = Writer { archive: Builder::new(to), links: HashMap::new() };
    writer.folder(upper, Path::new(""))?;
    writer.archive.into_inner().context("write")?.flush().context("write")
}

struct Writer<W: Write> {
    archive: Builder<W>,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Writer<W> {
    fn folder(&mut self, folder: &Path, name: &Path) -> Result<()> {
        let context = || format!("read {}", folder.display());
        let mut names = fs::read_dir(folder)
            .with_context(context)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .with_context(context)?;
        names.sort();
        if xattr::get(folder, OVERLAY_OPAQUE).with_context(context)?.as_deref() == Some(b"y") {
            self.whiteout(&name.join(".wh..wh..opq"))?;
        }
        for entry in names {
            let (path, name) = (folder.join(&entry), name.join(&entry));
            self.entry(&path, &name).with_context(|| format!("add {}", path.display()))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path) -> Result<()> {
        let found = fs::symlink_metadata(path)?;
        let kind = found.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        if kind.is_char_device() && found.rdev() == 0 {
            let mut gone = OsStr::new(".wh.").to_owned();
            gone.push(name.file_name().unwrap_or_default());
            return self.whiteout(&name.with_file_name(gone));
        }
        let mut header = header(&found);
        if !kind.is_dir() && found.nlink() > 1 {
            if let Some(first) = self.links.get(&(found.dev(), found.ino())) {
                header.set_entry_type(EntryType::Link);
                return Ok(self.archive.append_link(&mut header, name, first)?);
            }
            self.links.insert((found.dev(), found.ino()), name.to_owned());
        }
        self.extended(path, &found)?;
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(path)?;
            return Ok(self.archive.append_link(&mut header, name, target)?);
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.len());
            // A file that grows meanwhile is cut, one that shrinks is an error of the next header.
            let content = io::Read::take(File::open(path)?, found.len());
            return Ok(self.archive.append_data(&mut header, name, content)?);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            let mut named = name.as_os_str().to_owned();
            named.push("/");
            self.archive.append_data(&mut header, named, io::empty())?;
            return self.folder(path, name);
        }
        header.set_entry_type(match kind {
            _ if kind.is_char_device() => EntryType::Char,
            _ if kind.is_block_device() => EntryType::Block,
            _ => EntryType::Fifo,
        });
        header.set_device_major(u32::try_from(major(found.rdev()))?)?;
        header.set_device_minor(u32::try_from(minor(found.rdev()))?)?;
        Ok(self.archive.append_data(&mut header, name, io::empty())?)
    }

    fn whiteout(&mut self, name: &Path) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(0);
        Ok(self.archive.append_data(&mut header, name, io::empty())?)
    }

    /// What a header has no field for: attributes, and parts of seconds.
    fn extended(&mut self, path: &Path, found: &Metadata) -> Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if found.mtime_nsec() != 0 && found.mtime() >= 0 {
            let time = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
            records.push(("mtime".to_owned(), time.into_bytes()));
        }
        for key in xattr::list(path)? {
            if key.as_bytes().starts_with(OVERLAY) {
                continue;
            }
            let Some(name) = key.to_str() else { continue };
            if let Some(value) = xattr::get(path, &key)? {
                records.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        Ok(self.archive.append_pax_extensions(records)?)
    }
}

fn header(found: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(found.mode() & 0o7777);
    header.set_uid(found.uid().into());
    header.set_gid(found.gid().into());
    // Before 1970 it wraps, which base-256 fields read back as what it was.
    header.set_mtime(found.mtime() as u64);
    header.set_size(0);
    header
}
