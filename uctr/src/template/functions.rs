//! The functions of text/template and those of docker.

use std::cmp::Ordering;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::print::{formatted, shown};
use super::run::truth;

const NAMES: [&str; 24] = [
    "and", "eq", "ge", "gt", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not",
    "or", "pad", "print", "printf", "println", "slice", "split", "title", "truncate", "upper",
    "html",
];

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// In the header of a table docker's own functions leave a column's title as it is.
pub(super) fn in_header(name: &str, arguments: &[Value]) -> Option<Value> {
    match name {
        "json" | "split" | "join" | "title" | "lower" | "upper" | "pad" | "truncate" => {
            arguments.first().cloned()
        }
        _ => None,
    }
}

pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    Ok(match (name, arguments) {
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            rest.iter().any(|other| equal(first, other)).into()
        }
        ("ne", [a, b]) => (!equal(a, b)).into(),
        ("lt", [a, b]) => compare(a, b)?.is_lt().into(),
        ("le", [a, b]) => compare(a, b)?.is_le().into(),
        ("gt", [a, b]) => compare(a, b)?.is_gt().into(),
        ("ge", [a, b]) => compare(a, b)?.is_ge().into(),
        ("not", [value]) => (!truth(value)).into(),
        ("len", [Value::String(text)]) => text.len().into(),
        ("len", [Value::Array(items)]) => items.len().into(),
        ("len", [Value::Object(fields)]) => fields.len().into(),
        ("len", [Value::Null]) => 0.into(),
        ("index", [value, keys @ ..]) => index(value, keys)?,
        ("slice", [value, bounds @ ..]) => slice(value, bounds)?,
        ("print", values) => printed(values).into(),
        ("println", values) => {
            (values.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n").into()
        }
        ("printf", [Value::String(format), values @ ..]) => formatted(format, values)?.into(),
        ("html", values) => escaped(&values.iter().map(shown).collect::<String>()).into(),
        ("json", [value]) => serde_json::to_string(value)?.into(),
        ("split", [Value::String(text), Value::String(at)]) if at.is_empty() => {
            text.chars().map(String::from).collect::<Vec<_>>().into()
        }
        ("split", [Value::String(text), Value::String(at)]) => {
            text.split(at.as_str()).collect::<Vec<_>>().into()
        }
        ("join", [Value::Array(items), Value::String(with)]) => {
            items.iter().map(shown).collect::<Vec<_>>().join(with).into()
        }
        ("join", [Value::Null, Value::String(_)]) => "".into(),
        ("lower", [value]) => shown(value).to_lowercase().into(),
        ("upper", [value]) => shown(value).to_uppercase().into(),
        ("title", [value]) => title(&shown(value)).into(),
        ("pad", [Value::String(text), before, after]) if text.is_empty() => {
            let _ = (before, after);
            "".into()
        }
        ("pad", [Value::String(text), before, after]) => {
            format!("{}{text}{}", " ".repeat(size(before)?), " ".repeat(size(after)?)).into()
        }
        ("truncate", [Value::String(text), length]) => {
            text.chars().take(size(length)?).collect::<String>().into()
        }
        _ => {
            let values: Vec<String> = arguments.iter().map(shown).collect();
            bail!("wrong number or kind of args: {}", values.join(", "))
        }
    })
}

/// As Go's Sprint: a space between two that are no texts.
fn printed(values: &[Value]) -> String {
    let mut out = String::new();
    let mut after_text = true;
    for value in values {
        if !after_text && !value.is_string() {
            out.push(' ');
        }
        out.push_str(&shown(value));
        after_text = value.is_string();
    }
    out
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn compare(a: &Value, b: &Value) -> Result<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
    }
    .context("incompatible types for comparison")
}

fn size(value: &Value) -> Result<usize> {
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
    size.filter(|size| *size < 100_000).with_context(|| format!("no length: {}", shown(value)))
}

fn index(value: &Value, keys: &[Value]) -> Result<Value> {
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Array(items), Value::Number(at)) => {
                let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
                let item = at.and_then(|at| items.get(at)).cloned();
                item.with_context(|| format!("index out of range: {key}"))?
            }
            // What Go's map of texts has for any other key.
            (Value::Object(fields), Value::String(name)) => {
                fields.get(name).cloned().unwrap_or_else(|| "".into())
            }
            (Value::Null, Value::String(_)) => "".into(),
            (Value::Null, _) => bail!("index of untyped nil"),
            _ => bail!("can't index {} with {}", shown(&value), shown(key)),
        };
    }
    Ok(value)
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value> {
    let bounds: Vec<usize> = bounds.iter().map(size).collect::<Result<_>>()?;
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        _ => bail!("can't slice {}", shown(value)),
    };
    let (from, to) = match bounds.as_slice() {
        [] => (0, length),
        [from] => (*from, length),
        [from, to] => (*from, *to),
        _ => bail!("too many bounds"),
    };
    ensure!(from <= to && to <= length, "index out of range: {from}:{to} of {length}");
    Ok(match value {
        Value::String(text) => text.get(from..to).context("a cut within a character")?.into(),
        Value::Array(items) => items[from..to].into(),
        _ => Value::Null,
    })
}

fn title(text: &str) -> String {
    let mut start = true;
    let letter = |c: char| {
        let shown: String = if start { c.to_uppercase().collect() } else { c.into() };
        start = !c.is_alphanumeric() && c != '\'' && c != '_';
        shown
    };
    text.chars().map(letter).collect()
}

fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '"' => "&#34;".into(),
        '\'' => "&#39;".into(),
        c => String::from(c),
    };
    text.chars().map(escape).collect()
}
