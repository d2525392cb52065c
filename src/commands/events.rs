//! `events`.

use anyhow::{Result, bail};
use ultari::container::Container;

pub fn events(_container: &Container, _interval: &str, _stats: bool) -> Result<()> {
    bail!("events: not supported yet")
}
