//! One test's bundle, state folder and cgroup, and the calls to the program that concern them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::wait_until;
use super::{
    HIERARCHIES, Json, Output, PATIENCE, Run, default_config, host, leftovers, marked_processes,
    program,
};

/// The applets of busybox that the containers' scripts use.
const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "cp", "cut", "dd", "df", "echo", "env", "false", "grep", "head",
    "hostname", "id", "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv", "nc", "ps", "pwd",
    "readlink", "rm", "sed", "seq", "sh", "sleep", "sort", "stat", "stty", "tail", "test", "touch",
    "tr", "true", "tty", "umount", "uname", "unshare", "wc", "yes",
];

/// A bundle with a busybox rootfs, a private state folder (`--root`) and a cgroup of its own.
/// At its end it fails the test if anything of its containers is left on the host.
pub struct Sandbox {
    /// Of the container that most tests make.
    pub id: String,
    /// Holds everything of this test.
    pub dir: PathBuf,
    /// Written to the bundle before `create` and `run`.
    pub config: Value,
    /// The program under test, or a copy of it.
    pub program: PathBuf,
    /// A script that each call goes through; it ends in `exec … "$@"`.
    pub wrapper: Option<String>,
    calls: AtomicUsize,
}

impl Sandbox {
    /// Makes the bundle. `name` only has to be telling.
    pub fn new(name: &str) -> Sandbox {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = host().base.join(&id);
        let config = default_config(&format!("{}/{id}", host().cgroup), &marker(&id));
        let program = program().to_owned();
        let sandbox =
            Sandbox { id, dir, config, program, wrapper: None, calls: AtomicUsize::new(0) };
        make_folder(&sandbox.dir);
        make_folder(&sandbox.bundle());
        make_folder(&sandbox.dir.join("calls"));
        fill_rootfs(&sandbox.rootfs());
        sandbox
    }

    /// As `new`, with a container that runs a shell script.
    pub fn with_script(name: &str, script: &str) -> Sandbox {
        let mut sandbox = Sandbox::new(name);
        sandbox.script(script);
        sandbox
    }

