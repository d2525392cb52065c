//! Whether SELinux is there.

use nix::sys::statfs::{SELINUX_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

/// Whether this host has SELinux enabled: its filesystem is mounted where its libraries look for
/// it, and writable. A read-only one is how a container is told to leave labels alone.
pub fn is_enabled() -> bool {
    const PATH: &str = "/sys/fs/selinux";
    statfs(PATH).is_ok_and(|fs| fs.filesystem_type() == SELINUX_MAGIC)
        && statvfs(PATH).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_RDONLY))
}
