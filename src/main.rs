//! The `ultari` command.
#![cfg_attr(not(test), no_main)]

mod cli;
mod commands;

use std::ffi::OsString;

use clap::error::ErrorKind;
use ultari::{log, seal, sys};

#[cfg(not(test))]
ultari::entry!(run);

#[cfg(not(test))]
ultari::c_heap!();

#[global_allocator]
static HEAP: sys::heap::Heap = sys::heap::Heap;

/// The exit status.
#[cfg_attr(test, expect(dead_code))]
fn run(args: Vec<OsString>) -> i32 {
    sys::heap::populate();
    if let Err(errno) = sys::process::tidy_up() {
        log::error(&format!("open /dev/null as a standard stream: {}", errno.desc()));
        return 1;
    }
    if seal::wanted(args.iter().skip(1))
        && let Err(error) = seal::ensure(&args)
    {
        log::error(&format!("{error:#}"));
        return 1;
    }
    let cli = match cli::parse(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return i32::from(!help);
        }
    };
    let (status, error) = commands::dispatch(cli);
    if let Some(error) = error {
        log::error(&format!("{error:#}"));
    }
    status
}
