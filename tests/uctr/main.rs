//! Drives `uctr` as its users do. Everything happens in mount and network namespaces of the tests' own.

mod archive;
mod containers;
mod copy;
mod crashes;
mod fixture;
mod flags;
mod hostile;
mod inspect;
mod network;
mod registry;
mod store;
mod support;
mod terminals;
mod unpack;
mod volume;
