//! What the flags say, before anything is made.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::store;

/// One mount as its flag describes it.
#[derive(Debug)]
pub struct Spec {
    pub source: Source,
    pub destination: PathBuf,
    pub options: Vec<String>,
    pub copy: bool,
}

/// Where it comes from.
#[derive(Debug)]
pub enum Source {
    /// A file or folder of the host, made as a folder when it is missing.
    Path {
        path: PathBuf,
        make: bool,
    },
    /// A volume; without a name a new one.
    Volume {
        name: Option<String>,
        labels: BTreeMap<String, String>,
    },
    Tmpfs,
}

const PROPAGATIONS: [&str; 6] = ["shared", "rshared", "slave", "rslave", "private", "rprivate"];

/// `-v [source:]destination[:options]`
pub fn volume(flag: &str) -> Result<Spec> {
    let parts: Vec<&str> = flag.split(':').collect();
    let (source, destination, modes) = match parts[..] {
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, modes] => (Some(source), destination, modes),
        _ => bail!("invalid volume specification: '{flag}': too many colons"),
    };
    let context = || format!("invalid volume specification: '{flag}'");
    ensure!(
        source != Some(""),
        "invalid volume specification: '{flag}': empty section between colons"
    );
    let destination = self::destination(destination).with_context(context)?;
    let path = source.map(host_path).transpose()?.flatten();
    let source = match (path, source) {
        (Some(path), _) => Source::Path { path, make: true },
        (None, Some(name)) => {
            store::check_name(name)?;
            Source::Volume { name: Some(name.into()), labels: BTreeMap::new() }
        }
        (None, None) => Source::Volume { name: None, labels: BTreeMap::new() },
    };
    let mut spec = Spec { copy: false, options: vec!["rbind".into()], source, destination };
    spec.copy = matches!(spec.source, Source::Volume { .. });
    let mut propagation = "rprivate";
    for mode in modes.split(',').filter(|mode| !mode.is_empty()) {
        match mode {
            "ro" => read_only(&mut spec.options),
            "nocopy" if spec.copy => spec.copy = false,
            // Labels of SELinux, and hints to other platforms.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            mode if PROPAGATIONS.contains(&mode)
                && !matches!(spec.source, Source::Volume { .. }) =>
            {
                propagation = mode;
            }
            _ => bail!("invalid mode: {mode}: {}", context()),
        }
    }
    spec.options.insert(1, propagation.into());
    Ok(spec)
}

/// What is mounted below is read-only too.
fn read_only(options: &mut Vec<String>) {
    options.extend(["ro".into(), "rro".into()]);
}

/// The path that a source is, unless it is the name of a volume.
fn host_path(source: &str) -> Result<Option<PathBuf>> {
    let home = || std::env::var_os("HOME").map(PathBuf::from).context("~ without $HOME");
    Ok(match source {
        "~" => Some(home()?),
        _ if source.starts_with("~/") => Some(home()?.join(&source[2..])),
        _ if source.starts_with('/') => Some(source.into()),
        _ if source == "."
            || source == ".."
            || source.starts_with("./")
            || source.starts_with("../") =>
        {
            Some(std::path::absolute(source).context("current folder")?)
        }
        _ => None,
    })
}

/// An absolute path that is not the root itself, without `.` and `..`.
fn destination(text: &str) -> Result<PathBuf> {
    ensure!(text.starts_with('/'), "invalid mount path: '{text}' mount path must be absolute");
    let mut clean = PathBuf::from("/");
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    ensure!(clean != Path::new("/"), "invalid specification: destination can't be '/'");
    Ok(clean)
}

