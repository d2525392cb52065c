//! Digests of what streams by.

use std::io::{self, Read, Write};

use anyhow::{Result, bail};
use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

/// Works out a digest.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// `sha256:…`, what everybody uses.
    Sha256(Sha256),
    /// `sha512:…`, the other one that the image-spec has registered.
    Sha512(Sha512),
}

impl Hasher {
    /// For digests of the kind that `like` is.
    ///
    /// # Errors
    /// When its algorithm is not known.
    pub fn like(like: &Digest) -> Result<Self> {
        match like.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Self::Sha256(Sha256::new())),
            DigestAlgorithm::Sha512 => Ok(Self::Sha512(Sha512::new())),
            _ => bail!("{like}: only digests by sha256 and sha512 are known"),
        }
    }

    /// For `sha256:…`.
    #[must_use]
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        let text = match self {
            Self::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Self::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        Digest::try_from(text).expect("an algorithm and hex digits are a digest")
    }
}

/// The `sha256:…` of bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// As lowercase hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Passes on what is read or written, and takes note of size and digest.
#[derive(Debug)]
pub struct Counted<T> {
    inner: T,
    /// Of all that went by.
    pub hasher: Hasher,
    /// How many bytes went by.
    pub size: u64,
}

impl<T> Counted<T> {
    /// Counts from here on, for a `sha256:…`.
    pub fn new(inner: T) -> Self {
        Self { inner, hasher: Hasher::sha256(), size: 0 }
    }

    /// What it was made of, the digest and the size.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, self.hasher.finish(), self.size)
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
