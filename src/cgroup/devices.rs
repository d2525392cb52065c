//! Which devices a container may use: `linux.resources.devices` made into a policy, and the policy
//! made into what the kernel takes: a BPF program on cgroup v2, lines for `devices.allow` and
//! `devices.deny` on v1.
//!
//! The rules apply in their order and the later one wins, for each kind of access by itself: a
//! request (say, open for reading and writing) is allowed if the last rule that matches the device
//! and names the access allows it, for every access that is asked for. What no rule matches is
//! denied. The spec's default devices are appended, so that no rule can take them away, as in runc
//! and crun: engines rely on it (podman and buildah deny everything and add nothing).

use crate::sys::bpf::Insn;
use anyhow::{Result, bail, ensure};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Kinds of device, as in the BPF context (`BPF_DEVCG_DEV_*`), here a set.
const BLOCK: u8 = 1;
const CHAR: u8 = 2;
/// Kinds of access, as in the BPF context (`BPF_DEVCG_ACC_*`), a set in both.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// Set of [`BLOCK`] and [`CHAR`].
    kinds: u8,
    /// `None` is any.
    major: Option<u32>,
    minor: Option<u32>,
    /// Set of [`MKNOD`], [`READ`] and [`WRITE`].
    access: u8,
}

const fn allow(kinds: u8, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow: true, kinds, major, minor, access }
}

/// What every container may use (spec: "Default Devices"): making any node, which is harmless as
/// long as it can't be opened, and the devices of /dev. `/dev/net/tun` is not among them.
const DEFAULTS: [Rule; 11] = [
    allow(CHAR, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    allow(CHAR, Some(1), Some(3), ALL), // null
    allow(CHAR, Some(1), Some(5), ALL), // zero
    allow(CHAR, Some(1), Some(7), ALL), // full
    allow(CHAR, Some(1), Some(8), ALL), // random
    allow(CHAR, Some(1), Some(9), ALL), // urandom
    allow(CHAR, Some(5), Some(0), ALL), // tty
    allow(CHAR, Some(5), Some(1), ALL), // console
    allow(CHAR, Some(5), Some(2), ALL), // ptmx
    allow(CHAR, Some(136), None, ALL),  // pts/*
];

impl Rule {
    fn parse(index: usize, device: &LinuxDeviceCgroup) -> Result<Self> {
        let property = format!("linux.resources.devices[{index}]");
        let kinds = match device.typ() {
            None | Some(LinuxDeviceType::A) => BLOCK | CHAR,
            Some(LinuxDeviceType::B) => BLOCK,
            Some(LinuxDeviceType::C) => CHAR,
            Some(other) => bail!(
                "{property}.type: a rule is about \"a\" (all), \"b\" (block) or \"c\" (character) devices, not {:?}",
                other.as_str()
            ),
        };
        let number = |name: &str, number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => match u32::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => bail!(
                    "{property}.{name}: {number} is not a device number; leave it out or set it to -1 for any"
                ),
            },
        };
        let mut access = 0;
        for letter in device.access().as_deref().unwrap_or_default().chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => bail!(
                    "{property}.access: {letter:?} is none of r (read), w (write) and m (mknod)"
                ),
            };
        }
        if access == 0 {
            // Denying "nothing" can only mean everything; what to allow must be said.
            ensure!(
                !device.allow(),
                "{property}.access: it must say what to allow: some of r (read), w (write) and m (mknod)"
            );
            access = ALL;
        }
        Ok(Self {
            allow: device.allow(),
            kinds,
            major: number("major", device.major())?,
            minor: number("minor", device.minor())?,
            access,
        })
    }

    /// Whether every device that `other` matches is matched by this rule.
    fn covers(&self, other: &Rule) -> bool {
        self.kinds & other.kinds == other.kinds
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// Whether the rules speak about a common access to a common device.
    fn overlaps(&self, other: &Rule) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kinds & other.kinds != 0
            && self.access & other.access != 0
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
    }

    /// As the files of the v1 devices controller have it; two lines for a rule on both kinds,
    /// because the kernel takes `a` to mean every device whatever the numbers.
    fn lines(&self) -> impl Iterator<Item = String> {
        let rule = *self;
        let number =
            |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        [(BLOCK, 'b'), (CHAR, 'c')].into_iter().filter(move |(kind, _)| rule.kinds & kind != 0).map(
            move |(_, letter)| {
                let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
                    .into_iter()
                    .filter(|(bit, _)| rule.access & bit != 0)
                    .map(|(_, letter)| letter)
                    .collect();
                format!("{letter} {}:{} {access}", number(rule.major), number(rule.minor))
            },
        )
    }
}

