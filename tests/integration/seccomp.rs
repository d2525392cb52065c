//! System call filters, as Docker's default profile uses them and beyond.

use serde_json::{Value, json};

use nix::libc;

use crate::skip;
use crate::support::{Json, Sandbox, Terminal};

/// A sandbox with everything allowed but for these rules.
fn with_rules(rules: Value) -> Sandbox {
    with_profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
}

fn with_profile(profile: Value) -> Sandbox {
    let mut sandbox = Sandbox::new("seccomp");
    sandbox.config["linux"]["seccomp"] = profile;
    sandbox
}

fn syscall(nr: libc::c_long, arguments: &str) -> String {
    format!("syscall {nr} {arguments}")
}

#[test]
fn errno_of_a_rule() {
    let mut sandbox = with_rules(json!([
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
        {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}
    ]));
    let outcomes = sandbox.attempt(&[
        "mkdir /tmp/x",
        &syscall(libc::SYS_getpriority, "0 0"),
        &syscall(libc::SYS_sync, ""),
        &syscall(libc::SYS_getpid, ""),
    ]);
    assert_eq!(outcomes, ["EPERM", "EADDRNOTAVAIL", "ok 0", "ok 1"]);
}

#[test]
fn the_filter_is_on_and_the_status_shows_it() {
    let mut sandbox = with_rules(json!([]));
    let report = sandbox.probe();
    assert_eq!(report.text("/status/Seccomp"), "2");
    assert_eq!(report.text("/status/Seccomp_filters"), "1");
    sandbox.config["linux"].as_object_mut().unwrap().remove("seccomp");
    assert_eq!(sandbox.probe().text("/status/Seccomp"), "0");
}

#[test]
fn arguments_are_compared_with_every_operator() {
    // sched_yield takes no argument, so whatever is passed only matters to the filter.
    let rule = |args: Value| json!([{"names": ["sched_yield"], "action": "SCMP_ACT_ERRNO", "errnoRet": 100, "args": args}]);
    let arg = |op: &str, value: u64, two: u64| json!([{"index": 0, "op": op, "value": value, "valueTwo": two}]);
    let big = 1u64 << 40;
    for (op, value, two, caught, passes) in [
        ("SCMP_CMP_EQ", 7, 0, &[7][..], &[6, 8, 7 | big][..]),
        ("SCMP_CMP_NE", 7, 0, &[6, 7 | big], &[7]),
        ("SCMP_CMP_LT", 7, 0, &[0, 6], &[7, 8, big]),
        ("SCMP_CMP_LE", 7, 0, &[0, 7], &[8, big]),
        ("SCMP_CMP_GT", 7, 0, &[8, big, u64::MAX], &[0, 7]),
        ("SCMP_CMP_GE", 7, 0, &[7, big], &[0, 6]),
        ("SCMP_CMP_MASKED_EQ", 0xf0, 0x20, &[0x2f, 0xf2f, 0x20 | big], &[0x3f, 0]),
        ("SCMP_CMP_EQ", big, 0, &[big], &[0, 1, big + 1]),
        ("SCMP_CMP_GT", big, 0, &[big + 1, big << 1], &[1, big, 0xffff_ffff]),
        ("SCMP_CMP_LT", big, 0, &[0xffff_ffff, 1], &[big, big + 1]),
    ] {
        let mut sandbox = with_rules(rule(arg(op, value, two)));
        let calls: Vec<String> = caught
            .iter()
            .chain(passes)
            .map(|value| syscall(libc::SYS_sched_yield, &value.to_string()))
            .collect();
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        let outcomes = sandbox.attempt(&calls);
        let (first, second) = outcomes.split_at(caught.len());
        assert!(first.iter().all(|outcome| outcome == "ENETDOWN"), "{op} {value}: {outcomes:?}");
        assert!(second.iter().all(|outcome| outcome == "ok 0"), "{op} {value}: {outcomes:?}");
    }
}

#[test]
fn several_arguments_must_all_match() {
    let args = json!([
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1},
        {"index": 1, "op": "SCMP_CMP_EQ", "value": 2}
    ]);
    let mut sandbox =
        with_rules(json!([{"names": ["sched_yield"], "action": "SCMP_ACT_ERRNO", "args": args}]));
    let call = |arguments: &str| syscall(libc::SYS_sched_yield, arguments);
    let outcomes = sandbox.attempt(&[&call("1 2"), &call("1 3"), &call("2 2")]);
    assert_eq!(outcomes, ["EPERM", "ok 0", "ok 0"]);
}

