//! Every system call that the libraries do not wrap, and the only `unsafe` code of the crate.
//!
//! Each function is a thin, safe wrapper: it takes owned or borrowed descriptors and typed
//! arguments and returns [`nix::Result`], so that callers can add the step and the property of
//! config.json to the errno.
#![allow(unsafe_code)]

pub mod bpf;
pub mod signal;
