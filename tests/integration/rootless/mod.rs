//! Containers of an ordinary user: id maps, what such a user may mount and limit, delegated
//! cgroups, and root in a user namespace, as podman runs us without root.

mod delegated;
mod life;
mod nested;
mod permitted;

use std::fs;

/// Leaves a test where there can be no ordinary user.
macro_rules! need_user {
    () => {
        if let Some(reason) = $crate::support::user::missing() {
            $crate::skip!("{reason}");
        }
    };
}

/// Leaves a test where the set-uid programs are not installed.
macro_rules! need_helpers {
    () => {
        if let Some(reason) = $crate::support::user::missing_with_helpers() {
            $crate::skip!("{reason}");
        }
    };
}

use need_helpers;
use need_user;

/// The field of /proc/PID/status.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}