#[test]
fn rules_on_one_argument_are_alternatives() {
    let args = json!([
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1},
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 2}
    ]);
    let mut sandbox =
        with_rules(json!([{"names": ["sched_yield"], "action": "SCMP_ACT_ERRNO", "args": args}]));
    let call = |arguments: &str| syscall(libc::SYS_sched_yield, arguments);
    let outcomes = sandbox.attempt(&[&call("1"), &call("2"), &call("3")]);
    assert_eq!(outcomes, ["EPERM", "EPERM", "ok 0"]);
}

#[test]
fn rules_of_one_syscall_add_up() {
    let rule = |value: u64, errno: u64| {
        let arg = json!([{"index": 0, "op": "SCMP_CMP_EQ", "value": value}]);
        json!({"names": ["sched_yield"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": arg})
    };
    let mut sandbox = with_rules(json!([rule(1, 1), rule(2, 2), rule(3, 3)]));
    let calls = [1, 2, 3, 4].map(|value| syscall(libc::SYS_sched_yield, &value.to_string()));
    let outcomes = sandbox.attempt(&calls.each_ref().map(String::as_str));
    assert_eq!(outcomes, ["EPERM", "ENOENT", "ESRCH", "ok 0"]);
}

/// What the guest and its libraries need, so that a list of what is allowed can be tried.
/// What a static program needs to start and report.
pub const NEEDED: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clone",
    "clone3",
    "close",
    "close_range",
    "dup",
    "dup2",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchdir",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getsid",
    "gettid",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "clock_nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sendmsg",
    "recvmsg",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "sigaltstack",
    "socketpair",
    "stat",
    "statfs",
    "statx",
    "tgkill",
    "umask",
    "uname",
    "wait4",
    "waitid",
    "write",
    "writev",
];

#[test]
fn allow_list_with_a_default_errno() {
    let mut sandbox = with_profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": NEEDED, "action": "SCMP_ACT_ALLOW"}]
    }));
    let outcomes = sandbox.attempt(&[&syscall(libc::SYS_sync, ""), &syscall(libc::SYS_getpid, "")]);
    assert_eq!(outcomes, ["ENOSYS", "ok 1"]);
}

#[test]
fn actions_that_kill() {
    for (action, code) in [
        ("SCMP_ACT_KILL", 159),
        ("SCMP_ACT_KILL_PROCESS", 159),
        ("SCMP_ACT_KILL_THREAD", 159),
        ("SCMP_ACT_TRAP", 159),
    ] {
        let mut sandbox = with_rules(json!([{"names": ["sync"], "action": action}]));
        sandbox.args(&["/guest", "do", &syscall(libc::SYS_sync, "")]);
        sandbox.run().exits_with(code);
    }
}

#[test]
fn only_kill_process_ends_the_other_threads_too() {
    let in_a_thread = format!("thread {}", libc::SYS_sync);
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD"] {
        let mut sandbox = with_rules(json!([{"names": ["sync"], "action": action}]));
        assert_eq!(sandbox.attempt(&[&in_a_thread]), ["ok 1 left"], "{action}");
    }
    let mut sandbox = with_rules(json!([{"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"}]));
    sandbox.args(&["/guest", "do", &in_a_thread]);
    sandbox.run().exits_with(159);
}

#[test]
fn trap_is_a_signal_that_can_be_caught() {
    let mut sandbox = with_rules(json!([{"names": ["sync"], "action": "SCMP_ACT_TRAP"}]));
    let outcomes = sandbox.attempt(&[&format!("trap {}", libc::SYS_sync)]);
    // SIGSYS, SYS_SECCOMP.
    assert_eq!(outcomes, ["ok signal 31 code 1 errno 0"]);
}

#[test]
fn trace_without_a_tracer_is_enosys() {
    let mut sandbox = with_rules(json!([
        {"names": ["sync"], "action": "SCMP_ACT_TRACE"},
        {"names": ["getpriority"], "action": "SCMP_ACT_TRACE", "errnoRet": 7}
    ]));
    let outcomes =
        sandbox.attempt(&[&syscall(libc::SYS_sync, ""), &syscall(libc::SYS_getpriority, "0 0")]);
    assert_eq!(outcomes, ["ENOSYS", "ENOSYS"]);
}

