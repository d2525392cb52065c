//! `uctr system df`

use std::collections::HashMap;

use anyhow::Result;
use clap::Args as ClapArgs;
use oci_spec::image::Digest;
use serde_json::{Value, json};

use crate::cli::containers::status;
use crate::container::{self, Container};
use crate::disk;
use crate::image::layers::Layers;
use crate::image::store::Store;
use crate::image::usage::{created, image_size, layer_size, usage};
use crate::output::{self, Listing};
use crate::paths::Paths;
use crate::volume::{self, Volume};

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Show each image, container and volume
    #[arg(short, long, conflicts_with = "format")]
    verbose: bool,
    /// How it is printed: table, table TEMPLATE, json, or a Go template for each kind
    #[arg(long)]
    format: Option<String>,
}

const LISTING: Listing = Listing {
    default: "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
    titles: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
};

/// What is on disk besides images.
struct Used {
    containers: Vec<(Container, u64)>,
    volumes: Vec<(Volume, u64, usize)>,
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let used = Used::collect(paths)?;
    let text = match args.verbose {
        true => verbose(paths, &used)?,
        false => LISTING.render(args.format.as_deref(), &summary(paths, &used)?)?,
    };
    output::print(&text)?;
    Ok(0)
}

impl Used {
    fn collect(paths: &Paths) -> Result<Self> {
        let mut containers = Vec::new();
        let mut links: HashMap<String, usize> = HashMap::new();
        for container in container::list(paths)? {
            for name in container.record.mounts.iter().filter_map(|mount| mount.name.as_ref()) {
                *links.entry(name.clone()).or_default() += 1;
            }
            let size = disk::folder_size(&container.folder().join("upper"))?;
            containers.push((container, size));
        }
        let mut volumes = Vec::new();
        for volume in volume::list(paths)? {
            let size = disk::folder_size(&volume.data(paths))?;
            let links = links.get(&volume.name).copied().unwrap_or(0);
            volumes.push((volume, size, links));
        }
        Ok(Self { containers, volumes })
    }
}

fn summary(paths: &Paths, used: &Used) -> Result<Vec<Value>> {
    let images = usage(paths, &Store::open(paths)?, &Layers::open(paths)?)?;
    let row = |kind: &str, total: usize, active: usize, size: u64, reclaimable: u64| {
        let share = match (reclaimable * 100).checked_div(size) {
            Some(share) => format!(" ({share}%)"),
            None => String::new(),
        };
        json!({
            "Type": kind,
            "TotalCount": total.to_string(),
            "Active": active.to_string(),
            "Size": output::long_size(size),
            "Reclaimable": output::long_size(reclaimable) + &share,
        })
    };
    let is_active = |container: &Container| container.state().status.is_alive();
    let (active, idle): (Vec<_>, Vec<_>) =
        used.containers.iter().partition(|(container, _)| is_active(container));
    let bytes = |all: &[&(Container, u64)]| all.iter().map(|(_, size)| size).sum::<u64>();
    let (kept, free): (Vec<_>, Vec<_>) = used.volumes.iter().partition(|(_, _, links)| *links > 0);
    let sizes = |all: &[&(Volume, u64, usize)]| all.iter().map(|(_, size, _)| size).sum::<u64>();
    Ok(vec![
        row("Images", images.total, images.active, images.size, images.reclaimable),
        row(
            "Containers",
            used.containers.len(),
            active.len(),
            bytes(&active) + bytes(&idle),
            bytes(&idle),
        ),
        row(
            "Local Volumes",
            used.volumes.len(),
            kept.len(),
            sizes(&kept) + sizes(&free),
            sizes(&free),
        ),
        row("Build Cache", 0, 0, 0, 0),
    ])
}

fn verbose(paths: &Paths, used: &Used) -> Result<String> {
    let mut text = String::from("Images space usage:\n\n");
    text += &output::align(&image_lines(paths, used)?);
    text += "\nContainers space usage:\n\n";
    let mut lines = vec![
        "CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES".to_owned(),
    ];
    for (container, size) in &used.containers {
        let record = &container.record;
        lines.push(format!(
            "{}\t{}\t{:?}\t{}\t{}\t{}\t{}\t{}",
            container.short_id(),
            record.image,
            output::ellipsis(&record.args.join(" "), 20),
            record.mounts.iter().filter(|mount| mount.kind == "volume").count(),
            output::size(*size),
            output::ago(record.created),
            status(&container.state()),
            record.name
        ));
    }
    text += &output::align(&lines);
    text += "\nLocal Volumes space usage:\n\n";
    let mut lines = vec!["VOLUME NAME\tLINKS\tSIZE".to_owned()];
    for (volume, size, links) in &used.volumes {
        lines.push(format!("{}\t{links}\t{}", volume.name, output::size(*size)));
    }
    text += &output::align(&lines);
    text += "\nBuild cache usage: 0B\n";
    Ok(text)
}

/// A layer that several images have counts as shared in each.
fn image_lines(paths: &Paths, used: &Used) -> Result<Vec<String>> {
    let (store, layers) = (Store::open(paths)?, Layers::open(paths)?);
    let images = store.images()?;
    let mut users: HashMap<&Digest, usize> = HashMap::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        *users.entry(&layer.diff_id).or_default() += 1;
    }
    let mut lines = vec![
        "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS".to_owned(),
    ];
    for image in &images {
        let whole = image_size(&layers, image)?;
        let mut shared = 0;
        for layer in image.layers.iter().filter(|layer| users[&layer.diff_id] > 1) {
            shared += layer_size(&layers, layer)?;
        }
        let of_it = |(container, _): &&(Container, u64)| container.record.image_id == image.id;
        let facts = format!(
            "{}\t{}\t{}\t{}\t{}\t{}",
            image.short_id(),
            created(image).map_or_else(|| "N/A".into(), output::ago),
            output::size(whole),
            output::size(shared),
            output::size(whole.saturating_sub(shared)),
            used.containers.iter().filter(of_it).count()
        );
        if image.names.is_empty() {
            lines.push(format!("<none>\t<none>\t{facts}"));
        }
        for name in &image.names {
            let tag = name.tag.as_deref().unwrap_or("<none>");
            lines.push(format!("{}\t{tag}\t{facts}", name.familiar_repository()));
        }
    }
    Ok(lines)
}
