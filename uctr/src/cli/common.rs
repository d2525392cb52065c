//! Flags that commands on several kinds of things have alike.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use crate::output::{self, Listing, print};

/// Of a command that lists.
#[derive(Debug, Args)]
pub struct Shape {
    /// table, table TEMPLATE, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Only what each is named by in other commands
    #[arg(short, long)]
    quiet: bool,
}

impl Shape {
    /// Prints the rows: without flags as `listing` has them, with `--quiet` as the template `quiet`
    /// has them.
    ///
    /// # Errors
    /// As [`Listing::render`].
    pub fn print(&self, listing: Listing<'_>, quiet: &str, rows: &[Value]) -> Result<()> {
        print(&match self.quiet {
            true => Listing { default: quiet, ..listing }.render(None, rows)?,
            false => listing.render(self.format.as_deref(), rows)?,
        })
    }
}

/// Of a command that shows all that is known of things.
#[derive(Debug, Args)]
pub struct Inspect {
    /// json, or a Go template for each
    #[arg(short, long)]
    format: Option<String>,
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Inspect {
    /// Prints what `look` finds of each name, then says what it did not find; the exit status.
    ///
    /// # Errors
    /// When the format is none.
    pub fn run(&self, mut look: impl FnMut(&str) -> Result<Value>) -> Result<u8> {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for name in &self.names {
            match look(name) {
                Ok(value) => found.push(value),
                Err(error) => errors.push(error),
            }
        }
        print(&output::objects(self.format.as_deref(), &found)?)?;
        for error in &errors {
            eprintln!("uctr: {error:#}");
        }
        Ok(u8::from(!errors.is_empty()))
    }
}

/// Of a command that removes things.
#[derive(Debug, Args)]
pub struct Rm {
    /// That one isn't there is no error
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Rm {
    /// Removes each, and prints the names of the removed; the exit status. `missing`: is there none
    /// of that name?
    ///
    /// # Errors
    /// When nothing can be printed.
    pub fn run(
        &self,
        missing: impl Fn(&str) -> bool,
        mut remove: impl FnMut(&str) -> Result<()>,
    ) -> Result<u8> {
        let mut code = 0;
        for name in &self.names {
            let is_missing = missing(name);
            match remove(name) {
                Ok(()) => print(&format!("{name}\n"))?,
                Err(_) if is_missing && self.force => {}
                Err(error) => {
                    eprintln!("uctr: {error:#}");
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}

/// Of a command that removes all that is not in use.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Prune {
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// Only those that meet a condition: label=, label!=, until=
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
}

impl Prune {
    /// The filters, if the user agrees to what `warning` says.
    ///
    /// # Errors
    /// When a filter is none.
    pub fn agreed(&self, warning: &str) -> Result<Option<Filters>> {
        let filters = Filters::parse(&self.filter)?;
        Ok((self.force || output::confirm(warning)?).then_some(filters))
    }
}

/// Says which things are gone.
///
/// # Errors
/// When nothing can be printed.
pub fn print_deleted(title: &str, names: &[String]) -> Result<()> {
    match names {
        [] => Ok(()),
        names => print(&format!("Deleted {title}:\n{}\n\n", names.join("\n"))),
    }
}

/// `label=`, `label!=` and `until=`, which all kinds of prune have.
#[derive(Debug, Default)]
pub struct Filters {
    labels: Vec<String>,
    without: Vec<String>,
    until: Option<Timestamp>,
}

impl Filters {
    /// Reads them.
    ///
    /// # Errors
    /// When there is no such filter, or its value is no time.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            match output::filter(text, &["label", "label!", "until"])? {
                ("label", label) => filters.labels.push(label.into()),
                ("label!", label) => filters.without.push(label.into()),
                (_, time) if filters.until.is_none() => {
                    filters.until = Some(crate::container::logs::parse_time(time)?);
                }
                _ => bail!("more than one until filter specified"),
            }
        }
        Ok(filters)
    }

    /// Whether something with these labels, made then, may go.
    #[must_use]
    pub fn hold(&self, labels: &BTreeMap<String, String>, created: Timestamp) -> bool {
        self.labels.iter().all(|label| output::has_label(labels, label))
            && !self.without.iter().any(|label| output::has_label(labels, label))
            && self.until.is_none_or(|until| created < until)
    }
}

/// `key=value`, or `key` alone.
#[must_use]
pub fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    texts.iter().map(pair).collect()
}

/// Labels in one column of a list.
#[must_use]
pub fn label_column(labels: &BTreeMap<String, String>) -> String {
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}
