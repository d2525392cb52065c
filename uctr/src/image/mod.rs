//! Images: their names, where they come from, how they are kept and unpacked.

pub mod layers;
pub mod reference;
pub mod registry;
pub mod store;
