mod interpreter;
mod libseccomp;

use std::collections::HashMap;

use oci_spec::runtime::{Arch, LinuxSeccompArg, LinuxSeccompOperator as Operator};
use serde_json::{Value, json};

use super::*;
use interpreter::*;

/// An allow-list as engines have it.
const DEFAULT: &str = include_str!("../../../tests/data/seccomp-default.json");

fn profile(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn default_profile() -> LinuxSeccomp {
    serde_json::from_str(DEFAULT).unwrap()
}

fn filter(json: Value) -> Filter {
    compile_for(&arch::X86, &profile(json)).unwrap()
}

fn machine(json: Value) -> Machine {
    Machine::new(filter(json).program)
}

/// A profile with one rule; `rule` lacks `names`, the call is getpriority: 140, on x86 96.
fn one_rule(default: &str, mut rule: Value) -> Value {
    rule["names"] = json!(["getpriority"]);
    json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86"], "syscalls": [rule]})
}

fn error(json: Value) -> String {
    format!("{:#}", compile_for(&arch::X86, &profile(json)).unwrap_err())
}

fn number(name: &str) -> u32 {
    name.parse::<syscalls::x86_64::Sysno>().unwrap().id() as u32
}

fn i386(name: &str) -> u32 {
    name.parse::<syscalls::x86::Sysno>().unwrap().id() as u32
}

/// What a reader of the profile expects for a call, if all its rules have one action.
fn naive(profile: &LinuxSeccomp, name: &str, wide: bool, args: &[u64; 6]) -> u32 {
    let width = if wide { u64::MAX } else { u64::from(u32::MAX) };
    let holds = |arg: &LinuxSeccompArg| {
        let (seen, value) = (args[arg.index()] & width, arg.value() & width);
        match arg.op() {
            Operator::ScmpCmpNe => seen != value,
            Operator::ScmpCmpLt => seen < value,
            Operator::ScmpCmpLe => seen <= value,
            Operator::ScmpCmpEq => seen == value,
            Operator::ScmpCmpGe => seen >= value,
            Operator::ScmpCmpGt => seen > value,
            Operator::ScmpCmpMaskedEq => seen & value == arg.value_two().unwrap_or(0) & value,
        }
    };
    for rule in profile.syscalls().iter().flatten() {
        let named = rule.names().iter().any(|n| n == name);
        if named && rule.args().iter().flatten().all(holds) {
            return rule.action().as_u32(rule.errno_ret());
        }
    }
    profile.default_action().as_u32(profile.default_errno_ret())
}

#[test]
fn default_profile_gives_the_verdicts_that_it_reads_like() {
    let profile = default_profile();
    let machine = Machine::new(compile_for(&arch::X86, &profile).unwrap().program);
    let values = [0, 1, 8, 39, 40, 41, 0x20000, 0x1000_0000, 0xffff_ffff, 1 << 32, u64::MAX];
    // Multiplexers are in the profile, so every call has one name only.
    let x86_64 = (0..=469)
        .filter_map(|n| Some((X86_64, n as u32, syscalls::x86_64::Sysno::new(n)?.name(), true)));
    let x86 = (0..=469)
        .filter_map(|n| Some((I386, n as u32, syscalls::x86::Sysno::new(n)?.name(), false)));
    let (mut allowed, mut refused) = (0, 0);
    for (arch, number, name, wide) in x86_64.chain(x86) {
        for value in values {
            let args = [value, 0, 0, 0, 0, 0];
            let expected = match number {
                // removexattrat, 466, is the newest call of the profile.
                467.. => ENOSYS,
                _ => naive(&profile, name.trim_start_matches("r#"), wide, &args),
            };
            assert_eq!(machine.run(arch, number, &args), expected, "{arch:x} {name}({value:#x})");
            if expected == ALLOW { allowed += 1 } else { refused += 1 }
        }
    }
    assert!(allowed > 6000 && refused > 1000, "{allowed} {refused}");
}

#[test]
fn default_profile_covers_all_architectures() {
    let machine = Machine::new(compile_for(&arch::X86, &default_profile()).unwrap().program);
    let check = |arch, number, expected| assert_eq!(machine.run(arch, number, &[0; 6]), expected);
    // x32 has its own number for ioctl, and not that of x86_64.
    check(X86_64, X32 | 514, ALLOW);
    check(X86_64, X32 | number("ioctl"), EPERM);
    check(X86_64, X32 | number("read"), ALLOW);
    check(X86_64, X32 | number("mount"), EPERM);
    check(X86_64, X32 | 10_000, ENOSYS);
    check(X86_64, 10_000, ENOSYS);
    check(I386, i386("socketcall"), ALLOW);
    check(I386, i386("waitpid"), ALLOW);
    check(I386, i386("umount2"), EPERM);
    check(I386, 10_000, ENOSYS);
    check(AARCH64, 63, KILL);
    check(0, 0, KILL);
    assert!(machine.len() < 400, "{} instructions", machine.len());
}

#[test]
fn every_operator_compares_as_arithmetic_does() {
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let edges = [0, 1, 2, 0x7fff_ffff, 0xffff_ffff, 1 << 32, (5 << 32) + 7, u64::MAX - 1, u64::MAX];
    for operator in operators {
        for (value, two) in edges.iter().flat_map(|a| edges.map(|b| (*a, b))) {
            let arg = json!({"index": 5, "value": value, "valueTwo": two,
                "op": format!("SCMP_CMP_{operator}")});
            let profile = profile(one_rule(
                "SCMP_ACT_ALLOW",
                json!({"action": "SCMP_ACT_TRAP", "args": [arg]}),
            ));
            let machine = Machine::new(compile_for(&arch::X86, &profile).unwrap().program);
            for seen in edges.iter().flat_map(|e| [e.wrapping_sub(1), *e, e.wrapping_add(1)]) {
                let args = [0, 0, 0, 0, 0, seen];
                for (arch, number, wide) in [(X86_64, 140, true), (I386, 96, false)] {
                    assert_eq!(
                        machine.run(arch, number, &args),
                        naive(&profile, "getpriority", wide, &args),
                        "{seen:#x} {operator} {value:#x} {two:#x}, {wide}"
                    );
                }
            }
        }
    }
}

#[test]
fn all_arguments_of_a_rule_must_match() {
    let machine = machine(one_rule(
        "SCMP_ACT_ERRNO",
        json!({"action": "SCMP_ACT_ALLOW", "args": [
            {"index": 3, "value": 7, "op": "SCMP_CMP_EQ"},
            {"index": 1, "value": 5, "op": "SCMP_CMP_GT"}]}),
    ));
    assert_eq!(machine.run(X86_64, 140, &[0, 6, 0, 7]), ALLOW);
    assert_eq!(machine.run(X86_64, 140, &[0, 5, 0, 7]), EPERM);
    assert_eq!(machine.run(X86_64, 140, &[0, 6, 0, 8]), EPERM);
    assert_eq!(machine.run(X86_64, 140, &[7, 7, 7, 6]), EPERM);
}

#[test]
fn an_argument_that_comes_twice_makes_alternatives() {
    let machine = machine(one_rule(
        "SCMP_ACT_ALLOW",
        json!({"action": "SCMP_ACT_ERRNO", "args": [
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
            {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"},
            {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]}),
    ));
    for (args, expected) in [([1, 0], EPERM), ([2, 0], EPERM), ([3, 9], EPERM), ([3, 0], ALLOW)] {
        assert_eq!(machine.run(X86_64, 140, &args), expected, "{args:?}");
    }
}

#[test]
fn several_rules_for_a_call_follow_the_documented_order() {
    let eq = |index: u8, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let ge = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_GE"});
    let rules = |rules: Value| {
        let mut syscalls = rules;
        for rule in syscalls.as_array_mut().unwrap() {
            rule["names"] = json!(["getpriority"]);
        }
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls})
    };
    // Without conditions beats with conditions; of two such, the first counts.
    let m = machine(rules(json!([
        {"action": "SCMP_ACT_TRAP", "args": [eq(0, 1)]},
        {"action": "SCMP_ACT_LOG"},
        {"action": "SCMP_ACT_KILL"}])));
    assert_eq!(m.run(X86_64, 140, &[1]), LOG);
    // Equality before bounds, the narrower bound first, the higher argument first.
    let m = machine(rules(json!([
        {"action": "SCMP_ACT_LOG", "args": [ge(1)]},
        {"action": "SCMP_ACT_TRAP", "args": [ge(10)]},
        {"action": "SCMP_ACT_KILL_PROCESS", "args": [eq(0, 20)]},
        {"action": "SCMP_ACT_KILL", "args": [eq(1, 1)]},
        {"action": "SCMP_ACT_ERRNO", "args": [eq(0, 30), eq(1, 2)]}])));
    for (args, expected) in [
        ([0, 0], ALLOW),
        ([9, 0], LOG),
        ([10, 0], TRAP),
        ([20, 0], KILL_PROCESS),
        ([20, 1], KILL),
        ([30, 2], EPERM),
        ([30, 3], TRAP),
    ] {
        assert_eq!(m.run(X86_64, 140, &args), expected, "{args:?}");
    }
    let lt = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_LT"});
    let m = machine(rules(json!([
        {"action": "SCMP_ACT_LOG", "args": [ge(0)]},
        {"action": "SCMP_ACT_TRAP", "args": [lt(10)]},
        {"action": "SCMP_ACT_KILL", "args": [lt(5)]}])));
    for (arg, expected) in [(4, KILL), (5, TRAP), (10, LOG)] {
        assert_eq!(m.run(X86_64, 140, &[arg]), expected, "{arg}");
    }
    // The longer of two that begin alike, unless the shorter came first and says it all.
    let long = json!({"action": "SCMP_ACT_TRAP", "args": [eq(0, 1), eq(1, 2)]});
    let short = json!({"action": "SCMP_ACT_LOG", "args": [eq(0, 1)]});
    let m = machine(rules(json!([long, short])));
    assert_eq!([m.run(X86_64, 140, &[1, 2]), m.run(X86_64, 140, &[1, 3])], [TRAP, LOG]);
    let m = machine(rules(json!([short, long])));
    assert_eq!([m.run(X86_64, 140, &[1, 2]), m.run(X86_64, 140, &[1, 3])], [LOG, LOG]);
    let text = error(rules(json!([
        {"action": "SCMP_ACT_TRAP", "args": [eq(0, 1), eq(1, 2)]},
        {"action": "SCMP_ACT_LOG", "args": [eq(1, 2), eq(0, 1)]}])));
    assert!(text.contains("linux.seccomp.syscalls[0] and [1]"), "{text}");
}

#[test]
fn a_rule_that_repeats_the_default_does_nothing() {
    let machine = machine(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "syscalls": [
            {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["getpriority"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}));
    assert_eq!(machine.run(X86_64, 140, &[1]), ALLOW);
    assert_eq!(machine.run(X86_64, 140, &[0]), EPERM);
    assert_eq!(machine.run(X86_64, number("mount"), &[]), ENOSYS);
}

#[test]
fn every_action_has_the_kernels_value() {
    let expected = HashMap::from([
        ("SCMP_ACT_KILL", KILL),
        ("SCMP_ACT_KILL_THREAD", KILL),
        ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
        ("SCMP_ACT_TRAP", 0x0003_0000),
        ("SCMP_ACT_ERRNO", 0x0005_0001),
        ("SCMP_ACT_TRACE", 0x7ff0_0001),
        ("SCMP_ACT_LOG", 0x7ffc_0000),
        ("SCMP_ACT_ALLOW", 0x7fff_0000),
    ]);
    for (action, value) in expected {
        let default = if action == "SCMP_ACT_ALLOW" { "SCMP_ACT_LOG" } else { "SCMP_ACT_ALLOW" };
        let m = machine(one_rule(default, json!({"action": action})));
        assert_eq!(m.run(X86_64, 140, &[]), value, "{action}");
        let m = machine(json!({"defaultAction": action}));
        assert_eq!(m.run(X86_64, 140, &[]), value, "{action}");
    }
    let rule = json!({"action": "SCMP_ACT_TRACE", "errnoRet": 0xffff});
    assert_eq!(machine(one_rule("SCMP_ACT_ALLOW", rule)).run(X86_64, 140, &[]), 0x7ff0_ffff);
    let rule = json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 4095});
    assert_eq!(machine(one_rule("SCMP_ACT_ALLOW", rule)).run(X86_64, 140, &[]), errno(4095));
}

