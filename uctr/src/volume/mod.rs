//! Volumes and mounts: `-v`, `--mount`, `--tmpfs`.

mod fill;
mod flags;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;
pub use fill::fill;
use flags::{Source, Spec};
pub use store::{Volume, create, find, list, remove};

/// What is mounted where in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// The volume's name, if it is one.
    pub name: Option<String>,
    /// On the host.
    pub source: Option<PathBuf>,
    /// In the container.
    pub destination: PathBuf,
    /// As config.json has them (`ro`, `rslave`, `size=…`).
    pub options: Vec<String>,
    /// An empty volume gets what the image has there.
    pub copy: bool,
}

/// Works out all mounts of a container, and makes the volumes that are not there yet. Those that are
/// mounted on others come after them.
///
/// # Errors
/// In docker's words: a missing source of `--mount type=bind`, a path that isn't absolute, the same
/// destination twice … Nothing is made then.
pub fn resolve(
    paths: &Paths,
    container: &str,
    volume_flags: &[String],
    mount_flags: &[String],
    tmpfs_flags: &[String],
    image_volumes: &[String],
) -> Result<Vec<MountPoint>> {
    let mut specs = BTreeMap::new();
    let mut add = |spec: Spec| {
        let destination = spec.destination.clone();
        match specs.insert(destination.clone(), spec) {
            Some(_) => bail!("Duplicate mount point: {}", destination.display()),
            None => Ok(()),
        }
    };
    for flag in volume_flags {
        add(flags::volume(flag)?)?;
    }
    for flag in mount_flags {
        let spec = flags::mount(flag);
        add(spec.with_context(|| format!("invalid argument \"{flag}\" for \"--mount\" flag"))?)?;
    }
    for flag in tmpfs_flags {
        add(flags::tmpfs(flag)?)?;
    }
    for destination in image_volumes {
        let spec = flags::image_volume(destination)?;
        // What the user mounts there is used instead.
        specs.entry(spec.destination.clone()).or_insert(spec);
    }
    // In the order of their paths, so that a folder comes before what is below it.
    let mut made = Vec::new();
    let mounts: Result<_> =
        specs.into_values().map(|spec| point(paths, container, spec, &mut made)).collect();
    if mounts.is_err() {
        for name in made {
            // The first error is the one to report.
            let _ = remove(paths, &name);
        }
    }
    mounts
}

/// Makes what a mount needs on the host; the names of new volumes are added to `made`.
fn point(paths: &Paths, container: &str, spec: Spec, made: &mut Vec<String>) -> Result<MountPoint> {
    let Spec { source, destination, options, copy } = spec;
    let (kind, name, source) = match source {
        Source::Tmpfs => ("tmpfs", None, None),
        Source::Path { path, make } => {
            if make && path.symlink_metadata().is_err() {
                std::fs::create_dir_all(&path)
                    .with_context(|| format!("make the missing folder {}", path.display()))?;
            }
            ("bind", None, Some(path))
        }
        Source::Volume { name, labels } => {
            let wanted = name.map_or_else(store::anonymous_name, Ok)?;
            let known = find(paths, &wanted)?;
            let volume = match known {
                Some(volume) => volume,
                None => {
                    made.push(wanted.clone());
                    create(paths, &wanted, labels, container)?
                }
            };
            ("volume", Some(wanted), Some(volume.data(paths)))
        }
    };
    Ok(MountPoint { kind: kind.into(), name, source, destination, options, copy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { data: dir.path().join("data"), run: dir.path().join("run") };
        (dir, paths)
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn s82_mounts_come_in_the_order_of_their_places() {
        let (dir, paths) = paths();
        let bind = format!("{}/missing:/a/b:ro", dir.path().display());
        let mounts = resolve(
            &paths,
            "c1",
            &strings(&[&bind, "data:/a", "/anonymous"]),
            &[],
            &strings(&["/run:size=1m"]),
            &strings(&["/a", "/srv/"]),
        )
        .unwrap();
        let found: Vec<_> =
            mounts.iter().map(|m| (m.kind.as_str(), m.destination.to_str().unwrap())).collect();
        assert_eq!(
            found,
            [
                ("volume", "/a"),
                ("bind", "/a/b"),
                ("volume", "/anonymous"),
                ("tmpfs", "/run"),
                ("volume", "/srv")
            ]
        );
        assert!(dir.path().join("missing").is_dir());
        assert!(mounts[1].options.contains(&"ro".into()));
        assert_eq!(mounts[0].name.as_deref(), Some("data"));
        assert_eq!(mounts[2].name.as_ref().unwrap().len(), 64);
        assert_eq!(list(&paths).unwrap().len(), 3);
    }

    #[test]
    fn s83_errors_leave_no_volumes() {
        let (_dir, paths) = paths();
        for (volumes, mounts, words) in [
            (&["data:/a", "other:/a/"][..], &[][..], "Duplicate mount point: /a"),
            (&["data:/a"], &["type=bind,src=/nowhere/at/all,dst=/b"], "does not exist: /nowhere"),
            (&["data:/a", "x:b"], &[], "mount path must be absolute"),
        ] {
            let (volumes, mounts) = (strings(volumes), strings(mounts));
            let error = resolve(&paths, "c1", &volumes, &mounts, &[], &[]).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{error:#}");
            assert!(list(&paths).unwrap().is_empty());
        }
    }
}
