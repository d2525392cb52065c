//! The system calls that a container may make: what Docker documents as its default policy
//! (docs.docker.com, "Seccomp security profiles for Docker"). Everything not named fails with `EPERM`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Allowed for everybody.
const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod \
    fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr \
    flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 \
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority \
    getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage \
    getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr \
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup \
    io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown \
    lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek \
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create \
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock \
    munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 \
    pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll \
    ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 \
    pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv \
    recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename \
    renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam \
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 \
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 \
    setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 \
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount \
    statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create \
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times \
    tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat \
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Allowed with a capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// Allowed everywhere since Linux 4.8, where a filter sees what a tracer changed.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// Domains of `personality(2)`: Linux, Linux 32 bit, both with uname 2.6, and the question.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of `clone(2)` that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

const AF_VSOCK: u64 = 40;

/// `linux.seccomp` for a program with these capabilities.
#[must_use]
pub fn default_policy(capabilities: &[String]) -> Value {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut names = words(ALLOWED);
    names.extend(words(TRACING));
    names.extend(words(match std::env::consts::ARCH {
        "x86_64" => "arch_prctl modify_ldt",
        "aarch64" => {
            "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"
        }
        "riscv64" => "riscv_flush_icache",
        _ => "",
    }));
    for (capability, list) in WITH_CAPABILITY {
        if has(capability) {
            names.extend(words(list));
        }
    }
    let allow = "SCMP_ACT_ALLOW";
    let mut rules = vec![
        json!({"names": names, "action": allow}),
        json!({"names": ["socket"], "action": allow,
            "args": [{"index": 0, "value": AF_VSOCK, "op": "SCMP_CMP_NE"}]}),
    ];
    rules.extend(PERSONALITIES.map(|domain| {
        json!({"names": ["personality"], "action": allow,
            "args": [{"index": 0, "value": domain, "op": "SCMP_CMP_EQ"}]})
    }));
    if !has("CAP_SYS_ADMIN") {
        // clone3's flags are in memory, where no filter can look: the C library then uses clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
        rules.push(json!({"names": ["clone"], "action": allow,
            "args": [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0,
                "op": "SCMP_CMP_MASKED_EQ"}]}));
    }
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        "riscv64" => json!(["SCMP_ARCH_RISCV64"]),
        _ => json!([]),
    };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": architectures,
        "syscalls": rules,
    })
}

/// `linux.seccomp` from a profile of docker's own format (`--security-opt seccomp=FILE`): its rules
/// may depend on capabilities, the architecture and the kernel.
///
/// # Errors
/// When it is no JSON object.
pub fn from_profile(text: &str, capabilities: &[String]) -> Result<Value> {
    let mut profile: Value =
        serde_json::from_str(text).context("seccomp profile: not valid JSON")?;
    let object = profile.as_object_mut().context("seccomp profile: must be a JSON object")?;
    if let Some(Value::Array(map)) = object.remove("archMap") {
        let own = map.iter().find(|entry| entry["architecture"] == native_architecture());
        let mut names = vec![json!(native_architecture())];
        let further = own.and_then(|entry| entry["subArchitectures"].as_array());
        names.extend(further.into_iter().flatten().cloned());
        object.insert("architectures".into(), names.into());
    }
    if let Some(rules) = object.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain(|rule| {
            let includes = &rule["includes"];
            let excludes = &rule["excludes"];
            matches_all(includes, capabilities) && !matches_any(excludes, capabilities)
        });
        for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
            for key in ["includes", "excludes", "comment"] {
                rule.remove(key);
            }
            // As in profiles of docker before 1.12.
            if let Some(name) = rule.remove("name") {
                rule.insert("names".into(), json!([name]));
            }
            if rule.get("args").is_some_and(Value::is_null) {
                rule.remove("args");
            }
        }
    }
    Ok(profile)
}

fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        _ => "SCMP_ARCH_X86_64",
    }
}

/// As profiles write it: Go's names.
fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn texts<'a>(condition: &'a Value, key: &str) -> Vec<&'a str> {
    let list = condition[key].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn matches_all(condition: &Value, capabilities: &[String]) -> bool {
    let has = |name: &&str| capabilities.iter().any(|capability| capability == name);
    let arches = texts(condition, "arches");
    texts(condition, "caps").iter().all(has)
        && (arches.is_empty() || arches.contains(&goarch()))
        && condition["minKernel"].as_str().is_none_or(running_at_least)
}

fn matches_any(condition: &Value, capabilities: &[String]) -> bool {
    let has = |name: &&str| capabilities.iter().any(|capability| capability == name);
    texts(condition, "caps").iter().any(has)
        || texts(condition, "arches").contains(&goarch())
        || condition["minKernel"].as_str().is_some_and(running_at_least)
}

fn running_at_least(version: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit()).take(2).map_while(|n| n.parse().ok()).collect()
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    numbers(&release) >= numbers(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(policy: &Value) -> Vec<&str> {
        let rules = policy["syscalls"].as_array().unwrap();
        rules.iter().flat_map(|rule| texts(rule, "names")).collect()
    }

    #[test]
    fn calls_come_with_capabilities() {
        let plain = default_policy(&[]);
        assert!(names(&plain).contains(&"openat") && names(&plain).contains(&"clone3"));
        assert!(!names(&plain).contains(&"mount") && !names(&plain).contains(&"keyctl"));
        let admin = default_policy(&["CAP_SYS_ADMIN".into()]);
        assert!(names(&admin).contains(&"mount"));
        let denied = |rule: &Value| rule["errnoRet"] == 38;
        assert!(plain["syscalls"].as_array().unwrap().iter().any(denied));
        assert!(!admin["syscalls"].as_array().unwrap().iter().any(denied));
    }

    #[test]
    fn profiles_of_dockers_format() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": {}},
                {"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_X"]}},
                {"names": ["c"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_X"]}},
                {"name": "d", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}}]}"#;
        assert_eq!(names(&from_profile(text, &[]).unwrap()), ["a", "c", "d"]);
        assert_eq!(names(&from_profile(text, &["CAP_X".into()]).unwrap()), ["a", "b", "d"]);
        from_profile("[]", &[]).unwrap_err();
        from_profile("x", &[]).unwrap_err();
    }
}
