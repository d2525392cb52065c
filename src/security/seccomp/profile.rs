//! `linux.seccomp` of config.json, checked and sorted by system call.
use std::ops::Range;

use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::arch::{Family, MAX_ABIS, Multiplexer};
use super::bpf::Comparison;

/// Largest errno that the kernel passes on (`MAX_ERRNO` of `linux/err.h`).
const MAX_ERRNO: u32 = 4095;

/// A checked profile for the host's architectures.
pub(super) struct Profile {
    /// `SECCOMP_RET_*` value of calls that no rule matches.
    pub default: u32,
    /// Calls newer than every call named for their ABI fail with ENOSYS instead of `default`.
    pub hides_newer: bool,
    /// A rule hands calls to the seccomp agent.
    pub notifies: bool,
    pub abis: [AbiCalls; MAX_ABIS],
    pub rules: Vec<Rule>,
    pub conditions: Vec<Condition>,
    /// Names that no architecture of the profile knows.
    pub unknown: Vec<String>,
}

/// What the profile says of one ABI of the family.
#[derive(Default)]
pub(super) struct AbiCalls {
    /// `linux.seccomp.architectures` has it, or it is the native one.
    pub listed: bool,
    /// The largest number that the profile names.
    pub newest: Option<u32>,
    /// Call number and index into [`Profile::rules`].
    pub calls: Vec<(u32, u32)>,
}

/// An action for the calls that meet all conditions.
pub(super) struct Rule {
    pub action: u32,
    /// Index range into [`Profile::conditions`], in the order of the arguments.
    pub conditions: Range<usize>,
    /// Index into `linux.seccomp.syscalls`.
    pub entry: usize,
    /// Made for a multiplexer, not named by the profile.
    pub derived: bool,
}

/// A condition on one argument.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub argument: u8,
    pub comparison: Comparison,
    /// The comparison must not hold.
    pub negated: bool,
    pub value: u64,
}

impl Profile {
    pub(super) fn read(family: &Family, seccomp: &LinuxSeccomp) -> Result<Profile> {
        let default_action = seccomp.default_action();
        let default = action(default_action, seccomp.default_errno_ret(), || {
            "linux.seccomp.defaultErrnoRet".to_owned()
        })?;
        let mut profile = Profile {
            default,
            hides_newer: hides_newer(default_action),
            notifies: default_action == Action::ScmpActNotify,
            abis: Default::default(),
            rules: Vec::new(),
            conditions: Vec::new(),
            unknown: Vec::new(),
        };
        let listed = seccomp.architectures().as_deref().unwrap_or_default();
        let names = seccomp.syscalls().iter().flatten().map(|entry| entry.names().len()).sum();
        for (index, (abi, calls)) in family.iter().zip(&mut profile.abis).enumerate() {
            calls.listed = index == 0 || listed.contains(&abi.arch);
            if calls.listed {
                calls.calls.reserve(names);
            }
        }
        for (entry, syscall) in seccomp.syscalls().iter().flatten().enumerate() {
            profile.add(family, entry, syscall)?;
        }
        Ok(profile)
    }

    fn add(&mut self, family: &Family, entry: usize, syscall: &LinuxSyscall) -> Result<()> {
        let at = || format!("linux.seccomp.syscalls[{entry}]");
        let action =
            action(syscall.action(), syscall.errno_ret(), || format!("{}.errnoRet", at()))?;
        ensure!(
            !syscall.names().is_empty(),
            "{}.names is empty: name at least one system call",
            at()
        );
        self.notifies |= syscall.action() == Action::ScmpActNotify;
        let args = syscall.args().as_deref().unwrap_or_default();
        let rules = self.add_rules(entry, args, action)?;
        // libseccomp refuses rules that only repeat the default, and so runc leaves them out.
        let redundant = action == self.default;
        for (index, name) in syscall.names().iter().enumerate() {
            ensure!(!name.is_empty(), "{}.names[{index}] is empty", at());
            let known = self.add_call(family, name, redundant, rules.clone());
            if !known && !self.unknown.contains(name) {
                self.unknown.push(name.clone());
            }
        }
        Ok(())
    }

