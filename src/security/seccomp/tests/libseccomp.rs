//! Our filters against those of libseccomp, which the engines' profiles were written for: every
//! call number, a spread of arguments, every architecture; both programs in our interpreter.
//!
//! The rules are given to libseccomp as runc gives them. Where the verdicts may differ, and why:
//!
//! * calls newer than the profile are ENOSYS here (runc adds that to libseccomp's program);
//! * calls newer than this libseccomp get the default action from it, whatever the profile says;
//! * `socketcall` and `ipc` of i386 are not opened by rules with conditions here (see the module).
//!
//! Every other difference fails the test.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

/// The built C program; its folder goes with it.
struct Helper(PathBuf);

impl Helper {
    fn build() -> Helper {
        let folder = std::env::temp_dir().join(format!("ultari-libseccomp-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let helper = Helper(folder);
        let source =
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/security/seccomp/tests/libseccomp.c");
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Werror", "-o"])
            .arg(helper.program())
            .args([source, "-lseccomp"])
            .output()
            .expect("cc: `make deps-test` installs it");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "is libseccomp-dev there (`make deps-test`)?\n{errors}");
        helper
    }

    fn program(&self) -> PathBuf {
        self.0.join("helper")
    }

    fn run(&self, args: &[String], input: &str) -> Vec<u8> {
        let mut command = Command::new(self.program());
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n{input}");
        output.stdout
    }

    /// libseccomp's program for a profile.
    fn compile(&self, family: &Family, profile: &LinuxSeccomp) -> Machine {
        let bytes = self.run(&[], &rules(family, profile));
        let instruction = |raw: &[u8]| sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes(raw[4..8].try_into().unwrap()),
        };
        Machine::new(bytes.chunks_exact(8).map(instruction).collect())
    }

    /// The calls that it knows: token of the architecture, number.
    fn known(&self, family: &Family) -> HashSet<(u32, u32)> {
        let tokens: Vec<String> = family.iter().map(|abi| token(abi).to_string()).collect();
        let text = String::from_utf8(self.run(&tokens, "")).unwrap();
        let pair = |line: &str| {
            let (token, number) = line.split_once(' ').unwrap();
            (token.parse().unwrap(), number.parse().unwrap())
        };
        text.lines().map(pair).collect()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// libseccomp's name for an architecture; but for x32 that of the kernel.
fn token(abi: &Abi) -> u32 {
    if abi.arch == Arch::ScmpArchX32 { 0x4000_003e } else { abi.audit }
}

/// The profile as the helper reads it, its rules as runc makes them.
fn rules(family: &Family, profile: &LinuxSeccomp) -> String {
    let action = |action: oci_spec::runtime::LinuxSeccompAction, errno| {
        profile::action(action, errno, String::new).unwrap()
    };
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut text = format!("default {default}\n");
    for (index, abi) in family.iter().enumerate() {
        if index == 0 || profile.architectures().iter().flatten().any(|arch| *arch == abi.arch) {
            writeln!(text, "arch {}", token(abi)).unwrap();
        }
    }
    for syscall in profile.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret());
        if action == default {
            continue;
        }
        let args = syscall.args().as_deref().unwrap_or_default();
        let indexes: HashSet<usize> = args.iter().map(LinuxSeccompArg::index).collect();
        let alternatives: Vec<&[LinuxSeccompArg]> =
            if indexes.len() < args.len() { args.chunks(1).collect() } else { vec![args] };
        for (name, args) in syscall
            .names()
            .iter()
            .flat_map(|name| alternatives.iter().map(move |args| (name, args)))
        {
            write!(text, "rule {action} {name}").unwrap();
            for arg in *args {
                let two = arg.value_two().unwrap_or(0);
                let operator = match arg.op() {
                    Operator::ScmpCmpNe => 1,
                    Operator::ScmpCmpLt => 2,
                    Operator::ScmpCmpLe => 3,
                    Operator::ScmpCmpEq => 4,
                    Operator::ScmpCmpGe => 5,
                    Operator::ScmpCmpGt => 6,
                    Operator::ScmpCmpMaskedEq => 7,
                };
                write!(text, " {} {operator} {} {two}", arg.index(), arg.value()).unwrap();
            }
            text.push('\n');
        }
    }
    text
}

