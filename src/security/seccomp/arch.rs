//! Which architectures a host can run and what its kernel calls each system call.
//!
//! Names and numbers come from the `syscalls` crate. What it lacks stands here:
//! calls newer than its tables, x32, calls private to arm, and i386's multiplexers.
use oci_spec::runtime::Arch;

/// Most architectures (ABIs) that one processor family has.
pub(super) const MAX_ABIS: usize = 3;

/// Set in the number of every x32 call (`asm/unistd.h`).
#[cfg(any(test, target_arch = "x86_64"))]
const X32_BIT: u32 = 0x4000_0000;

/// One way of making system calls: an architecture as config.json counts them.
pub(super) struct Abi {
    /// Its name in `linux.seccomp.architectures`.
    pub arch: Arch,
    /// `seccomp_data.arch` (`linux/audit.h`). Two ABIs may share it: x86_64 and x32.
    pub audit: u32,
    /// First and last number of its number space.
    pub numbers: (u32, u32),
    /// Arguments are 64 bits wide; otherwise only their low halves are compared, as libseccomp
    /// does for 32-bit architectures and x32.
    pub wide: bool,
    /// The number of a call, given its number on the native ABI.
    pub number: fn(&str, Option<u32>) -> Option<u32>,
    /// The multiplexer through which a call can be reached too.
    pub multiplexer: fn(&str) -> Option<Multiplexer>,
}

/// The ABIs that one kernel serves, the native one first, those of one `audit` value side by side
/// and in the order of their number spaces.
pub(super) type Family = [Abi];

/// `socketcall(call, …)` or `ipc(call, …)` of i386.
#[derive(Clone, Copy)]
pub(super) struct Multiplexer {
    /// The multiplexer's own number.
    pub number: u32,
    /// Its first argument.
    pub call: u8,
}

/// The family that this program is compiled for.
#[cfg(target_arch = "x86_64")]
pub(super) const HOST: &Family = &X86;
/// The family that this program is compiled for.
#[cfg(target_arch = "aarch64")]
pub(super) const HOST: &Family = &ARM;
/// The family that this program is compiled for.
#[cfg(target_arch = "riscv64")]
pub(super) const HOST: &Family = &RISCV;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
compile_error!("no system call table for this architecture: add its family here");

/// x86_64 with x32 and i386.
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) const X86: [Abi; 3] = [
    Abi {
        arch: Arch::ScmpArchX86_64,
        audit: 0xc000_003e,
        numbers: (0, X32_BIT - 1),
        wide: true,
        number: x86_64,
        multiplexer: no_multiplexer,
    },
    Abi {
        arch: Arch::ScmpArchX32,
        audit: 0xc000_003e,
        numbers: (X32_BIT, u32::MAX),
        wide: false,
        number: x32,
        multiplexer: no_multiplexer,
    },
    Abi {
        arch: Arch::ScmpArchX86,
        audit: 0x4000_0003,
        numbers: (0, u32::MAX),
        wide: false,
        number: x86,
        multiplexer: x86_multiplexer,
    },
];

/// aarch64 with 32-bit arm (EABI).
#[cfg(any(test, target_arch = "aarch64"))]
pub(super) const ARM: [Abi; 2] = [
    Abi {
        arch: Arch::ScmpArchAarch64,
        audit: 0xc000_00b7,
        numbers: (0, u32::MAX),
        wide: true,
        number: aarch64,
        multiplexer: no_multiplexer,
    },
    Abi {
        arch: Arch::ScmpArchArm,
        audit: 0x4000_0028,
        numbers: (0, u32::MAX),
        wide: false,
        number: arm,
        multiplexer: no_multiplexer,
    },
];

/// riscv64.
#[cfg(any(test, target_arch = "riscv64"))]
pub(super) const RISCV: [Abi; 1] = [Abi {
    arch: Arch::ScmpArchRiscv64,
    audit: 0xc000_00f3,
    numbers: (0, u32::MAX),
    wide: true,
    number: riscv64,
    multiplexer: no_multiplexer,
}];

/// The numbers of one architecture's calls, each plus 1, made at compile time: that of a name stands
/// where [`hash`] says, or behind, and before the next 0.
type Numbers = [u16; 1024];

/// FNV-1a.
const fn hash(name: &str) -> usize {
    let (bytes, mut hash, mut at) = (name.as_bytes(), 0x811c_9dc5_u32, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ hash >> 16) as usize
}

/// The number of a call, given how to tell the name of a number.
fn find(numbers: &Numbers, name: &str, of: fn(usize) -> Option<&'static str>) -> Option<u32> {
    let mut at = hash(name);
    loop {
        let number = numbers[at % numbers.len()].checked_sub(1)?;
        if of(number.into()) == Some(name) {
            return Some(number.into());
        }
        at += 1;
    }
}

