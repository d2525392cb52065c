//! Commands on volumes.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::common::{self, Filters, Inspect, Rm, Shape, label_column, pairs, print_deleted};
use crate::container;
use crate::disk;
use crate::network::random_id;
use crate::output::{self, Listing, print};
use crate::paths::Paths;
use crate::volume::{self, Volume};

/// `uctr volume …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume
    Create(Create),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all that is known of volumes
    Inspect(Inspect),
    /// Remove volumes with all that is in them
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Remove all anonymous volumes that no container uses
    Prune(Prune),
}

#[derive(Debug, Args)]
pub struct Create {
    /// The kind of volume: local
    #[arg(short, long, default_value = "local")]
    driver: String,
    /// A note on it
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// dangling=true|false, driver=, label=, name=
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, Args)]
pub struct Prune {
    /// Also volumes with names
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    common: common::Prune,
}

pub fn run(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Create(args) => create(paths, args),
        Command::Ls(args) => list(paths, &args),
        Command::Inspect(args) => args.run(|name| match volume::find(paths, name)? {
            Some(volume) => Ok(volume_json(paths, &volume)),
            None => bail!("get {name}: no such volume"),
        }),
        Command::Rm(args) => args.run(
            |name| volume::find(paths, name).is_ok_and(|volume| volume.is_none()),
            |name| remove(paths, name),
        ),
        Command::Prune(args) => prune(paths, &args),
    }
}

fn create(paths: &Paths, args: Create) -> Result<u8> {
    ensure!(
        args.driver == "local",
        "volume driver \"{}\" not found: only local is here",
        args.driver
    );
    let name = args.name.map_or_else(random_id, Ok)?;
    let labels = pairs(&args.label);
    print(&format!("{}\n", volume::create(paths, &name, labels, "")?.name))?;
    Ok(0)
}

/// The containers, running or not, that use a volume.
type Users = BTreeMap<String, Vec<String>>;

fn users(paths: &Paths) -> Result<Users> {
    let mut users = Users::new();
    for container in container::list(paths)? {
        for name in container.record.mounts.into_iter().filter_map(|mount| mount.name) {
            users.entry(name).or_default().push(container.record.id.clone());
        }
    }
    Ok(users)
}

const VOLUMES: &[(&str, &str)] = &[
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
];

fn list(paths: &Paths, args: &Ls) -> Result<u8> {
    let mut volumes = volume::list(paths)?;
    let users = users(paths)?;
    for text in &args.filter {
        let (filter, value) = output::filter(text, &["dangling", "driver", "label", "name"])?;
        let dangling = matches!(value, "true" | "1");
        volumes.retain(|volume| match filter {
            "dangling" => users.contains_key(&volume.name) != dangling,
            "driver" => value == "local",
            "label" => output::has_label(&volume.labels, value),
            _ => volume.name.contains(value),
        });
    }
    let row = |volume: &Volume| {
        json!({
            "Name": volume.name,
            "Driver": "local",
            "Scope": "local",
            "Mountpoint": volume.data(paths),
            "Labels": label_column(&volume.labels),
            "Label": volume.labels,
        })
    };
    let rows: Vec<Value> = volumes.iter().map(row).collect();
    let listing = Listing { default: "table {{.Driver}}\t{{.Name}}", titles: VOLUMES };
    args.shape.print(listing, "{{.Name}}", &rows)?;
    Ok(0)
}

/// What `inspect` shows of a volume.
pub fn volume_json(paths: &Paths, volume: &Volume) -> Value {
    json!({
        "CreatedAt": volume.created,
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume.data(paths),
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    })
}

fn remove(paths: &Paths, name: &str) -> Result<()> {
    match users(paths)?.get(name) {
        Some(ids) => bail!("remove {name}: volume is in use - [{}]", ids.join(", ")),
        None => volume::remove(paths, name),
    }
}

fn prune(paths: &Paths, args: &Prune) -> Result<u8> {
    let warning = match args.all {
        true => "WARNING! This will remove all local volumes not used by at least one container.",
        false => {
            "WARNING! This will remove anonymous local volumes not used by at least one container."
        }
    };
    let Some(filters) = args.common.agreed(warning)? else { return Ok(0) };
    let (names, bytes) = prune_volumes(paths, args.all, &filters)?;
    print_deleted("Volumes", &names)?;
    print(&format!("Total reclaimed space: {}\n", output::long_size(bytes)))?;
    Ok(0)
}

/// Removes all volumes that no container uses and that meet the filters; their names, and what that
/// gave back.
pub fn prune_volumes(paths: &Paths, all: bool, filters: &Filters) -> Result<(Vec<String>, u64)> {
    let users = users(paths)?;
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for volume in volume::list(paths)? {
        let kept = users.contains_key(&volume.name) || !(all || volume.anonymous);
        if kept || !filters.hold(&volume.labels, volume.created) {
            continue;
        }
        let size = disk::folder_size(&volume.data(paths))?;
        volume::remove(paths, &volume.name)?;
        bytes += size;
        removed.push(volume.name);
    }
    Ok((removed, bytes))
}
