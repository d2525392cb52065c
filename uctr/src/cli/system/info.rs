//! `uctr version`, `uctr info`

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use nix::sys::utsname::uname;
use serde_json::{Value, json};

use crate::container;
use crate::container::record::Status;
use crate::image::store::Store;
use crate::output;
use crate::paths::Paths;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// Docker's word for the processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel() -> Result<String> {
    Ok(uname().context("uname")?.release().to_string_lossy().into_owned())
}

pub fn version(args: &Args) -> Result<u8> {
    let kernel = kernel()?;
    // There is no server, but scripts ask for its version.
    let one = json!({
        "Version": VERSION, "Os": "linux", "Arch": architecture(), "KernelVersion": kernel,
    });
    let text = match args.format.as_deref() {
        None | Some("") => format!(
            "uctr:\n Version:    {VERSION}\n OS/Arch:    linux/{}\n Kernel:     {kernel}\n \
             Runtime:    ultari {VERSION} (built in)\n",
            architecture()
        ),
        format => one_object(format, &json!({ "Client": one, "Server": one }))?,
    };
    output::print(&text)?;
    Ok(0)
}

/// As [`output::objects`], but `json` is no array.
fn one_object(format: Option<&str>, object: &Value) -> Result<String> {
    match format {
        Some("json") => Ok(serde_json::to_string(object)? + "\n"),
        format => output::objects(format, std::slice::from_ref(object)),
    }
}

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let info = collect(paths)?;
    let text = match args.format.as_deref() {
        None | Some("") => shown(&info),
        format => one_object(format, &info)?,
    };
    output::print(&text)?;
    Ok(0)
}

fn collect(paths: &Paths) -> Result<Value> {
    let states: Vec<Status> =
        container::list(paths)?.iter().map(|container| container.state().status).collect();
    let count = |wanted: &[Status]| states.iter().filter(|state| wanted.contains(state)).count();
    let running = count(&[Status::Running, Status::Restarting]);
    let paused = count(&[Status::Paused]);
    let host = uname().context("uname")?;
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Ok(json!({
        "Containers": states.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": states.len() - running - paused,
        "Images": Store::open(paths)?.images()?.len(),
        "Driver": "overlay2",
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if v2 { "2" } else { "1" },
        "DefaultRuntime": "ultari",
        "KernelVersion": host.release().to_string_lossy(),
        "OperatingSystem": operating_system(),
        "OSType": "linux",
        "Architecture": host.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": memory(),
        "Name": host.nodename().to_string_lossy(),
        "DockerRootDir": paths.data,
        "ServerVersion": VERSION,
    }))
}

fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn memory() -> u64 {
    let info = nix::sys::sysinfo::sysinfo();
    info.map_or(0, |info| info.ram_total())
}

fn shown(info: &Value) -> String {
    let text = |name: &str| match &info[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let memory = output::binary_size(info["MemTotal"].as_u64().unwrap_or(0));
    let lines = [
        ("Containers", text("Containers")),
        (" Running", text("ContainersRunning")),
        (" Paused", text("ContainersPaused")),
        (" Stopped", text("ContainersStopped")),
        ("Images", text("Images")),
        ("Version", text("ServerVersion")),
        ("Storage Driver", text("Driver")),
        ("Logging Driver", text("LoggingDriver")),
        ("Cgroup Driver", text("CgroupDriver")),
        ("Cgroup Version", text("CgroupVersion")),
        ("Default Runtime", text("DefaultRuntime")),
        ("Kernel Version", text("KernelVersion")),
        ("Operating System", text("OperatingSystem")),
        ("OSType", text("OSType")),
        ("Architecture", text("Architecture")),
        ("CPUs", text("NCPU")),
        ("Total Memory", memory),
        ("Name", text("Name")),
        ("Root Dir", text("DockerRootDir")),
    ];
    lines.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}
