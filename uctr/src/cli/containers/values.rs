//! What the values of flags of `run` and `create` mean.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::container::record::{RestartPolicy, Ulimit};
use crate::network::Wish;

/// `NETWORK`, or `name=NETWORK,ip=…,alias=…`
pub fn wish(flag: &str) -> Result<Wish> {
    if !flag.contains('=') {
        let network = if flag == "default" { "bridge" } else { flag };
        return Ok(Wish { network: network.into(), ..Wish::default() });
    }
    let mut wish = Wish::default();
    for field in flag.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "name" => wish.network = value.into(),
            "alias" => wish.aliases.push(value.into()),
            "ip" | "ip6" => {
                let address = value.parse();
                wish.ip.push(address.with_context(|| format!("--network {flag}: {value}"))?);
            }
            "mac-address" => wish.mac = Some(value.into()),
            _ => bail!("--network {flag}: unknown field {key:?}"),
        }
    }
    ensure!(!wish.network.is_empty(), "network name/id is not specified");
    Ok(wish)
}

/// `--restart`
pub fn restart_policy(text: &str) -> Result<RestartPolicy> {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, Some(count)),
        None => (text, None),
    };
    let name = if name.is_empty() { "no" } else { name };
    ensure!(
        matches!(name, "no" | "always" | "unless-stopped" | "on-failure"),
        "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    );
    ensure!(
        count.is_none() || name == "on-failure",
        "invalid restart policy: maximum retry count can only be used with 'on-failure'"
    );
    let count = count.map(|count| {
        count.parse().with_context(|| {
            format!("invalid restart policy: {text}: maximum retry count must be an integer")
        })
    });
    Ok(RestartPolicy { name: name.into(), maximum_retry_count: count.transpose()?.unwrap_or(0) })
}

/// `NAME=VALUE`, of each.
pub fn pairs(flag: &str, list: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (name, value) =
            text.split_once('=').with_context(|| format!("{flag} {text}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    list.iter().map(pair).collect()
}

/// `--ulimit NAME=SOFT[:HARD]`
pub fn ulimit(text: &str) -> Result<Ulimit> {
    const NAMES: [&str; 16] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
        "as",
    ];
    let bad = || format!("invalid ulimit argument: {text}");
    let (name, values) = text.split_once('=').with_context(bad)?;
    ensure!(NAMES.contains(&name), "invalid ulimit type: {name}");
    let number = |text: &str| match text {
        "unlimited" => Ok(-1),
        text => text.parse::<i64>().ok().filter(|number| *number >= -1).with_context(bad),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    ensure!(
        hard == -1 || (soft != -1 && soft <= hard),
        "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
    );
    Ok(Ulimit { name: name.into(), soft, hard })
}

/// `-e` and `--env-file`; a name alone has the caller's value, and without one is left out of the
/// environment.
pub fn environment(flags: &[String], files: &[PathBuf]) -> Result<Vec<String>> {
    let mut env = Vec::new();
    for path in files {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("open {}", path.display()))?;
        for line in text.lines().map(str::trim_start) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let name = line.split('=').next().unwrap_or_default();
            ensure!(
                !name.is_empty() && !name.contains(char::is_whitespace),
                "invalid env file ({}): variable '{name}' contains whitespaces, or no name on line: {line}",
                path.display()
            );
            env.push(line.to_owned());
        }
    }
    env.extend(flags.iter().cloned());
    let mut result: Vec<String> = Vec::new();
    for entry in env {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        ensure!(!name.is_empty(), "invalid environment variable: {entry}");
        ensure!(!entry.contains('\0'), "invalid environment variable: NUL in {name}");
        result.retain(|other| other.split('=').next() != Some(&name));
        match (entry.contains('='), std::env::var(&name)) {
            (true, _) => result.push(entry),
            (false, Ok(value)) => result.push(format!("{name}={value}")),
            (false, Err(_)) => {}
        }
    }
    Ok(result)
}

/// `--label` and `--label-file`
pub fn labels(flags: &[String], files: &[PathBuf]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut add = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        labels.insert(name.to_owned(), value.to_owned());
    };
    for path in files {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("open {}", path.display()))?;
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).for_each(&mut add);
    }
    flags.iter().for_each(|flag| add(flag));
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies() {
        let policy = restart_policy("on-failure:3").unwrap();
        assert_eq!((policy.name.as_str(), policy.maximum_retry_count), ("on-failure", 3));
        assert_eq!(restart_policy("").unwrap().name, "no");
        for text in ["sometimes", "always:3", "on-failure:x"] {
            let error = restart_policy(text).unwrap_err().to_string();
            assert!(error.contains("invalid restart policy"), "{error}");
        }
    }

    #[test]
    fn ulimits() {
        let limit = ulimit("nofile=100:200").unwrap();
        assert_eq!((limit.soft, limit.hard), (100, 200));
        assert_eq!(ulimit("core=unlimited").unwrap().hard, -1);
        for text in ["nofile", "nope=1", "nofile=3:2", "nofile=a", "core=-1:5"] {
            ulimit(text).unwrap_err();
        }
    }

    #[test]
    fn s37_environment_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "# no\n\nA=1\n  B=2 x\nUCTR_NO_SUCH\nPATH\n").unwrap();
        let env = environment(&["A=3".into()], &[file.path().into()]).unwrap();
        assert_eq!(env[0], "B=2 x");
        assert!(env[1].starts_with("PATH=/"));
        assert_eq!(env[2], "A=3");
        std::fs::write(&file, "A B=1\n").unwrap();
        environment(&[], &[file.path().into()]).unwrap_err();
    }
}
