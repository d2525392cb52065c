//! Lists of processors and memory nodes, such as `0-3,7`.

use anyhow::{Result, bail, ensure};

/// How many processors a kernel can be built for (`CONFIG_NR_CPUS`).
pub const MAX_CPUS: usize = 8192;
/// How many memory nodes a kernel can be built for (`CONFIG_NODES_SHIFT`).
pub const MAX_NODES: usize = 1024;

/// The numbers of `text` as bits, 64 a word; all of them are below `limit`.
///
/// # Errors
/// Names `property` and the part that is wrong.
pub fn parse(property: &str, text: &str, limit: usize) -> Result<Vec<u64>> {
    let number = |digits: &str| {
        // A sign would be taken too otherwise.
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<usize>().ok().filter(|_| plain)
    };
    let mut words: Vec<u64> = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            bail!("{property}: {part:?} in {text:?} is neither a number nor a range such as 0-3");
        };
        ensure!(first <= last, "{property}: the range {part} in {text:?} runs backwards");
        ensure!(last < limit, "{property}: {last} is more than any kernel has ({})", limit - 1);
        words.resize(words.len().max(last / 64 + 1), 0);
        for number in first..=last {
            words[number / 64] |= 1 << (number % 64);
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_become_bits() {
        assert_eq!(parse("p", "0-3,7", 64).unwrap(), [0b1000_1111]);
        assert_eq!(parse("p", "65,1", 100).unwrap(), [2, 2]);
        assert_eq!(parse("p", "63-64", 100).unwrap(), [1 << 63, 1]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in ["", "a", "1,", ",1", "-1", "+1", "1-", "1--2", "3-1", "0-100", "1 ", "0x1"] {
            let error = parse("the.property", text, 100).unwrap_err().to_string();
            assert!(error.starts_with("the.property: "), "{text:?}: {error}");
        }
    }
}