/// Arguments for every call.
fn spread() -> Vec<[u64; 6]> {
    let values = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, u64::MAX];
    let mut all: Vec<[u64; 6]> = values.iter().map(|value| [*value; 6]).collect();
    all.extend((0..6).map(|index| std::array::from_fn(|at| u64::from(at == index) * 40)));
    all
}

/// Further ones around the values that the profile's rules for a call have.
fn around(rules: &[&[LinuxSeccompArg]]) -> Vec<[u64; 6]> {
    let mut values: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for arg in rules.iter().copied().flatten() {
        let set = values.entry(arg.index()).or_default();
        for value in [arg.value(), arg.value_two().unwrap_or(0)] {
            set.extend([value, value.wrapping_sub(1), value.wrapping_add(1), value | 1 << 32]);
            set.extend([!value, value << 1, value >> 1, value | 1 << 63, value & (value >> 1)]);
        }
    }
    let mut all = vec![[0; 6], [u64::MAX; 6]];
    for (index, set) in values {
        let further: Vec<[u64; 6]> = all
            .iter()
            .take(400)
            .flat_map(|args| {
                set.iter().map(|value| {
                    let mut args = *args;
                    args[index] = *value;
                    args
                })
            })
            .collect();
        all.extend(further);
    }
    all
}

/// How often the verdicts were equal, and how often they differed for which reason.
#[derive(Debug, Default)]
struct Tally {
    equal: usize,
    newer_than_profile: usize,
    newer_than_libseccomp: usize,
    multiplexed: usize,
}

/// Compares all verdicts on one profile.
fn compare(helper: &Helper, family: &Family, profile: &LinuxSeccomp, tally: &mut Tally) {
    let ours = Machine::new(compile_for(family, profile).unwrap().program);
    let theirs = helper.compile(family, profile);
    let known = helper.known(family);
    let spread = spread();
    let mut bad = Vec::new();
    for abi in family {
        let number = |name: &str| (abi.number)(name, (family[0].number)(name, None));
        let mut conditions: BTreeMap<u32, Vec<&[LinuxSeccompArg]>> = BTreeMap::new();
        let mut newest = 0;
        for syscall in profile.syscalls().iter().flatten() {
            for name in syscall.names() {
                let multiplexer = (abi.multiplexer)(name).map(|multiplexer| multiplexer.number);
                let args = syscall.args().as_deref().unwrap_or_default();
                for number in number(name).into_iter().chain(multiplexer) {
                    conditions.entry(number).or_default().push(args);
                }
                newest = newest.max(number(name).unwrap_or(0));
            }
        }
        let first = abi.numbers.0;
        let private = [0xf_0000..0xf_0008, 0x3fff_fffe..0x3fff_ffff, u32::MAX - 1..u32::MAX];
        let numbers = (0..700).chain(private.into_iter().flatten()).chain([u32::MAX]);
        for number in numbers.map(|number| number | first) {
            let special = conditions.get(&number).map(|rules| around(rules)).unwrap_or_default();
            for args in spread.iter().chain(&special) {
                let (our, their) =
                    (ours.run(abi.audit, number, args), theirs.run(abi.audit, number, args));
                let multiplexer = abi.arch == Arch::ScmpArchX86 && [102, 117].contains(&number);
                if our == their {
                    tally.equal += 1;
                } else if our == ENOSYS && number > newest {
                    tally.newer_than_profile += 1;
                } else if !known.contains(&(token(abi), number)) && conditions.contains_key(&number)
                {
                    tally.newer_than_libseccomp += 1;
                } else if multiplexer && strictness(our) > strictness(their) {
                    tally.multiplexed += 1;
                } else {
                    bad.push(format!(
                        "{:?} {number:#x} {args:x?}: ours {our:#x}, libseccomp's {their:#x}",
                        abi.arch
                    ));
                }
            }
        }
    }
    let shown = &bad[..bad.len().min(20)];
    assert!(bad.is_empty(), "{} differences, the first:\n{}", bad.len(), shown.join("\n"));
}

fn strictness(action: u32) -> Reverse<i32> {
    Reverse((action & libc::SECCOMP_RET_ACTION_FULL) as i32)
}