    /// The rules of one entry: one for all its arguments, which must all match; but when an
    /// argument comes twice, one for each condition, any of which may match. That is how runc
    /// understands profiles, and CRI-O's default profile depends on it.
    fn add_rules(
        &mut self,
        entry: usize,
        args: &[LinuxSeccompArg],
        action: u32,
    ) -> Result<Range<u32>> {
        let first_rule = self.rules.len();
        let first = self.conditions.len();
        let mut seen = 0u8;
        let mut repeated = false;
        for (index, arg) in args.iter().enumerate() {
            ensure!(
                arg.index() <= 5,
                "linux.seccomp.syscalls[{entry}].args[{index}].index is {}: a system call has the \
                 arguments 0 to 5",
                arg.index()
            );
            let argument = arg.index() as u8;
            repeated |= seen & (1 << argument) != 0;
            seen |= 1 << argument;
            self.conditions.push(condition(argument, arg));
        }
        let last = self.conditions.len();
        let mut add = |conditions| {
            self.rules.push(Rule { action, conditions, entry, derived: false });
        };
        if repeated {
            (first..last).for_each(|condition| add(condition..condition + 1));
        } else {
            add(first..last);
            self.conditions[first..].sort_by_key(|condition| condition.argument);
        }
        Ok(first_rule as u32..self.rules.len() as u32)
    }

    /// Gives a call its rules on every ABI of the profile that has it. False if none has.
    fn add_call(
        &mut self,
        family: &Family,
        name: &str,
        redundant: bool,
        rules: Range<u32>,
    ) -> bool {
        let mut known = false;
        let native = (family[0].number)(name, None);
        for (index, abi) in family.iter().enumerate() {
            if !self.abis[index].listed {
                continue;
            }
            let number = if index == 0 { native } else { (abi.number)(name, native) };
            if let Some(number) = number {
                known = true;
                let calls = &mut self.abis[index];
                calls.newest = calls.newest.max(Some(number));
                if !redundant {
                    calls.calls.extend(rules.clone().map(|rule| (number, rule)));
                }
            }
            if let Some(multiplexer) = (abi.multiplexer)(name) {
                known = true;
                if !redundant {
                    self.add_multiplexed(index, multiplexer, rules.clone());
                }
            }
        }
        known
    }

    /// Extends rules to `socketcall` and `ipc`, where the first argument says which call is meant
    /// and the others are out of a filter's sight behind a pointer. A rule without conditions is
    /// taken over as it is. One with conditions is taken over without them if it is stricter than
    /// the default, and not at all if it is laxer: a filter never allows what it cannot check.
    /// (libseccomp drops the conditions in both cases, so there "socket, but not AF_ALG" is open to
    /// 32-bit programs.)
    fn add_multiplexed(&mut self, abi: usize, multiplexer: Multiplexer, rules: Range<u32>) {
        for rule in rules {
            let Rule { action, ref conditions, entry, .. } = self.rules[rule as usize];
            if !conditions.is_empty() && strictness(action) <= strictness(self.default) {
                continue;
            }
            let at = self.conditions.len();
            self.conditions.push(Condition {
                argument: 0,
                comparison: Comparison::Equal { mask: u64::MAX },
                negated: false,
                value: u64::from(multiplexer.call),
            });
            self.rules.push(Rule { action, conditions: at..at + 1, entry, derived: true });
            self.abis[abi].calls.push((multiplexer.number, self.rules.len() as u32 - 1));
        }
    }
}

/// A program that probes for new calls copes with ENOSYS, but not with EPERM or a signal. So calls
/// newer than the profile itself, which the default would refuse, look as if the kernel did not
/// have them (runc since 1.0.0-rc93). Tracers, agents and logs are left their view of the call.
fn hides_newer(default: Action) -> bool {
    !matches!(
        default,
        Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace | Action::ScmpActNotify
    )
}

