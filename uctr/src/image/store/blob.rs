//! Blobs: how they come into the store.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::Store;
use crate::image::digest::{self, Hasher};
use crate::image::lock;

/// A blob that is being written. What a cut connection left is gone on with.
#[derive(Debug)]
pub struct Partial {
    /// Locked; its name is `path`.
    file: File,
    path: PathBuf,
    /// What it becomes.
    blob: PathBuf,
    expected: Descriptor,
    hasher: Hasher,
    offset: u64,
    /// Somebody else completed it meanwhile.
    there: bool,
}

impl Store {
    /// Whether the blob is there, whole.
    ///
    /// # Errors
    /// When it can't be told.
    pub fn has(&self, blob: &Descriptor) -> Result<bool> {
        let path = self.blob_path(blob.digest());
        match fs::metadata(&path) {
            Ok(found) => Ok(found.len() == blob.size()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
        }
    }

    /// Opens a blob that is there.
    ///
    /// # Errors
    /// When it is not.
    pub fn blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// Begins to write a blob, or goes on; one caller at a time, others wait. If it was completed
    /// meanwhile, [`Partial::offset`] is its size and there is nothing left to do but `commit`.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn partial(&self, blob: &Descriptor) -> Result<Partial> {
        let hasher = Hasher::like(blob.digest())?;
        let name = blob.digest().to_string().replace(':', "-");
        let path = self.ingest().join(name);
        let file = lock::exclusive(&path)?;
        let there = self.has(blob)?;
        let mut partial = Partial {
            file,
            blob: self.blob_path(blob.digest()),
            path,
            expected: blob.clone(),
            hasher,
            offset: if there { blob.size() } else { 0 },
            there,
        };
        if !there {
            partial.resume()?;
        }
        Ok(partial)
    }

    /// Stores a small blob: a manifest, an index or a configuration.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn put(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
        let digest = digest::sha256(bytes);
        let blob = Descriptor::new(MediaType::from(media_type), bytes.len() as u64, digest);
        if !self.has(&blob)? {
            let mut partial = self.partial(&blob)?;
            // Somebody else may have put it there while we waited.
            if !partial.there {
                partial.restart()?;
                partial.write_all(bytes).context("write a blob")?;
            }
            partial.commit()?;
        }
        Ok(blob)
    }

    /// Takes over a finished file of [`Store::ingest`] as the blob of a digest that was worked out
    /// while it was written.
    pub(crate) fn adopt(&self, file: &Path, digest: &Digest) -> Result<()> {
        let blob = self.blob_path(digest);
        File::open(file)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(file, &blob))
            .with_context(|| format!("make {} a blob", file.display()))?;
        lock::sync_folder(blob.parent().expect("blobs are in a folder"))
    }
}

impl Partial {
    /// How many bytes are there already.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Works out the digest of what is there.
    fn resume(&mut self) -> Result<()> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = self
                .file
                .read(&mut buffer)
                .with_context(|| format!("read {}", self.path.display()))?;
            if count == 0 {
                break;
            }
            self.hasher.update(&buffer[..count]);
            self.offset += count as u64;
        }
        if self.offset > self.expected.size() {
            self.restart()?;
        }
        Ok(())
    }

    /// Forgets what is there.
    ///
    /// # Errors
    /// As of ftruncate(2).
    pub fn restart(&mut self) -> Result<()> {
        if !self.there {
            self.file
                .set_len(0)
                .and_then(|()| self.file.seek(SeekFrom::Start(0)))
                .with_context(|| format!("empty {}", self.path.display()))?;
            self.offset = 0;
            self.hasher = Hasher::like(self.expected.digest())?;
        }
        Ok(())
    }

    /// Makes it a blob of the store, if size and digest are those of its descriptor.
    ///
    /// # Errors
    /// If they are not; what is there is then removed.
    pub fn commit(self) -> Result<()> {
        if self.there {
            return self.remove();
        }
        let (digest, size) = (self.expected.digest(), self.expected.size());
        let found = self.hasher.clone().finish();
        if self.offset != size || found != *digest {
            self.remove()?;
            ensure!(
                self.offset == size,
                "{digest}: {} bytes came, but it must have {size}: it was cut off, or it is not what \
                 its manifest says",
                self.offset
            );
            ensure!(
                found == *digest,
                "{digest}: what came has another digest ({found}): it was damaged on its way, or it \
                 is not what its manifest says"
            );
        }
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, &self.blob))
            .with_context(|| format!("make {} a blob", self.path.display()))?;
        lock::sync_folder(self.blob.parent().expect("blobs are in a folder"))
    }

    fn remove(&self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.there {
            return Err(io::Error::other(format!(
                "{}: is there already, nothing of it may be sent again",
                self.expected.digest()
            )));
        }
        if bytes.len() as u64 > self.expected.size() - self.offset {
            return Err(io::Error::other(format!(
                "{}: is longer than the {} bytes of its manifest",
                self.expected.digest(),
                self.expected.size()
            )));
        }
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.offset += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