/// The different profiles of the engines' configurations, by the name of the first that has each.
fn engine_profiles() -> BTreeMap<String, Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/configs");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "json")) {
        let config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let profile = &config["linux"]["seccomp"];
        if profile.is_object() && found.values().all(|known| known != profile) {
            found.insert(file.file_name().unwrap().to_string_lossy().into_owned(), profile.clone());
        }
    }
    found.insert("seccomp-default.json".into(), serde_json::from_str(DEFAULT).unwrap());
    found
}

/// What the engines' profiles have not: every action, every operator, repeated indexes.
fn own_profiles() -> BTreeMap<String, Value> {
    let arg = |index: u32, op: &str, value: u64, two: u64| json!({"index": index, "op": format!("SCMP_CMP_{op}"), "value": value, "valueTwo": two});
    let rule = |names: Value, action: &str, args: Value| json!({"names": names, "action": format!("SCMP_ACT_{action}"), "args": args});
    // One rule a call: of several bounds on one argument, which cut its two words differently,
    // libseccomp 2.5 loses some (argument < 0xffffffff and < 0x500000007: 0xffffffff passes).
    let calls = [
        "getpriority",
        "setpriority",
        "ioctl",
        "prctl",
        "keyctl",
        "fcntl",
        "clone",
        "read",
        "write",
        "close",
        "dup",
        "mmap",
        "munmap",
        "brk",
        "getpid",
        "kill",
        "uname",
        "fsync",
        "umask",
        "mount",
        "sync",
    ];
    let comparisons = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"].into_iter();
    let comparisons =
        comparisons.flat_map(|op| [7u64, 0xffff_ffff, (5 << 32) + 7].map(|value| (op, value)));
    let operators: Vec<Value> = comparisons
        .zip(calls)
        .map(|((op, value), call)| {
            rule(json!([call]), "TRAP", json!([arg(value as u32 & 3, op, value, value & 5)]))
        })
        .collect();
    let repeated = json!([arg(0, "EQ", 1, 0), arg(0, "EQ", 9, 0), arg(1, "EQ", 2, 0)]);
    let both = json!([arg(1, "EQ", 2, 0), arg(0, "MASKED_EQ", 0xf0, 0x20), arg(4, "GT", 77, 0)]);
    let actions =
        ["KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "LOG", "NOTIFY"];
    let each: Vec<Value> = actions
        .iter()
        .zip(["read", "getpid", "openat", "dup2", "socket", "semop", "statx", "time"])
        .map(|(action, call)| rule(json!([call]), action, json!([])))
        .collect();
    BTreeMap::from([
        ("operators".to_owned(), json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": operators})),
        (
            "several arguments".to_owned(),
            json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [
                rule(json!(["personality", "quotactl"]), "ERRNO", repeated),
                rule(json!(["mmap", "mount"]), "KILL_PROCESS", both)
            ]}),
        ),
        (
            "multiplexers".to_owned(),
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                rule(json!(["socket", "shmget"]), "ALLOW", json!([arg(0, "NE", 40, 0)])),
                rule(json!(["bind", "semget", "statx"]), "ALLOW", json!([]))
            ]}),
        ),
        (
            "actions".to_owned(),
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent", "syscalls": each}),
        ),
    ])
}

#[test]
fn verdicts_are_those_of_libseccomp() {
    let helper = Helper::build();
    let families: [(&Family, &[&str]); 3] = [
        (&arch::X86, &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        (&arch::ARM, &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        (&arch::RISCV, &["SCMP_ARCH_RISCV64"]),
    ];
    let mut tally = Tally::default();
    let profiles: Vec<_> = engine_profiles().into_iter().chain(own_profiles()).collect();
    for (name, json) in &profiles {
        for (family, archs) in families {
            let native_only = (archs.len() > 1).then_some(&archs[..1]);
            for archs in [archs].into_iter().chain(native_only) {
                let mut json = json.clone();
                json["architectures"] = json!(archs);
                println!("{name}: {archs:?}");
                compare(&helper, family, &profile(json), &mut tally);
            }
        }
    }
    // Past the capture of the test's output: the number is to be seen.
    let line = format!("seccomp verdicts compared with libseccomp's: {tally:?}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(profiles.len() >= 10 && tally.equal > 1_000_000, "{tally:?}");
    assert!(tally.newer_than_profile > 0 && tally.multiplexed > 0, "{tally:?}");
}
