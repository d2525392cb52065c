//! Changes of an image's configuration, as instructions of a Dockerfile: `commit -c`, `import -c`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// Applies one instruction to the `config` object of an image's configuration.
///
/// # Errors
/// When it is not one that only changes the configuration, or makes no sense.
pub fn apply(config: &mut Map<String, Value>, instruction: &str) -> Result<()> {
    let instruction = instruction.trim();
    let (name, rest) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
    let (name, rest) = (name.to_ascii_uppercase(), rest.trim());
    ensure!(!rest.is_empty(), "{name} requires at least one argument");
    let context = || format!("{instruction:?}");
    match name.as_str() {
        "CMD" => drop(config.insert("Cmd".into(), command(rest).with_context(context)?)),
        "ENTRYPOINT" => {
            config.insert("Entrypoint".into(), command(rest).with_context(context)?);
        }
        "USER" => drop(config.insert("User".into(), json!(rest))),
        "STOPSIGNAL" => drop(config.insert("StopSignal".into(), json!(rest))),
        "WORKDIR" => {
            let old = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
            let path = std::path::Path::new("/").join(old).join(rest);
            config.insert("WorkingDir".into(), json!(path));
        }
        "ENV" => {
            for (key, value) in pairs(rest).with_context(context)? {
                let list = config.entry("Env").or_insert_with(|| json!([]));
                set_variable(list, &key, &value);
            }
        }
        "LABEL" => {
            for (key, value) in pairs(rest).with_context(context)? {
                object(config, "Labels").insert(key, json!(value));
            }
        }
        "EXPOSE" => {
            for port in words(rest).with_context(context)? {
                let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                object(config, "ExposedPorts").insert(port, json!({}));
            }
        }
        "VOLUME" => {
            let volumes = match exec_form(rest) {
                Some(volumes) => volumes,
                None => words(rest).with_context(context)?,
            };
            for volume in volumes {
                object(config, "Volumes").insert(volume, json!({}));
            }
        }
        "ONBUILD" => {
            let list = config.entry("OnBuild").or_insert_with(|| json!([]));
            if list.is_null() {
                *list = json!([]);
            }
            list.as_array_mut().context("OnBuild is no list")?.push(json!(rest));
        }
        _ => bail!("{name} is not a valid change command"),
    }
    Ok(())
}

/// `["program","argument"]`, or a line for the shell.
fn command(text: &str) -> Result<Value> {
    match exec_form(text) {
        Some(command) => Ok(json!(command)),
        None => Ok(json!(["/bin/sh", "-c", text])),
    }
}

fn exec_form(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was just made one")
}

fn set_variable(list: &mut Value, key: &str, value: &str) {
    let mut kept: Vec<Value> = list.as_array().cloned().unwrap_or_default();
    let is_other =
        |entry: &Value| entry.as_str().is_none_or(|entry| entry.split('=').next() != Some(key));
    kept.retain(is_other);
    kept.push(json!(format!("{key}={value}")));
    *list = json!(kept);
}

/// `key=value key2="with spaces"`, or the older `key value to the end`.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let words = words(text)?;
    if words.first().is_some_and(|first| !first.contains('=')) {
        let (key, value) = text.split_once(char::is_whitespace).context("a value is missing")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| {
        let (key, value) = word.split_once('=').with_context(|| format!("{word:?} has no ="))?;
        ensure!(!key.is_empty(), "{word:?} has no name");
        Ok((key.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Words as in a shell, with quotes and backslashes.
fn words(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(mark), _) if letter == mark => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().extend(letters.next());
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    ensure!(quote.is_none(), "a quote is not closed");
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(before: Value, instructions: &[&str]) -> Value {
        let mut config = before.as_object().unwrap().clone();
        for instruction in instructions {
            apply(&mut config, instruction).unwrap();
        }
        Value::Object(config)
    }

    #[test]
    fn commands_have_two_forms() {
        let config = applied(json!({}), &[r#"CMD ["sleep", "5"]"#, "entrypoint echo $HOME"]);
        assert_eq!(
            config,
            json!({"Cmd": ["sleep", "5"], "Entrypoint": ["/bin/sh", "-c", "echo $HOME"]})
        );
    }

    #[test]
    fn variables_and_labels_replace_those_of_the_same_name() {
        let before = json!({"Env": ["PATH=/bin", "A=1"], "Labels": null});
        let config = applied(before, &["ENV A=2 B=\"x y\"", "ENV C d e", "LABEL a=b c='d e'"]);
        assert_eq!(
            config,
            json!({
                "Env": ["PATH=/bin", "A=2", "B=x y", "C=d e"], "Labels": {"a": "b", "c": "d e"}
            })
        );
    }

    #[test]
    fn folders_ports_and_volumes() {
        let instructions = [
            "WORKDIR /a",
            "WORKDIR b",
            "EXPOSE 80 53/udp",
            "VOLUME /x /y",
            "USER 5",
            "ONBUILD RUN x",
        ];
        assert_eq!(
            applied(json!({}), &instructions),
            json!({
                "WorkingDir": "/a/b", "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/x": {}, "/y": {}}, "User": "5", "OnBuild": ["RUN x"]
            })
        );
    }

    #[test]
    fn others_are_refused() {
        let mut config = Map::new();
        for bad in ["RUN x", "CMD", "ENV =x", "LABEL a=\"b", "FROM x"] {
            apply(&mut config, bad).unwrap_err();
        }
        assert!(config.is_empty());
    }
}