/// The [`Numbers`] of an architecture that the `syscalls` crate has a table of.
macro_rules! numbers {
    ($arch:ident) => {{
        use syscalls::$arch::Sysno;
        let mut numbers: Numbers = [0; _];
        let mut number = 0;
        while number <= Sysno::last().id() as usize {
            if let Some(call) = Sysno::new(number) {
                let mut at = hash(call.name());
                while numbers[at % numbers.len()] != 0 {
                    at += 1;
                }
                numbers[at % numbers.len()] = number as u16 + 1;
            }
            number += 1;
        }
        numbers
    }};
}

/// The number of a call in a table of the `syscalls` crate, whose own look-up by name compares with
/// one after the other.
macro_rules! table {
    ($name:expr, $arch:ident) => {{
        static NUMBERS: Numbers = numbers!($arch);
        find(&NUMBERS, $name, |number| Some(syscalls::$arch::Sysno::new(number)?.name()))
    }};
}

/// Calls newer than the crate's tables; since Linux 5.1 a new call has one number everywhere
/// (`scripts/syscall.tbl`).
fn newest(name: &str) -> Option<u32> {
    match name {
        "listns" => Some(470),
        "rseq_slice_yield" => Some(471),
        _ => None,
    }
}

fn no_multiplexer(_: &str) -> Option<Multiplexer> {
    None
}

#[cfg(any(test, target_arch = "x86_64"))]
fn x86_64(name: &str, _: Option<u32>) -> Option<u32> {
    table!(name, x86_64).or_else(|| newest(name))
}

/// `arch/x86/entry/syscalls/syscall_64.tbl`: some calls have a number of their own, from 512 on, a
/// few (ABI "64" without an x32 twin) do not exist.
#[cfg(any(test, target_arch = "x86_64"))]
fn x32(_: &str, native: Option<u32>) -> Option<u32> {
    use syscalls::x86_64::Sysno;
    let native = native?;
    // A number is found faster than a name; all of these are in the table.
    let number = match Sysno::new(native as usize) {
        Some(Sysno::rt_sigaction) => 512,
        Some(Sysno::rt_sigreturn) => 513,
        Some(Sysno::ioctl) => 514,
        Some(Sysno::readv) => 515,
        Some(Sysno::writev) => 516,
        Some(Sysno::recvfrom) => 517,
        Some(Sysno::sendmsg) => 518,
        Some(Sysno::recvmsg) => 519,
        Some(Sysno::execve) => 520,
        Some(Sysno::ptrace) => 521,
        Some(Sysno::rt_sigpending) => 522,
        Some(Sysno::rt_sigtimedwait) => 523,
        Some(Sysno::rt_sigqueueinfo) => 524,
        Some(Sysno::sigaltstack) => 525,
        Some(Sysno::timer_create) => 526,
        Some(Sysno::mq_notify) => 527,
        Some(Sysno::kexec_load) => 528,
        Some(Sysno::waitid) => 529,
        Some(Sysno::set_robust_list) => 530,
        Some(Sysno::get_robust_list) => 531,
        Some(Sysno::vmsplice) => 532,
        Some(Sysno::move_pages) => 533,
        Some(Sysno::preadv) => 534,
        Some(Sysno::pwritev) => 535,
        Some(Sysno::rt_tgsigqueueinfo) => 536,
        Some(Sysno::recvmmsg) => 537,
        Some(Sysno::sendmmsg) => 538,
        Some(Sysno::process_vm_readv) => 539,
        Some(Sysno::process_vm_writev) => 540,
        Some(Sysno::setsockopt) => 541,
        Some(Sysno::getsockopt) => 542,
        Some(Sysno::io_setup) => 543,
        Some(Sysno::io_submit) => 544,
        Some(Sysno::execveat) => 545,
        Some(Sysno::preadv2) => 546,
        Some(Sysno::pwritev2) => 547,
        Some(
            Sysno::_sysctl
            | Sysno::create_module
            | Sysno::epoll_ctl_old
            | Sysno::epoll_wait_old
            | Sysno::get_kernel_syms
            | Sysno::get_thread_area
            | Sysno::nfsservctl
            | Sysno::query_module
            | Sysno::set_thread_area
            | Sysno::uselib
            | Sysno::vserver,
        ) => return None,
        _ => native,
    };
    Some(number | X32_BIT)
}

