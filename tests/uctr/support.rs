//! What all tests share: a place of their own, with its own mounts, network and storage.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

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
