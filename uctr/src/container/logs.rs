//! What a container has written: `container.log` in its folder, and `container.log.1` … where it is
//! rotated.
//!
//! A line is `TIME STREAM TAG TEXT`, as Kubernetes' tools know it (CRI): the time in RFC 3339 with
//! nine digits, `stdout` or `stderr`, and `F`, or `P` where the line's rest is still to come.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

/// Its name in the folder of the container.
pub const FILE: &str = "container.log";

/// `2026-11-21T09:00:00.123456789Z stdout F `
const PREFIX: usize = 30 + 1 + 6 + 1 + 1 + 1;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output; all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How much is kept: `--log-opt max-size` and `max-file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file; 0 is no limit.
    pub size: u64,
    /// Files, at least 1.
    pub files: u32,
}

/// Writes the log, for the monitor.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    limits: Limits,
    lines: Vec<u8>,
}

impl Writer {
    /// Goes on with the log in `folder`. Where that can't be opened nothing is written: a full disk
    /// is no reason not to run.
    #[must_use]
    pub fn open(folder: &Path, limits: Limits) -> Self {
        let path = folder.join(FILE);
        let mut writer = Self { path, file: None, size: 0, limits, lines: Vec::new() };
        writer.reopen();
        writer
    }

    fn reopen(&mut self) {
        self.file = File::options().append(true).create(true).mode(0o640).open(&self.path).ok();
        self.size =
            self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |info| info.len());
    }

    /// Writes what was just read of a stream.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let now = format!("{:.9}", Timestamp::now());
        self.lines.clear();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (tag, text) = match line.strip_suffix(b"\n") {
                Some(text) => ('F', text),
                None => ('P', line),
            };
            let _ = write!(self.lines, "{now} {name} {tag} ");
            self.lines.extend_from_slice(text);
            self.lines.push(b'\n');
        }
        if self.limits.size > 0 && self.size + self.lines.len() as u64 > self.limits.size {
            self.rotate();
        }
        // The disk may be full: what can't be kept is lost, and the container goes on.
        if let Some(file) = &mut self.file
            && file.write_all(&self.lines).is_ok()
        {
            self.size += self.lines.len() as u64;
        }
    }

    fn rotate(&mut self) {
        if self.size == 0 {
            return;
        }
        for number in (1..self.limits.files).rev() {
            let _ = std::fs::rename(numbered(&self.path, number - 1), numbered(&self.path, number));
        }
        if self.limits.files <= 1 {
            let _ = std::fs::remove_file(&self.path);
        }
        self.reopen();
    }
}

/// The file itself is number 0, the oldest has the highest.
fn numbered(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => path.with_extension(format!("log.{number}")),
    }
}

/// What of the log is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// The last lines only.
    pub tail: Option<u64>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// With the time before each line.
    pub timestamps: bool,
}

/// Reads the log of a container, and what is added to it.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    wanted: Wanted,
    file: Option<File>,
    /// The end of what was read, where a line was not whole.
    rest: Vec<u8>,
    /// In the middle of a line of stdout, of stderr.
    inside: [bool; 2],
    /// Beginnings of lines that lie before what is read.
    begun: [Option<Vec<u8>>; 2],
}

impl Reader {
    /// Prints what is there.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn open(folder: &Path, wanted: Wanted, out: &mut Sink) -> Result<Self> {
        let path = folder.join(FILE);
        let mut reader = Self {
            path,
            wanted,
            file: None,
            rest: Vec::new(),
            inside: [false; 2],
            begun: [None, None],
        };
        let mut files = Vec::new();
        for number in 0.. {
            match File::open(numbered(&reader.path, number)) {
                Ok(file) => files.push(file),
                Err(_) => break,
            }
        }
        let mut missing = wanted.tail;
        let mut first = files.len();
        for (index, file) in files.iter_mut().enumerate() {
            first = index;
            if let Some(count) = &mut missing {
                reader.begun = seek_back(file, count)?;
                if *count == 0 {
                    break;
                }
            }
        }
        for (index, file) in files.into_iter().enumerate().rev() {
            if index <= first {
                reader.file = Some(file);
                reader.read_on(out)?;
            }
        }
        Ok(reader)
    }

    /// Prints what was added meanwhile; whether there was something.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn read_more(&mut self, out: &mut Sink) -> Result<bool> {
        let mut any = self.read_on(out)?;
        let inode = |file: &File| file.metadata().map(|info| info.ino()).ok();
        let now = File::open(&self.path).ok();
        // It was rotated.
        if let Some(now) = now
            && self.file.as_ref().and_then(inode) != inode(&now)
        {
            self.file = Some(now);
            any |= self.read_on(out)?;
        }
        Ok(any)
    }

    fn read_on(&mut self, out: &mut Sink) -> Result<bool> {
        let Some(mut file) = self.file.take() else { return Ok(false) };
        let mut buffer = vec![0; 64 * 1024];
        let mut any = false;
        loop {
            let length = file.read(&mut buffer).with_context(|| self.path.display().to_string())?;
            if length == 0 {
                break;
            }
            any = true;
            let mut bytes = std::mem::take(&mut self.rest);
            bytes.extend_from_slice(&buffer[..length]);
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.rest = bytes[whole..].to_vec();
            for line in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
                self.print(line, out)?;
            }
        }
        self.file = Some(file);
        out.flush()?;
        Ok(any)
    }

    fn print(&mut self, line: &[u8], out: &mut Sink) -> Result<()> {
        let Some((time, stream, full, text)) = parse(line) else { return Ok(()) };
        let index = usize::from(stream == Stream::Stderr);
        if let Some(mut begun) = self.begun[index].take() {
            begun.push(b'\n');
            self.print(&begun, out)?;
        }
        let (since, until) = (self.wanted.since, self.wanted.until);
        if since.is_some() || until.is_some() {
            let Ok(time) = time.parse::<Timestamp>() else { return Ok(()) };
            if since.is_some_and(|since| time < since) || until.is_some_and(|until| time > until) {
                return Ok(());
            }
        }
        if self.wanted.timestamps && !self.inside[index] {
            out.write(stream, time.as_bytes())?;
            out.write(stream, b" ")?;
        }
        out.write(stream, text)?;
        if full {
            out.write(stream, b"\n")?;
        }
        self.inside[index] = !full;
        Ok(())
    }
}

/// Time, stream, whether the line ends here, and text.
fn parse(line: &[u8]) -> Option<(&str, Stream, bool, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (prefix, text) = line.split_at_checked(PREFIX)?;
    let mut words = str::from_utf8(prefix).ok()?.split(' ');
    let time = words.next()?;
    let stream = match words.next()? {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some((time, stream, words.next()? == "F", text))
}

/// The records of a log, the last first.
struct Backward<'a> {
    file: &'a mut File,
    /// What was read reaches back to here.
    position: u64,
    /// As far as it wasn't given out.
    rest: Vec<u8>,
}

impl<'a> Backward<'a> {
    fn new(file: &'a mut File) -> Result<Self> {
        let position = file.seek(SeekFrom::End(0)).context("size of the log")?;
        Ok(Self { file, position, rest: Vec::new() })
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        const CHUNK: u64 = 64 * 1024;
        loop {
            let inner = self.rest.len().saturating_sub(1);
            if let Some(newline) = self.rest[..inner].iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.rest.split_off(newline + 1)));
            }
            if self.position == 0 {
                let first = std::mem::take(&mut self.rest);
                return Ok(Some(first).filter(|record| !record.is_empty()));
            }
            let size = CHUNK.min(self.position);
            self.position -= size;
            self.file.seek(SeekFrom::Start(self.position)).context("seek in the log")?;
            let mut chunk = vec![0; size as usize];
            self.file.read_exact(&mut chunk).context("read the log")?;
            chunk.append(&mut self.rest);
            self.rest = chunk;
        }
    }

    /// Where the record begins that was given out last.
    fn place(&self) -> u64 {
        self.position + self.rest.len() as u64
    }
}

/// Goes to where the last `count` lines begin; what the file lacks of them is left in `count`. Where
/// a line of theirs began before others did, in the other stream, that beginning is returned.
fn seek_back(file: &mut File, count: &mut u64) -> Result<[Option<Vec<u8>>; 2]> {
    /// So many records are looked at for such beginnings.
    const MOST: u32 = 1024;
    let mut begun = [None, None];
    let mut records = Backward::new(file)?;
    let mut place = records.place();
    // A line that is not ended yet is one too.
    let mut last = true;
    let mut open = [true; 2];
    let mut extra = 0;
    while let Some(record) = records.next()? {
        let Some((_, stream, full, text)) = parse(&record) else { continue };
        let index = usize::from(stream == Stream::Stderr);
        let ends = std::mem::take(&mut last) | full;
        if extra == 0 && ends {
            if *count == 0 {
                extra = 1;
            } else {
                *count -= 1;
            }
        }
        if extra == 0 {
            place = records.place();
            continue;
        }
        open[index] &= !ends;
        if open[index] {
            let mut earlier = record[..record.len().min(PREFIX)].to_vec();
            earlier.extend_from_slice(text);
            let later: Option<Vec<u8>> = begun[index].take();
            earlier.extend_from_slice(later.as_deref().map_or(&[], |later| &later[PREFIX..]));
            begun[index] = Some(earlier);
        }
        extra += 1;
        if open == [false; 2] || extra > MOST {
            break;
        }
    }
    file.seek(SeekFrom::Start(place)).context("seek in the log")?;
    Ok(begun)
}

/// Standard output and error, buffered.
#[derive(Debug, Default)]
pub struct Sink {
    buffers: [Vec<u8>; 2],
}

impl Sink {
    fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<()> {
        let index = usize::from(stream == Stream::Stderr);
        // In the order in which they were written.
        if !self.buffers[1 - index].is_empty() || self.buffers[index].len() > 64 * 1024 {
            self.flush()?;
        }
        self.buffers[index].extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let [out, err] = &mut self.buffers;
        write_out(&mut std::io::stdout().lock(), out)?;
        write_out(&mut std::io::stderr().lock(), err)
    }
}

fn write_out(to: &mut dyn Write, bytes: &mut Vec<u8>) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("write the output")?;
    bytes.clear();
    Ok(())
}

/// Reads a point in time: RFC 3339, seconds since 1970, or how long ago (`10m`, `1h30m`).
///
/// # Errors
/// When it is none.
pub fn parse_time(text: &str) -> Result<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<f64>()
        && seconds.is_finite()
    {
        let nanos = (seconds * 1e9) as i128;
        return Timestamp::from_nanosecond(nanos).context("the time is out of range");
    }
    // Without a zone it is the local one.
    if let Ok(time) = text.parse::<jiff::civil::DateTime>() {
        return Ok(time.to_zoned(jiff::tz::TimeZone::system()).context("local time")?.timestamp());
    }
    if let Ok(duration) = text.parse::<jiff::SignedDuration>() {
        return Timestamp::now().checked_sub(duration).context("the time is out of range");
    }
    bail!("invalid value for a time: {text:?} (RFC 3339, seconds since 1970, or as 10m)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str, mut count: u64) -> (String, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(seek_back(&mut file, &mut count).unwrap(), [None, None]);
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        (rest, count)
    }

    fn record(tag: char, text: &str) -> String {
        format!("2026-11-21T09:00:00.123456789Z stdout {tag} {text}\n")
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let long = "x".repeat(100_000);
        let log = [('F', "a"), ('P', "b1"), ('F', "b2"), ('F', &long), ('P', "d")];
        let log: Vec<_> = log.iter().map(|(tag, text)| record(*tag, text)).collect();
        let all = log.concat();
        assert_eq!(tail(&all, 0), (String::new(), 0));
        assert_eq!(tail(&all, 1), (log[4].clone(), 0));
        assert_eq!(tail(&all, 2), (log[3..].concat(), 0));
        assert_eq!(tail(&all, 3), (log[1..].concat(), 0));
        assert_eq!(tail(&all, 4), (all.clone(), 0));
        assert_eq!(tail(&all, 9), (all, 5));
        assert_eq!(tail("", 9), (String::new(), 9));
    }

    #[test]
    fn a_line_may_begin_before_the_last_of_the_other_stream() {
        let mut file = tempfile::tempfile().unwrap();
        let two = record('F', "two").replace("stdout", "stderr");
        let log = [record('P', "th"), record('P', "ree"), two, record('F', " and more")].concat();
        file.write_all(log.as_bytes()).unwrap();
        let [out, err] = seek_back(&mut file, &mut 1).unwrap();
        assert_eq!(out.unwrap()[PREFIX..], *b"three");
        assert_eq!(err, None);
    }

    #[test]
    fn logs_are_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), Limits { size: 100, files: 3 });
        for number in 0..10 {
            writer.write(Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("container.log").contains("line 9"));
        assert!(read("container.log.1").contains("line 7"));
        assert!(read("container.log.2").contains("line 5"));
        assert!(!folder.path().join("container.log.3").exists());
    }

    #[test]
    fn lines_that_are_not_whole_are_marked() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), Limits { size: 0, files: 1 });
        writer.write(Stream::Stderr, b"a\nb");
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let parsed = |line: &str| parse(line.as_bytes()).map(|(_, s, f, t)| (s, f, t.to_vec()));
        assert_eq!(parsed(lines[0]), Some((Stream::Stderr, true, b"a".to_vec())));
        assert_eq!(parsed(lines[1]), Some((Stream::Stderr, false, b"b".to_vec())));
        assert_eq!(parsed("short"), None);
    }

    #[test]
    fn times_are_read() {
        let time = parse_time("2026-11-21T09:00:00Z").unwrap();
        assert_eq!(time.as_second(), 1_795_251_600);
        assert_eq!(parse_time("1795251600.5").unwrap().as_millisecond(), 1_795_251_600_500);
        assert!(parse_time("10m").unwrap() < Timestamp::now());
        parse_time("1h30m").unwrap();
        for text in ["", "yesterday", "1e400", "-"] {
            parse_time(text).unwrap_err();
        }
    }
}
