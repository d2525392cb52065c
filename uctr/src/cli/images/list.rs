//! `images`, `layers`, `history`, `image inspect`.

use std::cmp::Reverse;
use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use oci_spec::image::Digest;
use serde_json::{Value, json};

use super::{find, open};
use crate::cli::common::Shape;
use crate::image::reference::Reference;
use crate::image::store::{Image, Store};
use crate::image::usage::{commands, created, image_json, image_size, layer_size};
use crate::output::{self, Listing, print};
use crate::paths::Paths;
use crate::template::Template;

const NONE: &str = "<none>";
/// What docker shows of a command.
const COMMAND_WIDTH: usize = 45;

#[derive(Debug, Args)]
pub struct List {
    /// Only this repository, or this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// Also images that others are built on (there are none that are hidden)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// dangling=true, label=KEY[=VALUE], reference=PATTERN, before=IMAGE, since=IMAGE
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Show IDs in full
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    shape: Shape,
}

const IMAGES: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];

impl List {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, layers) = open(paths)?;
        let mut images = store.images()?;
        images.sort_by_key(|image| Reverse(created(image)));
        for filter in &self.filter {
            keep(&store, &mut images, filter)?;
        }
        let mut rows = Vec::new();
        for image in &images {
            let size = output::size(image_size(&layers, image)?);
            for (repository, tag, digest) in self.names(image)? {
                rows.push(json!({
                    "Repository": repository, "Tag": tag, "Digest": digest,
                    "ID": if self.no_trunc { image.id.as_ref() } else { image.short_id() },
                    "CreatedSince": created(image).map_or("N/A".into(), output::ago),
                    "CreatedAt": created(image).map_or("N/A".into(), output::local_time),
                    "Size": size, "VirtualSize": size,
                    "Containers": "N/A", "SharedSize": "N/A", "UniqueSize": "N/A",
                }));
            }
        }
        let columns = match self.digests {
            true => {
                "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
            }
            false => "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
        };
        self.shape.print(Listing { default: columns, titles: IMAGES }, "{{.ID}}", &rows)?;
        Ok(0)
    }

    /// An image's rows: repository, tag and digest.
    fn names(&self, image: &Image) -> Result<Vec<(String, String, String)>> {
        let wanted = self.name.as_deref().map(|name| Ok::<_, anyhow::Error>((name, name.parse()?)));
        let wanted: Option<(&str, Reference)> = wanted.transpose()?;
        let mut rows = Vec::new();
        for name in &image.names {
            let is_wanted = wanted.as_ref().is_none_or(|(text, wanted)| {
                name.registry == wanted.registry
                    && name.repository == wanted.repository
                    && (Reference::is_bare(text) || name.tag == wanted.tag)
            });
            if !is_wanted {
                continue;
            }
            let repository = name.familiar_repository();
            let of_same = |other: &&Reference| {
                other.registry == name.registry && other.repository == name.repository
            };
            let digest = image.digests.iter().find(of_same).and_then(|found| found.digest.as_ref());
            let digest = digest.map_or(NONE.to_owned(), Digest::to_string);
            // Pulled by a digest it has no tag; a tag of the same repository says it all.
            let is_said = |other: &Reference| of_same(&other) && other.tag.is_some();
            if name.tag.is_some() || !image.names.iter().any(is_said) {
                let tag = name.tag.clone().unwrap_or_else(|| NONE.to_owned());
                rows.push((repository, tag, digest));
            }
        }
        if image.names.is_empty() && wanted.is_none() {
            rows.push((NONE.to_owned(), NONE.to_owned(), NONE.to_owned()));
        }
        Ok(rows)
    }
}

/// Keeps those images that a filter wants.
fn keep(store: &Store, images: &mut Vec<Image>, filter: &str) -> Result<()> {
    let known = ["dangling", "label", "reference", "before", "since"];
    let (name, value) = output::filter(filter, &known)?;
    match name {
        "dangling" => {
            let wanted = match value {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => bail!("invalid filter 'dangling={value}'"),
            };
            images.retain(|image| image.names.is_empty() == wanted);
        }
        "label" => images.retain(|image| {
            output::has_label(image.config.labels_of_config().into_iter().flatten(), value)
        }),
        "reference" => {
            for image in &mut *images {
                image.names.retain(|name| {
                    let (full, short) = (name.familiar(), name.familiar_repository());
                    matches(value, &full) || matches(value, &short)
                });
            }
            images.retain(|image| !image.names.is_empty());
        }
        _ => {
            let mark = created(&find(store, value)?);
            images.retain(|image| match name {
                "before" => created(image) < mark,
                _ => created(image) > mark,
            });
        }
    }
    Ok(())
}

/// Shell patterns with `*` and `?`, neither of which is a slash.
fn matches(pattern: &str, text: &str) -> bool {
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            matches(rest, text)
                || text
                    .chars()
                    .next()
                    .is_some_and(|c| c != '/' && matches(pattern, &text[c.len_utf8()..]))
        }
        (Some(wanted), Some(found)) if wanted == found || (wanted == '?' && found != '/') => {
            matches(&pattern[wanted.len_utf8()..], &text[found.len_utf8()..])
        }
        _ => false,
    }
}

#[derive(Debug, Args)]
pub struct LayersOf {
    /// The image
    image: String,
    /// table, table TEMPLATE, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Show digests and commands in full
    #[arg(long)]
    no_trunc: bool,
}

