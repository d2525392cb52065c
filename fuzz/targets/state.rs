//! A container's folder whose files are damaged or another version's: the record, config.json and
//! the pid, with NUL bytes between them (JSON has none).
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ultari::container::Container;
use ultari::state::Folder;
use ultari_fuzz::*;

/// Of this process alone; in memory, if TMPDIR is.
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = std::env::temp_dir().join(format!("state-{}", std::process::id()));
    std::fs::create_dir_all(root.join("c")).expect("make the state's folder");
    root
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let end = data[..size].iter().position(|byte| *byte == 0).unwrap_or(size);
    if seed.is_multiple_of(4) || end == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let rest = data[end..size].to_vec();
    let record = json::mutate(data, end, max_size - rest.len(), seed);
    data[record..record + rest.len()].copy_from_slice(&rest);
    record + rest.len()
});

fuzz_target!(|data: &[u8]| {
    let folder = ROOT.join("c");
    let mut files = data.splitn(3, |byte| *byte == 0);
    for name in ["state.json", "config.json", "init"] {
        let path = folder.join(name);
        match files.next() {
            Some(text) => std::fs::write(path, text).expect("write to memory"),
            None => drop(std::fs::remove_file(path)),
        }
    }
    if let Some(Some(folder)) = refused(Folder::open(&ROOT, "c")) {
        refused(folder.init());
    }
    let Some(container) = refused(Container::open(&ROOT, "c")) else { return };
    refused(ultari::cgroup::fuzzing::places(&container.record.cgroup));
    refused(container.state());
    refused(container.config());
});