    /// The bundle's folder.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// The container's root folder.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("bundle/rootfs")
    }

    /// What `--root` is set to.
    pub fn root(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The container's cgroup, from the root of each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("{}/{}", host().cgroup, self.id)
    }

    /// An environment variable that all processes of this test carry.
    pub fn marker(&self) -> String {
        marker(&self.id)
    }

    /// The folders of the container's cgroup that exist.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let own = self.cgroup();
        let all = HIERARCHIES.iter().map(|hierarchy| hierarchy.join(&own[1..]));
        all.filter(|cgroup| cgroup.exists()).collect()
    }

    /// Sets `process.args`.
    pub fn args(&mut self, args: &[&str]) -> &mut Sandbox {
        self.config["process"]["args"] = json!(args);
        self
    }

    /// Lets the container run a shell script.
    pub fn script(&mut self, script: &str) -> &mut Sandbox {
        self.args(&["/bin/sh", "-c", script])
    }

    /// Appends an entry to `mounts`.
    pub fn mount(&mut self, mount: Value) -> &mut Sandbox {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// Writes a file for the test and returns its path; `name` may have folders.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes config.json.
    pub fn write_config(&self) {
        let text = serde_json::to_string_pretty(&self.config).unwrap();
        fs::write(self.bundle().join("config.json"), text).unwrap();
    }

    /// A call of the program with this sandbox's `--root`.
    pub fn call<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        self.bare_call().arg("--root").arg(self.root()).args(arguments)
    }

    /// A call of the program without any argument.
    pub fn bare_call(&self) -> Run {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let run = Run::new(&self.program, &self.dir.join("calls").join(number.to_string()));
        let marker = self.marker();
        let (name, value) = marker.split_once('=').unwrap();
        let run = run.env(name, value);
        match &self.wrapper {
            Some(script) => run.wrapped(script),
            None => run,
        }
    }

    /// A finished call, with this sandbox's `--root`.
    #[track_caller]
    pub fn ultari<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Output {
        self.call(arguments).output()
    }

    /// `SUBCOMMAND --bundle BUNDLE`, config.json being written; options and the id are to follow.
    pub fn bundle_call(&self, subcommand: &str) -> Run {
        self.write_config();
        self.call([subcommand, "--bundle"]).arg(self.bundle())
    }

    /// `run` to the end.
    #[track_caller]
    pub fn run(&self) -> Output {
        self.bundle_call("run").arg(&self.id).output()
    }

    /// `run --detach`.
    #[track_caller]
    pub fn run_detached(&self) -> Output {
        self.bundle_call("run").args(["--detach", &self.id]).output().ok()
    }

    /// `create`.
    #[track_caller]
    pub fn create(&self) -> Output {
        self.bundle_call("create").arg(&self.id).output()
    }

    /// `start`.
    #[track_caller]
    pub fn start(&self) -> Output {
        self.ultari(["start", &self.id])
    }

    /// `kill ID SIGNAL`.
    #[track_caller]
    pub fn kill(&self, signal: &str) -> Output {
        self.ultari(["kill", &self.id, signal])
    }

    /// `delete`.
    #[track_caller]
    pub fn delete(&self) -> Output {
        self.ultari(["delete", &self.id])
    }

    /// `delete --force`.
    #[track_caller]
    pub fn delete_forced(&self) -> Output {
        self.ultari(["delete", "--force", &self.id])
    }

    /// `exec ID ARGS…`.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> Output {
        self.exec_call(&[]).args(args).output()
    }

    /// `exec OPTIONS… ID`; the arguments are to follow.
    pub fn exec_call(&self, options: &[&str]) -> Run {
        self.call(["exec"]).args(options).arg(&self.id)
    }

    /// What `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.ultari(["state", &self.id]).ok().json()
    }

    /// The status in `state`.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state().text("/status").to_owned()
    }

    /// The container's init, as `state` has it.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.state().integer("/pid") as i32
    }

    /// Waits until `state` shows this status.
    #[track_caller]
    pub fn wait_for(&self, status: &str) {
        wait_until(&format!("{} is {status}", self.id), || self.status() == status);
    }

    /// Runs the guest and returns its report.
    #[track_caller]
    pub fn probe(&mut self) -> Value {
        self.args(&["/guest", "report"]);
        self.run().ok().json()
    }

    /// Runs the guest with these actions and returns the outcome of each.
    #[track_caller]
    pub fn attempt(&mut self, actions: &[&str]) -> Vec<String> {
        let args: Vec<&str> = ["/guest", "do"].into_iter().chain(actions.iter().copied()).collect();
        self.args(&args);
        outcomes(&self.run().ok())
    }

    /// The same by `exec` in the running container.
    #[track_caller]
    pub fn exec_attempt(&self, actions: &[&str]) -> Vec<String> {
        let args: Vec<&str> = ["/guest", "do"].into_iter().chain(actions.iter().copied()).collect();
        outcomes(&self.exec(&args).ok())
    }

    /// Waits until nothing of the containers is left on the host.
    ///
    /// # Panics
    /// With the list of what is.
    #[track_caller]
    pub fn expect_nothing_left(&self) {
        let start = Instant::now();
        loop {
            let found = leftovers::find(self);
            if found.is_empty() {
                return;
            }
            // An orphan's end and its parent's notice of it need a moment.
            assert!(start.elapsed() < *PATIENCE / 10, "left behind:\n{}", found.join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn marker(id: &str) -> String {
    format!("ULTARI_TEST={}-{id}", std::process::id())
}

fn make_folder(path: &Path) {
    // Readable for everybody whatever the umask is: mapped users have to get through.
    fs::DirBuilder::new().mode(0o755).create(path).unwrap();
}

/// Hard links cost nothing; the two programs are never written to.
fn fill_rootfs(rootfs: &Path) {
    make_folder(rootfs);
    for folder in ["bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp", "usr", "usr/bin"] {
        make_folder(&rootfs.join(folder));
    }
    let template = host().base.join("template");
    fs::hard_link(template.join("busybox"), rootfs.join("bin/busybox")).unwrap();
    fs::hard_link(template.join("guest"), rootfs.join("guest")).unwrap();
    for applet in APPLETS {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}

#[track_caller]
fn outcomes(output: &Output) -> Vec<String> {
    let json = output.json();
    json.as_array().unwrap().iter().map(|outcome| outcome.as_str().unwrap().to_owned()).collect()
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if !failed {
            let forced = self.delete_forced();
            assert!(forced.code == 0, "delete --force failed: {}", forced.stderr);
            self.expect_nothing_left();
        } else {
            self.sweep();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Never remove through a mount: it may show the host's own files.
        if !mounts.contains(&format!("{}/", self.dir.display())) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Sandbox {
    /// After a failed test: removes by hand what the program may not be able to.
    fn sweep(&self) {
        let ids: Vec<String> = fs::read_dir(self.root())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        for id in ids {
            // Not `ultari`: a second panic would end the whole run.
            let mut call = std::process::Command::new("/usr/bin/timeout");
            call.args(["-s", "KILL", "5"]).arg(program()).arg("--root").arg(self.root());
            call.args(["delete", "--force", &id]).stderr(std::process::Stdio::null());
            let mut child = host().spawn(&mut call);
            let _ = child.wait();
            host().forget(child.id());
        }
        for cgroup in self.cgroups() {
            let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
            let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        for pid in marked_processes(&self.marker()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        host().reap_orphans();
    }
}
