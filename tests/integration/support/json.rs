//! Short ways through JSON for tests.

use serde_json::Value;

/// Typed look-ups that panic with the whole value when something is not as expected.
pub trait Json {
    /// The string at a JSON pointer.
    fn text(&self, pointer: &str) -> &str;
    /// The integer at a JSON pointer.
    fn integer(&self, pointer: &str) -> i64;
    /// The strings in the array at a JSON pointer.
    fn texts(&self, pointer: &str) -> Vec<&str>;
    /// In a report of the guest: the topmost mount at a path.
    fn mount(&self, destination: &str) -> Option<&Value>;
}

impl Json for Value {
    #[track_caller]
    fn text(&self, pointer: &str) -> &str {
        let found = self.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("no string at {pointer} in {self:#}"))
    }

    #[track_caller]
    fn integer(&self, pointer: &str) -> i64 {
        let found = self.pointer(pointer).and_then(Value::as_i64);
        found.unwrap_or_else(|| panic!("no integer at {pointer} in {self:#}"))
    }

    #[track_caller]
    fn texts(&self, pointer: &str) -> Vec<&str> {
        let found = self.pointer(pointer).and_then(Value::as_array);
        let array = found.unwrap_or_else(|| panic!("no array at {pointer} in {self:#}"));
        array.iter().map(|value| value.as_str().expect("a string")).collect()
    }

    fn mount(&self, destination: &str) -> Option<&Value> {
        let mounts = self["mounts"].as_array().expect("mounts");
        mounts.iter().rev().find(|mount| mount["destination"] == destination)
    }
}
