//! `linux.intelRdt`: a share of caches and memory bandwidth (the kernel's resctrl.rst).

use anyhow::{Result, ensure};
use oci_spec::runtime as oci;
use serde_json::{Value, json};

/// A checked `linux.intelRdt`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntelRdt {
    /// The group to be in, `/` being the default one; without it the container gets its own.
    pub clos_id: Option<String>,
    /// `l3CacheSchema`, a line.
    pub l3_cache_schema: Option<String>,
    /// `memBwSchema`, a line.
    pub mem_bw_schema: Option<String>,
    /// Lines that are written after these two.
    pub schemata: Vec<String>,
    /// Whether the container is monitored by itself.
    pub monitoring: bool,
}

impl IntelRdt {
    /// All lines for the `schemata` file, in the order of the specification.
    pub fn lines(&self) -> Vec<&str> {
        let first = self.l3_cache_schema.iter().chain(&self.mem_bw_schema);
        first.chain(&self.schemata).map(String::as_str).collect()
    }
}

/// Checks and converts `linux.intelRdt`.
///
/// # Errors
/// For a group that is no name, and schemata that are not one line each.
pub fn convert(rdt: &oci::LinuxIntelRdt) -> Result<IntelRdt> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let converted = IntelRdt {
        clos_id: given(rdt.clos_id()),
        l3_cache_schema: given(rdt.l3_cache_schema()),
        mem_bw_schema: given(rdt.mem_bw_schema()),
        schemata: rdt.schemata().clone().unwrap_or_default(),
        monitoring: rdt.enable_monitoring().unwrap_or(false),
    };
    if let Some(name) = &converted.clos_id {
        // The last three are what resctrl keeps in every group.
        let reserved = [".", "..", "info", "mon_data", "mon_groups"];
        let fine = name == "/" || !(name.contains(['/', '\0']) || reserved.contains(&&**name));
        ensure!(fine, "linux.intelRdt.closID: {name:?} can't be the name of a group");
    }
    if let Some(line) = &converted.mem_bw_schema {
        ensure!(
            line.starts_with("MB:"),
            "linux.intelRdt.memBwSchema: {line:?} does not begin with \"MB:\""
        );
    }
    for (property, line) in (converted.l3_cache_schema.iter().map(|line| ("l3CacheSchema", line)))
        .chain(converted.mem_bw_schema.iter().map(|line| ("memBwSchema", line)))
        .chain(converted.schemata.iter().map(|line| ("schemata", line)))
    {
        let one = !line.contains('\n') && line.contains(':');
        ensure!(one, "linux.intelRdt.{property}: {line:?} is not one line such as \"L3:0=ff\"");
    }
    Ok(converted)
}

/// The two schemata that `update` takes as flags, checked.
///
/// # Errors
/// As [`convert`].
pub fn schemata(l3_cache: Option<&str>, memory_bandwidth: Option<&str>) -> Result<IntelRdt> {
    let value = json!({"l3CacheSchema": l3_cache, "memBwSchema": memory_bandwidth});
    convert(&serde_json::from_value(value)?)
}

/// What older versions of the specification had and nobody ever implemented.
pub fn warn_of_old(linux: &Value, warnings: &mut Vec<String>) {
    for name in ["enableCMT", "enableMBM"] {
        if linux.pointer(&format!("/intelRdt/{name}")) == Some(&Value::Bool(true)) {
            warnings.push(format!(
                "linux.intelRdt.{name}: ignored; since 1.3 the specification has enableMonitoring"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdt(json: &str) -> Result<IntelRdt> {
        convert(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn schemata_come_last() {
        let converted = rdt(
            r#"{"schemata":["L2:0=f","MB:0=9"],"memBwSchema":"MB:0=5","l3CacheSchema":"L3:0=f"}"#,
        );
        assert_eq!(converted.unwrap().lines(), ["L3:0=f", "MB:0=5", "L2:0=f", "MB:0=9"]);
    }

    #[test]
    fn wrong_values_name_their_property() {
        for (json, property) in [
            (r#"{"closID":"a/b"}"#, "closID"),
            (r#"{"closID":".."}"#, "closID"),
            (r#"{"closID":"info"}"#, "closID"),
            (r#"{"memBwSchema":"L3:0=f"}"#, "memBwSchema"),
            (r#"{"memBwSchema":"MB:0=1\nL3:0=f"}"#, "memBwSchema"),
            (r#"{"l3CacheSchema":"L3:0=1\n"}"#, "l3CacheSchema"),
            (r#"{"schemata":["L3:0=1","x"]}"#, "schemata"),
        ] {
            let error = rdt(json).unwrap_err().to_string();
            assert!(error.starts_with(&format!("linux.intelRdt.{property}: ")), "{error}");
        }
        for name in ["/", "gold", "a.b"] {
            assert_eq!(rdt(&format!(r#"{{"closID":"{name}"}}"#)).unwrap().clos_id.unwrap(), name);
        }
    }
}
