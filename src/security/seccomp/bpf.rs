//! The BPF assembler: system call numbers and argument checks in, a classic BPF program out.
//!
//! The program is written from its end to its beginning. A BPF jump only goes forward, so every
//! target is in place before the jump to it, and its distance is known at once. A conditional jump
//! reaches 255 instructions; for a farther target a `ja` (32-bit distance) is put right behind it,
//! and for a farther `ret` simply another `ret`.
//!
//! System calls are found by binary search over ranges of numbers; a single number in a range that
//! is otherwise treated alike takes one comparison behind that, where two ranges more would take two.
//! Argument words are loaded only below the leaf that needs them: the kernel's cache of always-allowed
//! calls (Linux 5.11) serves every number whose path reads nothing but `nr` and `arch`.
use libc::sock_filter;

/// Longest program that the kernel takes (`BPF_MAXINSNS` of `linux/bpf_common.h`).
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// Offsets in `struct seccomp_data` (`linux/seccomp.h`).
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// Farthest target that a conditional jump uses directly; below 255 because the `ja` of its other
/// target may still come in between.
const REACH: usize = 250;

/// Most single numbers of a range, one comparison after the other.
const SINGLES: usize = 4;

/// All calls from `first` up to the next segment.
pub(super) struct Segment {
    pub first: u32,
    pub target: Target,
}

/// What happens to the calls of a segment.
#[derive(PartialEq, Eq)]
pub(super) enum Target {
    /// The same `SECCOMP_RET_*` value for all of them.
    Return(u32),
    /// The first alternative that matches, or else `otherwise`.
    Test { alternatives: Vec<Alternative>, otherwise: u32 },
}

/// A `SECCOMP_RET_*` value for calls whose arguments pass all checks.
#[derive(PartialEq, Eq)]
pub(super) struct Alternative {
    pub checks: Vec<Check>,
    pub action: u32,
}

/// A comparison of one argument, unsigned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    /// 0 to 5.
    pub argument: u8,
    /// The comparison must not hold.
    pub negated: bool,
    pub comparison: Comparison,
    pub value: u64,
    /// Compare all 64 bits, otherwise the low 32.
    pub wide: bool,
}

/// What a [`Check`] asks of an argument.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// argument & mask == value
    Equal { mask: u64 },
    /// argument > value
    Greater,
    /// argument ≥ value
    GreaterOrEqual,
}

/// Where a jump goes. Positions count from the end of the program.
#[derive(Clone, Copy)]
enum Exit {
    Return(u32),
    At(usize),
}

/// The program that dispatches on the architecture (`seccomp_data.arch`, tried in the given order)
/// and then on the number. `segments` start at number 0 and ascend. Any other architecture gets
/// `unknown_arch`.
pub(super) fn assemble(archs: &[(u32, Vec<Segment>)], unknown_arch: u32) -> Vec<sock_filter> {
    let mut assembler = Assembler::default();
    let roots: Vec<Exit> =
        archs.iter().rev().map(|(_, segments)| assembler.calls(segments)).collect();
    let mut next = Exit::Return(unknown_arch);
    for ((audit, _), root) in archs.iter().rev().zip(roots) {
        next = assembler.jump(JUMP_EQUAL, *audit, root, next);
    }
    assembler.load(OFFSET_ARCH);
    assembler.code.reverse();
    assembler.code
}

#[derive(Default)]
struct Assembler {
    /// Last instruction first.
    code: Vec<sock_filter>,
    /// The latest `ret` of each action.
    returns: Vec<(u32, usize)>,
}

impl Assembler {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> usize {
        self.code.push(sock_filter { code, jt, jf, k });
        self.code.len() - 1
    }

    fn load(&mut self, offset: u32) -> usize {
        self.push(LOAD, 0, 0, offset)
    }

    /// A position within [`REACH`] that leads to `exit`.
    fn near(&mut self, exit: Exit) -> usize {
        let here = self.code.len();
        match exit {
            Exit::At(target) if here - target <= REACH => target,
            Exit::At(target) => self.push(JUMP, 0, 0, (here - target - 1) as u32),
            Exit::Return(action) => {
                let known = self.returns.iter().position(|(known, _)| *known == action);
                if let Some(index) = known {
                    if here - self.returns[index].1 <= REACH {
                        return self.returns[index].1;
                    }
                    self.returns.swap_remove(index);
                }
                let target = self.push(RETURN, 0, 0, action);
                self.returns.push((action, target));
                target
            }
        }
    }

