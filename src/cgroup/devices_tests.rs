//! The policy against a plain reading of the rules, the BPF programs through a small interpreter.

use super::*;

fn configured(json: &str) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_str(json).unwrap()
}

/// What the rules say, read literally: one access after the other, the last match wins.
fn literally(
    rules: &[Rule],
    default: bool,
    (kind, major, minor): (u8, u32, u32),
    access: u8,
) -> bool {
    let device =
        Rule { allow: true, kinds: kind, major: Some(major), minor: Some(minor), access: 0 };
    [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        let last = rules.iter().rev().find(|rule| rule.access & bit != 0 && rule.covers(&device));
        last.map_or(default, |rule| rule.allow)
    })
}

/// Runs a program as the kernel would; panics on what the verifier would refuse.
fn run(program: &[Insn], (kind, major, minor): (u8, u32, u32), access: u8) -> bool {
    let context = [u32::from(access) << 16 | u32::from(kind), major, minor];
    let mut registers: [Option<u64>; 11] = [None; 11];
    let mut at = 0usize;
    for _ in 0..=program.len() {
        let insn = program[at];
        let (dst, src) = (usize::from(insn.regs & 15), usize::from(insn.regs >> 4));
        let value =
            |register: usize| registers[register].expect("register is read before it is written");
        at += 1;
        let jump = |taken: bool| {
            if taken { usize::try_from(insn.off).expect("jumps go forward") } else { 0 }
        };
        match insn.code {
            LDX_WORD => {
                assert_eq!(src, 1, "only the context is read");
                registers[dst] = Some(context[insn.off as usize / 4].into());
            }
            MOV32_REG => registers[dst] = Some(value(src) & 0xffff_ffff),
            AND32 => registers[dst] = Some((value(dst) as u32 & insn.imm as u32).into()),
            RSH32 => registers[dst] = Some((value(dst) as u32 >> insn.imm).into()),
            MOV64 => registers[dst] = Some(insn.imm as u64),
            JA => at += jump(true),
            JNE32 => at += jump(value(dst) as u32 != insn.imm as u32),
            JSET32 => at += jump(value(dst) as u32 & insn.imm as u32 != 0),
            EXIT => return value(0) == 1,
            code => panic!("instruction {code:#x}"),
        }
    }
    panic!("the program does not end");
}

const NUMBERS: [u32; 4] = [1, 3, 5, u32::MAX];

fn each_request(mut check: impl FnMut((u8, u32, u32), u8)) {
    for kind in [BLOCK, CHAR] {
        for major in NUMBERS {
            for minor in NUMBERS {
                for access in 1..=ALL {
                    check((kind, major, minor), access);
                }
            }
        }
    }
}

/// A fixed sequence of pseudo-random numbers (xorshift), so that a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn rule(&mut self) -> Rule {
        let number = |n: u64| (n > 0).then(|| NUMBERS[n as usize - 1]);
        Rule {
            allow: self.below(2) == 0,
            kinds: 1 + self.below(3) as u8,
            major: number(self.below(5)),
            minor: number(self.below(5)),
            access: 1 + self.below(7) as u8,
        }
    }
}

#[test]
fn reduced_policies_programs_and_v1_lists_mean_what_the_rules_say() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut v1 = 0;
    for _ in 0..400 {
        let rules: Vec<Rule> = (0..numbers.below(8)).map(|_| numbers.rule()).collect();
        let default = numbers.below(2) == 0;
        let policy = Policy::reduced(default, &rules);
        let program = policy.program();
        let lists = policy.v1_lists().ok();
        v1 += usize::from(lists.is_some());
        each_request(|device, access| {
            let expected = literally(&rules, default, device, access);
            assert_eq!(
                literally(&policy.rules, policy.allow, device, access),
                expected,
                "{rules:?} -> {policy:?}: {device:?} {access}"
            );
            assert_eq!(
                run(&program, device, access),
                expected,
                "program of {policy:?}: {device:?} {access}"
            );
            // One access at a time: of several the kernel's v1 may allow less, never more.
            if let Some(lists) = lists.as_ref().filter(|_| access.count_ones() == 1) {
                assert_eq!(
                    v1_decides(lists, device, access),
                    expected,
                    "{policy:?} -> {lists:?}: {device:?} {access}"
                );
            }
        });
    }
    assert!(v1 > 50, "only {v1} of 400 policies could be written as v1 lists");
}

