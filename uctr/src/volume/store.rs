//! The volumes that there are: `<name>/_data`, and beside it what is known of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::paths::Paths;

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name, 64 hex digits if it was given none.
    pub name: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// Made for one container, and removed with it by `rm -v`.
    pub anonymous: bool,
    /// The container for which it was made, if it wasn't made by hand.
    pub container: Option<String>,
}

impl Volume {
    /// What is in it.
    #[must_use]
    pub fn data(&self, paths: &Paths) -> PathBuf {
        paths.volumes().join(&self.name).join("_data")
    }
}

/// A name for a volume that was given none.
pub fn anonymous_name() -> Result<String> {
    crate::network::random_id()
}

fn is_anonymous(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Refuses what could not be a folder's name.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    ensure!(
        name.len() > 1
            && name.len() <= 255
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(plain),
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use \
         absolute path"
    );
    Ok(())
}

/// Makes a volume, for a container or (with an empty text) by hand. One that is there stays as it is.
///
/// # Errors
/// When the name is none, or the folder can't be written.
pub fn create(
    paths: &Paths,
    name: &str,
    labels: BTreeMap<String, String>,
    container: &str,
) -> Result<Volume> {
    check_name(name)?;
    let folder = paths.volumes().join(name);
    let context = || format!("make the volume {}", folder.display());
    fs::create_dir_all(folder.join("_data")).with_context(context)?;
    if let Some(known) = find(paths, name)? {
        return Ok(known);
    }
    let volume = Volume {
        name: name.into(),
        created: jiff::Timestamp::now(),
        labels,
        anonymous: is_anonymous(name),
        container: Some(container.to_owned()).filter(|id| !id.is_empty()),
    };
    // Two that make it at once both write it whole.
    disk::replace(&folder.join("volume.json"), &volume)?;
    Ok(volume)
}

/// The volume of that name.
///
/// # Errors
/// When its record can't be read.
pub fn find(paths: &Paths, name: &str) -> Result<Option<Volume>> {
    if check_name(name).is_err() {
        return Ok(None);
    }
    let file = paths.volumes().join(name).join("volume.json");
    let context = || format!("read {}", file.display());
    match fs::read(&file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(context)?)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(context),
    }
}

/// All volumes, by name.
///
/// # Errors
/// When the folder can't be read.
pub fn list(paths: &Paths) -> Result<Vec<Volume>> {
    let folder = paths.volumes();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut volumes = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        if let Some(name) = entry.file_name().to_str() {
            volumes.extend(find(paths, name)?);
        }
    }
    volumes.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(volumes)
}

/// Removes a volume with all that is in it. Whether a container uses it, the caller has looked at.
///
/// # Errors
/// When there is none, or it can't be removed wholly.
pub fn remove(paths: &Paths, name: &str) -> Result<()> {
    if find(paths, name)?.is_none() {
        bail!("get {name}: no such volume");
    }
    let folder = paths.volumes().join(name);
    let context = || format!("remove the volume {}", folder.display());
    // Its record goes first: what a crash leaves is no volume, and is gone on with by `create`.
    fs::remove_file(folder.join("volume.json")).with_context(context)?;
    fs::remove_dir_all(&folder).with_context(context)
}
