//! `uctr top`

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;

use super::running;
use crate::container;
use crate::output;
use crate::paths::Paths;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The container's name or ID
    container: String,
    /// For ps(1), `-ef` unless given; there has to be a column PID
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    options: Vec<String>,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let container = container::find(paths, &args.container)?;
    let pids = running(&container)?.processes()?;
    let options = match args.options.as_slice() {
        [] => &["-ef".to_owned()],
        options => options,
    };
    let said = Command::new("ps").args(options).output();
    let said = said.context("run ps (Debian's package procps has it)")?;
    ensure!(
        said.status.success(),
        "ps {}: {}",
        options.join(" "),
        String::from_utf8_lossy(&said.stderr).trim()
    );
    let lines = select(&String::from_utf8_lossy(&said.stdout), &pids)?;
    output::print(&output::align_wider(&lines, 20))?;
    Ok(0)
}

/// The header, and the lines of these processes.
fn select(text: &str, pids: &[i32]) -> Result<Vec<String>> {
    let mut lines = text.lines();
    let titles: Vec<&str> =
        lines.next().context("ps printed nothing")?.split_ascii_whitespace().collect();
    let Some(column) = titles.iter().position(|title| *title == "PID") else {
        bail!("Couldn't find PID field in ps output");
    };
    let mut shown = vec![titles.join("\t")];
    for line in lines {
        let mut rest = line;
        // Only the last column may have spaces.
        let mut cells: Vec<&str> = Vec::new();
        while cells.len() + 1 < titles.len() {
            let Some((cell, more)) = rest.trim_start().split_once(char::is_whitespace) else {
                break;
            };
            cells.push(cell);
            rest = more;
        }
        cells.push(rest.trim());
        let pid = cells.get(column).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid: i32| pids.contains(&pid)) {
            shown.push(cells.join("\t"));
        }
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s64_lines_are_chosen_by_pid() {
        let text =
            "UID   PID  PPID CMD\nroot   10     1 sleep 100 20\nroot   20     1 sh -c 'a  b'\n";
        let lines = select(text, &[20]).unwrap();
        assert_eq!(lines, ["UID\tPID\tPPID\tCMD", "root\t20\t1\tsh -c 'a  b'"]);
        assert!(select("UID CMD\n", &[1]).is_err());
    }
}
