//! What `make install` puts where, and that it works from there.

use std::path::Path;
use std::process::Command;

use crate::skip;
use crate::support::Sandbox;

#[test]
fn program_manual_pages_and_completions() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !project.join("bin/ultari").exists() || !project.join("target/manual").exists() {
        skip!("`make build` has not been here");
    }
    let sandbox = Sandbox::new("install");
    let to = sandbox.dir.join("to");
    let make = Command::new("make")
        .arg("-C")
        .arg(project)
        .arg("install")
        .env_remove("MAKEFLAGS")
        .arg(format!("DESTDIR={}", to.display()))
        .arg("PREFIX=/usr")
        .output()
        .unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let usr = to.join("usr");
    let help = Command::new(usr.join("bin/ultari")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let names: Vec<_> =
        commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"create"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let page = usr.join(format!("share/man/man8/ultari-{name}.8"));
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(name), "{page:?}");
    }
    let script = "source share/bash-completion/completions/ultari
        COMP_WORDS=(ultari sta) COMP_CWORD=1
        _ultari ultari sta ultari
        echo ${COMPREPLY[*]}";
    let bash = Command::new("bash").args(["-c", script]).current_dir(&usr).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&bash.stdout), "start state\n");
}
