//! Which architectures a host can run and what its kernel calls each system call.
//!
//! Names and numbers come from the `syscalls` crate. Its own look-up compares strings one after
//! the other, so the tables are turned into one hash table a processor family while the program is
//! compiled: a name is found once for all architectures of the family, and the table is plain data
//! without pointers (a static-pie binary pays for every pointer at start-up).
use oci_spec::runtime::Arch;

/// Most architectures (ABIs) that one processor family has.
pub(super) const MAX_ABIS: usize = 3;
/// The number of a call that an ABI does not have.
const ABSENT: u32 = u32::MAX;

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
    /// Sockets and System V IPC can also be reached through `socketcall` and `ipc`.
    pub multiplexes: bool,
}

/// The ABIs that one kernel serves, the native one first, those of one `audit` value side by side
/// and in the order of their number spaces.
pub(super) struct Family {
    pub abis: &'static [Abi],
    names: Names,
}

impl Family {
    /// The call of this name, if any ABI of the family has it.
    pub(super) fn find(&self, name: &str) -> Option<Call> {
        let row = self.names.find(name.as_bytes())?;
        Some(Call(row))
    }
}

/// What a family knows of one name.
#[derive(Clone, Copy)]
pub(super) struct Call(&'static Row);

impl Call {
    /// Its number on the ABI at `abi` of [`Family::abis`].
    pub(super) fn number(self, abi: usize) -> Option<u32> {
        Some(self.0.numbers[abi]).filter(|number| *number != ABSENT)
    }

    /// The multiplexer through which it can be reached too, where [`Abi::multiplexes`].
    pub(super) fn multiplexer(self) -> Option<Multiplexer> {
        match self.0.multiplexer {
            0 => None,
            call if call & IPC != 0 => Some(Multiplexer { number: 117, call: call & !IPC }),
            call => Some(Multiplexer { number: 102, call }),
        }
    }
}

/// `socketcall(call, …)` or `ipc(call, …)` of i386.
#[derive(Clone, Copy)]
pub(super) struct Multiplexer {
    /// The multiplexer's own number.
    pub number: u32,
    /// Its first argument.
    pub call: u8,
}

/// Tells a call number of `ipc` from one of `socketcall` in [`Row::multiplexer`].
const IPC: u8 = 0x80;

/// One name of a family.
#[derive(Clone, Copy)]
struct Row {
    start: u16,
    len: u8,
    multiplexer: u8,
    numbers: [u32; MAX_ABIS],
}

/// A hash table with linear probing. `slots` holds indexes into `rows`, or [`EMPTY`].
struct Names {
    text: &'static [u8],
    rows: &'static [Row],
    slots: &'static [u16; SLOTS],
}

const SLOTS: usize = 1024;
const EMPTY: u16 = u16::MAX;

impl Names {
    fn find(&self, name: &[u8]) -> Option<&'static Row> {
        let mut slot = hash(name);
        while self.slots[slot] != EMPTY {
            let row = &self.rows[self.slots[slot] as usize];
            if &self.text[row.start as usize..][..row.len as usize] == name {
                return Some(row);
            }
            slot = (slot + 1) % SLOTS;
        }
        None
    }
}

