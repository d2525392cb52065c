//! What every test builds on: one [`Sandbox`] a test, whose end checks that nothing is left.

mod agent;
mod command;
mod config;
mod console;
mod host;
mod json;
mod leftovers;
mod sandbox;
pub mod user;

pub use agent::{Agent, Answer, Supervised};
pub use command::{Output, Run};
pub use config::{bind, default_config, remove_namespace, set_namespace};
pub use console::{ConsoleSocket, Terminal};
pub use host::{HIERARCHIES, hierarchy, host, marked_processes, program};
pub use json::Json;
pub use sandbox::Sandbox;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long anything may take before the test fails; generous, for machines under load, and more
/// where `ULTARI_TEST_PATIENCE` says so, in seconds, for emulated ones.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| {
    let seconds = std::env::var("ULTARI_TEST_PATIENCE").map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(20))
});

/// Ends the test early, saying why; the number of skips is printed when the run ends.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::support::host().note_skip(&format!($($reason)*));
        return;
    }};
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < *PATIENCE, "waited in vain until {what}");
        host().reap_orphans();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The inode number that a namespace of this process has, such as `pid:[4026531836]`.
pub fn own_namespace(kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    link.display().to_string()
}
