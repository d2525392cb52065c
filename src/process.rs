//! Becoming the program: limits, identity, working directory, executable, exec.

use std::ffi::{CStr, CString, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{AccessFlags, Uid, faccessat, fchown, getcwd};

use crate::procfs::Proc;
use crate::security::seccomp;
use crate::spec::Process;
use crate::spec::process::env_name;
use crate::sys;

/// Limits and scheduling: what needs the privileges that go with the identity.
///
/// # Errors
/// Names the property.
pub fn apply_limits(process: &Process) -> Result<()> {
    for limit in &process.rlimits {
        sys::process::setrlimit(limit.resource, limit.soft, limit.hard).with_context(|| {
            format!(
                "process.rlimits: set {} to {}/{} (raising a hard limit needs CAP_SYS_RESOURCE)",
                limit.name, limit.soft, limit.hard
            )
        })?;
    }
    if let Some(value) = process.io_priority {
        sys::process::set_io_priority(value).context("process.ioPriority")?;
    }
    if let Some(scheduler) = process.scheduler {
        sys::process::set_scheduler(scheduler).context("process.scheduler")?;
    }
    sys::process::umask(process.user.umask.unwrap_or(0o022));
    Ok(())
}

/// Labels of security modules that take effect with the exec.
///
/// # Errors
/// When the module is not there.
pub fn apply_labels(process: &Process, proc: &Proc) -> Result<()> {
    if let Some(profile) = &process.apparmor_profile {
        let text = format!("exec {profile}");
        let written = proc
            .write("self/attr/apparmor/exec", &text)
            .or_else(|_| proc.write("self/attr/exec", &text));
        written.with_context(|| {
            format!(
                "process.apparmorProfile {profile:?}: is AppArmor enabled and the profile loaded?"
            )
        })?;
    }
    if let Some(label) = &process.selinux_label {
        proc.write("self/attr/exec", label)
            .with_context(|| format!("process.selinuxLabel {label:?}: is SELinux enabled?"))?;
    }
    Ok(())
}

/// User, groups and bounding set. The capabilities themselves stay until the last moment: a
/// seccomp filter without `no_new_privs` needs them.
///
/// # Errors
/// Names the property.
pub fn take_identity(process: &Process) -> Result<()> {
    let user = &process.user;
    own_stdio(user.uid);
    process.capabilities.apply_bounding()?;
    sys::process::keep_capabilities(true).context("keep capabilities")?;
    match sys::process::setgroups(&user.additional_gids) {
        // In a user namespace made without privileges groups can't be changed, hence not gained.
        Err(Errno::EPERM) if user.additional_gids.is_empty() => {}
        other => other.context("process.user.additionalGids: set the groups")?,
    }
    let unmapped = "is it in linux.uidMappings and linux.gidMappings?";
    sys::process::setgid(user.gid)
        .with_context(|| format!("process.user.gid: become group {} ({unmapped})", user.gid))?;
    sys::process::setuid(user.uid)
        .with_context(|| format!("process.user.uid: become user {} ({unmapped})", user.uid))?;
    sys::process::keep_capabilities(false).context("keep capabilities")?;
    if user.uid != 0 {
        // The change of user emptied the effective set only.
        let mut sets = sys::process::capget().context("read capabilities")?;
        sets.effective = sets.permitted;
        sys::process::capset(sets).context("keep capabilities effective")?;
    }
    Ok(())
}

/// A program that opens /dev/stdout anew must be allowed to; the null device keeps its owner.
fn own_stdio(uid: u32) {
    for number in 0..3 {
        let fd = sys::fs::standard_stream(number);
        let Ok(stat) = fstat(fd) else { continue };
        if stat.st_uid == uid || stat.st_rdev == nix::sys::stat::makedev(1, 3) {
            continue;
        }
        // Not possible for an unmapped owner or a read-only file, and then not needed either.
        let _ = fchown(fd, Some(Uid::from_raw(uid)), None);
    }
}

/// Changes into the working directory and makes sure that it lies in the container: a descriptor
/// of the host that leaked in could lead out (CVE-2024-21626).
///
/// # Errors
/// When it is missing, forbidden or outside.
pub fn enter_cwd(cwd: &Path) -> Result<()> {
    nix::unistd::chdir(cwd)
        .with_context(|| format!("process.cwd: change into {}", cwd.display()))?;
    check_cwd(cwd)
}

fn check_cwd(cwd: &Path) -> Result<()> {
    // For a folder out of reach from the root the kernel answers "(unreachable)…".
    let inside = getcwd().is_ok_and(|path| path.is_absolute());
    ensure!(inside, "process.cwd: {} lies outside of the container", cwd.display());
    Ok(())
}

/// `env` with `HOME` from the container's /etc/passwd when it is not set, as login shells and
/// runc have it.
pub fn with_home(mut env: Vec<CString>, uid: u32) -> Vec<CString> {
    if !env.iter().any(|entry| env_name(entry.as_bytes()) == b"HOME") {
        let home = std::fs::read_to_string("/etc/passwd").ok().and_then(|text| home(&text, uid));
        env.extend(CString::new(format!("HOME={}", home.as_deref().unwrap_or("/"))));
    }
    env
}

fn home(passwd: &str, uid: u32) -> Option<String> {
    let of_user = |line: &str| {
        let mut fields = line.split(':');
        let id: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty()).then(|| home.to_owned())
    };
    passwd.lines().find_map(of_user)
}

