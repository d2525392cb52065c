//! Linux security modules: whether those that a configuration wants are there.

use anyhow::{Result, ensure};
use nix::sys::statfs::{SELINUX_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::spec::Process;

/// Whether this host has SELinux enabled: its filesystem is mounted where its libraries look for
/// it, and writable. A read-only one is how a container is told to leave labels alone.
pub fn has_selinux() -> bool {
    const PATH: &str = "/sys/fs/selinux";
    statfs(PATH).is_ok_and(|fs| fs.filesystem_type() == SELINUX_MAGIC)
        && statvfs(PATH).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether this host has AppArmor enabled (its module's parameter in sysfs).
fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with(b"Y"))
}

/// Refuses a profile or label, which is there to confine the process, where no module enforces it.
///
/// # Errors
/// Names the property.
pub fn check(process: &Process) -> Result<()> {
    if let Some(profile) = &process.apparmor_profile {
        ensure!(
            has_apparmor(),
            "process.apparmorProfile: {profile:?} can't confine it: AppArmor is not enabled on \
             this host; load it, or leave the property out"
        );
    }
    if let Some(label) = &process.selinux_label {
        ensure!(
            has_selinux(),
            "process.selinuxLabel: {label:?} can't confine it: SELinux is not enabled on this \
             host; enable it, or leave the property out"
        );
    }
    Ok(())
}
