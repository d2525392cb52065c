//! `list`.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use ultari::container::Container;
use ultari::{log, state};

use crate::cli::OutputFormat;

pub fn list(root: &Path, format: OutputFormat, quiet: bool) -> Result<()> {
    let mut states = Vec::new();
    for id in state::ids(root)? {
        if quiet {
            println!("{id}");
            continue;
        }
        // One damaged record must not hide the others.
        match Container::open(root, &id).and_then(|container| container.state()) {
            Ok(state) => states.push(state),
            Err(error) => log::warning(&format!("{error:#}")),
        }
    }
    match (quiet, format) {
        (true, _) => {}
        (false, OutputFormat::Json) => println!("{}", json!(states)),
        (false, OutputFormat::Table) => print!("{}", table(&states)),
    }
    Ok(())
}

fn table(states: &[Value]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let text = |state: &Value, key: &str| match &state[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let row = |state| ["id", "pid", "status", "bundle", "created", "owner"].map(|k| text(state, k));
    let rows: Vec<_> = std::iter::once(header).chain(states.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(9);
    let widths: Vec<_> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}
