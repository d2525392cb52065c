//! `--device`, and all devices of the host for `--privileged`.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::container::record::{Device, HostConfig};

/// How deep folders of devices are looked through.
const MAX_DEPTH: u32 = 8;

struct Node {
    path: PathBuf,
    kind: &'static str,
    major: u64,
    minor: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    access: String,
}

/// Reads `--device host[:container[:rwm]]`.
///
/// # Errors
/// In docker's words.
pub fn parse(text: &str) -> Result<Device> {
    let parts: Vec<_> = text.split(':').collect();
    let is_access =
        |part: &str| !part.is_empty() && part.len() <= 3 && part.chars().all(|c| "rwm".contains(c));
    let (host, container, access) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, access] if is_access(access) => (host, host, access),
        [host, container] => (host, container, "rwm"),
        [host, container, access] => {
            ensure!(is_access(access), "invalid device mode: {access}");
            (host, container, access)
        }
        _ => bail!("invalid device specification: {text}"),
    };
    ensure!(
        host.starts_with('/') && container.starts_with('/'),
        "invalid device specification: {text}: paths must be absolute"
    );
    Ok(Device {
        path_on_host: host.into(),
        path_in_container: container.into(),
        cgroup_permissions: access.into(),
    })
}

/// `linux.devices`
///
/// # Errors
/// When one isn't there.
pub fn nodes(host: &HostConfig) -> Result<Vec<Value>> {
    let found = match host.privileged {
        true => {
            let mut found = Vec::new();
            walk(Path::new("/dev"), Path::new("/dev"), "rwm", MAX_DEPTH, &mut found)?;
            found.extend(chosen(&host.devices)?);
            found
        }
        false => chosen(&host.devices)?,
    };
    let node = |node: Node| {
        json!({
            "path": node.path, "type": node.kind, "major": node.major, "minor": node.minor,
            "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
        })
    };
    Ok(found.into_iter().map(node).collect())
}

/// `linux.resources.devices` for `--device`.
///
/// # Errors
/// When one isn't there.
pub fn rules(host: &HostConfig) -> Result<Vec<Value>> {
    let rule = |node: Node| {
        json!({
            "allow": true, "type": node.kind, "major": node.major, "minor": node.minor,
            "access": node.access,
        })
    };
    Ok(chosen(&host.devices)?.into_iter().map(rule).collect())
}

fn chosen(devices: &[Device]) -> Result<Vec<Node>> {
    let mut found = Vec::new();
    for device in devices {
        let path = device.path_on_host.canonicalize().with_context(|| {
            let path = device.path_on_host.display();
            format!("error gathering device information while adding custom device {path:?}")
        })?;
        let access = &device.cgroup_permissions;
        if path.is_dir() {
            walk(&path, &device.path_in_container, access, MAX_DEPTH, &mut found)?;
            continue;
        }
        let node = node(&path, &device.path_in_container, access)?;
        found.push(node.with_context(|| {
            let path = device.path_on_host.display();
            format!("error gathering device information while adding custom device {path:?}: not a device node")
        })?);
    }
    Ok(found)
}

fn node(path: &Path, inside: &Path, access: &str) -> Result<Option<Node>> {
    let info = std::fs::symlink_metadata(path).with_context(|| format!("{}", path.display()))?;
    let kind = match info.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        _ => return Ok(None),
    };
    Ok(Some(Node {
        path: inside.into(),
        kind,
        major: major(info.rdev()),
        minor: minor(info.rdev()),
        mode: info.mode() & 0o7777,
        uid: info.uid(),
        gid: info.gid(),
        access: access.into(),
    }))
}

fn walk(
    folder: &Path,
    inside: &Path,
    access: &str,
    depth: u32,
    found: &mut Vec<Node>,
) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, inside) = (entry.path(), inside.join(entry.file_name()));
        let name = entry.file_name();
        // What the container has of its own.
        let own = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];
        if inside.parent() == Some(Path::new("/dev")) && own.iter().any(|own| name == *own) {
            continue;
        }
        // It may be gone again.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            walk(&path, &inside, access, depth - 1, found)?;
        } else if let Ok(Some(node)) = node(&path, &inside, access) {
            found.push(node);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_three_parts() {
        let device = parse("/dev/null").unwrap();
        assert_eq!(device.path_in_container, Path::new("/dev/null"));
        assert_eq!(device.cgroup_permissions, "rwm");
        assert_eq!(parse("/dev/null:r").unwrap().cgroup_permissions, "r");
        let device = parse("/dev/null:/dev/x:rw").unwrap();
        assert_eq!(
            (device.path_in_container.to_str(), &*device.cgroup_permissions),
            (Some("/dev/x"), "rw")
        );
        for text in ["", "x", "/dev/null:/x:rwx", "/a:/b:r:c", "/a:b"] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn a_missing_device_is_named() {
        let host =
            HostConfig { devices: vec![parse("/dev/none-such").unwrap()], ..HostConfig::default() };
        let error = nodes(&host).unwrap_err().to_string();
        assert!(error.contains("error gathering device information"), "{error}");
    }
}
