//! From JSON to the types of the crate `oci-spec`: what is put right on the way, and what these
//! would take and should not.

use anyhow::{Result, anyhow, bail};
use oci_spec::runtime as oci;
use serde_json::Value;

use super::document::Document;

/// A limit of processes that is not set is none; the types would make it 0.
pub fn complete_resources(resources: &mut Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    let limit = |pids: &Value| pids.get("limit").is_some_and(|limit| !limit.is_null());
    if resources.get("pids").is_some_and(|pids| pids.is_object() && !limit(pids)) {
        resources.remove("pids");
    }
}

/// What the types are stricter about than the specification: names of capabilities that nobody
/// knows are to be a warning, and a missing user is root. Two flags of the scheduler have other
/// names there.
pub fn complete_process(process: &mut Value, warnings: &mut Vec<String>) {
    let Some(process) = process.as_object_mut() else { return };
    process.entry("user").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else { continue };
        names.retain(|name| {
            let known = !name.is_string() || is_capability(name);
            if !known {
                let warning = format!("process.capabilities: {name} is unknown here; ignored");
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
            known
        });
    }
}

fn is_capability(name: &Value) -> bool {
    serde_json::from_value::<oci::Capability>(name.clone()).is_ok()
}

/// Makes the typed value of `value`.
///
/// # Errors
/// With the path of the property that does not fit.
pub fn deserialize<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    deserialize_in("", value)
}

/// The same for a part, `within` the property of that path.
///
/// # Errors
/// As that.
pub fn deserialize_in<T: serde::de::DeserializeOwned>(within: &str, value: Value) -> Result<T> {
    check_shape(&value)?;
    // To know the path takes as long again: only when there is an error to name it in.
    if let Ok(typed) = T::deserialize(&value) {
        return Ok(typed);
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        match (within, path.as_str()) {
            ("", ".") => anyhow!("{error}"),
            ("", path) | (path, ".") => anyhow!("{path}: {error}"),
            (within, path) => anyhow!("{within}.{path}: {error}"),
        }
    })
}

/// As [`deserialize`], of a value that can be had `again` should it not fit: so its strings are moved
/// and not copied.
///
/// # Errors
/// As that.
pub fn deserialize_moved<T: serde::de::DeserializeOwned>(
    value: Value,
    again: impl FnOnce() -> Result<Value>,
) -> Result<T> {
    check_shape(&value)?;
    match T::deserialize(value) {
        Ok(typed) => Ok(typed),
        Err(_) => deserialize(again()?),
    }
}

/// Properties that are objects. The types would take an array for one, by the order of its fields.
const OBJECTS: [&str; 19] = [
    "root",
    "process",
    "user",
    "capabilities",
    "consoleSize",
    "scheduler",
    "ioPriority",
    "hooks",
    "linux",
    "resources",
    "memory",
    "cpu",
    "pids",
    "blockIO",
    "network",
    "seccomp",
    "personality",
    "intelRdt",
    "memoryPolicy",
];

/// Refuses arrays where the specification has objects.
fn check_shape(value: &Value) -> Result<()> {
    match misplaced_array(value) {
        Some(path) => bail!("{path}: must be an object, is an array"),
        None => Ok(()),
    }
}

/// The path of an array that should be an object, if there is any; put together only then.
fn misplaced_array(value: &Value) -> Option<String> {
    match value {
        Value::Object(properties) => properties.iter().find_map(|(name, property)| {
            if property.is_array() && OBJECTS.contains(&name.as_str()) {
                return Some(name.clone());
            }
            let below = misplaced_array(property)?;
            // An element's path starts with its index.
            let dot = if below.starts_with('[') { "" } else { "." };
            Some(format!("{name}{dot}{below}"))
        }),
        Value::Array(elements) => elements.iter().enumerate().find_map(|(index, element)| {
            if element.is_array() {
                return Some(format!("[{index}]"));
            }
            misplaced_array(element).map(|below| format!("[{index}].{below}"))
        }),
        _ => None,
    }
}

/// Properties of a config.json that the specification does not have.
pub fn unknown_properties(value: &Value) -> Vec<String> {
    unknown::<Document>(value)
}

/// The same for its object `linux.resources`.
pub fn unknown_resources(value: &Value) -> Vec<String> {
    unknown::<oci::LinuxResources>(value)
}

fn unknown<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let collect = |path: serde_ignored::Path| unknown.push(path.to_string().replace(".?", ""));
    // What is not of the right type is reported elsewhere.
    let _: Result<T, _> = serde_ignored::deserialize(value, collect);
    unknown
}

/// The properties that a config.json has, down to two levels below `process` and `linux`.
pub fn property_paths(value: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    let names = |value: &Value| -> Vec<String> {
        value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
    };
    for name in names(value) {
        if !matches!(name.as_str(), "process" | "linux" | "root" | "hooks") {
            paths.push(name);
            continue;
        }
        for inner in names(&value[&name]) {
            if inner != "resources" {
                paths.push(format!("{name}.{inner}"));
                continue;
            }
            let resources = names(&value[&name][&inner]);
            paths.extend(resources.into_iter().map(|last| format!("{name}.{inner}.{last}")));
        }
    }
    paths
}
