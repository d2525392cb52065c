//! The file to execute: finding it, and saying why the kernel would not have it.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{AccessFlags, faccessat};

use crate::sys::descriptor::Fd;

/// The file that `process.args[0]` means, searched for in `PATH` like execvp(3).
///
/// # Errors
/// With the words by which engines know "not found" (127) from "not allowed" (126).
pub fn find(name: &CStr, env: &[CString]) -> Result<CString> {
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        return Ok(name.to_owned());
    }
    let path = env.iter().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut forbidden = None;
    for folder in path.split(|byte| *byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let candidate =
            PathBuf::from(OsStr::from_bytes(folder)).join(OsStr::from_bytes(name.to_bytes()));
        let flags = AtFlags::AT_EACCESS;
        match faccessat(AT_FDCWD, &candidate, AccessFlags::X_OK, flags) {
            Ok(()) if !candidate.is_dir() => {
                return Ok(CString::new(candidate.into_os_string().into_encoded_bytes())?);
            }
            Err(Errno::EACCES) => forbidden = Some(candidate),
            _ => {}
        }
    }
    let path = String::from_utf8_lossy(path);
    match forbidden {
        Some(file) => bail!(
            "process.args[0]: exec {:?}: permission denied (it is not executable for this user)",
            file
        ),
        None => {
            bail!("process.args[0]: exec {shown:?}: executable file not found in $PATH ({path})")
        }
    }
}

/// Refuses a program that `find` doesn't find, or that this user may not execute. What only the
/// kernel's exec can tell (a missing interpreter, a wrong format) is not looked at.
///
/// # Errors
/// Those of [`find`] and [`diagnose`].
pub fn check(name: &CStr, env: &[CString]) -> Result<()> {
    let file = find(name, env)?;
    faccessat(AT_FDCWD, file.as_c_str(), AccessFlags::X_OK, AtFlags::AT_EACCESS)
        .map_err(|errno| diagnose(&file, errno))
}

/// Says why the kernel would not execute `file`, which its errno alone never does.
pub fn diagnose(file: &CStr, errno: Errno) -> anyhow::Error {
    let path = file.to_string_lossy();
    let prefix = format!("process.args[0]: exec {path:?}");
    let text = match errno {
        Errno::ENOENT => match missing_part(file) {
            Some(part) => format!("{prefix}: no such file or directory: {part}"),
            None => format!("{prefix}: no such file or directory"),
        },
        Errno::EACCES => format!("{prefix}: permission denied ({})", forbidden_part(file)),
        Errno::ENOEXEC => format!("{prefix}: exec format error: {}", wrong_format(file)),
        Errno::ELIBBAD | Errno::EINVAL => {
            format!("{prefix}: {}: the file is damaged", errno.desc())
        }
        errno => return anyhow!(errno).context(prefix),
    };
    anyhow!(text)
}

/// As much of a file as its headers may need, in bytes.
const HEADERS: usize = 4096;

/// The first `length` bytes of a regular file of the container. A hostile image may have a pipe
/// there, which must not be waited for, or a device, which has no end.
pub(crate) fn head(file: &CStr, length: usize) -> Option<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let fd = openat(AT_FDCWD, file, flags, Mode::empty()).map(Fd::from).ok()?;
    let regular = fstat(&fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG);
    if !regular {
        return None;
    }
    let mut head = fd.read_to_end(length).ok()?;
    head.truncate(length);
    Some(head)
}

/// The file exists, so what is missing is what it needs.
fn missing_part(file: &CStr) -> Option<String> {
    let head = head(file, HEADERS)?;
    let interpreter = interpreter(&head)?;
    let hint = if !head.starts_with(b"#!") {
        "install the C library it was linked with, or link it statically"
    } else if interpreter.ends_with('\r') {
        "the line ends in a carriage return: save the script with Unix line ends"
    } else {
        "install it in the image, or name another in the script's first line"
    };
    Some(format!("its interpreter {interpreter:?} is missing in the container ({hint})"))
}

