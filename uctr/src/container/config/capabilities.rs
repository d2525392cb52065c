//! Which capabilities a program has: docker's defaults with `--cap-add` and `--cap-drop`.

use anyhow::{Result, bail};

/// Docker's default.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// All that can be given here: this process may itself be without some.
#[must_use]
pub fn all() -> Vec<String> {
    let there = |index: &usize| ultari::sys::process::bounding_has(*index as u8).unwrap_or(false);
    let names = ultari::security::capabilities::names();
    names.into_iter().enumerate().filter(|(index, _)| there(index)).map(|(_, name)| name).collect()
}

/// The names as the kernel has them: `net_admin` is `CAP_NET_ADMIN`.
fn normalize(name: &str, known: &[String]) -> Result<String> {
    let upper = name.to_ascii_uppercase();
    let name = match upper.strip_prefix("CAP_") {
        Some(_) => upper.clone(),
        None => format!("CAP_{upper}"),
    };
    if upper == "ALL" {
        return Ok(upper);
    }
    if !known.contains(&name) {
        bail!("invalid capability: {name:?}");
    }
    Ok(name)
}

/// What a program gets.
///
/// # Errors
/// When one is none.
pub fn of(add: &[String], drop: &[String], privileged: bool) -> Result<Vec<String>> {
    let known = ultari::security::capabilities::names();
    let normal = |list: &[String]| -> Result<Vec<String>> {
        list.iter().map(|name| normalize(name, &known)).collect()
    };
    let (add, drop) = (normal(add)?, normal(drop)?);
    if privileged {
        return Ok(all());
    }
    let has = |list: &[String], name: &str| list.iter().any(|other| other == name);
    let mut result: Vec<String> = match (has(&add, "ALL"), has(&drop, "ALL")) {
        (true, _) => all().into_iter().filter(|name| !has(&drop, name)).collect(),
        (false, true) => Vec::new(),
        (false, false) => {
            DEFAULT.iter().filter(|name| !has(&drop, name)).map(|name| (*name).into()).collect()
        }
    };
    for name in add.into_iter().filter(|name| name != "ALL") {
        if !has(&result, &name) {
            result.push(name);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped() {
        let of = |add: &[&str], drop: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            of(&own(add), &own(drop), false)
        };
        assert_eq!(of(&[], &[]).unwrap().len(), 14);
        assert!(of(&["net_admin"], &[]).unwrap().contains(&"CAP_NET_ADMIN".into()));
        assert!(!of(&[], &["CAP_KILL"]).unwrap().contains(&"CAP_KILL".into()));
        assert_eq!(of(&["CHOWN"], &["all"]).unwrap(), ["CAP_CHOWN"]);
        assert_eq!(of(&["ALL"], &["mknod"]).unwrap().len(), all().len() - 1);
        assert!(of(&["nope"], &[]).unwrap_err().to_string().contains("CAP_NOPE"));
    }
}
