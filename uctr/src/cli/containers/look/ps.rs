//! `uctr ps`

mod filter;

use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use crate::container::record::{State, Status};
use crate::container::{self, Container};
use crate::disk;
use crate::image::layers::Layers;
use crate::output::{self, Listing};
use crate::paths::Paths;
use filter::Filters;

/// How much of a command is shown.
const COMMAND_WIDTH: usize = 20;
/// How much of a mount's name is shown.
const MOUNT_WIDTH: usize = 15;

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Also those that don't run
    #[arg(short, long)]
    all: bool,
    /// Only those that meet a condition: id=, name=, status=, label=, ancestor=, exited=, network=,
    /// volume=, publish=, expose=, before=, since=
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// How it is printed: table, table TEMPLATE, json, or a Go template for each container
    #[arg(long)]
    format: Option<String>,
    /// The last that were made, whatever became of them
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = -1, hide_default_value = true,
        allow_negative_numbers = true)]
    last: i64,
    /// The last that was made, whatever became of it
    #[arg(short, long)]
    latest: bool,
    /// Nothing is cut
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Also sizes
    #[arg(short, long)]
    size: bool,
}

const DEFAULT: &str = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t\
                       {{.Ports}}\t{{.Names}}";

const TITLES: [(&str, &str); 14] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Size", "SIZE"),
];

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let all = container::list(paths)?;
    let filters = Filters::parse(&args.filter, paths, &all)?;
    let last = if args.latest { 1 } else { args.last };
    let mut shown: Vec<(&Container, State)> =
        all.iter().map(|container| (container, container.state())).collect();
    if last < 0 && !args.all && !filters.of_state() {
        shown.retain(|(_, state)| state.status.is_alive() || state.status == Status::Restarting);
    }
    shown.retain(|(container, state)| filters.hold(container, state));
    if let Ok(last) = usize::try_from(last) {
        shown.truncate(last);
    }
    let template = match (args.quiet, args.size) {
        (true, _) => "{{.ID}}",
        (false, true) => &format!("{DEFAULT}\t{{{{.Size}}}}"),
        (false, false) => DEFAULT,
    };
    // `-q` only gives way to a template that isn't a table.
    let format =
        args.format.as_deref().filter(|format| !args.quiet || !format.starts_with("table"));
    let sizes = args.size || format.is_some_and(|format| format.contains(".Size"));
    let mut rows = Vec::new();
    for (container, state) in shown {
        rows.push(row(container, &state, args.no_trunc, sizes)?);
    }
    output::print(&Listing { default: template, titles: &TITLES }.render(format, &rows)?)?;
    Ok(0)
}

fn row(container: &Container, state: &State, whole: bool, with_size: bool) -> Result<Value> {
    let record = &container.record;
    let cut = |text: &str, width| match whole {
        true => text.to_owned(),
        false => output::ellipsis(text, width),
    };
    let command = cut(&record.args.join(" "), COMMAND_WIDTH);
    let mounts = record.mounts.iter().filter(|mount| mount.kind != "tmpfs").map(|mount| {
        let source = mount.source.as_deref().unwrap_or(&mount.destination).display().to_string();
        cut(mount.name.as_deref().unwrap_or(&source), MOUNT_WIDTH)
    });
    let labels = &record.config.labels;
    let size = match with_size {
        false => String::new(),
        true => {
            let own = disk::folder_size(&container.folder().join("upper"))?;
            let whole = own + layers_size(container)?;
            format!("{} (virtual {})", output::size(own), output::size(whole))
        }
    };
    Ok(json!({
        "Command": serde_json::to_string(&command)?,
        "CreatedAt": output::local_time(record.created),
        "ID": if whole { &record.id } else { container.short_id() },
        "Image": record.image,
        "Label": labels,
        "Labels": labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
        "LocalVolumes": record.mounts.iter().filter(|m| m.kind == "volume").count().to_string(),
        "Mounts": mounts.collect::<Vec<_>>().join(","),
        "Names": record.name,
        "Networks": networks(container).join(","),
        "Ports": ports(container, state),
        "RunningFor": output::ago(record.created),
        "Size": size,
        "State": state.status.word(),
        "Status": status(state),
    }))
}

/// The bytes of the image's layers below a container.
pub fn layers_size(container: &Container) -> Result<u64> {
    let layers = Layers::open(container.paths())?;
    let mut size = 0;
    for layer in &container.record.layers {
        size += layers.known(layer)?.unwrap_or_default().size;
    }
    Ok(size)
}

/// The names of all networks that it is or would be on.
pub fn networks(container: &Container) -> Vec<String> {
    let record = &container.record;
    let mut names: Vec<String> = record.wishes.iter().map(|wish| wish.network.clone()).collect();
    if names.is_empty() {
        names.push(match record.host_config.network_mode.as_str() {
            "" | "default" => "bridge".into(),
            mode => mode.into(),
        });
    }
    names
}

/// `0.0.0.0:8080->80/tcp, 443/tcp`: published ports, and those that only other containers reach.
fn ports(container: &Container, state: &State) -> String {
    if !state.status.is_alive() {
        return String::new();
    }
    let record = &container.record;
    let mut shown: Vec<String> = record.network.ports.iter().map(ToString::to_string).collect();
    let published: Vec<String> =
        record.network.ports.iter().map(crate::network::PortMapping::container).collect();
    let exposed = record.config.exposed_ports.keys();
    shown.extend(exposed.filter(|port| !published.contains(port)).cloned());
    shown.join(", ")
}

/// Docker's sentence: `Up 5 seconds`, `Exited (0) 3 minutes ago` …
pub fn status(state: &State) -> String {
    let up = || format!("Up {}", state.started_at.map_or_else(String::new, output::since));
    let ended = |word: &str| {
        let ago =
            state.finished_at.map_or_else(String::new, |then| " ".to_owned() + &output::ago(then));
        format!("{word} ({}){ago}", state.exit_code)
    };
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => up(),
        Status::Paused => up() + " (Paused)",
        Status::Restarting => ended("Restarting"),
        Status::Removing => "Removal In Progress".into(),
        Status::Exited => ended("Exited"),
        Status::Dead => "Dead".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s58_states_are_told_as_docker_tells_them() {
        let now = jiff::Timestamp::now();
        let earlier = |seconds: i64| Some(now - jiff::SignedDuration::from_secs(seconds));
        let mut state =
            State { status: Status::Running, started_at: earlier(5), ..State::default() };
        assert_eq!(status(&state), "Up 5 seconds");
        state.status = Status::Paused;
        assert_eq!(status(&state), "Up 5 seconds (Paused)");
        (state.status, state.exit_code, state.finished_at) = (Status::Exited, 137, earlier(180));
        assert_eq!(status(&state), "Exited (137) 3 minutes ago");
        state.status = Status::Restarting;
        assert_eq!(status(&state), "Restarting (137) 3 minutes ago");
        assert_eq!(status(&State::default()), "Created");
    }
}
