//! Reading tar archives: ustar, PAX and GNU.
//!
//! The crate `tar` knows the fields of a header. The rest is here because it must not be at the
//! archive's mercy: names and extended headers have a limit, values of extended attributes may hold
//! any byte, and sparse files of all kinds are understood.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Of an extended header or a long name. An attribute's value has at most 64 KiB, a path 4 KiB.
const MAX_EXTENDED: u64 = 1 << 20;
/// Of a sparse file.
const MAX_EXTENTS: usize = 1 << 20;

/// One file, folder or link of an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As it is in the archive.
    pub path: PathBuf,
    /// What a link leads to.
    pub link: PathBuf,
    /// What it is.
    pub kind: EntryType,
    /// Permissions.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Of a device.
    pub device: (u32, u32),
    /// How many bytes of it are in the archive.
    pub stored: u64,
    /// A sparse file's size, and where in it those bytes belong: offsets and lengths.
    pub sparse: Option<(u64, Vec<(u64, u64)>)>,
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// An archive that is read once from its start to its end.
#[derive(Debug)]
pub struct Archive<R> {
    reader: R,
    /// Of the current entry's content.
    left: u64,
    /// What follows that, up to a full block.
    padding: u64,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl<R: BufRead> Archive<R> {
    /// Reads from here.
    pub fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    /// The next entry, nothing at the end. What was not read of the last one is skipped.
    ///
    /// # Errors
    /// When it can't be read, or is no tar archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::new();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_content()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size =
                field(&header.as_old().size, header.entry_size()).context("size of an entry")?;
            match header.entry_type() {
                EntryType::XHeader => records = self.extended(size)?,
                // As everybody does: git writes a comment there, nothing else is in use.
                EntryType::XGlobalHeader => drop(self.small(size)?),
                EntryType::GNULongName => long_name = Some(self.small(size)?),
                EntryType::GNULongLink => long_link = Some(self.small(size)?),
                _ => {
                    let path =
                        long_name.map_or_else(|| header.path_bytes().into_owned(), until_nul);
                    let link = long_link.map_or_else(
                        || header.link_name_bytes().unwrap_or_default().into_owned(),
                        until_nul,
                    );
                    let shown = String::from_utf8_lossy(&path).into_owned();
                    return self
                        .entry(&header, size, &records, path, link)
                        .with_context(|| format!("entry {shown:?} of the archive"))
                        .map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        records: &Records,
        path: Vec<u8>,
        link: Vec<u8>,
    ) -> Result<Entry> {
        let record = |key: &str| records.get(key.as_bytes()).filter(|value| !value.is_empty());
        let number = |key: &str| record(key).map(|value| decimal(value)).transpose();
        let kind = match header.entry_type() {
            // Before POSIX folders were files with a slash.
            EntryType::Regular if path.ends_with(b"/") && size == 0 => EntryType::Directory,
            EntryType::Continuous => EntryType::Regular,
            kind => kind,
        };
        let size = number("size")?.unwrap_or(size);
        // A hard link may carry its file's size without its content, and so may others.
        let is_file = matches!(kind, EntryType::Regular | EntryType::GNUSparse);
        self.expect(if is_file { size } else { 0 })?;
        let id = |key: &str, field: io::Result<u64>| -> Result<u32> {
            let id = number(key)?.map_or(field, Ok).with_context(|| key.to_owned())?;
            u32::try_from(id).with_context(|| format!("{key} {id} is too big"))
        };
        let mtime = match record("mtime") {
            Some(value) => timestamp(value)?,
            None => {
                let seconds = field(&header.as_old().mtime, header.mtime()).context("mtime")?;
                // Before 1970 they wrap in base-256 fields.
                (seconds as i64, 0)
            }
        };
        let mode = field(&header.as_old().mode, header.mode().map(u64::from));
        let device = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or(0);
        let mut entry = Entry {
            path: path_of(record("path").cloned().unwrap_or(path)),
            link: path_of(record("linkpath").cloned().unwrap_or(link)),
            kind,
            mode: mode.context("mode")? as u32 & 0o7777,
            uid: id("uid", field(&header.as_old().uid, header.uid()))?,
            gid: id("gid", field(&header.as_old().gid, header.gid()))?,
            mtime,
            device: (device(header.device_major()), device(header.device_minor())),
            stored: self.left,
            sparse: None,
            xattrs: xattrs(records),
        };
        self.sparse(header, records, &mut entry)?;
        Ok(entry)
    }

    /// Reads what is where in a sparse file, which is told in one of five ways.
    fn sparse(&mut self, header: &Header, records: &Records, entry: &mut Entry) -> Result<()> {
        let record = |key: &str| records.get(key.as_bytes());
        let number = |key: &str| record(key).map(|value| decimal(value)).transpose();
        let (size, extents) = if entry.kind == EntryType::GNUSparse {
            entry.kind = EntryType::Regular;
            self.gnu_extents(header)?
        } else if record("GNU.sparse.major").is_some_and(|major| major == b"1") {
            let size = number("GNU.sparse.realsize")?.context("GNU.sparse.realsize is missing")?;
            (size, self.leading_extents()?)
        } else if let Some(map) = record("GNU.sparse.map") {
            let size = number("GNU.sparse.size")?.context("GNU.sparse.size is missing")?;
            let numbers = map.split(|c| *c == b',').map(decimal).collect::<Result<Vec<_>>>()?;
            ensure!(numbers.len() % 2 == 0, "GNU.sparse.map has an odd length");
            (size, numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
        } else {
            ensure!(record("GNU.sparse.size").is_none(), "a sparse file of the PAX format 0.0");
            return Ok(());
        };
        if let Some(name) = record("GNU.sparse.name") {
            entry.path = path_of(name.clone());
        }
        let mut end = 0;
        let mut stored = 0;
        for (offset, length) in &extents {
            ensure!(*offset >= end, "parts of a sparse file overlap");
            end = offset.checked_add(*length).context("a sparse file's part is too long")?;
            stored += length;
        }
        ensure!(end <= size && stored == self.left, "a sparse file's parts are not its content");
        entry.stored = stored;
        entry.sparse = Some((size, extents));
        Ok(())
    }

    /// The format that GNU tar had first: in the header, and in blocks that follow it.
    fn gnu_extents(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>)> {
        let gnu = header.as_gnu().context("a sparse file without a GNU header")?;
        let mut extents = Vec::new();
        let mut add = |parts: &[tar::GnuSparseHeader]| -> Result<()> {
            ensure!(extents.len() < MAX_EXTENTS, "a sparse file of too many parts");
            for part in parts.iter().filter(|part| !part.is_empty()) {
                extents.push((part.offset()?, part.length()?));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.reader.read_exact(block.as_mut_bytes()).context("parts of a sparse file")?;
            add(block.sparse())?;
            more = block.is_extended();
        }
        Ok((gnu.real_size()?, extents))
    }

    /// The format 1.0 of PAX: decimal numbers before the content, filled up to a full block.
    fn leading_extents(&mut self) -> Result<Vec<(u64, u64)>> {
        let before = self.left;
        let mut number = || -> Result<u64> {
            let mut digits = Vec::new();
            loop {
                let mut byte = [0];
                self.content().read_exact(&mut byte).context("parts of a sparse file")?;
                if byte == *b"\n" {
                    return decimal(&digits);
                }
                ensure!(digits.len() < 20, "a number of a sparse file's parts is too long");
                digits.push(byte[0]);
            }
        };
        let count = number()?;
        ensure!(count <= MAX_EXTENTS as u64, "a sparse file of too many parts");
        let extents = (0..count).map(|_| Ok((number()?, number()?))).collect::<Result<Vec<_>>>()?;
        let read = before - self.left;
        let rest = read.next_multiple_of(BLOCK) - read;
        io::copy(&mut self.content().take(rest), &mut io::sink())?;
        Ok(extents)
    }

    /// Writes the current entry's content, or the next `count` bytes of it.
    ///
    /// # Errors
    /// Also when the archive ends before it.
    pub fn copy(&mut self, mut count: u64, to: &mut impl Write) -> Result<()> {
        ensure!(count <= self.left, "more is wanted than there is");
        while count > 0 {
            let there = self.reader.fill_buf().context("read the archive")?;
            ensure!(!there.is_empty(), "the archive ends in the middle of a file");
            let most = usize::try_from(count).unwrap_or(usize::MAX).min(there.len());
            let written = to.write(&there[..most]).context("write")?;
            ensure!(written > 0, "write: the disk takes nothing");
            self.reader.consume(written);
            count -= written as u64;
            self.left -= written as u64;
        }
        Ok(())
    }

    /// To read the current entry's content.
    pub fn content(&mut self) -> impl Read {
        Content(self)
    }

    fn skip_content(&mut self) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        let mut rest = std::mem::take(&mut self.left) + padding;
        while rest > 0 {
            let there = self.reader.fill_buf().context("read the archive")?.len();
            if there == 0 {
                // `umoci insert` leaves out the last file's padding.
                ensure!(rest <= padding, "the archive ends in the middle of a file");
                return Ok(());
            }
            let count = there.min(usize::try_from(rest).unwrap_or(usize::MAX));
            self.reader.consume(count);
            rest -= count as u64;
        }
        Ok(())
    }

    /// Nothing at the archive's end: a block of zeros, or no block.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if self.reader.fill_buf().context("read the archive")?.is_empty() {
            return Ok(None);
        }
        self.reader.read_exact(block).context("read a header of the archive")?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // Its own field counts as eight spaces.
        let sum = |byte: fn(&u8) -> i64| -> i64 {
            block[..148].iter().chain(&block[156..]).map(byte).sum::<i64>() + 8 * 32
        };
        let (unsigned, signed) = (sum(|b| i64::from(*b)), sum(|b| i64::from(*b as i8)));
        let noted = i64::from(header.cksum().context("this is no tar archive")?);
        ensure!(
            noted == unsigned || noted == signed,
            "a header's checksum is wrong: damaged, or no tar archive"
        );
        Ok(Some(header))
    }

    fn expect(&mut self, size: u64) -> Result<()> {
        ensure!(size <= i64::MAX as u64, "no file has {size} bytes");
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }

    /// What belongs to the entry after it.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        ensure!(size <= MAX_EXTENDED, "an extended header of {size} bytes");
        self.expect(size)?;
        let mut bytes = Vec::new();
        self.copy(size, &mut bytes)?;
        Ok(bytes)
    }

