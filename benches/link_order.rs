//! Which functions starting a container executes, in the order in which it comes to them, as a
//! script for the linker: `link-order PROGRAM LIBC`, as root, where PROGRAM is an `ultari` with symbols
//! and LIBC the archive that it was linked with.
//!
//! Those that are used lie side by side then, and the kernel maps a quarter of the program instead
//! of all of it (docs/performance.md). The commands are executed instruction by instruction
//! (ptrace(2)), which takes some minutes. The names of symbols are without the compiler's hashes:
//! what is not found because a compiler names it otherwise stays where it would have been.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(program), Some(libc)) = (args.next(), args.next()) else {
        bail!("usage: link-order PROGRAM LIBC");
    };
    let folder = std::env::temp_dir().join(format!("ultari-link-order-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let outcome = trace_all(&program, &folder);
    std::fs::remove_dir_all(&folder)?;
    let patterns = patterns(&outcome?, &libc)?;
    ensure!(patterns.len() > 300, "only {} functions were executed", patterns.len());
    println!(
        "/* Made by `make link-order`: what starting a container executes, before all the rest. */"
    );
    println!("SECTIONS {{\n    .text.used : {{");
    patterns.iter().for_each(|pattern| println!("        {pattern}"));
    println!("    }}\n}}\nINSERT BEFORE .text;");
    Ok(())
}

/// The names of the functions that these commands execute.
fn trace_all(program: &Path, folder: &Path) -> Result<Vec<String>> {
    let rootfs = folder.join("rootfs");
    ensure!(Command::new("bundles/make-rootfs").arg(&rootfs).status()?.success(), "no rootfs");
    let read = |path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let mut config = read("benches/bundle/config.json")?;
    config["root"]["path"] = rootfs.to_str().into();
    let bundle = |name: &str, config: &Value| -> Result<String> {
        let bundle = folder.join(name);
        std::fs::create_dir(&bundle)?;
        std::fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(bundle.to_string_lossy().into_owned())
    };
    let plain = bundle("plain", &config)?;
    let mut docker = read("tests/data/configs/docker28-run-rm-echo.json")?;
    config["linux"]["seccomp"] = docker["linux"]["seccomp"].take();
    config["process"]["args"] = serde_json::json!(["/bin/sleep", "1000"]);
    let docker = bundle("docker", &config)?;
    let state = folder.join("state");
    let mut tracer = Tracer::new(program)?;
    let commands: [&[&str]; 7] = [
        &["run", "--bundle", &plain, "one"],
        &["create", "--bundle", &docker, "two"],
        &["start", "two"],
        &["state", "two"],
        &["exec", "two", "/bin/true"],
        &["kill", "two", "KILL"],
        &["delete", "--force", "two"],
    ];
    for command in commands {
        eprintln!("{} …", command[0]);
        tracer.trace(Command::new(program).arg("--root").arg(&state).args(command))?;
    }
    Ok(tracer.order)
}

/// Steps through processes of one program.
struct Tracer {
    inode: u64,
    /// Functions by their address in the file.
    symbols: BTreeMap<u64, String>,
    /// Where the program was loaded; none in a process that executes another one.
    biases: HashMap<Pid, Option<u64>>,
    seen: HashSet<u64>,
    /// The functions seen, in order.
    order: Vec<String>,
}

impl Tracer {
    fn new(program: &Path) -> Result<Self> {
        let symbols = nm(&["--defined-only".as_ref(), program.as_os_str()])?;
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let is_code = matches!(words.next()?, "t" | "T" | "w" | "W" | "i");
            is_code.then_some((address, words.next()?.to_owned()))
        };
        let symbols: BTreeMap<_, _> = symbols.lines().filter_map(parse).collect();
        ensure!(symbols.len() > 1000, "{}: has no symbols", program.display());
        Ok(Self {
            inode: std::fs::metadata(program)?.ino(),
            symbols,
            biases: HashMap::new(),
            seen: HashSet::new(),
            order: Vec::new(),
        })
    }

    /// Executes a command to its end. What it leaves running goes on with the next one.
    fn trace(&mut self, command: &Command) -> Result<()> {
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        let child = shell.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let main = Pid::from_raw(child.id().cast_signed());
        waitpid(main, Some(WaitPidFlag::WUNTRACED))?;
        ptrace::attach(main)?;
        waitpid(main, None)?;
        let children = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK;
        ptrace::setoptions(
            main,
            children | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL,
        )?;
        kill(main, Signal::SIGCONT)?;
        ptrace::cont(main, None)?;
        loop {
            let (pid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Exited(pid, code) if pid == main => {
                    ensure!(code == 0, "{command:?} has failed");
                    return Ok(());
                }
                WaitStatus::Signaled(pid, signal, _) if pid == main => {
                    bail!("{command:?} ended by {signal}")
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
                        self.biases.remove(&pid);
                    }
                    (pid, None)
                }
                WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                    self.note(pid)?;
                    (pid, None)
                }
                WaitStatus::Stopped(pid, Signal::SIGSTOP) => (pid, None),
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                _ => continue,
            };
            let going = match self.bias(pid) {
                Some(_) => ptrace::step(pid, signal),
                // The shell, until it executes the program.
                None if pid == main => ptrace::cont(pid, signal),
                None => ptrace::detach(pid, signal),
            };
            // It may have been killed just now.
            let _ = going;
        }
    }

    /// Where the program was loaded in a process, if that executes it.
    fn bias(&mut self, pid: Pid) -> Option<u64> {
        let inode = self.inode;
        *self.biases.entry(pid).or_insert_with(|| {
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
            maps.lines().find_map(|line| {
                // proc_pid_maps(5): address, permissions, offset, device, inode.
                let words: Vec<_> = line.split_whitespace().collect();
                let first = words[2].bytes().all(|digit| digit == b'0');
                let ours = first && words[4].parse() == Ok(inode);
                ours.then(|| u64::from_str_radix(words[0].split('-').next()?, 16).ok())?
            })
        })
    }

    fn note(&mut self, pid: Pid) -> Result<()> {
        let Some(bias) = self.bias(pid) else { return Ok(()) };
        let Some(address) = instruction(pid)?.checked_sub(bias) else { return Ok(()) };
        if let Some((start, name)) = self.symbols.range(..=address).next_back()
            && self.seen.insert(*start)
        {
            self.order.push(name.clone());
        }
        Ok(())
    }
}

