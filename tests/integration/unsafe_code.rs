//! Where the runtime has `unsafe` code: in `src/sys` alone, and each time with a reason.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.extend(path.extension().is_some_and(|e| e == "rs").then_some(path)),
        }
    }
}

/// The line without its comment has the word `unsafe`, or lets such code in.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let word = |c: char| !c.is_alphanumeric();
    code.split(word).any(|word| word == "unsafe")
}

#[test]
fn is_in_sys_alone_and_says_why_it_is_sound() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut seen = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for at in (0..lines.len()).filter(|at| is_unsafe(lines[*at])) {
            let place = format!("{}:{}: {}", file.display(), at + 1, lines[at].trim());
            assert!(file.starts_with(src.join("sys")), "{place}: outside of src/sys");
            if lines[at].contains("allow(unsafe_code)") {
                // And macros' `main` and `malloc`, which the C library calls by that name.
                let files = ["sys/mod.rs", "sys/entry.rs", "sys/heap.rs"];
                assert!(files.iter().any(|name| file == src.join(name)), "{place}");
                continue;
            }
            seen += 1;
            let above = &lines[at.saturating_sub(6)..at];
            let reason =
                |line: &&str| line.contains("// SAFETY: ") || line.contains("/// # Safety");
            assert!(above.iter().any(reason), "{place}: no SAFETY comment in the lines above");
        }
    }
    assert!(seen > 40, "only {seen} found: does this still look in the right place?");
    println!("{seen} places with unsafe code, all in src/sys");
}