#[test]
fn calls_newer_than_the_profile_fail_with_enosys_where_the_default_refuses() {
    let with = |default: &str, names: Value| {
        machine(json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X32"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_TRAP"}]}))
    };
    for default in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"] {
        let m = with(default, json!(["read", "statx", "preadv2"]));
        assert_eq!(m.run(X86_64, number("statx") + 1, &[]), ENOSYS, "{default}");
        assert_ne!(m.run(X86_64, number("statx") - 1, &[]), ENOSYS);
        assert_eq!(m.run(X86_64, number("statx"), &[]), TRAP);
        // x32 has its own newest call: preadv2 is 546 there.
        assert_eq!(m.run(X86_64, X32 | 546, &[]), TRAP);
        assert_ne!(m.run(X86_64, X32 | 545, &[]), ENOSYS);
        assert_eq!(m.run(X86_64, X32 | 547, &[]), ENOSYS);
    }
    for (default, verdict) in [("SCMP_ACT_ALLOW", ALLOW), ("SCMP_ACT_LOG", LOG)] {
        assert_eq!(with(default, json!(["read"])).run(X86_64, 1000, &[]), verdict);
    }
    // Nothing known, or only number 0.
    for names in [json!(["nosuchcall"]), json!(["read"])] {
        assert_eq!(with("SCMP_ACT_ERRNO", names).run(X86_64, 1000, &[]), EPERM);
    }
    // A rule that repeats the default still shows that the profile knows the call.
    let m = machine(one_rule("SCMP_ACT_ERRNO", json!({"action": "SCMP_ACT_ERRNO"})));
    assert_eq!(m.run(X86_64, 140, &[]), EPERM);
    assert_eq!(m.run(X86_64, 141, &[]), ENOSYS);
}