const LAYERS: Listing = Listing {
    default: "table {{.Digest}}\t{{.DiffID}}\t{{.Size}}\t{{.Compressed}}\t{{.SharedBy}}\t{{.CreatedBy}}",
    titles: &[
        ("Digest", "DIGEST"),
        ("DiffID", "DIFF ID"),
        ("Size", "SIZE"),
        ("Compressed", "COMPRESSED"),
        ("MediaType", "MEDIA TYPE"),
        ("SharedBy", "SHARED BY"),
        ("CreatedBy", "CREATED BY"),
    ],
};

impl LayersOf {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, layers) = open(paths)?;
        let image = find(&store, &self.image)?;
        let mut sharing: HashMap<Digest, Vec<String>> = HashMap::new();
        for other in store.images()?.iter().filter(|other| other.id != image.id) {
            let name = other.names.first();
            let name = name.map_or_else(|| other.short_id().to_owned(), Reference::familiar);
            for diff_id in other.diff_ids() {
                let names = sharing.entry(diff_id).or_default();
                if !names.contains(&name) {
                    names.push(name.clone());
                }
            }
        }
        let short = |digest: &Digest| match self.no_trunc {
            true => digest.to_string(),
            false => output::short_id(digest.as_ref()).to_owned(),
        };
        let mut rows = Vec::new();
        for (layer, command) in image.layers.iter().zip(commands(&image)) {
            let shared = sharing.get(&layer.diff_id).map(|names| names.join(","));
            rows.push(json!({
                "Digest": short(layer.blob.digest()),
                "DiffID": short(&layer.diff_id),
                "Size": output::size(layer_size(&layers, layer)?),
                "Compressed": output::size(layer.blob.size()),
                "MediaType": layer.blob.media_type(),
                "SharedBy": shared.unwrap_or_else(|| "-".to_owned()),
                "CreatedBy": shown_command(&command, self.no_trunc),
            }));
        }
        print(&LAYERS.render(self.format.as_deref(), &rows)?)?;
        Ok(0)
    }
}

fn shown_command(command: &str, whole: bool) -> String {
    // One line a row, and nothing that a terminal would obey.
    let line = command.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|letter| !letter.is_control()).collect();
    if whole { line } else { output::ellipsis(&line, COMMAND_WIDTH) }
}

#[derive(Debug, Args)]
pub struct History {
    /// The image
    image: String,
    /// Sizes and times in words; --human=false for numbers
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    human: bool,
    /// Show commands in full
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    shape: Shape,
}

const HISTORY: &[(&str, &str)] = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

impl History {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, layers) = open(paths)?;
        let image = find(&store, &self.image)?;
        let mut sizes = image.layers.iter().map(|layer| layer_size(&layers, layer));
        let mut rows = Vec::new();
        for step in image.config.history().iter().flatten() {
            let size = match step.empty_layer() {
                Some(true) => 0,
                _ => sizes.next().transpose()?.unwrap_or(0),
            };
            let time: Option<jiff::Timestamp> =
                step.created().as_deref().and_then(|time| time.parse().ok());
            let at = time.map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            let at = at.unwrap_or_else(|| "N/A".to_owned());
            rows.push(json!({
                "ID": "<missing>",
                "CreatedSince":
                    if self.human { time.map_or("N/A".into(), output::ago) } else { at.clone() },
                "CreatedAt": at,
                "CreatedBy": shown_command(step.created_by().as_deref().unwrap_or(""), self.no_trunc),
                "Size": if self.human { output::size(size) } else { size.to_string() },
                "Comment": step.comment().as_deref().unwrap_or_default(),
            }));
        }
        rows.reverse();
        if let Some(newest) = rows.first_mut() {
            newest["ID"] = json!(if self.no_trunc { image.id.as_ref() } else { image.short_id() });
        }
        let default = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
        self.shape.print(Listing { default, titles: HISTORY }, "{{.ID}}", &rows)?;
        Ok(0)
    }
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// The images
    #[arg(required = true)]
    images: Vec<String>,
    /// json, or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

impl Inspect {
    pub fn run(self, paths: &Paths) -> Result<u8> {
        let (store, layers) = open(paths)?;
        let template = match self.format.as_deref() {
            None | Some("" | "json") => None,
            Some(format) => {
                Some(Template::parse(&format.replace("\\t", "\t").replace("\\n", "\n"))?)
            }
        };
        let (mut found, mut code): (Vec<Value>, u8) = (Vec::new(), 0);
        for name in &self.images {
            match find(&store, name).and_then(|image| image_json(&store, &layers, &image)) {
                Ok(value) => match &template {
                    Some(template) => print(&format!("{}\n", template.render(&value)?))?,
                    None => found.push(value),
                },
                Err(error) => {
                    eprintln!("uctr: {error:#}");
                    code = 1;
                }
            }
        }
        if template.is_none() {
            let text = match self.format.as_deref() {
                Some("json") => serde_json::to_string(&found),
                _ => pretty(&found),
            };
            print(&format!("{}\n", text.context("write JSON")?))?;
        }
        Ok(code)
    }
}

/// With docker's four spaces.
fn pretty(values: &[Value]) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(values, &mut serializer)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_of_names() {
        assert!(matches("busy*:libc", "busybox:libc"));
        assert!(matches("*", "busybox"));
        assert!(matches("b?sybox", "busybox"));
        assert!(!matches("*", "user/busybox"));
        assert!(!matches("busybox", "busybox:latest"));
    }
}
