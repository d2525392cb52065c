//! The `ultari` command.
fn main() {}
