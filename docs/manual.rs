//! Writes the manual pages and the shells' completions of both programs, from the definitions of their
//! command lines, to the folders `man1`, `man8` and `completions` of the one given.

#[path = "../src/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::{create_dir_all, write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("usage: manual FOLDER"));
    // What makes containers is the administrator's (man-pages(7), "Sections").
    for (mut command, section) in [(cli::Cli::command(), "8"), (uctr::cli::command(), "1")] {
        let completions = folder.join("completions");
        create_dir_all(&completions)?;
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            generate_to(shell, &mut command, &name, &completions)?;
        }
        let pages = folder.join(format!("man{section}"));
        create_dir_all(&pages)?;
        command.build();
        write_pages(&command, &name, section, &pages)?;
    }
    Ok(())
}

/// The page of a command, called `name`, and those of all below it.
fn write_pages(command: &Command, name: &str, section: &str, pages: &Path) -> std::io::Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).section(section).render(&mut text)?;
    write(pages.join(format!("{name}.{section}")), text)?;
    let shown = |command: &&Command| command.get_name() != "help" && !command.is_hide_set();
    for below in command.get_subcommands().filter(shown) {
        write_pages(below, &format!("{name}-{}", below.get_name()), section, pages)?;
    }
    Ok(())
}
