//! What confines the process itself: capabilities, LSM labels and seccomp.

pub mod capabilities;
pub mod lsm;
pub mod seccomp;
