//! Values as Go prints them.

use anyhow::{Result, bail};
use serde_json::Value;

/// As `{{.}}` and `%v` have it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            let shown = fields.iter().map(|(name, value)| format!("{name}:{}", shown(value)));
            format!("map[{}]", shown.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// As `%q` has it.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Flags, width and precision of one verb: `%-8.3f`.
#[derive(Default)]
struct Verb {
    left: bool,
    zero: bool,
    plus: bool,
    width: usize,
    precision: Option<usize>,
}

/// `printf`
pub(super) fn formatted(format: &str, arguments: &[Value]) -> Result<String> {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = chars.next_if(|c| "-0+ #".contains(*c)) {
            verb.left |= flag == '-';
            verb.zero |= flag == '0';
            verb.plus |= flag == '+';
        }
        verb.width = number(&mut chars).unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            verb.precision = Some(number(&mut chars).unwrap_or(0));
        }
        if verb.width > 10_000 || verb.precision.is_some_and(|precision| precision > 10_000) {
            bail!("printf: too wide");
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(letter) => match arguments.next() {
                None => out.push_str(&format!("%!{letter}(MISSING)")),
                Some(value) => out.push_str(&verb.shown(letter, value)),
            },
        }
    }
    let extra: Vec<String> = arguments.map(shown).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

fn number(chars: &mut std::iter::Peekable<std::str::Chars>) -> Option<usize> {
    let mut number: Option<usize> = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(digit as usize));
    }
    number
}

impl Verb {
    fn shown(&self, letter: char, value: &Value) -> String {
        let cut = |text: String| match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text,
        };
        let whole = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
        let text = match (letter, value) {
            ('v', _) => shown(value),
            ('s', Value::String(_) | Value::Array(_) | Value::Object(_)) => cut(shown(value)),
            ('q', Value::String(text)) => quoted(&cut(text.clone())),
            ('t', Value::Bool(_)) => shown(value),
            ('x', Value::String(text)) => text.bytes().map(|b| format!("{b:02x}")).collect(),
            ('X', Value::String(text)) => text.bytes().map(|b| format!("{b:02X}")).collect(),
            ('f' | 'F', Value::Number(number)) => {
                format!("{:.*}", self.precision.unwrap_or(6), number.as_f64().unwrap_or(0.0))
            }
            _ => match (letter, whole) {
                ('d', Some(number)) => number.to_string(),
                ('x', Some(number)) => format!("{number:x}"),
                ('X', Some(number)) => format!("{number:X}"),
                ('o', Some(number)) => format!("{number:o}"),
                ('b', Some(number)) => format!("{number:b}"),
                ('c', Some(number)) => u32::try_from(number)
                    .ok()
                    .and_then(char::from_u32)
                    .unwrap_or(char::REPLACEMENT_CHARACTER)
                    .to_string(),
                _ => return format!("%!{letter}({})", shown(value)),
            },
        };
        let text = match self.plus && value.as_f64().is_some_and(|number| number >= 0.0) {
            true => format!("+{text}"),
            false => text,
        };
        let missing = self.width.saturating_sub(text.chars().count());
        match (self.left, self.zero && value.is_number()) {
            (true, _) => text + &" ".repeat(missing),
            (false, false) => " ".repeat(missing) + &text,
            (false, true) => {
                let sign = usize::from(text.starts_with(['-', '+']));
                format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..])
            }
        }
    }
}
