//! What only the kernel itself tells of a process or gives it: scheduler, memory policy, huge pages.

use nix::errno::Errno;
use serde_json::{Value, json};

/// `sched_getattr(2)` of this process.
#[allow(unsafe_code)]
pub fn scheduler() -> Value {
    let mut attributes = [0u32; 14];
    let (buffer, size) = (attributes.as_mut_ptr(), size_of_val(&attributes));
    // SAFETY: the kernel writes at most `size` bytes to the buffer, which is that large.
    let returned = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, buffer, size, 0) };
    if returned != 0 {
        return json!(format!("{:?}", Errno::last()));
    }
    let long = |index: usize| u64::from(attributes[index]) | u64::from(attributes[index + 1]) << 32;
    json!({
        "policy": attributes[1],
        "flags": long(2),
        "nice": attributes[4] as i32,
        "priority": attributes[5],
        "runtime": long(6),
        "deadline": long(8),
        "period": long(10)
    })
}

/// Mode with flags, and the first 64 nodes: `get_mempolicy(2)` of this thread.
#[allow(unsafe_code)]
pub fn memory_policy() -> Value {
    let mut mode = 0i32;
    let mut nodes = [0u64; 16];
    let bits = nodes.len() * 64;
    // SAFETY: both pointers are valid, and the second is to as many bits as it says.
    let returned = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), bits, 0, 0)
    };
    match returned {
        0 => json!({"mode": mode, "nodes": nodes[0]}),
        _ => json!(format!("{:?}", Errno::last())),
    }
}

/// Maps so many pages of 2 MiB, with further flags of `mmap(2)`, and touches each.
#[allow(unsafe_code)]
pub fn huge_pages(count: usize, flags: libc::c_int) -> String {
    const SIZE: usize = 2 << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | flags;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at a place of the kernel's choice.
    let mapped =
        unsafe { libc::mmap(std::ptr::null_mut(), count * SIZE, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return format!("{:?}", Errno::last());
    }
    for page in 0..count {
        // SAFETY: within the mapping, which nobody else knows of.
        unsafe { mapped.cast::<u8>().add(page * SIZE).write_volatile(1) };
    }
    // SAFETY: the same mapping, which is not used any more.
    unsafe { libc::munmap(mapped, count * SIZE) };
    "ok".into()
}
