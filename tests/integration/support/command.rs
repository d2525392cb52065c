//! Runs the program with a time limit, and what came of it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, host};

/// A call that is being prepared. Stdout and stderr go to files, not to pipes: a container that
/// lives on would hold a pipe open and its reader would never see the end.
pub struct Run {
    line: Vec<OsString>,
    environment: Vec<(String, String)>,
    cwd: Option<PathBuf>,
    stdin: Option<PathBuf>,
    terminal: Option<OwnedFd>,
    out: PathBuf,
    err: PathBuf,
    timeout: Duration,
}

impl Run {
    /// `prefix` is where stdout and stderr are kept: PREFIX.out, PREFIX.err.
    pub fn new(program: &Path, prefix: &Path) -> Run {
        Run {
            line: vec![program.into()],
            environment: Vec::new(),
            cwd: None,
            stdin: None,
            terminal: None,
            out: prefix.with_extension("out"),
            err: prefix.with_extension("err"),
            timeout: *PATIENCE,
        }
    }

    /// Appends an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Run {
        self.line.push(argument.as_ref().into());
        self
    }

    /// Appends arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Run {
        self.line.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable of the program.
    pub fn env(mut self, name: &str, value: &str) -> Run {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the folder in which the program starts.
    pub fn cwd(mut self, folder: impl AsRef<Path>) -> Run {
        self.cwd = Some(folder.as_ref().into());
        self
    }

    /// What the program reads from its stdin.
    pub fn stdin(mut self, text: &str) -> Run {
        let file = self.out.with_extension("in");
        fs::write(&file, text).unwrap();
        self.stdin = Some(file);
        self
    }

    /// Makes this terminal the program's controlling one and all its standard descriptors.
    pub fn terminal(mut self, slave: OwnedFd) -> Run {
        self.terminal = Some(slave);
        let line = ["/usr/bin/setsid", "--ctty"].map(OsString::from);
        self.line.splice(0..0, line);
        self
    }

    /// Runs the program by a shell script that ends in `exec "$@"`: to open descriptors for it,
    /// set limits or choose its cgroup.
    pub fn wrapped(mut self, script: &str) -> Run {
        let line = ["/bin/sh", "-c", script, "sh"].map(OsString::from);
        self.line.splice(0..0, line);
        self
    }

    /// Starts without waiting.
    #[track_caller]
    pub fn spawn(self) -> Running {
        let mut command = Command::new(&self.line[0]);
        command.args(&self.line[1..]).envs(self.environment);
        if let Some(folder) = self.cwd {
            command.current_dir(folder);
        }
        if let Some(terminal) = self.terminal {
            command.stdin(terminal.try_clone().unwrap());
            command.stdout(terminal.try_clone().unwrap()).stderr(terminal);
        } else {
            let stdin = self.stdin.unwrap_or("/dev/null".into());
            command.stdin(File::open(stdin).unwrap());
            command.stdout(File::create(&self.out).unwrap());
            command.stderr(File::create(&self.err).unwrap());
        }
        let child = host().spawn(&mut command);
        let line = format!("{command:?}");
        Running { child, out: self.out, err: self.err, line, timeout: self.timeout, ended: false }
    }

    /// Starts and waits.
    #[track_caller]
    pub fn output(self) -> Output {
        self.spawn().wait()
    }
}

/// A call under way. Killed if the test ends before it does.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    line: String,
    timeout: Duration,
    ended: bool,
}

impl Running {
    /// The program's process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What the program and its container wrote to stdout so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// What the program and its container wrote to stderr so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// When it does not in time; it is killed then.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        let start = Instant::now();
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > self.timeout {
                let where_it_hangs = self.describe();
                self.end();
                panic!(
                    "{} did not end in {:?}\n{where_it_hangs}\nstdout: {}\nstderr: {}",
                    self.line,
                    self.timeout,
                    self.stdout(),
                    self.stderr()
                );
            }
            host().reap_orphans();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        self.ended = true;
        host().forget(self.child.id());
        Output {
            code: exit_code(status),
            stdout: self.stdout(),
            stderr: self.stderr(),
            line: self.line.clone(),
            out: self.out.clone(),
        }
    }

    fn describe(&self) -> String {
        let folder = format!("/proc/{}", self.pid());
        let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
        format!("wchan {}, stack:\n{}", read("wchan"), read("stack"))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        host().forget(self.child.id());
        self.ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            if std::thread::panicking() {
                let state = if self.is_running() { "running" } else { "over" };
                eprintln!(
                    "{}\nstill {state}; stdout: {}\nstderr: {}",
                    self.line,
                    self.stdout(),
                    self.stderr()
                );
            }
            self.end();
        }
    }
}

/// As a shell has it: the exit code, or 128 + the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What came of a call.
#[derive(Debug)]
pub struct Output {
    /// The exit code, or 128 + signal.
    pub code: i32,
    /// What was on stdout when the program ended.
    pub stdout: String,
    /// What was on stderr when the program ended.
    pub stderr: String,
    line: String,
    out: PathBuf,
}

impl Output {
    /// Expects exit code 0.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.exits_with(0)
    }

    /// Expects this exit code.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Output {
        assert!(
            self.code == code,
            "{}\nexited with {}, not {code}\nstdout: {}\nstderr: {}",
            self.line,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Expects an error: this exit code, one line on stderr, and every one of `texts` in it.
    #[track_caller]
    pub fn fails(self, code: i32, texts: &[&str]) -> Output {
        let output = self.exits_with(code);
        let lines = output.stderr.trim_end().lines().count();
        assert!(
            lines == 1,
            "{}\nnot one line of error but {lines}:\n{}",
            output.line,
            output.stderr
        );
        output.says(texts)
    }

    /// Expects each of `texts` on stderr.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Output {
        for text in texts {
            assert!(self.stderr.contains(text), "{}\nno {text:?} in: {}", self.line, self.stderr);
        }
        self
    }

    /// Expects stdout to be this, but for a newline at its end.
    #[track_caller]
    pub fn prints(self, text: &str) -> Output {
        assert!(
            self.stdout.trim_end() == text,
            "{}\nstdout is not {text:?} but {:?}\nstderr: {}",
            self.line,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("{}\n{error} in {:?}\nstderr: {}", self.line, self.stdout, self.stderr)
        })
    }

    /// What is on stdout by now: a container of `create` or `run -d` goes on writing to it.
    pub fn stdout_by_now(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }
}
