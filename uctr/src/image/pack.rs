//! From files to a tar archive, by descriptors: nothing that exchanges names meanwhile can make it
//! read something else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, major, minor};
use tar::{Builder, EntryType, Header};

/// What overlayfs has for itself is of no use elsewhere.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// Of a folder in which nothing of lower layers is left.
const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";

/// Writes files and folders with all that is in them into an archive.
pub struct Packer<W: Write> {
    archive: Builder<W>,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    owner: Option<(u32, u32)>,
    /// What overlayfs has for "this is gone" becomes what layers have for it.
    is_layer: bool,
}

impl<W: Write> std::fmt::Debug for Packer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl<W: Write> Packer<W> {
    /// Writes to here.
    pub fn new(to: W) -> Self {
        Self { archive: Builder::new(to), links: HashMap::new(), owner: None, is_layer: false }
    }

    /// Writes a layer: what is gone is a file `.wh.NAME`.
    pub fn layer(to: W) -> Self {
        Self { is_layer: true, ..Self::new(to) }
    }

    /// Says who owns everything: a user and a group.
    pub fn set_owner(&mut self, owner: Option<(u32, u32)>) {
        self.owner = owner;
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self) -> Result<()> {
        self.archive.into_inner().context("write the archive")?.flush().context("write the archive")
    }

    /// Writes what a descriptor opened with `O_PATH` is, by that name in the archive; of a folder
    /// also what is in it. Sockets are left out, as they are of running programs.
    ///
    /// # Errors
    /// Those of reading, with the name, and of writing.
    pub fn add(&mut self, node: OwnedFd, name: &Path) -> Result<()> {
        self.node(node, name).with_context(|| format!("archive {}", name.display()))
    }

    fn node(&mut self, node: OwnedFd, name: &Path) -> Result<()> {
        let node = File::from(node);
        let found = node.metadata().context("look at it")?;
        let kind = found.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        if self.is_layer && kind.is_char_device() && found.rdev() == 0 {
            let mut gone = OsStr::new(".wh.").to_owned();
            gone.push(name.file_name().unwrap_or_default());
            return self.whiteout(&name.with_file_name(gone));
        }
        let mut header = header(&found);
        if let Some((user, group)) = self.owner {
            header.set_uid(user.into());
            header.set_gid(group.into());
        }
        if !kind.is_dir() && found.nlink() > 1 {
            if let Some(first) = self.links.get(&(found.dev(), found.ino())) {
                header.set_entry_type(EntryType::Link);
                return Ok(self.archive.append_link(&mut header, name, first)?);
            }
            self.links.insert((found.dev(), found.ino()), name.to_owned());
        }
        let readable = kind.is_file() || kind.is_dir();
        self.extended(&found, readable.then(|| by_descriptor(node.as_fd())))?;
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = readlinkat(&node, "").context("read the link")?;
            return Ok(self.archive.append_link(&mut header, name, target)?);
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.len());
            let file = File::open(by_descriptor(node.as_fd())).context("open")?;
            let content = Whole { file, left: found.len() };
            return Ok(self.archive.append_data(&mut header, name, content)?);
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            let mut named = name.as_os_str().to_owned();
            named.push("/");
            self.archive.append_data(&mut header, named, io::empty())?;
            return self.add_content(&node, name);
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

    /// Writes what is in a folder, but not itself.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_content(&mut self, folder: &File, name: &Path) -> Result<()> {
        let mut names = fs::read_dir(by_descriptor(folder.as_fd()))
            .and_then(|entries| {
                entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
            })
            .context("read the folder")?;
        names.sort();
        if self.is_layer
            && xattr::get_deref(by_descriptor(folder.as_fd()), OVERLAY_OPAQUE)?.as_deref()
                == Some(b"y")
        {
            self.whiteout(&name.join(".wh..wh..opq"))?;
        }
        for entry in names {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(folder, entry.as_os_str(), flags, Mode::empty()) {
                Ok(node) => self.add(node, &name.join(&entry))?,
                // Removed meanwhile.
                Err(nix::errno::Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(errno)
                        .with_context(|| format!("open {}", name.join(&entry).display()));
                }
            }
        }
        Ok(())
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
    fn extended(&mut self, found: &Metadata, readable: Option<PathBuf>) -> Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if found.mtime_nsec() != 0 && found.mtime() >= 0 {
            let time = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
            records.push(("mtime".to_owned(), time.into_bytes()));
        }
        if let Some(path) = readable {
            for key in xattr::list_deref(&path).into_iter().flatten() {
                if key.as_bytes().starts_with(OVERLAY) {
                    continue;
                }
                let Some(name) = key.to_str() else { continue };
                if let Some(value) = xattr::get_deref(&path, &key)? {
                    records.push((format!("SCHILY.xattr.{name}"), value));
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        Ok(self.archive.append_pax_extensions(records)?)
    }
}

/// A path by which calls that take no descriptor find exactly this file.
fn by_descriptor(node: BorrowedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(node.as_raw_fd().to_string())
}

/// A file of the size that its header says, also when it grows or shrinks meanwhile.
struct Whole {
    file: File,
    left: u64,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            buffer[..most].fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
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
