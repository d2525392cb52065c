//! Control groups (stub until the managers land).
use anyhow::Result;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Location {}
pub struct Hierarchy {
    pub name: String,
    pub path: PathBuf,
    pub aliases: Vec<String>,
}
pub struct Cgroup {}
impl Location {
    pub fn locate(_: Option<&Path>, _: &str) -> Result<Self> {
        Ok(Self {})
    }
    pub fn v1_hierarchies(&self) -> Option<Vec<Hierarchy>> {
        Some(vec![])
    }
    pub fn create(&self, _: Option<&LinuxResources>) -> Result<Cgroup> {
        Ok(Cgroup {})
    }
    pub fn open(&self) -> Cgroup {
        Cgroup {}
    }
}
impl Cgroup {
    pub fn clone_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    pub fn add(&self, _: i32) -> Result<()> {
        Ok(())
    }
    pub fn freeze(&self) -> Result<()> {
        Ok(())
    }
    pub fn thaw(&self) -> Result<()> {
        Ok(())
    }
    pub fn frozen(&self) -> Result<bool> {
        Ok(false)
    }
    pub fn processes(&self) -> Result<Vec<i32>> {
        Ok(vec![])
    }
    pub fn kill(&self) -> Result<()> {
        Ok(())
    }
    pub fn signal_all(&self, _: i32) -> Result<()> {
        Ok(())
    }
    pub fn remove(&self) -> Result<()> {
        Ok(())
    }
}
