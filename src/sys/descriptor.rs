//! Descriptors that are closed together: `close_range(2)`.
//!
//! A process that starts a container opens some fifty files, most of them for a moment. Each close is
//! a system call, and none of them has to come at once.

use std::cell::RefCell;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;

thread_local! {
    /// Numbers of descriptors that nobody owns any more, while their closing is put off. Nothing that the
    /// end of the thread would drop: to have that done costs system calls.
    static LATER: RefCell<ManuallyDrop<Option<Vec<RawFd>>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

/// As [`OwnedFd`]; but while [`Together`] is there, it is closed with others.
#[derive(Debug)]
pub struct Fd(ManuallyDrop<OwnedFd>);

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }
}

impl From<File> for Fd {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl From<Fd> for File {
    fn from(fd: Fd) -> Self {
        OwnedFd::from(fd).into()
    }
}

impl From<Fd> for OwnedFd {
    fn from(fd: Fd) -> Self {
        let number = fd.as_raw_fd();
        std::mem::forget(fd);
        // SAFETY: it was that one's own, which is gone without having closed it.
        unsafe { OwnedFd::from_raw_fd(number) }
    }
}

/// Bytes that the first read(2) asks for.
const PIECE: usize = 4096;

impl Fd {
    /// Reads a file from where it is to its end, but at most `most` bytes and some.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub fn read_to_end(&self, most: usize) -> nix::Result<Vec<u8>> {
        self.read_until(|read, _, whole| read == 0 || whole >= most)
    }

    /// The same for one that ends where a read gives less than was asked for: those of procfs that tell of
    /// one thing, and are no lists.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub fn read_at_once(&self) -> nix::Result<Vec<u8>> {
        self.read_until(|read, asked, _| read < asked)
    }

    /// Writes all of `text`.
    ///
    /// # Errors
    /// Those of `write(2)`; `EIO` if it takes nothing.
    pub fn write_all(&self, mut text: &[u8]) -> nix::Result<()> {
        while !text.is_empty() {
            match nix::unistd::write(self, text) {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Errno::EIO),
                written => text = &text[written?..],
            }
        }
        Ok(())
    }

    /// Locks the open file until nobody has it any more, alone or `shared` with others of that kind
    /// (flock(2)).
    ///
    /// # Errors
    /// `EWOULDBLOCK` if somebody else has and it is not to `wait`.
    pub fn lock(&self, shared: bool, wait: bool) -> nix::Result<()> {
        let how = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
        let how = if wait { how } else { how | libc::LOCK_NB };
        loop {
            // SAFETY: takes two numbers and touches no memory.
            match check(unsafe { libc::flock(self.as_raw_fd(), how) }.into()) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// `is_end`: by what was read, what had been asked for, and how much there is now.
    fn read_until(&self, is_end: impl Fn(usize, usize, usize) -> bool) -> nix::Result<Vec<u8>> {
        let mut text = Vec::new();
        loop {
            let old = text.len();
            let asked = old.max(PIECE);
            text.resize(old + asked, 0);
            let read = loop {
                match nix::unistd::read(self, &mut text[old..]) {
                    Err(Errno::EINTR) => {}
                    read => break read?,
                }
            };
            text.truncate(old + read);
            if is_end(read, asked, text.len()) {
                return Ok(text);
            }
        }
    }
}

impl Deref for Fd {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.0
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: nobody asks for it after this.
        let fd = unsafe { ManuallyDrop::take(&mut self.0) };
        // Where it isn't put off, it is closed with this closure.
        let many = LATER.try_with(move |later| {
            let mut later = later.borrow_mut();
            let Some(later) = later.as_mut() else { return false };
            later.push(fd.into_raw_fd());
            later.len() >= MOST
        });
        if many == Ok(true) {
            close_put_off();
        }
    }
}

/// As many are put off: neither may many mounts run into the limit of open files, nor may that be low.
const MOST: usize = 16;

