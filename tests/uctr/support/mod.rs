//! What all tests share: a place of their own, with its own mounts, network and storage.

mod host;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

pub use host::Host;

/// The program that is tested.
pub fn program() -> PathBuf {
    std::env::var_os("UCTR_BIN").map_or_else(|| env!("CARGO_BIN_EXE_uctr").into(), PathBuf::from)
}

/// One test's own place. The test's thread, and so all that it starts, is in a mount namespace and
/// in a network namespace of its own, where only `lo` is.
#[derive(Debug)]
pub struct Sandbox {
    /// For files of the test.
    pub dir: tempfile::TempDir,
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; 128 + n for signal n.
    pub code: i32,
    /// As text.
    pub stdout: String,
    /// As text.
    pub stderr: String,
    /// The command, for messages.
    command: String,
}

impl Sandbox {
    /// Takes the calling thread into new namespaces.
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        // /sys shows the network namespace of whoever mounted it.
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        Self { dir: tempfile::Builder::new().prefix("uctr-test-").tempdir_in("/var/tmp").unwrap() }
    }

    /// `uctr` with storage of this sandbox.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.dir.path().join("data"));
        command.arg("--run-root").arg(self.dir.path().join("run"));
        command
            .args(args)
            .stdin(Stdio::null())
            .env("DOCKER_CONFIG", self.dir.path().join("docker"));
        command
    }

    /// Nothing of the container is left.
    #[track_caller]
    pub fn is_gone(&self, id: &str) {
        let folder = self.dir.path();
        for path in ["data/containers", "run/containers", "run/runtime"] {
            let path = folder.join(path).join(id);
            assert!(!path.exists(), "{} is left", path.display());
        }
        for controller in ["memory", "pids", "unified", "."] {
            let path = format!("/sys/fs/cgroup/{controller}/ultari/{id}");
            assert!(!std::path::Path::new(&path).exists(), "{path} is left");
        }
    }

    /// Runs `uctr` to its end.
    pub fn uctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        output(&mut self.command(args))
    }
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> Output {
    let said = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let signal = std::os::unix::process::ExitStatusExt::signal(&said.status);
    Output {
        code: said.status.code().unwrap_or_else(|| 128 + signal.unwrap()),
        stdout: String::from_utf8_lossy(&said.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&said.stderr).into_owned(),
        command: format!("{command:?}"),
    }
}

/// Whether a condition comes about, if not at once.
pub fn comes_about(mut condition: impl FnMut() -> bool) -> bool {
    for _ in 0..1000 {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Waits until a condition comes about.
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_about(condition), "{what}: that does not come about");
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Also after a failure nothing may be left running.
        let folder = self.dir.path().join("data/containers");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().len() == 64 {
                let _ = self.command(["rm", "-f"]).arg(entry.file_name()).output();
            }
        }
        // Where something is mounted the folder can't be removed.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for path in paths.filter(|path| std::path::Path::new(path).starts_with(self.dir.path())) {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

impl Output {
    /// The command must have ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}\n{}", self.command, self.stdout, self.stderr);
        self
    }

    /// The command must have failed so, with all these words on stderr.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}\n{}\n{}", self.command, self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?}: {}\n{}", self.command, self.stderr);
        }
        self
    }
}

impl Sandbox {
    /// Brings an image `busybox` into the store: the programs of Debian's busybox-static, users
    /// `root` and `ann` (1000, also in `video`, 44), `PATH=/bin`, and `sh` as its command. It is as if
    /// it had been pulled; nothing that is tested takes part in making the archive.
    pub fn with_busybox(self) -> Self {
        self.image("busybox", &["CMD [\"sh\"]"], |_| {});
        self
    }

    /// An image of busybox, with what `change` adds to its files, and instructions of a Dockerfile.
    pub fn image(&self, name: &str, instructions: &[&str], change: impl FnOnce(&mut Archive)) {
        let mut archive = tar::Builder::new(Vec::new());
        for folder in ["bin", "etc", "root", "home/ann", "tmp"] {
            add(
                &mut archive,
                tar::EntryType::Directory,
                folder,
                if folder == "tmp" { 0o1777 } else { 0o755 },
                b"",
            );
        }
        let busybox = std::fs::read("/bin/busybox").expect("tests need busybox-static");
        add(&mut archive, tar::EntryType::Regular, "bin/busybox", 0o755, &busybox);
        let list = output(Command::new("/bin/busybox").arg("--list")).ok().stdout;
        for applet in list.lines().filter(|applet| *applet != "busybox") {
            link(&mut archive, &format!("bin/{applet}"), "busybox");
        }
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        add(&mut archive, tar::EntryType::Regular, "etc/passwd", 0o644, passwd);
        let group = b"root:x:0:\nann:x:1000:\nvideo:x:44:ann\n";
        add(&mut archive, tar::EntryType::Regular, "etc/group", 0o644, group);
        change(&mut archive);
        let file = self.dir.path().join("image.tar");
        std::fs::write(&file, archive.into_inner().unwrap()).unwrap();
        let mut args = vec!["import", "-c", "ENV PATH=/bin"];
        for instruction in instructions {
            args.extend(["-c", instruction]);
        }
        args.extend([file.to_str().unwrap(), name]);
        self.uctr(args).ok();
        std::fs::remove_file(&file).unwrap();
    }
}

/// The root filesystem of an image that is being made.
pub type Archive = tar::Builder<Vec<u8>>;

/// Adds a file or a folder to an image.
pub fn add(archive: &mut Archive, kind: tar::EntryType, path: &str, mode: u32, content: &[u8]) {
    let mut header = header(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).unwrap();
}

/// Adds a symbolic link to an image.
pub fn link(archive: &mut Archive, path: &str, target: &str) {
    let mut header = header(tar::EntryType::Symlink);
    archive.append_link(&mut header, path, target).unwrap();
}

fn header(kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
