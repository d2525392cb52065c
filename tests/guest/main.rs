//! The tests' eye inside a container: a static program that reports what it finds there, as JSON.
//!
//! `guest report` prints everything about the process; `guest do "ACTION ARG…"…` tries the
//! actions in turn and prints a JSON array with one result each: `ok…` or the name of the errno.
//! `report` takes actions too, and has their results as `actions`.

mod kernel;

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, stat, umask};
use serde_json::{Map, Value, json};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let rest = &args[2.min(args.len())..];
    match args.get(1).map(String::as_str) {
        Some("report") | None => {
            let mut report = report();
            report["actions"] = rest.iter().map(|line| act(line)).collect();
            println!("{report}");
        }
        Some("do") => {
            let results: Vec<String> = rest.iter().map(|line| act(line)).collect();
            println!("{}", json!(results));
        }
        Some("exit") => std::process::exit(rest[0].parse().unwrap()),
        Some("signals") => report_signals(),
        Some("pause") => std::thread::sleep(Duration::from_secs(600)),
        Some(other) => {
            eprintln!("guest: unknown command {other}");
            std::process::exit(64);
        }
    }
}

/// One action, its arguments separated by spaces.
fn act(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["open", flags, path] => open(flags, path),
        ["write", path, text] => result(fs::write(path, text).map(|()| "ok".into())),
        ["read", path] => result(fs::read_to_string(path).map(|text| format!("ok {text}"))),
        ["count", path] => result(fs::read_dir(path).map(|all| format!("ok {}", all.count()))),
        ["mkdir", path] => result(fs::create_dir(path).map(|()| "ok".into())),
        ["link", path] => result(fs::read_link(path).map(|to| format!("ok {}", to.display()))),
        ["stat", path] => describe(path),
        ["mknod", path, kind, major, minor] => make_node(path, kind, number(major), number(minor)),
        ["exec", program] => {
            let status = Command::new(program).stdout(Stdio::null()).status();
            result(status.map(|status| format!("ok {}", status.code().unwrap_or(-1))))
        }
        // Held until the program ends.
        ["lock", path] => {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
            let locked = file.and_then(|file| Ok(Box::leak(Box::new(file)).try_lock()?));
            result(locked.map(|()| "ok".into()))
        }
        ["wait"] => loop {
            std::thread::sleep(Duration::from_secs(600));
        },
        ["notify", words @ ..] => {
            let socket = std::env::var("NOTIFY_SOCKET").unwrap_or_default();
            let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
            result(sender.send_to(words.join("\n").as_bytes(), socket).map(|_| "ok".into()))
        }
        ["alloc", mebibytes] => allocate(number(mebibytes)),
        ["fork", count] => fork(number(count)),
        ["huge-pages", count] => kernel::huge_pages(number(count) as usize, 0),
        ["unreserved-huge-pages", count] => {
            kernel::huge_pages(number(count) as usize, libc::MAP_NORESERVE)
        }
        ["read-direct", path, count] => result(read_direct(path, number(count))),
        ["burn", milliseconds] => burn(number(milliseconds)),
        ["exchange", one, other] => exchange(one, other),
        ["catch", milliseconds] => catch(number(milliseconds)),
        ["unseal", pid] => unseal(pid),
        ["chown", path, id] => {
            let id = number(id) as u32;
            result(std::os::unix::fs::chown(path, Some(id), Some(id)).map(|()| "ok".into()))
        }
        ["socket", domain, kind, protocol] => {
            syscall(libc::SYS_socket, &[number(domain), number(kind), number(protocol)])
        }
        ["syscall", nr, arguments @ ..] => {
            let arguments: Vec<u64> = arguments.iter().map(|word| number(word)).collect();
            syscall(number(nr) as libc::c_long, &arguments)
        }
        ["i386", nr] => i386(number(nr) as i32),
        ["trap", nr] => trap(number(nr) as libc::c_long),
        ["thread", nr] => die_in_a_thread(number(nr) as libc::c_long),
        ["interruptible", nr] => {
            on_signal(libc::SIGUSR1);
            syscall(number(nr) as libc::c_long, &[])
        }
        _ => format!("unknown action: {line}"),
    }
}

