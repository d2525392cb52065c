//! `pull`, `push`, `login`, `logout` and `search` with registries that behave, and with some that
//! don't.

mod access;
mod hostile;
pub mod rogue;
pub mod server;
mod transfer;