#[test]
fn architectures_that_are_not_listed_are_killed_but_the_native_one_never_is() {
    for archs in [json!(null), json!([]), json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"])] {
        let m = machine(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": archs}));
        assert_eq!(m.run(X86_64, 0, &[]), ALLOW);
        assert_eq!(m.run(X86_64, X32 - 1, &[]), ALLOW);
        assert_eq!(m.run(X86_64, X32, &[]), KILL);
        assert_eq!(m.run(X86_64, u32::MAX - 1, &[]), KILL);
        // The "skip this call" of a tracer.
        assert_eq!(m.run(X86_64, u32::MAX, &[]), ALLOW);
        assert_eq!(m.run(I386, 0, &[]), KILL);
        assert_eq!(m.run(AARCH64, 0, &[]), KILL);
    }
    let m = machine(json!({"defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}));
    for (arch, number) in [(X86_64, 0), (X86_64, X32), (X86_64, u32::MAX), (I386, 0)] {
        assert_eq!(m.run(arch, number, &[]), ALLOW);
    }
}

#[test]
fn i386_multiplexers_follow_rules_without_conditions_only() {
    let m = machine(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["connect", "accept", "shmget"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_NE"}]}]}));
    let (socketcall, ipc) = (i386("socketcall"), i386("ipc"));
    assert_eq!(m.run(I386, socketcall, &[3]), ALLOW);
    assert_eq!(m.run(I386, socketcall, &[5]), ALLOW);
    assert_eq!(m.run(I386, ipc, &[23]), ALLOW);
    // The address family is behind a pointer, so it must not be allowed.
    assert_eq!(m.run(I386, socketcall, &[1]), EPERM);
    assert_eq!(m.run(I386, i386("socket"), &[2]), ALLOW);
    assert_eq!(m.run(I386, i386("socket"), &[38]), EPERM);
    // Nor does another errno than the default's take the calls from those that it does not mean.
    let m = machine(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]}]}));
    assert_eq!(m.run(I386, socketcall, &[1]), EPERM);
    // A stricter rule must not be got round.
    let m = machine(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]}]}));
    assert_eq!(m.run(I386, socketcall, &[1]), EPERM);
    assert_eq!(m.run(I386, socketcall, &[2]), ALLOW);
}