/// The file that `process.args[0]` means, searched for in `PATH` like execvp(3).
///
/// # Errors
/// With the words by which engines know "not found" (127) from "not allowed" (126).
pub fn find_executable(name: &CStr, env: &[CString]) -> Result<CString> {
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

/// Becomes the program: filter, capabilities, exec. Returns only on failure.
pub fn exec(process: &Process, filter: Option<&seccomp::Filter>) -> anyhow::Error {
    match try_exec(process, filter) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_exec(
    process: &Process,
    filter: Option<&seccomp::Filter>,
) -> Result<std::convert::Infallible> {
    let env = with_home(process.env.clone(), process.user.uid);
    let file = find_executable(&process.args[0], &env)?;
    // Without no_new_privs only who has CAP_SYS_ADMIN may load a filter; with it the filter comes
    // last, so that it need not allow what the steps before it do.
    if process.no_new_privileges {
        sys::process::no_new_privileges().context("process.noNewPrivileges")?;
        process.capabilities.apply()?;
    }
    if let Some(filter) = filter {
        filter.load()?;
    }
    if !process.no_new_privileges {
        process.capabilities.apply()?;
    }
    let errno = sys::process::execve(&file, &process.args, &env);
    Err(diagnose(&file, errno))
}

/// Says why the kernel would not execute `file`, which its errno alone never does.
fn diagnose(file: &CStr, errno: Errno) -> anyhow::Error {
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

/// The start of a file, enough for its headers.
fn head(file: &CStr) -> Option<Vec<u8>> {
    let fd = openat(AT_FDCWD, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut head = Vec::new();
    std::fs::File::from(fd).take(4096).read_to_end(&mut head).ok()?;
    Some(head)
}

/// The file exists, so what is missing is what it needs.
fn missing_part(file: &CStr) -> Option<String> {
    let head = head(file)?;
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
        Ok(()) => match head(file).as_deref().and_then(interpreter) {
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
    let Some(head) = head(file) else { return "the file can't be read".into() };
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
    fn the_home_of_a_user_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:\nbad\n";
        assert_eq!(home(passwd, 1000).as_deref(), Some("/home/ann"));
        assert_eq!(home(passwd, 7), None);
    }

    #[test]
    fn headers_that_lie_are_no_problem() {
        let mut head = b"\x7fELF\x02\x01".to_vec();
        head.resize(64, 0xff);
        assert_eq!(elf_interpreter(&head), None);
        assert_eq!(elf_interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn this_programs_own_interpreter_or_none_is_found() {
        let head = head(c"/proc/self/exe").unwrap();
        assert_eq!(elf_machine(&head), Some(HOST_MACHINE));
        let dynamic = std::path::Path::new("/bin/ls");
        let head = super::head(&CString::new(dynamic.as_os_str().as_bytes()).unwrap()).unwrap();
        assert!(elf_interpreter(&head).unwrap().starts_with("/lib"), "{head:?}");
    }
}
