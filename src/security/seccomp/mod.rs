//! Seccomp: `linux.seccomp` of config.json as a BPF program, and its loading.
//!
//! The program is written here rather than by libseccomp, which takes milliseconds for Docker's
//! default profile and would be the only dynamic library of the runtime. Verdicts follow runc with
//! libseccomp, since profiles are written for these; where the specification
//! (runtime-spec, config-linux.md, "Seccomp") leaves room, this is what holds:
//!
//! * **Architectures.** The native one always belongs to the filter, others of the host's family if
//!   listed (x32 and i386 with x86_64, arm with aarch64). Calls of an architecture that does not
//!   belong to it kill the thread. Listed architectures that this host cannot run are ignored.
//! * **Several rules for one call.** A rule without conditions beats all with conditions, and the
//!   first of several such rules counts. Among rules with conditions the first match counts, in
//!   this order: higher argument before lower; (masked) equality and inequality before `<` and `≤`
//!   before `>` and `≥`; then the narrower bound, the larger value, and the order in config.json.
//!   Two rules with the same conditions but different actions are an error.
//! * **Rules that repeat the default action** do nothing, even where another rule differs.
//! * **32-bit architectures and x32** compare the low 32 bits of arguments and values.
//! * **Newer calls.** If the default action refuses, calls newer than every call that the profile
//!   names for their architecture fail with ENOSYS, as with runc since 1.0.0-rc93: programs that
//!   probe for a new call cope with that, but not with EPERM or a signal.
//! * **i386's `socketcall` and `ipc`** follow the rules of the calls behind them. This is the one
//!   place that is stricter than libseccomp: a rule that allows a call under conditions is not
//!   extended to them, because the arguments are behind a pointer.
//! * **SCMP_ACT_NOTIFY** works for every call, also for those that the runtime itself makes, and as
//!   the default action: [`agent`] says how.
pub mod agent;
mod arch;
mod bpf;
mod profile;
#[cfg(test)]
mod tests;

use std::cmp::{Ordering, Reverse};
use std::os::fd::OwnedFd;

use anyhow::{Result, bail, ensure};
use libc::sock_filter;
use nix::errno::Errno;
use oci_spec::runtime::LinuxSeccomp;

pub use agent::Listener;
use arch::{Abi, Family};
use bpf::{Alternative, Check, Comparison, Segment, Target};
use profile::{Condition, Profile, Rule};

use crate::spec::Seccomp;

/// What calls of an architecture outside the profile get; libseccomp's default for them.
const UNKNOWN_ARCH: u32 = libc::SECCOMP_RET_KILL_THREAD;

