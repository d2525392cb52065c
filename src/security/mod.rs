//! What confines the process itself: capabilities, LSM labels and seccomp.
pub mod seccomp;