/// What the rules come to, with every rule left out that can't make a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// What holds where no rule matches.
    allow: bool,
    rules: Vec<Rule>,
}

/// What to write on v1, after `a` was written to `devices.allow` (`allow_all`) or `devices.deny`:
/// the exceptions, for the other file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct V1Lists {
    pub(super) allow_all: bool,
    pub(super) exceptions: Vec<String>,
}

impl Policy {
    /// The policy for `linux.resources.devices`. Without any rules it is: only the defaults, as in
    /// runc (crun restricts nothing then, which would leave a root container the host's disks).
    pub(super) fn new(configured: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut rules = Vec::with_capacity(configured.len() + DEFAULTS.len());
        for (index, device) in configured.iter().enumerate() {
            rules.push(Rule::parse(index, device)?);
        }
        rules.extend(DEFAULTS);
        Ok(Self::reduced(false, &rules))
    }

    pub(super) fn allows_everything(&self) -> bool {
        self.allow && self.rules.is_empty()
    }

    fn reduced(allow: bool, rules: &[Rule]) -> Self {
        let mut allow = allow;
        let mut start = 0;
        let everything = Rule { allow, kinds: BLOCK | CHAR, major: None, minor: None, access: ALL };
        for (index, rule) in rules.iter().enumerate() {
            if rule.covers(&everything) && rule.access == ALL {
                allow = rule.allow;
                start = index + 1;
            }
        }
        let rules = &rules[start..];
        let mut kept: Vec<Rule> = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            if let Some(rule) = without_overruled(*rule, &rules[index + 1..]) {
                // A rule that says what holds anyway matters only against an earlier one.
                if rule.allow != allow
                    || kept.iter().any(|earlier| earlier.allow != allow && earlier.overlaps(&rule))
                {
                    kept.push(rule);
                }
            }
        }
        Self { allow, rules: kept }
    }

    /// The program for cgroup v2: it returns 1 to allow and 0 to deny (kernel:
    /// Documentation/admin-guide/cgroup-v2.rst, "Device controller"). It goes through the rules
    /// from the last to the first and keeps in w2 the access that no rule has decided yet.
    pub(super) fn program(&self) -> Vec<Insn> {
        let mut code = vec![
            load_word(2, 0), // access << 16 | kind
            load_word(4, 4), // major
            load_word(5, 8), // minor
            Insn::new(MOV32_REG, 3, 2, 0, 0),
            Insn::new(AND32, 3, 0, 0, 0xffff), // w3: kind
            Insn::new(RSH32, 2, 0, 0, 16),     // w2: access
        ];
        for rule in self.rules.iter().rev() {
            append_rule(&mut code, rule);
        }
        append_return(&mut code, self.allow);
        code
    }

    /// The lists for v1, where exceptions can only be of one kind: allowed devices when all are
    /// denied, denied ones when all are allowed.
    pub(super) fn v1_lists(&self) -> Result<V1Lists> {
        if let Some(lists) = self.lists_as_is() {
            return Ok(lists);
        }
        // "All allowed, but no character device, but these" is also "all denied, but the block
        // devices and these".
        let mut rules = vec![allow(BLOCK, None, None, ALL), allow(CHAR, None, None, ALL)];
        rules.extend(&self.rules);
        if let Some(lists) =
            self.allow.then(|| Self::reduced(false, &rules).lists_as_is()).flatten()
        {
            return Ok(lists);
        }
        let hole = self.rules.iter().find(|rule| rule.allow == self.allow);
        let line = hole.and_then(|rule| rule.lines().next()).unwrap_or_default();
        bail!(
            "linux.resources.devices: the v1 devices controller can't make an exception from an exception: the rule for {line:?} lies within a wider one of the opposite kind: list the devices one by one, or use a host with cgroup v2"
        );
    }

    fn lists_as_is(&self) -> Option<V1Lists> {
        if self.rules.iter().any(|rule| rule.allow == self.allow) {
            return None;
        }
        let mut exceptions: Vec<String> = Vec::new();
        for rule in &self.rules {
            let mut rule = *rule;
            if rule.allow {
                // The kernel wants one exception to grant both halves of a read-write open.
                let wider = self.rules.iter().filter(|wider| wider.covers(&rule));
                rule.access |=
                    wider.fold(0, |access, wider| access | wider.access & (READ | WRITE));
            }
            for line in rule.lines() {
                if !exceptions.contains(&line) {
                    exceptions.push(line);
                }
            }
        }
        Some(V1Lists { allow_all: self.allow, exceptions })
    }
}