/// `--tmpfs destination[:options]`
pub fn tmpfs(flag: &str) -> Result<Spec> {
    let (place, given) = flag.split_once(':').unwrap_or((flag, ""));
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec"].map(String::from).to_vec();
    for option in given.split(',').filter(|option| !option.is_empty()) {
        let key = option.split_once('=').map_or(option, |(key, _)| key);
        ensure!(
            matches!(
                key,
                "ro" | "rw"
                    | "exec"
                    | "noexec"
                    | "suid"
                    | "nosuid"
                    | "dev"
                    | "nodev"
                    | "size"
                    | "mode"
                    | "uid"
                    | "gid"
                    | "nr_inodes"
                    | "nr_blocks"
                    | "noatime"
                    | "relatime"
                    | "sync"
                    | "mpol"
                    | "huge"
            ),
            "invalid tmpfs option \"{option}\""
        );
        let opposite = match key {
            "exec" | "suid" | "dev" => format!("no{key}"),
            _ => String::new(),
        };
        options.retain(|known| *known != opposite && known != option);
        options.push(option.into());
    }
    Ok(Spec { source: Source::Tmpfs, destination: destination(place)?, options, copy: false })
}

/// A VOLUME of the image's configuration.
pub fn image_volume(place: &str) -> Result<Spec> {
    let destination =
        destination(place).with_context(|| format!("the image's volume '{place}'"))?;
    let source = Source::Volume { name: None, labels: BTreeMap::new() };
    let options = ["rbind", "rprivate"].map(String::from).to_vec();
    Ok(Spec { source, destination, options, copy: true })
}

/// What `--mount` can say.
#[derive(Debug, Default)]
struct Fields {
    kind: String,
    source: Option<String>,
    destination: String,
    read_only: bool,
    propagation: Option<String>,
    flat: bool,
    copy: bool,
    labels: BTreeMap<String, String>,
    /// Of a tmpfs.
    options: Vec<String>,
    /// The kinds that its fields belong to, each with one of them.
    only: Vec<(&'static str, String)>,
}

/// `--mount type=…,source=…,target=…`
pub fn mount(flag: &str) -> Result<Spec> {
    let mut fields = Fields { kind: "volume".into(), copy: true, ..Fields::default() };
    for field in csv(flag)? {
        fields.read(&field)?;
    }
    let Fields { kind, .. } = &fields;
    ensure!(!fields.destination.is_empty(), "target is required");
    let context = || format!("invalid mount config for type \"{kind}\"");
    let destination = destination(&fields.destination).with_context(context)?;
    if let Some((_, field)) = fields.only.iter().find(|(only, _)| only != kind) {
        bail!("cannot mix '{field}' with mount type '{kind}'");
    }
    let source = fields.source.clone().filter(|source| !source.is_empty());
    let propagation = fields.propagation.clone().unwrap_or_else(|| "rprivate".into());
    let mut options = vec![if fields.flat { "bind" } else { "rbind" }.into(), propagation];
    let source = match kind.as_str() {
        "bind" => {
            let source =
                source.with_context(|| format!("{}: field Source must not be empty", context()))?;
            let path = host_path(&source)?.with_context(|| {
                format!("{}: invalid mount path: '{source}' mount path must be absolute", context())
            })?;
            ensure!(
                path.symlink_metadata().is_ok(),
                "{}: bind source path does not exist: {}",
                context(),
                path.display()
            );
            Source::Path { path, make: false }
        }
        "volume" => {
            if let Some(name) = &source {
                store::check_name(name)?;
            }
            Source::Volume { name: source, labels: fields.labels }
        }
        "tmpfs" => {
            ensure!(source.is_none(), "{}: field Source must not be specified", context());
            options = ["nosuid", "nodev", "noexec"].map(String::from).to_vec();
            options.extend(fields.options);
            Source::Tmpfs
        }
        _ => bail!("mount type unknown: \"{kind}\": bind, volume and tmpfs are known"),
    };
    match &source {
        Source::Tmpfs if fields.read_only => options.push("ro".into()),
        _ if fields.read_only && fields.flat => options.push("ro".into()),
        _ if fields.read_only => read_only(&mut options),
        _ => {}
    }
    let copy = fields.copy && matches!(source, Source::Volume { .. });
    Ok(Spec { source, destination, options, copy })
}

impl Fields {
    fn read(&mut self, field: &str) -> Result<()> {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        let key = key.to_ascii_lowercase();
        if let Some((kind, _)) = key.split_once('-')
            && let Some(kind) = ["bind", "volume", "tmpfs"].into_iter().find(|known| *known == kind)
        {
            self.only.push((kind, key.clone()));
        }
        let boolean = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => bail!("invalid value for {key}: {value}"),
        };
        match key.as_str() {
            "type" => self.kind = value.to_ascii_lowercase(),
            "source" | "src" => self.source = Some(value.into()),
            "target" | "dst" | "destination" => self.destination = value.into(),
            "readonly" | "ro" => self.read_only = boolean()?,
            "consistency" => {}
            "bind-propagation" => {
                ensure!(PROPAGATIONS.contains(&value), "invalid propagation mode: {value}");
                self.propagation = Some(value.into());
            }
            "bind-nonrecursive" => self.flat = boolean()?,
            "volume-nocopy" => self.copy = !boolean()?,
            "volume-label" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                self.labels.insert(name.into(), value.into());
            }
            "volume-driver" => ensure!(value == "local", "volume driver \"{value}\" not found"),
            "tmpfs-size" => self.options.push(format!("size={value}")),
            "tmpfs-mode" => {
                ensure!(u32::from_str_radix(value, 8).is_ok(), "invalid value for {key}: {value}");
                self.options.push(format!("mode={value}"));
            }
            _ => bail!("unexpected key '{key}' in '{field}'"),
        }
        Ok(())
    }
}