    fn jump(&mut self, code: u16, k: u32, yes: Exit, no: Exit) -> Exit {
        let yes = self.near(yes);
        let no = self.near(no);
        let here = self.code.len();
        Exit::At(self.push(code, (here - yes - 1) as u8, (here - no - 1) as u8, k))
    }

    /// Everything for one architecture.
    fn calls(&mut self, segments: &[Segment]) -> Exit {
        match self.search(&ranges(segments)) {
            Exit::At(root) => {
                if root + 1 != self.code.len() {
                    let distance = self.code.len() - root - 1;
                    self.push(JUMP, 0, 0, distance as u32);
                }
                Exit::At(self.load(OFFSET_NR))
            }
            exit => exit,
        }
    }

    /// Binary search for the range of the number in the accumulator.
    fn search(&mut self, ranges: &[&[Segment]]) -> Exit {
        match ranges {
            [] => unreachable!("segments cover every number"),
            [range] => self.range(range),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let first = high[0][0].first;
                let high = self.search(high);
                let low = self.search(low);
                self.jump(JUMP_GREATER_EQUAL, first, high, low)
            }
        }
    }

    /// Every other segment of a range is a single number.
    fn range(&mut self, range: &[Segment]) -> Exit {
        let mut next = self.target(&range[0].target);
        for single in range.iter().skip(1).step_by(2) {
            let target = self.target(&single.target);
            next = self.jump(JUMP_EQUAL, single.first, target, next);
        }
        next
    }

    fn target(&mut self, target: &Target) -> Exit {
        let (alternatives, otherwise) = match target {
            Target::Return(action) => return Exit::Return(*action),
            Target::Test { alternatives, otherwise } => (alternatives, *otherwise),
        };
        let mut next = Exit::Return(otherwise);
        for alternative in alternatives.iter().rev() {
            let mut matched = Exit::Return(alternative.action);
            for check in alternative.checks.iter().rev() {
                matched = self.check(check, matched, next);
            }
            next = matched;
        }
        next
    }

    /// 64-bit comparisons are made of 32-bit ones: the high words decide unless they are equal.
    fn check(&mut self, check: &Check, yes: Exit, no: Exit) -> Exit {
        let (yes, no) = if check.negated { (no, yes) } else { (yes, no) };
        let (low, high) = (check.value as u32, (check.value >> 32) as u32);
        let (low_word, high_word) = words(check.argument);
        match check.comparison {
            Comparison::Equal { mask } => {
                let yes = self.masked_equal(low_word, mask as u32, low, yes, no);
                if check.wide {
                    self.masked_equal(high_word, (mask >> 32) as u32, high, yes, no)
                } else {
                    yes
                }
            }
            Comparison::Greater | Comparison::GreaterOrEqual => {
                let code = match check.comparison {
                    Comparison::Greater => JUMP_GREATER,
                    _ => JUMP_GREATER_EQUAL,
                };
                self.jump(code, low, yes, no);
                let compare_low = Exit::At(self.load(low_word));
                if !check.wide {
                    return compare_low;
                }
                let equal = self.jump(JUMP_EQUAL, high, compare_low, no);
                self.jump(JUMP_GREATER, high, yes, equal);
                Exit::At(self.load(high_word))
            }
        }
    }

    /// Goes to `yes` if the word under `mask` is `value`.
    fn masked_equal(&mut self, word: u32, mask: u32, value: u32, yes: Exit, no: Exit) -> Exit {
        if mask == 0 {
            return yes;
        }
        self.jump(JUMP_EQUAL, value, yes, no);
        if mask != u32::MAX {
            self.push(AND, 0, 0, mask);
        }
        Exit::At(self.load(word))
    }
}

/// Cuts segments into ranges: one segment, or up to [`SINGLES`] more pairs of a single number and of
/// calls treated like the first ones.
fn ranges(segments: &[Segment]) -> Vec<&[Segment]> {
    let mut ranges = Vec::new();
    let mut rest = segments;
    while let [first, ..] = rest {
        let alike = |pair: &[Segment]| {
            pair[1].first == pair[0].first + 1
                && pair[1].target == first.target
                && matches!(first.target, Target::Return(_))
        };
        let pairs = rest[1..].chunks_exact(2).take(SINGLES).take_while(|pair| alike(pair)).count();
        let (range, behind) = rest.split_at(1 + 2 * pairs);
        ranges.push(range);
        rest = behind;
    }
    ranges
}

/// Offsets of the low and the high word of an argument.
fn words(argument: u8) -> (u32, u32) {
    let offset = OFFSET_ARGS + 8 * u32::from(argument);
    if cfg!(target_endian = "little") { (offset, offset + 4) } else { (offset + 4, offset) }
}