fn number(word: &str) -> u64 {
    let parsed = match word.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => word.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn errno_name(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => error.to_string(),
    }
}

fn result(result: std::io::Result<String>) -> String {
    result.unwrap_or_else(|error| errno_name(&error))
}

fn open(flags: &str, path: &str) -> String {
    let mut options = OpenOptions::new();
    match flags {
        "r" => options.read(true),
        "w" => options.write(true),
        "rw" => options.read(true).write(true),
        "c" => options.write(true).create(true),
        "path" => options.read(true).custom_flags(libc::O_PATH),
        _ => return format!("unknown flags: {flags}"),
    };
    result(options.open(path).map(|_| "ok".into()))
}

fn describe(path: &str) -> String {
    let found = match stat(path) {
        Ok(found) => found,
        Err(errno) => return format!("{errno:?}"),
    };
    let kind = match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFCHR => "c",
        SFlag::S_IFBLK => "b",
        SFlag::S_IFIFO => "p",
        SFlag::S_IFDIR => "d",
        _ => "f",
    };
    format!(
        "ok {kind} {}:{} mode={:o} uid={} gid={}",
        nix::sys::stat::major(found.st_rdev),
        nix::sys::stat::minor(found.st_rdev),
        found.st_mode & 0o7777,
        found.st_uid,
        found.st_gid
    )
}

fn make_node(path: &str, kind: &str, major: u64, minor: u64) -> String {
    let kind = if kind == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    match mknod(path, kind, Mode::from_bits_truncate(0o666), makedev(major, minor)) {
        Ok(()) => "ok".into(),
        Err(errno) => format!("{errno:?}"),
    }
}

/// Takes and touches so much memory that the kernel has to hand out the pages.
fn allocate(mebibytes: u64) -> String {
    let mut held = Vec::new();
    for _ in 0..mebibytes {
        held.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
    format!("ok {}", held.len())
}

/// Starts idle processes until one is refused; ends them all.
fn fork(count: u64) -> String {
    let mut children = Vec::new();
    let mut outcome = None;
    for _ in 0..count {
        let child = Command::new("/proc/self/exe").arg("pause").stdin(Stdio::null()).spawn();
        match child {
            Ok(child) => children.push(child),
            Err(error) => {
                outcome = Some(format!("{} after {}", errno_name(&error), children.len()));
                break;
            }
        }
    }
    let made = children.len();
    for child in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome.unwrap_or(format!("ok {made}"))
}

/// So many reads of 4 KiB from a disk itself, not from what the kernel keeps of it.
fn read_direct(path: &str, count: u64) -> std::io::Result<String> {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Page([0; 4096]);
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    for turn in 0..count {
        disk.read_exact_at(&mut page.0, turn % 1024 * 4096)?;
    }
    Ok("ok".into())
}

/// Two names change places as fast as that goes, until somebody ends this process.
fn exchange(one: &str, other: &str) -> String {
    let flags = RenameFlags::RENAME_EXCHANGE;
    loop {
        if let Err(errno) = renameat2(AT_FDCWD, one, AT_FDCWD, other, flags) {
            return format!("{errno:?}");
        }
    }
}

fn burn(milliseconds: u64) -> String {
    let start = Instant::now();
    let mut turns = 0u64;
    while start.elapsed() < Duration::from_millis(milliseconds) {
        turns = std::hint::black_box(turns + 1);
    }
    "ok".into()
}

/// Holds on to the program file of every process that is neither this one nor busybox, and tries
/// to write to them once their processes have ended: before that they are busy.
fn catch(milliseconds: u64) -> String {
    let start = Instant::now();
    let mut held: Vec<fs::File> = Vec::new();
    while start.elapsed() < Duration::from_millis(milliseconds) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(file) = fs::File::open(entry.path().join("exe")) else { continue };
            // By the descriptor: the process may have executed something else since.
            let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            if !name.ends_with("guest") && !name.ends_with("busybox") && held.len() < 500 {
                make_mount_writable(&file);
                held.push(file);
            }
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let mut written = Vec::new();
    for file in &held {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = OpenOptions::new().append(true).open(&path);
        if opened.is_ok_and(|mut file| file.write_all(b"x").is_ok()) {
            written.push(fs::read_link(path).unwrap().display().to_string());
        }
    }
    format!("ok caught {}, wrote to {written:?}", !held.is_empty())
}

/// What the kernel allows, with CAP_SYS_ADMIN, as long as a mount is detached but not yet taken down.
#[allow(unsafe_code)]
fn make_mount_writable(file: &fs::File) -> bool {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = [0, MOUNT_ATTR_RDONLY, 0, 0];
    // SAFETY: the path ends with a zero, and `attr` is a struct mount_attr (four u64).
    unsafe {
        let (fd, size) = (file.as_raw_fd(), size_of_val(&attr));
        let path = c"".as_ptr();
        libc::syscall(libc::SYS_mount_setattr, fd, path, libc::AT_EMPTY_PATH, attr.as_ptr(), size)
            == 0
    }
}

/// Whether the mount that a process runs from can be made writable.
fn unseal(pid: &str) -> String {
    match fs::File::open(format!("/proc/{pid}/exe")) {
        Ok(file) => format!("ok {}", make_mount_writable(&file)),
        Err(error) => error.to_string(),
    }
}

#[allow(unsafe_code)]
fn syscall(nr: libc::c_long, arguments: &[u64]) -> String {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // SAFETY: only integers are passed, none of them an address of this process, so the kernel
    // can't write into memory that Rust relies on.
    let returned = unsafe {
        libc::syscall(
            nr,
            argument(0),
            argument(1),
            argument(2),
            argument(3),
            argument(4),
            argument(5),
        )
    };
    match returned {
        -1 => format!("{:?}", Errno::last()),
        value => format!("ok {value}"),
    }
}

/// A call without arguments in the way of i386, which 64-bit programs can use as well.
#[allow(unsafe_code)]
fn i386(nr: i32) -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let result: i32;
        // SAFETY: the tests name calls that take no pointers; r8 to r11 are lost on this way in.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("eax") nr => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        match result {
            -4095..=-1 => format!("{:?}", Errno::from_raw(-result)),
            value => format!("ok {value}"),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    format!("ENOSYS, as is call {nr}")
}

