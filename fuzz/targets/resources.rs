//! The resources.json of `update --resources`, down to what is written into the files of a cgroup.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use ultari_fuzz::*;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed)
});

fuzz_target!(|text: &[u8]| {
    let mut warnings = Vec::new();
    if let Some(resources) = refused(ultari::spec::parse_resources(text, &mut warnings)) {
        check_resources(&resources);
    }
});
