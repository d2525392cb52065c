//! Ultari, a low-level OCI container runtime.
pub mod cgroup;
pub mod security;
pub mod sys;
