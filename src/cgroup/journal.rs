//! Changes of limits that may not last: what they overwrite, so that it can be taken back when a
//! later part is refused; or that they are only tried, and nothing is to be written at all.

use super::node::Node;
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;

pub(super) enum Journal {
    /// The steps that lead back, in the order of the writes that they undo.
    Undo(RefCell<Vec<Vec<Step>>>),
    /// Writes are left out, and files that are not there are read as empty ones.
    Trial,
}

impl Default for Journal {
    fn default() -> Self {
        Self::Undo(RefCell::default())
    }
}

/// A file by its full path, and a line to write to it.
pub(super) type Step = (String, String);

impl Journal {
    /// Remembers how to undo a write.
    pub(super) fn push(&self, steps: Vec<Step>) {
        if let Self::Undo(list) = self {
            list.borrow_mut().push(steps);
        }
    }

    pub(super) fn is_trial(&self) -> bool {
        matches!(self, Self::Trial)
    }

    /// Takes everything back, the last write first, so that each step finds what it found on the
    /// way there. Returns what could not be.
    pub(super) fn undo(self) -> Vec<String> {
        let mut failures = Vec::new();
        let Self::Undo(list) = self else { return failures };
        for (path, line) in list.into_inner().into_iter().rev().flatten() {
            let put = OpenOptions::new().write(true).open(&path);
            let put = put.and_then(|mut file| file.write_all(line.as_bytes()));
            if let Err(error) = put {
                failures.push(format!("{line:?} in {path} ({error})"));
            }
        }
        failures
    }
}

/// How to undo the write of `value` to `file`, to be asked before it. Nothing where the file can't
/// be read, because it is a command and not a setting.
pub(super) fn undo_of(node: &Node, file: &str, value: &str) -> Vec<Step> {
    let devices = matches!(file, "devices.allow" | "devices.deny");
    let Ok(mut old) = node.read_long(if devices { "devices.list" } else { file }) else {
        return Vec::new();
    };
    // An empty set stands for the parent's, but one with processes can't be emptied again.
    if old.trim().is_empty() && matches!(file, "cpuset.cpus" | "cpuset.mems") {
        old = node.read_long(&format!("{file}.effective")).unwrap_or(old);
    }
    let steps =
        if devices { undo_devices(file, &old, value) } else { undo_setting(file, &old, value) };
    steps.into_iter().map(|(file, line)| (format!("{}/{file}", node.path()), line)).collect()
}

fn undo_setting<'a>(file: &'a str, old: &str, value: &str) -> Vec<(&'a str, String)> {
    // Shown among counters, but written as a bare digit.
    if file == "memory.oom_control" {
        let disabled = old.lines().find_map(|line| line.strip_prefix("oom_kill_disable "));
        return disabled.map(|digit| (file, digit.to_owned())).into_iter().collect();
    }
    let mut steps = Vec::new();
    // Files with a line a device leave out the devices that have no limit.
    let device = value.split(' ').next().filter(|word| word.contains(':'));
    if let Some(device) = device
        && !old.lines().any(|line| line.split(' ').next() == Some(device))
    {
        let none = match file {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            _ if file.contains("weight") => "default",
            _ => "0",
        };
        steps.push((file, format!("{device} {none}")));
    }
    steps.extend(old.lines().map(|line| (file, line.to_owned())));
    steps
}

/// What one of the v1 devices files takes out of the list the other one puts into it, but for
/// `a`, which empties the list.
fn undo_devices(file: &str, old: &str, value: &str) -> Vec<(&'static str, String)> {
    let (allow, deny) = ("devices.allow", "devices.deny");
    if value != "a" {
        return vec![(if file == allow { deny } else { allow }, value.to_owned())];
    }
    if old.starts_with('a') {
        return vec![(allow, "a".to_owned())];
    }
    let list = old.lines().map(|line| (allow, line.to_owned()));
    std::iter::once((deny, "a".to_owned())).chain(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_put_back_as_they_can_be_written() {
        for (file, old, value, steps) in [
            ("cpu.max", "max 100000\n", "5000 10000", &["max 100000"][..]),
            ("cpuset.cpus", "0-1\n", "0", &["0-1"]),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", "1", &["0"]),
            ("io.weight", "default 100\n8:0 50\n", "200", &["default 100", "8:0 50"]),
            ("io.weight", "default 100\n", "8:0 50", &["8:0 default", "default 100"]),
            (
                "io.max",
                "8:16 rbps=7 wbps=max riops=max wiops=max\n",
                "8:1 rbps=9",
                &[
                    "8:1 rbps=max wbps=max riops=max wiops=max",
                    "8:16 rbps=7 wbps=max riops=max wiops=max",
                ],
            ),
            ("blkio.throttle.read_bps_device", "", "8:0 1", &["8:0 0"]),
            ("blkio.throttle.read_bps_device", "8:0 5\n", "8:0 1", &["8:0 5"]),
        ] {
            let lines: Vec<_> = undo_setting(file, old, value).into_iter().map(|s| s.1).collect();
            assert_eq!(lines, steps, "{file} {old:?} {value:?}");
        }
    }

    #[test]
    fn device_lists_are_put_back_line_by_line() {
        let old = "c 1:3 rwm\nb *:* m\n";
        let undo = |file, old, value| undo_devices(file, old, value);
        let text = |line: &str| line.to_owned();
        assert_eq!(undo("devices.deny", old, "b *:* m"), [("devices.allow", text("b *:* m"))]);
        assert_eq!(undo("devices.allow", old, "c 5:1 r"), [("devices.deny", text("c 5:1 r"))]);
        assert_eq!(undo("devices.deny", "a *:* rwm\n", "a"), [("devices.allow", text("a"))]);
        assert_eq!(
            undo("devices.allow", old, "a"),
            [
                ("devices.deny", text("a")),
                ("devices.allow", text("c 1:3 rwm")),
                ("devices.allow", text("b *:* m"))
            ]
        );
    }
}
