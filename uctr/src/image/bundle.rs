//! An OCI bundle of an image: a root filesystem of all its layers, and a config.json.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::store::{Image, Store};
use super::unpack::{self, Kind};
use crate::container::config::{capabilities, user};

/// Of an image that sets none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the folder `dir` a bundle that `ultari run -b DIR` runs.
///
/// # Errors
/// When it exists already and isn't empty, or a layer can't be unpacked: nothing is left then.
pub fn unpack(store: &Store, image: &Image, dir: &Path, tty: bool) -> Result<()> {
    let _hold = store.hold()?;
    let (parent, name) = (dir.parent().unwrap_or(Path::new("")), dir.file_name());
    let name = name.with_context(|| format!("{}: has no name of its own", dir.display()))?;
    let is_free = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    ensure!(is_free, "{}: is there already, and no empty folder", dir.display());
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // Beside it, to be renamed when it is whole.
    let new = tempfile::Builder::new()
        .prefix(&format!(".{}-", name.to_string_lossy()))
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .with_context(|| format!("make a folder in {}", parent.display()))?;
    let rootfs = new.path().join("rootfs");
    fs::create_dir(&rootfs)
        .and_then(|()| fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("make folder {}", rootfs.display()))?;
    for layer in &image.layers {
        let mut blob = store.blob(layer.blob.digest())?;
        unpack::layer(&rootfs, Kind::Rootfs, &layer.blob, &layer.diff_id, &mut blob)
            .with_context(|| format!("unpack layer {}", layer.blob.digest()))?;
    }
    let config = config(image, &rootfs, tty)?;
    let text = serde_json::to_string_pretty(&config)?;
    fs::write(new.path().join("config.json"), format!("{text}\n")).context("write config.json")?;
    fs::rename(new.path(), dir).with_context(|| format!("rename to {}", dir.display()))?;
    // There is nothing left to clean up.
    let _ = new.keep();
    Ok(())
}

/// The runtime's default, with what the image says of its program and who runs it.
fn config(image: &Image, rootfs: &Path, tty: bool) -> Result<Value> {
    let mut spec = ultari::spec::default::config(None);
    let empty = oci_spec::image::Config::default();
    let config = image.config.config().as_ref().unwrap_or(&empty);
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut args = list(config.entrypoint());
    args.extend(list(config.cmd()));
    if args.is_empty() {
        args.push("sh".to_owned());
    }
    let mut env = list(config.env());
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(0, PATH.to_owned());
    }
    if tty {
        env.push("TERM=xterm".to_owned());
    }
    let cwd = config.working_dir().as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or("/");
    let named = config.user().as_deref().unwrap_or_default();
    let user = user::find(&user::open_root(rootfs)?, named, &[])?;
    let allowed = capabilities::of(&[], &[], false)?;
    let effective: &[String] = if user.uid == 0 { &allowed } else { &[] };
    let process = &mut spec["process"];
    process["terminal"] = json!(tty);
    process["args"] = json!(args);
    process["env"] = json!(env);
    process["cwd"] = json!(Path::new("/").join(cwd));
    process["user"] = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups});
    process["capabilities"] =
        json!({"bounding": allowed, "effective": effective, "permitted": effective});
    process["noNewPrivileges"] = json!(false);
    spec["root"] = json!({"path": "rootfs", "readonly": false});
    let mut annotations = json!({ "org.opencontainers.image.os": image.config.os() });
    for (key, value) in image.config.labels_of_config().into_iter().flatten() {
        annotations[key] = json!(value);
    }
    if let Some(signal) = config.stop_signal() {
        annotations["org.opencontainers.image.stopSignal"] = json!(signal);
    }
    spec["annotations"] = annotations;
    Ok(spec)
}
