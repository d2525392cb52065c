//! bpf(2), as far as device rules on cgroup v2 need it: load a `CGROUP_DEVICE` program, attach it
//! to a cgroup, find and replace the one attached before.
//!
//! Layouts and numbers are those of the kernel's `include/uapi/linux/bpf.h`. The kernel takes a
//! shorter `bpf_attr` than its own and reads the rest as zero, so each command has only the fields
//! that it needs. Since Linux 5.11 BPF memory is charged to the memory cgroup, not to
//! RLIMIT_MEMLOCK, so no limit is raised and CAP_SYS_RESOURCE is not needed.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// The kernel's limit for the name of a program, with its end mark.
pub const NAME_SIZE: usize = 16;

/// One instruction of the BPF machine (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Class, operation and kind of operand.
    pub code: u8,
    /// Destination register in the low half, source register in the high half (the layout of the
    /// bit fields on little-endian machines; [`Insn::new`] takes care of the others).
    pub regs: u8,
    /// Offset of a jump or of a memory access.
    pub off: i16,
    /// Constant operand.
    pub imm: i32,
}

impl Insn {
    /// Puts an instruction together; `dst` and `src` are register numbers.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        let regs = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
        Self { code, regs, off, imm }
    }
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_SIZE],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited_insns: u64,
    xlated_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; NAME_SIZE],
}

/// Calls bpf(2) with one of the attribute structs above.
///
/// # Safety
/// `T` must be the `repr(C)` layout that `command` expects, without padding that is not
/// initialised, and every address in it must be valid for the length that goes with it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> nix::Result<RawFd> {
    // SAFETY: the caller vouches for the layout and the addresses; the kernel reads and writes at
    // most `size_of::<T>()` bytes of the exclusively borrowed struct.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    Errno::result(result).map(|value| value as RawFd)
}

/// Loads a program that decides on access to devices; `name` is cut to the kernel's limit.
pub fn load_device_program(instructions: &[Insn], name: &str) -> nix::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        // Only calls of helpers marked GPL depend on this; the programs call none.
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    for (to, from) in attr.prog_name[..NAME_SIZE - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: LoadAttr is PROG_LOAD's layout; instructions and licence outlive the call.
    let fd = unsafe { bpf(PROG_LOAD, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup beside those that are attached there, or in the place of
/// `replace` in one step.
pub fn attach_device_program(
    cgroup: BorrowedFd,
    program: BorrowedFd,
    replace: Option<BorrowedFd>,
) -> nix::Result<()> {
    let mut attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    if let Some(old) = replace {
        attr.attach_flags |= F_REPLACE;
        attr.replace_bpf_fd = old.as_raw_fd() as u32;
    }
    // SAFETY: AttachAttr is PROG_ATTACH's layout and holds no addresses.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

/// Takes a device program off a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd, program: BorrowedFd) -> nix::Result<()> {
    let mut attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    // SAFETY: AttachAttr is PROG_DETACH's layout too and holds no addresses.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(drop)
}

/// The ids of the device programs attached to this very cgroup (not to its ancestors).
pub fn attached_device_programs(cgroup: BorrowedFd) -> nix::Result<Vec<u32>> {
    // The kernel allows at most 64 programs for a cgroup (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttr::default()
    };
    // SAFETY: QueryAttr is PROG_QUERY's layout; `ids` lives on and has room for `prog_cnt` ids.
    unsafe { bpf(PROG_QUERY, &mut attr)? };
    Ok(ids.into_iter().take(attr.prog_cnt as usize).collect())
}

/// A descriptor of the program with this id. Needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> nix::Result<OwnedFd> {
    let mut attr = IdAttr { id, ..IdAttr::default() };
    // SAFETY: IdAttr is PROG_GET_FD_BY_ID's layout and holds no addresses.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The name that a program was loaded with.
pub fn program_name(program: BorrowedFd) -> nix::Result<String> {
    let mut info = ProgInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<ProgInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: InfoAttr is OBJ_GET_INFO_BY_FD's layout; `info` is a prefix of bpf_prog_info, zeroed
    // (so that no other output address is asked for), and the kernel writes at most `info_len`.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_SIZE);
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}
