//! `checkpoint` and `restore`: what a container has is there again, and it goes on where it was.
//!
//! They need a criu that works on this kernel: that on the PATH, or the one that `CRIU` names.

mod environment;
mod failures;
mod processes;
mod streams;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::support::{Output, Run, Sandbox, host, wait_until};

static CRIU: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::var_os("CRIU").map_or("criu".into(), PathBuf::from));

/// Why these tests can't be done here.
static UNUSABLE: LazyLock<Option<String>> =
    LazyLock::new(|| match host().output(Command::new(&*CRIU).arg("check")) {
        Err(error) => Some(format!("{}: {error}", CRIU.display())),
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Some(format!("{} check: {said}", CRIU.display()))
        }
    });

macro_rules! needs_criu {
    () => {
        if let Some(why) = &*$crate::checkpoint::UNUSABLE {
            $crate::skip!("{why}");
        }
    };
}

use needs_criu;

fn call(sandbox: &Sandbox, command: &str) -> Run {
    let images = sandbox.dir.join("images");
    sandbox.call(["--criu"]).arg(&*CRIU).args([command, "--image-path"]).arg(images)
}

fn checkpoint(sandbox: &Sandbox, flags: &[&str]) -> Output {
    call(sandbox, "checkpoint").args(flags).arg(&sandbox.id).output()
}

fn restore_call(sandbox: &Sandbox, flags: &[&str]) -> Run {
    call(sandbox, "restore").arg("--bundle").arg(sandbox.bundle()).args(flags).arg(&sandbox.id)
}

fn restore(sandbox: &Sandbox, flags: &[&str]) -> Output {
    restore_call(sandbox, &[&["--detach"], flags].concat()).output()
}

const COUNTER: &str = "i=0; while true; do i=$((i + 1)); echo $i >>/count; sleep 0.05; done";

/// Where the counter is.
fn count(sandbox: &Sandbox) -> u32 {
    let mut number = None;
    wait_until("it counts", || {
        number = fs::read_to_string(sandbox.rootfs().join("count"))
            .ok()
            .and_then(|text| text.lines().last()?.parse().ok());
        number.is_some()
    });
    number.unwrap()
}

fn wait_for_count(sandbox: &Sandbox, more_than: u32) {
    wait_until("it counts on", || count(sandbox) > more_than);
}

fn counter(name: &str) -> Sandbox {
    let sandbox = Sandbox::with_script(name, COUNTER);
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    sandbox
}

/// The container counts on from there, not from the beginning.
#[track_caller]
fn expect_to_go_on(sandbox: &Sandbox, from: u32) {
    wait_for_count(sandbox, from);
    let text = fs::read_to_string(sandbox.rootfs().join("count")).unwrap();
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    let follow = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    assert!(follow, "not one after the other: {numbers:?}");
}

/// A connection inside of the container over which numbers come.
fn connected(name: &str) -> Sandbox {
    let sandbox = Sandbox::with_script(
        name,
        "(i=0; while true; do i=$((i + 1)); echo $i; sleep 0.05; done | nc -l -p 7000) &
         sleep 0.3; nc 127.0.0.1 7000 </dev/zero | while read -r n; do echo $n >>/count; done",
    );
    sandbox.run_detached();
    wait_for_count(&sandbox, 2);
    sandbox
}
