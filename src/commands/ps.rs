//! `ps`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use ultari::container::Container;

use crate::cli::OutputFormat;

pub fn ps(container: &Container, format: OutputFormat, options: &[String]) -> Result<()> {
    let pids = container.processes()?;
    if format == OutputFormat::Json {
        println!("{}", serde_json::json!(pids));
        return Ok(());
    }
    let defaults = ["-ef".to_owned()];
    let options = if options.is_empty() { &defaults } else { options };
    let output = Command::new("ps").args(options).output().context("run ps (package procps)")?;
    ensure!(
        output.status.success(),
        "ps {}: {}",
        options.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_ascii_whitespace()
        .position(|title| title == "PID")
        .context("ps: its output has no column PID; choose options that show it")?;
    println!("{header}");
    for line in lines {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|field| field.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(())
}
