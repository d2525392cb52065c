//! What the tests of one run share: the folder they work in, their part of the cgroup trees, the
//! program under test, and a cleaner that tidies up even if the run is killed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{LazyLock, Mutex};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

static HOST: LazyLock<Host> = LazyLock::new(Host::prepare);

/// Where each cgroup hierarchy of this machine is mounted: one folder on a cgroup v2 host, one a
/// controller on a v1 or hybrid host. From /proc/self/mountinfo.
pub static HIERARCHIES: LazyLock<Vec<PathBuf>> =
    LazyLock::new(|| cgroup_mounts().lines().map(mount_point).collect());

/// The lines of mountinfo on cgroup filesystems where the host has them: other programs may have
/// mounted them elsewhere for themselves.
fn cgroup_mounts() -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = |line: &&str| line.contains(" - cgroup") && line.contains(" /sys/fs/cgroup");
    mounts.lines().filter(own).map(|line| format!("{line}\n")).collect()
}

fn mount_point(line: &str) -> PathBuf {
    line.split(' ').nth(4).unwrap().into()
}

/// The folder of the hierarchy that holds a v1 controller, if it is mounted here.
pub fn hierarchy(controller: &str) -> Option<PathBuf> {
    let mounts = cgroup_mounts();
    let found = mounts.lines().find(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        line.contains(" - cgroup ") && options.split(',').any(|option| option == controller)
    });
    found.map(mount_point)
}

/// The program under test.
pub fn program() -> &'static Path {
    &host().program
}

/// What the tests of this run share.
pub fn host() -> &'static Host {
    &HOST
}

/// Shared by all tests of a run; see [`host`].
pub struct Host {
    /// A folder of this run, readable for everybody so that mapped users can enter a rootfs in it.
    pub base: PathBuf,
    /// The folder in every cgroup hierarchy under which all containers of this run are.
    pub cgroup: String,
    program: PathBuf,
    cleaner: Mutex<Child>,
    /// Processes that a test waits for itself; all other children are orphans of containers.
    waited_for: Mutex<HashSet<i32>>,
    /// How the orphans ended, for tests that ask as an engine's shim would.
    endings: Mutex<HashMap<i32, WaitStatus>>,
}

impl Host {
    fn prepare() -> Host {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers: run them as root");
        // As for an engine's shim, a container's init becomes our child when the runtime ends.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let name = format!("ultari-test-{}", std::process::id());
        let base = std::env::temp_dir().canonicalize().unwrap().join(&name);
        fs::DirBuilder::new().mode(0o755).create(&base).unwrap();
        let cleaner = start_cleaner(&name, &base);
        let template = base.join("template");
        fs::DirBuilder::new().mode(0o755).create(&template).unwrap();
        copy_static_program(&find_busybox(), &template.join("busybox"));
        copy_static_program(&find_guest(), &template.join("guest"));
        Host {
            program: find_program(),
            cgroup: format!("/{name}"),
            base,
            cleaner: Mutex::new(cleaner),
            waited_for: Mutex::default(),
            endings: Mutex::default(),
        }
    }

    /// Tells and counts that a test could not be done here.
    pub fn note_skip(&self, reason: &str) {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("?").to_owned();
        let line = format!("skipped {test}: {reason}\n");
        let mut cleaner = self.cleaner.lock().unwrap();
        cleaner.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// Starts a process that the caller waits for.
    pub fn spawn(&self, command: &mut Command) -> Child {
        // A panic with the lock would poison it, and end the whole run in the next test's drop.
        self.try_spawn(command).unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
    }

    fn try_spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Held across the start, so that `reap_orphans` can't take the child for an orphan.
        let mut waited_for = self.waited_for.lock().unwrap();
        let child = command.spawn()?;
        waited_for.insert(child.id() as i32);
        Ok(child)
    }

