//! From the numbers of config.json, which speak cgroup v1, to what the kernel's files take.
//!
//! Zero means "not set" throughout, as in runc: engines send zeros for what they leave alone.

use anyhow::{Result, bail, ensure};

/// A number as long as it is not zero.
pub(super) fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// `cpu.shares` (2–262144, 1024 by default) as `cpu.weight` (1–10000, 100 by default).
///
/// The curve through the two minima, defaults and maxima that runc (from 1.3.2) and crun (from
/// 1.23) use: `10^((l² + 125·l) / 612 − 7/34)` with `l = log2(shares)`, rounded up. The straight
/// line of before gave 1024 shares a weight of 39, far below that of a host process.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
}

/// `blkio.weight` (10–1000) as `io.weight` (1–10000): a straight line, as runc and crun draw it.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

/// A block I/O weight within the range that both schedulers take.
pub(super) fn checked_weight(property: &str, weight: u16) -> Result<u16> {
    ensure!(
        (1..=1000).contains(&weight),
        "{property}: {weight} is out of range: a block I/O weight is 10 to 1000 (1 to 1000 with the BFQ scheduler)"
    );
    Ok(weight)
}

/// A limit as the v2 files take it: `max` for unlimited.
pub(super) fn or_max(property: &str, value: i64) -> Result<String> {
    match value {
        -1 => Ok("max".to_owned()),
        0.. => Ok(value.to_string()),
        _ => bail!("{property}: {value} is negative; -1 stands for unlimited"),
    }
}

/// A limit as the v1 files take it: -1 for unlimited.
pub(super) fn or_minus_one(property: &str, value: i64) -> Result<String> {
    ensure!(value >= -1, "{property}: {value} is negative; -1 stands for unlimited");
    Ok(value.to_string())
}

/// `pids.max`. Zero is a real limit, taken as one (the process itself), as runc does since 1.4 and
/// systemd has to; any negative number is unlimited.
pub(super) fn pids_max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        0 => "1".to_owned(),
        _ => limit.to_string(),
    }
}

/// Checks `memory.swap`, which counts memory and swap together, against `memory.limit`.
/// Both are as [`set`] leaves them.
pub(super) fn checked_swap(limit: Option<i64>, swap: Option<i64>) -> Result<()> {
    const SWAP: &str = "linux.resources.memory.swap";
    match (limit, swap) {
        (Some(limit @ ..-1), _) => {
            bail!("linux.resources.memory.limit: {limit} is negative; -1 stands for unlimited")
        }
        (_, None | Some(-1)) | (Some(-1), Some(0..)) => Ok(()),
        (_, Some(..0)) => {
            bail!("{SWAP}: {} is negative; -1 stands for unlimited", swap.unwrap_or_default())
        }
        (None, Some(_)) => bail!(
            "{SWAP}: a limit of memory and swap together needs a limit of memory: set linux.resources.memory.limit too"
        ),
        (Some(limit), Some(swap)) => {
            ensure!(
                swap >= limit,
                "{SWAP}: {swap} counts memory and swap together, so it can't be less than linux.resources.memory.limit, which is {limit}"
            );
            Ok(())
        }
    }
}

/// `memory.swap.max`, which counts swap alone; nothing if it is to be left alone.
pub(super) fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    checked_swap(limit, swap)?;
    Ok(match (limit, swap) {
        // Unlimited memory means unlimited swap, as it does on v1.
        (Some(-1), None) | (_, Some(-1)) => Some("max".to_owned()),
        (_, None) => None,
        (Some(-1) | None, Some(swap)) => Some(swap.to_string()),
        (Some(limit), Some(swap)) => Some((swap - limit).to_string()),
    })
}

/// Whether `size` is a huge page size as the kernel names its files, such as `2MB` or `1GB`.
pub(super) fn checked_page_size(property: &str, size: &str) -> Result<()> {
    let digits = size.trim_end_matches("KB").trim_end_matches("MB").trim_end_matches("GB");
    ensure!(
        size.len() == digits.len() + 2
            && !digits.is_empty()
            && !digits.starts_with('0')
            && digits.bytes().all(|byte| byte.is_ascii_digit()),
        "{property}: {size:?} is not a huge page size: write it as in /sys/kernel/mm/hugepages, in KB, MB or GB, such as \"2MB\""
    );
    Ok(())
}