fn forbidden_part(file: &CStr) -> String {
    match faccessat(AT_FDCWD, file, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        _ if Path::new(OsStr::from_bytes(file.to_bytes())).is_dir() => "it is a folder".into(),
        Ok(()) => match head(file, HEADERS).as_deref().and_then(interpreter) {
            Some(interpreter) => format!(
                "its interpreter {interpreter:?} is not executable, or one of them is on a noexec \
                 mount"
            ),
            None => "is it on a noexec mount?".into(),
        },
        Err(Errno::EACCES) => {
            "the file is not executable for this user: chmod +x, or process.user".into()
        }
        Err(_) => "a folder on the way is closed to this user".into(),
    }
}

/// What the kernel starts in place of the file: the program of a `#!` line, or of an ELF file.
fn interpreter(head: &[u8]) -> Option<String> {
    match head.strip_prefix(b"#!") {
        Some(rest) => {
            let line = rest.split(|byte| *byte == b'\n').next()?;
            String::from_utf8_lossy(line).split([' ', '\t']).find(|w| !w.is_empty()).map(Into::into)
        }
        None => elf_interpreter(head),
    }
}

fn wrong_format(file: &CStr) -> String {
    let Some(head) = head(file, HEADERS) else { return "the file can't be read".into() };
    if head.is_empty() {
        return "the file is empty".into();
    }
    match elf_machine(&head) {
        Some(machine) if machine != HOST_MACHINE => format!(
            "it is built for {}, this host is {}",
            machine_name(machine),
            machine_name(HOST_MACHINE)
        ),
        Some(_) => "the ELF file is damaged".into(),
        None if head.starts_with(b"#!") => "its #! line is no path".into(),
        None => "neither an ELF file nor a script with a #! line (add #!/bin/sh on top?)".into(),
    }
}

const HOST_MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else if cfg!(target_arch = "riscv64") {
    243
} else {
    62
};

/// `e_machine` of an ELF header (elf(5)).
fn elf_machine(head: &[u8]) -> Option<u16> {
    head.starts_with(b"\x7fELF").then(|| number(head, 18, 2).map(|n| n as u16)).flatten()
}

fn machine_name(machine: u16) -> String {
    let name = match machine {
        3 => "x86 (32 bit)",
        8 => "mips",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm (32 bit)",
        62 => "x86_64 (amd64)",
        183 => "aarch64 (arm64)",
        243 => "riscv64",
        258 => "loongarch64",
        other => return format!("ELF machine {other}"),
    };
    name.into()
}

/// Bytes `at..at + size` of a header as a number of the file's byte order.
fn number(head: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = head.get(at..at.checked_add(size)?)?;
    let big_endian = *head.get(5)? == 2;
    let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    Some(match big_endian {
        true => bytes.iter().fold(0, join),
        false => bytes.iter().rev().fold(0, join),
    })
}

/// The path in the `PT_INTERP` segment (elf(5)).
fn elf_interpreter(head: &[u8]) -> Option<String> {
    elf_machine(head)?;
    let wide = *head.get(4)? == 2;
    // Offsets of e_phoff, e_phentsize, e_phnum, and of p_offset and p_filesz in an entry.
    let (table, entry_size, count, offset, size, word) =
        if wide { (32, 54, 56, 8, 32, 8) } else { (28, 42, 44, 4, 16, 4) };
    let table = number(head, table, word)? as usize;
    let entry_size = number(head, entry_size, 2)? as usize;
    for index in 0..number(head, count, 2)? as usize {
        let entry = table.checked_add(index.checked_mul(entry_size)?)?;
        if number(head, entry, 4)? == 3 {
            let start = number(head, entry.checked_add(offset)?, word)? as usize;
            let length = number(head, entry.checked_add(size)?, word)? as usize;
            let path = head.get(start..start.checked_add(length)?)?;
            return Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_lie_are_no_problem() {
        let mut head = b"\x7fELF\x02\x01".to_vec();
        head.resize(64, 0xff);
        assert_eq!(elf_interpreter(&head), None);
        assert_eq!(elf_interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn this_programs_own_interpreter_or_none_is_found() {
        let head = head(c"/proc/self/exe", HEADERS).unwrap();
        assert_eq!(elf_machine(&head), Some(HOST_MACHINE));
        let dynamic = std::path::Path::new("/bin/ls");
        let head =
            super::head(&CString::new(dynamic.as_os_str().as_bytes()).unwrap(), HEADERS).unwrap();
        assert!(elf_interpreter(&head).unwrap().starts_with("/lib"), "{head:?}");
    }
}