/// The number of each call of x86_64 on i386, plus 1: most names of a profile are those of both.
#[cfg(any(test, target_arch = "x86_64"))]
static X86_OF_X86_64: [u16; syscalls::x86_64::Sysno::last().id() as usize + 1] = {
    use syscalls::{x86, x86_64};
    const X86: Numbers = numbers!(x86);
    let (mut twins, mut native) = ([0; _], 0);
    while native < twins.len() {
        if let Some(call) = x86_64::Sysno::new(native) {
            let mut at = hash(call.name());
            while let Some(number) = X86[at % X86.len()].checked_sub(1) {
                if let Some(twin) = x86::Sysno::new(number as usize)
                    && same(twin.name().as_bytes(), call.name().as_bytes())
                {
                    twins[native] = number + 1;
                }
                at += 1;
            }
        }
        native += 1;
    }
    twins
};

#[cfg(any(test, target_arch = "x86_64"))]
const fn same(a: &[u8], b: &[u8]) -> bool {
    match (a, b) {
        ([], []) => true,
        ([first, a @ ..], [second, b @ ..]) => *first == *second && same(a, b),
        _ => false,
    }
}

#[cfg(any(test, target_arch = "x86_64"))]
fn x86(name: &str, native: Option<u32>) -> Option<u32> {
    if let Some(twin) = native.and_then(|native| X86_OF_X86_64.get(native as usize)) {
        return twin.checked_sub(1).map(u32::from);
    }
    // A Rust keyword, which the crate spells differently.
    if name == "break" {
        return Some(17);
    }
    table!(name, x86).or_else(|| newest(name))
}

/// The calls of `socketcall` (`linux/net.h`) and `ipc` (`linux/ipc.h`).
#[cfg(any(test, target_arch = "x86_64"))]
fn x86_multiplexer(name: &str) -> Option<Multiplexer> {
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    let (number, call) = match name {
        "socket" => (SOCKETCALL, 1),
        "bind" => (SOCKETCALL, 2),
        "connect" => (SOCKETCALL, 3),
        "listen" => (SOCKETCALL, 4),
        "accept" => (SOCKETCALL, 5),
        "getsockname" => (SOCKETCALL, 6),
        "getpeername" => (SOCKETCALL, 7),
        "socketpair" => (SOCKETCALL, 8),
        "send" => (SOCKETCALL, 9),
        "recv" => (SOCKETCALL, 10),
        "sendto" => (SOCKETCALL, 11),
        "recvfrom" => (SOCKETCALL, 12),
        "shutdown" => (SOCKETCALL, 13),
        "setsockopt" => (SOCKETCALL, 14),
        "getsockopt" => (SOCKETCALL, 15),
        "sendmsg" => (SOCKETCALL, 16),
        "recvmsg" => (SOCKETCALL, 17),
        "accept4" => (SOCKETCALL, 18),
        "recvmmsg" => (SOCKETCALL, 19),
        "sendmmsg" => (SOCKETCALL, 20),
        "semop" => (IPC, 1),
        "semget" => (IPC, 2),
        "semctl" => (IPC, 3),
        "semtimedop" => (IPC, 4),
        "msgsnd" => (IPC, 11),
        "msgrcv" => (IPC, 12),
        "msgget" => (IPC, 13),
        "msgctl" => (IPC, 14),
        "shmat" => (IPC, 21),
        "shmdt" => (IPC, 22),
        "shmget" => (IPC, 23),
        "shmctl" => (IPC, 24),
        _ => return None,
    };
    Some(Multiplexer { number, call })
}

#[cfg(any(test, target_arch = "aarch64"))]
fn aarch64(name: &str, _: Option<u32>) -> Option<u32> {
    match table!(name, aarch64) {
        // These give 32-bit architectures a 64-bit time_t; the crate lists them here as well.
        Some(403..=423) => None,
        // Profiles know `fstatat` by the name that it has elsewhere.
        None if name == "newfstatat" => Some(79),
        None => newest(name),
        number => number,
    }
}

/// With the private calls of `arch/arm/include/uapi/asm/unistd.h`.
#[cfg(any(test, target_arch = "aarch64"))]
fn arm(name: &str, _: Option<u32>) -> Option<u32> {
    match name {
        "breakpoint" => Some(0xf0001),
        "cacheflush" => Some(0xf0002),
        "usr26" => Some(0xf0003),
        "usr32" => Some(0xf0004),
        "set_tls" => Some(0xf0005),
        "get_tls" => Some(0xf0006),
        _ => table!(name, arm).or_else(|| newest(name)),
    }
}

#[cfg(any(test, target_arch = "riscv64"))]
fn riscv64(name: &str, _: Option<u32>) -> Option<u32> {
    table!(name, riscv64).or_else(|| newest(name))
}
