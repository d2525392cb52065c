//! What commands print: tables with docker's columns, sizes, times, short IDs.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::template::Template;

/// How many digits of an ID users see.
const SHORT_ID: usize = 12;

/// A list that a command prints: `ps`, `images`, `network ls` …
///
/// A row is an object with a text for each field. A field `Label`, if there is one, has the labels
/// as an object, for `{{.Label "name"}}`, and is left out of `json`.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a> {
    /// What is printed without `--format`: `table {{.ID}}\t{{.Name}}`.
    pub default: &'a str,
    /// Each field, and its title over a column.
    pub titles: &'a [(&'a str, &'a str)],
}

impl Listing<'_> {
    /// Writes the rows as `--format` wants them: docker's `table`, `table TEMPLATE`, `json`, or a
    /// template that is written once a row. Ends with a newline unless it is empty.
    ///
    /// # Errors
    /// When the format is no template, or has a field that isn't there.
    pub fn render(&self, format: Option<&str>, rows: &[Value]) -> Result<String> {
        let format = match format {
            None | Some("" | "table") => self.default,
            Some(format) => format,
        };
        // Shells hand `\t` over as it is.
        let text = format.replace("\\t", "\t").replace("\\n", "\n");
        if text == "json" {
            return rows.iter().map(|row| json_line(row).map(|line| line + "\n")).collect();
        }
        let table = text.strip_prefix("table");
        let template = Template::parse(table.map_or(text.as_str(), str::trim))?;
        let mut lines = Vec::new();
        if table.is_some() {
            let titles = [("Label", "LABEL")].iter().chain(self.titles);
            let titles = titles.map(|(name, title)| ((*name).into(), (*title).into())).collect();
            lines.push(template.render_header(&Value::Object(titles))?);
        }
        for row in rows {
            lines.push(template.render(row)?);
        }
        Ok(match table {
            Some(_) => align(&lines),
            None => lines.iter().map(|line| format!("{line}\n")).collect(),
        })
    }
}

/// As `{{json .}}` of docker's lists: the fields in the order of their names.
fn json_line(row: &Value) -> Result<String> {
    let fields = row.as_object().context("a row that is no object")?;
    let mut fields: Vec<_> = fields.iter().filter(|(name, _)| *name != "Label").collect();
    fields.sort_by_key(|(name, _)| *name);
    let fields: Map<_, _> =
        fields.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(serde_json::to_string(&fields)?)
}

/// Puts the cells of lines, which tabs end, under each other as docker does: a column is at least
/// ten wide, and three spaces are between two.
#[must_use]
pub fn align(lines: &[String]) -> String {
    align_wider(lines, 10)
}

/// As [`align`], with another least width.
#[must_use]
pub fn align_wider(lines: &[String], least: usize) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        // The last cell is ended by no tab, and of no column.
        for (at, cell) in row[..row.len() - 1].iter().enumerate() {
            if at == widths.len() {
                widths.push(least);
            }
            widths[at] = widths[at].max(cell.chars().count() + 3);
        }
    }
    let mut out = String::new();
    for row in &rows {
        let (last, cells) = row.split_last().unwrap_or((&"", &[]));
        for (cell, width) in cells.iter().zip(&widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
        }
        out.push_str(last);
        out.push('\n');
    }
    out
}

/// What `inspect` prints: a JSON array with docker's indentation, `json` in a line, or a template
/// that is written once an object.
///
/// # Errors
/// When the format is no template, or has a field that isn't there.
pub fn objects(format: Option<&str>, objects: &[Value]) -> Result<String> {
    let template = match format {
        None | Some("") => {
            let mut text = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
            serde::Serialize::serialize(objects, &mut serializer)?;
            return Ok(String::from_utf8_lossy(&text).into_owned() + "\n");
        }
        Some("json") => return Ok(serde_json::to_string(objects)? + "\n"),
        Some(template) => Template::parse(template)?,
    };
    objects.iter().map(|object| template.render(object).map(|text| text + "\n")).collect()
}

/// Writes to stdout; that nobody reads on (`| head`) is no error.
///
/// # Errors
/// As of write(2).
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to stdout"),
    }
}