    /// Records of the form `LENGTH KEY=VALUE\n`, the length counting all of it.
    fn extended(&mut self, size: u64) -> Result<Records> {
        let bytes = self.small(size)?;
        let mut rest = bytes.as_slice();
        let mut records = Records::new();
        while !rest.is_empty() && rest[0] != 0 {
            let parsed = (|| {
                let space = rest.iter().position(|c| *c == b' ')?;
                let length = usize::try_from(decimal(&rest[..space]).ok()?).ok()?;
                let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = record.iter().position(|c| *c == b'=')?;
                Some((length, &record[..equals], &record[equals + 1..]))
            })();
            let Some((length, key, value)) = parsed else { bail!("a damaged extended header") };
            records.insert(key.to_owned(), value.to_owned());
            rest = &rest[length..];
        }
        Ok(records)
    }
}

struct Content<'a, R>(&'a mut Archive<R>);

impl<R: BufRead> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.0.reader.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.left -= count as u64;
        Ok(count)
    }
}

fn xattrs(records: &Records) -> Vec<(OsString, Vec<u8>)> {
    const PREFIX: &[u8] = b"SCHILY.xattr.";
    records
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)))
        .map(|(name, value)| (OsString::from_vec(name.to_owned()), value.clone()))
        .collect()
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Some leave a field empty that is zero.
fn field(raw: &[u8], parsed: io::Result<u64>) -> io::Result<u64> {
    if raw.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { parsed }
}

fn decimal(digits: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(digits);
    text.parse().with_context(|| format!("{text:?} is no number"))
}

/// `SECONDS[.FRACTION]`, maybe negative: the nanoseconds always count forward.
fn timestamp(value: &[u8]) -> Result<(i64, i64)> {
    let text = std::str::from_utf8(value).context("mtime")?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().with_context(|| format!("mtime {text:?}"))?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().with_context(|| format!("mtime {text:?}"))?;
    ensure!(nanoseconds >= 0, "mtime {text:?}");
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds.checked_sub(1).context("mtime")?, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}
