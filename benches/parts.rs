//! The parts of a container's start that ask the kernel for nothing, one at a time: what
//! `make bench-instructions` counts the instructions of.
//!
//! `parts nothing`, `parts config FILE` (read and convert a config.json) or `parts seccomp FILE`
//! (the same, and compile its seccomp profile). What a part costs is the difference between two.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ultari::security::seccomp;
use ultari::spec::{self, Config};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["nothing"] => {}
        ["config", file] => drop(black_box(config(file)?)),
        ["seccomp", file] => {
            let config = config(file)?;
            let seccomp = config.seccomp.as_ref().context("it has no linux.seccomp")?;
            drop(black_box(seccomp::compile(seccomp.profile()?)?));
        }
        _ => bail!("usage: parts nothing | config FILE | seccomp FILE"),
    }
    Ok(())
}

fn config(file: &str) -> Result<Config> {
    spec::parse(&std::fs::read(file)?, Path::new("/bundle"))
}
