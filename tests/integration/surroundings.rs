//! Odd places to be started from: the runtime works there, or says what it lacks and leaves nothing.

use crate::support::{Output, Run, Sandbox};

/// A container that ends with 5 and is told its standard streams by the caller.
fn ends_with_5(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::with_script(name, "touch /tmp/file; stat -c %a /tmp/file; exit 5");
    sandbox.config["root"]["readonly"] = false.into();
    sandbox
}

fn run(sandbox: &Sandbox, wrapper: &str) -> Output {
    sandbox.bundle_call("run").arg(&sandbox.id).wrapped(wrapper).output()
}

#[test]
fn where_it_works_all_the_same() {
    for (place, wrapper) in [
        ("strict umask", "umask 077; exec \"$@\""),
        ("stdin closed", "exec \"$@\" <&-"),
        ("stderr closed", "exec \"$@\" 2>&-"),
        ("few descriptors", "ulimit -n 64; exec \"$@\""),
        ("no environment", "exec env -i \"$@\""),
        ("no home, no folder for temporary files", "unset HOME; TMPDIR=/none exec \"$@\""),
        ("the working directory is gone", "mkdir gone; cd gone; rmdir ../gone; exec \"$@\""),
        ("low priority, signals ignored", "trap '' INT TERM CHLD PIPE; exec nice -n 9 \"$@\""),
    ] {
        let sandbox = ends_with_5("odd");
        let wrapper = format!("cd {}; {wrapper}", sandbox.dir.display());
        let output = run(&sandbox, &wrapper);
        assert_eq!((output.code, output.stdout.trim()), (5, "644"), "{place}: {output:?}");
        sandbox.expect_nothing_left();
    }
    // With nothing to write to, the exit status is all there is.
    let sandbox = ends_with_5("silent");
    run(&sandbox, "exec \"$@\" <&- >&- 2>&-").exits_with(5);
    sandbox.expect_nothing_left();
}

#[test]
fn ignored_signals_of_a_member_of_many_groups() {
    // Which signals are ignored stands in /proc/self/status behind the list of groups.
    let sandbox = Sandbox::with_script("groups", "grep SigIgn /proc/self/status");
    let wrapper = "trap '' USR1; exec setpriv --groups $(seq -s , 10000 15000) -- \"$@\"";
    let output = run(&sandbox, wrapper).ok();
    let ignored = output.stdout.trim().strip_prefix("SigIgn:\t").unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    assert_eq!(ignored & 1 << (libc::SIGUSR1 - 1), 0, "{output:?}");
}

#[test]
fn a_closed_descriptor_is_no_door_to_what_the_runtime_opens() {
    // The lowest free numbers are the standard streams: nothing may be opened there and inherited.
    let mut sandbox = Sandbox::new("doors");
    sandbox.script("for n in 0 1 2; do readlink /proc/self/fd/$n; done >/out; exit 0");
    sandbox.config["root"]["readonly"] = false.into();
    run(&sandbox, "exec \"$@\" <&- >&- 2>&-").ok();
    let seen = std::fs::read_to_string(sandbox.rootfs().join("out")).unwrap();
    let seen: Vec<_> = seen.lines().collect();
    assert_eq!([seen[0], seen[2]], ["/dev/null", "/dev/null"], "{seen:?}");
}

#[test]
fn without_slash_tmp() {
    let sandbox = ends_with_5("notmp");
    let dir = sandbox.dir.display();
    let script = format!(
        "exec unshare --mount --propagation private sh -ec '
            mount -t tmpfs none /mnt
            mkdir /mnt/dir
            touch /mnt/program
            mount --bind {dir} /mnt/dir
            mount --bind \"$1\" /mnt/program
            mount -t tmpfs -o ro,mode=0 none /tmp
            exec /mnt/program --root /mnt/dir/run run --bundle /mnt/dir/bundle {}' sh \"$1\"",
        sandbox.id
    );
    sandbox.write_config();
    let output = Run::new(crate::support::program(), &sandbox.dir).wrapped(&script).output();
    output.exits_with(5);
    sandbox.expect_nothing_left();
}

/// `run` with a state folder that is this mount.
fn with_root_on(sandbox: &Sandbox, mount: &str) -> Output {
    let root = sandbox.root();
    let root = root.display();
    let script = format!(
        "exec unshare --mount --propagation private sh -ec '
            mkdir -p {root}; {mount} {root}; cd {root}
            code=0; \"$@\" || code=$?
            find . -mindepth 1 ! -name fill
            exit $code' sh \"$@\""
    );
    let output = run(sandbox, &script);
    std::fs::remove_dir(sandbox.root()).unwrap();
    output
}

#[test]
fn a_full_disk() {
    let sandbox = ends_with_5("full");
    let small = "tmp() { mount -t tmpfs -o size=64k none $1; dd if=/dev/zero of=$1/fill 2>/dev/null || :; }; tmp";
    let output = with_root_on(&sandbox, small).exits_with(1);
    assert!(output.stderr.contains("No space left on device"), "{output:?}");
    assert_eq!(output.stdout, "", "files are left");
    sandbox.expect_nothing_left();
    // What is there is enough as long as nobody else takes it.
    let output = with_root_on(&sandbox, "mount -t tmpfs -o size=64k none").exits_with(5);
    assert_eq!(output.stdout, "644\n");
}

#[test]
fn a_read_only_state_folder() {
    let sandbox = ends_with_5("readonly");
    let output = with_root_on(&sandbox, "mount -t tmpfs -o ro none").exits_with(1);
    let root = sandbox.root();
    let output = output.says(&[root.to_str().unwrap(), "Read-only file system"]);
    assert_eq!(output.stdout, "");
    sandbox.expect_nothing_left();
}