    /// As [`Command::output`], which `reap_orphans` could take the child from.
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.try_spawn(command)?;
        let pid = child.id();
        let output = child.wait_with_output();
        self.forget(pid);
        output
    }

    /// To be called when a child of [`Host::spawn`] was waited for.
    pub fn forget(&self, pid: u32) {
        self.waited_for.lock().unwrap().remove(&(pid as i32));
    }

    /// Collects the ended processes that containers left to us.
    pub fn reap_orphans(&self) {
        let waited_for = self.waited_for.lock().unwrap();
        for pid in children() {
            if waited_for.contains(&pid) {
                continue;
            }
            if let Ok(status) = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG))
                && status != WaitStatus::StillAlive
            {
                self.endings.lock().unwrap().insert(pid, status);
            }
        }
    }

    /// How a container's init ended, as its shim would see it: the exit code, or 128 + signal.
    pub fn exit_code_of_orphan(&self, pid: i32) -> i32 {
        let mut code = None;
        super::wait_until(&format!("process {pid} ends"), || {
            self.reap_orphans();
            code = match self.endings.lock().unwrap().get(&pid) {
                Some(WaitStatus::Exited(_, code)) => Some(*code),
                Some(WaitStatus::Signaled(_, signal, _)) => Some(128 + *signal as i32),
                _ => None,
            };
            code.is_some()
        });
        code.unwrap()
    }
}

/// The children of this process, whichever thread they belong to.
fn children() -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found
}

/// Processes that have `marker` in the environment that they were started with. Those of a
/// runtime and of the containers of one test carry the same marker.
pub fn marked_processes(marker: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        if variables.any(|variable| variable == marker.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// `ULTARI_BIN`, or what `make build` leaves in bin/.
fn find_program() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("bin/ultari");
    let program = std::env::var_os("ULTARI_BIN").map_or(default, PathBuf::from);
    program.canonicalize().unwrap_or_else(|error| {
        panic!("the program under test, {}: {error}; run `make build` first", program.display())
    })
}

fn find_busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let found = places.into_iter().find(|path| path.exists());
    found.expect("/bin/busybox is missing: install the package busybox-static")
}

/// Cargo puts examples into a folder beside that of the test binary.
fn find_guest() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let guest = own.parent().and_then(Path::parent).unwrap().join("examples/guest");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/main.rs");
    let built = fs::metadata(&guest).and_then(|guest| guest.modified());
    assert!(
        built.is_ok_and(|built| built >= fs::metadata(&source).unwrap().modified().unwrap()),
        "{} is missing or old: cargo build --example guest, with this profile and target",
        guest.display()
    );
    guest
}

fn copy_static_program(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(
        !names_an_interpreter(&fs::read(to).unwrap()),
        "{} must be linked statically: -C target-feature=+crt-static with an explicit --target",
        from.display()
    );
}

/// Whether a 64-bit ELF image has a program header of the type PT_INTERP: see elf(5).
fn names_an_interpreter(image: &[u8]) -> bool {
    let half = |at: usize| u16::from_le_bytes(image[at..at + 2].try_into().unwrap()) as usize;
    let table = u64::from_le_bytes(image[32..40].try_into().unwrap()) as usize;
    let (size, count) = (half(54), half(56));
    let mut headers = image[table..].chunks(size).take(count);
    headers.any(|header| header[..4] == 3u32.to_le_bytes())
}

/// A shell that outlives this process for a moment: libtest has no teardown. It reads the skips
/// from its stdin until the run has ended, however that came about.
fn start_cleaner(name: &str, base: &Path) -> Child {
    let script = r#"
        skipped=0
        while read -r line; do echo "$line" >&2; skipped=$((skipped + 1)); done
        for cgroup in $(find /sys/fs/cgroup/*/"$1" /sys/fs/cgroup/"$1" -depth -type d 2>/dev/null); do
            for pid in $(cat "$cgroup/cgroup.procs" 2>/dev/null); do kill -9 "$pid"; done
            rmdir "$cgroup" 2>/dev/null || { sleep 0.2; rmdir "$cgroup"; }
        done
        slice=ultaritest${1##*-}.slice
        [ ! -d "/sys/fs/cgroup/$slice" ] || systemctl stop "$slice"
        if grep -q " $2/" /proc/self/mountinfo; then
            echo "something is still mounted in $2: not removed" >&2
        else
            rm -rf --one-file-system "$2"
        fi
        echo "integration tests: skipped: $skipped" >&2
    "#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "cleaner", name]).arg(base);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}