/// Asks for a yes: `WARNING! …` and docker's question. Without a terminal no answer is a no.
///
/// # Errors
/// When stdin can't be read.
pub fn confirm(warning: &str) -> Result<bool> {
    print(&format!("{warning}\nAre you sure you want to continue? [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer from stdin")?;
    if !std::io::stdin().is_terminal() {
        print("\n")?;
    }
    Ok(answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes"))
}

/// The first 12 digits of an ID, without its algorithm.
#[must_use]
pub fn short_id(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..SHORT_ID).unwrap_or(hex)
}

/// Cuts a text to a number of characters, the last of which is then `…`.
#[must_use]
pub fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Bytes with decimal units and three digits, as images and layers have them: `1.24MB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    units(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// Bytes with decimal units and four digits, as what was reclaimed is told: `1.243MB`.
#[must_use]
pub fn long_size(bytes: u64) -> String {
    units(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 4)
}

/// Bytes with binary units and four digits, as memory is told: `1.5GiB`.
#[must_use]
pub fn binary_size(bytes: u64) -> String {
    units(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

#[expect(clippy::cast_precision_loss, reason = "a few digits are shown")]
fn units(bytes: u64, base: f64, names: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    let mut at = 0;
    while value >= base && at + 1 < names.len() {
        value /= base;
        at += 1;
    }
    let whole = (value as u64).to_string().len();
    let shown = format!("{value:.*}", digits.saturating_sub(whole));
    let shown = match shown.contains('.') {
        true => shown.trim_end_matches('0').trim_end_matches('.'),
        false => &shown,
    };
    format!("{shown}{}", names[at])
}

/// Docker's words for a length of time in seconds: `2 minutes`, `About an hour`.
#[must_use]
pub fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// How long ago that was: `2 minutes`.
#[must_use]
pub fn since(then: Timestamp) -> String {
    duration(Timestamp::now().as_second() - then.as_second())
}

/// `2 minutes ago`
#[must_use]
pub fn ago(then: Timestamp) -> String {
    format!("{} ago", since(then))
}

/// As Go writes a time in lists: `2026-11-21 09:04:24 +0000 UTC`.
#[must_use]
pub fn local_time(time: Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// As docker's inspect writes a time: RFC 3339 with nanoseconds; what never was is the year 1.
#[must_use]
pub fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "0001-01-01T00:00:00Z".into(), |time| time.to_string())
}

/// Splits `--filter name=value`.
///
/// # Errors
/// When it has no `=`, or no such filter is `known`.
pub fn filter<'a>(text: &'a str, known: &[&str]) -> Result<(&'a str, &'a str)> {
    let (name, value) = text
        .split_once('=')
        .context("bad format of filter (expected name=value)")
        .with_context(|| format!("invalid argument {text:?} for \"-f, --filter\" flag"))?;
    let name = name.trim();
    ensure!(known.contains(&name), "invalid filter '{name}' (there are {})", known.join(", "));
    Ok((name, value.trim()))
}

/// Whether labels have what `--filter label=…` asks for: `key`, or `key=value`.
#[must_use]
pub fn has_label<'a>(
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
    wanted: &str,
) -> bool {
    let (key, value) = match wanted.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (wanted, None),
    };
    labels.into_iter().any(|(name, is)| name == key && value.is_none_or(|value| value == is))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: Listing = Listing {
        default: "table {{.ID}}\t{{.Name}}\t{{.Size}}",
        titles: &[("ID", "THING ID"), ("Name", "NAME"), ("Size", "SIZE")],
    };

    fn rows() -> Vec<Value> {
        vec![
            json!({ "Size": "1B", "ID": "abc", "Name": "a-rather-long-name", "Label": { "k": "v" } }),
            json!({ "Size": "22B", "ID": "0123456789ab", "Name": "b", "Label": {} }),
        ]
    }

    #[test]
    fn tables_have_docker_s_columns() {
        let expected = "THING ID       NAME                 SIZE\n\
                        abc            a-rather-long-name   1B\n\
                        0123456789ab   b                    22B\n";
        assert_eq!(LIST.render(None, &rows()).unwrap(), expected);
        assert_eq!(LIST.render(Some("table"), &rows()).unwrap(), expected);
        assert_eq!(LIST.render(None, &[]).unwrap(), "THING ID   NAME      SIZE\n");
    }

    #[test]
    fn formats_are_tables_lines_or_json() {
        let written = |format: &str| LIST.render(Some(format), &rows()).unwrap();
        assert_eq!(
            written("table{{.Name}}\\t{{.ID}}").lines().next(),
            Some("NAME                 THING ID")
        );
        assert_eq!(
            written("table {{upper .ID}}").lines().collect::<Vec<_>>()[..2],
            ["THING ID", "ABC"]
        );
        assert_eq!(written("{{.ID}}\\t{{.Size}}"), "abc\t1B\n0123456789ab\t22B\n");
        assert_eq!(
            written("json").lines().next(),
            Some(r#"{"ID":"abc","Name":"a-rather-long-name","Size":"1B"}"#)
        );
        assert_eq!(
            written("table {{.Label \"com.k\"}}\\t{{.Label \"k\"}}").lines().next(),
            Some("k         k")
        );
        assert_eq!(written("{{.Label \"k\"}}!"), "v!\n!\n");
        assert!(LIST.render(Some("{{.Foo}}"), &rows()).is_err());
        assert!(LIST.render(Some("table {{.Foo}}"), &[]).is_err());
    }

    #[test]
    fn sizes_have_few_digits() {
        for (bytes, short, long, binary) in [
            (0, "0B", "0B", "0B"),
            (999, "999B", "999B", "999B"),
            (1000, "1kB", "1kB", "1000B"),
            (1_234_567, "1.23MB", "1.235MB", "1.177MiB"),
            (104_857_600, "105MB", "104.9MB", "100MiB"),
            (999_999, "1000kB", "1000kB", "976.6KiB"),
            (u64::MAX, "18.4EB", "18.45EB", "16EiB"),
        ] {
            assert_eq!((size(bytes).as_str(), long_size(bytes).as_str()), (short, long));
            assert_eq!(binary_size(bytes), binary);
        }
    }

    #[test]
    fn durations_have_docker_s_words() {
        for (seconds, words) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (730 * 86400, "2 years"),
        ] {
            assert_eq!(duration(seconds), words, "{seconds}");
        }
    }

    #[test]
    fn texts_are_cut() {
        assert_eq!(ellipsis("sleep 1000000000000000", 20), "sleep 1000000000000…");
        assert_eq!(ellipsis("sleep", 20), "sleep");
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("0123"), "0123");
    }

    #[test]
    fn filters_are_names_and_values() {
        assert_eq!(filter("label=a=b", &["label"]).unwrap(), ("label", "a=b"));
        assert!(filter("label", &["label"]).is_err());
        assert!(filter("x=y", &["label"]).is_err());
        let labels = std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(has_label(&labels, "a") && has_label(&labels, "a=b"));
        assert!(!has_label(&labels, "a=c") && !has_label(&labels, "b"));
    }

    #[test]
    fn times_are_go_s() {
        let time_of = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(time(None), "0001-01-01T00:00:00Z");
        assert_eq!(
            time(Some(time_of("2026-11-21T09:04:24.123456789Z"))),
            "2026-11-21T09:04:24.123456789Z"
        );
    }
}
