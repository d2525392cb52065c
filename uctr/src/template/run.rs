//! From nodes and data to text.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Node, Operand, Pipeline, functions, print};

/// What docker has as maps and not as structs: a key that isn't there is no error.
const MAPS: [&str; 9] = [
    "Annotations",
    "ExposedPorts",
    "Labels",
    "Networks",
    "Options",
    "PortBindings",
    "Ports",
    "Sysctls",
    "Volumes",
];

struct Run<'a> {
    /// `$`
    root: &'a Value,
    variables: Vec<(String, Value)>,
    header: bool,
    out: String,
}

pub(super) fn run(nodes: &[Node], data: &Value, header: bool) -> Result<String> {
    let mut run = Run { root: data, variables: Vec::new(), header, out: String::new() };
    run.nodes(nodes, data)?;
    Ok(run.out)
}

/// Whether Go takes it for true.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

impl Run<'_> {
    /// Variables that are set in here are gone behind it.
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        let scope = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<()> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Output(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    self.out.push_str(&print::shown(&value));
                } else {
                    self.set(pipeline, &[value])?;
                }
            }
            Node::If { arms, otherwise } => {
                let scope = self.variables.len();
                for (condition, body) in arms {
                    let value = self.pipeline(condition, dot)?;
                    let holds = truth(&value);
                    if !condition.variables.is_empty() {
                        self.set(condition, &[value])?;
                    }
                    if holds {
                        self.nodes(body, dot)?;
                        self.variables.truncate(scope);
                        return Ok(());
                    }
                }
                self.nodes(otherwise, dot)?;
                self.variables.truncate(scope);
            }
            Node::With { value, body, otherwise } => {
                let scope = self.variables.len();
                let found = self.pipeline(value, dot)?;
                if !value.variables.is_empty() {
                    self.set(value, std::slice::from_ref(&found))?;
                }
                match truth(&found) {
                    true => self.nodes(body, &found)?,
                    false => self.nodes(otherwise, dot)?,
                }
                self.variables.truncate(scope);
            }
            Node::Range { over, body, otherwise } => self.range(over, body, otherwise, dot)?,
        }
        Ok(())
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<()> {
        let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
            Value::Array(items) => {
                items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect()
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.into_iter().collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                fields.into_iter().map(|(name, value)| (name.into(), value)).collect()
            }
            Value::Null => Vec::new(),
            other => bail!("range can't iterate over {}", print::shown(&other)),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            let scope = self.variables.len();
            match over.variables.len() {
                0 => {}
                1 => self.set(over, std::slice::from_ref(&item))?,
                _ => self.set(over, &[key, item.clone()])?,
            }
            self.nodes(body, &item)?;
            self.variables.truncate(scope);
        }
        Ok(())
    }

    fn set(&mut self, pipeline: &Pipeline, values: &[Value]) -> Result<()> {
        ensure!(pipeline.variables.len() == values.len(), "two variables are only for range");
        for (name, value) in pipeline.variables.iter().zip(values) {
            if pipeline.assign {
                let old = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                old.with_context(|| format!("undefined variable \"${name}\""))?.1 = value.clone();
            } else {
                self.variables.push((name.clone(), value.clone()));
            }
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, last, dot)?);
        }
        last.context("missing value for command")
    }

    fn command(&self, command: &[Operand], last: Option<Value>, dot: &Value) -> Result<Value> {
        let (first, rest) = command.split_first().context("missing value for command")?;
        if let Operand::Function(name) = first {
            // These look at no more arguments than they must.
            if let "and" | "or" = name.as_str() {
                return self.and_or(name == "and", rest, last, dot);
            }
            let mut arguments = self.operands(rest, dot)?;
            arguments.extend(last);
            if self.header
                && let Some(kept) = functions::in_header(name, &arguments)
            {
                return Ok(kept);
            }
            return functions::call(name, &arguments)
                .with_context(|| format!("error calling {name}"));
        }
        let value = self.operand(first, dot)?;
        let mut arguments = self.operands(rest, dot)?;
        arguments.extend(last);
        match arguments.as_slice() {
            [] => Ok(value),
            // A method with a name, as in `{{.Label "maintainer"}}`.
            [Value::String(name)] if matches!(first, Operand::Fields(..)) => match &value {
                Value::Object(fields) => Ok(fields.get(name).cloned().unwrap_or("".into())),
                _ if self.header => Ok(header_of_label(name).into()),
                _ => bail!("{} is no function", print::shown(&value)),
            },
            _ => bail!("can't give arguments to what is no function: {}", print::shown(&value)),
        }
    }

    fn operands(&self, operands: &[Operand], dot: &Value) -> Result<Vec<Value>> {
        operands.iter().map(|operand| self.operand(operand, dot)).collect()
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value> {
        Ok(match operand {
            Operand::Dot => dot.clone(),
            Operand::Literal(value) => value.clone(),
            Operand::Variable(name) if name.is_empty() => self.root.clone(),
            Operand::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found.with_context(|| format!("undefined variable \"${name}\""))?.1.clone()
            }
            Operand::Function(_) => self.command(std::slice::from_ref(operand), None, dot)?,
            Operand::Nested(pipeline) => self.pipeline(pipeline, dot)?,
            Operand::Fields(of, names) => {
                let base = match &**of {
                    Operand::Dot => None,
                    other => Some(self.operand(other, dot)?),
                };
                fields(base.as_ref().unwrap_or(dot), names)?
            }
        })
    }

    fn and_or(
        &self,
        and: bool,
        operands: &[Operand],
        last: Option<Value>,
        dot: &Value,
    ) -> Result<Value> {
        let mut value = None;
        for operand in operands {
            let found = self.operand(operand, dot)?;
            if truth(&found) != and {
                return Ok(found);
            }
            value = Some(found);
        }
        last.or(value).context("wrong number of args: want at least 1 got 0")
    }
}

/// Walks down from one field to the next.
fn fields(from: &Value, names: &[String]) -> Result<Value> {
    let mut value = from;
    let mut of = "";
    for name in names {
        value = match value {
            Value::Object(fields) => match fields.get(name) {
                Some(found) => found,
                None if MAPS.contains(&of) => return Ok(Value::Null),
                None => bail!("at <.{}>: map has no entry for key {name:?}", names.join(".")),
            },
            Value::Null if MAPS.contains(&of) => return Ok(Value::Null),
            Value::Null => {
                bail!("at <.{}>: nil data; no entry for key {name:?}", names.join("."))
            }
            other => bail!(
                "at <.{}>: can't evaluate field {name} in {}",
                names.join("."),
                print::shown(other)
            ),
        };
        of = name;
    }
    Ok(value.clone())
}

/// As docker makes it from the last part of the label's name.
fn header_of_label(name: &str) -> String {
    name.rsplit('.').next().unwrap_or_default().replace(['-', '_'], " ")
}