/// FNV-1a, folded to a slot.
const fn hash(name: &[u8]) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    let mut i = 0;
    while i < name.len() {
        hash = (hash ^ name[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    (hash ^ (hash >> 16)) as usize % SLOTS
}

/// Fills a [`Names`] at compile time, in arrays larger than needed.
struct Builder {
    text: [u8; 16384],
    text_len: usize,
    rows: [Row; SLOTS / 2],
    rows_len: usize,
    slots: [u16; SLOTS],
}

impl Builder {
    const fn new() -> Self {
        const NONE: Row = Row { start: 0, len: 0, multiplexer: 0, numbers: [ABSENT; MAX_ABIS] };
        Builder {
            text: [0; 16384],
            text_len: 0,
            rows: [NONE; SLOTS / 2],
            rows_len: 0,
            slots: [EMPTY; SLOTS],
        }
    }

    /// The row of `name`, made if it is new. Overflow of an array stops the compilation.
    const fn row(&mut self, name: &str) -> usize {
        let mut name = name.as_bytes();
        // A name that is a Rust keyword comes as a raw identifier: `r#break`.
        if let [b'r', b'#', rest @ ..] = name {
            name = rest;
        }
        let mut slot = hash(name);
        while self.slots[slot] != EMPTY {
            let row = &self.rows[self.slots[slot] as usize];
            if same(&self.text, row.start as usize, row.len as usize, name) {
                return self.slots[slot] as usize;
            }
            slot = (slot + 1) % SLOTS;
        }
        self.slots[slot] = self.rows_len as u16;
        self.rows[self.rows_len].start = self.text_len as u16;
        self.rows[self.rows_len].len = name.len() as u8;
        let mut i = 0;
        while i < name.len() {
            self.text[self.text_len] = name[i];
            self.text_len += 1;
            i += 1;
        }
        self.rows_len += 1;
        self.rows_len - 1
    }

    const fn add(&mut self, abi: usize, name: &str, number: u32) {
        let row = self.row(name);
        self.rows[row].numbers[abi] = number;
    }

    /// Calls newer than the crate's tables; since Linux 5.1 a new call has one number everywhere
    /// (`scripts/syscall.tbl`).
    const fn add_newest(&mut self, abi: usize, bit: u32) {
        self.add(abi, "listns", 470 | bit);
        self.add(abi, "rseq_slice_yield", 471 | bit);
    }
}

const fn same(text: &[u8], start: usize, len: usize, name: &[u8]) -> bool {
    if len != name.len() {
        return false;
    }
    let mut i = 0;
    while i < len {
        if text[start + i] != name[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The first `TO` elements of an array.
const fn shrink<T: Copy, const FROM: usize, const TO: usize>(from: &[T; FROM]) -> [T; TO] {
    let mut to = [from[0]; TO];
    let mut i = 0;
    while i < TO {
        to[i] = from[i];
        i += 1;
    }
    to
}

/// Adds every call of a table of the `syscalls` crate.
macro_rules! add_table {
    ($builder:ident, $abi:expr, $arch:ident) => {{
        let mut number = 0;
        while number <= syscalls::$arch::Sysno::last().id() {
            if let Some(call) = syscalls::$arch::Sysno::new(number as usize) {
                $builder.add($abi, call.name(), number as u32);
            }
            number += 1;
        }
    }};
}

/// The [`Names`] that a const function builds, in arrays of the right size.
macro_rules! names {
    ($build:ident) => {{
        const BUILT: Builder = $build();
        static TEXT: [u8; BUILT.text_len] = shrink(&BUILT.text);
        static ROWS: [Row; BUILT.rows_len] = shrink(&BUILT.rows);
        static SLOT: [u16; SLOTS] = BUILT.slots;
        Names { text: &TEXT, rows: &ROWS, slots: &SLOT }
    }};
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
pub(super) static X86: Family = Family {
    abis: &[
        Abi {
            arch: Arch::ScmpArchX86_64,
            audit: 0xc000_003e,
            numbers: (0, X32_BIT - 1),
            wide: true,
            multiplexes: false,
        },
        Abi {
            arch: Arch::ScmpArchX32,
            audit: 0xc000_003e,
            numbers: (X32_BIT, u32::MAX),
            wide: false,
            multiplexes: false,
        },
        Abi {
            arch: Arch::ScmpArchX86,
            audit: 0x4000_0003,
            numbers: (0, u32::MAX),
            wide: false,
            multiplexes: true,
        },
    ],
    names: names!(build_x86),
};

/// x32 calls with a number of their own, from 512 on (`arch/x86/entry/syscalls/syscall_64.tbl`).
#[cfg(any(test, target_arch = "x86_64"))]
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// Calls of x86_64 that x32 lacks (ABI "64" without an x32 twin in `syscall_64.tbl`).
#[cfg(any(test, target_arch = "x86_64"))]
const NOT_X32: [&str; 11] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
];

/// The calls of `socketcall`, from 1 on (`linux/net.h`).
#[cfg(any(test, target_arch = "x86_64"))]
const SOCKETCALLS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// The calls of `ipc` (`linux/ipc.h`).
#[cfg(any(test, target_arch = "x86_64"))]
const IPCS: [(&str, u8); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(any(test, target_arch = "x86_64"))]
const fn build_x86() -> Builder {
    let mut builder = Builder::new();
    add_table!(builder, 0, x86_64);
    builder.add_newest(0, 0);

    let mut row = 0;
    while row < builder.rows_len {
        builder.rows[row].numbers[1] = builder.rows[row].numbers[0] | X32_BIT;
        row += 1;
    }
    let mut i = 0;
    while i < X32_OWN.len() {
        builder.add(1, X32_OWN[i], (512 + i as u32) | X32_BIT);
        i += 1;
    }
    i = 0;
    while i < NOT_X32.len() {
        builder.add(1, NOT_X32[i], ABSENT);
        i += 1;
    }

    add_table!(builder, 2, x86);
    builder.add_newest(2, 0);
    i = 0;
    while i < SOCKETCALLS.len() {
        let row = builder.row(SOCKETCALLS[i]);
        builder.rows[row].multiplexer = 1 + i as u8;
        i += 1;
    }
    i = 0;
    while i < IPCS.len() {
        let row = builder.row(IPCS[i].0);
        builder.rows[row].multiplexer = IPC | IPCS[i].1;
        i += 1;
    }
    builder
}

/// aarch64 with 32-bit arm (EABI).
#[cfg(any(test, target_arch = "aarch64"))]
pub(super) static ARM: Family = Family {
    abis: &[
        Abi {
            arch: Arch::ScmpArchAarch64,
            audit: 0xc000_00b7,
            numbers: (0, u32::MAX),
            wide: true,
            multiplexes: false,
        },
        Abi {
            arch: Arch::ScmpArchArm,
            audit: 0x4000_0028,
            numbers: (0, u32::MAX),
            wide: false,
            multiplexes: false,
        },
    ],
    names: names!(build_arm),
};

/// Calls private to 32-bit arm, from 0x0f0001 on (`arch/arm/include/uapi/asm/unistd.h`).
#[cfg(any(test, target_arch = "aarch64"))]
const ARM_PRIVATE: [&str; 6] = ["breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"];

#[cfg(any(test, target_arch = "aarch64"))]
const fn build_arm() -> Builder {
    let mut builder = Builder::new();
    add_table!(builder, 0, aarch64);
    builder.add_newest(0, 0);
    // Profiles know 79 by the name that it has elsewhere.
    builder.add(0, "newfstatat", 79);
    // 403 to 423 give 32-bit architectures a 64-bit time_t; the crate lists them here as well.
    let mut row = 0;
    while row < builder.rows_len {
        if builder.rows[row].numbers[0] >= 403 && builder.rows[row].numbers[0] <= 423 {
            builder.rows[row].numbers[0] = ABSENT;
        }
        row += 1;
    }

    add_table!(builder, 1, arm);
    builder.add_newest(1, 0);
    let mut i = 0;
    while i < ARM_PRIVATE.len() {
        builder.add(1, ARM_PRIVATE[i], 0x000f_0001 + i as u32);
        i += 1;
    }
    builder
}

/// riscv64.
#[cfg(any(test, target_arch = "riscv64"))]
pub(super) static RISCV: Family = Family {
    abis: &[Abi {
        arch: Arch::ScmpArchRiscv64,
        audit: 0xc000_00f3,
        numbers: (0, u32::MAX),
        wide: true,
        multiplexes: false,
    }],
    names: names!(build_riscv),
};

#[cfg(any(test, target_arch = "riscv64"))]
const fn build_riscv() -> Builder {
    let mut builder = Builder::new();
    add_table!(builder, 0, riscv64);
    builder.add_newest(0, 0);
    builder
}
