//! CVE-2019-5736: the container writes to the host's file of the runtime through /proc/PID/exe.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::statvfs::FsFlags;

use crate::skip;
use crate::support::user;
use crate::support::{Output, Sandbox, program, set_namespace, wait_until};

/// A container that holds on to every program file that it finds in its /proc, tries to make its
/// mount writable, and writes to it as soon as nobody runs it any more.
fn catcher(milliseconds: u64) -> (Sandbox, Output) {
    let mut sandbox = Sandbox::new("overwrite");
    // If it does, then not to the program that all the other tests use.
    sandbox.program = sandbox.dir.join("runtime");
    fs::copy(program(), &sandbox.program).unwrap();
    for set in ["bounding", "permitted", "effective"] {
        let names = sandbox.config["process"]["capabilities"][set].as_array_mut().unwrap();
        names.extend(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"].map(|name| json!(name)));
    }
    sandbox.args(&["/guest", "do", &format!("catch {milliseconds}")]);
    script(&sandbox, "#!/proc/self/exe --help\n");
    let created = sandbox.create().ok();
    (sandbox, created)
}

fn script(sandbox: &Sandbox, text: &str) {
    let script = sandbox.rootfs().join("script");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
fn expect_unharmed(catcher: &Sandbox, created: &Output) {
    // Nobody may run the program that it wants to write to: so no `state` before it is done.
    wait_until("it has tried", || !created.stdout_by_now().is_empty());
    let wanted = json!(["ok caught true, wrote to []"]).to_string();
    assert_eq!(created.stdout_by_now().trim(), wanted, "it did get hold of something");
    let same = fs::read(&catcher.program).unwrap() == fs::read(program()).unwrap();
    assert!(same, "the container has changed the runtime");
}

/// Shown: with seal::ensure returning at once it "wrote to" the copy of the runtime; with
/// seal::let_go called only after the clone, too.
#[test]
fn exec_does_not_give_the_runtime_away() {
    let (catcher, created) = catcher(1500);
    catcher.start().ok();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1200) {
        // The runtime's own file as the program keeps it open for longer.
        catcher.exec(&["/proc/self/exe", "--help"]);
        catcher.exec(&["/script"]);
        catcher.exec(&["/bin/true"]);
    }
    expect_unharmed(&catcher, &created);
}

/// Shown: with seal::ensure returning at once it "wrote to" the copy of the runtime; with
/// seal::let_go called only after the clone, too.
#[test]
fn an_entrypoint_that_is_the_runtime_does_not_give_it_away() {
    let (catcher, created) = catcher(2000);
    catcher.start().ok();
    let namespace = format!("/proc/{}/ns/pid", catcher.pid());
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        for entrypoint in ["/proc/self/exe", "/link", "/script"] {
            let mut sandbox = Sandbox::new("selfexe");
            sandbox.program = catcher.program.clone();
            set_namespace(&mut sandbox.config, "pid", Some(&namespace));
            symlink("/proc/self/exe", sandbox.rootfs().join("link")).unwrap();
            script(&sandbox, "#!/proc/self/exe\n");
            sandbox.args(&[entrypoint]);
            sandbox.run();
            sandbox.expect_nothing_left();
        }
    }
    expect_unharmed(&catcher, &created);
}