/// Whether `name` names one of the cgroup's own files.
pub(super) fn checked_file_name(property: &str, name: &str) -> Result<()> {
    ensure!(
        !name.contains('/')
            && name != "."
            && name != ".."
            && !name.contains('\0')
            && name.contains('.'),
        "{property}: {name:?} is not the name of a cgroup file: it must be CONTROLLER.FILE, without a slash, such as \"memory.high\""
    );
    Ok(())
}

/// Whether a name of a device or interface can stand in a line `NAME VALUE`.
pub(super) fn checked_word(property: &str, name: &str) -> Result<()> {
    ensure!(
        !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control()),
        "{property}: {name:?} is not a device name"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_minimum_default_and_maximum_onto_weights() {
        let known = [
            (1, 1),
            (2, 1),
            (3, 2),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ];
        for (shares, weight) in known {
            assert_eq!(cpu_weight(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn more_shares_never_weigh_less() {
        let weights: Vec<u64> = (2..5000).map(cpu_weight).collect();
        assert!(weights.is_sorted());
    }

    #[test]
    fn block_io_weights_span_the_range() {
        assert_eq!((io_weight(10), io_weight(100), io_weight(1000)), (1, 910, 10_000));
        assert!(checked_weight("p", 0).is_err() && checked_weight("p", 1001).is_err());
    }

    #[test]
    fn swap_limit_is_the_difference_and_zero_is_a_limit() {
        assert_eq!(swap_max(Some(100), Some(150)).unwrap().as_deref(), Some("50"));
        assert_eq!(swap_max(Some(100), Some(100)).unwrap().as_deref(), Some("0"));
        assert_eq!(swap_max(Some(100), Some(-1)).unwrap().as_deref(), Some("max"));
        assert_eq!(swap_max(Some(-1), Some(70)).unwrap().as_deref(), Some("70"));
        assert_eq!(swap_max(Some(-1), None).unwrap().as_deref(), Some("max"));
        assert_eq!(swap_max(None, Some(-1)).unwrap().as_deref(), Some("max"));
        assert_eq!(swap_max(Some(100), None).unwrap(), None);
        assert_eq!(swap_max(None, None).unwrap(), None);
    }

    #[test]
    fn impossible_swap_limits_are_errors_that_name_the_property() {
        for (limit, swap) in [(None, 100), (Some(100), 99), (Some(100), -2)] {
            let error = swap_max(limit, Some(swap)).unwrap_err().to_string();
            assert!(error.starts_with("linux.resources.memory.swap"), "{error}");
        }
        let error = swap_max(Some(i64::MIN), Some(1 << 26)).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.memory.limit"), "{error}");
    }

    #[test]
    fn pids_limit_of_zero_leaves_the_process_itself() {
        assert_eq!(
            ["max", "max", "1", "7"],
            [-1, -5, 0, 7].map(pids_max).each_ref().map(String::as_str)
        );
    }

    #[test]
    fn unlimited_is_max_on_v2_and_minus_one_on_v1() {
        assert_eq!(or_max("p", -1).unwrap(), "max");
        assert_eq!(or_minus_one("p", -1).unwrap(), "-1");
        assert!(or_max("p", -2).is_err() && or_minus_one("p", -2).is_err());
    }

    #[test]
    fn page_sizes_and_file_names_cannot_leave_the_cgroup() {
        for good in ["2MB", "1GB", "64KB"] {
            checked_page_size("p", good).unwrap();
        }
        for bad in ["", "MB", "2", "02MB", "2TB", "../2MB", "2MBMB", "-2MB"] {
            assert!(checked_page_size("p", bad).is_err(), "{bad}");
        }
        checked_file_name("p", "memory.high").unwrap();
        for bad in ["../cgroup.procs", "a/b.c", "..", "memory", "", "x.\0"] {
            assert!(checked_file_name("p", bad).is_err(), "{bad}");
        }
        assert!(checked_word("p", "mlx5_0").is_ok() && checked_word("p", "a b").is_err());
    }
}