#[test]
fn jumps_over_more_than_255_instructions_arrive() {
    let mut rules = Vec::new();
    for name in ["read", "ioctl", "prctl", "fcntl"] {
        for value in 0..200u64 {
            rules.push(json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": value + 1,
                "args": [{"index": 2, "value": value << 31, "op": "SCMP_CMP_EQ"}]}));
        }
    }
    let m = machine(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    assert!(m.len() > 3200);
    for name in ["read", "ioctl", "prctl", "fcntl"] {
        for value in 0..200 {
            let verdict = m.run(X86_64, number(name), &[0, 0, value << 31]);
            assert_eq!(verdict, errno(value as i32 + 1), "{name} {value}");
            assert_eq!(m.run(X86_64, number(name), &[0, 0, (value << 31) + 1]), ALLOW);
        }
    }
    assert_eq!(m.run(X86_64, number("write"), &[]), ALLOW);
    assert_eq!(m.run(I386, 3, &[]), KILL);
}

#[test]
fn a_program_too_long_for_the_kernel_is_an_error() {
    let rules: Vec<Value> = (0..3000u64)
        .map(|value| {
            json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 1, "value": value << 31, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    for count in [1100, 3000] {
        let text = error(json!({"defaultAction": "SCMP_ACT_TRAP", "syscalls": rules[..count]}));
        assert!(text.contains("BPF instructions, the kernel takes 4096"), "{text}");
    }
}

#[test]
fn errors_name_the_property() {
    let errno = |action, errno: u32| {
        error(one_rule("SCMP_ACT_ALLOW", json!({"action": action, "errnoRet": errno})))
    };
    let at = "linux.seccomp.syscalls[0]";
    assert!(errno("SCMP_ACT_LOG", 1).starts_with(&format!("{at}.errnoRet: SCMP_ACT_LOG")));
    assert!(errno("SCMP_ACT_ERRNO", 4096).starts_with(&format!("{at}.errnoRet is 4096")));
    assert!(errno("SCMP_ACT_TRACE", 0x10000).starts_with(&format!("{at}.errnoRet is 65536")));
    let text = error(json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}));
    assert!(text.starts_with("linux.seccomp.defaultErrnoRet: SCMP_ACT_KILL"), "{text}");
    let names = |names: Value| {
        error(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": names, "action": "SCMP_ACT_LOG"}]}))
    };
    assert!(names(json!([])).starts_with(&format!("{at}.names is empty")));
    assert!(names(json!(["read", ""])).starts_with(&format!("{at}.names[1] is empty")));
    let text = error(one_rule(
        "SCMP_ACT_ALLOW",
        json!({"action": "SCMP_ACT_LOG", "args": [
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
            {"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}),
    ));
    assert!(text.starts_with(&format!("{at}.args[1].index is 6")), "{text}");
}

#[test]
fn notify_needs_a_listener_and_asks_for_its_descriptor() {
    let mut json = one_rule("SCMP_ACT_ALLOW", json!({"action": "SCMP_ACT_NOTIFY"}));
    json["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    assert!(error(json.clone()).starts_with("linux.seccomp.listenerPath is missing"));
    json["listenerPath"] = json!("/run/agent.sock");
    json["listenerMetadata"] = json!("data");
    let compiled = filter(json.clone());
    assert_eq!(compiled.flags, 1 << 3 | 1 << 5);
    let listener = Listener { path: "/run/agent.sock".into(), metadata: Some("data".into()) };
    assert_eq!(compiled.listener, Some(listener));
    assert_eq!(Machine::new(compiled.program).run(X86_64, 140, &[]), 0x7fc0_0000);

    json["syscalls"] = json!([]);
    assert!(error(json.clone()).starts_with("linux.seccomp.flags[0]"));
    // The path alone means nothing.
    json["flags"] = json!([]);
    assert_eq!(filter(json.clone()).listener, None);
    // As a default it hides no call from the agent.
    json["defaultAction"] = json!("SCMP_ACT_NOTIFY");
    json["syscalls"] = json!([{"names": ["write"], "action": "SCMP_ACT_ALLOW"}]);
    let compiled = filter(json);
    assert_eq!(compiled.flags, 1 << 3);
    let machine = Machine::new(compiled.program);
    assert_eq!(machine.run(X86_64, number("write"), &[]), ALLOW);
    assert_eq!(machine.run(X86_64, 1000, &[]), 0x7fc0_0000);
    let text = error(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "data"}));
    assert!(text.starts_with("linux.seccomp.listenerMetadata"), "{text}");
}

#[test]
fn flags_default_to_spec_allow_and_tsync_is_not_needed() {
    let flags = |flags: Value| filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}));
    assert_eq!(flags(json!(null)).flags, 1 << 2);
    assert_eq!(flags(json!([])).flags, 0);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_TSYNC"])).flags, 0);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_LOG"])).flags, 1 << 1);
}

