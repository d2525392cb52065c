//! From a compressed archive to its bytes, in threads of their own: one decompresses, one works out
//! the digest, one writes files.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use oci_spec::image::{Descriptor, Digest};

use crate::image::digest::Hasher;

/// What threads hand on at a time.
const CHUNK: usize = 256 << 10;
/// How many of those may wait.
const WAITING: usize = 16;

/// What deflate can reach at most: a layer that grows more is made to fill disks.
const MAX_RATIO: u64 = 1032;
/// Below this nobody looks at the ratio.
const SMALL: u64 = 256 << 20;

/// What unpacking xz may need, in KiB: `xz -9` makes it 65 MiB, and a hostile archive 4 GiB.
const XZ_MEMORY: u32 = 256 << 10;

type Chunk = Arc<Vec<u8>>;

/// Takes a compression off, whichever is found.
///
/// # Errors
/// When the first bytes can't be read, or show a compression that is not known.
pub fn decompressed<'a>(archive: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut archive = BufReader::with_capacity(CHUNK, archive);
    let start = archive.fill_buf().context("read the archive")?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(archive)),
        // The second is a frame to be skipped, which some tools begin with.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::with_buffer(archive).context("begin with zstd")?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Box::new(XzReader::new_mem_limit(archive, true, XZ_MEMORY))
        }
        [b'B', b'Z', b'h', ..] => Box::new(MultiBzDecoder::new(archive)),
        _ => Box::new(archive),
    })
}

/// The bytes that another thread decompresses.
#[derive(Debug)]
pub struct Chunks {
    receiver: Receiver<Chunk>,
    current: Chunk,
    at: usize,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() {
            // Whoever sends says why it ended.
            let Ok(next) = self.receiver.recv() else { return Ok(&[]) };
            self.current = next;
            self.at = 0;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Lets `write` have what is in the archive of a layer, while its size and digest are checked.
///
/// # Errors
/// Those of `write`, and when the archive is not that of blob and diffID.
pub fn run<T: Send>(
    blob: &Descriptor,
    diff_id: &Digest,
    archive: &mut dyn Read,
    write: impl FnOnce(Chunks) -> Result<T> + Send,
) -> Result<T> {
    let mut hasher = Hasher::like(diff_id)?;
    let mut raw = Limited { inner: archive, left: blob.size() };
    thread::scope(|scope| {
        let (to_writer, receiver) = sync_channel(WAITING);
        let writer =
            scope.spawn(move || write(Chunks { receiver, current: Chunk::default(), at: 0 }));
        let (to_hasher, receiver) = sync_channel::<Chunk>(WAITING);
        let hashing = scope.spawn(move || {
            receiver.iter().for_each(|chunk| hasher.update(&chunk));
            hasher.finish()
        });
        let sent = send(&mut raw, blob, to_writer, to_hasher);
        let panicked = |_| anyhow!("a thread of the unpacking panicked");
        let written = writer.join().map_err(panicked)?;
        let found = hashing.join().map_err(panicked)?;
        // A damaged archive makes both sides fail: what the decompressor says is the reason then.
        sent?;
        let written = written?;
        io::copy(&mut raw, &mut io::sink()).context("read the archive")?;
        ensure!(raw.left == 0, "the archive ends {} bytes too early", raw.left);
        ensure!(
            found == *diff_id,
            "what it unpacks to has another digest ({found}) than the image's configuration says"
        );
        Ok(written)
    })
}

/// Decompresses until the end, or until the writer fails.
fn send(
    raw: &mut Limited,
    blob: &Descriptor,
    to_writer: SyncSender<Chunk>,
    to_hasher: SyncSender<Chunk>,
) -> Result<()> {
    let most = SMALL.max(blob.size().saturating_mul(MAX_RATIO));
    let mut plain = decompressed(raw)?;
    let mut to_writer = Some(to_writer);
    let mut pool: Vec<Chunk> = Vec::new();
    let mut size: u64 = 0;
    loop {
        // Those that both others are done with are ours again.
        let mut chunk = pool
            .iter()
            .position(|chunk| Arc::strong_count(chunk) == 1)
            .map_or_else(|| Arc::new(vec![0; CHUNK]), |free| pool.swap_remove(free));
        let bytes = Arc::get_mut(&mut chunk).expect("nobody else has it");
        bytes.resize(CHUNK, 0);
        let count = fill(&mut plain, bytes).context("decompress")?;
        if count == 0 {
            return Ok(());
        }
        bytes.truncate(count);
        size += count as u64;
        ensure!(
            size <= most,
            "its {} bytes unpack to more than {most}: such a layer is only made to fill disks",
            blob.size()
        );
        if to_hasher.send(chunk.clone()).is_err() {
            return Ok(());
        }
        // It leaves when it has seen the archive's end, or an error; the digest is of all bytes.
        if to_writer.as_ref().is_some_and(|writer| writer.send(chunk.clone()).is_err()) {
            to_writer = None;
        }
        pool.push(chunk);
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// No more bytes than were promised.
struct Limited<'a> {
    inner: &'a mut dyn Read,
    left: u64,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other("the archive is longer than its manifest says"))?;
        Ok(count)
    }
}
