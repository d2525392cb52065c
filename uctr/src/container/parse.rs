//! What users write on the command line: sizes, signals, durations.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use ultari::sys::process::{RTMAX, RTMIN};

/// Bytes: `100m`, `1.5g`, `1024`, `-1`.
///
/// # Errors
/// In docker's words.
pub fn parse_size(text: &str) -> Result<i64> {
    let bad = || format!("invalid size: '{text}'");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = lower[digits.len()..].trim_end_matches('b').trim_end_matches('i');
    let factor: i64 = match unit {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => anyhow::bail!(bad()),
    };
    let plain = |c: char| c.is_ascii_digit() || c == '.';
    let digits = digits.trim_end();
    ensure!(digits.chars().all(plain), bad());
    if let Ok(number) = digits.parse::<i64>() {
        return number.checked_mul(factor).with_context(bad);
    }
    let number: f64 = digits.parse().ok().with_context(bad)?;
    let bytes = number * factor as f64;
    ensure!(bytes < i64::MAX as f64, bad());
    Ok(bytes as i64)
}

/// A signal's number from its name (`TERM`, `SIGTERM`, `RTMIN+3`) or number.
///
/// # Errors
/// In docker's words.
pub fn parse_signal(text: &str) -> Result<i32> {
    let bad = || format!("Invalid signal: {text}");
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<i32>() {
        Ok(number) => number,
        Err(_) => {
            let offset = |rest: &str, sign: char| match rest {
                "" => Some(0),
                rest => rest.strip_prefix(sign)?.parse::<i32>().ok(),
            };
            let named = || format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32);
            match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(rest), _) => offset(rest, '+').map(|n| RTMIN + n),
                (_, Some(rest)) => offset(rest, '-').map(|n| RTMAX - n),
                _ => named(),
            }
            .with_context(bad)?
        }
    };
    ensure!((1..=RTMAX).contains(&number), bad());
    Ok(number)
}

/// `--cpus`: billionths of a processor.
///
/// # Errors
/// When it is no number that this host has, in docker's words.
pub fn parse_cpus(text: &str) -> Result<i64> {
    let number: f64 = text
        .parse()
        .ok()
        .with_context(|| format!("failed to parse {text} as a rational number"))?;
    ensure!(number.is_finite(), "failed to parse {text} as a rational number");
    check_cpus((number * 1e9).round() as i64)
}

/// As many processors as the host has.
fn check_cpus(billionths: i64) -> Result<i64> {
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let fine =
        billionths == 0 || (10_000_000..=available as i64 * 1_000_000_000).contains(&billionths);
    ensure!(
        fine,
        "range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available"
    );
    Ok(billionths)
}

/// `--detach-keys`: letters, and `ctrl-` with a letter or one of `@[\]^_`.
///
/// # Errors
/// When it is none of these.
pub fn parse_keys(text: &str) -> Result<Vec<u8>> {
    let key = |part: &str| -> Option<u8> {
        if let Some(name) = part.strip_prefix("ctrl-") {
            let [letter] = name.as_bytes() else { return None };
            return match letter.to_ascii_uppercase() {
                letter @ b'@'..=b'_' => Some(letter - b'@'),
                _ => None,
            };
        }
        let [letter] = part.as_bytes() else { return None };
        Some(*letter)
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let keys = text
        .split(',')
        .map(|part| key(part).with_context(|| format!("Unknown character: '{part}'")));
    keys.collect::<Result<_>>().with_context(|| format!("invalid detach keys ({text}) provided"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s40_sizes() {
        for (text, bytes) in [
            ("100m", 104_857_600),
            ("1.5g", 1_610_612_736),
            ("64K", 65536),
            ("1024", 1024),
            ("1kb", 1024),
            ("2MiB", 2 << 20),
            ("-1", -1),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "m", "x", "1x", "-2", "1e3", "99999999999g", "1..2m"] {
            parse_size(text).unwrap_err();
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("SIGKILL", 9), ("9", 9), ("usr1", 10)] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        assert_eq!(parse_signal("RTMIN+3").unwrap(), 37);
        for text in ["", "0", "65", "-1", "NOPE"] {
            assert_eq!(
                parse_signal(text).unwrap_err().to_string(),
                format!("Invalid signal: {text}")
            );
        }
    }

    #[test]
    fn s39_cpus() {
        assert_eq!(parse_cpus(".5").unwrap(), 500_000_000);
        for text in ["100000", "-1", "0.001"] {
            let error = parse_cpus(text).unwrap_err().to_string();
            assert!(error.contains("range of CPUs is from 0.01"), "{error}");
        }
        parse_cpus("x").unwrap_err();
    }

    #[test]
    fn s32_detach_keys() {
        assert_eq!(parse_keys("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(parse_keys("ctrl-@,a,ctrl-\\").unwrap(), [0, b'a', 28]);
        for text in ["ctrl-", "ctrl-1", "ab", ",", "a,"] {
            parse_keys(text).unwrap_err();
        }
    }
}
