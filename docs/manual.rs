//! Writes the manual pages and the shells' completions, from the definitions of the command line, to
//! the folders `man8` and `completions` of the one given.

#[path = "../src/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::create_dir_all;
use std::path::PathBuf;

use clap_complete::{Shell, generate_to};

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("usage: manual FOLDER"));
    let (man, completions) = (folder.join("man8"), folder.join("completions"));
    create_dir_all(&man)?;
    create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut cli::command(), "ultari", &completions)?;
    }
    let mut command = cli::command();
    command.build();
    let pages = [command.clone()].into_iter().chain(command.get_subcommands().cloned());
    for page in pages.filter(|page| page.get_name() != "help") {
        let file = match page.get_name() {
            "ultari" => "ultari.8".to_owned(),
            name => format!("ultari-{name}.8"),
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page).section("8").render(&mut text)?;
        std::fs::write(man.join(file), text)?;
    }
    Ok(())
}