#[test]
fn names_that_no_architecture_of_the_filter_knows_are_one_warning() {
    let warnings = |archs: Value| {
        filter(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": archs, "syscalls": [
            {"names": ["nosuchcall", "waitpid", "read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["nosuchcall", "recv"], "action": "SCMP_ACT_LOG"}]}))
        .warnings
    };
    let warning = |names| {
        [format!("linux.seccomp.syscalls: no architecture of this filter has these calls: {names}")]
    };
    assert_eq!(warnings(json!([])), warning("nosuchcall, waitpid, recv"));
    // i386 has waitpid, and recv as a part of socketcall.
    assert_eq!(warnings(json!(["SCMP_ARCH_X86"])), warning("nosuchcall"));
}

#[test]
fn tables_have_the_numbers_of_every_family() {
    let find = |family: &Family, abi: usize, name: &str| {
        let native = (family[0].number)(name, None);
        (family[abi].number)(name, native)
    };
    macro_rules! whole_table {
        ($family:expr, $abi:expr, $arch:ident) => {
            let numbers = 0..=syscalls::$arch::Sysno::last().id() as usize;
            for call in numbers.filter_map(syscalls::$arch::Sysno::new) {
                let name = call.name().trim_start_matches("r#");
                // These exist on 32-bit architectures only.
                let exists = $family[$abi].arch != Arch::ScmpArchAarch64
                    || !(403..=423).contains(&call.id());
                let number = exists.then_some(call.id() as u32);
                assert_eq!(find(&$family, $abi, name), number, "{name}");
            }
        };
    }
    whole_table!(arch::X86, 0, x86_64);
    whole_table!(arch::X86, 2, x86);
    whole_table!(arch::ARM, 0, aarch64);
    whole_table!(arch::ARM, 1, arm);
    whole_table!(arch::RISCV, 0, riscv64);
    assert_eq!(find(&arch::X86, 2, "break"), Some(17));
    assert_eq!(find(&arch::X86, 2, "listns"), Some(470));
    assert_eq!(find(&arch::X86, 2, "accept"), None);
    assert_eq!(find(&arch::X86, 1, "pwritev2"), Some(X32 | 547));
    assert_eq!(find(&arch::X86, 1, "uselib"), None);
    assert_eq!(find(&arch::X86, 1, "waitpid"), None);
    assert_eq!(find(&arch::X86, 1, "listns"), Some(X32 | 470));
    assert_eq!(find(&arch::ARM, 0, "newfstatat"), Some(79));
    assert_eq!(find(&arch::ARM, 0, "futex_time64"), None);
    assert_eq!(find(&arch::ARM, 1, "cacheflush"), Some(0xf0002));
}

#[test]
fn other_families_compile_as_well() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_ARM", "SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["openat", "set_tls", "riscv_flush_icache"],
                      "action": "SCMP_ACT_ALLOW"}]}));
    let m = Machine::new(compile_for(&arch::ARM, &profile).unwrap().program);
    assert_eq!(m.run(AARCH64, 56, &[]), ALLOW);
    assert_eq!(m.run(AARCH64, 57, &[]), ENOSYS);
    assert_eq!(m.run(ARM, 322, &[]), ALLOW);
    assert_eq!(m.run(ARM, 0xf0005, &[]), ALLOW);
    assert_eq!(m.run(ARM, 0xf0006, &[]), ENOSYS);
    assert_eq!(m.run(X86_64, 257, &[]), KILL);
    let m = Machine::new(compile_for(&arch::RISCV, &profile).unwrap().program);
    assert_eq!(m.run(RISCV64, 259, &[]), ALLOW);
    assert_eq!(arch::ARM[0].arch, Arch::ScmpArchAarch64);
}

#[test]
fn the_same_profile_always_gives_the_same_program() {
    let program = || {
        let program = compile_for(&arch::X86, &default_profile()).unwrap().program;
        program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect::<Vec<_>>()
    };
    assert_eq!(program(), program());
}
