//! Go's templates as far as users of `--format` need them: fields, variables, pipelines, `if`,
//! `with`, `range`, and the functions of text/template and of docker.
//!
//! Data is JSON. Maps and structs look the same there, so that a field which isn't there is an
//! error, as for a struct, but for fields of objects that docker has as maps.

mod functions;
mod parse;
mod print;
mod run;

use anyhow::{Context, Result};
use serde_json::Value;

/// A template that was parsed.
#[derive(Debug)]
pub struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Output(Pipeline),
    If { arms: Vec<(Pipeline, Vec<Node>)>, otherwise: Vec<Node> },
    With { value: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    Range { over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
}

/// Commands, each of which gets the result of the one before as its last argument.
#[derive(Clone, Debug, Default, PartialEq)]
struct Pipeline {
    /// `$a, $b := …`
    variables: Vec<String>,
    /// `=` in place of `:=`
    assign: bool,
    commands: Vec<Vec<Operand>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Dot,
    Variable(String),
    Literal(Value),
    Function(String),
    Nested(Pipeline),
    /// The value's fields, one in the other.
    Fields(Box<Operand>, Vec<String>),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When it is none, or has what isn't served here (`define`, `template`, `block`).
    pub fn parse(text: &str) -> Result<Self> {
        parse::parse(text).map(Self).context("template parsing error")
    }

    /// Writes the template with data.
    ///
    /// # Errors
    /// When a field isn't there, or a function can't do with its arguments.
    pub fn render(&self, data: &Value) -> Result<String> {
        run::run(&self.0, data, false).context("template")
    }

    /// Writes the header of a table: `names` are the fields' titles, which functions leave alone.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_header(&self, names: &Value) -> Result<String> {
        run::run(&self.0, names, true).context("template")
    }
}

#[cfg(test)]
mod tests;