/// Fields between commas; one in double quotes may hold commas, and `""` for a quote.
fn csv(line: &str) -> Result<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(field) = fields.last_mut() else { continue };
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    ensure!(!quoted, "a quote is not closed");
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s82_forms_of_v() {
        let spec = volume("/a/../b:/c/./d:ro,rslave,z").unwrap();
        assert_eq!(spec.options, ["rbind", "rslave", "ro", "rro"]);
        assert_eq!(spec.destination, Path::new("/c/d"));
        let spec = volume("name:/c:nocopy").unwrap();
        assert!(!spec.copy && matches!(spec.source, Source::Volume { .. }));
        for (flag, words) in [
            ("a:b", "mount path must be absolute"),
            ("/a:/", "destination can't be '/'"),
            ("/a:/b:x", "invalid mode: x"),
            ("/a:/b:nocopy", "invalid mode: nocopy"),
            ("/a:/b:ro:rw", "too many colons"),
            (":/b", "empty section"),
            ("a/b:/c", "includes invalid characters for a local volume name"),
        ] {
            let error = format!("{:#}", volume(flag).unwrap_err());
            assert!(error.contains(words), "{flag}: {error}");
        }
    }

    #[test]
    fn s83_forms_of_mount() {
        let spec = mount("type=bind,source=/,target=/host,readonly").unwrap();
        assert_eq!(spec.options, ["rbind", "rprivate", "ro", "rro"]);
        let spec = mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap();
        assert_eq!(spec.options[3..], ["size=1m", "mode=700"]);
        let spec = mount("\"src=v,\",dst=/t").unwrap_err();
        assert!(spec.to_string().contains("invalid characters"));
        assert!(mount("src=v1,dst=/t,volume-nocopy").is_ok_and(|spec| !spec.copy));
        for (flag, words) in [
            ("type=bind,source=/", "target is required"),
            ("type=bind,target=/x", "field Source must not be empty"),
            ("type=bind,source=x,target=/x", "mount path must be absolute"),
            ("type=bind,source=/no/such,target=/x", "bind source path does not exist: /no/such"),
            ("type=npipe,target=/x", "mount type unknown"),
            (
                "type=bind,source=/,target=/x,volume-nocopy",
                "cannot mix 'volume-nocopy' with mount type 'bind'",
            ),
            ("type=tmpfs,source=/,target=/x", "field Source must not be specified"),
            ("colour=red,target=/x", "unexpected key 'colour' in 'colour=red'"),
        ] {
            let error = format!("{:#}", mount(flag).unwrap_err());
            assert!(error.contains(words), "{flag}: {error}");
        }
    }

    #[test]
    fn options_of_tmpfs() {
        assert_eq!(
            tmpfs("/t:exec,size=5m").unwrap().options,
            ["nosuid", "nodev", "exec", "size=5m"]
        );
        assert!(tmpfs("/t:upperdir=/x").unwrap_err().to_string().contains("invalid tmpfs option"));
    }
}