/// What the last signal's siginfo said: signal, code, errno.
static SEEN: [AtomicI32; 3] = [const { AtomicI32::new(0) }; 3];

extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    #[allow(unsafe_code)]
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let (code, errno) = unsafe { ((*info).si_code, (*info).si_errno) };
    for (seen, value) in SEEN.iter().zip([signal, code, errno]) {
        seen.store(value, Ordering::Relaxed);
    }
}

#[allow(unsafe_code)]
fn on_signal(signal: i32) {
    // SAFETY: all-zero is a valid sigaction; the handler only stores numbers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Makes a call that the filter answers with a signal.
fn trap(nr: libc::c_long) -> String {
    on_signal(libc::SIGSYS);
    syscall(nr, &[]);
    let [signal, code, errno] = SEEN.each_ref().map(|seen| seen.load(Ordering::Relaxed));
    format!("ok signal {signal} code {code} errno {errno}")
}

/// Makes a call in a second thread and says how many threads are left.
fn die_in_a_thread(nr: libc::c_long) -> String {
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    std::thread::spawn(move || {
        syscall(nr, &[]);
        // Only reached when the call did not kill.
        std::thread::sleep(Duration::from_secs(600));
    });
    let start = Instant::now();
    while threads() > 1 && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(2));
    }
    format!("ok {} left", threads())
}

