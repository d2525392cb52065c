//! The `uctr` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    uctr::cli::main()
}
