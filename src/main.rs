//! The `ultari` command.

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use ultari::{log, seal};

fn main() -> ExitCode {
    if seal::wanted(std::env::args_os().skip(1))
        && let Err(error) = seal::ensure()
    {
        log::error(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if help { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    let (status, error) = commands::dispatch(cli);
    if let Some(error) = error {
        log::error(&format!("{error:#}"));
    }
    // The kernel keeps eight bits of it.
    ExitCode::from(status as u8)
}
