//! Changes JSON as JSON: of what changes bytes, next to nothing would get past the parser.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Number, Value, json};

/// Pseudo-random numbers (xorshift), so that an input follows from its seed alone.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

/// A custom mutator of libFuzzer: changes the first `size` bytes of `data`, returns the new size.
/// One time in eight the text is changed as text.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut numbers = Numbers(u64::from(seed) << 1 | 1);
    numbers.below(2);
    let parsed = match numbers.below(8) {
        0 => None,
        _ => serde_json::from_slice::<Value>(&data[..size]).ok(),
    };
    let Some(mut value) = parsed else { return fuzzer_mutate(data, size, max_size) };
    for _ in 0..=numbers.below(3) {
        change(&mut value, &mut numbers);
    }
    match serde_json::to_vec(&value) {
        Ok(text) if text.len() <= max_size => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(elements) => elements.iter().map(count).sum(),
        Value::Object(properties) => properties.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// The value that is number `index` in the tree.
fn pick<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(elements) => elements.iter_mut().find_map(|element| pick(element, index)),
        Value::Object(properties) => properties.values_mut().find_map(|inner| pick(inner, index)),
        _ => None,
    }
}

fn any(value: &mut Value, numbers: &mut Numbers) -> Value {
    let mut index = numbers.below(count(value));
    pick(value, &mut index).map_or(Value::Null, |found| found.clone())
}

fn change(root: &mut Value, numbers: &mut Numbers) {
    let other = any(root, numbers);
    let mut index = numbers.below(count(root));
    let Some(value) = pick(root, &mut index) else { return };
    match (numbers.below(5), value) {
        (0, value) => *value = other,
        (1, value) => *value = odd(numbers),
        (_, Value::String(text)) => *text = changed(text, numbers),
        (_, Value::Number(number)) => *number = near(number, numbers),
        (_, Value::Bool(bool)) => *bool = !*bool,
        (_, Value::Array(elements)) => change_array(elements, other, numbers),
        (_, Value::Object(properties)) => change_object(properties, other, numbers),
        (_, value @ Value::Null) => *value = odd(numbers),
    }
}

fn change_array(elements: &mut Vec<Value>, other: Value, numbers: &mut Numbers) {
    let length = elements.len();
    match numbers.below(5) {
        0 if length > 0 => drop(elements.remove(numbers.below(length))),
        1 if length > 1 => elements.swap(0, numbers.below(length)),
        2 => elements.push(other),
        3 if length > 0 => {
            let copy = elements[numbers.below(length)].clone();
            elements.insert(numbers.below(length + 1), copy);
        }
        4 if length > 0 && length < 200 && count(&elements[0]) < 20 => {
            let copy = elements[numbers.below(length)].clone();
            elements.extend(std::iter::repeat_n(copy, numbers.below(100)));
        }
        _ => {}
    }
}

fn change_object(
    properties: &mut serde_json::Map<String, Value>,
    other: Value,
    numbers: &mut Numbers,
) {
    let nth = numbers.below(properties.len());
    let Some(name) = properties.keys().nth(nth).cloned() else {
        if let Value::Object(other) = other {
            *properties = other;
        }
        return;
    };
    match (numbers.below(4), other) {
        (0, _) => drop(properties.remove(&name)),
        (1, _) => {
            let value = properties.remove(&name).unwrap_or_default();
            properties.insert(changed(&name, numbers), value);
        }
        (2, Value::Object(other)) => properties.extend(other),
        (_, other) => drop(properties.insert(name, other)),
    }
}

fn changed(text: &str, numbers: &mut Numbers) -> String {
    const WORDS: [&str; 16] = [
        "",
        "/",
        ".",
        "..",
        "\0",
        "\n",
        ":",
        "-",
        ",",
        "=",
        " ",
        "é",
        "x.y",
        "*",
        "0",
        "\u{10ffff}",
    ];
    let at = |numbers: &mut Numbers| {
        let mut at = numbers.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let word = WORDS[numbers.below(WORDS.len())];
    match numbers.below(6) {
        0 => word.to_owned(),
        1 => {
            let (before, after) = text.split_at(at(numbers));
            format!("{before}{word}{after}")
        }
        2 => text[..at(numbers)].to_owned(),
        3 => text[at(numbers)..].to_owned(),
        4 if text.len() < 2000 => text.repeat(1 + numbers.below(4)),
        _ => {
            let mut bytes = text.as_bytes().to_vec();
            let size = bytes.len();
            bytes.resize(size + 16, 0);
            let size = fuzzer_mutate(&mut bytes, size, size + 16);
            String::from_utf8_lossy(&bytes[..size]).into_owned()
        }
    }
}

fn near(number: &Number, numbers: &mut Numbers) -> Number {
    let value = number.as_i64().unwrap_or(i64::MAX);
    match numbers.below(7) {
        0 => value.wrapping_add(1).into(),
        1 => value.wrapping_sub(1).into(),
        2 => value.wrapping_neg().into(),
        3 => value.wrapping_mul(2).into(),
        4 => (value ^ 1i64.rotate_left(numbers.below(64) as u32)).into(),
        5 => (value as u64).into(),
        _ => Number::from_f64(value as f64 / 2.0).unwrap_or_else(|| 0.into()),
    }
}

/// What stands at the edge of some range or type.
fn odd(numbers: &mut Numbers) -> Value {
    let all = [
        Value::Null,
        json!(true),
        json!({}),
        json!([]),
        json!(""),
        json!([""]),
        json!(0),
        json!(-1),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(u64::MAX / 1000),
        json!(1000),
        json!(i32::MIN),
        json!(u32::MAX),
        json!(1u64 << 32),
        json!(1 << 16),
        json!(0.5),
        json!(1e300),
        json!("/"),
        json!("x".repeat(5000)),
    ];
    all[numbers.below(all.len())].clone()
}
