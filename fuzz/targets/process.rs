//! The process.json of `exec --process`.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ultari_fuzz::*;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed)
});

fuzz_target!(|text: &[u8]| {
    let mut warnings = Vec::new();
    if let Some(process) = refused(ultari::spec::parse_process(text, &mut warnings)) {
        check_process(&process);
    }
});
