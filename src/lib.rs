//! Ultari, a low-level OCI container runtime.
//!
//! The library behind the `ultari` command: `uctr` makes its containers through it.

pub mod cgroup;
pub mod channel;
pub mod check;
pub mod checkpoint;
pub mod console;
pub mod container;
mod criu;
pub mod executable;
pub mod hooks;
mod host;
pub mod init;
pub mod launch;
pub mod log;
pub mod namespace;
mod netdev;
mod netlink;
pub mod notify;
pub mod process;
pub mod procfs;
pub mod resctrl;
pub mod restore;
pub mod rootfs;
pub mod seal;
pub mod security;
pub mod spec;
pub mod state;
pub mod supervise;
pub mod sys;
pub mod timings;
pub mod userns;