#[test]
fn the_largest_errno_arrives_and_a_larger_one_is_an_error() {
    let rule = |errno: u32| {
        with_rules(json!([{"names": ["sync"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]))
    };
    // 4095 is no errno of a name, but the kernel passes it on.
    assert_eq!(rule(4095).attempt(&[&syscall(libc::SYS_sync, "")]), ["UnknownErrno"]);
    assert_eq!(rule(133).attempt(&[&syscall(libc::SYS_sync, "")]), ["EHWPOISON"]);
    rule(4096).run().fails(1, &["linux.seccomp.syscalls[0].errnoRet", "4096", "4095"]);
}

/// The kernel's log from now on.
fn kernel_log() -> Option<std::fs::File> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut log = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    log.seek(SeekFrom::End(0)).ok()?;
    Some(log)
}

/// Runs the call until the kernel has logged it with this action: it limits its messages to a few
/// a second.
#[track_caller]
fn expect_logged(sandbox: &mut Sandbox, outcome: &str, action: &str) {
    use std::io::Read;
    let number = libc::SYS_getpriority;
    let text = format!("syscall={number} ");
    let mut log = kernel_log().unwrap();
    crate::support::wait_until("the kernel has logged the call", || {
        assert_eq!(sandbox.attempt(&[&syscall(number, "0 0")]), [outcome]);
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut line = [0; 8192];
        // One message a read; an overrun is an error once.
        while let Ok(length) = log.read(&mut line) {
            let line = String::from_utf8_lossy(&line[..length]);
            if line.contains("type=1326") && line.contains(&text) && line.contains(action) {
                return true;
            }
        }
        false
    });
}

/// Why a call that a filter logs would not be seen.
fn no_kernel_log() -> Option<&'static str> {
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if cmdline.split_whitespace().any(|word| word == "audit=0") {
        return Some("this kernel was started with audit=0, so filters can't log");
    }
    kernel_log().is_none().then_some("/dev/kmsg can't be read")
}

#[test]
fn action_log_lets_pass_and_logs() {
    let mut sandbox = with_rules(json!([{"names": ["getpriority"], "action": "SCMP_ACT_LOG"}]));
    assert_eq!(sandbox.attempt(&[&syscall(libc::SYS_getpriority, "0 0")]), ["ok 20"]);
    if let Some(reason) = no_kernel_log() {
        skip!("{reason}");
    }
    expect_logged(&mut sandbox, "ok 20", "code=0x7ffc0000");
}

#[test]
fn flag_log_logs_every_action_but_allow() {
    if let Some(reason) = no_kernel_log() {
        skip!("{reason}");
    }
    let mut sandbox = with_profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]
    }));
    expect_logged(&mut sandbox, "EBADFD", "code=0x50000");
}

#[test]
fn every_flag_reaches_the_kernel() {
    if !std::path::Path::new("/usr/bin/strace").exists() {
        skip!("strace is not installed");
    }
    // TSYNC is for programs of several threads; the one that is about to be executed has one.
    for (flags, seen) in [
        (json!(null), "SECCOMP_FILTER_FLAG_SPEC_ALLOW,"),
        (json!([]), "SECCOMP_SET_MODE_FILTER, 0,"),
        (json!(["SECCOMP_FILTER_FLAG_LOG"]), "SECCOMP_FILTER_FLAG_LOG,"),
        (json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), "SECCOMP_FILTER_FLAG_SPEC_ALLOW,"),
        (json!(["SECCOMP_FILTER_FLAG_TSYNC"]), "SECCOMP_SET_MODE_FILTER, 0,"),
        (
            json!([
                "SECCOMP_FILTER_FLAG_TSYNC",
                "SECCOMP_FILTER_FLAG_LOG",
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
            ]),
            "SECCOMP_FILTER_FLAG_LOG|SECCOMP_FILTER_FLAG_SPEC_ALLOW,",
        ),
    ] {
        let mut sandbox = with_profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        if !flags.is_null() {
            sandbox.config["linux"]["seccomp"]["flags"] = flags;
        }
        sandbox.args(&["/bin/true"]);
        let trace = sandbox.dir.join("trace");
        let script =
            format!("exec /usr/bin/strace -f -qq -e trace=seccomp -o {} \"$@\"", trace.display());
        sandbox.bundle_call("run").arg(&sandbox.id).wrapped(&script).output().ok();
        let trace = std::fs::read_to_string(trace).unwrap();
        let load = trace.lines().find(|line| line.contains("SET_MODE_FILTER")).unwrap();
        assert!(load.contains(seen), "{seen}: {load}");
    }
}

