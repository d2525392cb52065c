//! The one thing that a fresh network namespace needs.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::check;

/// A socket for requests about the devices of the current network namespace. It stays in that
/// namespace, wherever its owner goes.
///
/// # Errors
/// Those of `socket(2)`.
pub fn control_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// Brings the loopback interface of the network namespace of `socket`, a [`control_socket`], up
/// (netdevice(7)).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in that namespace.
pub fn loopback_up(socket: &OwnedFd) -> nix::Result<()> {
    // SAFETY: all-zero is a valid struct ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is a struct ifreq with name and flags set, and outlives the call.
    check(
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }
            .into(),
    )
    .map(drop)
}
