//! `uctr stats`

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use crate::container::{self, Container, NotFound};
use crate::output::{self, Listing};
use crate::paths::Paths;

/// Between two looks, of which the use of processors is told.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Also those that don't run
    #[arg(short, long)]
    all: bool,
    /// How it is printed: table, table TEMPLATE, json, or a Go template for each container
    #[arg(long)]
    format: Option<String>,
    /// Only one look
    #[arg(long)]
    no_stream: bool,
    /// Nothing is cut
    #[arg(long)]
    no_trunc: bool,
    /// Names or IDs; all that run unless given
    containers: Vec<String>,
}

const LISTING: Listing = Listing {
    default: "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t\
              {{.BlockIO}}\t{{.PIDs}}",
    titles: &[
        ("Container", "CONTAINER"),
        ("ID", "CONTAINER ID"),
        ("Name", "NAME"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
};

pub fn run(paths: &Paths, args: &Args) -> Result<u8> {
    let mut before: Vec<(String, Look)> = Vec::new();
    let screen = std::io::stdout().is_terminal() && !args.no_stream;
    // The first look only begins to count.
    let mut first = true;
    loop {
        let mut now = Vec::new();
        let mut rows = Vec::new();
        for (asked, container) in chosen(paths, args)? {
            let id = &container.record.id;
            let look = Look::at(&container);
            let last = before.iter().find(|(other, _)| other == id).map(|(_, look)| look);
            rows.push(row(&asked, &container, &look, last, args.no_trunc));
            now.push((id.clone(), look));
        }
        before = now;
        if !std::mem::take(&mut first) {
            let text = LISTING.render(args.format.as_deref(), &rows)?;
            let clear = if screen { "\x1b[2J\x1b[H" } else { "" };
            output::print(&format!("{clear}{text}"))?;
            if args.no_stream {
                return Ok(0);
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The containers, and how they were asked for.
fn chosen(paths: &Paths, args: &Args) -> Result<Vec<(String, Container)>> {
    if args.containers.is_empty() {
        let all = container::list(paths)?.into_iter();
        return Ok(all
            .filter(|container| args.all || container.state().status.is_alive())
            .map(|container| (container.record.id.clone(), container))
            .collect());
    }
    let mut found = Vec::new();
    for name in &args.containers {
        match container::find(paths, name) {
            Ok(container) => found.push((name.clone(), container)),
            // It was removed while it was looked at.
            Err(error)
                if error.is::<NotFound>() && args.containers.len() > 1 && !args.no_stream => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// What a container uses and has used.
#[derive(Clone, Copy, Debug)]
struct Look {
    when: Instant,
    /// Nanoseconds of all processors.
    cpu: u64,
    memory: u64,
    limit: u64,
    received: u64,
    sent: u64,
    read: u64,
    written: u64,
    pids: u64,
}

impl Look {
    /// All is zero of a container that doesn't run.
    fn at(container: &Container) -> Self {
        let mut look = Self {
            when: Instant::now(),
            cpu: 0,
            memory: 0,
            limit: 0,
            received: 0,
            sent: 0,
            read: 0,
            written: 0,
            pids: 0,
        };
        let Ok(runtime) = super::running(container) else { return look };
        let Some(stats) = runtime.stats().ok().and_then(|stats| serde_json::to_value(stats).ok())
        else {
            return look;
        };
        let number = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        look.cpu = number("/cpu/usage/total");
        // What was read of files and is not in use any more could be taken back at any time.
        let raw = |name: &str| number(&format!("/memory/raw/{name}"));
        let inactive = raw("total_inactive_file").max(raw("inactive_file"));
        look.memory = number("/memory/usage/usage").saturating_sub(inactive);
        let total = memory_of_host();
        look.limit = match number("/memory/usage/limit") {
            0 => total,
            limit => limit.min(total),
        };
        look.pids = number("/pids/current");
        (look.read, look.written) = block_io(&stats);
        let pid = container.state().pid;
        if own_network(pid) {
            let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
            (look.received, look.sent) = network(&text);
        }
        look
    }
}

fn own_network(pid: i32) -> bool {
    let namespace =
        |process: &str| fs::read_link(Path::new("/proc").join(process).join("ns/net")).ok();
    let its = namespace(&pid.to_string());
    its.is_some() && its != namespace("self")
}

/// Bytes received and sent by all devices but the loopback.
fn network(text: &str) -> (u64, u64) {
    let (mut received, mut sent) = (0, 0);
    for line in text.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> =
            counters.split_ascii_whitespace().filter_map(|counter| counter.parse().ok()).collect();
        received += counters.first().copied().unwrap_or(0);
        sent += counters.get(8).copied().unwrap_or(0);
    }
    (received, sent)
}

/// Bytes read from and written to disks.
fn block_io(stats: &Value) -> (u64, u64) {
    let entries = stats["blkio"]["ioServiceBytesRecursive"].as_array();
    let sum = |wanted: &str| {
        let same = entries
            .into_iter()
            .flatten()
            .filter(|entry| entry["op"].as_str().is_some_and(|op| op.eq_ignore_ascii_case(wanted)));
        same.filter_map(|entry| entry["value"].as_u64()).sum()
    };
    (sum("read"), sum("write"))
}

fn memory_of_host() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.map_or(u64::MAX, |kilobytes: u64| kilobytes * 1024)
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn row(asked: &str, container: &Container, look: &Look, last: Option<&Look>, whole: bool) -> Value {
    let percent = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    let cpu = last.map_or(0.0, |last| {
        let used = look.cpu.saturating_sub(last.cpu) as f64;
        percent(used, look.when.duration_since(last.when).as_nanos() as f64)
    });
    let id = if whole { container.record.id.as_str() } else { container.short_id() };
    json!({
        "BlockIO": format!("{} / {}", output::size(look.read), output::size(look.written)),
        "CPUPerc": format!("{cpu:.2}%"),
        "Container": asked,
        "ID": id,
        "MemPerc": format!("{:.2}%", percent(look.memory as f64, look.limit as f64)),
        "MemUsage": format!(
            "{} / {}",
            output::binary_size(look.memory),
            output::binary_size(look.limit)
        ),
        "Name": container.record.name,
        "NetIO": format!("{} / {}", output::size(look.received), output::size(look.sent)),
        "PIDs": look.pids.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s63_counters_of_devices_are_summed() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    \
                    lo:     500       5    0    0    0     0          0         0      500 5 0 0 0 0 0 0\n  \
                    eth0:    1000      10    0    0    0     0          0         0     2000 20 0 0 0 0 0 0\n  \
                    eth1: 1 1 0 0 0 0 0 0 2 2 0 0 0 0 0 0\n";
        assert_eq!(network(text), (1001, 2002));
    }

    #[test]
    fn s63_reads_and_writes_of_disks_are_summed() {
        let entry = |op: &str, value| json!({ "major": 8, "minor": 0, "op": op, "value": value });
        let entries =
            json!([entry("Read", 5), entry("Write", 7), entry("read", 1), entry("Sync", 9)]);
        let stats = json!({ "blkio": { "ioServiceBytesRecursive": entries } });
        assert_eq!(block_io(&stats), (6, 7));
    }
}
