//! `spec`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::unistd::{getegid, geteuid};

pub fn spec(bundle: Option<PathBuf>, rootless: bool) -> Result<()> {
    let path = bundle.unwrap_or_default().join("config.json");
    let ids = rootless.then(|| (geteuid().as_raw(), getegid().as_raw()));
    let text = serde_json::to_string_pretty(&ultari::spec::default::config(ids))?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| {
            format!("make {} (an existing one is never overwritten)", path.display())
        })?;
    file.write_all(format!("{text}\n").as_bytes())
        .with_context(|| format!("write {}", path.display()))
}
