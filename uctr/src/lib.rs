//! The companion of the `ultari` runtime: images, containers from them, networks and volumes,
//! without a daemon. What it knows is files below [`paths::Paths`]; what runs is made with the
//! `ultari` library.

pub mod cli;
pub mod container;
pub mod disk;
pub mod image;
pub mod network;
pub mod output;
pub mod paths;
pub mod template;
pub mod volume;
