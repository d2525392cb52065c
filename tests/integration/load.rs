//! Many containers at once, many one after the other, and many calls for the same container: nothing
//! is left, no state is wrong, nobody waits for ever.
//!
//! `make test` takes a small part of it; `LOAD=100`, in percent, is the whole (`make load`).

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::leftovers::is_described;
use crate::support::{Json, Output, Run, Sandbox, marked_processes, wait_until};

/// That many percent of `whole`, but no less than `least`.
fn share(whole: usize, least: usize) -> usize {
    let percent = std::env::var("LOAD").map_or(2, |text| text.parse::<usize>().unwrap());
    (whole * percent / 100).max(least)
}

/// Calls `work` with 0, 1 … below `count`, each once, from so many threads.
fn in_parallel(workers: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    work(number);
                }
            });
        }
    });
}

/// The bundle of container `number`: the sandbox's own rootfs, a cgroup of its own.
fn bundle(sandbox: &Sandbox, number: usize) -> PathBuf {
    let mut config = sandbox.config.clone();
    config["root"] = json!({"path": sandbox.rootfs(), "readonly": true});
    config["linux"]["cgroupsPath"] = json!(format!("{}/{number}", sandbox.cgroup()));
    let bundle = sandbox.dir.join("bundles").join(number.to_string());
    fs::create_dir_all(&bundle).unwrap();
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}

fn id(number: usize) -> String {
    format!("load-{number}")
}

fn run_detached(sandbox: &Sandbox, number: usize) -> Run {
    let call = sandbox.call(["run", "--detach", "--bundle"]).arg(bundle(sandbox, number));
    call.arg(id(number))
}

#[test]
fn many_containers_alive_at_once() {
    let sandbox = Sandbox::with_script("alive", "exec sleep 10000");
    let count = share(500, 12);
    in_parallel(4, count, |number| drop(run_detached(&sandbox, number).output().ok()));
    let listed = sandbox.ultari(["list", "--format", "json"]).ok().json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), count);
    assert!(listed.iter().all(|container| container["status"] == "running"), "{listed:?}");
    let pids: HashSet<i64> = listed.iter().map(|container| container.integer("/pid")).collect();
    let alive: HashSet<i64> =
        marked_processes(&sandbox.marker()).into_iter().map(i64::from).collect();
    assert_eq!(pids, alive, "one process each, and no other");
    let step = count.div_ceil(20);
    for number in (0..count).step_by(step) {
        sandbox.ultari(["exec", &id(number), "/bin/true"]).ok();
    }
    // The end of one is not that of another.
    sandbox.ultari(["kill", &id(0), "KILL"]).ok();
    wait_until("it is stopped", || {
        sandbox.ultari(["state", &id(0)]).ok().json()["status"] == "stopped"
    });
    let listed = sandbox.ultari(["list", "--format", "json"]).ok().json();
    let running = |container: &&serde_json::Value| container["status"] == "running";
    assert_eq!(listed.as_array().unwrap().iter().filter(running).count(), count - 1);
    in_parallel(4, count, |number| {
        sandbox.ultari(["delete", "--force", &id(number)]).ok();
    });
    sandbox.expect_nothing_left();
    eprintln!("load: {count} containers were alive at once, nothing left");
}

/// Shown: without Folder::wait_for_program a container of `run --detach` was "creating" at times.
#[test]
fn many_containers_by_eight_workers() {
    let sandbox = Sandbox::with_script("churn", "exec sleep 10000");
    let count = share(2000, 40);
    in_parallel(8, count, |number| {
        // Each way to live and to end.
        let id = id(number);
        match number % 4 {
            0 => drop(run_detached(&sandbox, number).output().ok()),
            1 => {
                let call = sandbox.call(["create", "--bundle"]).arg(bundle(&sandbox, number));
                call.arg(&id).output().ok();
            }
            2 => {
                run_detached(&sandbox, number).output().ok();
                sandbox.ultari(["exec", &id, "/bin/true"]).ok();
                sandbox.ultari(["kill", &id, "KILL"]).ok();
            }
            _ => {
                run_detached(&sandbox, number).output().ok();
                let state = sandbox.ultari(["state", &id]).ok().json();
                assert_eq!(state["status"], "running");
            }
        }
        sandbox.ultari(["delete", "--force", &id]).ok();
        sandbox.ultari(["state", &id]).fails(1, &["does not exist"]);
        fs::remove_dir_all(sandbox.dir.join("bundles").join(number.to_string())).unwrap();
    });
    sandbox.expect_nothing_left();
    eprintln!("load: {count} containers were made and deleted by 8 workers, nothing left");
}

/// What may come of a call while others work on the same container: success, or an error in words.
#[track_caller]
fn expect_sane(output: &Output, killed: bool) {
    let known = matches!(output.code, 0 | 1 | 137 | 255) || killed;
    assert!(known && !output.stderr.contains("panicked"), "{output:?}");
    let told = output.code == 0 || killed || output.code == 137 || !output.stderr.is_empty();
    assert!(told, "no reason: {output:?}");
}

/// Shown: without Folder::bar processes and cgroups without a record were left; with the place of the
/// cgroup decided before the name was taken, cgroups.
#[test]
fn all_calls_at_once_for_the_same_container() {
    let sandbox = Sandbox::with_script("same", "exec sleep 10000");
    sandbox.write_config();
    let rounds = share(200, 6);
    let (calls, kills) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let random = AtomicU32::new(1);
    for round in 0..rounds {
        in_parallel(8, 24, |number| {
            let make = |command: &str| {
                sandbox.call([command, "--bundle"]).arg(sandbox.bundle()).arg(&sandbox.id)
            };
            let call = match number % 8 {
                0 | 4 => make("create"),
                1 => sandbox.call(["start", &sandbox.id]),
                2 => sandbox.call(["kill", &sandbox.id, "KILL"]),
                3 => sandbox.call(["delete", &sandbox.id]),
                5 => sandbox.call(["delete", "--force", &sandbox.id]),
                6 => sandbox.exec_call(&[]).arg("/bin/true"),
                _ => sandbox.call(["state", &sandbox.id]),
            };
            let call = call.spawn();
            // Each third caller is killed at some moment.
            let killed = (number + round) % 3 == 0;
            if killed {
                let moment = random.fetch_add(7919, Ordering::Relaxed) % 40;
                std::thread::sleep(Duration::from_millis(moment.into()));
                call.signal(Signal::SIGKILL);
                kills.fetch_add(1, Ordering::Relaxed);
            }
            calls.fetch_add(1, Ordering::Relaxed);
            expect_sane(&call.wait(), killed);
        });
        is_described(&sandbox, &format!("round {round}"));
        sandbox.delete_forced().ok();
        sandbox.expect_nothing_left();
        // And the id is as good as new.
        sandbox.create().ok();
        sandbox.start().ok();
        assert_eq!(sandbox.status(), "running");
        sandbox.delete_forced().ok();
        sandbox.expect_nothing_left();
    }
    eprintln!(
        "load: {} calls for the same container in {rounds} rounds, {} of them killed, nothing left",
        calls.into_inner(),
        kills.into_inner()
    );
}