/// The address of the instruction that comes next.
#[cfg(target_arch = "x86_64")]
fn instruction(pid: Pid) -> Result<u64> {
    Ok(ptrace::getregs(pid)?.rip)
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction(_: Pid) -> Result<u64> {
    bail!("this processor's registers are not known here")
}

/// What the linker has to look for: sections of functions, and members of libc's archive.
fn patterns(names: &[String], libc: &Path) -> Result<Vec<String>> {
    let members = libc_members(libc)?;
    let mut patterns = Vec::new();
    for name in names {
        let pattern = match name.strip_prefix("_R") {
            Some(_) => format!("*(.text*.{})", without_crates(name)),
            None if name.starts_with("_ZN") => format!("*(.text*.{})", without_hash(name)),
            None => match members.get(name.split('.').next().unwrap_or(name)) {
                Some(member) => format!("*libc.a:{member}(.text .text.*)"),
                None => continue,
            },
        };
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    Ok(patterns)
}

/// Which file of libc's archive has which function.
fn libc_members(libc: &Path) -> Result<HashMap<String, String>> {
    let listed = nm(&["-A".as_ref(), "--defined-only".as_ref(), libc.as_os_str()])?;
    let parse = |line: &str| {
        let (place, symbol) = line.rsplit_once(' ')?;
        let member = place.split(':').nth(1)?;
        Some((symbol.to_owned(), member.to_owned()))
    };
    Ok(listed.lines().filter_map(parse).collect())
}

fn nm(args: &[&std::ffi::OsStr]) -> Result<String> {
    let output = Command::new("nm").args(args).output().context("run nm")?;
    ensure!(output.status.success(), "nm: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A name of the compiler's old kind ends with `17h`, 16 digits and `E`.
fn without_hash(name: &str) -> String {
    match name.rfind("17h") {
        Some(at) => format!("{}17h*", &name[..at]),
        None => name.to_owned(),
    }
}

/// In names of the new kind each crate has a number: `Cs`, digits, `_`.
fn without_crates(name: &str) -> String {
    let mut parts = name.split("Cs");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str("Cs");
        match part.split_once('_') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                plain.push_str("*_");
                plain.push_str(rest);
            }
            _ => plain.push_str(part),
        }
    }
    plain
}