/// The program exchanges its file under itself where it can, and else is executed once more: without
/// standard input, and with so many descriptors open that a number has three digits.
///
/// Shown: with entry::seal and seal::ensure returning at once the files were not on read-only mounts.
#[test]
fn nothing_that_the_runtime_is_mapped_from_can_be_written_to() {
    // dash knows no such numbers.
    let many = "exec bash -c 'for fd in {3..110}; do eval \"exec $fd</dev/null\"; done; \
                exec \"$@\"' bash \"$@\"";
    let some = "exec 3</etc 4</ 5</proc 6</tmp 7</etc/passwd 8</ 9</dev; exec \"$@\"";
    for (wrapper, again) in
        [("exec \"$@\"", false), (some, false), ("exec \"$@\" <&-", true), (many, true)]
    {
        let sandbox = Sandbox::with_script("mapped", "exec sleep 100");
        let call = sandbox.bundle_call("run").arg(&sandbox.id).env("MARK", "of the test");
        let running = call.wrapped(&format!("ulimit -n 200; {wrapper}")).spawn();
        wait_until("it runs", || sandbox.ultari(["state", &sandbox.id]).stdout.contains("running"));
        let process = Path::new("/proc").join(running.pid().to_string());
        let mapped = fs::read_dir(process.join("map_files")).unwrap();
        let mapped: Vec<_> = mapped.map(|entry| entry.unwrap().path()).collect();
        assert!(mapped.len() >= 4, "{mapped:?}");
        for file in mapped.into_iter().chain([process.join("exe")]) {
            // While it is executed, opening says ETXTBSY in any case.
            let flags = nix::sys::statvfs::statvfs(&file).unwrap().flags();
            assert!(flags.contains(FsFlags::ST_RDONLY), "{wrapper}: {}", file.display());
        }
        // What else the kernel knows of a process's memory is as it was.
        let read = |file: &str| fs::read_to_string(process.join(file)).unwrap();
        assert!(read("cmdline").ends_with(&format!(
            "run\0--bundle\0{}\0{}\0",
            sandbox.bundle().display(),
            sandbox.id
        )));
        assert!(read("environ").contains("\0MARK=of the test\0"), "{}", read("environ"));
        // Executed by descriptor, as AT_EXECFN says.
        let auxiliary = fs::read(process.join("auxv")).unwrap();
        let words = auxiliary.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
        let words: Vec<_> = words.collect();
        let name = words.chunks(2).find(|pair| pair[0] == libc::AT_EXECFN).unwrap()[1];
        let mut path = [0; 8];
        let memory = fs::File::open(process.join("mem")).unwrap();
        memory.read_exact_at(&mut path, name).unwrap();
        assert_eq!(path == *b"/dev/fd/", again, "{wrapper}");
        sandbox.kill("KILL").ok();
        running.wait().exits_with(137);
    }
}

/// As long as the mount is whole, whoever gets hold of the file can make it writable.
///
/// Shown: with hooks left out of pivots_unseen a hook could; with let_go_with_host doing nothing, who
/// waits for its start.
#[test]
fn the_runtimes_mount_is_down_before_hooks_and_before_the_start() {
    let mut sandbox = Sandbox::new("whole");
    let guest = sandbox.rootfs().join("guest").display().to_string();
    let seen = sandbox.dir.join("seen");
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
         for pid in $pid $PPID; do {guest} do \"unseal $pid\" >>{}; done",
        seen.display()
    );
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    sandbox.config["hooks"] = json!({"prestart": hook, "createRuntime": hook});
    sandbox.create().ok();
    let wanted = "[\"ok false\"]\n".repeat(4);
    assert_eq!(fs::read_to_string(&seen).unwrap(), wanted, "init's and the runtime's own, twice");
    sandbox.delete_forced().ok();
    sandbox.config["hooks"] = json!({});
    sandbox.create().ok();
    let unseal = format!("unseal {}", sandbox.pid());
    let output = std::process::Command::new(guest).args(["do", &unseal]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "[\"ok false\"]\n");
}

/// The mount that the runtime runs from is among those of the host for a moment.
///
/// Shown: with seal::let_go_with_host called before the container's mounts are made it was there.
#[test]
fn no_copy_of_the_hosts_mounts_has_the_runtimes_own() {
    let mut sandbox = Sandbox::with_script("copies", "cat /host/version /proc/self/mountinfo");
    sandbox.mount(json!({"destination": "/host", "source": "/proc", "options": ["rbind"]}));
    let seen = sandbox.run().ok().stdout;
    assert!(seen.starts_with("Linux version"), "{seen}");
    let name = program().file_name().unwrap().to_str().unwrap();
    assert!(!seen.contains(&format!("/{name} ")), "{seen}");
}

/// Who can't make mounts has a copy in memory that nobody can write to.
///
/// Shown: with seal::ensure returning at once the file of the process had no seals.
#[test]
fn without_root_the_runtime_runs_from_a_sealed_copy() {
    if let Some(reason) = user::missing() {
        skip!("{reason}");
    }
    let sandbox = Sandbox::of_user("sealed", "exec sleep 100");
    let running = sandbox.bundle_call("run").arg(&sandbox.id).spawn();
    wait_until("it runs", || sandbox.ultari(["state", &sandbox.id]).stdout.contains("running"));
    let parent = |pid: i32| -> i32 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.unwrap().trim().parse().unwrap()
    };
    let file = fs::File::open(format!("/proc/{}/exe", parent(sandbox.pid()))).unwrap();
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).expect("the runtime's file has seals");
    let wanted = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    assert!(SealFlag::from_bits_truncate(seals).contains(wanted), "{seals:x}");
    sandbox.kill("KILL").ok();
    running.wait().exits_with(137);
}