/// Prints `ready`, then each signal that arrives; ends at TERM with status 42.
fn report_signals() {
    let signals = SigSet::all();
    signals.thread_block().unwrap();
    println!("ready");
    loop {
        let signal = signals.wait().unwrap();
        println!("{signal}");
        if signal == Signal::SIGTERM {
            std::process::exit(42);
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Everything about this process that a config.json can set.
fn report() -> Value {
    let mask = umask(Mode::empty());
    let cwd = nix::unistd::getcwd();
    json!({
        "pid": std::process::id(),
        "ppid": nix::unistd::getppid().as_raw(),
        "sid": nix::unistd::getsid(None).map(|sid| sid.as_raw()).unwrap_or(-1),
        "pgid": nix::unistd::getpgrp().as_raw(),
        "args": std::env::args().collect::<Vec<_>>(),
        "env": environment(),
        "cwd": cwd.map(|path| path.display().to_string()).unwrap_or_else(|errno| format!("{errno:?}")),
        "umask": mask.bits(),
        "status": status(),
        "rlimits": rlimits(),
        "oom_score_adj": read("/proc/self/oom_score_adj").trim().parse::<i64>().ok(),
        "fds": links("/proc/self/fd"),
        "namespaces": links("/proc/self/ns"),
        "hostname": read("/proc/sys/kernel/hostname").trim(),
        "domainname": read("/proc/sys/kernel/domainname").trim(),
        "mounts": mounts(),
        "cgroups": read("/proc/self/cgroup").lines().collect::<Vec<_>>(),
        "uid_map": numbers(&read("/proc/self/uid_map")),
        "gid_map": numbers(&read("/proc/self/gid_map")),
        "timens_offsets": read("/proc/self/timens_offsets"),
        "personality": read("/proc/self/personality").trim(),
        "scheduler": kernel::scheduler(),
        "memory_policy": kernel::memory_policy(),
        "tty": terminals(),
        "interfaces": links("/sys/class/net").keys().collect::<Vec<_>>(),
    })
}

fn environment() -> Vec<String> {
    let raw = fs::read("/proc/self/environ").unwrap_or_default();
    let entries = raw.split(|&byte| byte == 0).filter(|entry| !entry.is_empty());
    entries.map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
}

/// The fields of /proc/self/status.
fn status() -> Map<String, Value> {
    let text = read("/proc/self/status");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), json!(value.trim().replace('\t', " ")))).collect()
}

fn rlimits() -> Map<String, Value> {
    let all = [
        ("RLIMIT_AS", Resource::RLIMIT_AS),
        ("RLIMIT_CORE", Resource::RLIMIT_CORE),
        ("RLIMIT_CPU", Resource::RLIMIT_CPU),
        ("RLIMIT_DATA", Resource::RLIMIT_DATA),
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
        ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
        ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
        ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
        ("RLIMIT_NICE", Resource::RLIMIT_NICE),
        ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
        ("RLIMIT_RSS", Resource::RLIMIT_RSS),
        ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
        ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
        ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
        ("RLIMIT_STACK", Resource::RLIMIT_STACK),
    ];
    let limits = all.into_iter().map(|(name, resource)| {
        let (soft, hard) = getrlimit(resource).unwrap();
        (name.to_owned(), json!([soft, hard]))
    });
    limits.collect()
}

/// A folder's entries and what they point to. The descriptor that reads the folder is left out.
fn links(folder: &str) -> Map<String, Value> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Map::new();
    };
    let names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let mut found = Map::new();
    for path in names {
        // The descriptor of the listing is closed by now, so its link is gone.
        if let Ok(target) = fs::read_link(&path) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.insert(name, json!(target.display().to_string()));
        }
    }
    found
}

/// /proc/self/mountinfo, field by field: see proc_pid_mountinfo(5).
fn mounts() -> Vec<Value> {
    let text = read("/proc/self/mountinfo");
    let lines = text.lines().filter_map(|line| line.split_once(" - "));
    let parsed = lines.map(|(left, right)| {
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        json!({
            "root": left[3],
            "destination": left[4],
            "options": left[5].split(',').collect::<Vec<_>>(),
            "propagation": left[6..].to_vec(),
            "type": right[0],
            "source": right[1],
            "super_options": right[2].split(',').collect::<Vec<_>>(),
        })
    });
    parsed.collect()
}

fn numbers(text: &str) -> Vec<Vec<u64>> {
    let lines = text.lines();
    lines
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect()
}

/// For each of the standard descriptors the terminal behind it, or null.
fn terminals() -> Vec<Value> {
    let name = |fd: std::os::fd::BorrowedFd<'_>| match nix::unistd::ttyname(fd) {
        Ok(path) => json!(CString::new(path.as_os_str().as_bytes()).unwrap().to_string_lossy()),
        Err(_) => Value::Null,
    };
    vec![
        name(std::io::stdin().as_fd()),
        name(std::io::stdout().as_fd()),
        name(std::io::stderr().as_fd()),
    ]
}
