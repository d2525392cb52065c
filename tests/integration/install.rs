//! What `make install` puts where, and that it works from there.

use std::path::Path;
use std::process::Command;

use crate::skip;
use crate::support::{Sandbox, host};

#[test]
fn programs_manual_pages_and_completions() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !project.join("bin/ultari").exists() || !project.join("target/manual").exists() {
        skip!("`make build` has not been here");
    }
    let sandbox = Sandbox::new("install");
    let to = sandbox.dir.join("to");
    let mut make = Command::new("make");
    make.arg("-C").arg(project).arg("install").env_remove("MAKEFLAGS");
    make.arg(format!("DESTDIR={}", to.display())).arg("PREFIX=/usr");
    let make = host().output(&mut make).unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let usr = to.join("usr");
    expect_pages(&usr, "ultari", 8, &["create"]);
    expect_pages(&usr, "uctr", 1, &["run", "network"]);
    assert!(usr.join("share/man/man1/uctr-network-create.1").exists());
    for (program, typed, commands) in [("ultari", "sta", "start state"), ("uctr", "net", "network")]
    {
        let script = format!(
            "source share/bash-completion/completions/{program}
            COMP_WORDS=({program} {typed}) COMP_CWORD=1
            _{program} {program} {typed} {program}
            echo ${{COMPREPLY[*]}}"
        );
        let mut bash = Command::new("bash");
        let bash = host().output(bash.args(["-c", &script]).current_dir(&usr)).unwrap();
        assert_eq!(String::from_utf8_lossy(&bash.stdout), format!("{commands}\n"));
    }
}

/// Each command that `--help` names has its page.
fn expect_pages(usr: &Path, program: &str, section: u32, some: &[&str]) {
    let mut help = Command::new(usr.join("bin").join(program));
    let help = host().output(help.arg("--help")).unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let names: Vec<_> =
        commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(some.iter().all(|name| names.contains(name)), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let page = usr.join(format!("share/man/man{section}/{program}-{name}.{section}"));
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(name), "{page:?}");
    }
}