/// What the v1 devices controller decides for one kind of access.
fn v1_decides(lists: &V1Lists, (kind, major, minor): (u8, u32, u32), access: u8) -> bool {
    let letter = if kind == BLOCK { "b" } else { "c" };
    let matches = |pattern: &str, number: u32| pattern == "*" || pattern == number.to_string();
    let access = ["", "m", "r", "", "w"][usize::from(access)];
    let excepted = lists.exceptions.iter().any(|line| {
        let fields: Vec<&str> = line.split([' ', ':']).collect();
        fields[0] == letter
            && matches(fields[1], major)
            && matches(fields[2], minor)
            && fields[3].contains(access)
    });
    excepted != lists.allow_all
}

/// That the program, and the lists for v1, mean what any rules say, at and beside their numbers.
pub fn check_meaning(configured: &[LinuxDeviceCgroup]) {
    let Ok(policy) = Policy::new(configured) else { return };
    let mut rules: Vec<Rule> = (configured.iter().enumerate())
        .map(|(index, rule)| Rule::parse(index, rule).unwrap())
        .collect();
    rules.extend(DEFAULTS);
    let (program, lists) = (policy.program(), policy.v1_lists().ok());
    for rule in rules.iter().take(40) {
        let (major, minor) = (rule.major.unwrap_or(7), rule.minor.unwrap_or(7));
        for (kind, beside) in [(BLOCK, 0), (BLOCK, 1), (CHAR, 0), (CHAR, 1)] {
            let device = (kind, major, minor.wrapping_add(beside));
            for access in 1..=ALL {
                let expected = literally(&rules, false, device, access);
                assert_eq!(run(&program, device, access), expected, "{device:?} {access}");
                if let Some(lists) = lists.as_ref().filter(|_| access.count_ones() == 1) {
                    assert_eq!(v1_decides(lists, device, access), expected, "{device:?} {access}");
                }
            }
        }
    }
}

#[test]
fn real_and_extreme_device_numbers_mean_what_the_rules_say() {
    check_meaning(&[]);
    check_meaning(&configured(
        r#"[{"allow": true, "access": "rw"}, {"allow": false, "type": "b", "access": "w"},
            {"allow": true, "type": "b", "major": 4294967295, "minor": 4294967295, "access": "m"},
            {"allow": false, "type": "c", "major": 0, "minor": 1, "access": "rwm"}]"#,
    ));
}

#[test]
fn no_rules_at_all_leave_the_default_devices() {
    let policy = Policy::new(&[]).unwrap();
    assert!(!policy.allows_everything());
    let program = policy.program();
    assert!(run(&program, (CHAR, 1, 3), READ | WRITE), "/dev/null");
    assert!(run(&program, (CHAR, 136, 77), READ | WRITE), "/dev/pts/77");
    assert!(run(&program, (BLOCK, 8, 0), MKNOD), "making a node");
    assert!(!run(&program, (BLOCK, 8, 0), READ), "reading a disk");
    assert!(!run(&program, (CHAR, 10, 200), READ | WRITE), "/dev/net/tun");
    assert!(!run(&program, (CHAR, 1, 1), READ), "/dev/mem");
    assert!(!run(&program, (BLOCK, 1, 3), READ), "a block device with the numbers of /dev/null");
}

#[test]
fn the_deny_all_of_docker_needs_neither_type_nor_numbers() {
    for json in [
        r#"[{"allow": false, "access": "rwm"}]"#,
        r#"[{"allow": false}]"#,
        r#"[{"allow": false, "type": "a", "major": -1, "minor": -1}]"#,
    ] {
        assert_eq!(Policy::new(&configured(json)).unwrap(), Policy::new(&[]).unwrap(), "{json}");
    }
}

