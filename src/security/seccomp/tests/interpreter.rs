//! A classic BPF machine for the tests, as strict as the kernel's checker
//! (`seccomp_check_filter` and `bpf_check_classic`).
use libc::sock_filter;

/// `SECCOMP_RET_*` values as the tests write them.
pub const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
pub const LOG: u32 = libc::SECCOMP_RET_LOG;
pub const TRAP: u32 = libc::SECCOMP_RET_TRAP;
pub const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;
pub const KILL_PROCESS: u32 = libc::SECCOMP_RET_KILL_PROCESS;
pub const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}
pub const EPERM: u32 = errno(libc::EPERM);
pub const ENOSYS: u32 = errno(libc::ENOSYS);

pub const X86_64: u32 = 0xc000_003e;
pub const I386: u32 = 0x4000_0003;
pub const AARCH64: u32 = 0xc000_00b7;
pub const ARM: u32 = 0x4000_0028;
pub const RISCV64: u32 = 0xc000_00f3;
pub const X32: u32 = 0x4000_0000;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_EQUAL: u16 = 0x35;

pub struct Machine(Vec<sock_filter>);

impl Machine {
    /// Panics unless the kernel would take the program.
    pub fn new(program: Vec<sock_filter>) -> Machine {
        assert!((1..=4096).contains(&program.len()), "{} instructions", program.len());
        for (at, instruction) in program.iter().enumerate() {
            let left = program.len() - at - 1;
            match instruction.code {
                LOAD => assert!(instruction.k % 4 == 0 && instruction.k < 64, "load at {at}"),
                AND | RETURN => {}
                JUMP => assert!((instruction.k as usize) < left, "jump out of it at {at}"),
                EQUAL | GREATER | GREATER_EQUAL => assert!(
                    (instruction.jt as usize) < left && (instruction.jf as usize) < left,
                    "jump out of it at {at}"
                ),
                code => panic!("code {code:#x} at {at}"),
            }
        }
        assert_eq!(program.last().map(|last| last.code), Some(RETURN));
        Machine(program)
    }

    /// The verdict on a call.
    pub fn run(&self, arch: u32, number: u32, args: &[u64]) -> u32 {
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (index, arg) in args.iter().enumerate() {
            data[16 + 8 * index..][..8].copy_from_slice(&arg.to_ne_bytes());
        }
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let sock_filter { code, jt, jf, k } = self.0[at];
            let branch = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                LOAD => {
                    let word = data[k as usize..][..4].try_into().unwrap();
                    accumulator = u32::from_ne_bytes(word);
                }
                AND => accumulator &= k,
                RETURN => return k,
                JUMP => at += k as usize,
                EQUAL => at += branch(accumulator == k),
                GREATER => at += branch(accumulator > k),
                _ => at += branch(accumulator >= k),
            }
        }
    }

    /// How many instructions the program has.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
