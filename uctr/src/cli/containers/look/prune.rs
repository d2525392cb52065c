//! `uctr container prune`

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use jiff::Timestamp;

use crate::container::record::Status;
use crate::container::{self, lifecycle};
use crate::disk;
use crate::output;
use crate::paths::Paths;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// Only those that meet a condition: label=, label!=, until=
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let filters = Filters::parse(&args.filter)?;
    if !args.force && !output::confirm("WARNING! This will remove all stopped containers.")? {
        return Ok(0);
    }
    let (ids, bytes) = prune_stopped(paths, &filters)?;
    if !ids.is_empty() {
        output::print(&format!("Deleted Containers:\n{}\n\n", ids.join("\n")))?;
    }
    output::print(&format!("Total reclaimed space: {}\n", output::long_size(bytes)))?;
    Ok(0)
}

/// Removes all containers that don't run and meet the filters; their IDs, and what that gave back.
pub fn prune_stopped(paths: &Paths, filters: &Filters) -> Result<(Vec<String>, u64)> {
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for mut container in container::list(paths)? {
        let status = container.state().status;
        let ended = matches!(status, Status::Created | Status::Exited | Status::Dead);
        let record = &container.record;
        if !ended || !filters.hold(&record.config.labels, record.created) {
            continue;
        }
        let id = record.id.clone();
        let size = disk::folder_size(&container.folder().join("upper"))?;
        match lifecycle::remove(&mut container, false, false) {
            Ok(()) => {
                bytes += size;
                ids.push(id);
            }
            // Somebody started it meanwhile, or something of it can't be removed.
            Err(error) => eprintln!("uctr: {}: {error:#}", &id[..12]),
        }
    }
    Ok((ids, bytes))
}

/// `label=`, `label!=` and `until=`, which all kinds of prune have.
#[derive(Debug, Default)]
pub struct Filters {
    labels: Vec<String>,
    without: Vec<String>,
    until: Option<Timestamp>,
}

impl Filters {
    /// Reads them.
    ///
    /// # Errors
    /// When there is no such filter, or its value is no time.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            match output::filter(text, &["label", "label!", "until"])? {
                ("label", label) => filters.labels.push(label.into()),
                ("label!", label) => filters.without.push(label.into()),
                (_, time) if filters.until.is_none() => {
                    filters.until = Some(container::logs::parse_time(time)?);
                }
                _ => bail!("more than one until filter specified"),
            }
        }
        Ok(filters)
    }

    /// Whether something with these labels, made then, may go.
    #[must_use]
    pub fn hold(
        &self,
        labels: &std::collections::BTreeMap<String, String>,
        created: Timestamp,
    ) -> bool {
        self.labels.iter().all(|label| output::has_label(labels, label))
            && !self.without.iter().any(|label| output::has_label(labels, label))
            && self.until.is_none_or(|until| created < until)
    }
}