/// As long as this is there, an [`Fd`] of this thread that goes is not closed before it, unless there are
/// many.
#[derive(Debug)]
pub struct Together {
    /// There is none around it.
    outermost: bool,
}

impl Together {
    /// From now on.
    #[must_use]
    pub fn begin() -> Self {
        LATER.with_borrow_mut(|later| {
            let outermost = later.is_none();
            later.get_or_insert_default();
            Self { outermost }
        })
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        close_put_off();
        if self.outermost {
            put_off(None);
        }
    }
}

fn put_off(list: Option<Vec<RawFd>>) {
    LATER.with_borrow_mut(|later| **later = list);
}

/// Closes what has been put off, neighbours by one call.
pub fn close_put_off() {
    let mut numbers = LATER.with_borrow_mut(|later| later.as_mut().map(std::mem::take));
    let numbers = numbers.as_deref_mut().unwrap_or_default();
    numbers.sort_unstable();
    for row in numbers.chunk_by(|one, next| one + 1 == *next) {
        // SAFETY: each was that of an Fd, whose own it was.
        let _ = unsafe { close_range(row[0], row[row.len() - 1], 0) };
    }
}

/// Closes all descriptors from `first` on but `kept`, in a process that only executes another program
/// after this or ends: what else it owns may neither be used any more nor be dropped. (That is not `unsafe` as
/// memory goes, so that it can be called from where it belongs.)
///
/// # Errors
/// `ENOSYS` on a kernel before 5.9.
pub(crate) fn close_all_but(first: RawFd, mut kept: Vec<RawFd>) -> nix::Result<()> {
    // What comes later goes with the exec.
    put_off(Some(Vec::new()));
    kept.retain(|number| *number >= first);
    kept.sort_unstable();
    let starts = [first].into_iter().chain(kept.iter().map(|number| number + 1));
    let ends = kept.iter().map(|number| number - 1).chain([RawFd::MAX]);
    for (start, end) in starts.zip(ends).filter(|(start, end)| start <= end) {
        // SAFETY: who owns them doesn't use them any more, as said above.
        unsafe { close_range(start, end, 0) }?;
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// `ENOSYS`/`EINVAL` on a kernel before 5.11.
pub fn cloexec_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: sets a flag only; nothing is closed before an exec.
    unsafe { close_range(first, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC) }
}

/// # Safety
/// Without `CLOSE_RANGE_CLOEXEC` nobody may own any of them.
unsafe fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> nix::Result<()> {
    // SAFETY: the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Read};

    use super::*;

    #[test]
    fn descriptors_are_closed_together_and_others_stay() {
        let (mut readers, mut writers): (Vec<_>, Vec<_>) =
            (0..9).map(|_| std::io::pipe().unwrap()).unzip();
        // Not all of them are neighbours, nor in order.
        let kept: Vec<PipeWriter> = [7, 3, 3].map(|index| writers.remove(index)).into();
        let mut open = Vec::from([7, 3, 3].map(|index| readers.remove(index)));
        writers.reverse();
        let numbers: Vec<_> = writers.iter().map(AsRawFd::as_raw_fd).collect();
        let together = Together::begin();
        drop(writers.into_iter().map(|writer| Fd::from(OwnedFd::from(writer))).collect::<Vec<_>>());
        let is_open = |number: &RawFd| {
            // SAFETY: reads a flag of a descriptor, open or not.
            unsafe { libc::fcntl(*number, libc::F_GETFD) >= 0 }
        };
        assert!(numbers.iter().all(is_open), "that comes later");
        drop(together);
        for mut reader in readers {
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nobody can write to it any more");
        }
        for (mut writer, reader) in kept.into_iter().zip(&mut open) {
            std::io::Write::write_all(&mut writer, b"x").unwrap();
            reader.read_exact(&mut [0]).unwrap();
        }
    }
}
