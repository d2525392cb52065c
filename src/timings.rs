//! `--timings`: where the time of one container's start went.
//!
//! The runtime and the container's init each say when they are done with a step; a step began where
//! the one before it in the same process ended. Init writes into memory that both share, because
//! nobody is to wait for it. When nobody asked, a step costs one look at a flag.

mod chart;

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// How many steps there is room for; a container with more mounts lacks the last ones.
const STEPS: usize = 2000;
/// Words of a step: when it ended (ns), whose it is and the length of its name, its name.
const WORDS: usize = 11;
const NAME: usize = (WORDS - 2) * 8;

/// The first word counts the steps.
static SHARED: OnceLock<&'static [AtomicU64]> = OnceLock::new();
static IN_INIT: AtomicBool = AtomicBool::new(false);

/// One step of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whether the container's first process did it, or that of `exec`; else the runtime.
    pub init: bool,
    /// What was done.
    pub name: String,
    /// When it began, in nanoseconds since the program's start.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
}

/// From now on steps are taken down.
///
/// # Errors
/// When there is no memory.
pub fn begin() -> Result<()> {
    let words = crate::sys::process::shared_words(1 + STEPS * WORDS)
        .context("--timings: get memory to share with the container's init")?;
    // What came before this: the kernel's exec, the seal, libc's start. It did not wait for anything.
    let used = nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    if SHARED.set(words).is_ok() {
        write(words, nanoseconds(ClockId::CLOCK_MONOTONIC).saturating_sub(used), "");
        done(|| "start the program".into());
    }
    Ok(())
}

/// Says that a step has ended now.
pub fn done<'a>(name: impl FnOnce() -> std::borrow::Cow<'a, str>) {
    if let Some(words) = SHARED.get() {
        write(words, nanoseconds(ClockId::CLOCK_MONOTONIC), &name());
    }
}

/// As [`done`], for a name that needs no work.
pub fn step(name: &'static str) {
    done(|| name.into());
}

/// Says that this process is a new one, the container's.
pub fn enter_init() {
    if let Some(words) = SHARED.get() {
        IN_INIT.store(true, Ordering::Relaxed);
        write(words, nanoseconds(ClockId::CLOCK_MONOTONIC), "");
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).map_or(std::time::Duration::ZERO, std::time::Duration::from);
    time.as_nanos() as u64
}

fn write(words: &[AtomicU64], now: u64, name: &str) {
    let number = words[0].fetch_add(1, Ordering::Relaxed) as usize;
    let Some(words) = words.get(1 + number * WORDS..1 + (number + 1) * WORDS) else { return };
    let bytes = &name.as_bytes()[..name.len().min(NAME)];
    for (word, chunk) in words[2..].iter().zip(bytes.chunks(8)) {
        let mut text = [0; 8];
        text[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(text), Ordering::Relaxed);
    }
    let init = u64::from(IN_INIT.load(Ordering::Relaxed));
    words[1].store(init << 32 | bytes.len() as u64, Ordering::Relaxed);
    // Last: a step without a time isn't there.
    words[0].store(now, Ordering::Release);
}

/// All steps that have ended, in their order.
fn steps() -> Vec<Step> {
    let Some(words) = SHARED.get() else { return Vec::new() };
    let mut marks: Vec<_> = words[1..].chunks_exact(WORDS).filter_map(read).collect();
    marks.sort_by_key(|(end, ..)| *end);
    let start = marks.first().map_or(0, |(end, ..)| *end);
    let mut ends = [start; 2];
    let mut steps = Vec::new();
    for (end, init, name) in marks {
        let begin = std::mem::replace(&mut ends[usize::from(init)], end);
        // Without a name: a process begins.
        if !name.is_empty() {
            steps.push(Step { init, name, begin: begin - start, end: end - start });
        }
    }
    steps
}

fn read(words: &[AtomicU64]) -> Option<(u64, bool, String)> {
    let end = Some(words[0].load(Ordering::Acquire)).filter(|end| *end != 0)?;
    let what = words[1].load(Ordering::Relaxed);
    let name: Vec<u8> =
        words[2..].iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
    let name = name.get(..what as u32 as usize).unwrap_or_default();
    Some((end, what >> 32 != 0, String::from_utf8_lossy(name).into_owned()))
}

/// Writes all steps to `file`, by its name as a picture (`.svg`), for the trace viewers of Chrome and
/// Perfetto (`.json`) or as text; `-` is standard error.
///
/// # Errors
/// When the file can't be written.
pub fn report(file: &Path) -> Result<()> {
    let steps = steps();
    if steps.is_empty() {
        return Ok(());
    }
    if file == Path::new("-") {
        eprint!("{}", chart::text(&steps));
        return Ok(());
    }
    let text = match file.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => chart::svg(&steps),
        Some("json") => chart::trace(&steps).to_string(),
        _ => chart::text(&steps),
    };
    std::fs::write(file, text).with_context(|| format!("--timings: write {}", file.display()))
}
