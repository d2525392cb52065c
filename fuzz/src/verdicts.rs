//! Whether a filter does what its profile says, in the tests' machine and in the kernel.

#[path = "../../src/security/seccomp/tests/interpreter.rs"]
#[allow(dead_code)]
mod interpreter;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use interpreter::{ENOSYS, Machine, X86_64};
use nix::errno::Errno;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};
use syscalls::x86_64::Sysno;
use ultari::security::seccomp::Filter;
use ultari::sys;

/// Panics unless the kernel takes the filter and it gives the verdicts that the profile reads like,
/// where no two rules speak of one call.
pub fn check(profile: &LinuxSeccomp, filter: &Filter) {
    let machine = Machine::new(filter.program.clone());
    check_acceptance(filter);
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let mut rules: BTreeMap<u32, Vec<&LinuxSyscall>> = BTreeMap::new();
    let mut all_known = true;
    for rule in profile.syscalls().iter().flatten() {
        for name in rule.names() {
            let Ok(call) = name.parse::<Sysno>() else {
                all_known = false;
                continue;
            };
            let of_call = rules.entry(call.id() as u32).or_default();
            // What only repeats the default does nothing; a call named twice is meant once.
            let action = rule.action().as_u32(rule.errno_ret());
            if action != default && !of_call.iter().any(|other| std::ptr::eq(*other, rule)) {
                of_call.push(rule);
            }
        }
    }
    for (number, rules) in &rules {
        if rules.len() > 1 {
            continue;
        }
        for arguments in requests(rules.first().copied()) {
            let expected = match rules.first() {
                Some(rule) if matches(rule, &arguments) => rule.action().as_u32(rule.errno_ret()),
                _ => default,
            };
            let seen = machine.run(X86_64, *number, &arguments);
            assert_eq!(seen, expected, "call {number}, {arguments:x?}");
        }
    }
    if all_known {
        check_newer(profile, &machine, default, rules.keys().last().copied().unwrap_or(0));
    }
}

/// Calls beyond all that are named: refused as unknown, where they are refused.
fn check_newer(profile: &LinuxSeccomp, machine: &Machine, default: u32, newest: u32) {
    use Action::{ScmpActAllow, ScmpActLog, ScmpActNotify, ScmpActTrace};
    let laxer = [ScmpActAllow, ScmpActLog, ScmpActNotify, ScmpActTrace];
    let hidden = newest > 0 && !laxer.contains(&profile.default_action());
    let expected = if hidden { ENOSYS } else { default };
    for number in [newest + 1, 10_000, 0x3fff_ffff] {
        assert_eq!(machine.run(X86_64, number, &[0; 6]), expected, "call {number}");
    }
}

/// Arguments at and beside the values that a rule has.
fn requests(rule: Option<&LinuxSyscall>) -> Vec<[u64; 6]> {
    let mut requests = vec![[0; 6], [u64::MAX; 6]];
    let Some(conditions) = rule.and_then(|rule| rule.args().as_ref()) else { return requests };
    for condition in conditions.iter().take(20) {
        let (value, two) = (condition.value(), condition.value_two().unwrap_or(0));
        for near in [value, value.wrapping_add(1), value.wrapping_sub(1), two, value & two] {
            let mut all = [0; 6];
            // As all conditions want it, but for one.
            conditions.iter().for_each(|other| all[other.index()] = other.value());
            all[condition.index()] = near;
            requests.push(all);
        }
    }
    requests
}

/// All conditions must hold; but if an argument comes twice, any of them.
fn matches(rule: &LinuxSyscall, arguments: &[u64; 6]) -> bool {
    let conditions = rule.args().as_deref().unwrap_or_default();
    let twice = (1..conditions.len())
        .any(|at| conditions[..at].iter().any(|other| other.index() == conditions[at].index()));
    match twice {
        true => conditions.iter().any(|condition| holds(condition, arguments)),
        false => conditions.iter().all(|condition| holds(condition, arguments)),
    }
}

fn holds(condition: &LinuxSeccompArg, arguments: &[u64; 6]) -> bool {
    let (seen, value) = (arguments[condition.index()], condition.value());
    match condition.op() {
        Operator::ScmpCmpNe => seen != value,
        Operator::ScmpCmpLt => seen < value,
        Operator::ScmpCmpLe => seen <= value,
        Operator::ScmpCmpEq => seen == value,
        Operator::ScmpCmpGe => seen >= value,
        Operator::ScmpCmpGt => seen > value,
        Operator::ScmpCmpMaskedEq => seen & value == condition.value_two().unwrap_or(0) & value,
    }
}

/// A process may have one listener. So the kernel checks and compiles a second filter that asks for
/// one, and then says EBUSY instead of installing it: its judgement without its consequences.
fn check_acceptance(filter: &Filter) {
    static LISTENER: LazyLock<OwnedFd> = LazyLock::new(|| {
        sys::process::no_new_privileges().expect("no_new_privs");
        let allow = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ALLOW,
        };
        let listener = sys::seccomp::load(&[allow], libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32);
        listener.expect("a listener").expect("a descriptor")
    });
    LazyLock::force(&LISTENER);
    let flags = filter.flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
    let outcome = sys::seccomp::load(&filter.program, flags);
    assert_eq!(outcome.err(), Some(Errno::EBUSY), "the kernel's judgement");
}