/// The `SECCOMP_RET_*` value of an action; `at` names the property of its errno.
pub(super) fn action(action: Action, errno: Option<u32>, at: impl Fn() -> String) -> Result<u32> {
    let (code, max) = match action {
        Action::ScmpActKill | Action::ScmpActKillThread => (libc::SECCOMP_RET_KILL_THREAD, None),
        Action::ScmpActKillProcess => (libc::SECCOMP_RET_KILL_PROCESS, None),
        Action::ScmpActTrap => (libc::SECCOMP_RET_TRAP, None),
        Action::ScmpActErrno => (libc::SECCOMP_RET_ERRNO, Some(MAX_ERRNO)),
        Action::ScmpActNotify => (libc::SECCOMP_RET_USER_NOTIF, None),
        // Not an errno: the tracer gets the number with PTRACE_GETEVENTMSG.
        Action::ScmpActTrace => (libc::SECCOMP_RET_TRACE, Some(libc::SECCOMP_RET_DATA)),
        Action::ScmpActLog => (libc::SECCOMP_RET_LOG, None),
        Action::ScmpActAllow => (libc::SECCOMP_RET_ALLOW, None),
    };
    match (errno, max) {
        (None, None) => Ok(code),
        (None, Some(_)) => Ok(code | libc::EPERM as u32),
        (Some(errno), Some(max)) if errno <= max => Ok(code | errno),
        (Some(errno), Some(max)) => {
            bail!("{} is {errno}: the largest value of {action} is {max}", at())
        }
        (Some(_), None) => {
            bail!("{}: {action} takes no value; only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do", at())
        }
    }
}

/// Orders actions as the kernel does when several filters disagree (seccomp(2)): the largest wins.
fn strictness(action: u32) -> std::cmp::Reverse<i32> {
    std::cmp::Reverse((action & libc::SECCOMP_RET_ACTION_FULL) as i32)
}

fn condition(argument: u8, arg: &LinuxSeccompArg) -> Condition {
    let (comparison, negated) = match arg.op() {
        Operator::ScmpCmpEq => (Comparison::Equal { mask: u64::MAX }, false),
        Operator::ScmpCmpNe => (Comparison::Equal { mask: u64::MAX }, true),
        Operator::ScmpCmpGt => (Comparison::Greater, false),
        Operator::ScmpCmpLe => (Comparison::Greater, true),
        Operator::ScmpCmpGe => (Comparison::GreaterOrEqual, false),
        Operator::ScmpCmpLt => (Comparison::GreaterOrEqual, true),
        // `value` is the mask here, `valueTwo` what has to be left under it.
        Operator::ScmpCmpMaskedEq => {
            let (mask, value) = (arg.value(), arg.value_two().unwrap_or(0));
            let comparison = Comparison::Equal { mask };
            return Condition { argument, comparison, negated: false, value: value & mask };
        }
    };
    Condition { argument, comparison, negated, value: arg.value() }
}

/// `SECCOMP_FILTER_FLAG_*` bits.
pub(super) fn flags(seccomp: &LinuxSeccomp, notifies: bool) -> Result<u32> {
    use LinuxSeccompFilterFlag as Flag;
    let mut bits = 0;
    match seccomp.flags() {
        // runc's default: without it, kernels before 5.16 turn on the costly mitigation of
        // Spectre v4 for every process with a filter.
        None => bits |= libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Some(flags) => {
            for (index, flag) in flags.iter().enumerate() {
                bits |= match flag {
                    // The program starts with one thread, which loads the filter. One that may
                    // stand beside it (see the agent) must not get the filter.
                    Flag::SeccompFilterFlagTsync => 0,
                    Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                    Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                    Flag::SeccompFilterFlagWaitKillableRecv if !notifies => bail!(
                        "linux.seccomp.flags[{index}]: {flag} needs a rule with SCMP_ACT_NOTIFY"
                    ),
                    Flag::SeccompFilterFlagWaitKillableRecv => {
                        libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
                    }
                }
            }
        }
    }
    if notifies {
        bits |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    }
    Ok(bits as u32)
}