#[test]
fn a_privileged_container_needs_no_program_and_one_line() {
    let policy = Policy::new(&configured(
        r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}, {"allow": true, "access": "rwm"}]"#,
    ))
    .unwrap();
    assert!(policy.allows_everything());
    assert_eq!(policy.v1_lists().unwrap(), V1Lists { allow_all: true, exceptions: vec![] });
}

#[test]
fn a_later_rule_wins_and_a_default_device_stays() {
    let policy = Policy::new(&configured(
        r#"[{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"},
            {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rw"}]"#,
    ))
    .unwrap();
    let program = policy.program();
    assert!(run(&program, (CHAR, 10, 229), READ));
    assert!(!run(&program, (CHAR, 10, 229), WRITE));
    assert!(!run(&program, (CHAR, 10, 229), READ | WRITE));
    assert!(run(&program, (CHAR, 1, 3), READ | WRITE));
}

#[test]
fn v1_lists_keep_the_order_and_the_access_of_the_configuration() {
    let lists = Policy::new(&configured(
        r#"[{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 20, "access": "rw"},
            {"allow": true, "type": "b", "major": 10, "minor": 200, "access": "r"}]"#,
    ))
    .unwrap()
    .v1_lists()
    .unwrap();
    assert!(!lists.allow_all);
    assert_eq!(
        lists.exceptions[..5],
        ["c 10:229 rwm", "b 8:20 rw", "b 10:200 r", "c *:* m", "b *:* m"]
    );
}

#[test]
fn denying_one_device_of_all_is_a_v1_exception() {
    let lists = Policy::new(&configured(
        r#"[{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]"#,
    ))
    .unwrap()
    .v1_lists()
    .unwrap();
    assert_eq!(lists, V1Lists { allow_all: true, exceptions: vec!["c 10:229 rw".into()] });
}

#[test]
fn denying_a_kind_of_all_turns_into_a_v1_list_of_what_is_allowed() {
    let lists = Policy::new(&configured(
        r#"[{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "access": "rw"}]"#,
    ))
    .unwrap()
    .v1_lists()
    .unwrap();
    assert!(!lists.allow_all);
    assert!(
        lists.exceptions.contains(&"b *:* rwm".to_owned())
            && lists.exceptions.contains(&"c 1:3 rwm".to_owned()),
        "{lists:?}"
    );
}

#[test]
fn a_hole_in_a_wildcard_is_an_error_on_v1_that_names_it() {
    let policy = Policy::new(&configured(
        r#"[{"allow": true, "type": "c", "major": 10, "access": "rw"}, {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rw"}]"#,
    ))
    .unwrap();
    let error = policy.v1_lists().unwrap_err().to_string();
    assert!(
        error.starts_with("linux.resources.devices") && error.contains("c 10:229 rw"),
        "{error}"
    );
    assert!(
        !run(&policy.program(), (CHAR, 10, 229), READ)
            && run(&policy.program(), (CHAR, 10, 1), READ)
    );
}

#[test]
fn senseless_rules_are_errors_that_name_the_property() {
    for (json, property) in [
        (
            r#"[{"allow": true, "type": "c", "major": 1, "minor": 3}]"#,
            "linux.resources.devices[0].access",
        ),
        (r#"[{"allow": false, "access": "rwx"}]"#, "linux.resources.devices[0].access"),
        (
            r#"[{"allow": false}, {"allow": true, "type": "p", "access": "r"}]"#,
            "linux.resources.devices[1].type",
        ),
        (
            r#"[{"allow": true, "type": "c", "major": -2, "access": "r"}]"#,
            "linux.resources.devices[0].major",
        ),
        (
            r#"[{"allow": true, "type": "c", "minor": 4294967296, "access": "r"}]"#,
            "linux.resources.devices[0].minor",
        ),
    ] {
        let error = Policy::new(&configured(json)).unwrap_err().to_string();
        assert!(error.starts_with(property), "{error}");
    }
}