/// A filter ready to be loaded.
#[derive(Debug)]
pub struct Filter {
    /// The classic BPF program.
    pub program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` bits for seccomp(2).
    pub flags: u32,
    /// Where the notification descriptor goes, if a rule has SCMP_ACT_NOTIFY.
    pub listener: Option<Listener>,
    /// What the profile asks for and the filter leaves out, one sentence each. Profiles are shared
    /// between kernels and architectures, so such findings are common and mostly harmless.
    pub warnings: Vec<String>,
}

impl Filter {
    /// What [`Filter::from_bytes`] makes the same filter of, in another process of the same program.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.program.len());
        bytes.extend(self.flags.to_ne_bytes());
        for sock_filter { code, jt, jf, k } in &self.program {
            bytes.extend(code.to_ne_bytes());
            bytes.extend([*jt, *jf]);
            bytes.extend(k.to_ne_bytes());
        }
        bytes
    }

    /// The filter that `bytes` are of and that was compiled from `seccomp`; none if there are none.
    ///
    /// # Errors
    /// Names the property of `seccomp` that does not fit, which there isn't.
    pub fn from_bytes(bytes: &[u8], seccomp: &Seccomp) -> Result<Option<Self>> {
        let Some((flags, program)) = bytes.split_first_chunk() else { return Ok(None) };
        let (instructions, _) = program.as_chunks::<8>();
        let program = instructions.iter().map(|[a, b, jt, jf, k @ ..]| sock_filter {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        });
        Ok(Some(Self {
            program: program.collect(),
            flags: u32::from_ne_bytes(*flags),
            listener: Listener::wanted(Some(seccomp))?,
            warnings: Vec::new(),
        }))
    }

    /// Loads the filter into the calling thread for good and returns the notification descriptor
    /// if there is a [`Filter::listener`]. NO_NEW_PRIVS is left as it is.
    pub fn load(&self) -> Result<Option<OwnedFd>> {
        crate::sys::seccomp::load(&self.program, self.flags).map_err(|errno| {
            let advice = match errno {
                Errno::EACCES => {
                    ": without process.noNewPrivileges the process needs CAP_SYS_ADMIN in its user \
                     namespace"
                }
                Errno::EINVAL => {
                    ": this kernel lacks seccomp filters, one of linux.seccomp.flags or an action"
                }
                Errno::EBUSY => ": another filter of this process already has a listener",
                _ => "",
            };
            anyhow::Error::new(errno).context(format!("loading linux.seccomp{advice}"))
        })
    }
}

/// Compiles a profile for the host's architectures.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Filter> {
    compile_for(arch::HOST, seccomp)
}

fn compile_for(family: &Family, seccomp: &LinuxSeccomp) -> Result<Filter> {
    let mut profile = Profile::read(family, seccomp)?;
    let flags = profile::flags(seccomp, profile.notifies)?;
    let listener = listener(seccomp, profile.notifies)?;

    let mut archs: Vec<(u32, Vec<Segment>)> = Vec::new();
    for (index, abi) in family.iter().enumerate() {
        if archs.last().is_none_or(|(audit, _)| *audit != abi.audit) {
            if !profile.abis[index].listed {
                continue;
            }
            archs.push((abi.audit, Vec::new()));
        }
        if let Some((_, segments)) = archs.last_mut() {
            add_segments(&mut profile, index, abi, segments)?;
        }
    }
    let program = bpf::assemble(&archs, UNKNOWN_ARCH);
    ensure!(program.len() <= bpf::MAX_INSTRUCTIONS, "{}", too_long(program.len()));

    let warnings = match profile.unknown.as_slice() {
        [] => Vec::new(),
        names => vec![format!(
            "linux.seccomp.syscalls: no architecture of this filter has these calls: {}",
            names.join(", ")
        )],
    };
    Ok(Filter { program, flags, listener, warnings })
}

fn too_long(instructions: usize) -> String {
    format!(
        "linux.seccomp.syscalls need {instructions} BPF instructions, the kernel takes {}: remove \
         argument conditions or architectures",
        bpf::MAX_INSTRUCTIONS
    )
}

fn listener(seccomp: &LinuxSeccomp, notifies: bool) -> Result<Option<Listener>> {
    let listener = Listener::of(seccomp);
    let set = |text: &str| !text.is_empty();
    let path = seccomp.listener_path().as_deref().and_then(std::path::Path::to_str);
    if notifies && listener.is_none() {
        bail!("linux.seccomp.listenerPath is missing: SCMP_ACT_NOTIFY needs a seccomp agent");
    }
    ensure!(
        path.is_some_and(set) || !seccomp.listener_metadata().as_deref().is_some_and(set),
        "linux.seccomp.listenerMetadata is set, but linux.seccomp.listenerPath is not"
    );
    Ok(listener)
}

/// Adds the number space of one ABI.
fn add_segments(
    profile: &mut Profile,
    index: usize,
    abi: &Abi,
    segments: &mut Vec<Segment>,
) -> Result<()> {
    let default = Target::Return(profile.default);
    let (first, last) = abi.numbers;
    if !profile.abis[index].listed {
        add(segments, first, Target::Return(UNKNOWN_ARCH));
        if last == u32::MAX {
            // -1 is no call: a tracer sets it to have the call skipped (seccomp(2)).
            add(segments, last, default);
        }
        return Ok(());
    }

    let calls = sorted(&profile.abis[index].calls, first);
    let mut next = first;
    for rules in calls.chunk_by(|a, b| a.0 == b.0) {
        let number = rules[0].0;
        if number > next {
            add(segments, next, Target::Return(profile.default));
        }
        add(segments, number, target(profile, abi, rules)?);
        next = number + 1;
    }
    // 0 counts as "no call known", as in runc: a profile of nothing but read would otherwise hide
    // all other calls.
    match profile.abis[index].newest {
        Some(newest) if profile.hides_newer && newest > 0 => {
            if next <= newest {
                add(segments, next, default);
            }
            let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
            add(segments, newest + 1, Target::Return(enosys));
        }
        _ => add(segments, next, default),
    }
    Ok(())
}

/// Calls from the number `first` on, by number, and by rule within one number.
fn sorted(calls: &[(u32, u32)], first: u32) -> Vec<(u32, u32)> {
    // Profiles are in the order of names, which is none. So each call gets a place by its number, and
    // what has one of its own is in order then.
    const PLACES: usize = 1024;
    let place = |number: u32| (number - first).min(PLACES as u32 - 1) as usize;
    let mut next = [0u32; PLACES + 1];
    calls.iter().for_each(|(number, _)| next[place(*number) + 1] += 1);
    for index in 0..PLACES {
        next[index + 1] += next[index];
    }
    let mut sorted = vec![(0, 0); calls.len()];
    for call in calls {
        let next = &mut next[place(call.0)];
        sorted[*next as usize] = *call;
        *next += 1;
    }
    sorted.sort_unstable();
    sorted
}

/// Appends a segment, or extends the last one if its calls are treated alike.
fn add(segments: &mut Vec<Segment>, first: u32, target: Target) {
    let extends = matches!(target, Target::Return(_))
        && segments.last().is_some_and(|last| last.target == target);
    if !extends {
        segments.push(Segment { first, target });
    }
}

/// What the rules of one call come to.
fn target(profile: &Profile, abi: &Abi, rules: &[(u32, u32)]) -> Result<Target> {
    let mut alternatives: Vec<(Alternative, &Rule)> = Vec::new();
    let mut conflict = None;
    for (_, rule) in rules {
        let rule = &profile.rules[*rule as usize];
        let checks = checks(abi, &profile.conditions[rule.conditions.clone()]);
        if checks.is_empty() {
            return Ok(Target::Return(rule.action));
        }
        // A rule that only narrows an earlier one says nothing new.
        match alternatives.iter().find(|(earlier, _)| checks.starts_with(&earlier.checks)) {
            Some((_, earlier)) => {
                let same = profile.conditions[rule.conditions.clone()]
                    == profile.conditions[earlier.conditions.clone()];
                if same && rule.action != earlier.action && !rule.derived && !earlier.derived {
                    conflict = conflict.or(Some((earlier.entry, rule.entry)));
                }
            }
            None => {
                // Two instructions each at least; stops the search above from getting slow, too.
                let instructions = 2 * alternatives.len();
                ensure!(instructions < bpf::MAX_INSTRUCTIONS, "{}", too_long(instructions));
                alternatives.push((Alternative { checks, action: rule.action }, rule));
            }
        }
    }
    if let Some((earlier, later)) = conflict {
        bail!(
            "linux.seccomp.syscalls[{earlier}] and [{later}] give different actions to the same \
             call under the same conditions: remove one"
        );
    }
    alternatives.sort_by(|(a, _), (b, _)| precedence(&a.checks, &b.checks));
    let alternatives = alternatives.into_iter().map(|(alternative, _)| alternative).collect();
    Ok(Target::Test { alternatives, otherwise: profile.default })
}

/// The conditions as the ABI can check them, without those that always hold.
fn checks(abi: &Abi, conditions: &[Condition]) -> Vec<Check> {
    let width = if abi.wide { u64::MAX } else { u64::from(u32::MAX) };
    let check = |condition: &Condition| {
        let Condition { argument, negated, .. } = *condition;
        let comparison = match condition.comparison {
            Comparison::Equal { mask } if mask & width == 0 => return None,
            Comparison::Equal { mask } => Comparison::Equal { mask: mask & width },
            other => other,
        };
        let value = condition.value & width;
        Some(Check { argument, negated, comparison, value, wide: abi.wide })
    };
    conditions.iter().filter_map(check).collect()
}

/// Which of two rules is tried first: libseccomp's order, as far as it is one (see the module's
/// documentation). The longer of two that begin alike comes first, or it would never match.
fn precedence(a: &[Check], b: &[Check]) -> Ordering {
    let key = |check: &Check| {
        let (class, value) = match (check.comparison, check.negated) {
            (Comparison::Equal { .. }, _) => (0, !check.value),
            (_, true) => (1, check.value),
            (_, false) => (2, !check.value),
        };
        (Reverse(check.argument), class, value)
    };
    let different = a.iter().zip(b).map(|(a, b)| key(a).cmp(&key(b))).find(|o| o.is_ne());
    different.unwrap_or_else(|| b.len().cmp(&a.len()))
}

/// What is served, as `features` shows it (runtime-spec features-linux.md, "Seccomp").
pub fn features() -> serde_json::Value {
    let flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    serde_json::json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE",
            "SCMP_ACT_TRAP"
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
        ],
        // Understood everywhere; those of other processor families change nothing.
        "archs": [
            "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K",
            "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL",
            "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PARISC",
            "SCMP_ARCH_PARISC64", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE",
            "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_SH",
            "SCMP_ARCH_SHEB", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"
        ],
        "knownFlags": flags,
        "supportedFlags": flags
    })
}
