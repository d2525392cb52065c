//! The command line: docker's commands, flags, output columns and exit codes.

mod common;
mod containers;
mod images;
mod networks;
mod registry;
mod system;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::paths::Paths;

/// Pull images and run containers from them, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "uctr", version, disable_help_subcommand = true, disable_version_flag = true)]
struct Cli {
    /// The folder of images, layers, containers and volumes
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/ultari")]
    root: PathBuf,
    /// The folder of what does not outlive a reboot
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/ultari/uctr")]
    run_root: PathBuf,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: (),
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Registry(registry::Command),
    #[command(flatten)]
    Images(images::Command),
    #[command(flatten)]
    Containers(containers::Command),
    #[command(flatten)]
    Ports(networks::Short),
    #[command(flatten)]
    System(system::Short),
    /// Manage images
    #[command(subcommand)]
    Image(Image),
    /// Manage containers
    #[command(subcommand)]
    Container(containers::Group),
    /// Manage networks
    #[command(subcommand)]
    Network(networks::Command),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volumes::Command),
    /// Look after all of it
    #[command(subcommand, name = "system")]
    Whole(system::Command),
}

#[derive(Debug, Subcommand)]
enum Image {
    #[command(flatten)]
    Registry(registry::ImageCommand),
    #[command(flatten)]
    Images(images::Group),
}

/// The definition of the command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program's arguments; its exit status is docker's.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = hidden_command(&args) {
        return ExitCode::from(code);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(misuse(&error));
        }
    };
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let paths = Paths { data: absolute(cli.root), run: absolute(cli.run_root) };
    match dispatch(&paths, cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("uctr: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// docker's exit status for a command line that makes no sense: 125 for flags, 1 for commands and
/// arguments; who has only begun one is helped.
fn misuse(error: &clap::Error) -> u8 {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "-",
    };
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => 0,
        ErrorKind::MissingRequiredArgument | ErrorKind::InvalidSubcommand => 1,
        ErrorKind::UnknownArgument if !unknown.starts_with('-') => 1,
        _ => 125,
    }
}

/// Commands of processes that this program starts itself. They come before the command line is
/// looked at, of which they need nothing: some of them stay for long, and should stay small.
fn hidden_command(args: &[std::ffi::OsString]) -> Option<u8> {
    crate::container::hidden_command(args)
}

/// The exit status, or an error that makes it 1.
fn dispatch(paths: &Paths, command: Command) -> Result<u8> {
    match command {
        Command::Registry(command) => registry::run(paths, command),
        Command::Images(command) => images::run(paths, command),
        Command::Containers(command) => containers::run(paths, command),
        Command::Ports(command) => networks::run_short(paths, command),
        Command::Image(Image::Registry(command)) => registry::run_group(paths, command),
        Command::Image(Image::Images(command)) => images::run_group(paths, command),
        Command::Container(command) => containers::run_group(paths, command),
        Command::Network(command) => networks::run(paths, command),
        Command::Volume(command) => volumes::run(paths, command),
        Command::System(command) => system::run_short(paths, command),
        Command::Whole(command) => system::run(paths, command),
    }
}
