//! `linux.netDevices`: network devices of the host that become the container's.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use oci_spec::runtime as oci;

/// One device to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// What it is called on the host.
    pub name: String,
    /// What it is to be called in the container; with `%d` the kernel chooses a number.
    pub target: String,
}

impl NetDevice {
    /// Whether the kernel completes the name in the container.
    pub fn is_template(&self) -> bool {
        self.target.contains('%')
    }
}

/// Checks and converts `linux.netDevices`; sorted, so that errors don't change from run to run.
///
/// # Errors
/// For what can't be a name, and for names that two devices would share.
pub fn convert(devices: &HashMap<String, oci::LinuxNetDevice>) -> Result<Vec<NetDevice>> {
    let mut converted: Vec<NetDevice> = Vec::with_capacity(devices.len());
    for (name, device) in devices {
        ensure!(is_name(name), "linux.netDevices: {name:?} can't be the name of a network device");
        let target = device.name().clone().filter(|target| !target.is_empty());
        let target = target.unwrap_or_else(|| name.clone());
        let fine = is_name(&target.replacen("%d", "0", 1)) && target.len() <= MAX_NAME;
        ensure!(
            fine,
            "linux.netDevices.{name}.name: {target:?} can't be the name of a network device (up to \
             {MAX_NAME} characters, no / : % or space, %d once for a number)"
        );
        converted.push(NetDevice { name: name.clone(), target });
    }
    converted.sort_by(|a, b| a.name.cmp(&b.name));
    for (index, device) in converted.iter().enumerate() {
        let other = converted[..index].iter().find(|other| other.target == device.target);
        if let Some(other) = other.filter(|other| !other.is_template()) {
            let (name, first, target) = (&device.name, &other.name, &device.target);
            anyhow::bail!("linux.netDevices.{name}.name: {first} is to be called {target} already");
        }
    }
    Ok(converted)
}

/// IFNAMSIZ without the NUL.
const MAX_NAME: usize = 15;

/// As the kernel's dev_valid_name, and without `%`, which is for templates.
fn is_name(name: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
    !name.is_empty() && name.len() <= MAX_NAME && !matches!(name, "." | "..") && !name.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(json: &str) -> Result<Vec<NetDevice>> {
        convert(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn names_come_from_the_host_unless_given() {
        let converted = devices(r#"{"b":{"name":"eth%d"},"a":{},"c":{"name":"eth%d"}}"#).unwrap();
        let pairs: Vec<_> = converted
            .iter()
            .map(|d| (d.name.as_str(), d.target.as_str(), d.is_template()))
            .collect();
        assert_eq!(pairs, [("a", "a", false), ("b", "eth%d", true), ("c", "eth%d", true)]);
    }

    #[test]
    fn impossible_names_are_refused_by_property() {
        for (json, property) in [
            (r#"{"":{}}"#, "linux.netDevices: "),
            (r#"{"a/b":{}}"#, "linux.netDevices: "),
            (r#"{"eth%d":{}}"#, "linux.netDevices: "),
            (r#"{"abcdefghijklmnop":{}}"#, "linux.netDevices: "),
            (r#"{"a":{"name":"x y"}}"#, "linux.netDevices.a.name: "),
            (r#"{"a":{"name":".."}}"#, "linux.netDevices.a.name: "),
            (r#"{"a":{"name":"e%s"}}"#, "linux.netDevices.a.name: "),
            (r#"{"a":{"name":"e%d%d"}}"#, "linux.netDevices.a.name: "),
            (r#"{"a":{"name":"abcdefghijklmn%d"}}"#, "linux.netDevices.a.name: "),
            (r#"{"a":{"name":"x"},"b":{"name":"x"}}"#, "linux.netDevices.b.name: "),
            (r#"{"x":{},"a":{"name":"x"}}"#, "linux.netDevices.x.name: "),
        ] {
            let error = devices(json).unwrap_err().to_string();
            assert!(error.starts_with(property), "{json}: {error}");
        }
    }
}
