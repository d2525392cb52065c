//! The little of rtnetlink(7) that moving a network device takes.
//!
//! Own code, not a library of all its messages: it is four requests, and the attributes of
//! addresses are handed on as the bytes that the kernel gave.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

const HEADER: usize = 16;

/// A request: header, family's header, attributes.
#[derive(Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// `kind` is `RTM_…`, `flags` are `NLM_F_…` beside that of every request, `header` is the
    /// structure that belongs to the kind.
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(header);
        Self(bytes)
    }

    /// Appends an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that is a string.
    pub fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }
}

/// A socket to the kernel's network configuration, in the network namespace that was current
/// when it was opened.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one in the current network namespace.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn open() -> nix::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, kind, flags, protocol)?;
        // Connected, it takes messages from the kernel only, not from others in the namespace.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends `request` and returns the content of all that answers it, without their headers.
    ///
    /// # Errors
    /// The kernel's answer, and `EPROTO` for one that makes no sense.
    pub fn ask(&self, request: Request) -> nix::Result<Vec<Vec<u8>>> {
        let Request(mut bytes) = request;
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answers = Vec::new();
        // Larger than what the kernel puts together for a dump.
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if collect(&buffer[..length], &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes a packet apart; true when the answer ends with it.
fn collect(mut packet: &[u8], answers: &mut Vec<Vec<u8>>) -> nix::Result<bool> {
    while !packet.is_empty() {
        let length = number(packet, 0).ok_or(Errno::EPROTO)? as usize;
        let content = packet.get(HEADER..length).ok_or(Errno::EPROTO)?;
        let kind = u16::from_ne_bytes([packet[4], packet[5]]);
        match i32::from(kind) {
            libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                return match number(content, 0).map_or(0, |errno| errno as i32) {
                    0 => Ok(true),
                    errno => Err(Errno::from_raw(errno.wrapping_neg())),
                };
            }
            libc::NLMSG_NOOP => {}
            _ => answers.push(content.to_vec()),
        }
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The 32-bit number at `offset`.
pub fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let four = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

/// The attributes in `bytes`: kind and value.
pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [l0, l1, k0, k1, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = bytes.get(4..length) else { break };
        found.push((u16::from_ne_bytes([k0, k1]), value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let Request(bytes) = Request::new(16, 0, &[7; 8]).attribute(3, &[1]).string(5, "abc");
        assert_eq!(bytes.len(), HEADER + 8 + 8 + 8);
        assert_eq!(attributes(&bytes[HEADER + 8..]), [(3, &[1][..]), (5, b"abc\0")]);
    }

    #[test]
    fn damaged_packets_are_no_panic() {
        for packet in [&[1u8][..], &[0; 16], &[255; 16], &[20, 0, 0, 0, 2, 0, 0, 0, 0, 0]] {
            assert_eq!(collect(packet, &mut Vec::new()), Err(Errno::EPROTO), "{packet:?}");
        }
        assert!(attributes(&[255; 6]).is_empty());
        assert!(attributes(&[0; 8]).is_empty());
    }

    #[test]
    fn the_kernel_answers() {
        let mut link = [0; 16];
        link[4] = 1;
        let answers = Socket::open().unwrap().ask(Request::new(libc::RTM_GETLINK, 0, &link));
        // The first device of every network namespace is its loopback.
        let names: Vec<_> = attributes(&answers.unwrap()[0][16..])
            .into_iter()
            .filter(|(kind, _)| *kind == libc::IFLA_IFNAME)
            .map(|(_, name)| name.to_vec())
            .collect();
        assert_eq!(names, [b"lo\0"]);
    }
}
