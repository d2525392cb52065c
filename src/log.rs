//! Messages for people and engines: warnings and the one final error.
//!
//! Engines read the file of `--log`: one line a message, as logrus writes them for runc
//! (`{"level","msg","time"}` or `time=… level=… msg=…`).

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result};

/// How lines of the log file look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=… msg="…"`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug)]
struct Log {
    file: Option<File>,
    format: Format,
    debug: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Sends messages to `path` if given, else to standard error.
///
/// # Errors
/// When the file can't be opened.
pub fn init(path: Option<&Path>, format: Format, debug: bool) -> Result<()> {
    let open = |path: &Path| {
        let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        file.with_context(|| format!("--log {}", path.display()))
    };
    let file = path.map(open).transpose()?;
    // A second call, in tests of the library, keeps the first one's settings.
    let _ = LOG.set(Log { file, format, debug });
    Ok(())
}

/// Something odd that is no error.
pub fn warning(message: &str) {
    if !write_to_file("warning", message) {
        to_stderr(&format!("warning: {message}"));
    }
}

/// The same of something that is common with engines. Under some of them standard error is the
/// container's, and ends in its log or on its terminal: without a log file only a person at a
/// terminal is told, and if `by_hand`.
pub fn quiet_warning(message: &str, by_hand: bool) {
    let debug = LOG.get().is_some_and(|log| log.debug);
    let person = by_hand && std::io::stderr().is_terminal();
    if !write_to_file("warning", message) && (debug || person) {
        to_stderr(&format!("warning: {message}"));
    }
}

/// The error that ends the command: on standard error in any case.
pub fn error(message: &str) {
    write_to_file("error", message);
    to_stderr(&one_line(message));
}

/// What a developer wants to see with `--debug`.
pub fn debug(message: impl FnOnce() -> String) {
    if LOG.get().is_some_and(|log| log.debug) {
        let message = message();
        if !write_to_file("debug", &message) {
            to_stderr(&format!("debug: {message}"));
        }
    }
}

/// `eprintln!` would panic when nobody reads.
fn to_stderr(message: &str) {
    let _ = std::io::stderr().write_all(format!("ultari: {message}\n").as_bytes());
}

fn one_line(message: &str) -> String {
    message.trim_end().replace('\n', "; ")
}

fn write_to_file(level: &str, message: &str) -> bool {
    let Some(Log { file: Some(file), format, .. }) = LOG.get() else { return false };
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let line = match format {
        Format::Json => {
            serde_json::json!({"level": level, "msg": message, "time": time}).to_string()
        }
        Format::Text => format!("time={time:?} level={level} msg={:?}", one_line(message)),
    };
    // One write, so that lines of several processes do not mix. Nothing is left to tell of a
    // full disk.
    let mut file: &File = file;
    let _ = file.write_all(format!("{line}\n").as_bytes());
    true
}
