//! What a process is: credentials, capabilities, prctl, keyring, scheduling, exec.

use std::ffi::{CStr, CString};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::Mode;

use super::check;

/// The three capability sets of a thread, bit n being capability n (`capabilities(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What permission checks use.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What survives an exec, with the file's inheritable set.
    pub inheritable: u64,
}

impl CapabilitySets {
    /// Whether the thread may use `capability` in its own user namespace.
    pub fn may(&self, capability: caps::Capability) -> bool {
        self.effective & capability.bitmask() != 0
    }
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Memory of zeros that a process and those that it forks see together.
///
/// # Errors
/// `ENOMEM`.
pub fn shared_words(count: usize) -> nix::Result<&'static [AtomicU64]> {
    let length = NonZeroUsize::new(count * size_of::<AtomicU64>()).ok_or(Errno::EINVAL)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, never unmapped; it is aligned to
    // pages, and zeros are valid for atomics, which are also what others may write meanwhile.
    unsafe {
        let start = mmap_anonymous(None, length, access, MapFlags::MAP_SHARED)?;
        Ok(std::slice::from_raw_parts(start.as_ptr().cast(), count))
    }
}

/// What a program needs before it does anything: its standard streams are open, lest the next file
/// that it opens become one of them, and a reader that goes away is an error and not its end.
///
/// # Errors
/// When `/dev/null` can't be opened in the place of one that is closed.
pub fn tidy_up() -> nix::Result<()> {
    let streams = [0, 1, 2].map(super::fs::standard_stream);
    let mut polled = streams.map(|stream| PollFd::new(stream, PollFlags::empty()));
    nix::poll::poll(&mut polled, PollTimeout::ZERO)?;
    for _ in polled.iter().filter(|fd| fd.revents() == Some(PollFlags::POLLNVAL)) {
        // The lowest number that is free is the next of those that are closed.
        let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
        std::mem::forget(null);
    }
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.map(drop)
}

/// `capget(2)` of the calling thread.
///
/// # Errors
/// None on a Linux kernel.
pub fn capget() -> nix::Result<CapabilitySets> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: header and data have the layout that version 3 of the call demands.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |i: usize| u64::from(data[0][i]) | u64::from(data[1][i]) << 32;
    Ok(CapabilitySets { effective: join(0), permitted: join(1), inheritable: join(2) })
}

/// `capset(2)` of the calling thread.
///
/// # Errors
/// `EPERM` for a set that the thread may not have.
pub fn capset(sets: CapabilitySets) -> nix::Result<()> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| {
        [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32)
    };
    let data = [half(0), half(32)];
    // SAFETY: header and data have the layout that version 3 of the call demands.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

fn prctl(option: i32, a: u64, b: u64, c: u64) -> nix::Result<i32> {
    // SAFETY: only options that take plain numbers are used through here.
    Errno::result(unsafe { libc::prctl(option, a, b, c, 0u64) })
}

/// Whether capability `cap` is in the bounding set.
///
/// # Errors
/// `EINVAL` for a capability that the kernel does not know.
pub fn bounding_has(cap: u8) -> nix::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, cap.into(), 0, 0).map(|set| set == 1)
}

/// Takes capability `cap` out of the bounding set for good.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn bounding_drop(cap: u8) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, cap.into(), 0, 0).map(drop)
}

/// Empties the ambient set.
///
/// # Errors
/// `EINVAL` on a kernel before 4.3.
pub fn ambient_clear() -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0).map(drop)
}

/// Adds `cap` to the ambient set.
///
/// # Errors
/// `EPERM` when it is not both permitted and inheritable.
pub fn ambient_raise(cap: u8) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, cap.into(), 0).map(drop)
}

/// Keeps the permitted capabilities over the next change to a user id other than 0.
///
/// # Errors
/// `EPERM` when the thread's securebits forbid it.
pub fn keep_capabilities(keep: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0, 0).map(drop)
}

/// Sets `no_new_privs`; there is no way back.
///
/// # Errors
/// None on a Linux kernel.
pub fn no_new_privileges() -> nix::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0).map(drop)
}

/// Has `command` set `no_new_privs` for itself and all that come from it.
pub fn spawn_without_new_privileges(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: one system call that takes plain numbers; nothing is allocated or locked.
    unsafe { command.pre_exec(|| Ok(no_new_privileges()?)) };
}

/// The numbers that `kill -l` gives SIGRTMIN and SIGRTMAX (signal(7)); a libc counts from what it
/// leaves over of them.
pub const RTMIN: i32 = 34;
/// See [`RTMIN`].
pub const RTMAX: i32 = 64;

/// All signals, with those that a libc keeps for itself and leaves out of `sigfillset(3)`.
#[must_use]
pub fn all_signals() -> SigSet {
    // SAFETY: a set of bits, all of which may be 1.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        std::ptr::write_bytes(&raw mut set, 0xff, 1);
        SigSet::from_sigset_t_unchecked(set)
    }
}

/// Has `command` start without blocked signals, which it would inherit: `run` has blocked them all.
pub fn spawn_unblocked(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: one system call with a set on the stack; nothing is allocated or locked.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
}

/// Has `command` lead a session of its own: signals of the caller's terminal don't reach it, and it
/// outlives that.
pub fn spawn_in_session(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: one system call without arguments; nothing is allocated or locked.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
}

