//! seccomp(2).
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Attaches a filter to the calling thread, for good and for all its children
/// (`SECCOMP_SET_MODE_FILTER`). `flags` are `SECCOMP_FILTER_FLAG_*` bits; with
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` the result is the notification descriptor (close-on-exec).
///
/// The thread needs CAP_SYS_ADMIN in its user namespace or NO_NEW_PRIVS (else EACCES); neither is
/// touched here.
pub fn load(program: &[libc::sock_filter], flags: u32) -> nix::Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads `len` instructions from `filter`, which the borrowed slice
    // holds, and copies them before it returns.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let fd = Errno::result(result)?;
    if u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the result is a new descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, Uid, fork};
    use oci_spec::runtime::LinuxSeccomp;
    use serde_json::{Value, json};

    use super::*;
    use crate::security::seccomp::{Filter, compile};

    fn filter(json: Value) -> Filter {
        let profile: LinuxSeccomp = serde_json::from_value(json).unwrap();
        compile(&profile).unwrap()
    }

    /// Runs `child` in a forked process under the filter and returns the numbers that it gives
    /// back and how it ended.
    fn under<const N: usize>(
        filter: &Filter,
        child: impl FnOnce(Option<OwnedFd>) -> [i64; N],
    ) -> (Vec<i64>, WaitStatus) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (mut reader, mut writer) = (File::from(reader), File::from(writer));
        // Without this, nobody but root may load a filter.
        let unprivileged = !Uid::effective().is_root();
        // SAFETY: other threads of the test program may hold locks at the time of the fork; the
        // child makes system calls only, allocates nothing and leaves by _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                // SAFETY: PR_SET_NO_NEW_PRIVS reads no memory; _exit does not return.
                unsafe {
                    if unprivileged {
                        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                    }
                    let Ok(listener) = load(&filter.program, filter.flags) else {
                        libc::_exit(101)
                    };
                    for number in child(listener) {
                        if writer.write_all(&number.to_ne_bytes()).is_err() {
                            libc::_exit(102);
                        }
                    }
                    libc::_exit(0)
                }
            }
            ForkResult::Parent { child } => {
                drop(writer);
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                let numbers = bytes.chunks(8).map(|n| i64::from_ne_bytes(n.try_into().unwrap()));
                (numbers.collect(), waitpid(child, None).unwrap())
            }
        }
    }

    fn exited(status: WaitStatus) -> Option<i32> {
        if let WaitStatus::Exited(_, code) = status { Some(code) } else { None }
    }

    /// The errno of a system call, 0 if it succeeds.
    fn errno_of(number: libc::c_long, args: [u64; 2]) -> i64 {
        // SAFETY: the tests call this with calls that take no pointers, or that the filter refuses.
        let result = unsafe { libc::syscall(number, args[0], args[1]) };
        if result == -1 { i64::from(Errno::last_raw()) } else { 0 }
    }

    #[test]
    fn the_kernel_gives_the_verdicts_of_the_profile() {
        let filter = filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["write", "exit_group", "getuid", "prctl", "mseal"],
                 "action": "SCMP_ACT_ALLOW"},
                {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["getsid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
                {"names": ["getpriority"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
                    {"index": 1, "value": 0x1_0000_0000u64, "op": "SCMP_CMP_LT"}]}]}));
        let (seen, status) = under(&filter, |listener| {
            [
                i64::from(listener.is_some()),
                errno_of(libc::SYS_getuid, [0, 0]),
                errno_of(libc::SYS_getpgid, [0, 0]),
                errno_of(libc::SYS_getsid, [0, 0]),
                errno_of(libc::SYS_getppid, [0, 0]),
                errno_of(libc::SYS_getpriority, [0, 0]),
                errno_of(libc::SYS_getpriority, [1, 0]),
                errno_of(libc::SYS_getpriority, [0, 1 << 32]),
                errno_of(10_000, [0, 0]),
            ]
        });
        assert_eq!(exited(status), Some(0));
        assert_eq!(seen, [0, 0, 1, 95, 13, 0, 13, 13, i64::from(libc::ENOSYS)]);
    }

    #[test]
    fn loading_leaves_no_new_privs_alone() {
        let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        let (seen, status) = under(&filter, |_| {
            // SAFETY: PR_GET_NO_NEW_PRIVS reads no memory.
            [i64::from(unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) })]
        });
        assert_eq!(exited(status), Some(0));
        assert_eq!(seen, [i64::from(!Uid::effective().is_root())]);
    }

    #[test]
    fn notify_yields_a_close_on_exec_descriptor() {
        let filter = filter(json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent",
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "syscalls": [{"names": ["getpriority"], "action": "SCMP_ACT_NOTIFY"}]}));
        let (seen, status) = under(&filter, |listener| {
            let fd = listener.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            // SAFETY: F_GETFD reads no memory.
            [i64::from(unsafe { libc::fcntl(fd, libc::F_GETFD) })]
        });
        assert_eq!(exited(status), Some(0));
        assert_eq!(seen, [i64::from(libc::FD_CLOEXEC)]);
    }

    #[test]
    fn kill_process_ends_the_process_with_sigsys() {
        let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getpriority"], "action": "SCMP_ACT_KILL_PROCESS"}]}));
        let (seen, status) = under(&filter, |_| [errno_of(libc::SYS_getpriority, [0, 0])]);
        let sigsys = nix::sys::signal::Signal::SIGSYS;
        assert!(matches!(status, WaitStatus::Signaled(_, signal, _) if signal == sigsys));
        assert!(seen.is_empty());
    }

    /// getpid by i386's calling convention: number 20.
    #[cfg(target_arch = "x86_64")]
    fn i386_getpid() -> i64 {
        let result: i32;
        // SAFETY: getpid takes no arguments; the kernel clears r8 to r11 on this entry.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("eax") 20 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        i64::from(result)
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn i386_calls_pass_only_if_the_architecture_is_listed() {
        let profile = |archs: Value| {
            filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": archs,
                "syscalls": [{"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}))
        };
        let (seen, status) = under(&profile(json!(["SCMP_ARCH_X86"])), |_| [i386_getpid()]);
        if matches!(status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSEGV, _)) {
            println!("skipped: this kernel has no 32-bit system calls (CONFIG_IA32_EMULATION)");
            return;
        }
        assert_eq!(exited(status), Some(0));
        assert_eq!(seen, [-95]);
        let (seen, status) = under(&profile(json!([])), |_| [i386_getpid()]);
        let sigsys = nix::sys::signal::Signal::SIGSYS;
        assert!(matches!(status, WaitStatus::Signaled(_, signal, _) if signal == sigsys));
        assert!(seen.is_empty());
    }
}