#[test]
fn i386_and_x32_calls_follow_the_profile_by_their_own_numbers() {
    if !cfg!(target_arch = "x86_64") {
        skip!("i386 and x32 exist on x86_64 only");
    }
    let profile = |archs: Value| {
        with_profile(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": archs,
            "syscalls": [
                {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
                {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 100,
                 "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 4_000_000_000u64}]}
            ]
        }))
    };
    let x32 = |number: i64, args: &str| syscall(number | 0x4000_0000, args);
    let mut sandbox = profile(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
    // getppid is 110 on x86_64 and x32, 64 on i386; ioctl is 16 on x86_64 and 514 on x32.
    let outcomes = sandbox.attempt(&[
        "syscall 110",
        "i386 64",
        "i386 20",
        &x32(110, ""),
        &x32(514, "4000000000"),
        // x32 has 32 bits of each argument.
        &x32(514, "8294967296"),
        "syscall 16 8294967296",
    ]);
    if outcomes[1] == "ENOSYS" {
        skip!("this kernel has no 32-bit system calls");
    }
    assert_eq!(outcomes[..3], ["EADDRNOTAVAIL", "EADDRNOTAVAIL", "ok 1"]);
    assert_eq!(outcomes[3..6], ["EADDRNOTAVAIL", "ENETDOWN", "ENETDOWN"]);
    assert_eq!(outcomes[6], "EBADF");
    // What is not listed is no way around: the thread dies.
    for (archs, action) in [
        (json!(["SCMP_ARCH_X86_64"]), "i386 20"),
        (json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]), "i386 20"),
        (json!([]), &x32(39, "")),
        (json!(["SCMP_ARCH_X86"]), &x32(39, "")),
    ] {
        let mut sandbox = profile(archs);
        sandbox.args(&["/guest", "do", action]);
        sandbox.run().exits_with(159);
    }
}

#[test]
fn a_failed_exec_is_reported_although_the_filter_forbids_messages() {
    let mut sandbox = with_rules(json!([
        {"names": ["sendmsg", "sendto"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}
    ]));
    let bad = sandbox.rootfs().join("bad");
    std::fs::write(&bad, [1, 2, 3, 4]).unwrap();
    std::fs::set_permissions(&bad, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.args(&["/bad"]);
    sandbox.run().fails(1, &["/bad", "exec format error"]);
    sandbox.create().ok();
    sandbox.start().fails(1, &["/bad", "exec format error"]);
}

#[test]
fn unknown_calls_are_one_warning_for_those_who_look() {
    let mut sandbox = with_rules(json!([
        {"names": ["nosuchcall", "sync", "another"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["another", "third"], "action": "SCMP_ACT_LOG"}
    ]));
    sandbox.args(&["/bin/true"]);
    // Engines hand us the container's own standard error.
    assert_eq!(sandbox.run().ok().stderr, "");
    let log = sandbox.dir.join("log");
    let named = "nosuchcall, another, third";
    let run = |flags: &[&str]| {
        let call = sandbox.call(flags).arg("run").arg("--bundle").arg(sandbox.bundle());
        call.arg(&sandbox.id)
    };
    run(&["--debug"]).output().ok().says(&[named]);
    run(&["--log", log.to_str().unwrap()]).output().ok();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.lines().count() == 1 && log.contains("warning") && log.contains(named), "{log}");
    let (mut terminal, slave) = Terminal::open(24, 200);
    run(&[]).terminal(slave).output().ok();
    terminal.expect(named);
}

#[test]
fn other_architectures_are_not_a_way_around() {
    if !cfg!(target_arch = "x86_64") {
        skip!("x32 exists on x86_64 only");
    }
    // x32 calls have bit 30 set in their number. Without the architecture they must not pass.
    let mut sandbox = with_profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]
    }));
    let x32 = syscall(libc::SYS_sync | 0x4000_0000, "");
    sandbox.args(&["/guest", "do", &x32]);
    let output = sandbox.run();
    assert!(output.code == 159 || !output.stdout.contains("ok"), "{output:?}");
}

#[test]
fn exec_gets_the_filter_as_well() {
    let mut sandbox = with_rules(json!([{"names": ["sync"], "action": "SCMP_ACT_ERRNO"}]));
    sandbox.args(&["/bin/sleep", "100"]);
    sandbox.run_detached();
    assert_eq!(sandbox.exec_attempt(&[&syscall(libc::SYS_sync, "")]), ["EPERM"]);
}

#[test]
fn dockers_way_to_filter_clone_and_socket_families() {
    let mut sandbox = with_rules(json!([
        {
            "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]
        },
        {
            "names": ["unshare", "clone"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0x7e020000u64, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}]
        }
    ]));
    let outcomes = sandbox.attempt(&[
        "socket 40 1 0",
        "socket 1 1 0",
        &syscall(libc::SYS_unshare, "0x10000000"),
        &syscall(libc::SYS_unshare, "0"),
    ]);
    assert_eq!(outcomes[0], "EPERM");
    assert!(outcomes[1].starts_with("ok"));
    assert_eq!(outcomes[2..], ["EPERM", "ok 0"]);
}