/// The rule without the access that later rules decide wholly and otherwise; none if nothing that
/// it says ever counts.
fn without_overruled(mut rule: Rule, later: &[Rule]) -> Option<Rule> {
    let mut decided = 0;
    let mut otherwise = 0;
    for wider in later.iter().filter(|later| later.covers(&rule)) {
        decided |= wider.access;
        if wider.allow == rule.allow {
            otherwise &= !wider.access;
        } else {
            otherwise |= wider.access;
        }
    }
    if rule.access & !decided == 0 {
        return None;
    }
    rule.access &= !otherwise;
    Some(rule)
}

// Instruction codes (kernel: Documentation/bpf/standardization/instruction-set.rst). All
// comparisons are of 32 bits: a 64-bit one would extend the sign of a large device number.
const LDX_WORD: u8 = 0x61;
const AND32: u8 = 0x54;
const RSH32: u8 = 0x74;
const MOV32_REG: u8 = 0xbc;
const MOV64: u8 = 0xb7;
const JA: u8 = 0x05;
const JNE32: u8 = 0x56;
const JSET32: u8 = 0x46;
const EXIT: u8 = 0x95;

const fn load_word(register: u8, offset: i16) -> Insn {
    Insn::new(LDX_WORD, register, 1, offset, 0)
}

fn append_return(code: &mut Vec<Insn>, allow: bool) {
    code.push(Insn::new(MOV64, 0, 0, 0, allow.into()));
    code.push(Insn::new(EXIT, 0, 0, 0, 0));
}

fn append_rule(code: &mut Vec<Insn>, rule: &Rule) {
    let start = code.len();
    // Jumps to the next rule are marked with offset 0 and filled in at the end.
    let unless_equal = |register, value: u32| Insn::new(JNE32, register, 0, 0, value as i32);
    if rule.kinds != BLOCK | CHAR {
        code.push(unless_equal(3, rule.kinds.into()));
    }
    if let Some(major) = rule.major {
        code.push(unless_equal(4, major));
    }
    if let Some(minor) = rule.minor {
        code.push(unless_equal(5, minor));
    }
    if rule.access != ALL {
        if rule.allow {
            code.push(Insn::new(AND32, 2, 0, 0, i32::from(!rule.access & ALL)));
            code.push(unless_equal(2, 0));
        } else {
            code.push(Insn::new(JSET32, 2, 0, 1, rule.access.into()));
            code.push(Insn::new(JA, 0, 0, 0, 0));
        }
    }
    append_return(code, rule.allow);
    let end = code.len();
    for (index, insn) in code.iter_mut().enumerate().skip(start) {
        if insn.off == 0 && (insn.code == JNE32 || insn.code == JA) {
            insn.off = (end - index - 1) as i16;
        }
    }
}

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
#[path = "devices_tests.rs"]
mod tests;
#[cfg(any(fuzzing, test))]
pub(super) use tests::check_meaning;