/// Has `command`, which leads a process group of its own, take the terminal on standard input, if
/// there is one, and start without blocked signals.
pub fn spawn_in_foreground(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let set_up = || {
        // SAFETY: system calls that take plain numbers and a set on the stack; nothing is allocated
        // or locked. Stopping for a background process that takes the terminal is not wanted.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            libc::tcsetpgrp(0, libc::getpid());
            libc::sigemptyset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: see above.
    unsafe { command.pre_exec(set_up) };
}

/// Says whether other processes of the same user may look into this one (`/proc/PID/exe`, ptrace).
///
/// # Errors
/// None for 0 and 1.
pub fn set_dumpable(dumpable: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, dumpable.into(), 0, 0).map(drop)
}

/// Makes orphans below this process its own children.
///
/// # Errors
/// None on a Linux kernel.
pub fn become_subreaper() -> nix::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0).map(drop)
}

/// Has the kernel kill this process when the thread that made it ends.
///
/// # Errors
/// `EINVAL` for a bad signal number.
pub fn set_parent_death_signal(signal: i32) -> nix::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0, 0).map(drop)
}

/// The name that `ps` shows.
pub fn set_name(name: &CStr) {
    // SAFETY: `name` is NUL-terminated; the kernel copies at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Joins a new session keyring called `name` (`keyctl(2)`), so that the container does not see
/// the caller's keys.
///
/// # Errors
/// `ENOSYS` on kernels without keyrings, `EDQUOT` over the user's quota.
pub fn join_session_keyring(name: &CStr) -> nix::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(drop)
}

/// `setgroups(2)` by the bare system call: glibc's wrapper would look for other threads.
///
/// # Errors
/// `EPERM` in a user namespace whose `setgroups` file says deny.
pub fn setgroups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// `setresgid(2)` for all three ids.
///
/// # Errors
/// `EINVAL` when `gid` is not mapped in the user namespace.
pub fn setgid(gid: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// `setresuid(2)` for all three ids.
///
/// # Errors
/// `EINVAL` when `uid` is not mapped in the user namespace.
pub fn setuid(uid: u32) -> nix::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `setrlimit(2)` by resource number (`RLIMIT_*`).
///
/// # Errors
/// `EPERM` when raising a hard limit without `CAP_SYS_RESOURCE`.
pub fn setrlimit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call.
    check(unsafe { libc::setrlimit(resource as _, &limit) }.into()).map(drop)
}

/// The hard limit of a resource (`RLIMIT_*`) that this process has.
///
/// # Errors
/// `EINVAL` for an unknown resource.
pub fn hard_limit(resource: u32) -> nix::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call, which writes no more than it.
    check(unsafe { libc::getrlimit(resource as _, &mut limit) }.into())?;
    Ok(limit.rlim_max)
}

/// The kind of namespace (`CLONE_NEW…`) that a file is (ioctl_nsfs(2)).
///
/// # Errors
/// `ENOTTY` when it is no namespace.
pub fn namespace_kind(file: std::os::fd::BorrowedFd) -> nix::Result<i32> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) }.into()).map(|kind| kind as i32)
}

/// `personality(2)`.
///
/// # Errors
/// `EINVAL` when the kernel does not know the domain.
pub fn set_personality(domain: u64) -> nix::Result<()> {
    // SAFETY: plain number.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) }).map(drop)
}

/// Lets the thread run on every processor that its cgroup allows (`sched_setaffinity(2)` with
/// all bits set, which the kernel cuts down).
///
/// # Errors
/// `EINVAL` when the cpuset is empty.
pub fn reset_affinity() -> nix::Result<()> {
    set_affinity(&[u64::MAX; 128])
}

/// Binds the calling thread to the processors whose bits are set: bit n of word w is processor
/// 64 w + n.
///
/// # Errors
/// `EINVAL` when none of them is allowed.
pub fn set_affinity(cpus: &[u64]) -> nix::Result<()> {
    let (size, mask) = (size_of_val(cpus), cpus.as_ptr());
    // SAFETY: pointer and length in bytes belong together.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, mask) }).map(drop)
}

/// `ioprio_set(2)` for the calling thread; `value` is class and level in the kernel's encoding.
///
/// # Errors
/// `EPERM` for the real-time class without `CAP_SYS_NICE`.
pub fn set_io_priority(value: i32) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// The argument of `sched_setattr(2)`, in the kernel's layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the fields are those of sched_setattr(2)")]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

/// `sched_setattr(2)` for the calling thread.
///
/// # Errors
/// `EPERM`, `EINVAL`, `EBUSY` as the manual page has it.
pub fn set_scheduler(mut attr: SchedAttr) -> nix::Result<()> {
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: `attr` has the layout and size that it claims, and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// `set_mempolicy(2)`; bit n of `nodes` is NUMA node n.
///
/// # Errors
/// `EINVAL` for a mode or node that the kernel does not have.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> nix::Result<()> {
    // The kernel takes one from the count.
    let bits = nodes.len() * 64 + 1;
    // SAFETY: pointer and bit count belong together; of an empty list nothing is read.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), bits) }).map(drop)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// `execve(2)`: becomes the program `path`. Returns only on failure. Not by `execveat`, which
/// system call filters of older engines do not know.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::last()
}

/// `execveat(2)`: becomes the program `path` below `dir`; an empty path means the file `dir`
/// itself. Returns only on failure.
pub fn execveat(dir: impl AsFd, path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let flags = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            flags,
        )
    };
    Errno::last()
}

/// Sets the file mode creation mask and returns the one before.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: plain number; cannot fail.
    unsafe { libc::umask(mask) }
}

/// `setdomainname(2)`.
///
/// # Errors
/// `EINVAL` for a name of more than 64 bytes.
pub fn setdomainname(name: &str) -> nix::Result<()> {
    // SAFETY: pointer and length belong together.
    check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}
