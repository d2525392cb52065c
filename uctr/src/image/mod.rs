//! Images: their names, where they come from, how they are kept and unpacked.

pub mod archive;
pub mod bundle;
pub mod change;
pub mod commit;
pub mod diff;
pub mod digest;
pub mod layers;
pub(crate) mod lock;
mod overlay;
pub mod pack;
pub mod reference;
pub mod registry;
pub mod remove;
pub mod store;
pub mod unpack;
pub mod usage;
