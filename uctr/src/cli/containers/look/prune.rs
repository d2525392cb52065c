//! `uctr container prune`

use anyhow::Result;

use crate::cli::common::{Filters, Prune, print_deleted};
use crate::container::record::Status;
use crate::container::{self, lifecycle};
use crate::disk;
use crate::output;
use crate::paths::Paths;

pub fn run(paths: &Paths, args: &Prune) -> Result<u8> {
    let Some(filters) = args.agreed("WARNING! This will remove all stopped containers.")? else {
        return Ok(0);
    };
    let (ids, bytes) = prune_stopped(paths, &filters)?;
    print_deleted("Containers", &ids)?;
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
