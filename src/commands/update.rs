//! `update`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use ultari::container::Container;
use ultari::log;
use ultari::spec::{self, intel_rdt};

use crate::cli::Update;

pub fn update(root: &Path, args: Update) -> Result<()> {
    let container = Container::open(root, &args.container_id)?;
    let resources = match &args.resources {
        Some(path) => {
            let mut warnings = Vec::new();
            let resources = spec::parse_resources(&read(path)?, &mut warnings)
                .with_context(|| format!("--resources {}", path.display()))?;
            warnings.iter().for_each(|warning| log::warning(&format!("--resources: {warning}")));
            resources
        }
        None => spec::convert_resources(json!({
            "blockIO": {"weight": args.blkio_weight},
            "cpu": {
                "period": args.cpu_period,
                "quota": args.cpu_quota,
                "burst": args.cpu_burst,
                "realtimePeriod": args.cpu_rt_period,
                "realtimeRuntime": args.cpu_rt_runtime,
                "shares": args.cpu_share,
                "cpus": args.cpuset_cpus,
                "mems": args.cpuset_mems,
                "idle": args.cpu_idle,
            },
            "memory": {
                "limit": size("memory", args.memory)?,
                "reservation": size("memory-reservation", args.memory_reservation)?,
                "swap": size("memory-swap", args.memory_swap)?,
                "kernel": size("kernel-memory", args.kernel_memory)?,
                "kernelTCP": size("kernel-memory-tcp", args.kernel_memory_tcp)?,
            },
            "pids": {"limit": args.pids_limit},
        }))?,
    };
    let l3_cache = args.l3_cache_schema.as_deref();
    let shares = intel_rdt::schemata(l3_cache, args.mem_bw_schema.as_deref())?;
    container.update(&resources, &shares)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path != Path::new("-") {
        return std::fs::read(path)
            .with_context(|| format!("--resources: read {}", path.display()));
    }
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context("--resources: read standard input")?;
    Ok(text)
}

fn size(flag: &str, text: Option<String>) -> Result<Option<i64>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    parse_size(&text).map(Some).with_context(|| format!("invalid value for {flag}: {text:?}"))
}

/// A number of bytes as Docker's tools write it: `64m`, `1.5 GiB`, `1024`, or -1.
fn parse_size(text: &str) -> Result<i64> {
    const HINT: &str = "write a number of bytes, or one with a unit such as 512k, 64m or 1.5g";
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => bail!("the unit is unknown; {HINT}"),
    };
    let number = digits.strip_suffix(' ').unwrap_or(digits);
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    // Whole numbers beyond 2⁵³ must not be rounded.
    let whole = number.parse::<i64>().ok().and_then(|n| n.checked_mul(1 << (10 * power)));
    let fraction = || number.parse::<f64>().ok().map(|n| n * (1i64 << (10 * power)) as f64);
    match whole {
        Some(bytes) if plain => Ok(bytes),
        _ => match fraction().filter(|bytes| plain && *bytes < i64::MAX as f64) {
            Some(bytes) => Ok(bytes as i64),
            None => bail!("not a size; {HINT}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("-1", -1),
            ("4096", 4096),
            ("7b", 7),
            ("512k", 512 << 10),
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64mib", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 GiB", 2 << 30),
            ("3t", 3 << 40),
            ("1p", 1 << 50),
            ("9007199254740993", 9_007_199_254_740_993),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "m", "-2", "-1m", "+5", "1e3", "1x", "1ib", "1.2.3", "0x10", " 1", "9999p"]
        {
            parse_size(text).unwrap_err();
        }
    }
}
