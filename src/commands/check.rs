//! `check`.

use std::path::Path;

use anyhow::Result;
use serde_json::json;
use ultari::check::{self, Verdict};

use crate::cli::OutputFormat;

pub fn check(bundle: &Path, systemd_cgroup: bool, format: OutputFormat) -> Result<i32> {
    let bundle = super::bundle(bundle)?;
    let report = check::check(&bundle, systemd_cgroup);
    let fine = report.is_fine();
    match format {
        OutputFormat::Json => {
            let report = json!({"bundle": bundle, "ok": fine, "findings": report.findings});
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
        OutputFormat::Table => {
            for finding in &report.findings {
                let verdict = match finding.verdict {
                    Verdict::Yes => "yes",
                    Verdict::Warning => "warning",
                    Verdict::No => "NO",
                };
                let line = format!("{verdict:<8} {:<36} {}", finding.property, finding.reason);
                println!("{}", line.trim_end());
            }
            let outcome = if fine { "can be created" } else { "can't be created" };
            println!("{} {outcome} on this host", bundle.display());
        }
    }
    Ok(i32::from(!fine))
}
